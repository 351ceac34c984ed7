"""FACMAC: factored multi-agent centralised policy gradients (Peng et al., NeurIPS 2021).

One critic for the team, factored into the agents' utilities as QMIX's is; the actors climb it all
at once, by the gradient through the joint action.

    Q_tot(s, u) = g_s(Q_1(o_1, u_1) .. Q_N(o_N, u_N))                                                          (Eq 5)
    y_t    = r_t + gamma ((1 - lambda) Q_tot'(s_{t+1}, mu'(tau_{t+1})) + lambda y_{t+1})            (Eq 6: lambda is 0)
    L_crit = mean over steps (Q_tot(s_t, u_t) - y_t)^2                                                         (Eq 6)
    L_act  = -mean over steps Q_tot(s_t, mu_1(tau_1) .. mu_N(tau_N))                                           (Eq 7)

All agents' actions are those of the policies now, not only one agent's: the centralised policy
gradient of Sec 4.2. With discrete actions mu is a categorical policy: greedy in targets, a
straight-through Gumbel-softmax draw in Eq 7, and a softmax with a share of random actions when it
explores.

`mixing` "any" is the non-monotonic critic of Sec 4.1, "sum" FACMAC with VDN's mixer. `Facmac` is
for discrete actions: recurrent actors, learning from episodes. `FacmacContinuous` is for continuous
ones: feed-forward actors, learning from transitions, lambda 0. Sources of the settings: the
authors' code for StarCraft and for Multi-Agent MuJoCo.

Differences from the authors' code:
1. An episode that was cut by time ends in its own value wherever it ends within a batch; theirs relies on the longest.
2. Random exploration and targets never pick an unavailable action; theirs may, on steps after an episode's end.
3. Continuous actors and utilities see which agent they serve.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from comarl.nn.critics import FactoredCritic
from comarl.nn.mixers import Mixing
from comarl.nn.policies import SharedActor, explore_with_noise
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.distributions import straight_through_steps
from comarl.ops.exploration import Epsilon, epsilon_softmax, greedy
from comarl.ops.learner import Adam, Learner, copy_every, polyak
from comarl.ops.returns import episode_targets, masked_mean
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace, StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_range


class State(eqx.Module):
    """What changes while FACMAC learns discrete actions."""

    actor: Learner[RecurrentNet]  # mu_i, shared by agents
    critic: Learner[FactoredCritic]  # Q_tot
    target_actor: RecurrentNet
    target_critic: FactoredCritic


class ContinuousState(eqx.Module):
    """What changes while FACMAC learns continuous actions."""

    actor: Learner[SharedActor]  # mu_i, shared by agents
    critic: Learner[FactoredCritic]  # Q_tot
    target_actor: SharedActor
    target_critic: FactoredCritic


@dataclass(frozen=True)
class Facmac:
    """Hyperparameters of FACMAC for discrete actions. The defaults are the authors' for
    StarCraft."""

    packs: ClassVar = True
    actions: ClassVar = frozenset({"discrete"})

    mixing: Mixing = "monotonic"
    """how utilities are joined: QMIX's mixer, the same without its sign constraint (Sec 4.1), or
    VDN's sum"""
    hidden: int = 64
    """units of the recurrent actor and of the two hidden layers of the utility"""
    mixer_width: int = 32
    """units of the mixer's hidden layer"""
    hypernet: int = 64
    """units of the hidden layer that makes the mixer's weights; 0 makes them linear in the state"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.8
    """lambda of the TD(lambda) target; 0 looks one step ahead"""
    epsilon: Epsilon = Epsilon(0.5, 0.05, 50_000)
    """share of random actions while exploring, at first and in the end"""
    target_period: int = 200
    """updates between copies of actor and critic to their targets"""
    actor_optimiser: Adam = Adam(2.5e-3, epsilon=1e-7)
    """optimiser of the actor"""
    critic_optimiser: Adam = Adam(5e-4, epsilon=1e-7)
    """optimiser of utilities and mixer together"""
    replay: EpisodeRing = EpisodeRing(5_000, 32)
    """episodes kept and drawn"""
    pace: EpisodePace = EpisodePace()
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "mixer_width", "target_period")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "hypernet")

    def init(self, spec: EnvSpec, key: Key) -> State:
        actor_key, critic_key = jax.random.split(key)
        actor = RecurrentNet(spec, self.hidden, key=actor_key)
        size: dict[str, Any] = dict(width=self.mixer_width, hypernet=self.hypernet)
        critic = FactoredCritic(
            spec, (self.hidden, self.hidden), self.mixing, **size, key=critic_key
        )
        return State(
            actor=Learner.create(actor, self.actor_optimiser),
            critic=Learner.create(critic, self.critic_optimiser),
            target_actor=actor,
            target_critic=critic,
        )

    def initial_memory(self, state: PyTree, timestep: Timestep, key: Key) -> Memory:
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
        epsilon = self.epsilon.at(clock)
        return self.perform(state.actor.value, memory, timestep, key, epsilon, explore=explore)

    def policy(self, state: State) -> RecurrentNet:
        """The team that learns, as data that evolution may copy."""
        return state.actor.value

    def perform(
        self,
        policy: RecurrentNet,
        memory: Memory,
        timestep: Timestep,
        key: Key,
        epsilon: Float[Array, ""] | float = 0.0,
        *,
        explore: bool,
    ) -> tuple[Memory, Int[Array, " agents"]]:
        """How any team acts; an evolving one adds no random actions to those that it draws."""
        hidden, logits = policy.step(memory, timestep.obs)
        available = timestep.available
        action = (
            epsilon_softmax(logits, available, epsilon, key)
            if explore
            else greedy(logits, available)
        )
        return Memory(hidden, action), action

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The critic, then the actor by the critic as it is now; targets are copied when due."""
        critic, metrics = self.fit_critic(state, batch)
        actor, actor_metrics = self.fit_actor(state, critic.value, batch, key)
        online, target = (actor.value, critic.value), (state.target_actor, state.target_critic)
        return State(
            actor, critic, *copy_every(self.target_period, clock.updates, target, online)
        ), (metrics | actor_metrics)

    def fit_critic(self, state: State, batch: Episode) -> tuple[Learner[FactoredCritic], Metrics]:
        """TD(lambda) with the target actors' greedy actions (Eq 6)."""
        logits = jax.vmap(state.target_actor.unroll)(batch)
        next_action = jax.nn.one_hot(greedy(logits, batch.timesteps.available), logits.shape[-1])
        steps = batch.timesteps
        next_q = state.target_critic(steps.obs[:, 1:], next_action[:, 1:], steps.state[:, 1:])
        target = episode_targets(batch, next_q, self.gamma, self.td_lambda)
        action = jax.nn.one_hot(batch.action, logits.shape[-1])

        def loss(critic: FactoredCritic) -> Float[Array, ""]:
            q = critic(steps.obs[:, :-1], action, steps.state[:, :-1])
            return masked_mean(jnp.square(q - target), batch.mask)

        critic, critic_loss = state.critic.descend(loss)
        return critic, {"critic_loss": critic_loss, "target_value": masked_mean(target, batch.mask)}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode."""
        del key
        steps, num_actions = episode.timesteps, state.actor.value.spec.action_size
        action = jax.nn.one_hot(episode.action, num_actions)
        return state.critic.value(steps.obs[:-1], action, steps.state[:-1])

    def fit_actor(
        self, state: State, critic: FactoredCritic, batch: Episode, key: Key
    ) -> tuple[Learner[RecurrentNet], Metrics]:
        """All agents at once climb Q_tot (Eq 7)."""
        steps, available = batch.timesteps, batch.timesteps.available
        assert available is not None  # discrete tasks say what is legal

        def loss(actor: RecurrentNet) -> Float[Array, ""]:
            logits = jax.vmap(actor.unroll)(batch)[:, :-1]
            action = straight_through_steps(logits, available[:, :-1], key)
            return -masked_mean(critic(steps.obs[:, :-1], action, steps.state[:, :-1]), batch.mask)

        actor, actor_loss = state.actor.descend(loss)
        return actor, {"actor_loss": actor_loss}


@dataclass(frozen=True)
class FacmacContinuous:
    """Hyperparameters of FACMAC for continuous actions. The defaults are the authors' for
    Multi-Agent MuJoCo."""

    actions: ClassVar = frozenset({"continuous"})

    mixing: Mixing = "monotonic"
    """how utilities are joined: QMIX's mixer, the same without its sign constraint (Sec 4.1), or
    VDN's sum"""
    hidden: tuple[int, ...] = (400, 400)
    """units of the hidden layers of actors and utilities (ReLU)"""
    mixer_width: int = 64
    """units of the mixer's hidden layer"""
    hypernet: int = 64
    """units of the hidden layer that makes the mixer's weights; 0 makes them linear in the state"""
    gamma: float = 0.99
    """discount"""
    tau: float = 0.001
    """step of the target networks"""
    exploration_noise: float = 0.1
    """standard deviation of the noise on actions in training"""
    action_penalty: float = 1e-3
    """weight of the mean squared action in the actors' loss"""
    actor_optimiser: Adam = Adam(1e-3, max_grad_norm=0.5, epsilon=0.01)
    """optimiser of the actors"""
    critic_optimiser: Adam = Adam(1e-3, max_grad_norm=0.5, epsilon=0.01)
    """optimiser of utilities and mixer together"""
    replay: Ring = Ring(1_000_000, 100)
    """transitions kept and drawn"""
    pace: StepPace = StepPace()
    """random steps before learning starts, and gradient steps for each step after"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "mixer_width")
        check_range(self, 0, 1, "gamma", "tau")
        nonnegative = ("hypernet", "exploration_noise", "action_penalty")
        check_range(self, 0, None, *nonnegative)

    def init(self, spec: EnvSpec, key: Key) -> ContinuousState:
        actor_key, critic_key = jax.random.split(key)
        actor = SharedActor(spec, self.hidden, key=actor_key)
        size: dict[str, Any] = dict(width=self.mixer_width, hypernet=self.hypernet)
        critic = FactoredCritic(
            spec, self.hidden, self.mixing, **size, with_identity=True, key=critic_key
        )
        return ContinuousState(
            actor=Learner.create(actor, self.actor_optimiser),
            critic=Learner.create(critic, self.critic_optimiser),
            target_actor=actor,
            target_critic=critic,
        )

    def initial_memory(self, state: ContinuousState, timestep: Timestep, key: Key) -> tuple[()]:
        return ()

    def act(
        self,
        state: ContinuousState,
        team: Index,
        memory: tuple[()],
        timestep: Timestep,
        clock: Clock,
        key: Key,
        *,
        explore: bool,
    ) -> tuple[tuple[()], Float[Array, "agents action"]]:
        del team, clock
        actor = state.actor.value
        action = actor(timestep.obs)
        return memory, explore_with_noise(
            action, self.exploration_noise, actor.spec, key
        ) if explore else action

    def update(
        self, state: ContinuousState, batch: Transition, clock: Clock, key: Key
    ) -> tuple[ContinuousState, Metrics]:
        """The critic, then the actors by the critic as it is now; then every target moves."""
        del clock, key
        critic, metrics = self.fit_critic(state, batch)
        actor, actor_metrics = self.fit_actor(state, critic.value, batch)
        online, target = (actor.value, critic.value), (state.target_actor, state.target_critic)
        return ContinuousState(
            actor, critic, *polyak(target, online, self.tau)
        ), metrics | actor_metrics

    def fit_critic(
        self, state: ContinuousState, batch: Transition
    ) -> tuple[Learner[FactoredCritic], Metrics]:
        """One step ahead, with the target actors' actions (Eq 6)."""
        actor = state.target_actor
        next_q = state.target_critic(
            actor.with_identity(batch.next.obs), actor(batch.next.obs), batch.next.state
        )
        target = batch.reward + self.gamma * jnp.where(batch.terminated, 0.0, next_q)

        def loss(critic: FactoredCritic) -> Float[Array, ""]:
            q = critic(actor.with_identity(batch.now.obs), batch.action, batch.now.state)
            return jnp.square(q - target).mean()

        critic, critic_loss = state.critic.descend(loss)
        return critic, {"critic_loss": critic_loss, "target_value": target.mean()}

    def fit_actor(
        self, state: ContinuousState, critic: FactoredCritic, batch: Transition
    ) -> tuple[Learner[SharedActor], Metrics]:
        """All agents at once climb Q_tot (Eq 7), with a small price on large actions."""

        def loss(actor: SharedActor) -> Float[Array, ""]:
            action = actor(batch.now.obs)
            q = critic(actor.with_identity(batch.now.obs), action, batch.now.state)
            return -q.mean() + self.action_penalty * jnp.square(action).mean()

        actor, actor_loss = state.actor.descend(loss)
        return actor, {"actor_loss": actor_loss}
