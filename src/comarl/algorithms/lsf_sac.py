"""LSF-SAC: value factorisation with latent state information sharing
(Zhou, Lan, Aggarwal, arXiv 2201.01247, 2022).

A soft actor-critic whose critic is factored as QMIX's is, and in which each agent's utility also
receives messages from all agents. Only the critic receives them: execution is decentralised, actors
act on their own histories, and messages end with training.

    M_ji ~ N(f_m(x_j)_i, I),  m_i = (M_1i .. M_Ni)                                  (Sec V-A, V-B)
    Q_tot(s, u) = g_s(q_1(tau_1, m_1, u_1) .. q_N(tau_N, m_N, u_N))                 (Eq 1)
    V_t    = Q_tot'(s_t, u*_t),  u*_i = argmax_u pi_i(u | tau_i)                    (Eq 16)
    y_t    = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})                    (Eq 16)
    L_crit = mean over steps (Q_tot(s_t, u_t) - y_t)^2 / 2 + lambda_1 L_m           (Eq 8, 16)
    L_m    = sum_i -log q_psi(u*_i | x_i, m_i)
             + beta sum_ji KL(N(f_m(x_j)_i, I) || N(0, I))                          (Eq 12)
    L_pi   = -mean over steps
             g_s(E_{u ~ pi_i}[q_i(tau_i, m_i, u) - alpha log pi_i(u | tau_i)])      (Eq 14)
    L_alpha = log alpha * mean over steps (H(pi) - H*)                              (Eq 15)

Messages are those of `comarl.nn.messages`. Without them it is what the paper calls MASAC, the
preset `masac`. In the paper lambda is 0. Where paper and released code disagree, the other choice
is a field. The defaults:
1. Agents act epsilon-greedily by their policies (code); "sample" draws from them (paper).
2. Targets value the greedy joint action, with lambda 0.6 (code); no entropy is in them (both).
   Eq 16 mixes a maximum over actions with an expectation over policies: `target_value`.
3. One message for each receiver, by a feed-forward encoder (code); the same to all, by a recurrent
   one (paper).
4. The mixer gets q - alpha log pi (paper); the code gives it the negative of that.
5. alpha falls by a schedule: the code tunes it towards a negative entropy, which no discrete policy
   has, so that it falls at Adam's step whatever the policy does. Eq 15 with an entropy in reach is
   "sac-discrete".
6. Logits are clamped to [-5, 2] (code).
Differences from both: steps after an episode's end are left out of L_m as well; L_m has the
log-probability itself, not that of q_psi + 1e-6; its first term is a cross-entropy to be made
small, the sign of Eq 12 notwithstanding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.nn.messages import MessageConditionedNet, Messages, Messenger, concat_messages
from comarl.nn.mixers import Mixer
from comarl.nn.recurrent import Memory, RecurrentNet, episode_inputs
from comarl.ops.distributions import noise_of_steps, uniform_entropy
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy, only_available, pick
from comarl.ops.learner import Adam, Learner, Tracked
from comarl.ops.returns import episode_targets, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_interval, check_range

Scalar = Float[Array, ""]
Logits = Float[Array, "batch steps agents actions"]
Inputs = Float[Array, "batch steps agents inputs"]


@dataclass(frozen=True)
class Messaging:
    """Who sends what to whom while the critic learns, and how messages learn."""

    routing: Literal["pairwise", "broadcast", "none", "noise"] = "pairwise"
    """what utilities receive: a message from each agent to each, the same to all, nothing (MASAC),
    or N(0, 1)"""
    encoder: Literal["mlp", "gru"] = "mlp"
    """whether a message is made from what its sender observes now, or from its history"""
    size: int = 3
    """numbers in a message"""
    std: float = 1.0
    """standard deviation of the noise on messages"""
    hidden: int = 64
    """units of the hidden layers of the messages' encoder"""
    weight: float = 1e-3
    """lambda_1, the weight of the messages' loss"""
    kl_weight: float = 1e-3
    """beta, the price of what a message says, within the messages' loss"""
    entropy_weight: float = 1e-6
    """weight of -log N(M; 0, I), which the code has within the messages' loss and the paper has
    not"""
    stop_td_into_encoder: bool = False
    """let messages learn from their own loss alone"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "size", "hidden")
        check_range(self, 0, None, "std", "weight", "kl_weight", "entropy_weight")

    def received(self, num_agents: int) -> int:
        """How many numbers an agent receives at each step."""
        return 0 if self.routing == "none" else num_agents * self.size

    def make_messenger(self, spec: EnvSpec, key: Key) -> Messenger | None:
        """Encoder and posterior, where there are messages."""
        if self.routing == "none" or self.routing == "noise":
            return None
        size, hidden = self.size, self.hidden
        return Messenger(
            spec, self.routing, size=size, hidden=hidden, recurrent=self.encoder == "gru", key=key
        )


@dataclass(frozen=True)
class Temperature:
    """alpha, the weight of the policies' entropy, and how it changes during a run."""

    mode: Literal["schedule", "fixed", "sac-discrete"] = "schedule"
    """falling with the updates as in the code, constant (Fig 6), or tuned to an entropy in reach
    (Eq 15)"""
    alpha: float = 1.0
    """alpha if it is fixed"""
    log_alpha: float = -0.07
    """log alpha at first, if it is not fixed"""
    fall: float = 1e-4
    """how much the schedule's log alpha falls with each update"""
    floor: float = 0.19
    """the schedule's least alpha, late in training"""
    floor_after: int = 3_000_000
    """environment steps from which on that floor holds"""
    entropy_share: float = 0.2
    """H*, the entropy that "sac-discrete" keeps, as a share of that of an agent's uniform policy
    over what is available"""
    optimiser: Adam = Adam(1e-3, max_grad_norm=0.0)
    """optimiser of log alpha for "sac-discrete" """

    def __post_init__(self):
        check_fields(self)
        check_range(self, 0, 1, "entropy_share")
        check_range(self, 0, None, "alpha", "fall", "floor", "floor_after")
        if self.alpha != 1.0 and self.mode != "fixed":
            raise ValueError(
                f"alpha={self.alpha} of Temperature counts only with mode='fixed', "
                f"not {self.mode!r}"
            )

    def init(self) -> Learner[Array] | None:
        """log alpha, if it is learnt."""
        if self.mode != "sac-discrete":
            return None
        return Learner.create(jnp.float32(self.log_alpha), self.optimiser)

    def at(self, log_alpha: Learner[Array] | None, clock: Clock) -> Scalar:
        """alpha at an update."""
        if self.mode == "fixed":
            return jnp.float32(self.alpha)
        if log_alpha is not None:
            return jnp.exp(log_alpha.value)
        alpha = jnp.exp(self.log_alpha - self.fall * clock.updates.astype(jnp.float32))
        late = clock.env_steps > self.floor_after
        return jnp.where(late, jnp.maximum(alpha, self.floor), alpha)


class Critic(eqx.Module):
    """Q_tot. In a state its leaves lead with `critics`."""

    messenger: Messenger | None
    utility: MessageConditionedNet  # q_i, shared by agents
    mixer: Mixer


class State(eqx.Module):
    """What changes while LSF-SAC learns."""

    actor: Learner[RecurrentNet]  # pi_i, shared by agents
    critics: Tracked[Critic]  # leaves lead with `critics`
    log_alpha: Learner[Array] | None  # if it is learnt


def soft_value(
    utilities: Float[Array, "*steps actions"],
    logits: Float[Array, "*steps actions"],
    available: Bool[Array, "*steps actions"] | None,
    alpha: Scalar,
) -> Float[Array, "*steps"]:
    """E_{u ~ pi}[q(u) - alpha log pi(u)]."""
    log_pi = jax.nn.log_softmax(only_available(logits, available))
    return (jnp.exp(log_pi) * (utilities - alpha * log_pi)).sum(-1)


def over_critics(of_episode: Callable, critics: Critic, key: Key, *episodes: PyTree) -> PyTree:
    """`of_episode(critic, key, *episode)` of every critic and episode: `[critics batch ...]`.

    Each has a key of its own.
    """
    count, size = jax.tree.leaves(critics)[0].shape[0], jax.tree.leaves(episodes)[0].shape[0]
    of_critic = jax.vmap(of_episode, in_axes=(None, 0, *[0] * len(episodes)))
    of_all = jax.vmap(of_critic, in_axes=(0, 0, *[None] * len(episodes)))
    return of_all(critics, jax.random.split(key, (count, size)), *episodes)


def first_critic(critics: Critic) -> Critic:
    """The critic that the actors maximise."""
    return jax.tree.map(lambda leaf: leaf[0], critics)


@dataclass(frozen=True)
class LsfSac:
    """Hyperparameters of LSF-SAC. The defaults are those of the released code but where the page
    says otherwise."""

    actions = frozenset({"discrete"})

    messages: Messaging = Messaging()
    """what utilities receive, and how messages learn"""
    temperature: Temperature = Temperature()
    """alpha, the weight of the policies' entropy"""
    behaviour: Literal["epsilon-greedy", "sample"] = "epsilon-greedy"
    """how agents explore: greedily with a chance of any action (code), or by drawing from their
    policies (paper)"""
    policy_sign: Literal["paper", "code"] = "paper"
    """what the actors maximise: g(q - alpha log pi), or -g(alpha log pi - q), which weighs agents
    otherwise"""
    logit_clamp: tuple[float, float] | None = (-5.0, 2.0)
    """bounds of the policies' logits; None leaves them free"""
    target_value: Literal["greedy", "max", "expected", "soft"] = "greedy"
    """V in targets: Q_tot of the policies' greedy actions (code), the largest Q_tot, or Q_tot of
    E_pi[q] (Eq 16, read literally) or of E_pi[q - alpha log pi] (soft actor-critics)"""
    critics: int = 1
    """critics with targets of their own, of which the least Q_tot counts; the actors maximise the
    first (Fig 6: two)"""
    hidden: int = 64
    """units of the recurrent layers of actor and utility"""
    mixer_width: int = 32
    """units of the mixer's hidden layer"""
    hypernet: int = 64
    """units of the hidden layer that makes the mixer's weights; 0 makes them linear in the state"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.6
    """lambda of the TD(lambda) target; 0 looks one step ahead (paper)"""
    epsilon: Epsilon = Epsilon(0.995, 0.05, 100_000)
    """chance of a random action, at first and in the end"""
    target_period: int = 25
    """updates between copies of the critic to its target"""
    actor_optimiser: Adam = Adam(1e-3, max_grad_norm=0.0)
    """optimiser of the actor"""
    critic_optimiser: Adam = Adam(1e-3)
    """optimiser of utilities, messages and mixer together"""
    replay: EpisodeRing = EpisodeRing(5_000, 128)
    """episodes kept and drawn"""
    pace: EpisodePace = EpisodePace(8, 0.125)
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "critics", "hidden", "mixer_width", "target_period")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "hypernet")
        check_interval(self, "logit_clamp")

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        actor_key, critic_key = jax.random.split(key)
        make_critic = lambda key: self.make_critic(spec, key)
        critics = jax.vmap(make_critic)(jax.random.split(critic_key, self.critics))
        return State(
            actor=Learner.create(self.make_actor(spec, actor_key), self.actor_optimiser),
            critics=Tracked.create(critics, self.critic_optimiser),
            log_alpha=self.temperature.init(),
        )

    def make_actor(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """pi_i(tau_i) as logits, not yet clamped."""
        return RecurrentNet(spec, self.hidden, key=key)

    def make_critic(self, spec: EnvSpec, key: Key) -> Critic:
        """One of the critics: messages, utilities and mixer."""
        messenger_key, utility_key, mixer_key = jax.random.split(key, 3)
        return Critic(
            messenger=self.messages.make_messenger(spec, messenger_key),
            utility=self.make_utility(spec, utility_key),
            mixer=self.make_mixer(spec, mixer_key),
        )

    def make_utility(self, spec: EnvSpec, key: Key) -> MessageConditionedNet:
        """q_i(tau_i, m_i, .)."""
        received = self.messages.received(spec.num_agents)
        return MessageConditionedNet(spec, self.hidden, received, key=key)

    def make_mixer(self, spec: EnvSpec, key: Key) -> Mixer:
        """g_s."""
        return Mixer(
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
        """Each agent by its own policy: no messages are needed."""
        del team
        hidden, logits = state.actor.value.step(memory, timestep.obs)
        logits, available = self.clamp(logits), timestep.available
        if explore:
            action = self.explore(logits, available, clock, key)
        else:
            action = greedy(logits, available)
        return Memory(hidden, action), action

    def explore(
        self,
        logits: Float[Array, "agents actions"],
        available: Bool[Array, "agents actions"] | None,
        clock: Clock,
        key: Key,
    ) -> Int[Array, " agents"]:
        """Each agent on its own: any available action with chance epsilon, else the best; or a draw
        from its policy."""
        if self.behaviour == "sample":
            drawn = jax.random.categorical(key, only_available(logits, available))
            return drawn.astype(jnp.int32)
        return epsilon_greedy(logits, available, self.epsilon.at(clock), key)

    def clamp(self, logits: Float[Array, "*batch actions"]) -> Float[Array, "*batch actions"]:
        """Logits within their bounds, beyond which they have no gradient."""
        return logits if self.logit_clamp is None else jnp.clip(logits, *self.logit_clamp)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """Every loss is that of the networks as they were; then each takes a step. Targets are
        copied when due."""
        critics_key, target_key = jax.random.split(key)
        spec = state.actor.value.spec
        x = jax.vmap(lambda episode: episode_inputs(spec, episode))(batch)
        alpha = self.temperature.at(state.log_alpha, clock)

        # Policies: unrolled once for three losses. Only the actor's is differentiated through them.
        unroll = lambda actor: self.logits(actor, x)
        logits, to_actor = jax.vjp(unroll, state.actor.value)

        # Critics: Eq. 8, 12 and 16.
        target = self.targets(state.critics.target, batch, x, logits, alpha, target_key)

        def critic_loss(critics: Critic) -> tuple[Scalar, tuple]:
            return self.critic_loss(critics, batch, x, logits, target, critics_key)

        critics, (_, (utilities, metrics)) = state.critics.descend(critic_loss, has_aux=True)

        # Actor: Eq. 14, by the first critic as it was.
        mixer = first_critic(state.critics.value).mixer

        def actor_loss(logits: Logits) -> Scalar:
            return self.actor_loss(logits, utilities, mixer, batch, alpha)

        policy_loss, by_logits = jax.value_and_grad(actor_loss)(logits)
        (by_actor,) = to_actor(by_logits)
        actor = state.actor.apply(by_actor)

        # Temperature: Eq. 15.
        log_alpha, entropy_metrics = self.fit_temperature(state.log_alpha, batch, logits)

        # Targets.
        critics = critics.copy_every(self.target_period, clock.updates)
        metrics |= {"actor_loss": policy_loss, "temperature": alpha} | entropy_metrics
        if self.behaviour == "epsilon-greedy":
            metrics["epsilon"] = self.epsilon.at(clock)
        return State(actor, critics, log_alpha), metrics

    def logits(self, actor: RecurrentNet, x: Inputs) -> Logits:
        """The policies' clamped logits at every step, the one after an episode's end included."""
        return self.clamp(actor.head(jax.vmap(actor.encoder.unroll)(x)))

    def utilities(
        self, critic: Critic, x: Float[Array, "time agents inputs"], key: Key
    ) -> tuple[Float[Array, "time agents actions"], Messages | None]:
        """q_i of one episode, and the messages, if there are any (Eq. 1)."""
        messages = received = None
        if critic.messenger is not None:
            messages = critic.messenger(x, key, self.messages.std)
            received = messages.received
            if self.messages.stop_td_into_encoder:
                received = jax.lax.stop_gradient(received)
        elif self.messages.routing == "noise":
            time, agents, _ = x.shape
            received = noise_of_steps(key, (time, agents, self.messages.received(agents)))
        return critic.utility.unroll(concat_messages(x, received)), messages

    def targets(
        self,
        critics: Critic,
        batch: Episode,
        x: Inputs,
        logits: Logits,
        alpha: Scalar,
        key: Key,
    ) -> Float[Array, "batch time"]:
        """y, by the least Q_tot of the target critics (Eq. 16)."""

        def of_episode(critic: Critic, key: Key, steps: Timestep, x: Array, logits: Array) -> Array:
            utilities, _ = self.utilities(critic, x, key)
            values = self.values_of_agents(utilities, logits, steps.available, alpha)
            return critic.mixer(values[1:], steps.state[1:])

        next_values = over_critics(of_episode, critics, key, batch.timesteps, x, logits)
        return episode_targets(batch, next_values.min(axis=0), self.gamma, self.td_lambda)

    def values_of_agents(
        self,
        utilities: Float[Array, "*steps actions"],
        logits: Float[Array, "*steps actions"],
        available: Bool[Array, "*steps actions"] | None,
        alpha: Scalar,
    ) -> Float[Array, "*steps"]:
        """What each agent brings into V, by `target_value`. Q_tot grows with every utility, so that
        the utilities' maxima make its own."""
        if self.target_value == "max":
            return only_available(utilities, available).max(axis=-1)
        if self.target_value == "expected":
            return soft_value(utilities, logits, available, jnp.zeros_like(alpha))
        if self.target_value == "soft":
            return soft_value(utilities, logits, available, alpha)
        return pick(utilities, greedy(logits, available))

    def critic_loss(
        self,
        critics: Critic,
        batch: Episode,
        x: Inputs,
        logits: Logits,
        target: Float[Array, "batch time"],
        key: Key,
    ) -> tuple[Scalar, tuple[Float[Array, "batch time agents actions"], Metrics]]:
        """L_crit, summed over critics; and the first critic's utilities."""
        label = greedy(logits, batch.timesteps.available)[:, :-1]

        def of_episode(critic: Critic, key: Key, episode: Episode, x: Array, label: Array) -> tuple:
            utilities, messages = self.utilities(critic, x, key)
            q = critic.mixer(pick(utilities, episode.action), episode.timesteps.state[:-1])
            if critic.messenger is None or messages is None:
                return utilities, q, jnp.zeros_like(q)
            weights = self.messages.kl_weight, self.messages.entropy_weight
            return utilities, q, critic.messenger.bottleneck(x, messages, label, *weights)

        found = over_critics(of_episode, critics, key, batch, x[:, :-1], label)
        utilities, q, bottleneck = found
        td_loss = masked_mean(0.5 * jnp.square(q - target).sum(0), batch.mask)
        message_loss = masked_mean(bottleneck.sum(0), batch.mask)
        loss = td_loss + self.messages.weight * message_loss
        metrics = {"critic_loss": loss, "td_loss": td_loss, "message_loss": message_loss}
        metrics |= td_metrics(q[0], target, batch.mask)
        return loss, (utilities[0], metrics)

    def actor_loss(
        self,
        logits: Logits,
        utilities: Float[Array, "batch time agents actions"],
        mixer: Mixer,
        batch: Episode,
        alpha: Scalar,
    ) -> Scalar:
        """L_pi (Eq. 14), in which all but the policies is given."""
        state, available = batch.timesteps.state[:, :-1], batch.timesteps.available
        assert available is not None  # discrete tasks say what is legal
        value = soft_value(utilities, logits[:, :-1], available[:, :-1], alpha)
        cost = -mixer(value, state) if self.policy_sign == "paper" else mixer(-value, state)
        return masked_mean(cost, batch.mask)

    def fit_temperature(
        self, log_alpha: Learner[Array] | None, batch: Episode, logits: Logits
    ) -> tuple[Learner[Array] | None, Metrics]:
        """alpha falls while the policies' entropy is above its target (Eq. 15), if it is learnt."""
        assert batch.timesteps.available is not None
        logits, available = logits[:, :-1], batch.timesteps.available[:, :-1]
        # The mean entropy of an agent is its soft value where q is 0 and alpha 1.
        entropy = soft_value(jnp.zeros_like(logits), logits, available, jnp.float32(1.0)).mean(-1)
        metrics = {"entropy": masked_mean(entropy, batch.mask)}
        if log_alpha is None:
            return None, metrics
        wanted = self.temperature.entropy_share * uniform_entropy(available).mean(-1)
        excess = masked_mean(entropy - wanted, batch.mask)
        log_alpha, temperature_loss = log_alpha.descend(lambda value: value * excess)
        return log_alpha, metrics | {"temperature_loss": temperature_loss}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode, by one draw of the messages."""
        x = episode_inputs(state.actor.value.spec, episode)
        critic = first_critic(state.critics.value)
        utilities, _ = self.utilities(critic, x[:-1], key)
        return critic.mixer(pick(utilities, episode.action), episode.timesteps.state[:-1])
