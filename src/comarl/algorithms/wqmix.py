"""CW-QMIX and OW-QMIX: weighted QMIX (Rashid et al., NeurIPS 2020).

QMIX spends its monotonic Q_tot evenly on all joint actions, and where it cannot fit them all, the
best may lose. Here a second, unrestricted value Q* of the joint action learns beside it and makes
the targets of both. Q_tot cares less for the joint actions that seem worse than what it would
choose.

    Q_tot(s, u) = g_s(Q_1(h_1, u_1) .. Q_N(h_N, u_N)),  dQ_tot / dQ_i >= 0                   (QMIX)
    Q*(s, u)    = f(s, C_1(c_1, u_1) .. C_N(c_N, u_N)) + v(s)           C_i and c_i are Q*'s own
    u*_t  = argmax_u Q_tot(s_t, u)                   each agent's best available action by its Q_i
    y_t   = r_t + gamma ((1 - lambda) Q*'(s_{t+1}, u*_{t+1}) + lambda y_{t+1})       (lambda is 0)
    L     = mean over steps w_t (Q_tot(s_t, u_t) - y_t)^2
            + mean over steps (Q*(s_t, u_t) - y_t)^2
    w_t   = 1 if u_t = u*_t or y_t > Q*'(s_t, u*_t), else w_low     centrally weighted: CW-QMIX
    w_t   = 1 if y_t > Q_tot(s_t, u_t), else w_low            optimistically weighted: OW-QMIX

The paper calls w_low alpha. No gradient goes through weights and targets.

The defaults are the authors'; the presets `-pymarl2` have the settings that are common to PyMARL2
(Hu et al., 2021). Differences from the authors' code:
1. An episode that was cut by time ends in its own value wherever it ends within a batch.
2. Unavailable actions never win, whatever the values; theirs are set to -9999999.
3. Their attention in Q*, which they use on one map of StarCraft, is left out.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mixers import Mixer, UtilityMixer, mix
from comarl.nn.mlp import MLP
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy, pick
from comarl.ops.learner import Learner, Optimiser, RmsProp, copy_every
from comarl.ops.returns import episode_targets, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range


class Unrestricted(eqx.Module):
    """Q*(s, u): a network of the state and of utilities that no agent acts by."""

    utilities: RecurrentNet  # C_i(c_i, .), shared by agents
    mixer: MLP  # f
    bias: MLP  # v

    def __init__(self, spec: EnvSpec, hidden: int, width: int, *, key: Key):
        utilities_key, mixer_key, bias_key = jax.random.split(key, 3)
        self.utilities = RecurrentNet(spec, hidden, key=utilities_key)
        sizes = (spec.state_size + spec.num_agents, width, width, width, 1)
        self.mixer = MLP(sizes, activation=jax.nn.relu, key=mixer_key)
        self.bias = MLP((spec.state_size, width, 1), activation=jax.nn.relu, key=bias_key)

    def mix(
        self, utilities: Float[Array, "*batch agents"], state: Float[Array, "*batch state"]
    ) -> Float[Array, "*batch"]:
        """Q* from the utilities C_i of the chosen actions and the state."""
        joined = self.mixer(jnp.concatenate([state, utilities], axis=-1))
        return (joined + self.bias(state))[..., 0]


class Network(eqx.Module):
    """All that learns."""

    utilities: RecurrentNet  # Q_i(h_i, .), shared by agents: what they act by
    mixer: UtilityMixer  # g
    unrestricted: Unrestricted  # Q*


class State(eqx.Module):
    """What changes while weighted QMIX learns. Only Q* needs a target network."""

    network: Learner[Network]
    target_unrestricted: Unrestricted


@dataclass(frozen=True)
class Wqmix:
    """Hyperparameters of weighted QMIX. The defaults are the authors' for CW-QMIX."""

    packs: ClassVar = True
    actions = frozenset({"discrete"})

    weighting: Literal["central", "optimistic"] = "central"
    """what has the weight 1: the greedy joint action and what Q* says is better, or all that Q_tot
    underestimates"""
    low_weight: float = 0.1
    """weight of everything else in the loss of Q_tot (the paper's alpha); 1 weighs all alike"""
    hidden: int = 64
    """units of the recurrent layers, of agents and of Q*"""
    mixer_width: int = 32
    """units of the monotonic mixer's hidden layer"""
    hypernet: int = 64
    """units of the hidden layer that makes the monotonic mixer's weights; 0 makes them linear in
    the state"""
    unrestricted_width: int = 256
    """units of each of the hidden layers that join the utilities of Q*"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.0
    """lambda of the TD(lambda) target; 0 looks one step ahead"""
    epsilon: Epsilon = Epsilon(1.0, 0.05, 50_000)
    """chance of a random action, at first and in the end"""
    target_period: int = 200
    """updates between copies of Q* to the target"""
    optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of Q_tot and Q* together"""
    replay: EpisodeRing = EpisodeRing(5_000, 32)
    """episodes kept and drawn"""
    pace: EpisodePace = EpisodePace()
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        sizes = ("hidden", "mixer_width", "unrestricted_width")
        check_range(self, 1, None, *sizes, "target_period")
        check_range(self, 0, 1, "low_weight", "gamma", "td_lambda")
        check_range(self, 0, None, "hypernet")

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        utilities_key, mixer_key, unrestricted_key = jax.random.split(key, 3)
        network = Network(
            utilities=self.make_utilities(spec, utilities_key),
            mixer=self.make_mixer(spec, mixer_key),
            unrestricted=self.make_unrestricted(spec, unrestricted_key),
        )
        return State(Learner.create(network, self.optimiser), network.unrestricted)

    def make_utilities(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """Q_i(h_i, .): one recurrent network for all agents."""
        return RecurrentNet(spec, self.hidden, key=key)

    def make_mixer(self, spec: EnvSpec, key: Key) -> UtilityMixer:
        """g: the monotonic mixer of Q_tot."""
        return Mixer(
            spec.num_agents,
            spec.state_size,
            width=self.mixer_width,
            hypernet=self.hypernet,
            key=key,
        )

    def make_unrestricted(self, spec: EnvSpec, key: Key) -> Unrestricted:
        """Q*: the value that may be any function of the joint action."""
        return Unrestricted(spec, self.hidden, self.unrestricted_width, key=key)

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
        """One step of Q_tot and Q* down L; the target is copied when due."""
        del key

        def loss(network: Network) -> tuple[Float[Array, ""], Metrics]:
            return self.loss(network, state.target_unrestricted, batch)

        network, (total, metrics) = state.network.descend(loss, has_aux=True)
        target = copy_every(
            self.target_period,
            clock.updates,
            state.target_unrestricted,
            network.value.unrestricted,
        )
        metrics = metrics | {"loss": total, "epsilon": self.epsilon.at(clock)}
        return State(network, target), metrics

    def loss(
        self, network: Network, target: Unrestricted, batch: Episode
    ) -> tuple[Float[Array, ""], Metrics]:
        """L, in which the two values share their targets and nothing else."""

        def unroll(utilities: RecurrentNet) -> Float[Array, "batch steps agents actions"]:
            return jax.vmap(utilities.unroll)(batch)

        mean = lambda x: masked_mean(x, batch.mask)
        state = batch.timesteps.state

        # y, with what Q_tot likes best valued by Q*': at all steps, the last one's end included.
        utilities = unroll(network.utilities)
        best = greedy(utilities, batch.timesteps.available)
        best_value = target.mix(pick(unroll(target.utilities), best), state)
        y = episode_targets(batch, best_value[:, 1:], self.gamma, self.td_lambda)

        # Q_tot and Q* of what was done.
        central = unroll(network.unrestricted.utilities)
        q_tot = mix(network.mixer, pick(utilities[:, :-1], batch.action), state[:, :-1])
        q_star = network.unrestricted.mix(pick(central[:, :-1], batch.action), state[:, :-1])

        # w: which errors of Q_tot matter.
        if self.weighting == "central":
            is_best = (batch.action == best[:, :-1]).all(axis=-1)
            important = is_best | (y > best_value[:, :-1])
        else:
            important = y > q_tot
        weight = jnp.where(important, 1.0, self.low_weight)

        # L.
        monotonic_loss = mean(weight * jnp.square(q_tot - y))
        unrestricted_loss = mean(jnp.square(q_star - y))
        metrics = {
            "td_loss": monotonic_loss + unrestricted_loss,
            "monotonic_loss": monotonic_loss,
            "unrestricted_loss": unrestricted_loss,
            **td_metrics(q_tot, y, batch.mask),
            "unrestricted_value": mean(q_star),
            "weight": mean(weight),
        }
        return metrics["td_loss"], metrics

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode."""
        del key
        network = state.network.value
        utilities = pick(network.utilities.unroll(episode)[:-1], episode.action)
        return mix(network.mixer, utilities, episode.timesteps.state[:-1])

    def unrestricted_values(
        self, state: State, episode: Episode, key: Key
    ) -> Float[Array, " time"]:
        """Q* of what the team did at each step of one episode."""
        del key
        network = state.network.value.unrestricted
        utilities = pick(network.utilities.unroll(episode)[:-1], episode.action)
        return network.mix(utilities, episode.timesteps.state[:-1])
