"""Networks that predict agents' actions from each other's, and the bound of mutual information that
is made of them: the variational distributions of VM3-AC (Kim et al., AAMAS 2023).

A Gaussian q_ij(a_j | a_i, o_i, o_j) for each ordered pair of agents; sg is "as a number".

    M_i = 1/N sum_{j != i} [sg log q(a_i | a_j, o_i, o_j) + log q_ij(sg a_j | a_i, o_i, o_j)]
                           (a)                              (b)                          (Eq. 21)

Agents, or pairs of them, lead.
"""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from comarl.nn.stochastic import Stack, with_identity
from comarl.ops.learner import Adam
from comarl.types import EnvSpec, Key
from comarl.validation import check_fields

LOG_VARIANCE = (-10.0, 2.0)  # bounds of a learnt variance
LOG_2_PI = float(np.log(2.0 * np.pi))
Sharing = Literal["pair", "agent", "all"]
"""a network for each ordered pair, for each i, or one"""


def ordered_pairs(agents: int) -> Int[np.ndarray, "2 pairs"]:
    """i and j of each ordered pair of agents: (0, 1), (0, 2) .. (1, 0), (1, 2) ..

    >>> ordered_pairs(3).tolist()
    [[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]
    """
    return np.array(np.nonzero(~np.eye(agents, dtype=bool)))


class Predictors(eqx.Module):
    """q_ij(a_j | a_i, o_i, o_j) for all pairs, in the order of `ordered_pairs`.

    a_i is the context, a_j the target of a prediction.
    """

    networks: Stack  # for each pair, for each i, or one
    spec: EnvSpec = eqx.field(static=True)
    variance: float | None = eqx.field(static=True)  # None: learnt
    constant: bool = eqx.field(static=True)  # whether log q has its constant
    identities: int = eqx.field(static=True)  # whose numbers are inputs: 0, j, or i and j

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
        self.spec = spec
        self.variance = variance
        self.constant = constant
        self.identities = identities

    @property
    def pairs(self) -> Int[np.ndarray, "2 pairs"]:
        """i and j of each pair."""
        return ordered_pairs(self.spec.num_agents)

    @property
    def reverse(self) -> Int[np.ndarray, " pairs"]:
        """Where the pair (j, i) stands, for each pair (i, j)."""
        i, j = self.pairs
        number = np.zeros((self.spec.num_agents,) * 2, int)
        number[i, j] = np.arange(len(i))
        return number[j, i]

    def targets(self, exchanged: bool) -> Int[np.ndarray, " pairs"]:
        """Whose action is predicted, for each pair: j's, or i's where they are exchanged."""
        return self.pairs[0 if exchanged else 1]

    def mask(self, exchanged: bool) -> Float[np.ndarray, "pairs 1 action"]:
        """The real entries of the actions that are predicted."""
        return self.spec.action_mask[self.targets(exchanged), None]

    def __call__(
        self,
        context_action: Float[Array, "agents batch action"],
        obs: Float[Array, "agents batch obs"],
        exchanged: bool = False,
    ) -> tuple[Float[Array, "pairs batch action"], Float[Array, "pairs batch action"] | None]:
        """The mean of a_j given a_i for each pair, and the log variance, if it is learnt.

        `exchanged` puts j in the place of i: the network is asked for the direction that it does
        not learn.
        """
        i, j = self.pairs[::-1] if exchanged else self.pairs
        x = jnp.concatenate([context_action[i], obs[i], obs[j]], axis=-1)
        if self.identities:
            named = np.eye(self.spec.num_agents)[self.pairs[-self.identities :]]  # j, or i and j
            x = with_identity(x, np.concatenate(list(named), axis=-1))
        outputs = self.networks(x)
        if self.variance is not None:
            return jnp.tanh(outputs), None
        mean, raw = jnp.split(outputs, 2, axis=-1)
        low, high = LOG_VARIANCE
        return jnp.tanh(mean), low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)

    def log_q(
        self,
        target_action: Float[Array, "agents batch action"],
        context_action: Float[Array, "agents batch action"],
        obs: Float[Array, "agents batch obs"],
        exchanged: bool = False,
    ) -> Float[Array, "pairs batch"]:
        """log q_ij(a_j | a_i, o_i, o_j): a_j of `target_action`, a_i of `context_action`."""
        mean, log_variance = self(context_action, obs, exchanged)
        square = jnp.square(target_action[self.targets(exchanged)] - mean)
        if log_variance is not None:
            entry = square * jnp.exp(-log_variance) + log_variance
            entry = entry + (LOG_2_PI if self.constant else 0.0)
        else:
            assert self.variance is not None
            entry = square / self.variance + (LOG_2_PI if self.constant else 0.0)
            entry = entry + (float(np.log(self.variance)) if self.constant else 0.0)
        return -0.5 * (entry * self.mask(exchanged)).sum(axis=-1)

    def error(
        self,
        target_action: Float[Array, "agents batch action"],
        context_action: Float[Array, "agents batch action"],
        obs: Float[Array, "agents batch obs"],
    ) -> Float[Array, ""]:
        """The mean squared error of an entry of a predicted action."""
        mean, _ = self(context_action, obs)
        mask = self.mask(False)
        square = jnp.square(target_action[self.targets(False)] - mean)
        return (square * mask).sum() / (mask.sum() * square.shape[1])


@dataclass(frozen=True)
class ActionInformation:
    """M_i, the bound of the mutual information between an agent's action and the others' (Eq. 21),
    and the networks q that it needs."""

    gradient_terms: Literal["b", "a", "both", "none"] = "b"
    """terms of M_i that policies maximise: (b), as the paper, whose (a) counts in V alone; q learns
    by (b) in any case"""
    swapped_by: Literal["partner", "self"] = "partner"
    """whose network evaluates (a), log q(a_i | a_j): j's, which learns it, or i's own with i and j
    exchanged"""
    norm: Literal["N", "N-1"] = "N"
    """divisor of M_i: the paper's, or the number of partners, which its bound (Eq. 8) leads to"""
    constant: bool = False
    """keep the constant of log q, though a constant reward for each step changes what is best where
    tasks terminate"""
    sharing: Sharing = "pair"
    """a network q for each ordered pair, for each i, or one for all pairs"""
    variance: float | None = 1.0
    """sigma^2 of q; None learns it from what q sees"""
    optimiser: Adam = Adam(3e-4, max_grad_norm=0.0)
    """optimiser of q"""

    def __post_init__(self):
        check_fields(self)
        if self.variance is not None and self.variance <= 0:
            owner = type(self).__name__
            raise ValueError(f"variance={self.variance} of {owner} must be above 0, or None")

    def make_predictors(self, spec: EnvSpec, hidden: tuple[int, ...], key: Key) -> Predictors:
        """The networks q."""
        return Predictors(spec, hidden, self.sharing, self.variance, self.constant, key=key)

    def maximised(self, term: Literal["a", "b"]) -> bool:
        """Whether policies get a gradient from this term."""
        return self.gradient_terms in (term, "both")

    def bound(
        self,
        predictors: Predictors,
        obs: Float[Array, "agents batch obs"],
        action: Float[Array, "agents batch action"],
    ) -> Float[Array, "agents batch"]:
        """M_i. Gradients reach a_i by the terms that are maximised, and q by (b) alone."""
        term_b = self.term_b(predictors, obs, action)
        term_a = self.term_a(predictors, obs, action, term_b)
        agents = action.shape[0]
        divisor = agents if self.norm == "N" else agents - 1
        return (term_a + term_b).reshape(agents, agents - 1, -1).sum(axis=1) / divisor

    def term_b(
        self,
        predictors: Predictors,
        obs: Float[Array, "agents batch obs"],
        action: Float[Array, "agents batch action"],
    ) -> Float[Array, "pairs batch"]:
        """(b): log q_ij(sg a_j | a_i, o_i, o_j), how well one's action predicts another's."""
        number = jax.lax.stop_gradient(action)
        return predictors.log_q(number, action if self.maximised("b") else number, obs)

    def term_a(
        self,
        predictors: Predictors,
        obs: Float[Array, "agents batch obs"],
        action: Float[Array, "agents batch action"],
        term_b: Float[Array, "pairs batch"],
    ) -> Float[Array, "pairs batch"]:
        """(a): log q(a_i | sg a_j, o_i, o_j), how well one's action is predicted by another's."""
        if self.swapped_by == "partner" and not self.maximised("a"):
            # As a number it is (b) of the pair (j, i), which is computed already.
            return jax.lax.stop_gradient(term_b)[predictors.reverse]
        fixed = jax.lax.stop_gradient(predictors)
        number = jax.lax.stop_gradient(action)
        target = action if self.maximised("a") else number
        if self.swapped_by == "self":
            return fixed.log_q(target, number, obs, exchanged=True)
        return fixed.log_q(target, number, obs)[predictors.reverse]
