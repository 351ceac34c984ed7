"""QTRAN-base: learning to factorise by transformation (Son et al., ICML 2019).

A network of its own values the joint action, and nothing restricts it. The agents' utilities need
not add up to that value: it is enough that their sum, shifted by a value of the state, meets it at
the agents' best actions and is nowhere below. Then the agents' own best actions are the team's.

    u*_i   = argmax_u Q_i(h_i, u), among what is available
    sum_i Q_i(h_i, u_i) - Q_jt(s, h, u) + V(s) = 0 if u = u*, else >= 0       (Theorem 1: 4a, 4b)
    y_t    = r_t + gamma ((1 - lambda) Q_jt'(s_{t+1}, h'_{t+1}, u*_{t+1}) + lambda y_{t+1})
    L_td   = mean over steps (Q_jt(s_t, h_t, u_t) - y_t)^2
    L_opt  = mean over steps (sum_i Q_i(h_i, u*_i) - Q_jt(s_t, h_t, u*_t) + V(s_t))^2
    L_nopt = mean over steps min(0, sum_i Q_i(h_i, u_i) - Q_jt(s_t, h_t, u_t) + V(s_t))^2
    L      = L_td + w_opt L_opt + w_nopt L_nopt

lambda is 0 in the paper. In L_opt and L_nopt no gradient goes through Q_jt: utilities and V move
towards it, never the reverse. The histories h_i are those of the utilities, and Q_jt trains them,
too.

The defaults are those of PyMARL's QTRAN; `qtran-pymarl2` has the settings that are common to
PyMARL2 (Hu et al., 2021). Differences from PyMARL's code:
1. An episode that was cut by time ends in its own value wherever it ends within a batch.
2. Unavailable actions never win, whatever the values; theirs are set to -9999999.
3. Every agent's history stays with its agent; PyMARL2 reshapes them so that agents and steps mix.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mlp import MLP
from comarl.nn.recurrent import Memory, RecurrentNet, unroll_episode
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy
from comarl.ops.learner import Optimiser, RmsProp, Tracked
from comarl.ops.returns import episode_targets, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range


class JointValue(eqx.Module):
    """Q_jt(s, h, u), which does not depend on the order of the agents."""

    embedder: MLP  # of each agent's history and action
    network: MLP  # of the state and the sum of the embeddings

    def __init__(self, spec: EnvSpec, history: int, hidden: tuple[int, ...], *, key: Key):
        embed_key, network_key = jax.random.split(key)
        size = history + spec.action_size
        self.embedder = MLP((size, size, size), activation=jax.nn.relu, key=embed_key)
        sizes = (spec.state_size + size, *hidden, 1)
        self.network = MLP(sizes, activation=jax.nn.relu, key=network_key)

    def __call__(
        self,
        history: Float[Array, "*batch agents hidden"],
        action: Float[Array, "*batch agents actions"],
        state: Float[Array, "*batch state"],
    ) -> Float[Array, "*batch"]:
        """Q_jt of a joint action, whose actions are one-hot."""
        team = self.embedder(jnp.concatenate([history, action], axis=-1)).sum(-2)
        return self.network(jnp.concatenate([state, team], axis=-1))[..., 0]


class Network(eqx.Module):
    """All that learns."""

    utilities: RecurrentNet  # h_i, and Q_i(h_i, .), shared by agents
    joint: JointValue  # Q_jt
    value: MLP  # V

    def unroll(self, episode: Episode) -> Float[Array, "steps agents hidden"]:
        """h_i at every step of an episode, the step after its end included."""
        return unroll_episode(self.utilities.encoder, self.utilities.spec, episode)

    def values(
        self,
        history: Float[Array, "*batch agents hidden"],
        action: Int[Array, "*batch agents"],
        state: Float[Array, "*batch state"],
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """Q_jt of a joint action; and the sum of its Q_i, plus V, which should never be less."""
        chosen = jax.nn.one_hot(action, self.utilities.spec.action_size)
        total = (self.utilities.head(history) * chosen).sum((-2, -1))
        return self.joint(history, chosen, state), total + self.value(state)[..., 0]


class State(eqx.Module):
    """What changes while QTRAN learns."""

    network: Tracked[Network]


@dataclass(frozen=True)
class Qtran:
    """Hyperparameters of QTRAN-base. The defaults are PyMARL's."""

    packs: ClassVar = True
    actions = frozenset({"discrete"})

    opt_weight: float = 1.0
    """weight of L_opt, the error at the agents' best actions"""
    nopt_weight: float = 0.1
    """weight of L_nopt, by how much other joint actions fall short"""
    hidden: int = 64
    """units of the recurrent layer"""
    joint_hidden: tuple[int, ...] = (64, 64)
    """units of the hidden layers of Q_jt and of V; PyMARL's larger network has one layer more"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.0
    """lambda of the TD(lambda) target; 0 looks one step ahead"""
    epsilon: Epsilon = Epsilon(1.0, 0.05, 50_000)
    """chance of a random action, at first and in the end"""
    target_period: int = 200
    """updates between copies of the network to the target"""
    optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of utilities, Q_jt and V together"""
    replay: EpisodeRing = EpisodeRing(5_000, 32)
    """episodes kept and drawn"""
    pace: EpisodePace = EpisodePace()
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "joint_hidden", "target_period")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "opt_weight", "nopt_weight")

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        utilities_key, joint_key, value_key = jax.random.split(key, 3)
        network = Network(
            utilities=self.make_utilities(spec, utilities_key),
            joint=self.make_joint(spec, joint_key),
            value=self.make_value(spec, value_key),
        )
        return State(Tracked.create(network, self.optimiser))

    def make_utilities(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """h_i and Q_i(h_i, .): one recurrent network for all agents."""
        return RecurrentNet(spec, self.hidden, key=key)

    def make_joint(self, spec: EnvSpec, key: Key) -> JointValue:
        """Q_jt."""
        return JointValue(spec, self.hidden, self.joint_hidden, key=key)

    def make_value(self, spec: EnvSpec, key: Key) -> MLP:
        """V."""
        sizes = (spec.state_size, *self.joint_hidden, 1)
        return MLP(sizes, activation=jax.nn.relu, key=key)

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
        """One step of utilities, Q_jt and V down L; the target is copied when due."""
        del key

        def loss(network: Network) -> tuple[Float[Array, ""], Metrics]:
            return self.loss(network, state.network.target, batch)

        network, (total, metrics) = state.network.descend(loss, has_aux=True)
        network = network.copy_every(self.target_period, clock.updates)
        metrics = metrics | {"loss": total, "epsilon": self.epsilon.at(clock)}
        return State(network), metrics

    def loss(
        self, network: Network, target: Network, batch: Episode
    ) -> tuple[Float[Array, ""], Metrics]:
        """L. The target network values, with histories of its own, what the live one chooses."""
        mean = lambda x: masked_mean(x, batch.mask)
        state = batch.timesteps.state

        # u*, and y.
        history = jax.vmap(network.unroll)(batch)
        target_history = jax.vmap(target.unroll)(batch)
        best = greedy(network.utilities.head(history), batch.timesteps.available)
        next_value, _ = target.values(target_history[:, 1:], best[:, 1:], state[:, 1:])
        y = episode_targets(batch, next_value, self.gamma, self.td_lambda)

        # Q_jt and sum_i Q_i + V, of what was done and of u*.
        now, best_now = state[:, :-1], best[:, :-1]
        q, factored = network.values(history[:, :-1], batch.action, now)
        best_q, best_factored = network.values(history[:, :-1], best_now, now)

        # L: 4a and 4b as losses, in which Q_jt is a constant.
        td_loss = mean(jnp.square(q - y))
        opt_loss = mean(jnp.square(best_factored - jax.lax.stop_gradient(best_q)))
        shortfall = jnp.minimum(factored - jax.lax.stop_gradient(q), 0.0)
        nopt_loss = mean(jnp.square(shortfall))
        total = td_loss + self.opt_weight * opt_loss + self.nopt_weight * nopt_loss
        metrics = {"td_loss": td_loss, "opt_loss": opt_loss, "nopt_loss": nopt_loss}
        return total, metrics | td_metrics(q, y, batch.mask)

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_jt of what the team did at each step of one episode."""
        del key
        return self.taken_values(state, episode)[0]

    def factored_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """The sum of the utilities, plus V, of what the team did at each step of one episode.

        It should be Q_jt where the team acted greedily, and no less elsewhere.
        """
        del key
        return self.taken_values(state, episode)[1]

    def taken_values(
        self, state: State, episode: Episode
    ) -> tuple[Float[Array, " time"], Float[Array, " time"]]:
        """Both values of what the team did."""
        network = state.network.value
        history = network.unroll(episode)[:-1]
        return network.values(history, episode.action, episode.timesteps.state[:-1])
