"""The estimator of mutual information that RACE's encoders are trained with."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from comarl.nn.mlp import Torso, leaky_relu
from comarl.types import Key


class Mine(eqx.Module):
    """T_omega(s, z): how well a state and a representation fit, as a dot product (RACE, App. A.1).

    >>> mine = Mine(state_size=4, features=3, width=8, key=jax.random.key(0))
    >>> mine(jnp.ones((5, 4)), jnp.ones((5, 3))).shape
    (5, 5)
    """

    state_branch: Torso
    z_branch: Torso

    def __init__(self, state_size: int, features: int, width: int, *, key: Key):
        state_key, z_key = jax.random.split(key)
        self.state_branch = Torso((state_size, width, width), activation=leaky_relu, key=state_key)
        self.z_branch = Torso((features, width), activation=leaky_relu, key=z_key)

    def __call__(
        self, state: Float[Array, "batch state"], z: Float[Array, "batch features"]
    ) -> Float[Array, "batch batch"]:
        """The score of every state of the batch with every representation."""
        return self.state_branch(state) @ self.z_branch(z).T

    def team_scores(
        self, state: Float[Array, "batch state"], z: Float[Array, "batch agents features"]
    ) -> Float[Array, "batch batch agents"]:
        """The score of every state of the batch with every agent's representation in every item of
        the batch."""
        return jnp.einsum("sd,bnd->sbn", self.state_branch(state), self.z_branch(z))
