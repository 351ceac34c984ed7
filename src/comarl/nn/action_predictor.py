"""How well agents' discrete actions predict each other: the variational distribution of the
discrete VM3-AC."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mlp import MLP, Linear
from comarl.nn.predictors import ordered_pairs
from comarl.ops.exploration import only_available, pick
from comarl.types import EnvSpec, Key


class ActionPredictor(eqx.Module):
    """q_ij(u_j | u_i, o_i, o_j) over j's available actions, for all pairs by one network, which is
    told i and j.

    Two hidden layers of ReLU. The first adds what it makes of u_i to what it makes of the rest, so
    that to be asked about every u_i costs little more there than about one.
    """

    seen: Linear
    given: Linear
    rest: MLP
    spec: EnvSpec = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, hidden: int, *, key: Key):
        seen_key, given_key, rest_key = jax.random.split(key, 3)
        self.seen = Linear(2 * (spec.obs_size + spec.num_agents), hidden, key=seen_key)
        self.given = Linear(spec.action_size, hidden, key=given_key)
        self.rest = MLP((hidden, hidden, spec.action_size), activation=jax.nn.relu, key=rest_key)
        self.spec = spec

    def __call__(
        self,
        given: Float[Array, "*rows given actions"],
        obs: Float[Array, "*batch agents obs"],
        available: Bool[Array, "*batch agents actions"] | None,
    ) -> Float[Array, "*batch pairs given actions"]:
        """log q_ij(. | u_i, o_i, o_j) for each u_i that is `given`, one-hot: for every pair of its
        own, or for all."""
        (i, j), who = self.pairs, np.eye(self.spec.num_agents, dtype=np.float32)
        told = np.broadcast_to(
            np.concatenate([who[i], who[j]], axis=-1), (*obs.shape[:-2], len(i), 2 * len(who))
        )
        seen = self.seen(jnp.concatenate([obs[..., i, :], obs[..., j, :], told], axis=-1))
        logits = self.rest(jax.nn.relu(seen[..., None, :] + self.given(given)))
        return jax.nn.log_softmax(
            only_available(logits, None if available is None else available[..., j, None, :])
        )

    @property
    def pairs(self) -> Int[np.ndarray, "2 pairs"]:
        """i and j of each."""
        return ordered_pairs(self.spec.num_agents)

    def table(
        self,
        obs: Float[Array, "*batch agents obs"],
        available: Bool[Array, "*batch agents actions"] | None,
    ) -> Float[Array, "*batch pairs actions actions"]:
        """log q_ij(u_j | u_i, o_i, o_j) for every u_i and u_j."""
        return self(jnp.eye(self.spec.action_size), obs, available)

    def log_q(
        self,
        said: Int[Array, "*batch agents"],
        given: Int[Array, "*batch agents"],
        obs: Float[Array, "*batch agents obs"],
        available: Bool[Array, "*batch agents actions"] | None,
    ) -> Float[Array, "*batch pairs"]:
        """How probable j's action in `said` is, given i's in `given`."""
        i, j = self.pairs
        one_hot = jax.nn.one_hot(given[..., i], self.spec.action_size)[..., None, :]
        return pick(self(one_hot, obs, available)[..., 0, :], said[..., j])
