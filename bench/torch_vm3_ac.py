"""VM3-AC on waves of prey in plain PyTorch and NumPy, one seed: what `bench/vm3_ac.py` compares
with.

Written as such code usually is: every agent has its own networks, kept in Python lists, each of
them `nn.Sequential`; losses are taken agent by agent; the replay and the task are NumPy arrays. Not
wasteful, though: actions are drawn once for all losses of an update, each q is asked once for both
of its terms, and Q does not collect gradients while the policies maximise it. Networks are built
from comarl's and begin with the same parameters; hyperparameters are comarl's. Only what VM3-AC
does by default is here: its switches are not. `bench/test_torch_vm3_ac.py` shows that update and
task are comarl's.
"""

import copy
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_matd3 import tensor

from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.envs.waves import CAUGHT, REACH, Waves

LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)


class NumpyWaves:
    """The task, for a team that starts in the centre."""

    def __init__(self, task: Waves):
        assert task.start == "centre" and task.growth == "linear"
        self.task, self.lattice = task, task.lattice

    def reset(self) -> np.ndarray:
        """What each predator sees."""
        self.place = np.full((self.task.predators, 2), 0.5, np.float32)
        self.alive, self.worth, self.time = np.ones(self.task.prey, bool), 1, 0
        return self.look()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """What each predator sees next, the reward, and whether time is over."""
        task = self.task
        self.place = np.clip(self.place + np.float32(task.speed) * np.clip(action, -1, 1), 0, 1)
        distance = np.sqrt(np.square(self.place[:, None] - self.lattice).sum(-1))
        caught = self.alive & ((distance <= REACH * task.radius).sum(0) >= task.catchers)
        self.alive &= ~caught
        reward = task.capture_reward * self.worth * caught.sum()
        if not self.alive.any():
            self.alive[:], self.worth = True, self.worth + 1
        self.time += 1
        return self.look(), float(reward), self.time >= task.horizon

    def look(self) -> np.ndarray:
        predators = self.task.predators
        seen = np.concatenate([self.place, self.lattice]) - self.place[:, None]
        seen[np.arange(predators), np.arange(predators)] = self.place
        seen[:, predators:][:, ~self.alive] = CAUGHT
        return seen.reshape(predators, -1)


class Batch(NamedTuple):
    """Transitions."""

    obs: Tensor  # [batch, agents, obs]
    action: Tensor  # [batch, agents, action]
    reward: Tensor
    terminated: Tensor  # 0 or 1
    next_obs: Tensor


class Replay:
    """The latest transitions, in NumPy arrays."""

    def __init__(self, task: Waves, capacity: int, batch_size: int):
        team, spec = (capacity, task.predators), task.spec
        zeros = lambda *shape: np.zeros(shape, np.float32)
        self.arrays = Batch(  # type: ignore[arg-type]
            *(
                zeros(*team, spec.obs_size),
                zeros(*team, spec.action_size),
                zeros(capacity),
                zeros(capacity),
            ),
            zeros(*team, spec.obs_size),
        )
        self.capacity, self.batch_size, self.cursor, self.size = capacity, batch_size, 0, 0

    def add(self, *transition: Any) -> None:
        for array, value in zip(self.arrays, transition, strict=True):
            array[self.cursor] = value
        self.cursor, self.size = (
            (self.cursor + 1) % self.capacity,
            min(self.size + 1, self.capacity),
        )

    def sample(self) -> Batch:
        row = np.random.randint(0, self.size, self.batch_size)
        return Batch(*(torch.as_tensor(array[row]) for array in self.arrays))


def network(source: Any, *index: int) -> nn.Sequential:
    """One of comarl's stacked networks."""
    layers = []
    for layer in (*source.torso.layers, source.output):
        weight, bias = tensor(layer.weight[index]), tensor(layer.bias[index])
        linear = nn.Linear(*weight.shape)
        linear.weight.data, linear.bias.data = weight.T.contiguous(), bias
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class TorchVm3Ac:
    """Networks, targets, optimisers and one update of all."""

    def __init__(self, algorithm: Vm3Ac, state: Any):
        """`state` is what `algorithm.init` made."""
        adam = algorithm.actor_optimiser
        assert (
            adam == algorithm.critic_optimiser == algorithm.information.optimiser
            and not adam.max_grad_norm
        )
        self.algorithm, self.agents = algorithm, state.policies.value.spec.num_agents
        agents = self.indices = range(self.agents)
        pairs = self.pairs = list(itertools.permutations(agents, 2))
        self.policies = [network(state.policies.value.networks.networks, i) for i in agents]
        self.predictors = {
            p: network(state.predictors.value.networks.networks, n) for n, p in enumerate(pairs)
        }
        self.critics = [
            [network(state.critic.value.networks.networks, k, i) for k in (0, 1)] for i in agents
        ]
        self.values = [network(state.value.value.networks.networks, i) for i in agents]
        self.targets = copy.deepcopy(self.values)
        make = lambda *nets: torch.optim.Adam(
            nn.ModuleList(nets).parameters(), adam.learning_rate, eps=adam.epsilon
        )
        partners = lambda i: (self.predictors[pair] for pair in pairs if pair[0] == i)
        self.actor_optimisers = [make(self.policies[i], *partners(i)) for i in agents]
        self.critic_optimisers = [make(self.values[i], *self.critics[i]) for i in agents]

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """Drawn by every agent, with one z for all."""
        z, x = torch.randn(1, self.algorithm.latent_size), torch.as_tensor(obs)
        return np.stack([self.draw(i, x[i : i + 1], z)[0][0].numpy() for i in self.indices])

    def draw(
        self, i: int, obs: Tensor, z: Tensor, normal: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """An action of agent i, and its log-probability."""
        mean, raw = self.policies[i](torch.cat([obs, z], -1)).chunk(2, -1)
        low, high = self.algorithm.log_std_range
        log_std = low + 0.5 * (high - low) * (torch.tanh(raw) + 1)
        normal = torch.randn_like(mean) if normal is None else normal
        u = mean + log_std.exp() * normal
        slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), (-0.5 * normal.square() - log_std - LOG_ROOT_2_PI - slope).sum(-1)

    def log_q(self, i: int, j: int, target: Tensor, context: Tensor, obs: Tensor) -> Tensor:
        """How probable j's action is, given i's."""
        mean = torch.tanh(self.predictors[i, j](torch.cat([context, obs[:, i], obs[:, j]], -1)))
        return -0.5 * (target - mean).square().sum(-1) / self.algorithm.information.variance

    def update(
        self, batch: Batch, z: Tensor | None = None, normal: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`normal` [agents, batch, action]. All losses are at the parameters before the step."""
        settings, obs, x, next_x = (
            self.algorithm,
            batch.obs,
            batch.obs.flatten(1),
            batch.next_obs.flatten(1),
        )
        z = torch.randn(len(x), settings.latent_size) if z is None else z
        drawn = [
            self.draw(i, obs[:, i], z, None if normal is None else normal[i]) for i in self.indices
        ]
        fixed = [action.detach() for action, _ in drawn]
        forward = {(i, j): self.log_q(i, j, fixed[j], drawn[i][0], obs) for i, j in self.pairs}
        replayed, sums = torch.cat([x, batch.action.flatten(1)], -1), torch.zeros(6)
        for i in self.indices:
            (action, log_pi), (one, two) = drawn[i], self.critics[i]
            partners = [j for j in self.indices if j != i]
            information = (
                sum(forward[j, i].detach() + forward[i, j] for j in partners) / self.agents
            )
            for net in (one, two):
                net.requires_grad_(False)
            first = one(torch.cat([x, *fixed[:i], action, *fixed[i + 1 :]], -1)).squeeze(-1)
            actor_loss = (-first + settings.beta * (log_pi - information)).mean()
            with torch.no_grad():
                second = two(torch.cat([x, *fixed], -1)).squeeze(-1)
                soft_value = torch.minimum(first, second) + settings.beta * (information - log_pi)
                next_value = self.targets[i](next_x).squeeze(-1)
                target = batch.reward + settings.gamma * (1 - batch.terminated) * next_value
            self.actor_optimisers[i].zero_grad()
            actor_loss.backward()
            for net in (one, two):
                net.requires_grad_(True)
            value_loss = 0.5 * (self.values[i](x).squeeze(-1) - soft_value).square().mean()
            critic_loss = sum(
                0.5 * (q(replayed).squeeze(-1) - target).square().mean() for q in (one, two)
            )
            self.critic_optimisers[i].zero_grad()
            (value_loss + critic_loss).backward()
            means = (
                target.mean() / self.agents,
                -log_pi.mean() / self.agents,
                information.mean() / self.agents,
            )
            sums += torch.stack([actor_loss, value_loss, critic_loss, *means]).detach()  # type: ignore[list-item]
        for optimiser in (*self.actor_optimisers, *self.critic_optimisers):
            optimiser.step()
        with torch.no_grad():
            for target_net, net in zip(self.targets, self.values, strict=True):
                for old, new in zip(target_net.parameters(), net.parameters(), strict=True):
                    old.lerp_(new, settings.tau)
        names = (
            "actor_loss",
            "value_loss",
            "critic_loss",
            "target_value",
            "entropy",
            "mutual_information",
        )
        return dict(zip(names, sums, strict=True))


class Training:
    """One seed: episodes, and after each the updates that its steps allow."""

    def __init__(self, algorithm: Vm3Ac, task: Waves, state: Any):
        self.learner, self.env = TorchVm3Ac(algorithm, state), NumpyWaves(task)
        self.replay = Replay(task, algorithm.replay.capacity, algorithm.replay.batch_size)
        self.env_steps, self.updates = 0, 0
        self.due = round(task.horizon * algorithm.pace.updates_per_step)
        shape, random = (task.predators, task.spec.action_size), np.random.default_rng(0)
        while self.env_steps < algorithm.pace.warmup_steps:
            self.play(lambda _: random.uniform(-1, 1, shape).astype(np.float32))

    def play(self, act: Any) -> None:
        """An episode. Nothing terminates."""
        obs, over = self.env.reset(), False
        while not over:
            action = act(obs)
            after, reward, over = self.env.step(action)
            self.replay.add(obs, action, reward, 0.0, after)
            obs, self.env_steps = after, self.env_steps + 1

    def round(self) -> None:
        self.play(self.learner.act)
        for _ in range(self.due):
            self.learner.update(self.replay.sample())
        self.updates += self.due
