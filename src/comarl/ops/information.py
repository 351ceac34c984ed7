"""Estimates of mutual information."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def jensen_shannon_gap(scores: Float[Array, "rows rows"]) -> Float[Array, " rows"]:
    """How far each matched pair is from standing out: the negated per-row term of the Jensen-Shannon bound.

    `scores[m, k]` is T(s_m, z_k), so the diagonal scores what belongs together. With sp(x) = log(1 + exp(x)),

        gap_m = mean_{k != m} [sp(scores[m, k]) - log 2] - [log 2 - sp(-scores[m, m])]

    It is 0 for a T that is 0 everywhere; descending it raises the bound on I(z; s) (RACE, Eq. 3, up to a constant
    2 log 2; MINE in the form that PMIC, Li et al. 2022, uses).
    """
    rows = scores.shape[0]
    matched = jnp.diagonal(scores)
    softplus = jax.nn.softplus
    mismatched = (softplus(scores).sum(axis=1) - softplus(matched)) / (rows - 1)
    return (mismatched - jnp.log(2.0)) - (jnp.log(2.0) - softplus(-matched))


def value_weights(values: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Values scaled to [0, 1] over the batch (RACE, Eq. 5): good states count, the worst does not."""
    return (values - values.min()) / (values.max() - values.min() + 1e-8)
