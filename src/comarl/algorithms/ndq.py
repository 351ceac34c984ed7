"""NDQ: nearly decomposable value functions (Wang, Wang, Zheng, Zhang, ICLR 2020).

QMIX whose agents talk: each values its actions by its own history and by a message from every
agent, while it acts as well as while it learns. Messages are kept few by an information bottleneck:
they should let the receiver's action be predicted, and say no more.

    M_ji ~ N(f_m(x_j)_i, I),  m_i = (M_1i .. M_Ni)                                             (Sec 3.1, nn/messages)
    u*_t  = argmax_u Q_i(tau_i, m_i, u),  V_t = Q_tot'(s_t, u*_t)                                  double Q-learning
    y_t   = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})                                      (lambda 0 there)
    L_TD  = mean over steps (Q_tot(s_t, u_t) - y_t)^2                                                         (Eq 12)
    L_m   = sum_i -log q_psi(u'_i | x_i, m_i) + beta sum_ji KL(N(f_m(x_j)_i, I) || N(0, I))                (Eq 9, 12)
    u'_i  = argmax_u Q_i'(tau_i, m'_i, u)                                                         the target's choice
    L     = L_TD + c L_m                                                                                      (Eq 12)

While agents act greedily, numbers of a message that say little may be kept back: those whose mean
is near 0, which is what the receiver expects anyway (Sec 3.3). An agent's message to itself is
never kept back.

The defaults are those that the authors' code gives for StarCraft; `ndq-pymarl2` has the settings of PyMARL2.
Differences from the authors' code:
1. Steps after an episode's end are left out of L_m as well, and L_m has the log-probability, not that of q_psi + 1e-6.
2. `drop_share` ranks the numbers that go to others; theirs ranks, and may drop, those to oneself as well.
3. An episode that was cut by time ends in its own value wherever it ends within a batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.messages import MessageConditionedNet, Messages, Messenger, concat_messages, deliver
from comarl.nn.mixers import Mixer, Mixing, Sum, make_mixer
from comarl.nn.recurrent import Memory, agent_inputs, last_actions
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy, pick
from comarl.ops.learner import Learner, Optimiser, RmsProp, copy_every
from comarl.ops.returns import episode_targets, masked_mean
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range


class Network(eqx.Module):
    """All that learns."""

    messenger: Messenger
    utilities: MessageConditionedNet  # Q_i(tau_i, m_i, .), shared by agents
    mixer: Mixer | Sum


class State(eqx.Module):
    """What changes while NDQ learns."""

    learner: Learner[Network]
    target: Network


@dataclass(frozen=True)
class Ndq:
    """Hyperparameters of NDQ. The defaults are the authors' for StarCraft."""

    actions: ClassVar = frozenset({"discrete"})
    communicates: ClassVar = True

    mixing: Mixing = "monotonic"
    """how utilities are joined: QMIX's mixer, the same without its sign constraint, or VDN's sum"""
    message_size: int = 3
    """numbers that each agent sends to each at every step"""
    message_std: float = 1.0
    """standard deviation of the noise on messages, in acting as in learning"""
    message_width: int = 64
    """units of the hidden layers of the messages' encoder"""
    message_weight: float = 0.1
    """c, the weight of the messages' loss"""
    kl_weight: float = 1e-4
    """beta, the price of what a message says, within the messages' loss"""
    message_entropy_weight: float = 0.0
    """weight of -log N(M; 0, I), which the code may add to the messages' loss"""
    drop_below: float = 0.0
    """acting greedily, keep back numbers of messages whose mean is nearer to 0 than this"""
    drop_share: float = 0.0
    """acting greedily, keep back this share of the numbers sent at a step, those whose means are
    nearest to 0"""
    hidden: int = 64
    """units of the recurrent layer"""
    mixer_width: int = 32
    """units of the mixer's hidden layer"""
    hypernet: int = 0
    """units of the hidden layer that makes the mixer's weights; 0 makes them linear in the state"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.0
    """lambda of the TD(lambda) target; 0 looks one step ahead"""
    epsilon: Epsilon = Epsilon(1.0, 0.05, 50_000)
    """chance of a random action, at first and in the end"""
    target_period: int = 13
    """updates between copies of the network to the target"""
    optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of utilities, messages and mixer together"""
    replay: EpisodeRing = EpisodeRing(5_000, 32)
    """episodes kept and drawn"""
    pace: EpisodePace = EpisodePace(16, 0.0625)
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "mixer_width", "target_period")
        check_range(self, 1, None, "message_size", "message_width")
        check_range(self, 0, 1, "gamma", "td_lambda", "drop_share")
        check_range(self, 0, None, "hypernet", "drop_below")
        check_range(
            self, 0, None, "message_std", "message_weight", "kl_weight", "message_entropy_weight"
        )

    def init(self, spec: EnvSpec, key: Key) -> State:
        messenger_key, utilities_key, mixer_key = jax.random.split(key, 3)
        agents, size = spec.num_agents, dict(width=self.mixer_width, hypernet=self.hypernet)
        network = Network(
            Messenger(
                spec,
                "pairwise",
                size=self.message_size,
                hidden=self.message_width,
                key=messenger_key,
            ),
            MessageConditionedNet(spec, self.hidden, agents * self.message_size, key=utilities_key),
            make_mixer(self.mixing, agents, spec.state_size, **size, key=mixer_key),
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
        """All agents speak, then each acts on what it was told."""
        del team
        network, (message_key, action_key) = state.learner.value, jax.random.split(key)
        x = agent_inputs(network.utilities.spec, timestep.obs, memory.last_action)
        messages = network.messenger(x[None], message_key, self.message_std)
        told = messages.told if explore else deliver(self.keep_back(messages))
        hidden, utilities = network.utilities.step(memory.hidden, concat_messages(x, told[0]))
        action = (
            self.explore(utilities, timestep.available, clock, action_key)
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

    def keep_back(self, messages: Messages) -> Float[Array, "steps senders receivers size"]:
        """What is sent, with 0 for the numbers that say too little."""
        steps, senders, _, size = messages.mean.shape
        own = jnp.eye(senders, dtype=bool)[..., None]
        says = jnp.where(own, jnp.inf, jnp.abs(messages.mean))
        rank = jnp.argsort(jnp.argsort(says.reshape(steps, -1))).reshape(says.shape)
        dropped = (says < self.drop_below) | (
            rank < round(self.drop_share * senders * (senders - 1) * size)
        )
        return jnp.where(dropped & ~own, 0.0, messages.sent)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        spec = state.target.utilities.spec
        x = agent_inputs(spec, batch.timesteps.obs, jax.vmap(last_actions)(batch.action))
        online_keys, target_keys = jax.random.split(key, (2, x.shape[0]))
        later, _ = jax.vmap(lambda x, key: self.utilities(state.target, x, key))(x, target_keys)
        label = greedy(later, batch.timesteps.available)[:, :-1]

        def loss(network: Network) -> tuple[Float[Array, ""], Metrics]:
            utilities, messages = jax.vmap(lambda x, key: self.utilities(network, x, key))(
                x, online_keys
            )
            best = greedy(utilities, batch.timesteps.available)
            next_value = state.target.mixer(pick(later, best)[:, 1:], batch.timesteps.state[:, 1:])
            target = episode_targets(batch, next_value, self.gamma, self.td_lambda)
            q = network.mixer(pick(utilities[:, :-1], batch.action), batch.timesteps.state[:, :-1])
            now = jax.tree.map(lambda said: said[:, :-1], messages)
            weights = self.kl_weight, self.message_entropy_weight
            said = jax.vmap(lambda x, m, u: network.messenger.bottleneck(x, m, u, *weights))(
                x[:, :-1], now, label
            )
            mean = lambda values: masked_mean(values, batch.mask)
            error, message_loss = mean(jnp.square(q - target)), mean(said)
            metrics = {
                "loss": error,
                "message_loss": message_loss,
                "value": mean(q),
                "target_value": mean(target),
            }
            return error + self.message_weight * message_loss, metrics

        gradient, metrics = jax.grad(loss, has_aux=True)(state.learner.value)
        learner = state.learner.apply(gradient)
        return State(
            learner, copy_every(self.target_period, clock.updates, state.target, learner.value)
        ), metrics

    def utilities(
        self, network: Network, x: Float[Array, "time agents inputs"], key: Key
    ) -> tuple[Float[Array, "time agents actions"], Messages]:
        """Q_i of one episode, and what was said."""
        messages = network.messenger(x, key, self.message_std)
        return network.utilities.unroll(concat_messages(x, messages.told)), messages

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode, by one draw of the messages."""
        network = state.learner.value
        x = agent_inputs(
            network.utilities.spec, episode.timesteps.obs, last_actions(episode.action)
        )
        utilities, _ = self.utilities(network, x[:-1], key)
        return network.mixer(pick(utilities, episode.action), episode.timesteps.state[:-1])
