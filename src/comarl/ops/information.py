"""Estimates of mutual information."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def jensen_shannon_gap(scores: Float[Array, "rows rows"]) -> Float[Array, " rows"]:
    """How far each matched pair is from standing out: the negated per-row term of the
    Jensen-Shannon bound.

    `scores[m, k]` is T(s_m, z_k), so the diagonal scores what belongs together. With sp(x) = log(1
    + exp(x)),

        gap_m = mean_{k != m} [sp(scores[m, k]) - log 2] - [log 2 - sp(-scores[m, m])]

    It is 0 for a T that is 0 everywhere; descending it raises the bound on I(z; s) (RACE, Eq. 3, up
    to a constant 2 log 2; MINE in the form that PMIC, Li et al. 2022, uses).
    """
    rows = scores.shape[0]
    matched = jnp.diagonal(scores)
    softplus = jax.nn.softplus
    mismatched = (softplus(scores).sum(axis=1) - softplus(matched)) / (rows - 1)
    return (mismatched - jnp.log(2.0)) - (jnp.log(2.0) - softplus(-matched))


def team_gaps(
    scores: Float[Array, "batch batch agents"], mask: Bool[Array, " batch"]
) -> Float[Array, "batch agents"]:
    """The same gap for the agents of several episodes at one step, where `scores[m, k, i]` is
    T(s_m, z_ki).

    What does not belong to state m is every agent of every other episode that is still going on
    (`mask`); agents of the same episode share its state, so they are no counterexamples. 0 where
    there is no other episode, and after an end.
    """
    softplus = jax.nn.softplus
    others = mask[:, None] & mask[None, :] & ~jnp.eye(mask.shape[0], dtype=bool)
    number = others.sum(axis=1).astype(scores.dtype)
    total = jnp.where(others, softplus(scores).mean(axis=2), 0.0).sum(axis=1)
    mismatched = total / jnp.maximum(number, 1.0)
    matched = jnp.diagonal(scores, axis1=0, axis2=1).T  # [batch, agents]
    gaps = (mismatched[:, None] - jnp.log(2.0)) - (jnp.log(2.0) - softplus(-matched))
    return jnp.where((number > 0)[:, None], gaps, 0.0)


def value_weights(
    values: Float[Array, "*batch"], mask: Bool[Array, "*batch"] | None = None
) -> Float[Array, "*batch"]:
    """Values scaled to [0, 1] over the batch (RACE, Eq. 5): good states count, the worst does not.

    What `mask` leaves out has no part in the scale, and weight 0.
    """
    if mask is None:
        return (values - values.min()) / (values.max() - values.min() + 1e-8)
    low = jnp.min(values, where=mask, initial=jnp.inf)
    high = jnp.max(values, where=mask, initial=-jnp.inf)
    return jnp.where(mask, (values - low) / (high - low + 1e-8), 0.0)
