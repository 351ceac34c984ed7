"""The training loop's own steps: what happens to every seed of a run, and to every team of its
population, at once.

A round: every team plays; a population evolves by its returns; the agent learns, as many updates
per seed as that seed's own steps or episodes allow; the population takes in the team that learnt.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.machine.placement import ONE_DEVICE, Placement
from comarl.ops.learner import grad_norms
from comarl.replay.packing import pack, packs
from comarl.replay.sizes import cuts, which_cut
from comarl.runs.kept import Snapshot
from comarl.training.settings import Run, num_teams
from comarl.types import (
    PER_SEED,
    Algorithm,
    Clock,
    EnvSpec,
    Episode,
    Evolutionary,
    Key,
    Keys,
    Metrics,
    tree_where,
)

Phase = Literal["warm-up", "alone", "training"]
"""random play without learning; the team that MARL trains without the others; all of it"""


class RunState(NamedTuple):
    """Everything a checkpoint holds. Leaves lead with seeds, but for `clock.update_in_round`."""

    agent: PyTree
    replay: PyTree
    clock: Clock
    key: Keys


class Trained(NamedTuple):
    """What a run has learnt so far, without what only its training needs."""

    agent: PyTree
    clock: Clock


def snapshot(state: RunState, seed: int) -> Snapshot:
    """What one seed has learnt."""
    of_seed = lambda leaf: leaf[seed]
    agent = jax.tree.map(of_seed, state.agent)
    return Snapshot(agent, state.clock.env_steps[seed], state.clock.updates[seed])


class Round(NamedTuple):
    """What a round needs after its episodes are played."""

    learn_key: Keys
    num_updates: Int[Array, " seeds"]
    returns: Float[Array, "seeds teams"]
    active: Bool[Array, " seeds"]
    metrics: Metrics


def seed_keys(run: Run) -> Keys:
    """One key per seed, the same whatever other seeds run beside it."""
    return jax.vmap(jax.random.key)(np.arange(run.first_seed, run.first_seed + run.seeds))


PER_SEED_STATE = RunState(0, 0, PER_SEED, 0)  # type: ignore[arg-type]  # the axes of a state


def start(run: Run, placement: Placement = ONE_DEVICE) -> RunState:
    """The state before the first round."""
    return initial(run.algorithm, run.spec, seed_keys(run), placement)


@functools.partial(jax.jit, static_argnames=("algorithm", "spec", "placement"))
def initial(
    algorithm: Algorithm, spec: EnvSpec, keys: Keys, placement: Placement = ONE_DEVICE
) -> RunState:
    """The same, from nothing but what decides it.

    Runs that differ in their budgets share what is compiled.
    """

    def one_seed(key: Key) -> RunState:
        init_key, key = jax.random.split(key)
        clock = Clock(jnp.int32(0), jnp.int32(0), jnp.int32(0))
        return RunState(algorithm.init(spec, init_key), algorithm.replay.init(spec), clock, key)

    def sequential(keys: Keys) -> RunState:
        # One seed after the other: this is rare, and it compiles in a fraction of the time.
        state = jax.lax.map(one_seed, keys)
        return state._replace(clock=state.clock._replace(update_in_round=jnp.int32(0)))

    return placement.split(sequential, 0, PER_SEED_STATE)(keys)


class RoundKeys(NamedTuple):
    """What one seed's key is split into."""

    after: Key  # the key of the next round
    play: Key
    learn: Key
    evolve: Key


def split_round(key: Key) -> RoundKeys:
    """The keys of one round. Nothing else splits a seed's key, so rounds never share one."""
    return RoundKeys(*jax.random.split(key, 4))


@jax.jit
def play_keys(key: Keys) -> Keys:
    """Each seed's key for playing its round."""
    return jax.vmap(lambda k: split_round(k).play)(key)


def updates_due(
    algorithm: Algorithm, replay: PyTree, mask: Bool[Array, "episodes time"]
) -> Int[Array, ""]:
    """The updates that one seed's steps of a round, or its episodes, allow."""
    due = algorithm.pace.due(mask)
    return jnp.where(algorithm.replay.ready(replay), jnp.round(due), 0.0).astype(jnp.int32)


@functools.partial(
    jax.jit, static_argnames=("algorithm", "spec", "phase", "placement"), donate_argnames="state"
)
def store_and_evolve(
    algorithm: Algorithm,
    spec: EnvSpec,
    state: RunState,
    episodes: Episode,
    active: Bool[Array, " seeds"],
    phase: Phase,
    placement: Placement = ONE_DEVICE,
) -> tuple[RunState, Round]:
    """Stores a round's episodes, counts their steps and breeds the next generation.

    A seed that is not active keeps its state; its episodes are masked throughout.
    """

    def one_seed(state: RunState, episodes: Episode, active: Array) -> tuple[RunState, Round]:
        agent, keys = state.agent, split_round(state.key)
        replay = algorithm.replay.add(state.replay, episodes, spec)
        env_steps = state.clock.env_steps + episodes.mask.sum().astype(jnp.int32)
        clock = state.clock._replace(env_steps=env_steps)
        # Of the episodes that a team played side by side, the mean.
        returns = episodes.returns().reshape(num_teams(algorithm), -1).mean(axis=1)
        num_updates = jnp.int32(0)
        if phase != "warm-up":
            num_updates = updates_due(algorithm, replay, episodes.mask)
        metrics: Metrics = {}
        if isinstance(algorithm, Evolutionary) and phase == "training":
            evolved, metrics = algorithm.evolve(agent, returns, clock, keys.evolve)
            agent = tree_where(active, evolved, agent)
        key = tree_where(active, keys.after, state.key)
        plan = Round(keys.learn, num_updates, returns, active, metrics)
        return RunState(agent, replay, clock, key), plan

    over_seeds = placement.map(one_seed, (PER_SEED_STATE, 0, 0), (PER_SEED_STATE, 0))
    return over_seeds(state, episodes, active)


class Update(NamedTuple):
    """What one gradient step of one seed needs besides the agent."""

    index: Int[Array, "*chunk"]  # of the update within its round
    batch: PyTree
    key: Keys
    size: Int[Array, "*chunk"]  # which of the sizes its batch is cut to


@functools.partial(
    jax.jit,
    static_argnames=("algorithm", "spec", "chunk", "placement"),
    donate_argnames="agent",
)
def learn(
    algorithm: Algorithm,
    spec: EnvSpec,
    agent: PyTree,
    replay: PyTree,
    clock: Clock,
    keys: Keys,
    num_updates: Int[Array, " seeds"],
    begin: Int[Array, ""],
    chunk: int,
    placement: Placement = ONE_DEVICE,
) -> tuple[PyTree, Metrics]:
    """Updates `begin` to `begin + chunk` of a round, and the sums of their metrics for each seed.

    A seed that has had its share keeps its state. Where seeds are sequential, what is not due is
    truly skipped.
    """
    indices = begin + jnp.arange(chunk)
    one_seed = functools.partial(learn_seed, algorithm, spec)

    def all_seeds(
        agent: PyTree, replay: PyTree, clock: Clock, keys: Keys, num_updates: Array
    ) -> tuple[PyTree, Metrics]:
        # Drawn for all updates and seeds at once: a replay is large, and what a loop takes a slice
        # of it copies.
        draw = functools.partial(draw_batches, algorithm, spec, indices)
        batches, update_keys = jax.vmap(draw)(replay, keys)
        sizes = which_cut(algorithm, spec, batches, indices)  # [seeds, chunk]
        every = jnp.broadcast_to(indices, sizes.shape)
        if placement.vmapped:
            # Seeds that share an array share a size, or each would be computed for all of them.
            updates = Update(every, batches, update_keys, sizes.max(axis=0))
            in_axes = (0, PER_SEED, 0, Update(0, 0, 0, None))  # type: ignore[arg-type]
            return jax.vmap(one_seed, in_axes)(agent, clock, num_updates, updates)
        clocks = clock._replace(update_in_round=jnp.broadcast_to(begin, num_updates.shape))
        updates = Update(every, batches, update_keys, sizes)
        return jax.lax.map(lambda seed: one_seed(*seed), (agent, clocks, num_updates, updates))

    per_device = placement.split(all_seeds, (0, 0, PER_SEED, 0, 0))
    return per_device(agent, replay, clock, keys, num_updates)


def draw_batches(
    algorithm: Algorithm, spec: EnvSpec, indices: Int[Array, " chunk"], replay: PyTree, key: Key
) -> tuple[PyTree, Keys]:
    """One seed's batches for these updates of a round, and a key for each update."""
    pairs = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index)))(indices)

    def sample(key: Key) -> PyTree:
        batch = algorithm.replay.sample(replay, spec, key)
        return pack(batch) if packs(algorithm, spec) else batch

    return jax.vmap(sample)(pairs[:, 0]), pairs[:, 1]


def learn_seed(
    algorithm: Algorithm,
    spec: EnvSpec,
    agent: PyTree,
    clock: Clock,
    num_updates: Int[Array, ""],
    updates: Update,
) -> tuple[PyTree, Metrics]:
    """One seed's updates of a chunk, one after the other, and the sums of their metrics."""

    def update(agent: PyTree, due: Update) -> tuple[PyTree, Metrics]:
        now = Clock(clock.env_steps, clock.updates + due.index, due.index)
        sizes = [
            lambda cut=cut: algorithm.update(agent, cut(due.batch), now, due.key)
            for cut in cuts(algorithm, spec)
        ]
        agent, metrics = jax.lax.switch(due.size, sizes)
        return agent, metrics | grad_norms(agent)

    def skip(agent: PyTree, due: Update) -> tuple[PyTree, Metrics]:
        metrics = jax.eval_shape(update, agent, due)[1]
        return agent, jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)

    def update_or_skip(agent: PyTree, due: Update) -> tuple[PyTree, Metrics]:
        return jax.lax.cond(due.index < num_updates, update, skip, agent, due)

    agent, metrics = jax.lax.scan(update_or_skip, agent, updates)
    return agent, jax.tree.map(lambda m: m.sum(0), metrics)


@functools.partial(
    jax.jit, static_argnames=("algorithm", "phase", "placement"), donate_argnames="state"
)
def finish_round(
    algorithm: Algorithm,
    state: RunState,
    num_updates: Int[Array, " seeds"],
    active: Bool[Array, " seeds"],
    phase: Phase,
    placement: Placement = ONE_DEVICE,
) -> RunState:
    """Counts the updates; the team that learnt joins the population."""

    def one_seed(state: RunState, num_updates: Array, active: Array) -> RunState:
        agent = state.agent
        if isinstance(algorithm, Evolutionary) and phase == "training":
            agent = tree_where(active, algorithm.inject(agent), agent)
        clock = state.clock._replace(updates=state.clock.updates + num_updates)
        return state._replace(agent=agent, clock=clock)

    return placement.map(one_seed, (PER_SEED_STATE, 0, 0), PER_SEED_STATE)(
        state, num_updates, active
    )
