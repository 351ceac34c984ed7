"""Physics of the Multi-Agent Particle Environments (Lowe et al., MADDPG, NeurIPS 2017), for the
tasks that use it.

Agents are discs on an endless plane, pushed by forces and slowed by friction; discs that overlap
push each other apart.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

DURATION = 0.1  # of a step
DAMPING = 0.25  # the share of its velocity that an agent loses in a step
STIFFNESS = 100.0  # force per overlap
SOFTNESS = 1e-3  # the overlap within which that force fades in
TINY = 1e-9  # keeps a direction of no length finite

Places = Float[Array, "points 2"]


def offsets(points: Places, others: Float[Array, "others 2"]) -> Float[Array, "points others 2"]:
    """From each point to each of the others."""
    return others - points[:, None]


def lengths(vectors: Float[Array, "*axes 2"]) -> Float[Array, "*axes"]:
    """How long each vector is."""
    return jnp.sqrt(jnp.square(vectors).sum(-1))


def repulsion(
    places: Places, radius: Float[np.ndarray, " points"]
) -> Float[Array, "points points 2"]:
    """The force on each disc from each other one."""
    away = -offsets(places, places)
    distance = lengths(away)
    overlap = radius[:, None] + radius - distance
    force = STIFFNESS * SOFTNESS * jnp.logaddexp(0.0, overlap / SOFTNESS)
    strength = force / jnp.maximum(distance, TINY)
    return strength[..., None] * away  # nothing from itself, which is nowhere away


def move(
    places: Places,
    velocity: Places,
    acceleration: Places,
    *,
    with_old_velocity: bool,
    max_speed: float = float("inf"),
) -> tuple[Places, Places]:
    """Places and velocities after a step; places change by the velocity that was, or by the one
    that is."""
    after = (1.0 - DAMPING) * velocity + DURATION * acceleration
    after = after * jnp.minimum(1.0, max_speed / jnp.maximum(lengths(after), TINY))[:, None]
    return places + DURATION * (velocity if with_old_velocity else after), after
