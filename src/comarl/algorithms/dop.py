"""DOP: off-policy multi-agent decomposed policy gradients
(Wang, Han, Wang, Dong, Zhang, ICLR 2021).

The critic of the team is a weighted mean of the agents' own values, the weights made from the
state. Being linear, it gives each agent a policy gradient of its own, and the expectation over
joint actions that off-policy learning needs is that of one agent at a time.

    Q_tot(s, u) = sum_i k_i(s) Q_i(s, o_i, u_i),  k_i >= 0,  sum_i k_i = 1
    k_i    = |W1(s)|_i . |w2(s)| / (the sum of the same over agents)
    pi_i(u | tau_i) = (1 - epsilon) softmax(A h_i) + epsilon / (number of available actions)
    V(s)   = sum_i k_i(s) sum_u pi_i(u) Q_i(u)                     E_pi Q_tot: linear, so exact
    y_on   = r_t + gamma ((1 - lambda) Q_tot'(s_t+1, u_t+1) + lambda y_t+1)
    y_off  = Q_tot',t + sum_{l<n} prod_{j=1..l} (gamma kappa pi(u_t+j)) delta_t+l
    delta_t = r_t + gamma V'_t+1 - Q_tot',t
    L_crit = mean over steps (Q_tot - y)^2        y_on for recent episodes, y_off for those of all
    L_act  = -mean over recent steps and agents k_i (Q_i(u_i) - sum_u pi_i(u) Q_i(u)) log pi_i(u_i)

pi(u) is the product of the agents' chances, kappa is `tree_trace`. pi_i with its share of random
actions is how the team explores. y_off is n steps of tree backup: it is right whoever played the
episode, because what follows an action counts as far as the policies of now would have taken it.

The defaults are the authors'; `dop-pymarl2` has the batches and rates of PyMARL2 (Hu et al., 2021).
Differences from the authors' code:
1. An episode that was truncated ends in its own value, here V', wherever it ends; theirs relies on
   the longest.
2. Random actions are uniform over what is available and come in once; theirs over all actions, and
   twice in play.
3. The actor learns from the recent episodes of the batch; theirs from the newest ones, a batch of
   its own.
4. Targets are copied after a number of updates; theirs after a number of steps of the critic, one
   per time step.
5. PyMARL2 values the team by QMIX's mixer with its ELU and state value, which is not linear: E_pi
   Q_tot is then wrong.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mlp import Linear, Torso
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.distributions import log_probability
from comarl.ops.exploration import Epsilon, epsilon_softmax, greedy, pick, policy_with_epsilon
from comarl.ops.learner import Learner, Optimiser, RmsProp, Tracked
from comarl.ops.returns import episode_targets, followed, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep, tree_where
from comarl.validation import check_fields, check_layers, check_range


class Critic(eqx.Module):
    """Q_i of every agent by one network that forgets, and the weights k_i of their mean."""

    torso: Torso
    value: Linear
    advantage: Linear
    first_weights: Linear  # W1(s)
    second_weights: Linear  # w2(s)
    num_agents: int = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, hidden: tuple[int, ...], width: int, *, key: Key):
        keys = jax.random.split(key, 5)
        sizes = (spec.state_size + spec.obs_size + spec.num_agents, *hidden)
        self.torso = Torso(sizes, activation=jax.nn.relu, key=keys[0])
        self.value = Linear(hidden[-1], 1, key=keys[1])
        self.advantage = Linear(hidden[-1], spec.action_size, key=keys[2])
        self.first_weights = Linear(spec.state_size, spec.num_agents * width, key=keys[3])
        self.second_weights = Linear(spec.state_size, width, key=keys[4])
        self.num_agents = spec.num_agents

    def utilities(
        self, state: Float[Array, "*batch state"], obs: Float[Array, "*batch agents obs"]
    ) -> Float[Array, "*batch agents actions"]:
        """Q_i(s, o_i, .): a value and, for each action, what is added to it."""
        of_agents = lambda x: jnp.broadcast_to(x, (*obs.shape[:-1], x.shape[-1]))
        whole = of_agents(state[..., None, :])
        identity = of_agents(jnp.eye(self.num_agents))
        features = self.torso(jnp.concatenate([whole, obs, identity], -1))
        return self.value(features) + self.advantage(features)

    def weights(self, state: Float[Array, "*batch state"]) -> Float[Array, "*batch agents"]:
        """k_i(s)."""
        first = jnp.abs(self.first_weights(state)).reshape(*state.shape[:-1], self.num_agents, -1)
        k = (first * jnp.abs(self.second_weights(state))[..., None, :]).sum(-1)
        return k / k.sum(-1, keepdims=True)

    def mix(
        self, utilities: Float[Array, "*batch agents"], state: Float[Array, "*batch state"]
    ) -> Float[Array, "*batch"]:
        """Q_tot of the agents' values."""
        return (self.weights(state) * utilities).sum(-1)

    def taken(
        self,
        state: Float[Array, "*batch state"],
        obs: Float[Array, "*batch agents obs"],
        action: Int[Array, "*batch agents"],
    ) -> Float[Array, "*batch"]:
        """Q_tot of what the team did."""
        return self.mix(pick(self.utilities(state, obs), action), state)


class State(eqx.Module):
    """What changes while DOP learns."""

    actor: Learner[RecurrentNet]  # pi_i, shared by agents
    critic: Tracked[Critic]  # Q_tot and Q_tot'


class Steps(NamedTuple):
    """What the critic learns from: some steps and their targets."""

    state: Float[Array, "*batch state"]
    obs: Float[Array, "*batch agents obs"]
    action: Int[Array, "*batch agents"]
    target: Float[Array, "*batch"]
    mask: Bool[Array, "*batch"]


def tree_backup(
    episode: Episode,
    q_taken: Float[Array, " time"],
    next_value: Float[Array, " time"],
    probability: Float[Array, " time"],
    gamma: float,
    td_lambda: float,
    steps: int,
) -> Float[Array, " time"]:
    """y_off of one episode: `steps` steps of tree backup, fewer where its end is nearer.

    `q_taken` is Q_tot of what was done, `next_value` V of what it led to, `probability` the
    policies' of what was done.
    """
    discount = gamma * jnp.where(episode.terminated, 0.0, 1.0)
    delta = episode.reward + discount * next_value - q_taken
    next_probability = jnp.roll(probability, -1)
    weight = jnp.where(followed(episode.mask), td_lambda * discount * next_probability, 0.0)

    def one_step_more(_: Array, backed_up: Float[Array, " time"]) -> Float[Array, " time"]:
        return delta + weight * jnp.roll(backed_up, -1)

    return q_taken + jax.lax.fori_loop(0, steps, one_step_more, jnp.zeros_like(q_taken))


@dataclass(frozen=True)
class Dop:
    """Hyperparameters of DOP. The defaults are the authors'."""

    actions = frozenset({"discrete"})

    hidden: int = 64
    """units of the recurrent actor"""
    critic_hidden: tuple[int, ...] = (256, 256)
    """units of the hidden layers of the agents' values (ReLU)"""
    mixer_width: int = 32
    """entries of w2(s)"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.8
    """lambda of the TD(lambda) target of recent episodes; 0 looks one step ahead"""
    tree_trace: float = 0.93
    """kappa: what is left, beside discount and chance, of each further step of the tree backup"""
    tree_steps: int = 5
    """steps of the tree backup"""
    epsilon: Epsilon = Epsilon(0.5, 0.05, 500_000)
    """share of random actions while exploring, at first and in the end"""
    step_by_step: bool = True
    """the critic takes one gradient step for each time step, the first one first; off, one for all
    of them"""
    target_period: int = 10
    """updates between copies of the critic to its target"""
    actor_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of the actor"""
    critic_optimiser: Optimiser = RmsProp(1e-4)
    """optimiser of the agents' values and their weights together"""
    replay: EpisodeRing = EpisodeRing(5_000, 32, recent=32, recent_batch=16)
    """episodes kept, drawn from all of them, and drawn from the recent ones"""
    pace: EpisodePace = EpisodePace(4, 0.25)
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_layers(self, "critic_hidden")
        check_range(self, 1, None, "hidden", "mixer_width", "tree_steps", "target_period")
        check_range(self, 0, 1, "gamma", "td_lambda", "tree_trace")

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        actor_key, critic_key = jax.random.split(key)
        return State(
            actor=Learner.create(self.make_actor(spec, actor_key), self.actor_optimiser),
            critic=Tracked.create(self.make_critic(spec, critic_key), self.critic_optimiser),
        )

    def make_actor(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """pi_i(tau_i) as logits."""
        return RecurrentNet(spec, self.hidden, key=key)

    def make_critic(self, spec: EnvSpec, key: Key) -> Critic:
        """Q_tot: the agents' values and their weights."""
        return Critic(spec, self.critic_hidden, self.mixer_width, key=key)

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
        """The critic, then the actor by the critic as it is now; the target is copied when due."""
        del key
        epsilon = self.epsilon.at(clock)

        # Critic: L_crit, to y_on of recent episodes and y_off of those drawn from all.
        critic, critic_metrics = self.fit_critic(state, batch, epsilon)

        # Actor: L_act, on recent episodes.
        recent, _ = self.split(batch)
        actor, actor_metrics = self.fit_actor(state.actor, critic.value, recent, epsilon)

        # Target.
        critic = critic.copy_every(self.target_period, clock.updates)
        return State(actor, critic), critic_metrics | actor_metrics | {"epsilon": epsilon}

    def split(self, batch: Any) -> tuple[Any, Any]:
        """What belongs to the recent episodes of a batch, and to those drawn from all."""
        count = self.replay.recent_batch
        recent = jax.tree.map(lambda x: x[:count], batch)
        return recent, jax.tree.map(lambda x: x[count:], batch)

    def policies(
        self, actor: RecurrentNet, batch: Episode, epsilon: Float[Array, ""]
    ) -> Float[Array, "batch steps agents actions"]:
        """How the team would act while exploring."""
        logits = jax.vmap(actor.unroll)(batch)
        return policy_with_epsilon(logits, batch.timesteps.available, epsilon)

    def targets(
        self, state: State, batch: Episode, epsilon: Float[Array, ""]
    ) -> Float[Array, "batch time"]:
        """y_on of the recent episodes, y_off of the others."""
        steps, critic = batch.timesteps, state.critic.target
        policy = self.policies(state.actor.value, batch, epsilon)
        utilities = critic.utilities(steps.state, steps.obs)
        q_taken = critic.mix(pick(utilities[:, :-1], batch.action), steps.state[:, :-1])
        value = critic.mix((policy * utilities).sum(-1), steps.state)
        next_value = value[:, 1:]

        # y_on: what was done next, or V where nothing was done any more.
        next_taken = jnp.where(followed(batch.mask), jnp.roll(q_taken, -1, axis=1), next_value)
        recent, recent_next = (self.split(x)[0] for x in (batch, next_taken))
        on_policy = episode_targets(recent, recent_next, self.gamma, self.td_lambda)

        # y_off: tree backup.
        def backup(episode: Episode, q: Array, next_value: Array, probability: Array) -> Array:
            kappa, count = self.tree_trace, self.tree_steps
            return tree_backup(episode, q, next_value, probability, self.gamma, kappa, count)

        probability = pick(policy[:, :-1], batch.action).prod(-1)
        _, of_all = self.split((batch, q_taken, next_value, probability))
        off_policy = jax.lax.stop_gradient(jax.vmap(backup)(*of_all))
        return jnp.concatenate([on_policy, off_policy])

    def fit_critic(
        self, state: State, batch: Episode, epsilon: Float[Array, ""]
    ) -> tuple[Tracked[Critic], Metrics]:
        """To both targets, on recent and old episodes alike."""
        target = self.targets(state, batch, epsilon)
        state_now, obs_now = batch.timesteps.state[:, :-1], batch.timesteps.obs[:, :-1]
        steps = Steps(state_now, obs_now, batch.action, target, batch.mask)

        def fit(critic: Tracked[Critic], steps: Steps) -> tuple[Tracked[Critic], tuple]:
            def loss(critic: Critic) -> tuple[Float[Array, ""], Float[Array, "..."]]:
                q = critic.taken(steps.state, steps.obs, steps.action)
                return masked_mean(jnp.square(q - steps.target), steps.mask), q

            fitted, found = critic.descend(loss, has_aux=True)
            return tree_where(steps.mask.any(), fitted, critic), found

        if self.step_by_step:
            time_first = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)
            critic, (losses, q) = jax.lax.scan(fit, state.critic, time_first(steps))
            td_loss = masked_mean(losses, batch.mask.any(0))
            q = time_first(q)
        else:
            critic, (td_loss, q) = fit(state.critic, steps)
        metrics = {"critic_loss": td_loss, "td_loss": td_loss}
        return critic, metrics | td_metrics(q, target, batch.mask)

    def fit_actor(
        self,
        actor: Learner[RecurrentNet],
        critic: Critic,
        recent: Episode,
        epsilon: Float[Array, ""],
    ) -> tuple[Learner[RecurrentNet], Metrics]:
        """Each agent by its own advantage, as much as its value weighs."""
        states, obs = recent.timesteps.state[:, :-1], recent.timesteps.obs[:, :-1]
        utilities = critic.utilities(states, obs)
        k = critic.weights(states)
        every_agent = jnp.broadcast_to(recent.mask[..., None], recent.action.shape)

        def loss(actor: RecurrentNet) -> Float[Array, ""]:
            policy = self.policies(actor, recent, epsilon)[:, :-1]
            advantage = pick(utilities, recent.action) - (policy * utilities).sum(-1)
            log_pi = log_probability(pick(policy, recent.action))
            return -masked_mean(k * jax.lax.stop_gradient(advantage) * log_pi, every_agent)

        actor, actor_loss = actor.descend(loss)
        return actor, {"actor_loss": actor_loss}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode."""
        del key
        return state.critic.value.taken(
            episode.timesteps.state[:-1], episode.timesteps.obs[:-1], episode.action
        )
