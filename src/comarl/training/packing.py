"""Short episodes behind one another in one row, so that what is computed is mostly steps that took place."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from comarl.types import Episode


def pack(batch: Episode) -> Episode:
    """The same episodes `[batch time ...]` in as few rows as first-fit takes, the longest first; other rows are empty.

    An episode takes its steps and one slot more, for the timestep after its last step: what stands at a step and in
    the next slot is a transition, as before. Its action slot is masked, by which what comes next is told to be another
    episode (`Episode.starts`).
    """
    size, time = batch.mask.shape
    lengths = batch.mask.sum(axis=1)
    order = jnp.argsort(-lengths)

    def place(ends: Int[Array, " rows"], length: Int[Array, ""]) -> tuple[Array, tuple[Array, Array]]:
        row = jnp.argmax(ends + length <= time)  # an empty one is always among them
        return ends.at[row].add(length + 1), (row, ends[row])

    _, (row, offset) = jax.lax.scan(place, jnp.zeros(size, lengths.dtype), lengths[order])
    # For each slot of each row: the episode and the step that it shows, the first of all if it shows none.
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
