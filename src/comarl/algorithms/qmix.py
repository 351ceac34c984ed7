"""QMIX: monotonic value function factorisation (Rashid et al., ICML 2018), and VDN (Sunehag et al.,
AAMAS 2018).

Every agent values its own actions from its own history; a mixer, whose weights are made from the
state and are never negative, joins the values of the chosen actions. The best joint action is then
every agent's own best action.

    Q_i(tau_i, u_i)         recurrent utilities, shared by agents that see their number                          (Sec 4)
    Q_tot = g_s(Q_1 .. Q_N),  dQ_tot / dQ_i >= 0                                                               (Eq 4, 5)
    u*_t  = argmax_u Q_i(tau_i, u_i), each agent among what is available
    V_t   = Q_tot'(s_t, u*_t)                  double Q-learning: chosen by the live network, valued by the target
    y_t   = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})                                      (lambda 0 is Eq 6)
    L     = mean over steps (Q_tot(s_t, u_t) - y_t)^2                                                            (Eq 6)

VDN is the preset whose mixer is a sum; IQL has no mixer: every agent learns the team's reward for
itself.

The defaults are PyMARL's, the authors' code; `qmix-pymarl2` and its kin have the settings of PyMARL2 (Hu et al., 2021).
Differences from the authors' code:
1. An episode that was cut by time ends in its own value wherever it ends within a batch; theirs relies on the longest.
2. Unavailable actions never win, whatever the values; theirs are set to -9999999.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mixers import Mixer, Sum, make_mixer
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy, pick
from comarl.ops.learner import Learner, Optimiser, RmsProp, copy_every
from comarl.ops.returns import lambda_returns, masked_mean
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range


class Network(eqx.Module):
    """All that learns."""

    utilities: RecurrentNet  # Q_i(tau_i, .), shared by agents
    mixer: Mixer | Sum | None  # None: each agent for itself


class State(eqx.Module):
    """What changes while QMIX learns."""

    learner: Learner[Network]
    target: Network


@dataclass(frozen=True)
class Qmix:
    """Hyperparameters of QMIX. The defaults are PyMARL's."""

    packs: ClassVar = True
    actions: ClassVar = frozenset({"discrete"})

    mixing: Literal["monotonic", "any", "sum", "none"] = "monotonic"
    """how utilities are joined: QMIX's mixer, the same without its sign constraint, VDN's sum, or
    not at all (IQL)"""
    hidden: int = 64
    """units of the recurrent layer"""
    mixer_width: int = 32
    """units of the mixer's hidden layer"""
    hypernet: int = 64
    """units of the hidden layer that makes the mixer's weights; 0 makes them linear in the state"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.0
    """lambda of the TD(lambda) target; 0 looks one step ahead"""
    double: bool = True
    """choose the target's action by the live network, value it by the target network; off, the
    target does both"""
    epsilon: Epsilon = Epsilon(1.0, 0.05, 50_000)
    """chance of a random action, at first and in the end"""
    target_period: int = 200
    """updates between copies of the network to the target"""
    optimiser: Optimiser = RmsProp(5e-4)
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
        utilities_key, mixer_key = jax.random.split(key)
        mixer = None
        if self.mixing != "none":
            size = dict(width=self.mixer_width, hypernet=self.hypernet)
            mixer = make_mixer(self.mixing, spec.num_agents, spec.state_size, **size, key=mixer_key)
        network = Network(RecurrentNet(spec, self.hidden, key=utilities_key), mixer)
        return State(Learner.create(network, self.optimiser), network)

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
        del team
        hidden, utilities = state.learner.value.utilities.step(memory, timestep.obs)
        action = (
            self.explore(utilities, timestep.available, clock, key)
            if explore
            else greedy(utilities, timestep.available)
        )
        return Memory(hidden, action), action

    def explore(
        self,
        scores: Float[Array, "agents actions"],
        available: Bool[Array, "agents actions"] | None,
        clock: Clock,
        key: Key,
    ) -> Int[Array, " agents"]:
        """Each agent on its own: any available action with chance epsilon, else the best."""
        return epsilon_greedy(scores, available, self.epsilon.at(clock), key)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        def loss(network: Network) -> tuple[Float[Array, ""], Metrics]:
            q, target = jax.vmap(lambda episode: self.values(network, state.target, episode))(batch)
            mask = jnp.broadcast_to(
                batch.mask.reshape(*batch.mask.shape, *[1] * (q.ndim - 2)), q.shape
            )
            error = masked_mean(jnp.square(q - jax.lax.stop_gradient(target)), mask)
            return error, {
                "loss": error,
                "value": masked_mean(q, mask),
                "target_value": masked_mean(target, mask),
            }

        gradient, metrics = jax.grad(loss, has_aux=True)(state.learner.value)
        learner = state.learner.apply(gradient)
        return State(
            learner, copy_every(self.target_period, clock.updates, state.target, learner.value)
        ), metrics

    def values(
        self, network: Network, target: Network, episode: Episode
    ) -> tuple[Float[Array, "time *agents"], Float[Array, "time *agents"]]:
        """Q_tot of the actions of one episode, and their targets y; for IQL both of every agent."""
        utilities, later = network.utilities.unroll(episode), target.utilities.unroll(episode)
        best = greedy(utilities if self.double else later, episode.timesteps.available)
        chosen = pick(utilities[:-1], episode.action)
        q = self.mix(network, chosen, episode.timesteps.state[:-1])
        next_value = self.mix(target, pick(later, best)[1:], episode.timesteps.state[1:])
        discount = self.gamma * jnp.where(episode.terminated, 0.0, 1.0)
        returns = lambda v: lambda_returns(
            episode.reward, discount, v, episode.mask, self.td_lambda
        )
        return q, returns(next_value) if q.ndim == 1 else jax.vmap(returns, 1, 1)(next_value)

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode; for IQL the mean over its
        agents."""
        del key
        q, _ = self.values(state.learner.value, state.target, episode)
        return q if q.ndim == 1 else q.mean(axis=-1)

    def mix(
        self,
        network: Network,
        utilities: Float[Array, "time agents"],
        state: Float[Array, "time state"],
    ) -> Float[Array, "time *agents"]:
        return utilities if network.mixer is None else network.mixer(utilities, state)
