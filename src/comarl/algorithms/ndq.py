"""NDQ: nearly decomposable value functions (Wang, Wang, Zheng, Zhang, ICLR 2020).

QMIX whose agents communicate: each values its actions by its own history and by a message from
every agent, while it acts as well as while it learns. An information bottleneck keeps messages
short: they should let the receiver's action be predicted, and carry no more.

    M_ji ~ N(f_m(x_j)_i, I),  m_i = (M_1i .. M_Ni)               (Sec 3.1; `comarl.nn.messages`)
    u*_t = argmax_u Q_i(tau_i, m_i, u),  V_t = Q_tot'(s_t, u*_t)              double Q-learning
    y_t  = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})                 (lambda 0 there)
    L_TD = mean over steps (Q_tot(s_t, u_t) - y_t)^2                                    (Eq 12)
    u'_i = argmax_u Q_i'(tau_i, m'_i, u)                                   the target's choice
    L_m  = sum_i -log q_psi(u'_i | x_i, m_i)
           + beta sum_ji KL(N(f_m(x_j)_i, I) || N(0, I))                             (Eq 9, 12)
    L    = L_TD + c L_m                                                                 (Eq 12)

While agents act greedily, numbers of a message that carry little may be dropped: those whose mean
is near 0, which is what the receiver expects anyway (Sec 3.3). An agent's message to itself is
never dropped.

The defaults are those that the authors' code gives for StarCraft; `ndq-pymarl2` has the settings of
PyMARL2. Differences from the authors' code:
1. Steps after an episode's end are left out of L_m as well, and L_m has the log-probability, not
   that of q_psi + 1e-6.
2. `drop_share` ranks the numbers that go to others; theirs ranks, and may drop, those to oneself as
   well.
3. An episode that was cut by time ends in its own value wherever it ends within a batch.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.messages import MessageConditionedNet, Messages, Messenger, concat_messages, deliver
from comarl.nn.mixers import Mixing, UtilityMixer, make_mixer, mix
from comarl.nn.recurrent import Memory, agent_inputs, last_actions
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy, pick
from comarl.ops.learner import Optimiser, RmsProp, Tracked
from comarl.ops.returns import episode_targets, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Keys, Metrics, Timestep
from comarl.validation import check_fields, check_range


class Network(eqx.Module):
    """All that learns."""

    messenger: Messenger
    utilities: MessageConditionedNet  # Q_i(tau_i, m_i, .), shared by agents
    mixer: UtilityMixer


class State(eqx.Module):
    """What changes while NDQ learns."""

    network: Tracked[Network]


@dataclass(frozen=True)
class Ndq:
    """Hyperparameters of NDQ. The defaults are the authors' for StarCraft."""

    actions = frozenset({"discrete"})
    communicates: ClassVar = True

    mixing: Mixing = "monotonic"
    """how utilities are joined: by QMIX's mixer, by the same without its sign constraint, or by
    VDN's sum"""
    message_size: int = 3
    """numbers that each agent sends to each at every step"""
    message_std: float = 1.0
    """standard deviation of the noise on messages, in acting as in learning"""
    message_width: int = 64
    """units of the hidden layers of the messages' encoder"""
    message_weight: float = 0.1
    """c, the weight of the messages' loss"""
    kl_weight: float = 1e-4
    """beta, the price of a message's divergence from N(0, I), within the messages' loss"""
    message_entropy_weight: float = 0.0
    """weight of -log N(M; 0, I), which the code may add to the messages' loss"""
    drop_below: float = 0.0
    """while the team acts greedily, drop numbers of messages whose mean is nearer to 0 than this"""
    drop_share: float = 0.0
    """while the team acts greedily, drop this share of the numbers sent at a step: those whose
    means are nearest to 0"""
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
        weights = ("message_weight", "kl_weight", "message_entropy_weight")
        check_range(self, 0, None, "hypernet", "drop_below", "message_std", *weights)

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        messenger_key, utilities_key, mixer_key = jax.random.split(key, 3)
        network = Network(
            messenger=self.make_messenger(spec, messenger_key),
            utilities=self.make_utilities(spec, utilities_key),
            mixer=self.make_mixer(spec, mixer_key),
        )
        return State(Tracked.create(network, self.optimiser))

    def make_messenger(self, spec: EnvSpec, key: Key) -> Messenger:
        """f_m and q_psi: an encoder of messages from each agent to each, and their posterior."""
        return Messenger(
            spec, "pairwise", size=self.message_size, hidden=self.message_width, key=key
        )

    def make_utilities(self, spec: EnvSpec, key: Key) -> MessageConditionedNet:
        """Q_i(tau_i, m_i, .): one recurrent network for all agents."""
        received = spec.num_agents * self.message_size
        return MessageConditionedNet(spec, self.hidden, received, key=key)

    def make_mixer(self, spec: EnvSpec, key: Key) -> UtilityMixer:
        """Q_tot from the utilities `[*batch agents]` and the state `[*batch state]`."""
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
        """All agents send messages, then each acts on those that it receives."""
        del team
        network = state.network.value
        message_key, action_key = jax.random.split(key)
        x = agent_inputs(network.utilities.spec, timestep.obs, memory.last_action)
        messages = network.messenger(x[None], message_key, self.message_std)
        received = messages.received if explore else deliver(self.drop(messages))
        hidden, utilities = network.utilities.step(memory.hidden, concat_messages(x, received[0]))
        if explore:
            action = self.explore(utilities, timestep.available, clock, action_key)
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

    def drop(self, messages: Messages) -> Float[Array, "steps senders receivers size"]:
        """The messages sent, with 0 for the numbers that carry too little (Sec. 3.3)."""
        steps, senders, _, size = messages.mean.shape
        to_others = senders * (senders - 1) * size
        to_self = jnp.eye(senders, dtype=bool)[..., None]
        magnitude = jnp.where(to_self, jnp.inf, jnp.abs(messages.mean))
        # The place of each number in the order of magnitudes: the inverse of a sorting permutation.
        order = jnp.argsort(magnitude.reshape(steps, -1))
        rank = jnp.argsort(order).reshape(magnitude.shape)
        least = rank < round(self.drop_share * to_others)
        dropped = (magnitude < self.drop_below) | least
        return jnp.where(dropped & ~to_self, 0.0, messages.sent)

    def without_messages(self) -> "Ndq":
        """The same with every number dropped that goes to another agent (Sec. 3.3)."""
        return replace(self, drop_share=1.0)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """One step of utilities, messages and mixer down L; the target is copied when due."""
        spec = state.network.target.utilities.spec
        timesteps = batch.timesteps
        x = agent_inputs(spec, timesteps.obs, jax.vmap(last_actions)(batch.action))
        online_keys, target_keys = jax.random.split(key, (2, x.shape[0]))

        # The target network's utilities, by messages of its own, and its choice u'.
        target_network = state.network.target
        target_utilities, _ = self.batch_utilities(target_network, x, target_keys)
        label = greedy(target_utilities, timesteps.available)[:, :-1]

        def loss(network: Network) -> tuple[Float[Array, ""], Metrics]:
            # V of what the live network likes best, and y.
            utilities, messages = self.batch_utilities(network, x, online_keys)
            best_value = pick(target_utilities, greedy(utilities, timesteps.available))
            next_value = mix(target_network.mixer, best_value[:, 1:], timesteps.state[:, 1:])
            y = episode_targets(batch, next_value, self.gamma, self.td_lambda)

            # L_TD: Eq. 12.
            chosen = pick(utilities[:, :-1], batch.action)
            q = mix(network.mixer, chosen, timesteps.state[:, :-1])
            td_loss = masked_mean(jnp.square(q - y), batch.mask)

            # L_m: Eq. 9, 12.
            messages = jax.tree.map(lambda field: field[:, :-1], messages)
            message_losses = self.message_losses(network.messenger, x[:, :-1], messages, label)
            message_loss = masked_mean(message_losses, batch.mask)

            total = td_loss + self.message_weight * message_loss
            metrics = {"td_loss": td_loss, "message_loss": message_loss}
            return total, metrics | td_metrics(q, y, batch.mask)

        network, (total, metrics) = state.network.descend(loss, has_aux=True)
        network = network.copy_every(self.target_period, clock.updates)
        metrics = metrics | {"loss": total, "epsilon": self.epsilon.at(clock)}
        return State(network), metrics

    def message_losses(
        self,
        messenger: Messenger,
        x: Float[Array, "batch time agents inputs"],
        messages: Messages,
        label: Int[Array, "batch time agents"],
    ) -> Float[Array, "batch time"]:
        """L_m at every step of a batch."""

        def of_episode(x: Array, messages: Messages, label: Array) -> Array:
            return messenger.bottleneck(
                x, messages, label, self.kl_weight, self.message_entropy_weight
            )

        return jax.vmap(of_episode)(x, messages, label)

    def batch_utilities(
        self, network: Network, x: Float[Array, "batch time agents inputs"], keys: Keys
    ) -> tuple[Float[Array, "batch time agents actions"], Messages]:
        """Q_i and the messages of a batch of episodes, by a key for each."""
        return jax.vmap(lambda x, key: self.utilities(network, x, key))(x, keys)

    def utilities(
        self, network: Network, x: Float[Array, "time agents inputs"], key: Key
    ) -> tuple[Float[Array, "time agents actions"], Messages]:
        """Q_i and the messages of one episode."""
        messages = network.messenger(x, key, self.message_std)
        return network.utilities.unroll(concat_messages(x, messages.received)), messages

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode, by one draw of the messages."""
        network = state.network.value
        timesteps = episode.timesteps
        x = agent_inputs(network.utilities.spec, timesteps.obs, last_actions(episode.action))
        utilities, _ = self.utilities(network, x[:-1], key)
        return mix(network.mixer, pick(utilities, episode.action), timesteps.state[:-1])
