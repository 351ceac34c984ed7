"""Deterministic policies of a team: an encoder and a linear head for each agent, or one network for
all agents."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from comarl.nn.mlp import MLP, Activation, Linear, Torso
from comarl.types import EnvSpec, Key


def make_encoders(
    spec: EnvSpec,
    hidden: tuple[int, ...],
    layer_norm: bool,
    key: Key,
    activation: Activation = jnp.tanh,
) -> Torso:
    """Makes the encoder Z_phi_i of each agent, stacked: leaves lead with `agents`."""
    sizes = (spec.obs_size, *hidden)
    make = lambda k: Torso(sizes, activation=activation, layer_norm=layer_norm, key=k)
    return jax.vmap(make)(jax.random.split(key, spec.num_agents))


def make_heads(spec: EnvSpec, features: int, key: Key, scale: float = 1.0) -> Linear:
    """Makes one team's linear policies W_i, stacked: leaves lead with `agents`."""
    make = lambda k: Linear(features, spec.action_size, key=k, scale=scale)
    return jax.vmap(make)(jax.random.split(key, spec.num_agents))


def encode(
    encoders: Torso, obs: Float[Array, "*batch agents obs"]
) -> Float[Array, "agents *batch features"]:
    """z_i = Z_phi_i(o_i). Agents lead, so that each agent's batch is one matrix product."""
    return jax.vmap(lambda encoder, o: encoder(o))(encoders, jnp.moveaxis(obs, -2, 0))


def choose(
    heads: Linear, features: Float[Array, "agents *batch features"], spec: EnvSpec
) -> Float[Array, "*batch agents action"]:
    """Actions tanh(W_i z_i) in [-1, 1]; the padded entries of smaller agents are 0."""
    action = jnp.tanh(jax.vmap(lambda head, z: head(z))(heads, features))
    return jnp.moveaxis(action, 0, -2) * spec.action_mask


def explore_with_noise(
    action: Float[Array, "agents action"], std: float | Float[Array, ""], spec: EnvSpec, key: Key
) -> Float[Array, "agents action"]:
    """Adds N(0, std^2) and stays in [-1, 1]; the padded entries of smaller agents stay 0.

    >>> spec = EnvSpec(2, 3, 3, 1, discrete=False, horizon=5)
    >>> explore_with_noise(jnp.array([[0.5], [-1.0]]), 0.0, spec, jax.random.key(0)).tolist()
    [[0.5], [-1.0]]
    """
    noise = std * jax.random.normal(key, action.shape)
    return jnp.clip(action + noise, -1.0, 1.0) * spec.action_mask


def smooth_target(
    action: Float[Array, "batch agents action"], std: float, clip: float, spec: EnvSpec, key: Key
) -> Float[Array, "batch agents action"]:
    """Target policy smoothing: the target policy's action plus clipped noise.

    It is Eq. 14 of TD3 (Fujimoto et al., ICML 2018).
    """
    if std == 0:
        return action
    noise = jnp.clip(std * jax.random.normal(key, action.shape), -clip, clip)
    return jnp.clip(action + noise, -1.0, 1.0) * spec.action_mask


class SharedActor(eqx.Module):
    """One deterministic policy for all agents, told apart by their number."""

    network: MLP
    spec: EnvSpec = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, hidden: tuple[int, ...], *, key: Key):
        sizes = (spec.obs_size + spec.num_agents, *hidden, spec.action_size)
        self.network = MLP(sizes, activation=jax.nn.relu, key=key)
        self.spec = spec

    def with_identity(
        self, obs: Float[Array, "*batch agents obs"]
    ) -> Float[Array, "*batch agents inputs"]:
        """Observations with each agent's number, one-hot."""
        identity = jnp.eye(self.spec.num_agents)
        identity = jnp.broadcast_to(identity, (*obs.shape[:-1], self.spec.num_agents))
        return jnp.concatenate([obs, identity], axis=-1)

    def __call__(
        self, obs: Float[Array, "*batch agents obs"]
    ) -> Float[Array, "*batch agents action"]:
        """Actions in [-1, 1]; the padded entries of smaller agents are 0."""
        return jnp.tanh(self.network(self.with_identity(obs))) * self.spec.action_mask
