"""Stochastic policies of a team, each a Gaussian squashed by tanh, and networks side by side.
Agents lead."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from comarl.nn.mlp import MLP
from comarl.types import EnvSpec, Key


class Stack(eqx.Module):
    """Networks of one shape side by side: one for each row of inputs, or for a number of rows that
    follow each other."""

    networks: MLP  # leaves lead with `stack`

    def __init__(self, stack: int, sizes: tuple[int, ...], *, key: Key):
        """`stack` networks (ReLU) with layers of so many units, from inputs to outputs."""
        make = lambda k: MLP(sizes, activation=jax.nn.relu, key=k)
        self.networks = jax.vmap(make)(jax.random.split(key, stack))

    def __call__(
        self, x: Float[Array, "*rows batch inputs"]
    ) -> Float[Array, "all_rows batch outputs"]:
        """Without an axis of rows all networks get the same, which makes their first layers one
        matrix product."""
        if x.ndim == 2:
            return jax.vmap(lambda network: network(x))(self.networks)
        stack = self.networks.output.bias.shape[0]
        rows = x.reshape(stack, -1, x.shape[-1])
        y = jax.vmap(lambda network, row: network(row))(self.networks, rows)
        return y.reshape(*x.shape[:-1], y.shape[-1])


def with_identity(
    x: Float[Array, "*rows batch inputs"], identity: Float[np.ndarray, "all_rows ids"]
) -> Float[Array, "all_rows batch more"]:
    """Each row with what identifies it, such as an agent's number, one-hot.

    >>> with_identity(jnp.zeros((1, 1)), np.eye(2)).tolist()
    [[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]
    """
    rows, ids = identity.shape
    batch, inputs = x.shape[-2:]
    identity = np.broadcast_to(identity[:, None].astype(np.float32), (rows, batch, ids))
    return jnp.concatenate([jnp.broadcast_to(x, (rows, batch, inputs)), identity], axis=-1)


class Noise(NamedTuple):
    """All that is random in a draw of actions."""

    z: Float[Array, "batch latent"]  # common to all agents
    normal: Float[Array, "agents batch action"]
    marginal_z: Float[Array, "draws batch latent"]  # further z, for marginal log-probabilities


class Drawn(NamedTuple):
    """Actions in [-1, 1], 0 where padded, and their log-probabilities."""

    action: Float[Array, "agents batch action"]
    log_pi: Float[Array, "agents batch"]


class Policies(eqx.Module):
    """pi_i(a_i | o_i, z): a_i = tanh(mean + e^log_std normal). Latent vectors z may have no
    entries."""

    networks: Stack
    spec: EnvSpec = eqx.field(static=True)
    log_std_range: tuple[float, float] = eqx.field(static=True)
    share: bool = eqx.field(static=True)

    def __init__(
        self,
        spec: EnvSpec,
        hidden: tuple[int, ...],
        latent_size: int,
        log_std_range: tuple[float, float],
        *,
        share: bool,
        key: Key,
    ):
        """`share` makes it one network, among whose inputs is the number of the agent."""
        agents, inputs = spec.num_agents, spec.obs_size + latent_size
        stack, inputs = (1, inputs + agents) if share else (agents, inputs)
        self.networks = Stack(stack, (inputs, *hidden, 2 * spec.action_size), key=key)
        self.spec = spec
        self.log_std_range = log_std_range
        self.share = share

    def __call__(
        self, obs: Float[Array, "agents batch obs"], z: Float[Array, "batch latent"]
    ) -> tuple[Float[Array, "agents batch action"], Float[Array, "agents batch action"]]:
        """Means and log standard deviations, before tanh."""
        agents = obs.shape[0]
        x = jnp.concatenate([obs, jnp.broadcast_to(z, (agents, *z.shape))], axis=-1)
        outputs = self.networks(with_identity(x, np.eye(agents)) if self.share else x)
        mean, raw = jnp.split(outputs, 2, axis=-1)
        low, high = self.log_std_range
        return mean, low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)

    def squash(self, u: Float[Array, "agents batch action"]) -> Float[Array, "agents batch action"]:
        """tanh of what was drawn; the padded entries of smaller agents are 0."""
        return jnp.tanh(u) * self.spec.action_mask[:, None]

    def draw(self, obs: Float[Array, "agents batch obs"], noise: Noise) -> Drawn:
        """Draws actions with log pi(a | o, z).

        With further draws of z it is log (mean over them and the true z of pi(a | o, .)).
        """
        mean, log_std = self(obs, noise.z)
        u = mean + jnp.exp(log_std) * noise.normal
        mask = self.spec.action_mask
        log_pi = squashed_log_density(noise.normal, u, log_std, mask)
        if noise.marginal_z.shape[0]:

            def log_pi_given(z: Array) -> Array:
                mean, log_std = self(obs, z)
                normal = (u - mean) * jnp.exp(-log_std)
                return squashed_log_density(normal, u, log_std, mask)

            every = jnp.concatenate([log_pi[None], jax.vmap(log_pi_given)(noise.marginal_z)])
            log_pi = jax.nn.logsumexp(every, axis=0) - jnp.log(float(every.shape[0]))
        return Drawn(self.squash(u), log_pi)


def squashed_log_density(
    normal: Float[Array, "agents batch action"],
    u: Float[Array, "agents batch action"],
    log_std: Float[Array, "agents batch action"],
    mask: Float[np.ndarray, "agents action"],
) -> Float[Array, "agents batch"]:
    """log p(tanh(u)) where u = mean + e^log_std normal, over the entries that `mask` keeps.

    log (1 - tanh(u)^2) is written so that it stays exact where tanh(u) rounds to 1.

    >>> zero = jnp.zeros((1, 1, 1))
    >>> round(float(squashed_log_density(zero, zero, zero, np.ones((1, 1)))[0, 0]), 3)
    -0.919
    """
    gaussian = -0.5 * jnp.square(normal) - log_std - 0.5 * jnp.log(2.0 * jnp.pi)
    slope = 2.0 * (jnp.log(2.0) - u - jax.nn.softplus(-2.0 * u))
    return ((gaussian - slope) * mask[:, None]).sum(axis=-1)
