"""Short episodes behind one another in one row, so that what is computed is mostly steps that took
place."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from comarl.types import Algorithm, EnvSpec, Episode, Packs


def pack(batch: Episode) -> Episode:
    """The same episodes `[batch time ...]` in as few rows as first-fit takes, the longest first;
    other rows are empty.

    An episode takes its steps and one slot more, for the timestep after its last step: what stands
    at a step and in the next slot is a transition, as before. Its action slot is masked, by which
    what comes next is told to be another episode (`Episode.starts`).
    """
    size, time = batch.mask.shape
    lengths = batch.mask.sum(axis=1)
    order = jnp.argsort(-lengths)

    def place(
        ends: Int[Array, " rows"], length: Int[Array, ""]
    ) -> tuple[Array, tuple[Array, Array]]:
        row = jnp.argmax(ends + length <= time)  # an empty one is always among them
        return ends.at[row].add(length + 1), (row, ends[row])

    _, (row, offset) = jax.lax.scan(place, jnp.zeros(size, lengths.dtype), lengths[order])
    # For each slot of each row: the episode and the step that it shows, the first of all if it
    # shows none.
    steps = jnp.arange(time + 1)
    there = steps <= lengths[order][:, None]
    slot = (jnp.where(there, row[:, None], size), offset[:, None] + steps)
    put = lambda value, empty: jnp.full((size, time + 1), empty).at[slot].set(value, mode="drop")
    episode, step = put(order[:, None], 0), put(steps[None], 0)
    mask = put(steps < lengths[order][:, None], False)[:, :-1]
    at = (episode[:, :-1], jnp.minimum(step[:, :-1], time - 1))
    return dataclasses.replace(
        batch,
        timesteps=jax.tree.map(lambda x: x[episode, step], batch.timesteps),
        action=batch.action[at],
        reward=jnp.where(mask, batch.reward[at], 0.0),
        terminated=mask & batch.terminated[at],
        mask=mask,
    )


MIN_STEPS = 32  # shorter episodes are not worth compiling an update more than once
QUARTERS = (0.25, 0.5, 0.75, 1.0)  # of the horizon, that episodes are cut to
FILLED = (0.25, 1 / 3, 0.5, 0.75, 1.0)  # of a batch's rows, that packed episodes fill


def cuts(algorithm: Algorithm, spec: EnvSpec) -> list[Callable[[PyTree], PyTree]]:
    """What cuts a batch to each size that updates are compiled for: quarters of the horizon, or
    rows that are filled.

    Most episodes end long before the horizon, and what comes after an end changes nothing but costs
    as much.
    """
    if algorithm.replay.batch is not Episode or spec.horizon < MIN_STEPS:
        return [lambda batch: batch]
    if packs(algorithm, spec):
        return [
            lambda batch, part=part: batch.rows(rows_of(batch.mask.shape[0], part))
            for part in FILLED
        ]
    return [functools.partial(Episode.cut, time=rows_of(spec.horizon, part)) for part in QUARTERS]


def rows_of(number: int, part: float) -> int:
    """That part of a number, rounded up."""
    return math.ceil(number * part)


def packs(algorithm: Algorithm, spec: EnvSpec) -> bool:
    """Whether short episodes share rows: where it is worth it, and the algorithm can tell them
    apart."""
    return isinstance(algorithm, Packs) and algorithm.packs and spec.horizon >= MIN_STEPS


def which_cut(
    algorithm: Algorithm, spec: EnvSpec, batches: PyTree, indices: Int[Array, " chunk"]
) -> Array:
    """The first cut that keeps every step that took place, for each seed and each batch of a
    chunk."""
    if len(cuts(algorithm, spec)) == 1:
        return jnp.zeros((jax.tree.leaves(batches)[0].shape[0], indices.shape[0]), jnp.int32)
    if packs(algorithm, spec):
        filled, size, parts = batches.mask.any(axis=-1).sum(axis=-1), batches.mask.shape[2], FILLED
    else:
        filled, size, parts = batches.mask.sum(axis=-1).max(axis=-1), spec.horizon, QUARTERS
    ends = jnp.array([rows_of(size, part) for part in parts])
    return (filled[..., None] > ends).sum(axis=-1).astype(jnp.int32)
