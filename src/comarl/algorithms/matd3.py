"""MATD3: twin delayed policy gradients for a team (Ackermann et al., 2019; TD3: Fujimoto et al.,
ICML 2018).

Each agent acts on its own observation; a centralised critic of several Q-functions, used in
training only, values the joint action in the state.

    u'      = clip(mu_phi'(o') + clip(N(0, sigma^2), -c, c), -1, 1)                (TD3, Eq. 14)
    y       = r + gamma (1 - terminated) min_k Q_psi'_k(s', u')                    (TD3, Eq. 10)
    L_psi   = sum_k mean (Q_psi_k(s, u) - y)^2
    L_phi   = -mean Q_psi_1(s, mu_phi(o))                 all agents' actions replaced at once
    phi', psi' <- tau phi, psi + (1 - tau) phi', psi'     every `policy_delay` updates

With one Q-function, no delay and no smoothing it is DDPG for a team; MADDPG, with a critic for each
agent, is `maddpg`.

Differences from the authors' code:
1. One critic for the team and a joint policy gradient, as RACE's MATD3 has it; Ackermann's has a
   critic per agent.
2. Sizes, learning rates, clipping and layer normalisation follow RACE's code base (ERL-Re2), not
   Ackermann's.
3. The delay counts from the first update of each round, which therefore is a policy update (as in
   ERL-Re2).
"""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from comarl.nn.critics import Critic
from comarl.nn.mlp import Linear, Torso, leaky_relu
from comarl.nn.policies import (
    choose,
    encode,
    explore_with_noise,
    make_encoders,
    make_heads,
    smooth_target,
)
from comarl.ops.learner import Adam, Tracked
from comarl.ops.returns import one_step_targets, td_metrics
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Keys, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_layers, check_range


class Actors(eqx.Module):
    """mu_phi: every agent's own network; leaves lead with `agents`."""

    encoders: Torso
    heads: Linear
    spec: EnvSpec = eqx.field(static=True)

    def __call__(
        self, obs: Float[Array, "*batch agents obs"]
    ) -> Float[Array, "*batch agents action"]:
        """Actions in [-1, 1], 0 where padded."""
        return choose(self.heads, encode(self.encoders, obs), self.spec)


class State(eqx.Module):
    """What changes while MATD3 learns."""

    actors: Tracked[Actors]  # mu_phi, and mu_phi'; each agent has an optimiser of its own
    critic: Tracked[Critic]  # Q_psi, and the target critic Q_psi'


@dataclass(frozen=True)
class Matd3:
    """Hyperparameters of MATD3. The defaults are those of RACE's comparison (its code base
    ERL-Re2)."""

    actions = frozenset({"continuous"})

    hidden: tuple[int, ...] = (400, 300)
    """units of the hidden layers of actors and critics"""
    activation: Literal["tanh", "relu"] = "tanh"
    """of hidden layers: "tanh" has tanh in actors and leaky ReLU in critics, as ERL-Re2 and RACE;
    "relu" has ReLU in both, as TD3's code"""
    output_scale: float = 0.1
    """how large the last layers of actors and critics start: ERL-Re2's at a tenth of PyTorch's
    default, TD3's at 1"""
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
    """optimiser of each agent's actor"""
    critic_optimiser: Adam = Adam(1e-3)
    """optimiser of the critics"""
    replay: Ring = Ring(1_000_000, 128)
    """transitions kept and drawn"""
    pace: StepPace = StepPace()
    """random steps before learning starts, and gradient steps for each step after"""

    def __post_init__(self):
        check_fields(self)
        check_layers(self, "hidden")
        check_range(self, 1, None, "critics", "policy_delay")
        check_range(self, 0, 1, "gamma", "tau")
        check_range(
            self, 0, None, "output_scale", "exploration_noise", "target_noise", "target_noise_clip"
        )

    def init(self, spec: EnvSpec, key: Key) -> State:
        """The state before training; targets begin as what they follow."""
        keys = jax.random.split(key, 3)
        actors = self.make_actors(spec, keys[:2])
        critic = self.make_critic(spec, keys[2])
        return State(
            actors=Tracked.create_each(actors, self.actor_optimiser),
            critic=Tracked.create(critic, self.critic_optimiser),
        )

    def make_actors(self, spec: EnvSpec, keys: Keys) -> Actors:
        """The policies of all agents, made with two keys."""
        activation = jax.nn.relu if self.activation == "relu" else jnp.tanh
        encoders = make_encoders(spec, self.hidden, self.layer_norm, keys[0], activation)
        heads = make_heads(spec, self.hidden[-1], keys[1], scale=self.output_scale)
        return Actors(encoders, heads, spec)

    def make_critic(self, spec: EnvSpec, key: Key) -> Critic:
        """The Q-functions of the state and the joint action."""
        return Critic(
            spec,
            self.hidden,
            critics=self.critics,
            layer_norm=self.layer_norm,
            activation=jax.nn.relu if self.activation == "relu" else leaky_relu,
            output_scale=self.output_scale,
            key=key,
        )

    def initial_memory(self, state: PyTree, timestep: Timestep, key: Key) -> tuple[()]:
        """Nothing: the policies see the observation of the step alone."""
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
        """Each agent acts on its own observation, with noise while it explores."""
        del team, clock
        action = state.actors.value(timestep.obs)
        if explore:
            action = self.explore(action, state.actors.value.spec, key)
        return memory, action

    def explore(
        self, action: Float[Array, "agents action"], spec: EnvSpec, key: Key
    ) -> Float[Array, "agents action"]:
        """The greedy action with Gaussian noise."""
        return explore_with_noise(action, self.exploration_noise, spec, key)

    def policy(self, state: State) -> Actors:
        """The team that learns, as data that evolution may copy."""
        return state.actors.value

    def perform(
        self, policy: Actors, memory: tuple[()], timestep: Timestep, key: Key, *, explore: bool
    ) -> tuple[tuple[()], Float[Array, "agents action"]]:
        """How an evolving team acts: always without noise."""
        del key, explore
        return memory, policy(timestep.obs)

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """One step of the critic, and in every `policy_delay`-th update of actors and targets."""
        # Critic: TD3, Eq. 10 and 14.
        critic, metrics = self.fit_critic(state, batch, key)
        state = State(state.actors, critic)
        # Actors and targets, delayed. The clock's update is the same for all seeds, so that only
        # one branch is computed.
        state = jax.lax.cond(
            clock.update_in_round % self.policy_delay == 0,
            lambda state: self.fit_actors(state, batch),
            lambda state: state,
            state,
        )
        return state, metrics

    def fit_critic(
        self, state: State, batch: Transition, key: Key
    ) -> tuple[Tracked[Critic], Metrics]:
        """Clipped double Q-learning with smoothed target actions (TD3, Eq. 10 and 14)."""
        next_action = smooth_target(
            state.actors.target(batch.next.obs),
            self.target_noise,
            self.target_noise_clip,
            state.actors.value.spec,
            key,
        )
        next_q = state.critic.target(batch.next.state, next_action).min(axis=0)
        target = one_step_targets(batch.reward, batch.terminated, next_q, self.gamma)

        def loss(critic: Critic) -> tuple[Float[Array, ""], Float[Array, "critics batch"]]:
            q = critic(batch.now.state, batch.action)
            return jnp.square(q - target).mean(axis=1).sum(), q

        critic, (critic_loss, q) = state.critic.descend(loss, has_aux=True)
        losses = {"critic_loss": critic_loss, "td_loss": critic_loss}
        return critic, losses | td_metrics(q[0], target)

    def fit_actors(self, state: State, batch: Transition) -> State:
        """The policies maximise the first Q-function, all at once; then every target moves."""

        def loss(actors: Actors) -> Float[Array, ""]:
            return -state.critic.value.first(batch.now.state, actors(batch.now.obs)).mean()

        actors, _ = state.actors.descend(loss)
        return State(actors.polyak(self.tau), state.critic.polyak(self.tau))
