"""QTRAN-base: learning to factorise by transformation (Son et al., ICML 2019).

A network of its own values the joint action, and nothing restricts it. The agents' utilities need
not add up to that value: it is enough that their sum, shifted by a value of the state, meets it at
the agents' best actions and is nowhere below. Then the agents' own best actions are the team's.

    u*_i  = argmax_u Q_i(h_i, u), among what is available
    sum_i Q_i(h_i, u_i) - Q_jt(s, h, u) + V(s) = 0 if u = u*, else >= 0                             (Theorem 1: 4a, 4b)
    y_t     = r_t + gamma ((1 - lambda) Q_jt'(s_{t+1}, h'_{t+1}, u*_{t+1}) + lambda y_{t+1})           (lambda is 0)
    L_td    = mean over steps (Q_jt(s_t, h_t, u_t) - y_t)^2
    L_opt   = mean over steps (sum_i Q_i(h_i, u*_i) - Q_jt(s_t, h_t, u*_t) + V(s_t))^2
    L_nopt  = mean over steps min(0, sum_i Q_i(h_i, u_i) - Q_jt(s_t, h_t, u_t) + V(s_t))^2
    L       = L_td + w_opt L_opt + w_nopt L_nopt

In L_opt and L_nopt Q_jt is a number: utilities and V bend to it, never the reverse. The histories
h_i are those of the utilities, and Q_jt trains them, too.

The defaults are those of PyMARL's QTRAN; `qtran-pymarl2` has the settings that are common to PyMARL2 (Hu et al., 2021).
Differences from PyMARL's code:
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
from comarl.ops.learner import Learner, Optimiser, RmsProp, copy_every
from comarl.ops.returns import episode_targets, masked_mean
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_range


class JointValue(eqx.Module):
    """Q_jt(s, h, u): a network embeds each agent's history and action, and another values their sum
    in a state."""

    embedder: MLP
    network: MLP

    def __init__(self, spec: EnvSpec, history: int, hidden: tuple[int, ...], *, key: Key):
        embed_key, network_key = jax.random.split(key)
        size = history + spec.action_size
        self.embedder = MLP((size, size, size), activation=jax.nn.relu, key=embed_key)
        self.network = MLP(
            (spec.state_size + size, *hidden, 1), activation=jax.nn.relu, key=network_key
        )

    def __call__(
        self,
        history: Float[Array, "*batch agents hidden"],
        action: Float[Array, "*batch agents actions"],
        state: Float[Array, "*batch state"],
    ) -> Float[Array, "*batch"]:
        """Actions are one-hot."""
        team = self.embedder(jnp.concatenate([history, action], axis=-1)).sum(-2)
        return self.network(jnp.concatenate([state, team], axis=-1))[..., 0]


class Network(eqx.Module):
    """All that learns."""

    utilities: RecurrentNet  # h_i, and Q_i(h_i, .), shared by agents
    joint: JointValue  # Q_jt
    value: MLP  # V

    def unroll(self, episode: Episode) -> Float[Array, "steps agents hidden"]:
        """h_i at every step of an episode, and after its end."""
        return unroll_episode(self.utilities.encoder, self.utilities.spec, episode)

    def values(
        self,
        history: Float[Array, "*batch agents hidden"],
        action: Int[Array, "*batch agents"],
        state: Float[Array, "*batch state"],
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """Q_jt of a joint action; and the sum of its Q_i and V, which should nowhere be less."""
        chosen = jax.nn.one_hot(action, self.utilities.spec.action_size)
        total = (self.utilities.head(history) * chosen).sum((-2, -1))
        return self.joint(history, chosen, state), total + self.value(state)[..., 0]


class State(eqx.Module):
    """What changes while QTRAN learns."""

    learner: Learner[Network]
    target: Network


@dataclass(frozen=True)
class Qtran:
    """Hyperparameters of QTRAN-base. The defaults are PyMARL's."""

    packs: ClassVar = True
    actions: ClassVar = frozenset({"discrete"})

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
        check_range(self, 1, None, "hidden", "joint_hidden", "target_period")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "opt_weight", "nopt_weight")

    def init(self, spec: EnvSpec, key: Key) -> State:
        utilities_key, joint_key, value_key = jax.random.split(key, 3)
        network = Network(
            utilities=RecurrentNet(spec, self.hidden, key=utilities_key),
            joint=JointValue(spec, self.hidden, self.joint_hidden, key=joint_key),
            value=MLP(
                (spec.state_size, *self.joint_hidden, 1), activation=jax.nn.relu, key=value_key
            ),
        )
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
        """One step down L; the target is copied when due."""
        del key
        gradient, metrics = jax.grad(self.loss, has_aux=True)(
            state.learner.value, state.target, batch
        )
        learner = state.learner.apply(gradient)
        return State(
            learner, copy_every(self.target_period, clock.updates, state.target, learner.value)
        ), metrics

    def loss(
        self, network: Network, target: Network, batch: Episode
    ) -> tuple[Float[Array, ""], Metrics]:
        """L. The target network values, with histories of its own, what the live utilities like
        best."""
        history, later = jax.vmap(network.unroll)(batch), jax.vmap(target.unroll)(batch)
        best = greedy(network.utilities.head(history), batch.timesteps.available)
        state = batch.timesteps.state
        next_value, _ = target.values(later[:, 1:], best[:, 1:], state[:, 1:])
        y = episode_targets(batch, next_value, self.gamma, self.td_lambda)

        q, factored = network.values(history[:, :-1], batch.action, state[:, :-1])
        best_q, best_factored = network.values(history[:, :-1], best[:, :-1], state[:, :-1])
        number, mean = jax.lax.stop_gradient, lambda x: masked_mean(x, batch.mask)
        td = mean(jnp.square(q - y))
        opt = mean(jnp.square(best_factored - number(best_q)))
        nopt = mean(jnp.square(jnp.minimum(factored - number(q), 0.0)))
        loss = td + self.opt_weight * opt + self.nopt_weight * nopt
        parts = {"td_loss": td, "opt_loss": opt, "nopt_loss": nopt}
        return loss, {"loss": loss, **parts, "value": mean(q), "target_value": mean(y)}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_jt of what the team did at each step of one episode."""
        del key
        return self.taken_values(state, episode)[0]

    def factored_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """The sum of the utilities and V for the same: Q_jt where the team acted greedily, else no
        less."""
        del key
        return self.taken_values(state, episode)[1]

    def taken_values(
        self, state: State, episode: Episode
    ) -> tuple[Float[Array, " time"], Float[Array, " time"]]:
        network = state.learner.value
        return network.values(
            network.unroll(episode)[:-1], episode.action, episode.timesteps.state[:-1]
        )
