"""comarl's update of RACE on MATD3 in PyTorch, in the manner of `torch_matd3`; not its ablations.

Encoders, linear policies, critic, the critic that sees a team's policies, value and estimators of
mutual information.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_matd3 import (
    MLP,
    AdamKind,
    Batch,
    Critic,
    Optimiser,
    Policy,
    Replay,
    Torso,
    act,
    draw_noise,
    frozen_copy,
    frozen_first,
    join,
    polyak,
    tensor,
)

from comarl.algorithms.race_matd3 import RaceMatd3

# A team's weights [agents, features, action] and biases [agents, 1, action]
Heads = tuple[Tensor, Tensor]


class TeamCritic(nn.Module):
    """Q-functions of state, joint action and the team's policies, stacked."""

    def __init__(self, source: Any):
        super().__init__()
        self.embedders, self.critics = MLP(source.embedders), MLP(source.critics)
        self.count = source.critics.output.bias.shape[0]

    def forward(self, state: Tensor, action: Tensor, heads: Heads) -> Tensor:
        columns, x = to_columns(heads), join(state, action)
        chi = self.embedders(columns.expand(self.count, *columns.shape)).mean(1, keepdim=True)
        x = torch.cat([x.expand(self.count, *x.shape), chi.expand(-1, len(state), -1)], dim=2)
        return self.critics(x).squeeze(-1)


def to_columns(heads: Heads) -> Tensor:
    """One row for each action dimension of the team: its weights and its bias."""
    weight, bias = heads
    return torch.cat([weight, bias], dim=1).transpose(1, 2).flatten(0, 1)


class Mine(nn.Module):
    """The scores of every state with every representation, for each agent."""

    def __init__(self, source: Any):
        super().__init__()
        self.state_branch, self.z_branch = Torso(source.state_branch), Torso(source.z_branch)

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        states = self.state_branch(state.expand(len(z), *state.shape))
        return torch.bmm(states, self.z_branch(z).transpose(1, 2))


def jensen_shannon_gap(scores: Tensor) -> Tensor:
    """[agents, batch, batch] -> [agents, batch]; see comarl.ops.information."""
    matched = scores.diagonal(dim1=1, dim2=2)
    mismatched = (F.softplus(scores).sum(2) - F.softplus(matched)) / (scores.shape[1] - 1)
    return mismatched + F.softplus(-matched) - 2 * 0.6931471805599453


class TorchRace:
    """RACE on MATD3: networks, targets, population, optimisers and one update of all."""

    def __init__(
        self,
        algorithm: RaceMatd3,
        state: Any,
        device: str,
        kind: AdamKind = "fused",
        compile: bool = False,
    ):
        """`state` is what `algorithm.init` made."""
        self.algorithm, self.updates = algorithm, 0
        self.policy = Policy(state.encoder.value, state.head.value).to(device)
        self.critic = Critic(state.critic.value.critics).to(device)
        self.team_critic = TeamCritic(state.team_critic.value).to(device)
        self.value, self.mine = MLP(state.value.value).to(device), Mine(state.mine.value).to(device)
        self.population = (
            tensor(state.population.teams.weight).to(device),
            tensor(state.population.teams.bias).unsqueeze(-2).to(device),
        )
        self.add_targets()
        self.add_optimisers(kind)
        if compile:
            for name in ("critic_target", "team_target", "critic_losses", "encoder_loss"):
                setattr(self, name, torch.compile(getattr(self, name)))

    def add_targets(self) -> None:
        self.target_policy, self.target_critic = frozen_copy(self.policy), frozen_copy(self.critic)
        self.target_team_critic = frozen_copy(self.team_critic)
        modules = (self.policy, self.critic, self.team_critic)
        frozen = (self.target_policy, self.target_critic, self.target_team_critic)
        self.online = [p for module in modules for p in module.parameters()]
        self.targets = [p for module in frozen for p in module.parameters()]
        self.first = frozen_first(self.critic.critics)
        self.team_first = frozen_first(self.team_critic.critics)
        self.first_embedder = frozen_first(self.team_critic.embedders)

    def add_optimisers(self, kind: AdamKind) -> None:
        settings = self.algorithm
        self.critic_optimisers = [
            Optimiser(module.parameters(), settings.critic_optimiser, kind)
            for module in (self.critic, self.team_critic, self.value)
        ]
        of_agents = (
            (self.policy.encoders, settings.encoder_optimiser),
            (self.policy.heads, settings.head_optimiser),
            (self.mine, settings.mine_optimiser),
        )
        self.policy_optimisers = [
            Optimiser(module.parameters(), adam, kind, each=True) for module, adam in of_agents
        ]

    def step(self, replay: Replay) -> None:
        """What is timed: a draw from the replay and one update with random teams."""
        batch = replay.sample()
        team, other = torch.randint(self.algorithm.num_teams, (2,)).tolist()
        self.update(batch, draw_noise(batch.action, self.algorithm), team, other)

    def update(self, batch: Batch, noise: Tensor, team: int, other: int) -> dict[str, Tensor]:
        """`team` is for the critic of teams, `other` for the encoders."""
        heads = self.team(team)
        target, team_target = self.critic_target(batch, noise), self.team_target(batch, heads)
        losses = self.critic_losses(batch, target, team_target, heads)
        sum(losses).backward()  # no parameter is in two of them
        for optimiser in self.critic_optimisers:
            optimiser.step()
        names = ("critic_loss", "team_critic_loss", "value_loss")
        metrics = {name: loss.detach() for name, loss in zip(names, losses, strict=True)}
        if self.updates % self.algorithm.policy_delay == 0:
            loss, information = self.encoder_loss(batch, self.team(other))
            loss.backward()
            for optimiser in self.policy_optimisers:
                optimiser.step()
            polyak(self.targets, self.online, self.algorithm.tau)
            metrics["mutual_information"] = self.algorithm.policy_delay * information
        self.updates += 1
        return metrics

    def team(self, index: int) -> Heads:
        """The last is the MARL team; all are data to whom they are given."""
        if index == self.algorithm.breeding.population:
            return self.policy.heads.weight.detach(), self.policy.heads.bias.detach()
        return self.population[0][index], self.population[1][index]

    @torch.no_grad()
    def critic_target(self, batch: Batch, noise: Tensor) -> Tensor:
        action = (self.target_policy(batch.next_obs) + noise).clamp_(-1, 1)
        next_q = self.target_critic(batch.next_state, action).amin(0)
        return batch.reward + self.algorithm.gamma * batch.going_on * next_q

    @torch.no_grad()
    def team_target(self, batch: Batch, heads: Heads) -> Tensor:
        action = act(self.policy.encoders(batch.next_obs.transpose(0, 1)), *heads)
        next_q = self.target_team_critic(batch.next_state, action, heads).amin(0)
        return batch.reward + self.algorithm.gamma * batch.going_on * next_q

    def critic_losses(
        self, batch: Batch, target: Tensor, team_target: Tensor, heads: Heads
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the critic, the critic of teams, and the value."""
        error = self.critic(batch.state, batch.action) - target
        team_error = self.team_critic(batch.state, batch.action, heads) - team_target
        value_error = self.value(batch.state).squeeze(1) - torch.maximum(target, team_target)
        return (
            error.square().mean(1).sum(),
            team_error.square().mean(1).sum(),
            value_error.square().mean(),
        )

    def encoder_loss(self, batch: Batch, heads: Heads) -> tuple[Tensor, Tensor]:
        """The loss of encoders, MARL policies and estimators of information; and that
        information."""
        z = self.policy.encoders(batch.obs.transpose(0, 1))
        action = act(z, self.policy.heads.weight, self.policy.heads.bias)
        call = torch.func.functional_call
        q = call(self.critic.critics, self.first, join(batch.state, action))
        chi = call(self.team_critic.embedders, self.first_embedder, to_columns(heads)).mean(
            0, keepdim=True
        )
        x = torch.cat([join(batch.state, act(z, *heads)), chi.expand(len(z[0]), -1)], dim=1)
        team_q = call(self.team_critic.critics, self.team_first, x)
        gap = jensen_shannon_gap(self.mine(batch.state, z))
        weighted = (self.value_weights(batch.state) * gap).mean(1).sum()
        return -q.mean() - team_q.mean() + self.algorithm.beta * weighted, -gap.detach().mean()

    @torch.no_grad()
    def value_weights(self, state: Tensor) -> Tensor:
        value = self.value(state).squeeze(1)
        low, high = value.aminmax()
        return (value - low) / (high - low + 1e-8)
