"""QPLEX: duplex dueling multi-agent Q-learning (Wang et al., ICLR 2021).

The team's value is dueling twice over. Each agent's utility splits into its value and an advantage,
which is never above 0. The team's advantage is a sum of theirs, with weights that may depend on the
whole joint action. Whatever the weights, the best joint action is every agent's own best: all
advantages are 0 there, and nowhere is one positive.

    V_i   = max_u Q_i(tau_i, u), among what is available                         (Sec 3.2, dueling)
    Q~_i  = w_i(s) Q_i + b_i(s),  V~_i = w_i(s) V_i + b_i(s),  w_i > 0    (Sec 3.2, transformation)
    Q_tot = sum_i V~_i + sum_i lambda_i(s, u) (Q~_i - V~_i)              (Sec 3.2, dueling mixing)
          = sum_i Q~_i + sum_i (lambda_i(s, u) - 1) (Q~_i - V~_i)
    V_t   = Q_tot'(s_t, u*_t),  u* = argmax Q_i                                  double Q-learning
    y_t   = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})          (lambda 0 is the paper's)
    L     = mean over steps (Q_tot(s_t, u_t) - y_t)^2

In the second form of Q_tot the last bracket passes no gradient. lambda_i > 0 is
`comarl.nn.duplex.Importance`. The live network chooses u*, the target network values it by V_i of
its own, so that Q~ - V~ may be below 0 there.

`mixing` "attention" is what the authors ran on StarCraft: w_i from attention between the state and
each agent (Qatten, Yang et al., 2020; `comarl.nn.duplex.Attention`), and a price on its logits l.

    w_i = sum_h c_h(s) softmax_i(l_hi / sqrt(width)),  b_i = V(s) / N
    L  += logit_penalty mean over steps sum_h mean_i l_hi^2

The defaults are those of the authors' code for StarCraft. Differences from it:
1. An episode that was cut by time ends in its own value wherever it ends within a batch; theirs
   relies on the longest.
2. Unavailable actions never win, whatever the values; theirs are set to -9999999.
3. The price on logits is a mean over steps that took place; theirs counts padding, too.
4. What attention knows of an agent, x_i, is its observation unless `unit_size` says where the state
   has it; theirs are always the state's first entries.
5. One gradient step per episode; their commands take two, and copy targets twice as often.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.duplex import Attention, Importance, Positive, dueling
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy, only_available, pick
from comarl.ops.learner import Optimiser, RmsProp, Tracked
from comarl.ops.returns import episode_targets, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range


class DuplexMixer(eqx.Module):
    """Q_tot from each agent's utility of its action and of its best action (Sec. 3.2)."""

    transform: Positive | Attention
    importance: Importance

    def __call__(
        self,
        utilities: Float[Array, "*batch agents"],
        best: Float[Array, "*batch agents"],
        action: Int[Array, "*batch agents"],
        timesteps: Timestep,
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """Q_tot of a joint action, and the squared logits of attention (0 without)."""
        weight, bias, squared_logits = self.transform(utilities, timesteps)
        q = weight * utilities + bias
        v = weight * best + bias
        return dueling(q, v, self.importance(timesteps.state, action)), squared_logits


class Network(eqx.Module):
    """All that learns."""

    utilities: RecurrentNet  # Q_i(tau_i, .), shared by agents
    mixer: DuplexMixer

    def team(
        self,
        utilities: Float[Array, "*batch agents actions"],
        action: Int[Array, "*batch agents"],
        steps: Timestep,
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """Q_tot of a joint action, and the squared logits of attention."""
        best = only_available(utilities, steps.available).max(axis=-1)
        return self.mixer(pick(utilities, action), best, action, steps)


class State(eqx.Module):
    """What changes while QPLEX learns."""

    network: Tracked[Network]


@dataclass(frozen=True)
class Qplex:
    """Hyperparameters of QPLEX. The defaults are the authors' for StarCraft, with their plain
    mixer."""

    packs: ClassVar = True
    actions = frozenset({"discrete"})

    mixing: Literal["duplex", "attention"] = "duplex"
    """where w_i and b_i come from: two networks of the state, or attention between the state and
    each agent"""
    kernels: int = 4
    """terms of the sum that makes lambda"""
    importance_hidden: tuple[int, ...] = ()
    """units of the hidden layers of lambda's networks; without any they are linear"""
    hypernet: int = 64
    """units of the hidden layer of the networks that make w and b, or the queries of attention"""
    mixer_width: int = 32
    """units of keys and queries, and of the hidden layer of V(s); attention only"""
    attention_heads: int = 4
    """heads of attention"""
    weighted_heads: bool = False
    """the state also weighs the heads of attention; the authors do so on MMM2 and 3s5z_vs_3s6z"""
    nonlinear: bool = False
    """attention also sees each agent's utility, so that an agent's best action may no longer be the
    team's; on MMM2"""
    unit_size: int = 0
    """what attention knows of an agent: so many entries of the state, agent by agent from its
    first; 0: what it sees"""
    logit_penalty: float = 1e-3
    """price on the squared logits of attention"""
    hidden: int = 64
    """units of the recurrent layer"""
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
        sizes = ("kernels", "hypernet", "mixer_width", "attention_heads", "hidden", "target_period")
        check_range(self, 1, None, "importance_hidden", *sizes)
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "unit_size", "logit_penalty")

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        utilities_key, transform_key, importance_key = jax.random.split(key, 3)
        network = Network(
            utilities=self.make_utilities(spec, utilities_key),
            mixer=self.make_mixer(spec, transform_key, importance_key),
        )
        return State(Tracked.create(network, self.optimiser))

    def make_utilities(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """Q_i(tau_i, .): one recurrent network for all agents."""
        return RecurrentNet(spec, self.hidden, key=key)

    def make_mixer(self, spec: EnvSpec, transform_key: Key, importance_key: Key) -> DuplexMixer:
        """Q_tot from the utilities: the transformation w_i, b_i and the weights lambda_i."""
        importance = Importance(spec, self.kernels, self.importance_hidden, key=importance_key)
        return DuplexMixer(self.make_transform(spec, transform_key), importance)

    def make_transform(self, spec: EnvSpec, key: Key) -> Positive | Attention:
        """w_i(s) and b_i(s), by `mixing`."""
        if self.mixing == "duplex":
            return Positive(spec, self.hypernet, key=key)
        return Attention(
            spec,
            self.attention_heads,
            self.mixer_width,
            self.hypernet,
            self.unit_size,
            weighted_heads=self.weighted_heads,
            nonlinear=self.nonlinear,
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
        timesteps = batch.timesteps
        now = jax.tree.map(lambda x: x[:, :-1], timesteps)
        later = jax.tree.map(lambda x: x[:, 1:], timesteps)
        target_utilities = jax.vmap(target_network.utilities.unroll)(batch)

        def loss(network: Network) -> tuple[Float[Array, ""], Metrics]:
            # V of what the live network likes best, and y.
            utilities = jax.vmap(network.utilities.unroll)(batch)
            best = greedy(utilities if self.double else target_utilities, timesteps.available)
            next_value, _ = target_network.team(target_utilities[:, 1:], best[:, 1:], later)
            y = episode_targets(batch, next_value, self.gamma, self.td_lambda)

            # Q_tot of what was done: dueling mixing, Sec. 3.2. L, with the price on logits.
            q, squared_logits = network.team(utilities[:, :-1], batch.action, now)
            td_loss = masked_mean(jnp.square(q - y), batch.mask)
            penalty = self.logit_penalty * masked_mean(squared_logits, batch.mask)
            metrics = {"td_loss": td_loss, "logit_penalty": penalty}
            return td_loss + penalty, metrics | td_metrics(q, y, batch.mask)

        network, (total, metrics) = state.network.descend(loss, has_aux=True)
        network = network.copy_every(self.target_period, clock.updates)
        metrics = metrics | {"loss": total, "epsilon": self.epsilon.at(clock)}
        return State(network), metrics

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode."""
        del key
        network = state.network.value
        utilities = network.utilities.unroll(episode)[:-1]
        now = jax.tree.map(lambda x: x[:-1], episode.timesteps)
        return network.team(utilities, episode.action, now)[0]
