"""The sizes to which batches of episodes are cut before an update.

An update is compiled for a few sizes. Each batch is cut to the smallest one that keeps every step
that took place, so that less is computed of what did not; the result of an update does not depend
on it. Packed rows (`comarl.replay.packing`) are cut to those that are filled, other batches to the
steps up to the end of their longest episode.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from comarl.replay.packing import MIN_STEPS, packs
from comarl.types import Algorithm, EnvSpec, Episode

TIME_SHARES = (0.25, 0.5, 0.75, 1.0)
"""of the horizon, for which an update is compiled"""

ROW_SHARES = (0.25, 1 / 3, 0.5, 0.75, 1.0)
"""of the rows of a packed batch, for which an update is compiled"""


def share_of(total: int, share: float) -> int:
    """That share of a total, rounded up.

    >>> [share_of(42, share) for share in TIME_SHARES]
    [11, 21, 32, 42]
    """
    return math.ceil(total * share)


def cut_rows(batch: Episode, share: float) -> Episode:
    """The first rows of a batch `[batch time ...]`, so many as this share of them."""
    return batch.rows(share_of(batch.mask.shape[0], share))


def keep_whole(batch: PyTree) -> PyTree:
    """The batch itself."""
    return batch


def cuts(algorithm: Algorithm, spec: EnvSpec) -> list[Callable[[PyTree], PyTree]]:
    """What cuts a batch to each size that an update is compiled for, the smallest size first.

    Transitions and short episodes are never cut: one size is quicker to compile than four.
    """
    if algorithm.replay.batch is not Episode or spec.horizon < MIN_STEPS:
        return [keep_whole]
    if packs(algorithm, spec):
        return [functools.partial(cut_rows, share=share) for share in ROW_SHARES]
    lengths = [share_of(spec.horizon, share) for share in TIME_SHARES]
    return [functools.partial(Episode.cut, time=length) for length in lengths]


def which_cut(
    algorithm: Algorithm, spec: EnvSpec, batches: PyTree, indices: Int[Array, " updates"]
) -> Int[Array, "seeds updates"]:
    """Which of `cuts` each batch takes: the first that keeps every step that took place.

    `batches` are `[seeds updates batch ...]`, one batch for each of the updates `indices`.
    """
    if len(cuts(algorithm, spec)) == 1:
        num_seeds = jax.tree.leaves(batches)[0].shape[0]
        return jnp.zeros((num_seeds, indices.shape[0]), jnp.int32)
    mask = batches.mask  # [seeds updates batch time]
    if packs(algorithm, spec):
        needed = mask.any(axis=-1).sum(axis=-1)  # rows: those that are filled come first
        sizes = [share_of(mask.shape[2], share) for share in ROW_SHARES]
    else:
        needed = mask.sum(axis=-1).max(axis=-1)  # steps of the longest episode
        sizes = [share_of(spec.horizon, share) for share in TIME_SHARES]
    return (needed[..., None] > jnp.array(sizes)).sum(axis=-1).astype(jnp.int32)
