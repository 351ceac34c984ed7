"""FACMAC: factored multi-agent centralised policy gradients (Peng et al., NeurIPS 2021).

One critic for the team, factored into the agents' utilities as QMIX's is; the actors maximise it
all at once, by the gradient through the joint action.

    Q_tot(s, u) = g_s(Q_1(o_1, u_1) .. Q_N(o_N, u_N))                                         (Eq 5)
    y_t    = r_t + gamma ((1 - lambda) Q'_{t+1} + lambda y_{t+1})           (Eq 6, with lambda 0)
    Q'_t   = Q_tot'(s_t, mu'(tau_t))                                        by the slow copies
    L_crit = mean over steps (Q_tot(s_t, u_t) - y_t)^2                                        (Eq 6)
    L_act  = -mean over steps Q_tot(s_t, mu_1(tau_1) .. mu_N(tau_N))                          (Eq 7)

All agents' actions are those of the policies now, not only one agent's: the centralised policy
gradient of Sec 4.2. With discrete actions mu is a categorical policy: greedy in targets, a
straight-through Gumbel-softmax draw in Eq 7, and a softmax with a share of random actions when it
explores.

`mixing` "any" is the non-monotonic critic of Sec 4.1, "sum" FACMAC with VDN's mixer. `Facmac` is
for discrete actions: recurrent actors, learning from episodes. `FacmacContinuous` is for continuous
ones: feed-forward actors, learning from transitions, lambda 0. Sources of the settings: the
authors' code for StarCraft and for Multi-Agent MuJoCo.

Differences from the authors' code:
1. An episode that was truncated ends in its own value wherever it ends within a batch; theirs
   relies on the longest.
2. Random exploration and targets never pick an unavailable action; theirs may, on steps after an
   episode's end.
3. Continuous actors and utilities see which agent they serve.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.nn.critics import FactoredCritic
from comarl.nn.mixers import Mixing
from comarl.nn.policies import SharedActor, explore_with_noise
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.distributions import straight_through_steps
from comarl.ops.exploration import Epsilon, epsilon_softmax, greedy
from comarl.ops.learner import Adam, Tracked
from comarl.ops.returns import episode_targets, masked_mean, one_step_targets, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace, StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_range


class State(eqx.Module):
    """What changes while FACMAC learns discrete actions."""

    actor: Tracked[RecurrentNet]  # mu_i, shared by agents, and mu'
    critic: Tracked[FactoredCritic]  # Q_tot and Q_tot'


class ContinuousState(eqx.Module):
    """What changes while FACMAC learns continuous actions."""

    actor: Tracked[SharedActor]  # mu_i, shared by agents, and mu'
    critic: Tracked[FactoredCritic]  # Q_tot and Q_tot'


@dataclass(frozen=True)
class Facmac:
    """Hyperparameters of FACMAC for discrete actions. The defaults are the authors' for
    StarCraft."""

    packs: ClassVar = True
    actions = frozenset({"discrete"})

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
        """New networks and optimisers for a task of these sizes."""
        actor_key, critic_key = jax.random.split(key)
        return State(
            actor=Tracked.create(self.make_actor(spec, actor_key), self.actor_optimiser),
            critic=Tracked.create(self.make_critic(spec, critic_key), self.critic_optimiser),
        )

    def make_actor(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """mu_i(tau_i) as logits."""
        return RecurrentNet(spec, self.hidden, key=key)

    def make_critic(self, spec: EnvSpec, key: Key) -> FactoredCritic:
        """Q_tot(s, u), Eq. 5."""
        return FactoredCritic(
            spec,
            (self.hidden, self.hidden),
            self.mixing,
            width=self.mixer_width,
            hypernet=self.hypernet,
            key=key,
        )

    def initial_memory(self, state: PyTree, timestep: Timestep, key: Key) -> Memory:
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
        if explore:
            action = self.explore(logits, timestep.available, epsilon, key)
        else:
            action = greedy(logits, timestep.available)
        return Memory(hidden, action), action

    def explore(
        self,
        logits: Float[Array, "agents actions"],
        available: Bool[Array, "agents actions"] | None,
        epsilon: Float[Array, ""] | float,
        key: Key,
    ) -> Int[Array, " agents"]:
        """Drawn from the policies, with a share epsilon of random actions."""
        return epsilon_softmax(logits, available, epsilon, key)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The critic, then the actors by the critic as it is now; targets are copied when due."""
        # Critic: Eq. 6.
        critic, critic_metrics = self.fit_critic(state, batch)

        # Actors: Eq. 7.
        actor, actor_metrics = self.fit_actor(state.actor, critic.value, batch, key)

        # Targets.
        actor = actor.copy_every(self.target_period, clock.updates)
        critic = critic.copy_every(self.target_period, clock.updates)
        metrics = critic_metrics | actor_metrics | {"epsilon": self.epsilon.at(clock)}
        return State(actor, critic), metrics

    def fit_critic(self, state: State, batch: Episode) -> tuple[Tracked[FactoredCritic], Metrics]:
        """TD(lambda) with the target actors' greedy actions (Eq. 6)."""
        steps = batch.timesteps
        logits = jax.vmap(state.actor.target.unroll)(batch)
        num_actions = logits.shape[-1]
        next_action = jax.nn.one_hot(greedy(logits, steps.available), num_actions)[:, 1:]
        next_q = state.critic.target(steps.obs[:, 1:], next_action, steps.state[:, 1:])
        target = episode_targets(batch, next_q, self.gamma, self.td_lambda)
        action = jax.nn.one_hot(batch.action, num_actions)

        def loss(critic: FactoredCritic) -> tuple[Float[Array, ""], Float[Array, "batch time"]]:
            q = critic(steps.obs[:, :-1], action, steps.state[:, :-1])
            return masked_mean(jnp.square(q - target), batch.mask), q

        critic, (td_loss, q) = state.critic.descend(loss, has_aux=True)
        metrics = {"critic_loss": td_loss, "td_loss": td_loss}
        return critic, metrics | td_metrics(q, target, batch.mask)

    def fit_actor(
        self, actor: Tracked[RecurrentNet], critic: FactoredCritic, batch: Episode, key: Key
    ) -> tuple[Tracked[RecurrentNet], Metrics]:
        """All agents at once maximise Q_tot (Eq. 7)."""
        steps, available = batch.timesteps, batch.timesteps.available
        assert available is not None  # discrete tasks say what is legal

        def loss(actor: RecurrentNet) -> Float[Array, ""]:
            logits = jax.vmap(actor.unroll)(batch)[:, :-1]
            action = straight_through_steps(logits, available[:, :-1], key)
            q = critic(steps.obs[:, :-1], action, steps.state[:, :-1])
            return -masked_mean(q, batch.mask)

        actor, actor_loss = actor.descend(loss)
        return actor, {"actor_loss": actor_loss}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode."""
        del key
        steps, num_actions = episode.timesteps, state.actor.value.spec.action_size
        action = jax.nn.one_hot(episode.action, num_actions)
        return state.critic.value(steps.obs[:-1], action, steps.state[:-1])


@dataclass(frozen=True)
class FacmacContinuous:
    """Hyperparameters of FACMAC for continuous actions. The defaults are the authors' for
    Multi-Agent MuJoCo."""

    actions = frozenset({"continuous"})

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
        check_range(self, 0, None, "hypernet", "exploration_noise", "action_penalty")

    def init(self, spec: EnvSpec, key: Key) -> ContinuousState:
        """New networks and optimisers for a task of these sizes."""
        actor_key, critic_key = jax.random.split(key)
        return ContinuousState(
            actor=Tracked.create(self.make_actor(spec, actor_key), self.actor_optimiser),
            critic=Tracked.create(self.make_critic(spec, critic_key), self.critic_optimiser),
        )

    def make_actor(self, spec: EnvSpec, key: Key) -> SharedActor:
        """mu_i(o_i)."""
        return SharedActor(spec, self.hidden, key=key)

    def make_critic(self, spec: EnvSpec, key: Key) -> FactoredCritic:
        """Q_tot(s, u), Eq. 5, whose utilities see which agent they value."""
        return FactoredCritic(
            spec,
            self.hidden,
            self.mixing,
            width=self.mixer_width,
            hypernet=self.hypernet,
            with_identity=True,
            key=key,
        )

    def initial_memory(self, state: ContinuousState, timestep: Timestep, key: Key) -> tuple[()]:
        """Nothing is carried from step to step."""
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
        """The policies' actions, with noise while exploring."""
        del team, clock
        actor = state.actor.value
        action = actor(timestep.obs)
        if explore:
            action = explore_with_noise(action, self.exploration_noise, actor.spec, key)
        return memory, action

    def update(
        self, state: ContinuousState, batch: Transition, clock: Clock, key: Key
    ) -> tuple[ContinuousState, Metrics]:
        """The critic, then the actors by the critic as it is now; then every target moves."""
        del clock, key
        # Critic: Eq. 6.
        critic, critic_metrics = self.fit_critic(state, batch)

        # Actors: Eq. 7.
        actor, actor_metrics = self.fit_actor(state.actor, critic.value, batch)

        # Targets.
        targets_moved = ContinuousState(actor.polyak(self.tau), critic.polyak(self.tau))
        return targets_moved, critic_metrics | actor_metrics

    def fit_critic(
        self, state: ContinuousState, batch: Transition
    ) -> tuple[Tracked[FactoredCritic], Metrics]:
        """One step ahead, with the target actors' actions (Eq. 6)."""
        actor, (now, later) = state.actor.target, (batch.now, batch.next)
        next_action = actor(later.obs)
        next_q = state.critic.target(actor.with_identity(later.obs), next_action, later.state)
        target = one_step_targets(batch.reward, batch.terminated, next_q, self.gamma)

        def loss(critic: FactoredCritic) -> tuple[Float[Array, ""], Float[Array, " batch"]]:
            q = critic(actor.with_identity(now.obs), batch.action, now.state)
            return jnp.square(q - target).mean(), q

        critic, (td_loss, q) = state.critic.descend(loss, has_aux=True)
        return critic, {"critic_loss": td_loss, "td_loss": td_loss} | td_metrics(q, target)

    def fit_actor(
        self, actor: Tracked[SharedActor], critic: FactoredCritic, batch: Transition
    ) -> tuple[Tracked[SharedActor], Metrics]:
        """All agents at once maximise Q_tot (Eq. 7), with a small price on large actions."""
        now = batch.now

        def loss(actor: SharedActor) -> Float[Array, ""]:
            action = actor(now.obs)
            q = critic(actor.with_identity(now.obs), action, now.state)
            return -q.mean() + self.action_penalty * jnp.square(action).mean()

        actor, actor_loss = actor.descend(loss)
        return actor, {"actor_loss": actor_loss}
