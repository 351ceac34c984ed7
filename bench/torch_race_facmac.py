"""comarl's update of RACE on FACMAC in PyTorch, in two ways: what `bench/race_facmac.py` compares
with.

    "stepped"  as RACE's released code goes about it: GRUCell in a Python loop over time, with an
               unroll of its own for each team that acts (targets of the MARL team and of team j,
               actions of the MARL team and of team j'), whose linear policies, and the scores of
               T, are computed step by step within that loop
    "whole"    as eager PyTorch goes best: one `torch.gru` over all of time for the live encoder,
               one for its target, and everything else for all steps at once

Both compute the same, and the same as comarl (`bench/test_torch_race_facmac.py`). What the two
share is written for speed: time and agents lead, so that no step copies its batch; inputs are
joined once for all unrolls; actions are chosen for all steps at once; the two critics that only
pass a gradient on get none of their own; targets are copied by one `_foreach_copy_`. "Stepped" thus
does less in its loop than the released code, which also joins inputs and chooses actions there.
Networks are built from comarl's and begin with the same parameters; hyperparameters are comarl's.
Its ablations are not here.
"""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_matd3 import AdamKind, Optimiser, frozen_copy, tensor

from comarl.algorithms.race_facmac import RaceFacmac
from comarl.nn import critics, mixers, mlp, recurrent
from comarl.nn import mine as mines
from comarl.ops.learner import Adam

Mode = Literal["stepped", "whole"]
LOG2 = 0.6931471805599453


class Batch(NamedTuple):
    """Episodes, with time first; also a whole replay's storage, whose `batch` is all that is
    held."""

    inputs: Tensor  # [time + 1, agents, batch, inputs]: observation, last action, number
    obs: Tensor  # [time + 1, agents, batch, obs]
    state: Tensor  # [time + 1, batch, state]
    available: Tensor  # [time + 1, agents, batch, actions]
    action: Tensor  # [time, agents, batch, actions], one-hot
    reward: Tensor  # [time, batch]
    going_on: Tensor  # [time, batch]: 1 - terminated
    mask: Tensor  # [time, batch]


BATCH_AXIS = Batch(2, 2, 1, 2, 2, 1, 1, 1)


class Heads(NamedTuple):
    """A team's linear policies."""

    weight: Tensor  # [agents, hidden, actions]
    bias: Tensor  # [agents, 1, actions]


class Replay:
    """Episodes in tensors, drawn without replacement."""

    def __init__(self, storage: Batch, batch_size: int):
        self.storage, self.batch_size = storage, batch_size

    def sample(self) -> Batch:
        row = torch.randperm(self.storage.reward.shape[1])[: self.batch_size]
        return Batch(
            *(
                field.index_select(axis, row)
                for field, axis in zip(self.storage, BATCH_AXIS, strict=True)
            )
        )


def linear(source: mlp.Linear) -> nn.Linear:
    layer = nn.Linear(*source.weight.shape)
    layer.weight, layer.bias = (
        nn.Parameter(tensor(source.weight.T)),
        nn.Parameter(tensor(source.bias)),
    )
    return layer


def network(source: mlp.MLP | mlp.Torso | mlp.Linear) -> nn.Module:
    """The same layers; a torso ends in its activation."""
    if isinstance(source, mlp.Linear):
        return linear(source)
    torso = source.torso if isinstance(source, mlp.MLP) else source
    activation = nn.LeakyReLU() if torso.activation is mlp.leaky_relu else nn.ReLU()
    layers = [part for layer in torso.layers for part in (linear(layer), activation)]
    return nn.Sequential(*layers, *([linear(source.output)] if isinstance(source, mlp.MLP) else []))


class Encoder(nn.Module):
    """Linear, ReLU, GRU."""

    def __init__(self, source: recurrent.RecurrentEncoder):
        super().__init__()
        self.layer, gates = linear(source.layer), source.gru
        self.cell = nn.GRUCell(source.hidden, source.hidden)
        self.cell.weight_ih, self.cell.bias_ih = stack_gates(gates.from_input)
        self.cell.weight_hh, self.cell.bias_hh = stack_gates(gates.from_memory)

    def start(self, inputs: Tensor) -> Tensor:
        """Empty memories: one row for each agent of each episode."""
        return inputs.new_zeros(inputs.shape[1] * inputs.shape[2], self.cell.hidden_size)

    def step(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.cell(F.relu(self.layer(x.flatten(0, 1))), memory)

    def forward(self, inputs: Tensor) -> Tensor:
        """All of time by one kernel: [time, agents, batch, hidden]."""
        x = F.relu(self.layer(inputs.flatten(1, 2)))
        cell = self.cell
        weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
        z, _ = torch.gru(
            x, self.start(inputs).unsqueeze(0), weights, True, 1, 0.0, self.training, False, False
        )
        return z.unflatten(1, inputs.shape[1:3])


def stack_gates(source: recurrent.GatedLinear) -> tuple[nn.Parameter, nn.Parameter]:
    """PyTorch keeps the three gates one below the other."""
    weight = tensor(source.weight).mT.flatten(0, 1)
    return nn.Parameter(weight), nn.Parameter(tensor(source.bias).flatten())


class Mixer(nn.Module):
    """QMIX's."""

    def __init__(self, source: mixers.Mixer):
        super().__init__()
        self.first_weights, self.first_bias = (
            network(source.first_weights),
            network(source.first_bias),
        )
        self.second_weights, self.second_bias = (
            network(source.second_weights),
            network(source.second_bias),
        )
        self.monotonic, self.width = source.monotonic, source.width

    def forward(self, utilities: Tensor, state: Tensor) -> Tensor:
        """`utilities` [time, agents, batch]."""
        return mix(utilities, *self.weights(state))

    def weights(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the state makes of the two layers."""
        first, second = self.first_weights(state), self.second_weights(state)
        if self.monotonic:
            first, second = first.abs(), second.abs()
        first = first.unflatten(-1, (-1, self.width))  # [time, batch, agents, width]
        return first, self.first_bias(state), second, self.second_bias(state).squeeze(-1)


def mix(
    utilities: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor
) -> Tensor:
    hidden = F.elu((utilities.transpose(1, 2).unsqueeze(-1) * first).sum(2) + first_bias)
    return (hidden * second).sum(-1) + second_bias


class Critic(nn.Module):
    """Q_psi."""

    def __init__(self, source: critics.FactoredCritic):
        super().__init__()
        self.utility, self.mixer = network(source.utility), Mixer(source.mixer)

    def forward(self, obs: Tensor, action: Tensor, state: Tensor) -> Tensor:
        return self.mixer(self.utility(torch.cat([obs, action], -1)).squeeze(-1), state)


class TeamCritic(nn.Module):
    """Q_theta: the same, and sees a team's policies."""

    def __init__(self, source: critics.TeamFactoredCritic):
        super().__init__()
        self.utility_embedder, self.mixer_embedder = (
            network(source.utility_embedder),
            network(source.mixer_embedder),
        )
        self.utility, self.mixer = network(source.utility), Mixer(source.mixer)

    def forward(self, obs: Tensor, action: Tensor, state: Tensor, heads: Heads) -> Tensor:
        columns = torch.cat([heads.weight, heads.bias], 1).mT  # [agents, actions, hidden + 1]
        chi = self.utility_embedder(columns).mean(1).unsqueeze(1).expand(*obs.shape[:-1], -1)
        team = self.mixer_embedder(columns).mean(1).sum(0).expand(*state.shape[:-1], -1)
        utilities = self.utility(torch.cat([chi, obs, action], -1)).squeeze(-1)
        return self.mixer(utilities, torch.cat([state, team], -1))


class Mine(nn.Module):
    """T."""

    def __init__(self, source: mines.Mine):
        super().__init__()
        self.state_branch, self.z_branch = network(source.state_branch), network(source.z_branch)

    def gap(self, state: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        """[.. batch]: the mean over agents of `comarl.ops.information.team_gaps`, of `z` [..
        agents, batch, hidden]."""
        rows = self.z_branch(z).flatten(-3, -2)  # [.. agents batch, width]
        # [.. batch, agents, batch]
        scores = (self.state_branch(state) @ rows.mT).unflatten(-1, z.shape[-3:-1])
        others = (
            mask.unsqueeze(-1) & mask.unsqueeze(-2) & ~torch.eye(mask.shape[-1], dtype=torch.bool)
        )
        number = others.sum(-1)
        mismatched = (F.softplus(scores).mean(-2) * others).sum(-1) / number.clamp(min=1)
        matched = F.softplus(-scores.diagonal(dim1=-3, dim2=-1)).mean(-2)  # [.. batch]
        return (mismatched + matched - 2 * LOG2) * (number > 0)


def act(z: Tensor, heads: Heads) -> Tensor:
    """Logits [.. agents, batch, actions] of histories [.. agents, batch, hidden]."""
    return (
        torch.baddbmm(heads.bias, z, heads.weight)
        if z.dim() == 3
        else z @ heads.weight + heads.bias
    )


def only_available(logits: Tensor, available: Tensor) -> Tensor:
    return logits.masked_fill(~available, -1e10)


def one_hot(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


def straight_through(logits: Tensor, available: Tensor, noise: Tensor) -> Tensor:
    """A draw by this Gumbel noise."""
    relaxed = only_available(logits + noise, available).softmax(-1)
    return one_hot(relaxed.detach()) + (relaxed - relaxed.detach())


def draw_gumbel(like: Tensor) -> Tensor:
    return -torch.empty_like(like).exponential_().log_()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum().clamp(min=1)


def lambda_returns(batch: Batch, next_value: Tensor, gamma: float, td_lambda: float) -> Tensor:
    """TD(lambda), each episode ending in its own value."""
    discount, now, returns = gamma * batch.going_on, next_value[-1], []
    for t in reversed(range(len(next_value))):
        v = next_value[t]
        if t + 1 < len(next_value):
            v = torch.where(batch.mask[t + 1], torch.lerp(v, now, td_lambda), v)
        now = torch.addcmul(batch.reward[t], discount[t], v)
        returns.append(now)
    return torch.stack(returns[::-1])


def clipped_before(settings: Adam) -> Adam:
    """The same optimiser without clipping of its own."""
    return replace(settings, max_grad_norm=0.0)


class TorchRaceFacmac:
    """RACE on FACMAC: networks, targets, population, optimisers and one update of all."""

    def __init__(self, algorithm: RaceFacmac, state: Any, mode: Mode, kind: AdamKind = "fused"):
        """`state` is what `algorithm.init` made."""
        self.algorithm, self.mode, self.updates = algorithm, mode, 0
        self.encoder, self.value = Encoder(state.encoder.value), network(state.value.value)
        self.critic, self.team_critic = (
            Critic(state.critic.value),
            TeamCritic(state.team_critic.value),
        )
        self.mine, self.head = (
            Mine(state.mine.value),
            Heads(*map(nn.Parameter, to_heads(state.head.value))),
        )
        self.population = to_heads(state.population.teams)
        modules = (self.encoder, self.critic, self.team_critic)
        self.target_encoder, self.target_critic, self.target_team_critic = map(frozen_copy, modules)
        self.target_head = Heads(*(p.detach().clone() for p in self.head))
        frozen = (self.target_encoder, self.target_critic, self.target_team_critic)
        self.online = [*self.head, *(p for module in modules for p in module.parameters())]
        self.targets = [*self.target_head, *(p for module in frozen for p in module.parameters())]
        self.add_optimisers(kind)

    def add_optimisers(self, kind: AdamKind) -> None:
        settings = self.algorithm
        pairs = [
            (self.critic.parameters(), settings.critic_optimiser),
            (self.team_critic.parameters(), settings.critic_optimiser),
            (self.value.parameters(), settings.critic_optimiser),
            (self.encoder.parameters(), clipped_before(settings.actor_optimiser)),
            (self.head, clipped_before(settings.head_optimiser)),
            (self.mine.parameters(), settings.mine_optimiser),
        ]
        optimisers = [Optimiser(parameters, adam, kind) for parameters, adam in pairs]
        self.critic_optimisers, self.actor_optimisers = optimisers[:3], optimisers[3:]
        self.acting = [p for optimiser in self.actor_optimisers for p in optimiser.parameters]

    def step(self, replay: Replay) -> None:
        """What is timed: a draw from the replay and one update with random teams and noise."""
        batch = replay.sample()
        team, other = torch.randint(self.algorithm.num_teams, (2,)).tolist()
        self.update(batch, draw_gumbel(batch.action), draw_gumbel(batch.action), team, other)

    def update(
        self, batch: Batch, noise: Tensor, team_noise: Tensor, team: int, other: int
    ) -> dict[str, Tensor]:
        """`team` is for the critic of teams; `other`, with `team_noise`, for the encoder."""
        heads, z = self.team(team), None
        if self.mode == "whole":
            z = self.encoder(batch.inputs)
        target, team_target = self.critic_target(batch), self.team_target(batch, heads, z)
        losses = self.critic_losses(batch, target, team_target, heads)
        sum(losses).backward()  # no parameter is in two of them
        for optimiser in self.critic_optimisers:
            optimiser.step()
        loss, information = self.encoder_loss(batch, noise, team_noise, self.team(other), z)
        loss.backward(inputs=self.acting)
        self.clip_policy()
        for optimiser in self.actor_optimisers:
            optimiser.step()
        self.updates += 1
        if self.updates % self.algorithm.target_period == 0:
            torch._foreach_copy_(self.targets, [p.detach() for p in self.online])
        names = ("critic_loss", "team_critic_loss", "value_loss")
        metrics = {name: part.detach() for name, part in zip(names, losses, strict=True)}
        metrics |= {
            "target_value": masked_mean(target, batch.mask),
            "mutual_information": information,
        }
        return metrics | {"team_target_value": masked_mean(team_target, batch.mask)}

    def clip_policy(self) -> None:
        """Encoder and W_marl as one network; both optimisers name the same norm here."""
        if max_norm := self.algorithm.actor_optimiser.max_grad_norm:
            nn.utils.clip_grad_norm_([*self.encoder.parameters(), *self.head], max_norm)

    def team(self, index: int) -> Heads:
        """The last is the MARL team; all are data to whom they are given."""
        if index == self.algorithm.breeding.population:
            return self.own_team(*(p.detach() for p in self.head))
        return Heads(*(p[index] for p in self.population))

    def own_team(self, *head: Tensor) -> Heads:
        """W_marl, which is one policy for all agents, as a team like the others."""
        return Heads(*(p.expand(self.population.weight.shape[1], -1, -1) for p in head))

    def unroll(self, encoder: Encoder, heads: Heads, inputs: Tensor) -> Tensor:
        """The logits of one team, step by step."""
        memory, logits = encoder.start(inputs), []
        for x in inputs.unbind():
            memory = encoder.step(x, memory)
            logits.append(act(memory.unflatten(0, x.shape[:2]), heads))
        return torch.stack(logits)

    def unroll_with_gaps(self, heads: Heads, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same for team j', and the gap of each step."""
        memory, logits, gaps = self.encoder.start(batch.inputs), [], []
        for t in range(len(batch.mask)):
            memory = self.encoder.step(batch.inputs[t], memory)
            z = memory.unflatten(0, batch.inputs.shape[1:3])
            logits.append(act(z, heads))
            gaps.append(self.mine.gap(batch.state[t], z, batch.mask[t]))
        return torch.stack(logits), torch.stack(gaps)

    @torch.no_grad()
    def critic_target(self, batch: Batch) -> Tensor:
        if self.mode == "whole":
            logits = act(self.target_encoder(batch.inputs), self.own_team(*self.target_head))
        else:
            logits = self.unroll(
                self.target_encoder, self.own_team(*self.target_head), batch.inputs
            )
        next_action = one_hot(only_available(logits, batch.available)[1:])
        next_value = self.target_critic(batch.obs[1:], next_action, batch.state[1:])
        return lambda_returns(batch, next_value, self.algorithm.gamma, self.algorithm.td_lambda)

    @torch.no_grad()
    def team_target(self, batch: Batch, heads: Heads, z: Tensor | None) -> Tensor:
        logits = (
            self.unroll(self.encoder, heads, batch.inputs) if z is None else act(z.detach(), heads)
        )
        next_action = one_hot(only_available(logits, batch.available)[1:])
        next_value = self.target_team_critic(batch.obs[1:], next_action, batch.state[1:], heads)
        return lambda_returns(batch, next_value, self.algorithm.gamma, self.algorithm.td_lambda)

    def critic_losses(
        self, batch: Batch, target: Tensor, team_target: Tensor, heads: Heads
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the critic, the critic of teams, and the value."""
        obs, state = batch.obs[:-1], batch.state[:-1]
        error = self.critic(obs, batch.action, state) - target
        team_error = self.team_critic(obs, batch.action, state, heads) - team_target
        value_error = self.value(state).squeeze(-1) - torch.maximum(target, team_target)
        error, team_error, value_error = (
            masked_mean(e.square(), batch.mask) for e in (error, team_error, value_error)
        )
        return error, team_error, value_error

    def encoder_loss(
        self, batch: Batch, noise: Tensor, team_noise: Tensor, heads: Heads, z: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of the encoder, the MARL policies and the estimator of information; and that
        information."""
        obs, state, available = batch.obs[:-1], batch.state[:-1], batch.available[:-1]
        if z is None:
            logits = self.unroll(self.encoder, self.own_team(*self.head), batch.inputs[:-1])
            team_logits, gap = self.unroll_with_gaps(heads, batch)
        else:
            logits, team_logits = act(z[:-1], self.own_team(*self.head)), act(z[:-1], heads)
            gap = self.mine.gap(state, z[:-1], batch.mask)
        q = self.critic(obs, straight_through(logits, available, noise), state)
        team_q = self.team_critic(
            obs, straight_through(team_logits, available, team_noise), state, heads
        )
        vmm = (self.value_weights(state, batch.mask) * gap).sum() / batch.mask.shape[1]
        loss = (
            self.algorithm.beta * vmm - masked_mean(q, batch.mask) - masked_mean(team_q, batch.mask)
        )
        return loss, -masked_mean(gap.detach(), batch.mask)

    @torch.no_grad()
    def value_weights(self, state: Tensor, mask: Tensor) -> Tensor:
        value = self.value(state).squeeze(-1)
        low, high = value[mask].aminmax()
        return (value - low) / (high - low + 1e-8) * mask


def to_heads(source: mlp.Linear) -> Heads:
    return Heads(tensor(source.weight), tensor(source.bias).unsqueeze(-2))


def to_torch(batch: Any, spec: Any) -> Batch:
    """comarl's `Episode`s [batch time ...]."""
    steps, last = batch.timesteps, jax.vmap(recurrent.last_actions)(batch.action)
    by_agent, by_step = lambda x: jax.numpy.moveaxis(x, 0, 2), lambda x: jax.numpy.moveaxis(x, 0, 1)
    fields = Batch(
        inputs=by_agent(recurrent.agent_inputs(spec, steps.obs, last)),
        obs=by_agent(steps.obs),
        state=by_step(steps.state),
        available=by_agent(steps.available),
        action=by_agent(jax.nn.one_hot(batch.action, spec.action_size)),
        reward=by_step(batch.reward),
        going_on=by_step(~batch.terminated).astype(jax.numpy.float32),
        mask=by_step(batch.mask),
    )
    return Batch(*(tensor(jax.device_get(field)) for field in fields))
