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
from comarl.replay.packing import cuts, pack, packs, which_cut
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
    """The same, from nothing but what decides it: runs that differ in their budgets share what is
    compiled."""

    def one_seed(key: Key) -> RunState:
        init_key, key = jax.random.split(key)
        clock = Clock(jnp.int32(0), jnp.int32(0), jnp.int32(0))
        return RunState(algorithm.init(spec, init_key), algorithm.replay.init(spec), clock, key)

    def in_turn(keys: Keys) -> RunState:
        # One seed after the other: initialising is rare, and this compiles in a fraction of the
        # time.
        state = jax.lax.map(one_seed, keys)
        return state._replace(clock=state.clock._replace(update_in_round=jnp.int32(0)))

    return placement.split(in_turn, 0, PER_SEED_STATE)(keys)


class RoundKeys(NamedTuple):
    """What one seed's key is split into."""

    after: Key  # the key of the next round
    play: Key
    learn: Key
    evolve: Key


def split_round(key: Key) -> RoundKeys:
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
        agent, clock, keys = state.agent, state.clock, split_round(state.key)
        replay = algorithm.replay.add(state.replay, episodes, spec)
        clock = clock._replace(env_steps=clock.env_steps + episodes.mask.sum().astype(jnp.int32))
        # Of the episodes that a team played side by side, the mean.
        returns = episodes.returns().reshape(num_teams(algorithm), -1).mean(axis=1)
        num_updates = (
            jnp.int32(0) if phase == "warm-up" else updates_due(algorithm, replay, episodes.mask)
        )
        metrics: Metrics = {}
        if isinstance(algorithm, Evolutionary) and phase == "training":
            evolved, metrics = algorithm.evolve(agent, returns, clock, keys.evolve)
            agent = tree_where(active, evolved, agent)
        key = tree_where(active, keys.after, state.key)
        return RunState(agent, replay, clock, key), Round(
            keys.learn, num_updates, returns, active, metrics
        )

    over_seeds = placement.map(one_seed, (PER_SEED_STATE, 0, 0), (PER_SEED_STATE, 0))
    return over_seeds(state, episodes, active)


@functools.partial(
    jax.jit, static_argnames=("algorithm", "spec", "chunk", "placement"), donate_argnames="agent"
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

    A seed that has had its share keeps its state. Where seeds take turns, what is not due is truly
    skipped.
    """
    indices = begin + jnp.arange(chunk)

    def draw(replay: PyTree, key: Key) -> tuple[PyTree, Keys]:
        pairs = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index)))(indices)
        arrange = pack if packs(algorithm, spec) else lambda batch: batch
        sample = lambda k: arrange(algorithm.replay.sample(replay, spec, k))
        return jax.vmap(sample)(pairs[:, 0]), pairs[:, 1]

    def one_seed(
        agent: PyTree,
        env_steps: Array,
        updates: Array,
        count: Array,
        batches: PyTree,
        keys: Keys,
        lengths: Array,
    ):
        def update(agent: PyTree, item: tuple[Array, PyTree, Key, Array]) -> tuple[PyTree, Metrics]:
            index, batch, key, length = item
            at = Clock(env_steps, updates + index, index)
            branches = [
                lambda cut=cut: algorithm.update(agent, cut(batch), at, key)
                for cut in cuts(algorithm, spec)
            ]
            return jax.lax.switch(length, branches)

        def one(agent: PyTree, item: tuple[Array, PyTree, Key, Array]) -> tuple[PyTree, Metrics]:
            metrics = jax.eval_shape(update, agent, item)[1]
            skipped = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
            return jax.lax.cond(item[0] < count, update, lambda a, _: (a, skipped), agent, item)

        agent, metrics = jax.lax.scan(one, agent, (indices, batches, keys, lengths))
        return agent, jax.tree.map(lambda m: m.sum(0), metrics)

    def all_seeds(
        agent: PyTree,
        replay: PyTree,
        env_steps: Array,
        updates: Array,
        keys: Keys,
        num_updates: Array,
    ) -> tuple[PyTree, Metrics]:
        # Drawn for all updates and seeds at once: a replay is large, and what a loop takes a slice
        # of it copies.
        batches, update_keys = jax.vmap(draw)(replay, keys)
        lengths = which_cut(algorithm, spec, batches, indices)  # [seeds, chunk]
        arguments = (agent, env_steps, updates, num_updates, batches, update_keys)
        if (
            placement.vmapped
        ):  # seeds that share an array share its length, or each would be computed for all of them
            return jax.vmap(one_seed, (*[0] * len(arguments), None))(
                *arguments, lengths.max(axis=0)
            )
        return jax.lax.map(lambda x: one_seed(*x), (*arguments, lengths))

    return placement.split(all_seeds)(
        agent, replay, clock.env_steps, clock.updates, keys, num_updates
    )


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
