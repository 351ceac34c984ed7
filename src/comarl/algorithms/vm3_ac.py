"""VM3-AC: variational maximisation of the mutual information between agents' actions
(Kim et al., AAMAS 2023).

A soft actor-critic for each agent. A random vector z, new at every step and the same for all
agents, enters the policies, so that actions of one moment can be correlated; beside the return they
are rewarded for a lower bound of their mutual information: the entropy of one's own action, and how
well actions predict each other. x is what training knows, a all agents' actions, drawn anew from
the policies as they are; sg is "as a number".

    a_i     = tanh(g_i),  g_i ~ N(mean_i(o_i, z), std_i(o_i, z)^2),  z ~ N(0, I)           (Eq. 5)
    M_i     = 1/N sum_{j != i}  sg log q(a_i | a_j, o_i, o_j)                         (a) (Eq. 21)
                              + log q_ij(sg a_j | a_i, o_i, o_j)                      (b)
    V^_i    = sg [min_k Q_ik(x, a) - beta log pi_i(a_i | o_i, z) + beta M_i]              (Eq. 17)
    L_V     = sum_i mean (V_i(x) - V^_i)^2 / 2                                            (Eq. 16)
    Q^_i    = r + gamma (1 - terminated) V'_i(x')                                         (Eq. 19)
    L_Q     = sum_ik mean (Q_ik(x, u) - Q^_i)^2 / 2,  u the actions in the replay         (Eq. 18)
    L_pi,q  = sum_i mean [-Q_i1(x, a_i, sg a_others)
                          + beta log pi_i(a_i | o_i, z) - beta M_i]                       (Eq. 20)
    V'      <- tau V + (1 - tau) V'

q_ij is N(mu_ij(a_i, o_i, o_j), sigma^2 I), so log q is a squared error up to a constant. Execution
is decentralised: z is 0 there, and actions are tanh(mean).

Without beta and z it is what the paper calls MA-AC (preset `ma-ac`), without M_i and z MA-SAC
(`ma-sac`). There is no released code. What the paper leaves open is a field; the defaults:
1. (a) is evaluated by the partner's network q_ji, which learns that direction; Eq. 21 could also
   mean q_ij itself.
2. The constant of log q is dropped: with it each step costs a constant, which where tasks terminate
   pays for ending.
3. All losses are taken at the parameters before the step, with one draw of z and actions, as SAC of
   2018 has it.
4. Updates come after an episode, one for four of its steps.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from comarl.nn.predictors import ActionInformation, Predictors
from comarl.nn.stochastic import Drawn, Noise, Policies
from comarl.nn.values import (
    AgentValues,
    CriticInputs,
    Form,
    Known,
    actions_by_agent,
    critic_at,
    each_critic,
    make_values,
    obs_mask,
    observe,
)
from comarl.ops.information import squared_correlation
from comarl.ops.learner import Adam, Learner, Tracked, descend_jointly
from comarl.ops.returns import one_step_targets, td_metrics
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_interval, check_layers, check_range

PROBED = 4  # transitions of a batch that diagnostics look at
PROBE_DRAWS = 8  # how often they draw z and actions for each


class State(eqx.Module):
    """What changes while VM3-AC learns. Leaves lead with `agents`, or pairs of them; those of Q
    with `critics`."""

    policies: Learner[Policies]  # pi
    predictors: Learner[Predictors] | None  # q, where mutual information counts
    critic: Learner[AgentValues] | Tracked[AgentValues]  # Q; with Q' where there is no V
    value: Tracked[AgentValues] | None  # V and V'; None where targets are made of Q'


class Outcome(NamedTuple):
    """What policies do at one end of transitions, and what that is worth."""

    drawn: Drawn
    information: Float[Array, "agents batch"]  # M_i
    policy_q: Float[Array, "agents batch"]  # Q that policies maximise, by each one's own action
    soft_value: Float[Array, "agents batch"]  # V^_i


@dataclass(frozen=True)
class Vm3Ac:
    """Hyperparameters of VM3-AC. Those that the paper's text does not give are settings of its
    first author, or SAC."""

    actions = frozenset({"continuous"})

    beta: float = 0.1
    """weight of entropy and mutual information (Fig. 5c, d); 0 leaves neither, and no predictor
    learns"""
    mutual_information: bool = True
    """whether actions are rewarded for predicting each other (Fig. 5a, b); else for their entropy
    alone"""
    information: ActionInformation = ActionInformation()
    """how that is measured: the bound M_i and its predictors q"""
    latent_size: int = 8
    """length of z; 0 is the ablation without it (Fig. 5a, b)"""
    execution_latent: Literal["zero", "shared"] = "zero"
    """z of greedy play (Table 1): 0, or N(0, I) from a seed that all agents share, which is the key
    of the step"""
    entropy: Literal["conditional", "marginal"] = "conditional"
    """log-probability of an action given z, as the paper, or averaged over z, as its derivation:
    Eq. 7"""
    marginal_draws: int = 16
    """further draws of z for a marginal log-probability"""
    value: Literal["v", "target-q"] = "v"
    """what follows a step: V', as the paper, or the smaller of two Q' at actions drawn anew, as
    later SAC"""
    actor_q: Literal["first", "minimum"] = "first"
    """the Q that policies maximise: the first, as the paper, or the smaller of two, as later SAC"""
    share_parameters: bool = False
    """one policy, V and two Q for all agents, with the agent's number as an input; the paper has
    these for each agent"""
    critic_sees: Known = "obs"
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
        check_interval(self, "log_std_range")
        if self.critic == "mlp":
            return
        check_layers(self, "hidden")
        if self.critic_sees == "state":
            raise ValueError(
                f"critic_sees='state' of Vm3Ac: a critic {self.critic!r} sees what each agent "
                "sees: 'obs'"
            )
        if self.critic == "attention" and self.hidden[0] % self.attention_heads:
            raise ValueError(
                f"attention_heads={self.attention_heads} of Vm3Ac must divide hidden[0], "
                f"{self.hidden[0]}"
            )

    # The state, and the parts that it is made of.

    def init(self, spec: EnvSpec, key: Key) -> State:
        """The state before training; targets begin as what they follow."""
        policy_key, value_key, critic_key, predictor_key = jax.random.split(key, 4)
        policies = self.make_policies(spec, policy_key)
        critic = self.make_critic(spec, critic_key)
        predictors = value = None
        if self.mutual_information and self.beta > 0 and spec.num_agents > 1:
            predictors = self.information.make_predictors(spec, self.hidden, predictor_key)
            predictors = Learner.create(predictors, self.information.optimiser)
        if self.value == "v":
            value = Tracked.create(self.make_value(spec, value_key), self.critic_optimiser)
        kind = Tracked if value is None else Learner
        return State(
            policies=Learner.create(policies, self.actor_optimiser),
            predictors=predictors,
            critic=kind.create(critic, self.critic_optimiser),
            value=value,
        )

    def make_policies(self, spec: EnvSpec, key: Key) -> Policies:
        """pi of all agents."""
        share = self.share_parameters
        return Policies(
            spec, self.hidden, self.latent_size, self.log_std_range, share=share, key=key
        )

    def make_value(self, spec: EnvSpec, key: Key) -> AgentValues:
        """V of all agents."""
        return self.make_values(spec, acts=False, key=key)

    def make_critic(self, spec: EnvSpec, key: Key) -> AgentValues:
        """Two Q of all agents, whose leaves lead with `critics`."""
        make = lambda k: self.make_values(spec, acts=True, key=k)
        return jax.vmap(make)(jax.random.split(key, 2))

    def make_values(self, spec: EnvSpec, *, acts: bool, key: Key) -> AgentValues:
        """One Q if `acts`, else V, in the form that `critic` names."""
        return make_values(
            self.critic,
            spec,
            self.hidden,
            known=self.critic_sees,
            acts=acts,
            heads=self.attention_heads,
            share=self.share_parameters,
            key=key,
        )

    # Acting.

    def initial_memory(self, state: PyTree, timestep: Timestep, key: Key) -> tuple[()]:
        """Nothing: z is new at every step."""
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
        same z (Eq. 5)."""
        del team, clock
        policies = state.policies.value
        z_key, normal_key = jax.random.split(key)
        obs = jnp.where(obs_mask(policies.spec), timestep.obs, 0.0)
        z = jnp.zeros((1, self.latent_size))
        if explore or self.execution_latent == "shared":
            z = jax.random.normal(z_key, z.shape)
        u, log_std = policies(obs[:, None], z)
        if explore:
            u = self.explore(u, log_std, normal_key)
        return memory, policies.squash(u)[:, 0]

    def explore(
        self,
        mean: Float[Array, "agents batch action"],
        log_std: Float[Array, "agents batch action"],
        key: Key,
    ) -> Float[Array, "agents batch action"]:
        """Actions before tanh, drawn from the policies' Gaussians."""
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    def observe(self, timestep: Timestep, spec: EnvSpec) -> CriticInputs:
        """One end of transitions as inputs of all networks."""
        return observe(timestep, spec, self.critic_sees)

    def noise(self, spec: EnvSpec, inputs: CriticInputs, key: Key) -> Noise:
        """New z for each transition, the same for all agents, and noise of each agent's own."""
        z_key, normal_key, marginal_key = jax.random.split(key, 3)
        agents, batch, _ = inputs.obs.shape
        draws = self.marginal_draws if self.entropy == "marginal" and self.latent_size else 0
        return Noise(
            z=jax.random.normal(z_key, (batch, self.latent_size)),
            normal=jax.random.normal(normal_key, (agents, batch, spec.action_size)),
            marginal_z=jax.random.normal(marginal_key, (draws, batch, self.latent_size)),
        )

    # Learning.

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """One step of everything, by losses at what was before; then the target moves.

        Rewards may be the team's or each agent's own.
        """
        del clock
        spec = state.policies.value.spec
        policy_key, next_key, probe_key = jax.random.split(key, 3)
        now = self.observe(batch.now, spec)
        after = self.observe(batch.next, spec)

        # Policies and predictors: Eq. 20 and 21.
        noise = self.noise(spec, now, policy_key)
        policies, predictors, outcome, metrics = self.fit_policies(state, now, noise)
        # V: Eq. 16 and 17.
        value = None
        if state.value is not None:
            value, metrics["value_loss"] = self.fit_value(state.value, now, outcome.soft_value)
        # Q: Eq. 18 and 19.
        next_value = self.next_value(state, after, next_key)
        target = one_step_targets(batch.reward.T, batch.terminated, next_value, self.gamma)
        played = actions_by_agent(batch.action, spec)
        critic, critic_metrics = self.fit_critic(state.critic, now, played, target)
        # The target: V', or Q'.
        if value is not None:
            value = value.polyak(self.tau)
        if isinstance(critic, Tracked):
            critic = critic.polyak(self.tau)

        metrics |= critic_metrics | self.diagnose(state, now, probe_key)
        return State(policies, predictors, critic, value), metrics

    def fit_policies(
        self, state: State, inputs: CriticInputs, noise: Noise
    ) -> tuple[Learner[Policies], Learner[Predictors] | None, Outcome, Metrics]:
        """One step of pi and q down the sum of the agents' losses (Eq. 20)."""
        critic = state.critic.value

        def loss(
            policies: Policies, predictors: Predictors | None = None
        ) -> tuple[Float[Array, ""], Outcome]:
            losses, outcome = self.policy_losses(policies, predictors, critic, inputs, noise)
            return losses.sum(), outcome

        metrics: Metrics = {}
        if state.predictors is None:
            predictors = None
            policies, (actor_loss, outcome) = state.policies.descend(loss, has_aux=True)
        else:
            (policies, predictors), (actor_loss, outcome) = descend_jointly(
                (state.policies, state.predictors), lambda values: loss(*values)
            )
            metrics["mutual_information"] = outcome.information.mean()
        metrics["actor_loss"] = actor_loss
        metrics["entropy"] = -outcome.drawn.log_pi.mean()
        return policies, predictors, outcome, metrics

    def policy_losses(
        self,
        policies: Policies,
        predictors: Predictors | None,
        critic: AgentValues,
        inputs: CriticInputs,
        noise: Noise,
    ) -> tuple[Float[Array, " agents"], Outcome]:
        """Each agent's own L_pi,q (Eq. 20), and the draw that it is taken at."""
        outcome = self.outcome(policies, predictors, critic, inputs, noise)
        worth = self.soft(outcome.policy_q, outcome.drawn, outcome.information)
        return -worth.mean(axis=-1), outcome

    def outcome(
        self,
        policies: Policies,
        predictors: Predictors | None,
        critic: AgentValues,
        inputs: CriticInputs,
        noise: Noise,
    ) -> Outcome:
        """Draws actions and values them, with gradients to each agent's own policy and to q
        alone."""
        drawn = policies.draw(inputs.obs, noise)
        information = jnp.zeros_like(drawn.log_pi)
        if predictors is not None:
            information = self.information.bound(predictors, inputs.obs, drawn.action)
        policy_q, minimum = self.q_of_own_actions(critic, inputs, drawn.action)
        soft_value = self.soft(minimum, drawn, information)  # Eq. 17
        return Outcome(drawn, information, policy_q, jax.lax.stop_gradient(soft_value))

    def q_of_own_actions(
        self, critic: AgentValues, inputs: CriticInputs, action: Float[Array, "agents batch action"]
    ) -> tuple[Float[Array, "agents batch"], Float[Array, "agents batch"]]:
        """The Q that policies maximise, by each agent's own action alone, and the smaller of the
        two."""
        others = jax.lax.stop_gradient(action)
        first = critic_at(critic, 0)(inputs, others, own=action)
        if self.actor_q == "minimum":
            minimum = jnp.minimum(first, critic_at(critic, 1)(inputs, others, own=action))
            return minimum, minimum
        return first, jnp.minimum(first, critic_at(critic, 1)(inputs, others))

    def soft(
        self,
        q: Float[Array, "agents batch"],
        drawn: Drawn,
        information: Float[Array, "agents batch"],
    ) -> Float[Array, "agents batch"]:
        """Q + beta (M_i - log pi_i): what Eq. 17 and 20 have in common."""
        return q + self.beta * (information - drawn.log_pi) if self.beta > 0 else q

    def fit_value(
        self,
        value: Tracked[AgentValues],
        inputs: CriticInputs,
        soft_value: Float[Array, "agents batch"],
    ) -> tuple[Tracked[AgentValues], Float[Array, ""]]:
        """One step of V towards V^ (Eq. 16)."""
        return value.descend(lambda v: 0.5 * jnp.square(v(inputs) - soft_value).mean(axis=-1).sum())

    def next_value(
        self, state: State, inputs: CriticInputs, key: Key
    ) -> Float[Array, "agents batch"]:
        """What follows a step: V'(x'), or V^ by two Q' at actions drawn anew."""
        if state.value is not None:
            return state.value.target(inputs)
        assert isinstance(state.critic, Tracked)
        policies = state.policies.value
        predictors = state.predictors and state.predictors.value
        noise = self.noise(policies.spec, inputs, key)
        return self.outcome(policies, predictors, state.critic.target, inputs, noise).soft_value

    def fit_critic(
        self,
        critic: Learner[AgentValues] | Tracked[AgentValues],
        inputs: CriticInputs,
        action: Float[Array, "agents batch action"],
        target: Float[Array, "agents batch"],
    ) -> tuple[Learner[AgentValues] | Tracked[AgentValues], Metrics]:
        """One step of both Q towards each agent's target (Eq. 18)."""

        def loss(
            critic: AgentValues,
        ) -> tuple[Float[Array, ""], Float[Array, "critics agents batch"]]:
            q = each_critic(critic, inputs, action)
            return 0.5 * jnp.square(q - target).mean(axis=-1).sum(), q

        critic, (critic_loss, q) = critic.descend(loss, has_aux=True)
        losses = {"critic_loss": critic_loss, "td_loss": critic_loss}
        return critic, losses | td_metrics(q[0], target)

    # Diagnostics.

    def diagnose(self, state: State, inputs: CriticInputs, key: Key) -> Metrics:
        """Whether z does anything, and whether actions predict each other: in a few transitions of
        the batch, each with several draws of z and of actions."""
        if not self.latent_size and state.predictors is None:
            return {}
        policies = state.policies.value
        obs = inputs.obs[:, :PROBED]
        agents, batch, _ = obs.shape
        z_key, normal_key = jax.random.split(key)
        z = jax.random.normal(z_key, (PROBE_DRAWS, batch, self.latent_size))
        mean, log_std = jax.vmap(lambda z: policies(obs, z))(z)
        u = mean + jnp.exp(log_std) * jax.random.normal(normal_key, mean.shape)
        greedy = jax.vmap(policies.squash)(mean)
        action = jax.vmap(policies.squash)(u)

        metrics: Metrics = {}
        if self.latent_size:
            distance = jnp.linalg.norm(greedy - jnp.roll(greedy, 1, axis=0), axis=-1)
            metrics["latent_sensitivity"] = distance.mean()
        if self.latent_size and agents > 1:
            mask = policies.spec.action_mask
            metrics["action_correlation"] = squared_correlation(action, mask)
        if state.predictors is not None:
            predictors = state.predictors.value

            def error(context: Float[Array, "draws agents batch action"]) -> Float[Array, ""]:
                return jax.vmap(lambda a, c: predictors.error(a, c, obs))(action, context).mean()

            metrics["prediction_error"] = error(action)
            metrics["prediction_error_unpaired"] = error(jnp.roll(action, 1, axis=0))
        return metrics


MA_AC = Vm3Ac(beta=0.0, latent_size=0, mutual_information=False)
"""the actor-critics that stay without latent, entropy and mutual information"""
