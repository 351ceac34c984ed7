"""VM3-AC: variational maximisation of the mutual information between agents' actions (Kim et al.,
AAMAS 2023).

A soft actor-critic per agent. A random vector z, new at every step and the same for all agents,
enters the policies, so that actions of one moment can be correlated; beside the return they are
rewarded for a lower bound of their mutual information: the entropy of one's own action, and how
well actions predict each other. x is what training knows, a all agents' actions, drawn anew from
the policies as they are; sg is "as a number".

    a_i     = tanh(g_i),  g_i ~ N(mean_i(o_i, z), std_i(o_i, z)^2),  z ~ N(0, I)                                   (5)
    M_i     = 1/N sum_{j != i} sg log q(a_i | a_j, o_i, o_j)  +  log q_ij(sg a_j | a_i, o_i, o_j)                 (21)
                               (a)                               (b)
    V^_i    = sg [min_k Q_ik(x, a) - beta log pi_i(a_i | o_i, z) + beta M_i]                                      (17)
    L_V     = sum_i mean (V_i(x) - V^_i)^2 / 2                                                                    (16)
    Q^_i    = r + gamma (1 - terminated) V'_i(x')                                                                 (19)
    L_Q     = sum_ik mean (Q_ik(x, u) - Q^_i)^2 / 2,  u the actions in the replay                                 (18)
    L_pi,q  = sum_i mean [-Q_i1(x, a_i, sg a_others) + beta log pi_i(a_i | o_i, z) - beta M_i]                    (20)
    V'      <- tau V + (1 - tau) V'

q_ij is N(mu_ij(a_i, o_i, o_j), sigma^2 I), so log q is a squared error up to a constant. At
execution z is 0, and actions are tanh(mean): each agent acts alone.

Without beta and z it is what the paper calls MA-AC (preset `ma-ac`), without M_i and z MA-SAC (`ma-sac`). There is no
released code. What the paper leaves open is a field; the defaults:
1. (a) is evaluated by the partner's network q_ji, which learns that direction; (21) could also mean q_ij itself.
2. The constant of log q is dropped: with it each step costs a constant, which where tasks terminate pays for ending.
3. All losses are taken at the parameters before the step, with one draw of z and actions, as SAC of 2018 has it.
4. Updates come after an episode, one for four of its steps.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from comarl.nn.predictors import Predictors, Sharing
from comarl.nn.stochastic import Drawn, Noise, Policies
from comarl.nn.values import (
    AgentValues,
    Form,
    Seen,
    each,
    make_values,
    obs_mask,
    see,
    see_actions,
    twin,
)
from comarl.ops.learner import Adam, Learner, polyak
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_interval, check_layers, check_range

PROBED, DRAWS = (
    4,
    8,
)  # transitions of a batch that diagnostics look at, and how often they draw z for each


class State(eqx.Module):
    """What changes while VM3-AC learns. Leaves lead with `agents`, or pairs of them; those of
    critics with `twins`."""

    policies: Learner[Policies]  # pi
    predictors: Learner[Predictors] | None  # q, where mutual information counts
    critic: Learner[AgentValues]  # Q
    value: Learner[AgentValues] | None  # V; None where the target is made of Q'
    target: AgentValues  # V', or Q'


class Outcome(NamedTuple):
    """What policies do at one end of transitions, and what that is worth."""

    drawn: Drawn
    information: Float[Array, "agents batch"]  # M_i
    climbed: Float[
        Array, "agents batch"
    ]  # the Q that the policies climb, as a function of each agent's own action
    soft_value: Float[Array, "agents batch"]  # V^_i


@dataclass(frozen=True)
class Vm3Ac:
    """Hyperparameters of VM3-AC. Those that the paper's text does not give are settings of its
    first author, or SAC."""

    actions: ClassVar = frozenset({"continuous"})

    beta: float = 0.1
    """weight of entropy and mutual information (Fig. 5c, d); 0 leaves neither, and no predictor
    learns"""
    mutual_information: bool = True
    """whether actions are rewarded for predicting each other (Fig. 5a, b); else for their entropy
    alone"""
    latent_size: int = 8
    """length of z; 0 is the ablation without it (Fig. 5a, b)"""
    execution_latent: Literal["zero", "shared"] = "zero"
    """z of greedy play (Table 1): 0, or N(0, I) from a seed that all agents share, which is the key
    of the step"""
    mi_norm: Literal["N", "N-1"] = "N"
    """divisor of M_i: the paper's, or the number of partners, which its bound (Eq. 8) leads to"""
    gaussian_constant: bool = False
    """keep the constant of log q, though a constant reward for each step changes what is best where
    tasks terminate"""
    swapped_by: Literal["partner", "self"] = "partner"
    """whose network evaluates (a), log q(a_i | a_j): j's, which learns it, or i's own with i and j
    exchanged"""
    mi_gradient_terms: Literal["b", "a", "both", "none"] = "b"
    """terms of M_i that policies climb: (b), as the paper, whose (a) counts in V alone; q learns by
    (b) in any case"""
    predictor_sharing: Sharing = "pair"
    """a network q for each ordered pair, for each i, or one for all pairs"""
    predictor_variance: float | None = 1.0
    """sigma^2 of q; None learns it from what q sees"""
    entropy: Literal["conditional", "marginal"] = "conditional"
    """log-probability of an action given z, as the paper, or averaged over z, as its derivation:
    Eq. 7"""
    marginal_draws: int = 16
    """further draws of z for a marginal log-probability"""
    value: Literal["v", "target-q"] = "v"
    """what follows a step: V', as the paper, or the smaller of two Q' at actions drawn anew, as
    later SAC"""
    actor_q: Literal["first", "minimum"] = "first"
    """the Q that policies climb: the first, as the paper, or the smaller of two, as later SAC"""
    share_parameters: bool = False
    """one policy, V and twin Q for all agents, which see whom they serve; the paper has one of each
    per agent"""
    critic_sees: Literal["obs", "state"] = "obs"
    """x, what V and Q see: all observations, or the task's state"""
    critic: Form = "mlp"
    """V and Q as a network of x for each agent, as the paper; as its first author's earlier code
    has it, with a first layer for one's own and one for the others' observations and actions; or
    with attention to the others, for many"""
    attention_heads: int = 4
    """heads of that attention, which share the units of the first hidden layer"""
    hidden: tuple[int, ...] = (128, 128)
    """units of the hidden layers of all networks (ReLU)"""
    log_std_range: tuple[float, float] = (-20.0, 2.0)
    """bounds of the policies' log standard deviations; they start half way"""
    gamma: float = 0.99
    """discount"""
    tau: float = 0.005
    """step of the target networks"""
    actor_optimiser: Adam = Adam(3e-4, max_grad_norm=0.0)
    """optimiser of the policies"""
    predictor_optimiser: Adam = Adam(3e-4, max_grad_norm=0.0)
    """optimiser of q"""
    critic_optimiser: Adam = Adam(3e-4, max_grad_norm=0.0)
    """optimiser of V, and of Q"""
    replay: Ring = Ring(500_000, 128)
    """transitions kept and drawn; z is not among what is kept"""
    pace: StepPace = StepPace(10_000, 0.25)
    """random steps before learning starts, and gradient steps for each step after"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "marginal_draws", "attention_heads")
        check_range(self, 0, 1, "gamma", "tau")
        check_range(self, 0, None, "beta", "latent_size")
        if self.predictor_variance is not None and self.predictor_variance <= 0:
            raise ValueError(
                f"predictor_variance={self.predictor_variance} of Vm3Ac must be above 0, or None"
            )
        check_interval(self, "log_std_range")
        if self.critic != "mlp":
            check_layers(self, "hidden")
        if self.critic != "mlp" and self.critic_sees == "state":
            raise ValueError(
                f"critic_sees='state' of Vm3Ac: a critic {self.critic!r} sees what each agent sees: 'obs'"
            )
        if self.critic == "attention" and self.hidden[0] % self.attention_heads:
            raise ValueError(
                f"attention_heads={self.attention_heads} of Vm3Ac must divide hidden[0], {self.hidden[0]}"
            )

    def init(self, spec: EnvSpec, key: Key) -> State:
        keys, share = jax.random.split(key, 4), self.share_parameters
        policies = Policies(
            spec, self.hidden, self.latent_size, self.log_std_range, share=share, key=keys[0]
        )
        form: dict[str, Any] = dict(known=self.critic_sees, heads=self.attention_heads, share=share)
        make = lambda k, acts: make_values(self.critic, spec, self.hidden, acts=acts, key=k, **form)
        value, critic = (
            make(keys[1], False),
            jax.vmap(lambda k: make(k, True))(jax.random.split(keys[2], 2)),
        )
        predictors, v = None, self.value == "v"
        if self.mutual_information and self.beta > 0 and spec.num_agents > 1:
            settings = (self.predictor_sharing, self.predictor_variance, self.gaussian_constant)
            predictors = Predictors(spec, self.hidden, *settings, key=keys[3])
        return State(
            policies=Learner.create(policies, self.actor_optimiser),
            predictors=None
            if predictors is None
            else Learner.create(predictors, self.predictor_optimiser),
            critic=Learner.create(critic, self.critic_optimiser),
            value=Learner.create(value, self.critic_optimiser) if v else None,
            target=value if v else critic,
        )

    def initial_memory(self, state: PyTree, timestep: Timestep, key: Key) -> tuple[()]:
        return ()

    def act(
        self,
        state: State,
        team: Index,
        memory: tuple[()],
        timestep: Timestep,
        clock: Clock,
        key: Key,
        *,
        explore: bool,
    ) -> tuple[tuple[()], Float[Array, "agents action"]]:
        """Drawn while exploring, else tanh of the mean. All agents have the same key, and so the
        same z."""
        del team, clock
        policies, (z_key, normal_key) = state.policies.value, jax.random.split(key)
        obs = jnp.where(obs_mask(policies.spec), timestep.obs, 0.0)[:, None]
        z = jnp.zeros((1, self.latent_size))
        if explore or self.execution_latent == "shared":
            z = jax.random.normal(z_key, z.shape)
        mean, log_std = policies(obs, z)
        u = mean + jnp.exp(log_std) * jax.random.normal(normal_key, mean.shape) if explore else mean
        return memory, policies.squash(u)[:, 0]

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """Policies and predictors, Q and V, all at what they were before; then the target moves.

        Rewards may be the team's or each agent's own.
        """
        del clock
        spec, keys = state.policies.value.spec, jax.random.split(key, 3)
        now, after = self.see(batch.now, spec), self.see(batch.next, spec)
        policies, predictors, outcome, metrics = self.fit_policies(
            state, now, self.noise(spec, now, keys[0])
        )
        if state.value is not None:
            soft_value, next_value = outcome.soft_value, state.target(after)
            v_loss = lambda v: 0.5 * jnp.square(v(now) - soft_value).mean(axis=-1).sum()
            value, value_loss = state.value.descend(v_loss)
            metrics |= {"value_loss": value_loss}
        else:
            learnt = (state.policies.value, state.predictors and state.predictors.value)
            value, noise = None, self.noise(spec, after, keys[1])
            next_value = self.outcome(learnt, state.target, after, noise).soft_value
        target = jax.lax.stop_gradient(
            batch.reward.T + self.gamma * jnp.where(batch.terminated, 0.0, next_value)
        )
        replayed = see_actions(batch.action, spec)
        q_loss = lambda q: 0.5 * jnp.square(each(q, now, replayed) - target).mean(axis=-1).sum()
        critic, critic_loss = state.critic.descend(q_loss)
        metrics |= {"critic_loss": critic_loss, "target_value": target.mean()} | self.diagnose(
            state, now, keys[2]
        )
        online = critic.value if value is None else value.value
        return State(
            policies, predictors, critic, value, polyak(state.target, online, self.tau)
        ), metrics

    def see(self, timestep: Timestep, spec: EnvSpec) -> Seen:
        return see(timestep, spec, self.critic_sees)

    def noise(self, spec: EnvSpec, seen: Seen, key: Key) -> Noise:
        """New z for each transition, the same for all agents, and noise of each agent's own."""
        z_key, normal_key, others_key = jax.random.split(key, 3)
        agents, batch, _ = seen.obs.shape
        draws = self.marginal_draws if self.entropy == "marginal" and self.latent_size else 0
        return Noise(
            jax.random.normal(z_key, (batch, self.latent_size)),
            jax.random.normal(normal_key, (agents, batch, spec.action_size)),
            jax.random.normal(others_key, (draws, batch, self.latent_size)),
        )

    def information(
        self, predictors: Predictors, seen: Seen, action: Float[Array, "agents batch action"]
    ) -> Array:
        """M_i `[agents batch]`. Gradients reach a_i by the climbed terms, and q by (b) alone (Eq.
        21)."""
        fixed, agents = jax.lax.stop_gradient(action), action.shape[0]
        climbs = lambda term: self.mi_gradient_terms in (term, "both")
        forward = predictors.log_q(fixed, action if climbs("b") else fixed, seen.obs)  # (b)
        if self.swapped_by == "partner" and not climbs("a"):
            backward = jax.lax.stop_gradient(forward)[predictors.reverse]
        else:
            by_others, said = jax.lax.stop_gradient(predictors), action if climbs("a") else fixed
            exchanged = self.swapped_by == "self"
            backward = by_others.log_q(said, fixed, seen.obs, exchanged)
            backward = backward if exchanged else backward[predictors.reverse]
        both = forward + backward
        divisor = agents if self.mi_norm == "N" else agents - 1
        return both.reshape(agents, agents - 1, -1).sum(axis=1) / divisor

    def outcome(
        self,
        learnt: tuple[Policies, Predictors | None],
        critic: AgentValues,
        seen: Seen,
        noise: Noise,
    ) -> Outcome:
        """Draws actions and values them, with gradients to each agent's own policy and to q
        alone."""
        policies, predictors = learnt
        drawn = policies.draw(seen.obs, noise)
        fixed = jax.lax.stop_gradient(drawn.action)
        first = twin(critic, 0)(seen, fixed, own=drawn.action)
        if self.actor_q == "minimum":
            climbed = lowest = jnp.minimum(first, twin(critic, 1)(seen, fixed, own=drawn.action))
        else:
            climbed, lowest = first, jnp.minimum(first, twin(critic, 1)(seen, fixed))
        information = (
            jnp.zeros_like(first)
            if predictors is None
            else self.information(predictors, seen, drawn.action)
        )
        soft_value = lowest + self.beta * (information - drawn.log_pi) if self.beta > 0 else lowest
        return Outcome(drawn, information, climbed, jax.lax.stop_gradient(soft_value))

    def losses(
        self,
        learnt: tuple[Policies, Predictors | None],
        critic: AgentValues,
        seen: Seen,
        noise: Noise,
    ) -> tuple[Float[Array, " agents"], Outcome]:
        """Each agent's own L_pi,q (Eq. 20)."""
        outcome = self.outcome(learnt, critic, seen, noise)
        worth = outcome.climbed
        if self.beta > 0:
            worth = worth + self.beta * (outcome.information - outcome.drawn.log_pi)
        return -worth.mean(axis=-1), outcome

    def fit_policies(
        self, state: State, seen: Seen, noise: Noise
    ) -> tuple[Learner[Policies], Learner[Predictors] | None, Outcome, Metrics]:
        """One step down the sum of the agents' losses."""

        def loss(learnt: tuple[Policies, Predictors | None]) -> tuple[Float[Array, ""], Outcome]:
            losses, outcome = self.losses(learnt, state.critic.value, seen, noise)
            return losses.sum(), outcome

        policies, predictors = state.policies, state.predictors
        learnt = (policies.value, predictors and predictors.value)
        (actor_loss, outcome), gradients = jax.value_and_grad(loss, has_aux=True)(learnt)
        metrics = {"actor_loss": actor_loss, "entropy": -outcome.drawn.log_pi.mean()}
        if predictors is not None:
            predictors = predictors.apply(gradients[1])
            metrics["predictability"] = outcome.information.mean()
        return policies.apply(gradients[0]), predictors, outcome, metrics

    def diagnose(self, state: State, seen: Seen, key: Key) -> Metrics:
        """Whether z does anything: in a few transitions of the batch, each with several draws of z
        and of actions."""
        if not self.latent_size and state.predictors is None:
            return {}
        policies, obs = state.policies.value, seen.obs[:, :PROBED]
        mask, (agents, batch, _) = policies.spec.action_mask, obs.shape
        z_key, normal_key = jax.random.split(key)
        mean, log_std = jax.vmap(lambda z: policies(obs, z))(
            jax.random.normal(z_key, (DRAWS, batch, self.latent_size))
        )
        u = mean + jnp.exp(log_std) * jax.random.normal(normal_key, mean.shape)
        greedy, action = jax.vmap(policies.squash)(mean), jax.vmap(policies.squash)(u)
        metrics: Metrics = {}
        if self.latent_size:
            moved = jnp.linalg.norm(greedy - jnp.roll(greedy, 1, axis=0), axis=-1)
            metrics["latent_sensitivity"] = moved.mean()
        if self.latent_size and agents > 1:
            metrics["action_correlation"] = squared_correlation(action, mask)
        if state.predictors is not None:
            error = jax.vmap(lambda said, given: state.predictors.value.error(said, given, obs))  # type: ignore[union-attr]
            metrics["prediction_error"] = error(action, action).mean()
            metrics["prediction_error_unpaired"] = error(action, jnp.roll(action, 1, axis=0)).mean()
        return metrics


def squared_correlation(
    action: Float[Array, "draws agents batch action"], mask: Float[np.ndarray, "agents action"]
) -> Float[Array, ""]:
    """Mean over real entries of two agents' actions of r^2 over the draws: 0 on average if
    independent, at most 1.

    The 1 / (draws - 1) that independent draws have by chance is taken off; what is left is a little
    low in between.
    """
    draws, agents = action.shape[:2]
    centred = action - action.mean(axis=0)
    scaled = centred / jnp.sqrt(jnp.square(centred).mean(axis=0) + 1e-12)
    r = jnp.einsum("dibx,djby->bijxy", scaled, scaled) / draws
    real = (
        mask[:, None, :, None]
        * mask[None, :, None, :]
        * ~np.eye(agents, dtype=bool)[..., None, None]
    )
    mean = (jnp.square(r) * real).sum() / (real.sum() * r.shape[0])
    return (mean * (draws - 1.0) - 1.0) / (draws - 2.0)


MA_AC = Vm3Ac(beta=0.0, latent_size=0, mutual_information=False)
"""the actor-critics that stay without latent, entropy and mutual information"""
