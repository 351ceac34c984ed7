"""The same episodes from a task outside JAX: copies of it, one per seed and team, stepped together
by the host."""

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
    """One episode of each of `teams`, `[seeds copies time ...]`; those not `playing` are masked
    from the start.

    The arrays are always as long as the task's horizon, so that nothing is compiled anew for
    another length.
    """
    spec, shape = env.spec, teams.shape
    resets, memory_keys, act_keys = split_keys(keys, shape[1])
    timestep = env.reset(np.asarray(resets).reshape(-1), playing.reshape(-1))
    recorder = Recorder(spec, shape)
    recorder.see(0, timestep)
    memory = first = first_memory(algorithm, spec, agent, look(spec, timestep, shape), memory_keys)
    alive, time = playing.copy(), 0
    while alive.any():
        memory, action = act(
            algorithm,
            spec,
            agent,
            clock,
            teams,
            memory,
            look(spec, timestep, shape),
            act_keys,
            np.int32(time),
            mode,
        )
        action = np.asarray(action)
        timestep, reward, terminated, truncated = env.step(action.reshape(-1, *action.shape[2:]))
        recorder.record(time, alive, action, reward, terminated, timestep)
        alive &= ~(terminated | truncated).reshape(shape)
        time += 1
    return recorder.episodes(first)


@functools.partial(jax.jit, static_argnums=1)
def split_keys(keys: Keys, num_teams: int) -> tuple[Int[Array, "seeds copies"], Keys, Keys]:
    """For each seed and team: the number that seeds the task's reset, and keys for memory and
    actions."""

    def one(key: Key) -> tuple[Array, Key, Key]:
        reset_key, memory_key, act_key = jax.random.split(key, 3)
        return jax.random.randint(reset_key, (), 0, 2**31 - 1), memory_key, act_key

    return jax.vmap(lambda key: jax.vmap(one)(jax.random.split(key, num_teams)))(keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def first_memory(
    algorithm: Algorithm, spec: EnvSpec, agent: PyTree, timestep: HostTimestep, keys: Keys
) -> PyTree:
    return jax.vmap(jax.vmap(algorithm.initial_memory, (None, 0, 0)))(
        agent, see(spec, timestep), keys
    )


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
    """The actions of every team of every seed at one step."""

    def one(agent: PyTree, clock: Clock, team: Array, memory: PyTree, timestep: Timestep, key: Key):
        return policy_of(algorithm, spec, agent, team, clock, mode)(
            memory, timestep, jax.random.fold_in(key, time)
        )

    over_teams = jax.vmap(one, in_axes=(None, None, 0, 0, 0, 0))
    over_seeds = jax.vmap(over_teams, in_axes=(0, PER_SEED, 0, 0, 0, 0))
    return over_seeds(agent, clock, teams, memory, see(spec, timestep), keys)


def look(spec: EnvSpec, timestep: HostTimestep, shape: tuple[int, int]) -> HostTimestep:
    """A timestep `[copies ...]` as `[seeds teams ...]`. Observations that are a gather of the state
    are left out."""
    split = lambda x: x.reshape(*shape, *x.shape[1:])
    obs = np.zeros((*shape, 0, 0), np.float32) if spec.obs_from_state else split(timestep.obs)
    available = None if timestep.available is None else split(timestep.available)
    return HostTimestep(obs, split(timestep.state), available)


def see(spec: EnvSpec, timestep: HostTimestep) -> Timestep:
    """What the teams see, in JAX, with the observations that `look` left out."""
    state = jnp.asarray(timestep.state)
    obs = spec.observe(state) if spec.obs_from_state else jnp.asarray(timestep.obs)
    return Timestep(
        obs, state, None if timestep.available is None else jnp.asarray(timestep.available)
    )


class Recorder:
    """The steps of one round as they come, in arrays of the task's horizon."""

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

    def see(self, time: int, timestep: HostTimestep) -> None:
        self.state[:, time] = timestep.state
        if self.obs.shape[1]:
            self.obs[:, time] = timestep.obs
        if self.available is not None:
            self.available[:, time] = timestep.available

    def record(
        self,
        time: int,
        alive: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        after: HostTimestep,
    ) -> None:
        self.mask[:, time] = alive.reshape(-1)
        self.action[:, time] = action.reshape(-1, *action.shape[2:])
        self.reward[:, time] = reward
        self.terminated[:, time] = terminated
        self.see(time + 1, after)

    def episodes(self, memory: PyTree) -> Episode:
        split = lambda x: jnp.asarray(x.reshape(*self.shape, *x.shape[1:]))
        obs = self.obs if self.obs.shape[1] else np.zeros((*self.state.shape[:2], 0, 0), np.float32)
        timesteps = Timestep(
            split(obs), split(self.state), None if self.available is None else split(self.available)
        )
        return Episode(
            memory,
            timesteps,
            split(self.action),
            split(self.reward),
            split(self.terminated),
            split(self.mask),
        )
