"""Targets over time, for one episode."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from comarl.types import Episode


def lambda_returns(
    reward: Float[Array, " time"],
    discount: Float[Array, " time"],
    next_value: Float[Array, " time"],
    mask: Bool[Array, " time"],
    td_lambda: float,
) -> Float[Array, " time"]:
    """TD(lambda) returns, lambda being `td_lambda` (Sutton & Barto, 2018, Sec. 12.1), that end
    where their episode ends.

        G_t = r_t + discount_t ((1 - lambda) V_{t+1} + lambda G_{t+1})

    `discount` is gamma, or 0 where step t terminated. `next_value[t]` is the value of what step t
    led to. On the last step that took place, which is the last one of `mask`, V_{t+1} stands for
    G_{t+1}: a truncated episode goes on in its value, however short it was. Entries where `mask` is
    false mean nothing.
    """
    follows = jnp.concatenate([mask[1:], jnp.zeros(1, bool)])  # whether step t + 1 took place

    def back(
        after: Float[Array, ""], item: tuple[Array, Array, Array, Array]
    ) -> tuple[Array, Array]:
        r, d, v, goes_on = item
        now = r + d * jnp.where(goes_on, (1.0 - td_lambda) * v + td_lambda * after, v)
        return now, now

    return jax.lax.scan(
        back, jnp.zeros((), reward.dtype), (reward, discount, next_value, follows), reverse=True
    )[1]


def one_step_targets(
    reward: Float[Array, "*batch"],
    terminated: Bool[Array, "*batch"],
    next_value: Float[Array, "*batch"],
    gamma: float,
) -> Float[Array, "*batch"]:
    """y = r + gamma (1 - terminated) V(s'): the target of one step, as data.

    A step at which time ran out is not terminated, so a value follows it.

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
    one = lambda r, d, v, m: lambda_returns(r, d, v, m, td_lambda)
    return jax.lax.stop_gradient(jax.vmap(one)(batch.reward, discount, next_value, batch.mask))


def masked_mean(x: Float[Array, "*batch"], mask: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """The mean over what took place; 0 if nothing did."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(mask.sum(), 1).astype(x.dtype)
