"""Episodes of a jittable task, for every seed and team at once, inside one compiled program."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from comarl.machine.placement import ONE_DEVICE, Placement
from comarl.ops.exploration import only_available
from comarl.types import (
    PER_SEED,
    Algorithm,
    Clock,
    Environment,
    EnvSpec,
    Episode,
    Index,
    Key,
    Keys,
    Timestep,
    tree_where,
)

Mode = Literal["explore", "greedy", "random"]
"""how teams act: as in training, as in evaluation, or uniformly at random as in the warm-up"""

Policy = Callable[[PyTree, Timestep, Key], tuple[PyTree, Array]]
"""`(memory, timestep, key)` to the memory for the next step and the joint action `[agents ...]`"""


def policy_of(
    algorithm: Algorithm, spec: EnvSpec, agent: PyTree, team: Index, clock: Clock, mode: Mode
) -> Policy:
    """How one team acts at this moment of a run, as a function of its memory and what it sees."""
    if mode == "random":
        return lambda memory, timestep, key: (memory, random_action(spec, timestep, key))
    explore = mode == "explore"
    return lambda memory, timestep, key: algorithm.act(
        agent, team, memory, timestep, clock, key, explore=explore
    )


def random_action(spec: EnvSpec, timestep: Timestep, key: Key) -> Array:
    """One team's: `[agents]` uniform over the available actions, or `[agents action]` uniform over
    [-1, 1] with zeros as padding."""
    shape = (spec.num_agents, spec.action_size)
    if spec.discrete:
        logits = only_available(jnp.zeros(shape), timestep.available)
        return jax.random.categorical(key, logits).astype(jnp.int32)
    return jnp.asarray(spec.action_mask) * jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


@functools.partial(jax.jit, static_argnames=("algorithm", "env", "mode", "placement"))
def play(
    algorithm: Algorithm,
    env: Environment,
    agent: PyTree,
    clock: Clock,
    teams: Int[Array, "seeds copies"],
    playing: Bool[Array, "seeds copies"],
    keys: Keys,
    mode: Mode,
    placement: Placement = ONE_DEVICE,
) -> Episode:
    """One episode of each of `teams`, `[seeds copies time ...]`, whose time is the horizon.

    Episodes that are not `playing` are masked from the start. `keys` is one key per seed.
    """

    def one_seed(agent: PyTree, clock: Clock, teams: Array, playing: Array, key: Key) -> Episode:
        one = lambda team, plays, k: rollout(algorithm, env, agent, team, plays, clock, k, mode)
        return jax.vmap(one)(teams, playing, jax.random.split(key, teams.shape[0]))

    return placement.map(one_seed, (0, PER_SEED, 0, 0, 0))(agent, clock, teams, playing, keys)


def rollout(
    algorithm: Algorithm,
    env: Environment,
    agent: PyTree,
    team: Index,
    playing: Bool[Array, ""],
    clock: Clock,
    key: Key,
    mode: Mode,
) -> Episode:
    """One episode `[time ...]` of one team, as long as the task's horizon; steps after its end are
    masked."""
    policy = policy_of(algorithm, env.spec, agent, team, clock, mode)

    def step(carry: tuple, key: Key) -> tuple[tuple, tuple]:
        env_state, timestep, memory, counts, over = carry
        act_key, step_key = jax.random.split(key)
        memory, action = policy(memory, timestep, act_key)
        env_state, after, reward, terminated, truncated = env.step(env_state, action, step_key)
        record = (timestep, action, jnp.where(over, 0.0, reward), terminated & ~over, ~over)
        # Metrics stay as they were when the episode ended.
        counts = tree_where(over, counts, env.metrics(env_state))
        return (env_state, after, memory, counts, over | terminated | truncated), record

    reset_key, memory_key, steps_key = jax.random.split(key, 3)
    env_state, first = env.reset(reset_key)
    memory = algorithm.initial_memory(agent, first, memory_key)
    keys = jax.random.split(steps_key, env.spec.horizon)
    start = (env_state, first, memory, env.metrics(env_state), ~playing)
    (_, last, _, counts, _), records = jax.lax.scan(step, start, keys)
    timesteps, action, reward, terminated, mask = records
    timesteps = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), timesteps, last)
    return Episode(memory, timesteps, action, reward, terminated, mask, counts)
