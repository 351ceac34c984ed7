"""QMIX: monotonic value function factorisation (Rashid et al., ICML 2018), and VDN (Sunehag et al.,
AAMAS 2018).

Every agent values its own actions from its own history. A mixer, whose weights are made from the
state and are never negative, joins the values of the chosen actions. The best joint action is then
every agent's own best action.

    Q_i(tau_i, u_i)          recurrent utilities, shared by agents that see their number     (Sec 4)
    Q_tot = g_s(Q_1 .. Q_N),  dQ_tot / dQ_i >= 0                                          (Eq 4, 5)
    u*_t  = argmax_u Q_i(tau_i, u_i), each agent among what is available                     (Eq 4)
    V_t   = Q_tot'(s_t, u*_t)     double Q-learning: the live network chooses, the target values
    y_t   = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})                (lambda 0 is Eq 6)
    L     = mean over steps (Q_tot(s_t, u_t) - y_t)^2                                        (Eq 6)

VDN is the preset whose mixer is a sum. IQL is the preset without a mixer: every agent learns the
team's reward for itself.

The defaults are PyMARL's, the authors' code; `qmix-pymarl2` and its kin have the settings of
PyMARL2 (Hu et al., 2021). Differences from the authors' code:
1. An episode that was cut by time ends in its own value wherever it ends within a batch; theirs
   relies on the longest.
2. Unavailable actions never win, whatever the values; theirs are set to -9999999.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mixers import UtilityMixer, make_mixer, mix
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy, pick
from comarl.ops.learner import Optimiser, RmsProp, Tracked
from comarl.ops.returns import lambda_returns, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range


class Network(eqx.Module):
    """All that learns."""

    utilities: RecurrentNet  # Q_i(tau_i, .), shared by agents
    mixer: UtilityMixer | None  # g; None: each agent for itself


class State(eqx.Module):
    """What changes while QMIX learns."""

    network: Tracked[Network]


@dataclass(frozen=True)
class Qmix:
    """Hyperparameters of QMIX. The defaults are PyMARL's."""

    packs: ClassVar = True
    actions = frozenset({"discrete"})

    mixing: Literal["monotonic", "any", "sum", "none"] = "monotonic"
    """how utilities are joined: by QMIX's mixer, by the same without its sign constraint, by VDN's
    sum, or not at all (IQL)"""
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
        """New networks and optimisers for a task of these sizes."""
        utilities_key, mixer_key = jax.random.split(key)
        network = Network(
            utilities=self.make_utilities(spec, utilities_key),
            mixer=self.make_mixer(spec, mixer_key),
        )
        return State(Tracked.create(network, self.optimiser))

    def make_utilities(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """Q_i(tau_i, .): one recurrent network for all agents."""
        return RecurrentNet(spec, self.hidden, key=key)

    def make_mixer(self, spec: EnvSpec, key: Key) -> UtilityMixer | None:
        """g: any module that takes utilities `[*batch agents]` and the state `[*batch state]`.

        It gives Q_tot `[*batch]`. A subclass that replaces this method is QMIX with another mixer.
        """
        if self.mixing == "none":
            return None
        return make_mixer(
            self.mixing,
            spec.num_agents,
            spec.state_size,
            width=self.mixer_width,
            hypernet=self.hypernet,
            key=key,
        )

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
        """The joint action of one team, greedy unless it explores."""
        del team
        hidden, utilities = state.network.value.utilities.step(memory, timestep.obs)
        if explore:
            action = self.explore(utilities, timestep.available, clock, key)
        else:
            action = greedy(utilities, timestep.available)
        return Memory(hidden, action), action

    def explore(
        self,
        scores: Float[Array, "agents actions"],
        available: Bool[Array, "agents actions"] | None,
        clock: Clock,
        key: Key,
    ) -> Int[Array, " agents"]:
        """Each agent on its own takes any available action with chance epsilon, else its best."""
        return epsilon_greedy(scores, available, self.epsilon.at(clock), key)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """One step of utilities and mixer down L; the target is copied when due."""
        del key
        target_network = state.network.target

        def loss(network: Network) -> tuple[Float[Array, ""], Metrics]:
            # The squared TD error: Eq. 6. For IQL it is a mean over agents, too.
            q, y = jax.vmap(lambda episode: self.values(network, target_network, episode))(batch)
            y = jax.lax.stop_gradient(y)
            mask = batch.mask[..., None] if network.mixer is None else batch.mask
            mask = jnp.broadcast_to(mask, q.shape)
            td_loss = masked_mean(jnp.square(q - y), mask)
            return td_loss, {"td_loss": td_loss, **td_metrics(q, y, mask)}

        network, (total, metrics) = state.network.descend(loss, has_aux=True)
        network = network.copy_every(self.target_period, clock.updates)
        metrics = metrics | {"loss": total, "epsilon": self.epsilon.at(clock)}
        return State(network), metrics

    def values(
        self, network: Network, target: Network, episode: Episode
    ) -> tuple[Float[Array, "time *agents"], Float[Array, "time *agents"]]:
        """Q_tot of the actions of one episode, and their targets y; for IQL both of every agent."""
        timesteps = episode.timesteps
        utilities = network.utilities.unroll(episode)
        target_utilities = target.utilities.unroll(episode)

        # Q_tot of what was done: Eq. 4, 5.
        q = self.mix(network, pick(utilities[:-1], episode.action), timesteps.state[:-1])

        # V of what the live network likes best, valued by the target network.
        best = greedy(utilities if self.double else target_utilities, timesteps.available)
        next_value = self.mix(target, pick(target_utilities, best)[1:], timesteps.state[1:])

        # y: Eq. 6.
        discount = self.gamma * jnp.where(episode.terminated, 0.0, 1.0)

        def targets(next_value: Float[Array, " time"]) -> Float[Array, " time"]:
            return lambda_returns(
                episode.reward, discount, next_value, episode.mask, self.td_lambda
            )

        if network.mixer is None:  # every agent has targets of its own
            return q, jax.vmap(targets, 1, 1)(next_value)
        return q, targets(next_value)

    def mix(
        self,
        network: Network,
        utilities: Float[Array, "time agents"],
        state: Float[Array, "time state"],
    ) -> Float[Array, "time *agents"]:
        """Q_tot of chosen utilities; for IQL the utilities themselves."""
        return utilities if network.mixer is None else mix(network.mixer, utilities, state)

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode.

        For IQL it is the mean over the agents.
        """
        del key
        q, _ = self.values(state.network.value, state.network.target, episode)
        return q.mean(axis=-1) if state.network.value.mixer is None else q
