"""Targets over time, and what is recorded of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from comarl.types import Episode, Metrics


def lambda_returns(
    reward: Float[Array, " time"],
    discount: Float[Array, " time"],
    next_value: Float[Array, " time"],
    mask: Bool[Array, " time"],
    td_lambda: float,
) -> Float[Array, " time"]:
    """TD(lambda) returns of one episode (Sutton & Barto, 2018, Sec. 12.1).

        G_t = r_t + discount_t ((1 - lambda) V_{t+1} + lambda G_{t+1})

    `discount` is gamma, or 0 where step t terminated. `next_value[t]` is the value of what step t
    led to. On the last step that took place, which is the last one of `mask`, V_{t+1} stands for
    G_{t+1}: a truncated episode ends in its value, however short it was. Entries where `mask` is
    false mean nothing.

    >>> reward, discount = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.5, 0.25])
    >>> next_value, mask = jnp.array([10.0, 20.0, 40.0]), jnp.ones(3, bool)
    >>> lambda_returns(reward, discount, next_value, mask, td_lambda=0.5).tolist()
    [6.125, 10.5, 14.0]
    """

    def back(
        later: Float[Array, ""], step: tuple[Array, Array, Array, Array]
    ) -> tuple[Array, Array]:
        r, d, v, continues = step
        g = r + d * jnp.where(continues, (1.0 - td_lambda) * v + td_lambda * later, v)
        return g, g

    steps = (reward, discount, next_value, followed(mask))
    _, returns = jax.lax.scan(back, jnp.zeros((), reward.dtype), steps, reverse=True)
    return returns


def followed(mask: Bool[Array, "*batch time"]) -> Bool[Array, "*batch time"]:
    """Whether another step took place after each.

    >>> followed(jnp.array([True, True, False])).tolist()
    [True, False, False]
    """
    return jnp.concatenate([mask[..., 1:], jnp.zeros_like(mask[..., :1])], axis=-1)


def one_step_targets(
    reward: Float[Array, "*#batch"],
    terminated: Bool[Array, "*#batch"],
    next_value: Float[Array, "*batch"],
    gamma: float,
) -> Float[Array, "*batch"]:
    """y = r + gamma (1 - terminated) V(s'): the target of one step, as data.

    A step at which time ran out is not terminated, so a value follows it. Where values are of each
    agent, the reward may be the team's.

    >>> y = one_step_targets(jnp.ones(2), jnp.array([False, True]), jnp.full(2, 10.0), 0.5)
    >>> y.tolist()
    [6.0, 1.0]
    """
    return jax.lax.stop_gradient(reward + gamma * jnp.where(terminated, 0.0, next_value))


def episode_targets(
    batch: Episode, next_value: Float[Array, "batch time"], gamma: float, td_lambda: float
) -> Float[Array, "batch time"]:
    """The TD(lambda) targets of a batch of episodes, given the values of what each step led to.
    They are data."""
    discount = gamma * jnp.where(batch.terminated, 0.0, 1.0)

    def of_episode(reward: Array, discount: Array, next_value: Array, mask: Array) -> Array:
        return lambda_returns(reward, discount, next_value, mask, td_lambda)

    targets = jax.vmap(of_episode)(batch.reward, discount, next_value, batch.mask)
    return jax.lax.stop_gradient(targets)


def masked_mean(x: Float[Array, "*batch"], mask: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """The mean over what took place; 0 if nothing did.

    >>> float(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
    2.0
    """
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(mask.sum(), 1).astype(x.dtype)


def td_metrics(
    q: Float[Array, "*batch"],
    target: Float[Array, "*batch"],
    mask: Bool[Array, "*batch"] | None = None,
) -> Metrics:
    """What every algorithm records beside its TD loss: means over the steps that took place.

    `q` is the value of what was done, of the first critic if there are several. Without `mask` all
    of it took place.

    >>> found = td_metrics(jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0]))
    >>> {name: float(value) for name, value in found.items()}
    {'q_taken_mean': 2.0, 'target_value': 1.5, 'td_error_abs': 1.5}
    """
    values = {"q_taken_mean": q, "target_value": target, "td_error_abs": jnp.abs(q - target)}
    if mask is None:
        return {name: value.mean() for name, value in values.items()}
    return {name: masked_mean(value, mask) for name, value in values.items()}
