"""LICA: learning implicit credit assignment (Zhou, Liu, Sui, Li, Chung, NeurIPS 2020).

One critic for the team sees the state and the agents' whole policies, not only what they did. Its
weights are made from the state, so the gradient that reaches an agent's policy is about the state
and about the others: credit needs no formula of its own.

    Q(s, x) = w2(s) . relu(W1(s) x + b1(s)) + b2(s)
    y_t    = r_t + gamma ((1 - lambda) Q'(s_t+1, u_t+1) + lambda y_t+1)
    L_crit = mean over steps (Q(s_t, u_t) - y_t)^2
    L_act  = -mean over steps Q(s_t, pi_1(. | tau_1) .. pi_N(. | tau_N)) - xi H / stop(H)
    H      = mean over steps and agents of the entropy of pi_i

x are the agents' actions, one-hot, or their policies, side by side; u_t+1 is what was done next. No
sign is constrained. Dividing by the entropy itself makes its gradient grow as policies become sure:
a sustained level of exploration, which the authors call adaptive entropy regularisation.

The defaults are the authors'; `lica-pymarl2` has the settings of PyMARL2 (Hu et al., 2021).
Differences from the authors' code:
1. An episode that was truncated ends in its own value wherever it ends within a batch; theirs
   relies on the longest.
2. What would have been done after the last step is drawn from the policy as it is now; theirs was
   drawn in play.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mlp import MLP, Linear
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.distributions import draw_steps, entropy
from comarl.ops.exploration import epsilon_softmax, greedy, only_available
from comarl.ops.learner import Adam, Learner, Optimiser, Tracked
from comarl.ops.returns import episode_targets, followed, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range


class Critic(eqx.Module):
    """Q(s, x): a network of one hidden layer over the agents' policies, whose weights are made from
    the state."""

    first_weights: MLP
    first_bias: Linear
    second_weights: MLP
    second_bias: MLP
    width: int = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, width: int, hypernet: int | None, *, key: Key):
        keys = jax.random.split(key, 4)
        weights = spec.num_agents * spec.action_size * width

        def make(hidden: int, outputs: int, key: Key) -> MLP:
            return MLP((spec.state_size, hidden, outputs), activation=jax.nn.relu, key=key)

        self.first_weights = make(hypernet or weights, weights, keys[0])
        self.first_bias = Linear(spec.state_size, width, key=keys[1])
        self.second_weights = make(width, width, keys[2])
        self.second_bias = make(width, 1, keys[3])
        self.width = width

    def __call__(
        self, state: Float[Array, "*batch state"], policy: Float[Array, "*batch agents actions"]
    ) -> Float[Array, "*batch"]:
        """An action is a policy that is one-hot."""
        x = policy.reshape(*state.shape[:-1], -1)
        first = self.first_weights(state).reshape(*x.shape, self.width)
        hidden = jax.nn.relu(jnp.einsum("...i,...iw->...w", x, first) + self.first_bias(state))
        return (hidden * self.second_weights(state)).sum(-1) + self.second_bias(state)[..., 0]


class State(eqx.Module):
    """What changes while LICA learns."""

    actor: Learner[RecurrentNet]  # pi_i, shared by agents
    critic: Tracked[Critic]  # Q and Q'


@dataclass(frozen=True)
class Lica:
    """Hyperparameters of LICA. The defaults are the authors'."""

    actions = frozenset({"discrete"})

    hidden: int = 64
    """units of the recurrent layer"""
    critic_width: int = 64
    """units of the critic's hidden layer"""
    hypernet: int | None = None
    """units of the hidden layer that makes W1; None: as many as W1 has entries, which is many"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.8
    """lambda of the TD(lambda) target; 0 looks one step ahead"""
    entropy_weight: float = 0.06
    """xi: weight of the adaptive entropy bonus"""
    target_period: int = 200
    """updates between copies of the critic to its target"""
    actor_optimiser: Optimiser = Adam(2.5e-3)
    """optimiser of the actor"""
    critic_optimiser: Optimiser = Adam(5e-4)
    """optimiser of the critic"""
    replay: EpisodeRing = EpisodeRing(32, 32)
    """episodes kept and drawn: by default exactly those of a round, so that learning is
    on-policy"""
    pace: EpisodePace = EpisodePace(32, 1 / 32)
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "critic_width", "target_period")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "entropy_weight")
        if self.hypernet is not None:
            check_range(self, 1, None, "hypernet")

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
        """Q(s, x)."""
        return Critic(spec, self.critic_width, self.hypernet, key=key)

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
        """Drawn from the policies while exploring, else greedy."""
        del team, clock
        hidden, logits = state.actor.value.step(memory, timestep.obs)
        if explore:
            action = self.explore(logits, timestep.available, key)
        else:
            action = greedy(logits, timestep.available)
        return Memory(hidden, action), action

    def explore(
        self,
        logits: Float[Array, "agents actions"],
        available: Bool[Array, "agents actions"] | None,
        key: Key,
    ) -> Int[Array, " agents"]:
        """Drawn from the policies."""
        return epsilon_softmax(logits, available, 0.0, key)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The critic, then the actor by the critic as it is now; the target is copied when due."""
        # Critic: L_crit.
        critic, critic_metrics = self.fit_critic(state, batch, key)

        # Actor: L_act.
        actor, actor_metrics = self.fit_actor(state.actor, critic.value, batch)

        # Target.
        critic = critic.copy_every(self.target_period, clock.updates)
        return State(actor, critic), critic_metrics | actor_metrics

    def fit_critic(self, state: State, batch: Episode, key: Key) -> tuple[Tracked[Critic], Metrics]:
        """TD(lambda) of what the team did."""
        states, actor = batch.timesteps.state, state.actor.value
        num_actions = actor.spec.action_size
        action = jax.nn.one_hot(batch.action, num_actions)
        next_action = jax.nn.one_hot(self.next_actions(actor, batch, key), num_actions)
        next_q = state.critic.target(states[:, 1:], next_action)
        target = episode_targets(batch, next_q, self.gamma, self.td_lambda)

        def loss(critic: Critic) -> tuple[Float[Array, ""], Float[Array, "batch time"]]:
            q = critic(states[:, :-1], action)
            return masked_mean(jnp.square(q - target), batch.mask), q

        critic, (td_loss, q) = state.critic.descend(loss, has_aux=True)
        metrics = {"critic_loss": td_loss, "td_loss": td_loss}
        return critic, metrics | td_metrics(q, target, batch.mask)

    def next_actions(
        self, actor: RecurrentNet, batch: Episode, key: Key
    ) -> Int[Array, "batch time agents"]:
        """What the team did after each step; after the last one, where it did nothing, a draw from
        its policies."""
        logits = only_available(jax.vmap(actor.unroll)(batch), batch.timesteps.available)
        drawn = draw_steps(logits, key)[:, 1:]
        done_next = jnp.roll(batch.action, -1, axis=1)
        return jnp.where(followed(batch.mask)[..., None], done_next, drawn)

    def fit_actor(
        self, actor: Learner[RecurrentNet], critic: Critic, batch: Episode
    ) -> tuple[Learner[RecurrentNet], Metrics]:
        """All agents at once maximise the critic through their policies, which stay away from
        certainty."""
        steps, available = batch.timesteps, batch.timesteps.available
        assert available is not None  # discrete tasks say what is legal
        every_agent = jnp.broadcast_to(batch.mask[..., None], batch.action.shape)

        def loss(actor: RecurrentNet) -> tuple[Float[Array, ""], Float[Array, ""]]:
            logits = only_available(jax.vmap(actor.unroll)(batch), available)
            policy = jax.nn.softmax(logits[:, :-1])
            mean_entropy = masked_mean(entropy(policy), every_agent)
            adaptive = mean_entropy / jax.lax.stop_gradient(jnp.maximum(mean_entropy, 1e-8))
            q = masked_mean(critic(steps.state[:, :-1], policy), batch.mask)
            return -q - self.entropy_weight * adaptive, mean_entropy

        actor, (actor_loss, mean_entropy) = actor.descend(loss, has_aux=True)
        return actor, {"actor_loss": actor_loss, "entropy": mean_entropy}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q of what the team did at each step of one episode."""
        del key
        action = jax.nn.one_hot(episode.action, state.actor.value.spec.action_size)
        return state.critic.value(episode.timesteps.state[:-1], action)
