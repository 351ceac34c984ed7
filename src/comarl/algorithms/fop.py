"""FOP: factorising the optimal joint policy of maximum-entropy MARL (Zhang, Li, Wang, Xie, Lu, ICML 2021).

Soft actor-critic for a team. The joint value duels as QPLEX's does, but by soft values; the best soft joint policy is
then the product of the agents' own, pi_i ~ exp(Q_i / alpha), so that each agent climbs its own utility, unmixed.

    V_i    = alpha log sum_u exp(Q_i(o_i, u) / alpha)                                             soft value of an agent
    Q_tot  = V(s) + sum_i Q_i + sum_i (lambda_i(s, u) - 1) (Q_i - V_i)       the last bracket passes no gradient
    lambda_i(s, u) > 0                                                                   `comarl.nn.duplex.Importance`
    L_act  = mean over steps and agents of sum_u pi_i(u) (alpha log pi_i(u) - min_k Q_i^k(o_i, u))
    V_t    = min_k Q_tot^k'(s_t, u_t) - alpha mean_i log pi_i(u_i,t),  u_t drawn from the policies as they are now
    y_t    = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})
    L_crit = mean over steps (Q_tot^k(s_t, u_t) - y_t)^2, for each of the two critics k
    alpha  = 0.5 to 0.05, linearly over environment steps

These are the equations that the authors' code computes, under the paper's names. As mean_i says, the temperature of the
joint policy is alpha / N. Utilities see an agent's observation and number, neither the state nor the past.

The defaults are those of the authors' code. Differences from it:
1. The entropy is part of the value that the return goes on in: discounted, and 0 after a termination. Theirs adds
   that of the next step to the finished return of every step: `entropy_in_return` off.
2. Soft values are over available actions; theirs are over all: `value_of_unavailable`.
3. The learner's policies are the actor's; theirs have the current epsilon mixed in: `epsilon_in_policy`.
4. A policy gives nothing to an unavailable action before it is normalised; theirs after that.
5. Random actions have the chance epsilon; theirs are mixed in twice.
6. An episode that was cut by time ends in its own value wherever it ends within a batch; theirs relies on the longest.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.duplex import Importance, dueling
from comarl.nn.mlp import MLP
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.distributions import draw_steps
from comarl.ops.exploration import epsilon_softmax, explore_or_greedy, linear, only_available, pick
from comarl.ops.learner import Adam, Learner, Optimiser, RmsProp, copy_every
from comarl.ops.returns import episode_targets, masked_mean
from comarl.training.replay import EpisodeRing
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.usage import check_range

Scalar = Float[Array, ""]
LogPolicies = Float[Array, "batch steps agents actions"]
Available = Bool[Array, "*batch agents actions"] | None


class SoftCritic(eqx.Module):
    """One of the two critics: every agent's utility, and what joins them."""

    utility: MLP
    value: MLP
    importance: Importance

    def __init__(self, spec: EnvSpec, hidden: int, width: int, kernels: int, *, key: Key):
        keys, relu = jax.random.split(key, 3), jax.nn.relu
        sizes = (spec.obs_size + spec.num_agents, hidden, hidden, spec.action_size)
        self.utility = MLP(sizes, activation=relu, key=keys[0])
        self.value = MLP((spec.state_size, width, 1), activation=relu, key=keys[1])
        self.importance = Importance(spec, kernels, (), key=keys[2])

    def utilities(self, obs: Float[Array, "*batch agents obs"]) -> Float[Array, "*batch agents actions"]:
        """Q_i(o_i, .), by one network that is told the agent's number."""
        identity = jnp.broadcast_to(jnp.eye(obs.shape[-2]), (*obs.shape[:-1], obs.shape[-2]))
        return self.utility(jnp.concatenate([obs, identity], axis=-1))

    def team(
        self, steps: Timestep, action: Int[Array, "*batch agents"], temperature: Scalar, available: Available
    ) -> Float[Array, "*batch"]:
        """Q_tot of an action; soft values are over what is available."""
        q = self.utilities(steps.obs)
        joined = dueling(pick(q, action), soft_value(q, temperature, available), self.importance(steps.state, action))
        return joined + self.value(steps.state)[..., 0]


Critics = tuple[SoftCritic, SoftCritic]


class State(eqx.Module):
    """What changes while FOP learns."""

    actor: Learner[RecurrentNet]  # pi_i, shared by agents
    critics: tuple[Learner[SoftCritic], Learner[SoftCritic]]
    targets: Critics
    temperature: Scalar  # alpha at the last update, on which Q_tot depends


def soft_value(
    q: Float[Array, "*batch actions"], temperature: Scalar, available: Bool[Array, "*batch actions"] | None
) -> Float[Array, "*batch"]:
    """alpha log sum_u exp(q(u) / alpha): what the best policy at this temperature is worth, its entropy included."""
    return temperature * jax.nn.logsumexp(only_available(q, available) / temperature, axis=-1)


def actor_loss(
    log_pi: Float[Array, "batch time agents actions"],
    q: Float[Array, "batch time agents actions"],
    temperature: Scalar,
    mask: Bool[Array, "batch time"],
) -> Scalar:
    """sum_u pi_i(u) (alpha log pi_i(u) - q_i(u)), the mean over steps and agents; exact, so that nothing is drawn."""
    return masked_mean((jnp.exp(log_pi) * (temperature * log_pi - q)).sum(-1).mean(-1), mask)


def soft_targets(
    batch: Episode,
    next_value: Float[Array, "batch time"],
    bonus: Float[Array, "batch time"],
    gamma: float,
    trace: float,
    *,
    in_return: bool,
) -> Float[Array, "batch time"]:
    """TD(lambda) targets, given what each step led to: its value, and a bonus such as the entropy there.

    The bonus is part of that value; with `in_return` off it is added to the return of every step, as it stands.
    """
    if in_return:
        return episode_targets(batch, next_value + bonus, gamma, trace)
    return episode_targets(batch, next_value, gamma, trace) + jax.lax.stop_gradient(bonus)


@dataclass(frozen=True)
class Fop:
    """Hyperparameters of FOP. The defaults are the authors'."""

    learns_from: ClassVar = "episodes"
    actions: ClassVar = frozenset({"discrete"})

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
    """entropy is part of the values in the return; off, that of the next step is added to every finished return"""
    value_of_unavailable: bool = False
    """soft values count actions that are not available, too"""
    epsilon_in_policy: bool = False
    """losses and targets take the policies with the share of random actions that explores"""
    gamma: float = 0.99
    """discount"""
    trace: float = 0.8
    """lambda of the TD(lambda) target; 0 looks one step ahead"""
    epsilon: tuple[float, float] = (1.0, 0.05)
    """share of random actions while exploring, at first and in the end"""
    epsilon_steps: int = 50_000
    """environment steps from the first to the last epsilon"""
    target_period: int = 200
    """updates between copies of the critics to their targets"""
    actor_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of the actor"""
    critic_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of each critic"""
    replay: EpisodeRing = EpisodeRing(5_000, 32)
    """episodes kept and drawn"""
    parallel_envs: int = 1
    """episodes played side by side in a round"""
    updates_per_episode: float = 1.0
    """gradient steps per episode played"""

    def __post_init__(self):
        check_range(self, 1, None, "hidden", "mixer_width", "kernels", "target_period", "parallel_envs")
        check_range(self, 0, 1, "gamma", "trace")
        check_range(self, 0, None, "temperature_steps", "epsilon_steps", "updates_per_episode")
        if min(self.temperature) <= 0:
            raise ValueError(f"temperature={self.temperature} of Fop must be above 0: soft values divide by it")

    def init(self, spec: EnvSpec, key: Key) -> State:
        actor_key, *critic_keys = jax.random.split(key, 3)
        actor = RecurrentNet(spec, self.hidden, key=actor_key)
        one, two = (SoftCritic(spec, self.hidden, self.mixer_width, self.kernels, key=k) for k in critic_keys)
        learners = Learner.create(one, self.critic_optimiser), Learner.create(two, self.critic_optimiser)
        alpha = jnp.float32(self.temperature[0])
        return State(Learner.create(actor, self.actor_optimiser), learners, (one, two), alpha)

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> Memory:
        return Memory.empty(timestep.obs.shape[0], self.hidden)

    def act(
        self, state: State, team: Index, memory: Memory, timestep: Timestep, clock: Clock, key: Key, *, explore: bool
    ) -> tuple[Memory, Int[Array, " agents"]]:
        """Drawn from the policies with a share of random actions while exploring, else greedy."""
        del team
        hidden, logits = state.actor.value.step(memory, timestep.obs)
        action = explore_or_greedy(epsilon_softmax, self, logits, timestep.available, clock, key, explore=explore)
        return Memory(hidden, action), action

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The actor, then the critics by the actor as it is now; targets are copied when due."""
        alpha = linear(*self.temperature, self.temperature_steps, clock.env_steps)
        epsilon = linear(*self.epsilon, self.epsilon_steps, clock.env_steps)
        actor, metrics = self.fit_actor(state, batch, alpha, epsilon)
        log_pi = self.log_policies(actor.value, batch, epsilon)
        critics, critic_metrics = self.fit_critics(state, log_pi, batch, alpha, key)
        online = critics[0].value, critics[1].value
        targets = copy_every(self.target_period, clock.updates, state.targets, online)
        return State(actor, critics, targets, alpha), metrics | critic_metrics | {"temperature": alpha}

    def log_policies(self, actor: RecurrentNet, batch: Episode, epsilon: Scalar) -> LogPolicies:
        """log pi_i(u) of every step of a batch and the step after it."""
        logits, available = jax.vmap(actor.unroll)(batch), batch.timesteps.available
        log_pi = jax.nn.log_softmax(only_available(logits, available))
        if not self.epsilon_in_policy:
            return log_pi
        anything = jax.nn.log_softmax(only_available(jnp.zeros_like(logits), available))
        return jnp.logaddexp(jnp.log1p(-epsilon) + log_pi, jnp.log(epsilon) + anything)

    def fit_actor(
        self, state: State, batch: Episode, alpha: Scalar, epsilon: Scalar
    ) -> tuple[Learner[RecurrentNet], Metrics]:
        """Each agent climbs the lower of its two utilities, and its entropy."""
        one, two = (critic.value.utilities(batch.timesteps.obs[:, :-1]) for critic in state.critics)
        q = jnp.minimum(one, two)

        def loss(actor: RecurrentNet) -> Scalar:
            return actor_loss(self.log_policies(actor, batch, epsilon)[:, :-1], q, alpha, batch.mask)

        actor, value = state.actor.descend(loss)
        return actor, {"actor_loss": value}

    def fit_critics(
        self, state: State, log_pi: LogPolicies, batch: Episode, alpha: Scalar, key: Key
    ) -> tuple[tuple[Learner[SoftCritic], Learner[SoftCritic]], Metrics]:
        """TD(lambda) with actions drawn from the policies, for both critics the same."""
        action = draw_steps(log_pi, key)[:, 1:]
        steps = batch.timesteps
        now, later = jax.tree.map(lambda x: x[:, :-1], steps), jax.tree.map(lambda x: x[:, 1:], steps)
        next_value = self.lower(state.targets, later, action, alpha)
        entropy = -pick(log_pi[:, 1:], action).mean(axis=-1)
        bonus, in_return = alpha * entropy, self.entropy_in_return
        target = soft_targets(batch, next_value, bonus, self.gamma, self.trace, in_return=in_return)

        def loss(critic: SoftCritic) -> Scalar:
            q = critic.team(now, batch.action, alpha, self.counted(now))
            return masked_mean(jnp.square(q - target), batch.mask)

        (one, first), (two, second) = (critic.descend(loss) for critic in state.critics)
        mean = lambda x: masked_mean(x, batch.mask)
        return (one, two), {
            "critic_loss": (first + second) / 2,
            "target_value": mean(target),
            "entropy": mean(entropy),
        }

    def counted(self, steps: Timestep) -> Available:
        """The actions that soft values are over."""
        return None if self.value_of_unavailable else steps.available

    def lower(
        self, critics: Critics, steps: Timestep, action: Int[Array, "*batch agents"], alpha: Scalar
    ) -> Float[Array, "*batch"]:
        """Q_tot by the critic that values it less."""
        one, two = (critic.team(steps, action, alpha, self.counted(steps)) for critic in critics)
        return jnp.minimum(one, two)

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode."""
        del key
        now = jax.tree.map(lambda x: x[:-1], episode.timesteps)
        critics = state.critics[0].value, state.critics[1].value
        return self.lower(critics, now, episode.action, state.temperature)


FOP_PYMARL2 = Fop(
    actor_optimiser=Adam(1e-3),
    critic_optimiser=Adam(1e-3),
    trace=0.6,
    epsilon_steps=100_000,
    target_period=25,
    replay=EpisodeRing(5_000, 128),
    parallel_envs=8,
    updates_per_episode=0.125,
)
