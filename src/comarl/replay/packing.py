"""Short episodes behind one another in one row of a batch.

Most episodes end long before the horizon, and what comes after an end costs as much as what took
place. Packed rows are mostly steps that took place; the rows that stay empty are then cut off
(`comarl.replay.sizes`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from comarl.types import Algorithm, EnvSpec, Episode, Packs

MIN_STEPS = 32
"""the shortest horizon for which it pays to pack episodes, and to compile updates of several
sizes"""


def packs(algorithm: Algorithm, spec: EnvSpec) -> bool:
    """Whether short episodes share rows: where it is worth it, and the algorithm can tell them
    apart."""
    return isinstance(algorithm, Packs) and algorithm.packs and spec.horizon >= MIN_STEPS


def pack(batch: Episode) -> Episode:
    """The same episodes `[batch time ...]` in the first rows of a batch of the same shape.

    Packing is first-fit, the longest episode first; the rows that are not needed are empty. An
    episode takes a slot for each step and one more, for the timestep after its last step: so what
    stands at a step and in the next slot is a transition, as before. The action of that last slot
    is masked, by which what comes next is known to be another episode (`Episode.starts`).
    """
    size, time = batch.mask.shape
    lengths = batch.mask.sum(axis=1)
    order = jnp.argsort(-lengths)
    length = lengths[order]

    def place(ends: Int[Array, " rows"], length: Array) -> tuple[Array, tuple[Array, Array]]:
        """Puts an episode into the first row with room: where rows end, and where it begins."""
        row = jnp.argmax(ends + length <= time)  # an empty row is always among them
        return ends.at[row].add(length + 1), (row, ends[row])

    _, (row, offset) = jax.lax.scan(place, jnp.zeros(size, lengths.dtype), length)

    # Where each timestep of each episode goes; those after its last go out of bounds.
    steps = jnp.arange(time + 1)
    shown = steps <= length[:, None]
    slot = (jnp.where(shown, row[:, None], size), offset[:, None] + steps)

    def put(value: Array, otherwise: int | bool) -> Array:
        """What each slot of each row gets of the timestep that goes there, `[batch time+1]`."""
        return jnp.full((size, time + 1), otherwise).at[slot].set(value, mode="drop")

    # From which episode and step each slot reads; empty slots read the first, and are masked.
    episode = put(order[:, None], 0)
    step = put(steps[None], 0)
    mask = put(steps < length[:, None], False)[:, :-1]
    taken = (episode[:, :-1], jnp.minimum(step[:, :-1], time - 1))
    return dataclasses.replace(
        batch,
        timesteps=jax.tree.map(lambda x: x[episode, step], batch.timesteps),
        action=batch.action[taken],
        reward=jnp.where(mask, batch.reward[taken], 0.0),
        terminated=mask & batch.terminated[taken],
        mask=mask,
    )
