"""Episodes of a task outside JAX, of which there is a copy for each seed and team.

The host steps all copies together; teams act by the policies of `comarl.play.rollout`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from comarl.play.rollout import Mode, policy_of
from comarl.types import (
    PER_SEED,
    Algorithm,
    Clock,
    EnvSpec,
    Episode,
    HostEnvironment,
    HostTimestep,
    Key,
    Keys,
    Timestep,
)


def play(
    algorithm: Algorithm,
    env: HostEnvironment,
    agent: PyTree,
    clock: Clock,
    teams: Int[np.ndarray, "seeds copies"],
    playing: Bool[np.ndarray, "seeds copies"],
    keys: Keys,
    mode: Mode,
) -> Episode:
    """One episode of each of `teams`, `[seeds copies time ...]`, whose time is the horizon.

    Episodes that are not `playing` are masked from the start. `keys` is one key per seed. Arrays
    are always as long as the horizon, so that nothing is compiled anew for another length.
    """
    spec, shape = env.spec, teams.shape
    resets, memory_keys, act_keys = split_keys(keys, shape[1])
    timestep = env.reset(np.asarray(resets).reshape(-1), playing.reshape(-1))
    recorder = Recorder(spec, shape)
    recorder.timestep(0, timestep)
    seen = split_copies(spec, timestep, shape)
    memory = first = first_memory(algorithm, spec, agent, seen, memory_keys)
    alive = playing.copy()
    time = 0
    while alive.any():
        seen = split_copies(spec, timestep, shape)
        now = np.int32(time)
        memory, action = act(
            algorithm, spec, agent, clock, teams, memory, seen, act_keys, now, mode
        )
        action = np.asarray(action)
        timestep, reward, terminated, truncated = env.step(action.reshape(-1, *action.shape[2:]))
        recorder.step(time, alive, action, reward, terminated, timestep)
        alive &= ~(terminated | truncated).reshape(shape)
        time += 1
    return recorder.episodes(first)


@functools.partial(jax.jit, static_argnums=1)
def split_keys(keys: Keys, num_teams: int) -> tuple[Int[Array, "seeds copies"], Keys, Keys]:
    """For each seed and team: the integer that seeds the task's reset, and keys for memory and
    actions."""

    def one(key: Key) -> tuple[Array, Key, Key]:
        reset_key, memory_key, act_key = jax.random.split(key, 3)
        return jax.random.randint(reset_key, (), 0, 2**31 - 1), memory_key, act_key

    return jax.vmap(lambda key: jax.vmap(one)(jax.random.split(key, num_teams)))(keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def first_memory(
    algorithm: Algorithm, spec: EnvSpec, agent: PyTree, timestep: HostTimestep, keys: Keys
) -> PyTree:
    """What every team of every seed carries into its episode, `[seeds copies ...]`."""
    over_teams = jax.vmap(algorithm.initial_memory, in_axes=(None, 0, 0))
    return jax.vmap(over_teams)(agent, to_jax(spec, timestep), keys)


@functools.partial(jax.jit, static_argnames=("algorithm", "spec", "mode"))
def act(
    algorithm: Algorithm,
    spec: EnvSpec,
    agent: PyTree,
    clock: Clock,
    teams: Int[Array, "seeds copies"],
    memory: PyTree,
    timestep: HostTimestep,
    keys: Keys,
    time: Int[Array, ""],
    mode: Mode,
) -> tuple[PyTree, Array]:
    """Memories and actions of every team of every seed at one step, `[seeds copies ...]`."""

    def one(agent: PyTree, clock: Clock, team: Array, memory: PyTree, timestep: Timestep, key: Key):
        policy = policy_of(algorithm, spec, agent, team, clock, mode)
        return policy(memory, timestep, jax.random.fold_in(key, time))

    over_teams = jax.vmap(one, in_axes=(None, None, 0, 0, 0, 0))
    over_seeds = jax.vmap(over_teams, in_axes=(0, PER_SEED, 0, 0, 0, 0))
    return over_seeds(agent, clock, teams, memory, to_jax(spec, timestep), keys)


def split_copies(spec: EnvSpec, timestep: HostTimestep, shape: tuple[int, int]) -> HostTimestep:
    """A timestep `[seeds*teams ...]` as `[seeds teams ...]`, which are `shape`.

    Observations that are a gather of the state are left out: less then goes to the device.
    """
    split = lambda x: x.reshape(*shape, *x.shape[1:])
    obs = np.zeros((*shape, 0, 0), np.float32) if spec.obs_from_state else split(timestep.obs)
    available = None if timestep.available is None else split(timestep.available)
    return HostTimestep(obs, split(timestep.state), available)


def to_jax(spec: EnvSpec, timestep: HostTimestep) -> Timestep:
    """The same timestep in JAX's arrays, with the observations that `split_copies` left out."""
    state = jnp.asarray(timestep.state)
    obs = spec.observe(state) if spec.obs_from_state else jnp.asarray(timestep.obs)
    available = None if timestep.available is None else jnp.asarray(timestep.available)
    return Timestep(obs, state, available)


class Recorder:
    """The steps of one round as they come, in arrays `[copies time ...]` of the task's horizon."""

    def __init__(self, spec: EnvSpec, shape: tuple[int, int]):
        copies, time = shape[0] * shape[1], spec.horizon
        actions = (spec.num_agents, spec.action_size)
        action = actions[:1] if spec.discrete else actions
        self.spec, self.shape = spec, shape
        self.state = np.zeros((copies, time + 1, spec.state_size), np.float32)
        # Observations that are a gather of the state are left out: replay gathers them again.
        obs_time = 0 if spec.obs_from_state else time + 1
        self.obs = np.zeros((copies, obs_time, spec.num_agents, spec.obs_size), np.float32)
        self.available = np.ones((copies, time + 1, *actions), bool) if spec.discrete else None
        self.action = np.zeros((copies, time, *action), np.int32 if spec.discrete else np.float32)
        self.reward = np.zeros((copies, time), np.float32)
        self.terminated = np.zeros((copies, time), bool)
        self.mask = np.zeros((copies, time), bool)

    def timestep(self, time: int, timestep: HostTimestep) -> None:
        """Keeps what all copies show at this time; what an episode that is over shows is masked."""
        self.state[:, time] = timestep.state
        if self.obs.shape[1]:
            self.obs[:, time] = timestep.obs
        if self.available is not None:
            self.available[:, time] = timestep.available

    def step(
        self,
        time: int,
        alive: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        after: HostTimestep,
    ) -> None:
        """Keeps a step of those `alive` `[seeds copies]`, and the timestep after it."""
        self.mask[:, time] = alive.reshape(-1)
        self.action[:, time] = action.reshape(-1, *action.shape[2:])
        self.reward[:, time] = reward
        self.terminated[:, time] = terminated
        self.timestep(time + 1, after)

    def episodes(self, memory: PyTree) -> Episode:
        """All that was kept as episodes `[seeds copies time ...]`; `memory` is what they began
        with."""
        split = lambda x: jnp.asarray(x.reshape(*self.shape, *x.shape[1:]))
        obs = self.obs if self.obs.shape[1] else np.zeros((*self.state.shape[:2], 0, 0), np.float32)
        available = None if self.available is None else split(self.available)
        return Episode(
            memory=memory,
            timesteps=Timestep(split(obs), split(self.state), available),
            action=split(self.action),
            reward=split(self.reward),
            terminated=split(self.terminated),
            mask=split(self.mask),
        )
