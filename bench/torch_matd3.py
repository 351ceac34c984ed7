"""comarl's MATD3 update in PyTorch: what `bench/updates.py` compares with.

Eager PyTorch at its best: agents and twin critics are stacked, so that a layer of all of them is
one `baddbmm`; layer normalisation is PyTorch's own kernel; targets move by one `_foreach_lerp_`;
the policy loss spends nothing on gradients of the critic. Networks are built from comarl's and
begin with the same parameters; hyperparameters are comarl's. `bench/test_torch_updates.py` shows
that the two updates compute the same. Agents must be of equal size.
"""

import copy
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comarl.algorithms.matd3 import Matd3
from comarl.nn import mlp
from comarl.ops.learner import Adam

AdamKind = Literal["for", "foreach", "fused"]


class Batch(NamedTuple):
    """Transitions; also a whole replay's storage."""

    obs: Tensor  # [batch, agents, obs]
    state: Tensor
    action: Tensor  # [batch, agents, action]
    reward: Tensor
    going_on: Tensor  # 1 - terminated
    next_obs: Tensor
    next_state: Tensor


class Replay:
    """Preallocated tensors, of which the first `size` rows are drawn uniformly."""

    def __init__(self, storage: Batch, size: int, batch_size: int):
        self.storage, self.size, self.batch_size = storage, size, batch_size

    def sample(self) -> Batch:
        device = self.storage.reward.device
        row = torch.randint(self.size, (self.batch_size,), device=device)
        return Batch(*(field[row] for field in self.storage))


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))


class Linear(nn.Module):
    """A linear layer, or a stack of them."""

    def __init__(self, source: mlp.Linear):
        super().__init__()
        self.weight = nn.Parameter(tensor(source.weight))
        self.bias = nn.Parameter(tensor(source.bias).unsqueeze(-2))

    def forward(self, x: Tensor) -> Tensor:
        product = torch.baddbmm if self.weight.dim() == 3 else torch.addmm
        return product(self.bias, x, self.weight)


class LayerNorm(nn.Module):
    """ERL-Re2's: by the unbiased deviation. Its epsilon, 1e-6 of a deviation, is left out, to use
    PyTorch's kernel."""

    def __init__(self, source: mlp.LayerNorm):
        super().__init__()
        self.scale = nn.Parameter(tensor(source.scale).unsqueeze(-2))
        self.offset = nn.Parameter(tensor(source.offset).unsqueeze(-2))
        self.size = (source.scale.shape[-1],)
        self.unbiased = (1 - 1 / self.size[0]) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(
            self.offset, self.scale * self.unbiased, F.layer_norm(x, self.size, eps=1e-12)
        )


class Torso(nn.Module):
    """Hidden layers: each linear, then normalised if asked, then activated."""

    def __init__(self, source: mlp.Torso):
        super().__init__()
        self.layers = nn.ModuleList(Linear(layer) for layer in source.layers)
        self.norms = nn.ModuleList(LayerNorm(norm) for norm in source.norms or ())
        self.activation = F.leaky_relu if source.activation is mlp.leaky_relu else torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = self.activation(self.norms[i](x) if self.norms else x)
        return x


class MLP(nn.Module):
    """Hidden layers and a linear output."""

    def __init__(self, source: mlp.MLP):
        super().__init__()
        self.torso, self.output = Torso(source.torso), Linear(source.output)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.torso(x))


class Policy(nn.Module):
    """The MARL team: an encoder and a linear policy for each agent."""

    def __init__(self, encoders: mlp.Torso, heads: mlp.Linear):
        super().__init__()
        self.encoders, self.heads = Torso(encoders), Linear(heads)

    def forward(self, obs: Tensor) -> Tensor:
        return act(self.encoders(obs.transpose(0, 1)), self.heads.weight, self.heads.bias)


def act(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[agents, batch, features] -> [batch, agents, action]."""
    return torch.tanh(torch.baddbmm(bias, z, weight)).transpose(0, 1)


def join(state: Tensor, action: Tensor) -> Tensor:
    return torch.cat([state, action.flatten(1)], dim=1)


class Critic(nn.Module):
    """Q-functions of state and joint action, stacked."""

    def __init__(self, critics: mlp.MLP):
        super().__init__()
        self.critics = MLP(critics)
        self.count = critics.output.bias.shape[0]

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        x = join(state, action)
        return self.critics(x.expand(self.count, *x.shape)).squeeze(-1)


def frozen_first(stack: nn.Module) -> dict[str, Tensor]:
    """The first of a stack, as views without gradients, which stay true as the stack is updated in
    place."""
    return {name: parameter.detach()[0] for name, parameter in stack.named_parameters()}


def frozen_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


class Optimiser:
    """Adam with the gradient of one network clipped to a norm, if that is not 0; with `each`, that
    of each of a stack of networks."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        settings: Adam,
        kind: AdamKind,
        each: bool = False,
    ):
        self.parameters, self.max_norm = list(parameters), settings.max_grad_norm
        self.clip = clip_each if each else nn.utils.clip_grad_norm_
        self.adam = torch.optim.Adam(
            self.parameters,
            lr=settings.learning_rate,
            eps=settings.epsilon,
            foreach=kind == "foreach",
            fused=kind == "fused",
        )

    def step(self) -> None:
        if self.max_norm:
            self.clip(self.parameters, self.max_norm)
        self.adam.step()
        self.adam.zero_grad()


@torch.no_grad()
def clip_each(parameters: list[nn.Parameter], max_norm: float) -> None:
    """Scales the gradient of each network of a stack down to a norm of its own, if longer."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, [scale.view(-1, *[1] * (g.dim() - 1)) for g in gradients])


@torch.no_grad()
def polyak(targets: list[Tensor], online: list[nn.Parameter], tau: float) -> None:
    torch._foreach_lerp_(targets, online, tau)


def draw_noise(action: Tensor, algorithm: Any) -> Tensor:
    """For the actions of the target policy."""
    noise = algorithm.target_noise * torch.randn_like(action)
    return noise.clamp_(-algorithm.target_noise_clip, algorithm.target_noise_clip)


class TorchMatd3:
    """MATD3: networks, targets, optimisers and one update of all."""

    def __init__(
        self,
        algorithm: Matd3,
        state: Any,
        device: str,
        kind: AdamKind = "fused",
        compile: bool = False,
    ):
        """`state` is what `algorithm.init` made."""
        self.algorithm, self.updates = algorithm, 0
        actors, critic = state.actors.value, state.critic.value
        self.policy = Policy(actors.encoders, actors.heads).to(device)
        self.critic = Critic(critic.critics).to(device)
        self.target_policy, self.target_critic = frozen_copy(self.policy), frozen_copy(self.critic)
        self.first = frozen_first(self.critic.critics)
        self.actor_optimiser = Optimiser(
            self.policy.parameters(), algorithm.actor_optimiser, kind, each=True
        )
        self.critic_optimiser = Optimiser(
            self.critic.parameters(), algorithm.critic_optimiser, kind
        )
        self.targets = [*self.target_policy.parameters(), *self.target_critic.parameters()]
        self.online = [*self.policy.parameters(), *self.critic.parameters()]
        if compile:
            self.critic_target, self.critic_loss, self.policy_loss = map(
                torch.compile, (self.critic_target, self.critic_loss, self.policy_loss)
            )

    def step(self, replay: Replay) -> None:
        """What is timed: a draw from the replay and one update."""
        batch = replay.sample()
        self.update(batch, draw_noise(batch.action, self.algorithm))

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        target = self.critic_target(batch, noise)
        loss = self.critic_loss(batch, target)
        loss.backward()
        self.critic_optimiser.step()
        if self.updates % self.algorithm.policy_delay == 0:
            self.policy_loss(batch).backward()
            self.actor_optimiser.step()
            polyak(self.targets, self.online, self.algorithm.tau)
        self.updates += 1
        return {"critic_loss": loss.detach(), "target_value": target.mean()}

    @torch.no_grad()
    def critic_target(self, batch: Batch, noise: Tensor) -> Tensor:
        action = (self.target_policy(batch.next_obs) + noise).clamp_(-1, 1)
        next_q = self.target_critic(batch.next_state, action).amin(0)
        return batch.reward + self.algorithm.gamma * batch.going_on * next_q

    def critic_loss(self, batch: Batch, target: Tensor) -> Tensor:
        return (self.critic(batch.state, batch.action) - target).square().mean(1).sum()

    def policy_loss(self, batch: Batch) -> Tensor:
        x = join(batch.state, self.policy(batch.obs))
        return -torch.func.functional_call(self.critic.critics, self.first, x).mean()


def named_parameters(module: nn.Module) -> dict[str, np.ndarray]:
    """By the names that comarl's modules have, too."""
    return {name: value.detach().cpu().numpy() for name, value in module.named_parameters()}


def block() -> None:
    """Waits for an accelerator."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def to_torch(batch: Any, device: str) -> Batch:
    """comarl's `Transition`."""
    now, after = batch.now, batch.next
    fields = (
        now.obs,
        now.state,
        batch.action,
        batch.reward,
        ~batch.terminated,
        after.obs,
        after.state,
    )
    return Batch(*(tensor(jax.device_get(field)).float().to(device) for field in fields))
