"""LICA: learning implicit credit assignment (Zhou, Liu, Sui, Li, Chung, NeurIPS 2020).

One critic for the team sees the state and the agents' whole policies, not only what they did. Its
weights are made from the state, so the gradient that reaches an agent's policy is about the state
and about the others: credit needs no formula of its own.

    Q(s, x) = w2(s) . relu(W1(s) x + b1(s)) + b2(s),   x the agents' actions, one-hot, or their policies, side by side
    y_t    = r_t + gamma ((1 - lambda) Q'(s_t+1, u_t+1) + lambda y_t+1)                      u_t+1 is what was done next
    L_crit = mean over steps (Q(s_t, u_t) - y_t)^2
    L_act  = -mean over steps Q(s_t, pi_1(. | tau_1) .. pi_N(. | tau_N)) - xi H / stop(H)
    H      = mean over steps and agents of the entropy of pi_i

No sign is constrained. Dividing by the entropy itself makes its gradient grow as policies become
sure: a sustained level of exploration, which the authors call adaptive entropy regularisation.

The defaults are the authors'; `lica-pymarl2` has the settings of PyMARL2 (Hu et al., 2021).
Differences from the authors' code:
1. An episode that was cut by time ends in its own value wherever it ends within a batch; theirs relies on the longest.
2. What would have been done after the last step is drawn from the policy as it is now; theirs was drawn in play.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from comarl.nn.mlp import MLP, Linear
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.distributions import draw_steps, entropy
from comarl.ops.exploration import epsilon_softmax, greedy, only_available
from comarl.ops.learner import Adam, Learner, Optimiser, copy_every
from comarl.ops.returns import episode_targets, masked_mean
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_range


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
        make = lambda hidden, outputs, k: MLP(
            (spec.state_size, hidden, outputs), activation=jax.nn.relu, key=k
        )
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
    critic: Learner[Critic]
    target_critic: Critic


@dataclass(frozen=True)
class Lica:
    """Hyperparameters of LICA. The defaults are the authors'."""

    actions: ClassVar = frozenset({"discrete"})

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
        check_range(self, 1, None, "hidden", "critic_width", "target_period")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "entropy_weight")
        if self.hypernet is not None:
            check_range(self, 1, None, "hypernet")

    def init(self, spec: EnvSpec, key: Key) -> State:
        actor_key, critic_key = jax.random.split(key)
        actor = RecurrentNet(spec, self.hidden, key=actor_key)
        critic = Critic(spec, self.critic_width, self.hypernet, key=critic_key)
        return State(
            actor=Learner.create(actor, self.actor_optimiser),
            critic=Learner.create(critic, self.critic_optimiser),
            target_critic=critic,
        )

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> Memory:
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
        available = timestep.available
        action = (
            epsilon_softmax(logits, available, 0.0, key) if explore else greedy(logits, available)
        )
        return Memory(hidden, action), action

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The critic, then the actor by the critic as it is now; the target is copied when due."""
        critic, metrics = self.fit_critic(state, batch, key)
        actor, actor_metrics = self.fit_actor(state, critic.value, batch)
        target = copy_every(self.target_period, clock.updates, state.target_critic, critic.value)
        return State(actor, critic, target), metrics | actor_metrics

    def fit_critic(self, state: State, batch: Episode, key: Key) -> tuple[Learner[Critic], Metrics]:
        """TD(lambda) of what the team did."""
        states, actor = batch.timesteps.state, state.actor.value
        action = jax.nn.one_hot(batch.action, actor.spec.action_size)
        next_action = jax.nn.one_hot(self.next_actions(actor, batch, key), actor.spec.action_size)
        target = episode_targets(
            batch, state.target_critic(states[:, 1:], next_action), self.gamma, self.td_lambda
        )
        loss = lambda critic: masked_mean(
            jnp.square(critic(states[:, :-1], action) - target), batch.mask
        )
        critic, critic_loss = state.critic.descend(loss)
        return critic, {"critic_loss": critic_loss, "target_value": masked_mean(target, batch.mask)}

    def next_actions(
        self, actor: RecurrentNet, batch: Episode, key: Key
    ) -> Int[Array, "batch time agents"]:
        """What the team did after each step; after the last one, where it did nothing, a draw from
        its policies."""
        logits = only_available(jax.vmap(actor.unroll)(batch), batch.timesteps.available)
        drawn = draw_steps(logits, key)[:, 1:]
        follows = jnp.pad(batch.mask[:, 1:], ((0, 0), (0, 1)))
        return jnp.where(follows[..., None], jnp.roll(batch.action, -1, axis=1), drawn)

    def fit_actor(
        self, state: State, critic: Critic, batch: Episode
    ) -> tuple[Learner[RecurrentNet], Metrics]:
        """All agents at once climb the critic through their policies, which stay away from
        certainty."""
        steps, available = batch.timesteps, batch.timesteps.available
        assert available is not None  # discrete tasks say what is legal
        every_agent = jnp.broadcast_to(batch.mask[..., None], batch.action.shape)

        def loss(actor: RecurrentNet) -> tuple[Float[Array, ""], Metrics]:
            logits = only_available(jax.vmap(actor.unroll)(batch), available)
            policy = jax.nn.softmax(logits[:, :-1])
            bonus = masked_mean(entropy(policy), every_agent)
            adaptive = bonus / jax.lax.stop_gradient(jnp.maximum(bonus, 1e-8))
            value = masked_mean(critic(steps.state[:, :-1], policy), batch.mask)
            total = -value - self.entropy_weight * adaptive
            return total, {"actor_loss": total, "entropy": bonus}

        gradient, metrics = jax.grad(loss, has_aux=True)(state.actor.value)
        return state.actor.apply(gradient), metrics

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q of what the team did at each step of one episode."""
        del key
        action = jax.nn.one_hot(episode.action, state.actor.value.spec.action_size)
        return state.critic.value(episode.timesteps.state[:-1], action)
