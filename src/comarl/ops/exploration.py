"""How discrete teams choose: greedily, by chance, or by a policy, and always among what is
available.

Where `available` is None, all actions are.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.types import Clock, Key
from comarl.validation import check_fields, check_range

NEVER = -1e10
"""the logit of an action that is not available: finite, so that gradients stay numbers"""


def linear(start: float, end: float, steps: int, now: Int[Array, ""]) -> Float[Array, ""]:
    """From `start` to `end` over the first `steps` environment steps, then `end`.

    >>> [float(linear(1.0, 0.5, 100, jnp.int32(now))) for now in (0, 50, 1000)]
    [1.0, 0.75, 0.5]
    """
    progress = jnp.minimum(now.astype(jnp.float32) / max(steps, 1), 1.0)
    return start + (end - start) * progress


@dataclass(frozen=True)
class Epsilon:
    """The share of random actions while a team explores, which falls linearly.

    >>> from comarl.types import Clock
    >>> epsilon = Epsilon(first=1.0, last=0.0, steps=100)
    >>> float(epsilon.at(Clock(jnp.int32(25), jnp.int32(0), jnp.int32(0))))
    0.75
    """

    first: float = 1.0
    """initial probability of a random action"""
    last: float = 0.05
    """final probability of a random action"""
    steps: int = 50_000
    """environment steps over which it falls, of all teams"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 0, 1, "first", "last")
        check_range(self, 0, None, "steps")

    def at(self, clock: Clock) -> Float[Array, ""]:
        """The share at this moment of a run."""
        return linear(self.first, self.last, self.steps, clock.env_steps)


def only_available(
    scores: Float[Array, "*batch actions"], available: Bool[Array, "*#batch actions"] | None
) -> Float[Array, "*batch actions"]:
    """Scores or logits in which what is not available can neither win nor be drawn.

    >>> only_available(jnp.array([1.0, 2.0]), jnp.array([True, False])).tolist()
    [1.0, -10000000000.0]
    """
    return scores if available is None else jnp.where(available, scores, NEVER)


def greedy(
    scores: Float[Array, "*batch actions"], available: Bool[Array, "*batch actions"] | None
) -> Int[Array, "*batch"]:
    """The best available action; the first of equals.

    >>> int(greedy(jnp.array([1.0, 2.0, 3.0]), jnp.array([True, True, False])))
    1
    """
    return jnp.argmax(only_available(scores, available), axis=-1).astype(jnp.int32)


def pick(
    values: Float[Array, "*batch actions"], action: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The entry of each agent's action, such as the utility of what it chose.

    >>> pick(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 0])).tolist()
    [2.0, 3.0]
    """
    return jnp.take_along_axis(values, action[..., None], axis=-1)[..., 0]


def epsilon_greedy(
    scores: Float[Array, "agents actions"],
    available: Bool[Array, "agents actions"] | None,
    epsilon: Float[Array, ""],
    key: Key,
) -> Int[Array, " agents"]:
    """Each agent on its own: with probability `epsilon` any available action, else the best."""
    coin_key, any_key = jax.random.split(key)
    anything = jax.random.categorical(any_key, only_available(jnp.zeros_like(scores), available))
    coin = jax.random.bernoulli(coin_key, epsilon, anything.shape)
    return jnp.where(coin, anything.astype(jnp.int32), greedy(scores, available))


def policy_with_epsilon(
    logits: Float[Array, "*batch actions"],
    available: Bool[Array, "*batch actions"] | None,
    epsilon: Float[Array, ""] | float,
) -> Float[Array, "*batch actions"]:
    """(1 - epsilon) softmax(logits) + epsilon (uniform over the available actions).

    >>> policy_with_epsilon(jnp.array([9.0, 0.0]), jnp.array([True, True]), 1.0).tolist()
    [0.5, 0.5]
    """
    policy = jax.nn.softmax(only_available(logits, available))
    anything = jax.nn.softmax(only_available(jnp.zeros_like(logits), available))
    return (1.0 - epsilon) * policy + epsilon * anything


def epsilon_softmax(
    logits: Float[Array, "agents actions"],
    available: Bool[Array, "agents actions"] | None,
    epsilon: Float[Array, ""] | float,
    key: Key,
) -> Int[Array, " agents"]:
    """Drawn from (1 - epsilon) softmax(logits) + epsilon (uniform over the available actions)."""
    log_policy = jnp.log(policy_with_epsilon(logits, available, epsilon))
    return jax.random.categorical(key, log_policy).astype(jnp.int32)
