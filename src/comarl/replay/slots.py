"""What both replays do alike: which slots of a ring come next, and what is kept of an episode.

A ring is an array whose slots are written one after another and, after the last, from the first
again. Indices that equal its capacity are out of bounds: `x.at[index].set(..., mode="drop")`
leaves them out, which is how a fixed number of writes skips what did not take place.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped


def next_slots(
    start: Int[Array, ""], wanted: Bool[Array, "*items"], capacity: int
) -> Int[Array, " all"]:
    """The slots that wanted items take, in order from `start`; `capacity` for the others.

    >>> next_slots(jnp.int32(3), jnp.array([True, False, True]), capacity=4).tolist()
    [3, 4, 0]
    """
    wanted = wanted.reshape(-1)
    order = jnp.cumsum(wanted) - 1
    return jnp.where(wanted, (start + order) % capacity, capacity)


def blank(
    x: Shaped[Array, "*lead_and_features"], there: Bool[Array, "*lead"]
) -> Shaped[Array, "*lead_and_features"]:
    """`x` with zeros where `there`, which has the leading axes of `x`, is false.

    What is kept then never depends on what a task showed after an episode's end, NaN included.

    >>> blank(jnp.array([[1.0, 2.0], [jnp.nan, 3.0]]), jnp.array([True, False])).tolist()
    [[1.0, 2.0], [0.0, 0.0]]
    """
    features = [1] * (x.ndim - there.ndim)
    return jnp.where(there.reshape(*there.shape, *features), x, jnp.zeros((), x.dtype))


def latent_of(length: int, memory: PyTree) -> Float[Array, "*batch latent"]:
    """The vector `memory.latent` of each episode, which has this length.

    Raises ValueError if the policies that played have no such vector.
    """
    if not hasattr(memory, "latent"):
        raise ValueError(
            f"replay.latent {length}: it must be 0, because these policies have no such vector"
        )
    return memory.latent
