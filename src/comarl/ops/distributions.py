"""Discrete actions that gradients can pass through."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from comarl.ops.exploration import only_available
from comarl.types import Key


def straight_through_gumbel(
    logits: Float[Array, "*batch actions"], available: Bool[Array, "*batch actions"] | None, key: Key
) -> Float[Array, "*batch actions"]:
    """A one-hot draw from softmax(logits) whose gradient is that of the relaxed draw, at temperature 1.

    The straight-through Gumbel-softmax estimator (Jang et al., ICLR 2017, Sec. 2.2).
    """
    noise = jax.random.gumbel(key, logits.shape)
    relaxed = jax.nn.softmax(only_available(logits + noise, available))
    drawn = jax.nn.one_hot(jnp.argmax(relaxed, axis=-1), logits.shape[-1])
    return drawn + (relaxed - jax.lax.stop_gradient(relaxed))  # in this order: forward it is exactly `drawn`
