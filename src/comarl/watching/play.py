"""Episodes to be watched: played greedily, with the state of the task at every step kept.

Every task is played as one copy of a task outside JAX, step by step, so that the same few lines see
all states as they come.
"""

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.envs.mamujoco import MultiAgentMujocoCopies
from comarl.envs.multiwalker import Multiwalker
from comarl.envs.pettingzoo import PettingZoo
from comarl.play import host_rollout
from comarl.types import (
    Algorithm,
    Clock,
    Environment,
    EnvSpec,
    HostEnvironment,
    HostTimestep,
    Key,
    Timestep,
)
from comarl.workers.film import Filmed
from comarl.workers.pool import Pool


@dataclass(frozen=True)
class Played:
    """One episode of one team."""

    states: list[Any]
    """what the task was like at the start and after each step: its own state in JAX, positions of a
    robot, or pictures"""
    action: np.ndarray
    """`[steps agents ...]`, which led from each state to the next"""
    reward: Float[np.ndarray, " steps"]
    terminated: bool
    """whether the task ended it, rather than time"""
    metrics: dict[str, float]
    """what the task counts at the end, such as `won`"""

    @property
    def steps(self) -> int:
        """How many took place."""
        return len(self.reward)


class Theatre:
    """Where a team plays to be watched. `states` grows as it plays, and is emptied by a reset."""

    def __init__(self, env: HostEnvironment, look: Callable[[], Any]):
        self.env, self._look = env, look
        self.spec, self.num_copies = env.spec, 1
        self.states: list[Any] = []

    def reset(
        self, seeds: Int[np.ndarray, " copies"], playing: Bool[np.ndarray, " copies"]
    ) -> HostTimestep:
        """Starts an episode."""
        timestep = self.env.reset(seeds, playing)
        self.states = [self._look()]
        return timestep

    def step(self, action: np.ndarray) -> tuple[HostTimestep, np.ndarray, np.ndarray, np.ndarray]:
        """As the task's own step."""
        outcome = self.env.step(action)
        self.states.append(self._look())
        return outcome

    def close(self) -> None:
        """Ends whatever the copy runs in."""
        self.env.close()


@contextmanager
def opened(task: Any) -> Iterator[Theatre]:
    """The theatre of a task, until the block ends. Raises what the task raises when it is made."""
    with tempfile.TemporaryDirectory() as folder:
        theatre = _theatre(task, Path(folder))
        try:
            yield theatre
        finally:
            theatre.close()


def _theatre(task: Any, folder: Path) -> Theatre:
    if isinstance(task, Environment):
        stepped = Stepped(task)
        return Theatre(stepped, lambda: jax.device_get(stepped.env_state))
    if isinstance(task, PettingZoo | Multiwalker):
        make = functools.partial(Filmed, task.maker(render_mode="rgb_array"), folder)
        pool = Pool(str(task), task.spec, make, 1, task.workers)
        return Theatre(pool, lambda: _newest(folder))
    env = task.make(1)
    if isinstance(env, MultiAgentMujocoCopies):
        return Theatre(env, lambda: env.physics.qpos[0].copy())
    return Theatre(env, lambda: None)


def _newest(folder: Path) -> np.ndarray:
    """The picture that a worker took last. All go then, so that the folder stays small; there are
    several where a worker died and another played again."""
    taken = sorted(folder.glob("*.npy"), key=lambda path: int(path.stem))
    picture = np.load(taken[-1])
    for path in taken:
        path.unlink()
    return picture


class Stepped:
    """One copy of a task in JAX, stepped from outside, as `comarl.types.HostEnvironment` says."""

    def __init__(self, task: Environment):
        # Observations are as much at hand as the state: none need be gathered from it
        self.spec: EnvSpec = replace(task.spec, obs_from_state=None)
        self.num_copies = 1
        self.env_state: PyTree = None
        self._task, self._reset, self._step = task, jax.jit(task.reset), jax.jit(task.step)
        self._key, self._time = jax.random.key(0), 0

    def reset(
        self, seeds: Int[np.ndarray, " copies"], playing: Bool[np.ndarray, " copies"]
    ) -> HostTimestep:
        """Starts an episode; chance comes from the seed alone."""
        reset_key, self._key = jax.random.split(jax.random.key(int(seeds[0])))
        self.env_state, timestep = self._reset(reset_key)
        self._time = 0
        return _on_host(timestep)

    def step(self, action: np.ndarray) -> tuple[HostTimestep, np.ndarray, np.ndarray, np.ndarray]:
        """`(timestep, rewards, terminated, truncated)`, each with an axis of the one copy."""
        key = jax.random.fold_in(self._key, self._time)
        self._time += 1
        outcome = self._step(self.env_state, jnp.asarray(action[0]), key)
        self.env_state, timestep, *rest = outcome
        reward, terminated, truncated = (np.asarray(value)[None] for value in rest)
        return _on_host(timestep), reward, terminated, truncated

    def close(self) -> None:
        """Nothing runs."""


def _on_host(timestep: Timestep) -> HostTimestep:
    one = lambda x: None if x is None else np.asarray(x)[None]
    return HostTimestep(
        np.asarray(timestep.obs)[None], np.asarray(timestep.state)[None], one(timestep.available)
    )


def play(
    algorithm: Algorithm,
    task: Any,
    theatre: Theatre,
    agent: PyTree,
    clock: Clock,
    team: int,
    key: Key,
) -> Played:
    """One greedy episode of a team of one seed's agent."""
    one_seed = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[None], tree)
    clocks = Clock(
        one_seed(clock.env_steps), one_seed(clock.updates), jnp.asarray(clock.update_in_round)
    )
    episodes = host_rollout.play(
        algorithm,
        theatre,
        one_seed(agent),
        clocks,
        np.array([[team]]),
        np.ones((1, 1), bool),
        key[None],
        "greedy",
    )
    steps = int(episodes.mask.sum())
    metrics: dict[str, Array] = {}
    if isinstance(task, Environment):
        metrics = task.metrics(jax.tree.map(jnp.asarray, theatre.states[-1]))
    return Played(
        states=theatre.states,
        action=np.asarray(episodes.action)[0, 0, :steps],
        reward=np.asarray(episodes.reward)[0, 0, :steps],
        terminated=bool(episodes.terminated[0, 0, :steps].any()),
        metrics={name: float(value) for name, value in metrics.items()},
    )


def returns(played: Played) -> list[float]:
    """The undiscounted return up to each state."""
    return [0.0, *itertools.accumulate(played.reward.tolist())]
