"""The training loop's own steps: what happens to every seed of a run, and to every team of its population, at once.

A round: every team plays an episode; a population evolves by its returns; the agent learns, as many updates per seed as
that seed's own teams took steps; the population takes in the team that learnt.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.types import PER_SEED, Algorithm, Clock, EnvSpec, Episode, Evolutionary, Key, Metrics, tree_where


@dataclass(frozen=True)
class Run:
    """Everything that determines a result, and the budget."""

    algorithm: Algorithm
    """the algorithm and its hyperparameters"""
    task: Any
    """the task and its settings"""
    seeds: int = 1
    """how many seeds train together"""
    first_seed: int = 0
    """the first seed; the others count up from it"""
    steps: int = 1_000_000
    """environment steps of each seed, those of all its teams together; a round begun is finished"""
    evaluate_every: int = 10_000
    """environment steps between evaluations"""
    evaluation_episodes: int = 10
    """greedy episodes of each evaluation"""

    @property
    def num_teams(self) -> int:
        return self.algorithm.num_teams if isinstance(self.algorithm, Evolutionary) else 1

    @property
    def spec(self) -> EnvSpec:
        return self.task.spec


class RunState(NamedTuple):
    """Everything a checkpoint holds. Leaves lead with seeds, but for `clock.update_in_round`."""

    agent: PyTree
    replay: PyTree
    clock: Clock
    key: Key


class Round(NamedTuple):
    """What a round needs after its episodes are played."""

    learn_key: Key
    num_updates: Int[Array, " seeds"]
    returns: Float[Array, "seeds teams"]
    active: Bool[Array, " seeds"]
    metrics: Metrics


def seed_keys(run: Run) -> Key:
    """One key per seed, the same whatever other seeds run beside it."""
    return jax.vmap(jax.random.key)(run.first_seed + jnp.arange(run.seeds))


@functools.partial(jax.jit, static_argnums=0)
def start(run: Run) -> RunState:
    """The state before the first round."""

    def one_seed(key: Key) -> tuple[PyTree, PyTree, Key]:
        init_key, key = jax.random.split(key)
        return run.algorithm.init(run.spec, init_key), run.algorithm.replay.init(run.spec), key

    # One seed after the other: initialising is rare, and this compiles in a fraction of the time.
    agent, replay, key = jax.lax.map(one_seed, seed_keys(run))
    zeros = jnp.zeros(run.seeds, jnp.int32)
    return RunState(agent, replay, Clock(zeros, zeros, jnp.int32(0)), key)


@jax.jit
def begin_round(key: Key) -> tuple[Key, Key, Key, Key]:
    """Each seed's next key, and its keys for playing, learning and evolving."""
    keys = jax.vmap(lambda k: jax.random.split(k, 4))(key)
    return keys[:, 0], keys[:, 1], keys[:, 2], keys[:, 3]


@functools.partial(jax.jit, static_argnames=("run", "warmup"), donate_argnames="state")
def absorb(
    run: Run, state: RunState, episodes: Episode, active: Bool[Array, " seeds"], warmup: bool
) -> tuple[RunState, Round]:
    """Stores a round's episodes, counts their steps and breeds the next generation.

    A seed that is not active keeps its state; its episodes are masked throughout.
    """
    next_key, _, learn_key, evolve_key = begin_round(state.key)

    def one_seed(agent: PyTree, replay: PyTree, clock: Clock, episodes: Episode, active: Array, key: Key):
        replay = run.algorithm.replay.add(replay, episodes)
        steps = episodes.mask.sum().astype(jnp.int32)
        clock = clock._replace(env_steps=clock.env_steps + steps)
        returns = jnp.sum(episodes.reward * episodes.mask, axis=-1)
        num_updates = jnp.int32(0) if warmup else jnp.round(steps * run.algorithm.updates_per_step).astype(jnp.int32)
        metrics: Metrics = {}
        if isinstance(run.algorithm, Evolutionary) and not warmup:
            evolved, metrics = run.algorithm.evolve(agent, returns, clock, key)
            agent = tree_where(active, evolved, agent)
        return agent, replay, clock, num_updates, returns, metrics

    agent, replay, clock, num_updates, returns, metrics = jax.vmap(
        one_seed, in_axes=(0, 0, PER_SEED, 0, 0, 0), out_axes=(0, 0, PER_SEED, 0, 0, 0)
    )(state.agent, state.replay, state.clock, episodes, active, evolve_key)
    key = jax.vmap(tree_where)(active, next_key, state.key)
    return RunState(agent, replay, clock, key), Round(learn_key, num_updates, returns, active, metrics)


@functools.partial(jax.jit, static_argnames=("run", "chunk", "together"), donate_argnames="agent")
def learn(
    run: Run,
    agent: PyTree,
    replay: PyTree,
    clock: Clock,
    keys: Key,
    num_updates: Int[Array, " seeds"],
    begin: Int[Array, ""],
    chunk: int,
    together: bool,
) -> tuple[PyTree, Metrics]:
    """Updates `begin` to `begin + chunk` of a round, and the sums of their metrics for each seed.

    A seed that has had its share keeps its state. `together` maps the seeds over array axes, as an accelerator likes;
    else they take turns, which on a CPU keeps one seed's networks in the cache and truly skips what is not due.
    """

    def one_seed(agent: PyTree, replay: PyTree, env_steps: Array, updates: Array, key: Key, count: Array):
        def update(agent: PyTree, index: Array) -> tuple[PyTree, Metrics]:
            sample_key, update_key = jax.random.split(jax.random.fold_in(key, index))
            batch = run.algorithm.replay.sample(replay, run.spec, sample_key)
            return run.algorithm.update(agent, batch, Clock(env_steps, updates + index, index), update_key)

        skipped = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), jax.eval_shape(update, agent, begin)[1])

        def one(agent: PyTree, index: Array) -> tuple[PyTree, Metrics]:
            return jax.lax.cond(index < count, update, lambda a, _: (a, skipped), agent, index)

        agent, metrics = jax.lax.scan(one, agent, begin + jnp.arange(chunk))
        return agent, jax.tree.map(lambda m: m.sum(0), metrics)

    arguments = (agent, replay, clock.env_steps, clock.updates, keys, num_updates)
    return jax.vmap(one_seed)(*arguments) if together else jax.lax.map(lambda x: one_seed(*x), arguments)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def finish_round(run: Run, state: RunState, num_updates: Array, active: Array) -> RunState:
    """Counts the updates; the team that learnt joins the population."""
    agent = state.agent
    if isinstance(run.algorithm, Evolutionary):
        inject = run.algorithm.inject
        agent = jax.vmap(lambda active, agent: tree_where(active, inject(agent), agent))(active, agent)
    clock = state.clock._replace(updates=state.clock.updates + num_updates)
    return state._replace(agent=agent, clock=clock)
