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
    """q_ij(u_j | u_i, o_i, o_j) over j's available actions, for all pairs by one network, which
    gets i and j.

    Two hidden layers of ReLU. The first adds what it makes of u_i, the context, to what it makes of
    the rest, so that to be asked about every u_i costs little more there than about one.
    """

    observed: Linear
    context: Linear
    rest: MLP
    spec: EnvSpec = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, hidden: int, *, key: Key):
        observed_key, context_key, rest_key = jax.random.split(key, 3)
        self.observed = Linear(2 * (spec.obs_size + spec.num_agents), hidden, key=observed_key)
        self.context = Linear(spec.action_size, hidden, key=context_key)
        self.rest = MLP((hidden, hidden, spec.action_size), activation=jax.nn.relu, key=rest_key)
        self.spec = spec

    def __call__(
        self,
        context: Float[Array, "*rows context actions"],
        obs: Float[Array, "*batch agents obs"],
        available: Bool[Array, "*batch agents actions"] | None,
    ) -> Float[Array, "*batch pairs context actions"]:
        """log q_ij(. | u_i, o_i, o_j) for each u_i in `context`, one-hot: for every pair of its
        own, or the same for all."""
        i, j = self.pairs
        identity = np.eye(self.spec.num_agents, dtype=np.float32)
        numbers = np.concatenate([identity[i], identity[j]], axis=-1)
        numbers = np.broadcast_to(numbers, (*obs.shape[:-2], *numbers.shape))
        x = jnp.concatenate([obs[..., i, :], obs[..., j, :], numbers], axis=-1)
        hidden = jax.nn.relu(self.observed(x)[..., None, :] + self.context(context))
        of_j = None if available is None else available[..., j, None, :]
        return jax.nn.log_softmax(only_available(self.rest(hidden), of_j))

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
        target_action: Int[Array, "*batch agents"],
        context_action: Int[Array, "*batch agents"],
        obs: Float[Array, "*batch agents obs"],
        available: Bool[Array, "*batch agents actions"] | None,
    ) -> Float[Array, "*batch pairs"]:
        """How probable j's action in `target_action` is, given i's in `context_action`."""
        i, j = self.pairs
        context = jax.nn.one_hot(context_action[..., i], self.spec.action_size)[..., None, :]
        return pick(self(context, obs, available)[..., 0, :], target_action[..., j])
