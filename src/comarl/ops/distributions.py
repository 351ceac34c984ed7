"""Discrete actions: draws that gradients can pass through, log-probabilities, entropy."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.ops.exploration import only_available
from comarl.types import Key, Keys


def step_keys(key: Key, steps: int) -> Keys:
    """A key for each step of an episode, the same however long the episode is padded."""
    return jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(steps))


def noise_of_steps(key: Key, shape: tuple[int, ...]) -> Float[Array, "time ..."]:
    """Standard normal noise `[time ...]`, by a key of each step's own.

    It is the same however long an episode is padded:

    >>> key = jax.random.key(0)
    >>> bool((noise_of_steps(key, (5, 2))[:3] == noise_of_steps(key, (3, 2))).all())
    True
    """
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(step_keys(key, shape[0]))


def straight_through_gumbel(
    logits: Float[Array, "*batch actions"],
    available: Bool[Array, "*batch actions"] | None,
    key: Key,
) -> Float[Array, "*batch actions"]:
    """A one-hot draw from softmax(logits) whose gradient is that of the relaxed draw, at
    temperature 1.

    The straight-through Gumbel-softmax estimator (Jang et al., ICLR 2017, Sec. 2.2).

    >>> available = jnp.array([False, True, False])
    >>> straight_through_gumbel(jnp.zeros(3), available, jax.random.key(0)).tolist()
    [0.0, 1.0, 0.0]
    """
    noise = jax.random.gumbel(key, logits.shape)
    relaxed = jax.nn.softmax(only_available(logits + noise, available))
    drawn = jax.nn.one_hot(jnp.argmax(relaxed, axis=-1), logits.shape[-1])
    # In this order: forward it is exactly `drawn`.
    return drawn + (relaxed - jax.lax.stop_gradient(relaxed))


def straight_through_steps(
    logits: Float[Array, "batch time agents actions"],
    available: Bool[Array, "batch time agents actions"],
    key: Key,
) -> Float[Array, "batch time agents actions"]:
    """`straight_through_gumbel` at every step of a batch of episodes, by a key of the step's own.

    So a draw does not depend on how long episodes are padded, which differs where seeds learn side
    by side.
    """
    keys = step_keys(key, logits.shape[1])
    return jax.vmap(straight_through_gumbel, in_axes=(1, 1, 0), out_axes=1)(logits, available, keys)


def draw_steps(
    logits: Float[Array, "batch time agents actions"], key: Key
) -> Int[Array, "batch time agents"]:
    """A joint action at every step of a batch of episodes, by a key of the step's own.

    >>> logits = jnp.log(jnp.eye(4))[None, None]  # agent i can do nothing but its action i
    >>> draw_steps(logits, jax.random.key(0)).tolist()
    [[[0, 1, 2, 3]]]
    """
    keys = step_keys(key, logits.shape[1])
    drawn = jax.vmap(jax.random.categorical, in_axes=(0, 1), out_axes=1)(keys, logits)
    return drawn.astype(jnp.int32)


def log_probability(probability: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The logarithm of a probability, finite at 0.

    What is masked may have no chance, and its gradient must still be a number.

    >>> float(log_probability(jnp.float32(1.0))), bool(log_probability(jnp.float32(0.0)) < -60)
    (0.0, True)
    """
    return jnp.log(jnp.maximum(probability, 1e-30))


def entropy(policy: Float[Array, "*batch actions"]) -> Float[Array, "*batch"]:
    """The entropy of a distribution over actions, in nats.

    >>> round(float(entropy(jnp.array([0.5, 0.5, 0.0]))), 4)
    0.6931
    """
    return -(policy * log_probability(policy)).sum(axis=-1)


def uniform_entropy(available: Bool[Array, "*batch actions"]) -> Float[Array, "*batch"]:
    """The entropy of a uniform choice among what is available; 0 if nothing is.

    >>> round(float(uniform_entropy(jnp.array([True, True, False]))), 4)
    0.6931
    """
    return jnp.log(jnp.maximum(available.sum(-1), 1).astype(jnp.float32))
