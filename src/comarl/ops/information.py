"""Estimates of mutual information and of dependence, and what weighs them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def jensen_shannon_gap(scores: Float[Array, "rows rows"]) -> Float[Array, " rows"]:
    """How far each matched pair is from standing out: the negated per-row term of the
    Jensen-Shannon bound.

    `scores[m, k]` is T(s_m, z_k), so the diagonal scores what belongs together. With sp(x) = log(1
    + exp(x)),

        gap_m = mean_{k != m} [sp(scores[m, k]) - log 2] - [log 2 - sp(-scores[m, m])]

    It is 0 for a T that is 0 everywhere; descending it raises the bound on I(z; s) (RACE, Eq. 3, up
    to a constant 2 log 2; MINE in the form that PMIC, Li et al. 2022, uses).

    >>> matched, mismatched = jnp.eye(3), 1.0 - jnp.eye(3)
    >>> [round(float(gap), 2) for gap in jensen_shannon_gap(40.0 * (matched - mismatched))]
    [-1.39, -1.39, -1.39]
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

    What does not belong to state m is every agent of every other episode that still continues
    (`mask`); agents of the same episode share its state, so they are no counterexamples. 0 where
    there is no other episode, and after an end.

    >>> team_gaps(jnp.zeros((2, 2, 3)), jnp.array([True, True])).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    softplus = jax.nn.softplus
    others = mask[:, None] & mask[None, :] & ~jnp.eye(mask.shape[0], dtype=bool)
    count = others.sum(axis=1).astype(scores.dtype)
    total = jnp.where(others, softplus(scores).mean(axis=2), 0.0).sum(axis=1)
    mismatched = total / jnp.maximum(count, 1.0)
    matched = jnp.diagonal(scores, axis1=0, axis2=1).T  # [batch, agents]
    gaps = (mismatched[:, None] - jnp.log(2.0)) - (jnp.log(2.0) - softplus(-matched))
    return jnp.where((count > 0)[:, None], gaps, 0.0)


def value_weights(
    values: Float[Array, "*batch"], mask: Bool[Array, "*batch"] | None = None
) -> Float[Array, "*batch"]:
    """Values scaled to [0, 1] over the batch (RACE, Eq. 5): good states count, the worst does not.

    What `mask` leaves out has no part in the scale, and weight 0.

    >>> value_weights(jnp.array([3.0, -1.0, 1.0, 7.0])).tolist()
    [0.5, 0.0, 0.25, 1.0]
    """
    if mask is None:
        return (values - values.min()) / (values.max() - values.min() + 1e-8)
    low = jnp.min(values, where=mask, initial=jnp.inf)
    high = jnp.max(values, where=mask, initial=-jnp.inf)
    return jnp.where(mask, (values - low) / (high - low + 1e-8), 0.0)


def squared_correlation(
    action: Float[Array, "draws agents batch action"], mask: Float[np.ndarray, "agents action"]
) -> Float[Array, ""]:
    """Mean over real entries of two agents' actions of r^2 over the draws: 0 on average if
    independent, at most 1.

    The 1 / (draws - 1) that independent draws have by chance is taken off; what is left is a little
    low in between.

    >>> x = jnp.array([0.0, 1.0, 3.0, -1.0])
    >>> action = jnp.stack([x, -2.0 * x], axis=1)[..., None, None]
    >>> round(float(squared_correlation(action, np.ones((2, 1)))), 3)
    1.0
    """
    draws, agents = action.shape[:2]
    centred = action - action.mean(axis=0)
    scaled = centred / jnp.sqrt(jnp.square(centred).mean(axis=0) + 1e-12)
    r = jnp.einsum("dibx,djby->bijxy", scaled, scaled) / draws
    both_real = mask[:, None, :, None] * mask[None, :, None, :]
    counted = both_real * ~np.eye(agents, dtype=bool)[..., None, None]
    mean = (jnp.square(r) * counted).sum() / (counted.sum() * r.shape[0])
    return (mean * (draws - 1.0) - 1.0) / (draws - 2.0)
