"""Networks that predict agents' actions from each other's: the variational distributions of VM3-AC
(Kim et al., 2023).

A Gaussian q_ij(a_j | a_i, o_i, o_j) for each ordered pair of agents. Agents, or pairs of them,
lead.
"""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from comarl.nn.stochastic import Stack, with_identity
from comarl.types import EnvSpec, Key

LOG_VARIANCE = (-10.0, 2.0)  # bounds of a learnt variance
Sharing = Literal["pair", "agent", "all"]
"""a network for each ordered pair, for each i, or one"""


def ordered_pairs(agents: int) -> Int[np.ndarray, "2 pairs"]:
    """i and j of each ordered pair of agents: (0, 1), (0, 2) .. (1, 0), (1, 2) .."""
    return np.array(np.nonzero(~np.eye(agents, dtype=bool)))


class Predictors(eqx.Module):
    """q_ij(a_j | a_i, o_i, o_j) for all pairs: (0, 1), (0, 2) .. (1, 0), (1, 2) .."""

    networks: Stack  # for each pair, for each i, or one
    spec: EnvSpec = eqx.field(static=True)
    variance: float | None = eqx.field(static=True)  # None: learnt
    constant: bool = eqx.field(static=True)
    identities: int = eqx.field(
        static=True
    )  # of how many of i and j a network is told who they are

    def __init__(
        self,
        spec: EnvSpec,
        hidden: tuple[int, ...],
        sharing: Sharing,
        variance: float | None,
        constant: bool,
        *,
        key: Key,
    ):
        agents = spec.num_agents
        stack, identities = {
            "pair": (agents * (agents - 1), 0),
            "agent": (agents, 1),
            "all": (1, 2),
        }[sharing]
        inputs = spec.action_size + 2 * spec.obs_size + identities * agents
        outputs = spec.action_size * (2 if variance is None else 1)
        self.networks = Stack(stack, (inputs, *hidden, outputs), key=key)
        self.spec, self.variance, self.constant, self.identities = (
            spec,
            variance,
            constant,
            identities,
        )

    @property
    def pairs(self) -> np.ndarray:
        """i and j of each pair."""
        return ordered_pairs(self.spec.num_agents)

    @property
    def reverse(self) -> np.ndarray:
        """Where the pair (j, i) stands, for each pair (i, j)."""
        i, j = self.pairs
        number = np.zeros((self.spec.num_agents,) * 2, int)
        number[i, j] = np.arange(len(i))
        return number[j, i]

    def mask(self, exchanged: bool) -> Float[np.ndarray, "pairs 1 action"]:
        """The real entries of the actions that are predicted."""
        return self.spec.action_mask[self.pairs[0 if exchanged else 1], None]

    def __call__(
        self,
        given: Float[Array, "agents batch action"],
        obs: Float[Array, "agents batch obs"],
        exchanged: bool = False,
    ) -> tuple[Float[Array, "pairs batch action"], Float[Array, "pairs batch action"] | None]:
        """What each network expects its j to do given what its i does, and the log variance, if it
        is learnt.

        `exchanged` puts j in the place of i: the network is asked for the direction that it does
        not learn.
        """
        i, j = self.pairs[::-1] if exchanged else self.pairs
        x = jnp.concatenate([given[i], obs[i], obs[j]], axis=-1)
        if self.identities:
            who = np.eye(self.spec.num_agents)[self.pairs[-self.identities :]]  # j, or i and j
            x = with_identity(x, np.concatenate(list(who), axis=-1))
        outputs = self.networks(x)
        if self.variance is not None:
            return jnp.tanh(outputs), None
        mean, raw = jnp.split(outputs, 2, axis=-1)
        low, high = LOG_VARIANCE
        return jnp.tanh(mean), low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)

    def log_q(
        self,
        said: Float[Array, "agents batch action"],
        given: Float[Array, "agents batch action"],
        obs: Float[Array, "agents batch obs"],
        exchanged: bool = False,
    ) -> Float[Array, "pairs batch"]:
        """How probable j's action `said` is, given i's."""
        mean, log_variance = self(given, obs, exchanged)
        square = jnp.square(said[self.pairs[0 if exchanged else 1]] - mean)
        constant = float(np.log(2.0 * np.pi)) if self.constant else 0.0
        if log_variance is None:
            assert self.variance is not None
            entry = (
                square / self.variance
                + constant
                + (float(np.log(self.variance)) if self.constant else 0.0)
            )
        else:
            entry = square * jnp.exp(-log_variance) + log_variance + constant
        return -0.5 * (entry * self.mask(exchanged)).sum(axis=-1)

    def error(
        self,
        said: Float[Array, "agents batch action"],
        given: Float[Array, "agents batch action"],
        obs: Float[Array, "agents batch obs"],
    ) -> Float[Array, ""]:
        """Mean squared error of an entry of a predicted action."""
        square = jnp.square(said[self.pairs[1]] - self(given, obs)[0])
        return (square * self.mask(False)).sum() / (self.mask(False).sum() * square.shape[1])
