"""MATD3: twin delayed policy gradients for a team (Ackermann et al., 2019; TD3: Fujimoto et al.,
ICML 2018).

Each agent acts on its own observation; one twin critic, used in training only, values the joint
action in the state.

    u'      = clip(mu_phi'(o') + clip(N(0, sigma^2), -c, c), -1, 1)             target policy smoothing (TD3, Eq. 14)
    y       = r + gamma (1 - terminated) min_k Q_psi'_k(s', u')                 clipped double Q (TD3, Eq. 10)
    L_psi   = sum_k mean (Q_psi_k(s, u) - y)^2
    L_phi   = -mean Q_psi_1(s, mu_phi(o))                                       all agents' actions replaced at once
    phi', psi' <- tau phi, psi + (1 - tau) phi', psi'                           every `policy_delay` updates

With one Q-function, no delay and no smoothing it is DDPG for a team; MADDPG, with a critic for each
agent, is `maddpg`.

Differences from the authors' code:
1. One critic for the team and a joint policy gradient, as RACE's MATD3 has it; Ackermann's has a critic per agent.
2. Sizes, learning rates, clipping and layer normalisation follow RACE's code base (ERL-Re2), not Ackermann's.
3. The delay counts from the first update of each round, which therefore is a policy update (as in ERL-Re2).
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from comarl.nn.critics import Critic
from comarl.nn.mlp import Linear, Torso
from comarl.nn.policies import (
    choose,
    encode,
    explore_with_noise,
    make_encoders,
    make_heads,
    smooth_target,
)
from comarl.ops.learner import Adam, Learner, polyak
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_layers, check_range


class Actors(eqx.Module):
    """Every agent's own network; leaves lead with `agents`."""

    encoders: Torso
    heads: Linear
    spec: EnvSpec = eqx.field(static=True)

    def __call__(
        self, obs: Float[Array, "*batch agents obs"]
    ) -> Float[Array, "*batch agents action"]:
        return choose(self.heads, encode(self.encoders, obs), self.spec)


class State(eqx.Module):
    """What changes while MATD3 learns."""

    actors: Learner[Actors]  # mu_phi
    critic: Learner[Critic]  # Q_psi
    target_actors: Actors  # mu_phi'
    target_critic: Critic  # Q_psi'


@dataclass(frozen=True)
class Matd3:
    """Hyperparameters of MATD3. The defaults are those of RACE's comparison (its code base
    ERL-Re2)."""

    actions: ClassVar = frozenset({"continuous"})

    hidden: tuple[int, ...] = (400, 300)
    """units of the hidden layers of actors (tanh) and critics (leaky ReLU)"""
    layer_norm: bool = True
    """layer normalisation before each activation, as in ERL-Re2; RACE's tables do not mention it"""
    critics: int = 2
    """independent Q-functions, of which targets take the minimum; 1 takes it as it is"""
    gamma: float = 0.99
    """discount"""
    tau: float = 0.005
    """step of the target networks, on policy updates only"""
    policy_delay: int = 2
    """critic updates per policy update"""
    exploration_noise: float = 0.1
    """standard deviation of the noise on actions in training"""
    target_noise: float = 0.2
    """standard deviation of the noise on target actions; 0 turns smoothing off"""
    target_noise_clip: float = 0.5
    """bound on the noise on target actions"""
    actor_optimiser: Adam = Adam(1e-3)
    """optimiser of the actors"""
    critic_optimiser: Adam = Adam(1e-3)
    """optimiser of the critics"""
    replay: Ring = Ring(1_000_000, 128)
    """transitions kept and drawn"""
    pace: StepPace = StepPace()
    """random steps before learning starts, and gradient steps for each step after"""

    def __post_init__(self):
        check_layers(self, "hidden")
        check_range(self, 1, None, "critics", "policy_delay")
        check_range(self, 0, 1, "gamma", "tau")
        check_range(self, 0, None, "exploration_noise", "target_noise")

    def init(self, spec: EnvSpec, key: Key) -> State:
        encoder_key, head_key, critic_key = jax.random.split(key, 3)
        encoders = make_encoders(spec, self.hidden, self.layer_norm, encoder_key)
        actors = Actors(encoders, make_heads(spec, self.hidden[-1], head_key, scale=0.1), spec)
        critic = Critic(
            spec, self.hidden, critics=self.critics, layer_norm=self.layer_norm, key=critic_key
        )
        return State(
            actors=Learner.create(actors, self.actor_optimiser),
            critic=Learner.create(critic, self.critic_optimiser),
            target_actors=actors,
            target_critic=critic,
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
        del team, clock
        actors = state.actors.value
        action = actors(timestep.obs)
        return memory, explore_with_noise(
            action, self.exploration_noise, actors.spec, key
        ) if explore else action

    def policy(self, state: State) -> Actors:
        """The team that learns, as data that evolution may copy."""
        return state.actors.value

    def perform(
        self, policy: Actors, memory: tuple[()], timestep: Timestep, key: Key, *, explore: bool
    ) -> tuple[tuple[()], Float[Array, "agents action"]]:
        """How an evolving team acts: always as it is."""
        del key, explore
        return memory, policy(timestep.obs)

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        critic, metrics = self.fit_critic(state, batch, key)
        state = eqx.tree_at(lambda s: s.critic, state, critic)
        state = jax.lax.cond(
            clock.update_in_round % self.policy_delay == 0,
            lambda s: self.fit_actors(s, batch),
            lambda s: s,
            state,
        )
        return state, metrics

    def fit_critic(
        self, state: State, batch: Transition, key: Key
    ) -> tuple[Learner[Critic], Metrics]:
        """Clipped double Q-learning with smoothed target actions (TD3, Eqs. 10 and 14)."""
        spec = state.target_actors.spec
        next_action = smooth_target(
            state.target_actors(batch.next.obs),
            self.target_noise,
            self.target_noise_clip,
            spec,
            key,
        )
        next_q = state.target_critic(batch.next.state, next_action).min(axis=0)
        target = batch.reward + self.gamma * jnp.where(batch.terminated, 0.0, next_q)

        def loss(critic: Critic) -> Float[Array, ""]:
            return jnp.square(critic(batch.now.state, batch.action) - target).mean(axis=1).sum()

        critic, critic_loss = state.critic.descend(loss)
        return critic, {"critic_loss": critic_loss, "target_value": target.mean()}

    def fit_actors(self, state: State, batch: Transition) -> State:
        """The team's policies climb the first Q-function; then every target moves."""

        def loss(actors: Actors) -> Float[Array, ""]:
            return -state.critic.value.first(batch.now.state, actors(batch.now.obs)).mean()

        actors, _ = state.actors.descend(loss)
        return State(
            actors=actors,
            critic=state.critic,
            target_actors=polyak(state.target_actors, actors.value, self.tau),
            target_critic=polyak(state.target_critic, state.critic.value, self.tau),
        )
