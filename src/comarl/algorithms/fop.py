"""FOP: factorising the optimal joint policy of maximum-entropy MARL
(Zhang, Li, Wang, Xie, Lu, ICML 2021).

Soft actor-critic for a team, with QPLEX's duelling decomposition, but of soft values; the best
soft joint policy is then the product of the agents' own, pi_i ~ exp(Q_i / alpha), so that each
agent maximises its own utility, unmixed.

    V_i    = alpha log sum_u exp(Q_i(o_i, u) / alpha)                   soft value of an agent
    Q_tot  = V(s) + sum_i Q_i + sum_i (lambda_i(s, u) - 1) (Q_i - V_i)
    lambda_i(s, u) > 0                                              `comarl.nn.duplex.Importance`
    L_act  = mean over steps and agents of
             sum_u pi_i(u) (alpha log pi_i(u) - min_k Q_i^k(o_i, u))
    V_t    = min_k Q_tot^k'(s_t, u_t) - alpha mean_i log pi_i(u_i,t)
    y_t    = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})
    L_crit = mean over steps (Q_tot^k(s_t, u_t) - y_t)^2, for each of the two critics k
    alpha  = 0.5 to 0.05, linearly over environment steps

The last bracket of Q_tot passes no gradient; u_t in V_t is drawn from the policies as they are now.
These are the equations that the authors' code computes, under the paper's names. As mean_i says,
the temperature of the joint policy is alpha / N. Utilities see an agent's observation and number,
neither the state nor the past.

The defaults are those of the authors' code. Differences from it:
1. The entropy is part of the value in which a return ends: discounted, and 0 after a termination.
   Theirs adds that of the next step to the finished return of every step: `entropy_in_return` off.
2. Soft values are over available actions; theirs are over all: `value_of_unavailable`.
3. The learner's policies are the actor's; theirs have the current epsilon mixed in:
   `epsilon_in_policy`.
4. A policy gives nothing to an unavailable action before it is normalised; theirs after that.
5. Random actions have the chance epsilon; theirs are mixed in twice.
6. An episode that was truncated ends in its own value wherever it ends within a batch; theirs
   relies on the longest.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.duplex import Importance, dueling
from comarl.nn.mlp import MLP
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.distributions import draw_steps
from comarl.ops.exploration import Epsilon, epsilon_softmax, greedy, linear, only_available, pick
from comarl.ops.learner import Learner, Optimiser, RmsProp, Tracked
from comarl.ops.returns import episode_targets, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Keys, Metrics, Timestep
from comarl.validation import check_fields, check_range

Scalar = Float[Array, ""]
LogPolicies = Float[Array, "batch steps agents actions"]
Available = Bool[Array, "*batch agents actions"] | None
Bonus = Float[Array, "*batch agents actions"] | float  # on each action, beside Q_i


class SoftCritic(eqx.Module):
    """Every agent's utility, and what joins them. In a state its leaves lead with `critics`."""

    utility: MLP
    value: MLP
    importance: Importance

    def __init__(self, spec: EnvSpec, hidden: int, width: int, kernels: int, *, key: Key):
        utility_key, value_key, importance_key = jax.random.split(key, 3)
        relu = jax.nn.relu
        sizes = (spec.obs_size + spec.num_agents, hidden, hidden, spec.action_size)
        self.utility = MLP(sizes, activation=relu, key=utility_key)
        self.value = MLP((spec.state_size, width, 1), activation=relu, key=value_key)
        self.importance = Importance(spec, kernels, (), key=importance_key)

    def utilities(
        self, obs: Float[Array, "*batch agents obs"]
    ) -> Float[Array, "*batch agents actions"]:
        """Q_i(o_i, .), by one network that gets the agent's number."""
        identity = jnp.broadcast_to(jnp.eye(obs.shape[-2]), (*obs.shape[:-1], obs.shape[-2]))
        return self.utility(jnp.concatenate([obs, identity], axis=-1))

    def team(
        self,
        steps: Timestep,
        action: Int[Array, "*batch agents"],
        temperature: Scalar,
        available: Available,
        bonus: Bonus = 0.0,
    ) -> Float[Array, "*batch"]:
        """Q_tot of an action. Soft values are over what is available, of Q_i and a bonus."""
        q = self.utilities(steps.obs)
        soft = soft_value(q + bonus, temperature, available)
        joined = dueling(pick(q, action), soft, self.importance(steps.state, action))
        return joined + self.value(steps.state)[..., 0]


class State(eqx.Module):
    """What changes while FOP learns."""

    actor: Learner[RecurrentNet]  # pi_i, shared by agents
    critics: Tracked[SoftCritic]  # two; all leaves, the optimiser's too, lead with `critics`
    temperature: Scalar  # alpha at the last update, on which Q_tot depends


def soft_value(
    q: Float[Array, "*batch actions"],
    temperature: Scalar,
    available: Bool[Array, "*batch actions"] | None,
) -> Float[Array, "*batch"]:
    """alpha log sum_u exp(q(u) / alpha): what the best policy at this temperature is worth, its
    entropy included."""
    return temperature * jax.nn.logsumexp(only_available(q, available) / temperature, axis=-1)


def log_policies(
    logits: Float[Array, "*batch actions"],
    available: Bool[Array, "*batch actions"] | None,
    epsilon: Scalar | None,
) -> Float[Array, "*batch actions"]:
    """log pi_i(u); given epsilon, of the policies with that share of random actions mixed in."""
    log_pi = jax.nn.log_softmax(only_available(logits, available))
    if epsilon is None:
        return log_pi
    anything = jax.nn.log_softmax(only_available(jnp.zeros_like(logits), available))
    return jnp.logaddexp(jnp.log1p(-epsilon) + log_pi, jnp.log(epsilon) + anything)


def actor_loss(
    log_pi: Float[Array, "batch time agents actions"],
    q: Float[Array, "batch time agents actions"],
    temperature: Scalar,
    mask: Bool[Array, "batch time"],
) -> Scalar:
    """sum_u pi_i(u) (alpha log pi_i(u) - q_i(u)), the mean over steps and agents; exact, so that
    nothing is drawn."""
    of_agents = (jnp.exp(log_pi) * (temperature * log_pi - q)).sum(-1)
    return masked_mean(of_agents.mean(-1), mask)


def soft_targets(
    batch: Episode,
    next_value: Float[Array, "batch time"],
    bonus: Float[Array, "batch time"],
    gamma: float,
    td_lambda: float,
    *,
    in_return: bool,
) -> Float[Array, "batch time"]:
    """TD(lambda) targets, given what each step led to: its value, and a bonus such as the entropy
    there.

    The bonus is part of that value; with `in_return` off it is added to the return of every step,
    as it stands.
    """
    if in_return:
        return episode_targets(batch, next_value + bonus, gamma, td_lambda)
    return episode_targets(batch, next_value, gamma, td_lambda) + jax.lax.stop_gradient(bonus)


def now_and_later(steps: Timestep) -> tuple[Timestep, Timestep]:
    """Of a batch of episodes: what was seen before each step, and what it led to."""
    now = jax.tree.map(lambda x: x[:, :-1], steps)
    return now, jax.tree.map(lambda x: x[:, 1:], steps)


def least_utilities(
    critics: SoftCritic, obs: Float[Array, "*batch agents obs"]
) -> Float[Array, "*batch agents actions"]:
    """min_k Q_i^k(o_i, .)."""
    return jax.vmap(lambda critic: critic.utilities(obs))(critics).min(axis=0)


@dataclass(frozen=True)
class Fop:
    """Hyperparameters of FOP. The defaults are the authors'."""

    actions = frozenset({"discrete"})

    hidden: int = 64
    """units of the actor's recurrent layer and of the two hidden layers of the utilities"""
    mixer_width: int = 32
    """units of the hidden layer of V(s)"""
    kernels: int = 4
    """terms of the sum that makes lambda"""
    temperature: tuple[float, float] = (0.5, 0.05)
    """alpha, the weight of the entropy, at first and in the end"""
    temperature_steps: int = 90_000
    """environment steps from the first to the last alpha"""
    entropy_in_return: bool = True
    """entropy is part of the values in the return; off, that of the next step is added to every
    finished return"""
    value_of_unavailable: bool = False
    """soft values count actions that are not available, too"""
    epsilon_in_policy: bool = False
    """losses and targets take the policies with the share of random actions that explores"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.8
    """lambda of the TD(lambda) target; 0 looks one step ahead"""
    epsilon: Epsilon = Epsilon(1.0, 0.05, 50_000)
    """share of random actions while exploring, at first and in the end"""
    target_period: int = 200
    """updates between copies of the critics to their targets"""
    actor_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of the actor"""
    critic_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of each critic"""
    replay: EpisodeRing = EpisodeRing(5_000, 32)
    """episodes kept and drawn"""
    pace: EpisodePace = EpisodePace()
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "mixer_width", "kernels", "target_period")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "temperature_steps")
        if min(self.temperature) <= 0:
            raise ValueError(
                f"temperature={self.temperature} of Fop must be above 0: soft values divide by it"
            )

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        keys = jax.random.split(key, 3)
        return State(
            actor=Learner.create(self.make_actor(spec, keys[0]), self.actor_optimiser),
            critics=self.make_critics(spec, keys[1:]),
            temperature=jnp.float32(self.temperature[0]),
        )

    def make_actor(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """pi_i(tau_i) as logits."""
        return RecurrentNet(spec, self.hidden, key=key)

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> Memory:
        """Nothing was observed yet."""
        return Memory.empty(timestep.obs.shape[0], self.hidden)

    def act(
        self,
        state: State,
        team: Index,
        memory: Memory,
        timestep: Timestep,
        clock: Clock,
        key: Key,
        *,
        explore: bool,
    ) -> tuple[Memory, Int[Array, " agents"]]:
        """Drawn from the policies with a share of random actions while exploring, else greedy."""
        del team
        hidden, logits = state.actor.value.step(memory, timestep.obs)
        if explore:
            action = self.explore(logits, timestep.available, clock, key)
        else:
            action = greedy(logits, timestep.available)
        return Memory(hidden, action), action

    def explore(
        self,
        logits: Float[Array, "agents actions"],
        available: Bool[Array, "agents actions"] | None,
        clock: Clock,
        key: Key,
    ) -> Int[Array, " agents"]:
        """Drawn from the policies, with a share epsilon of random actions."""
        return epsilon_softmax(logits, available, self.epsilon.at(clock), key)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The actor, then the critics by the actor as it is now; targets are copied when due."""
        alpha, epsilon = self.schedules(clock)

        def log_pi_of(actor: RecurrentNet) -> LogPolicies:
            return log_policies(jax.vmap(actor.unroll)(batch), batch.timesteps.available, epsilon)

        # Actor: L_act, by the critics as they were.
        q = least_utilities(state.critics.value, batch.timesteps.obs[:, :-1])

        def loss(actor: RecurrentNet) -> Scalar:
            return actor_loss(log_pi_of(actor)[:, :-1], q, alpha, batch.mask)

        actor, policy_loss = state.actor.descend(loss)

        # A draw from the policies as they are now, at what each step led to.
        log_pi = log_pi_of(actor.value)
        next_action = draw_steps(log_pi, key)[:, 1:]
        entropy = -pick(log_pi[:, 1:], next_action).mean(axis=-1)

        # Critics: V_t, y_t and L_crit.
        critics, metrics = self.fit_critics(
            state.critics, batch, next_action, alpha * entropy, alpha
        )

        # Targets.
        critics = critics.copy_every(self.target_period, clock.updates)
        metrics |= {
            "actor_loss": policy_loss,
            "entropy": masked_mean(entropy, batch.mask),
            "temperature": alpha,
            "epsilon": self.epsilon.at(clock),
        }
        return State(actor, critics, alpha), metrics

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode."""
        del key
        now = jax.tree.map(lambda x: x[:-1], episode.timesteps)
        return self.least_team(state.critics.value, now, episode.action, state.temperature)

    # What the discrete VM3-AC does as FOP does.

    def make_critics(self, spec: EnvSpec, keys: Keys) -> Tracked[SoftCritic]:
        """One by each key."""
        make = lambda key: Tracked.create(self.make_critic(spec, key), self.critic_optimiser)
        return jax.vmap(make)(keys)

    def make_critic(self, spec: EnvSpec, key: Key) -> SoftCritic:
        """One of the two critics."""
        return SoftCritic(spec, self.hidden, self.mixer_width, self.kernels, key=key)

    def schedules(self, clock: Clock) -> tuple[Scalar, Scalar | None]:
        """alpha, and the epsilon that is in policies, if any."""
        alpha = linear(*self.temperature, self.temperature_steps, clock.env_steps)
        return alpha, self.epsilon.at(clock) if self.epsilon_in_policy else None

    def fit_critics(
        self,
        critics: Tracked[SoftCritic],
        batch: Episode,
        next_action: Int[Array, "batch time agents"],
        next_bonus: Float[Array, "batch time"],
        temperature: Scalar,
        action_bonuses: tuple[Bonus, Bonus] = (0.0, 0.0),
    ) -> tuple[Tracked[SoftCritic], Metrics]:
        """TD(lambda), for both critics the same.

        `next_action` is drawn from the policies for what each step led to, and `next_bonus` is what
        it is worth there beside Q_tot. `action_bonuses` are what soft values count beside Q_i: at
        each step, and at what it led to.
        """
        bonus, later_bonus = action_bonuses
        now, later = now_and_later(batch.timesteps)
        next_value = self.least_team(critics.target, later, next_action, temperature, later_bonus)
        target = soft_targets(
            batch,
            next_value,
            next_bonus,
            self.gamma,
            self.td_lambda,
            in_return=self.entropy_in_return,
        )

        def loss(critic: SoftCritic) -> tuple[Scalar, Float[Array, "batch time"]]:
            q = critic.team(now, batch.action, temperature, self.counted(now), bonus)
            return masked_mean(jnp.square(q - target), batch.mask), q

        # Each critic has an optimiser of its own, which clips its gradient by its own norm.
        fit = lambda critic: critic.descend(loss, has_aux=True)
        critics, (losses, q) = jax.vmap(fit)(critics)
        metrics = {"critic_loss": losses.sum(), "td_loss": losses.sum()}
        return critics, metrics | td_metrics(q[0], target, batch.mask)

    def counted(self, steps: Timestep) -> Available:
        """The actions that soft values are over; None for all."""
        return None if self.value_of_unavailable else steps.available

    def least_team(
        self,
        critics: SoftCritic,
        steps: Timestep,
        action: Int[Array, "*batch agents"],
        temperature: Scalar,
        bonus: Bonus = 0.0,
    ) -> Float[Array, "*batch"]:
        """Q_tot by the critic that values it least."""
        counted = self.counted(steps)
        team = lambda critic: critic.team(steps, action, temperature, counted, bonus)
        return jax.vmap(team)(critics).min(axis=0)
