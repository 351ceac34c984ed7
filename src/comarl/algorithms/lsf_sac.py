"""LSF-SAC: value factorisation with latent state information sharing (Zhou, Lan, Aggarwal, arXiv
2201.01247, 2022).

A soft actor-critic whose critic is factored as QMIX's is, and in which each agent's utility also
hears messages from all agents. Only the critic hears them: actors act alone, on their own
histories, and messages end with training.

    M_ji ~ N(f_m(x_j)_i, I),  m_i = (M_1i .. M_Ni)                                                        (Sec V-A, V-B)
    Q_tot(s, u) = g_s(q_1(tau_1, m_1, u_1) .. q_N(tau_N, m_N, u_N))                                               (Eq 1)
    V_t    = Q_tot'(s_t, u*_t),  u*_i = argmax_u pi_i(u | tau_i)                                                 (Eq 16)
    y_t    = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})                                 (Eq 16: lambda is 0)
    L_crit = mean over steps (Q_tot(s_t, u_t) - y_t)^2 / 2 + lambda_1 L_m                                     (Eq 8, 16)
    L_m    = sum_i -log q_psi(u*_i | x_i, m_i) + beta sum_ji KL(N(f_m(x_j)_i, I) || N(0, I))        (Eq 12, nn/messages)
    L_pi   = -mean over steps g_s(E_{u ~ pi_i}[q_i(tau_i, m_i, u) - alpha log pi_i(u | tau_i)])                  (Eq 14)

Without messages it is what the paper calls MASAC, the preset `masac`. Where paper and released code disagree, the other
choice is a field. The defaults:
1. Agents act epsilon-greedily by their policies (code); "sample" draws from them (paper).
2. Targets value the greedy joint action and look on by lambda 0.6 (code); no entropy is in them (both).
3. One message for each receiver, by a feed-forward encoder (code); the same to all, by a recurrent one (paper).
4. The mixer gets q - alpha log pi (paper); the code gives it the negative of that.
5. alpha falls by a schedule: the code tunes it towards a negative entropy, which no discrete policy has, so that it
   falls at Adam's step whatever the policy does. Eq 15 with an entropy in reach is "sac-discrete".
6. Logits are clamped to [-5, 2] (code).
Differences from both: steps after an episode's end are left out of L_m as well; L_m has the log-probability itself, not
that of q_psi + 1e-6; its first term is a cross-entropy to be made small, the sign of Eq 12 notwithstanding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.nn.messages import MessageConditionedNet, Messages, Messenger, concat_messages
from comarl.nn.mixers import Mixer
from comarl.nn.recurrent import Memory, RecurrentNet, agent_inputs, last_actions
from comarl.ops.distributions import noise_of_steps
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy, only_available, pick
from comarl.ops.learner import Adam, Learner, copy_every
from comarl.ops.returns import episode_targets, masked_mean
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_interval, check_range


class Critic(eqx.Module):
    """Q_tot."""

    messenger: Messenger | None
    utility: MessageConditionedNet  # q_i, shared by agents
    mixer: Mixer


class State(eqx.Module):
    """What changes while LSF-SAC learns. Leaves of critics lead with `towers`: one critic, or
    twins."""

    actor: Learner[RecurrentNet]  # pi_i, shared by agents
    critic: Learner[Critic]
    target_critic: Critic
    temperature: Learner[Array] | None  # log alpha, if it is learnt


def soft_value(
    utilities: Float[Array, "*steps actions"],
    logits: Float[Array, "*steps actions"],
    available: Bool[Array, "*steps actions"] | None,
    alpha: Float[Array, ""],
) -> Float[Array, "*steps"]:
    """E_{u ~ pi}[q(u) - alpha log pi(u)]."""
    log_policy = jax.nn.log_softmax(only_available(logits, available))
    return (jnp.exp(log_policy) * (utilities - alpha * log_policy)).sum(-1)


def each(one: Callable, critics: Critic, key: Key, *episodes: PyTree) -> PyTree:
    """`one(critic, key, *episode)` of every tower and episode: `[towers batch ...]`."""
    towers, size = jax.tree.leaves(critics)[0].shape[0], jax.tree.leaves(episodes)[0].shape[0]
    of_tower = jax.vmap(one, in_axes=(None, 0, *[0] * len(episodes)))
    of_all = jax.vmap(of_tower, in_axes=(0, 0, *[None] * len(episodes)))
    return of_all(critics, jax.random.split(key, (towers, size)), *episodes)


def first(critics: Critic) -> Critic:
    """The tower that the actor climbs."""
    return jax.tree.map(lambda leaf: leaf[0], critics)


@dataclass(frozen=True)
class LsfSac:
    """Hyperparameters of LSF-SAC. The defaults are those of the released code but where the page
    says otherwise."""

    actions: ClassVar = frozenset({"discrete"})

    messages: Literal["pairwise", "broadcast", "none", "noise"] = "pairwise"
    """what utilities hear: a message from each agent to each, the same to all, nothing (MASAC), or
    N(0, 1)"""
    encoder: Literal["mlp", "gru"] = "mlp"
    """whether a message tells of what its sender sees now, or of its history"""
    message_size: int = 3
    """numbers in a message"""
    message_std: float = 1.0
    """standard deviation of the noise on messages"""
    message_width: int = 64
    """units of the hidden layers of the messages' encoder"""
    message_weight: float = 1e-3
    """lambda_1, the weight of the messages' loss"""
    kl_weight: float = 1e-3
    """beta, the price of what a message says, within the messages' loss"""
    message_entropy_weight: float = 1e-6
    """weight of -log N(M; 0, I), which the code has within the messages' loss and the paper has
    not"""
    stop_td_into_encoder: bool = False
    """let messages learn from their own loss alone"""
    behaviour: Literal["epsilon-greedy", "sample"] = "epsilon-greedy"
    """how agents explore: greedily with a chance of any action (code), or by drawing from their
    policies (paper)"""
    policy_sign: Literal["paper", "code"] = "paper"
    """what the actors climb: g(q - alpha log pi), or -g(alpha log pi - q), which weighs agents
    otherwise"""
    logit_clamp: tuple[float, float] | None = (-5.0, 2.0)
    """bounds of the policies' logits; None leaves them free"""
    soft_target: bool = False
    """value E_pi[q - alpha log pi] in targets, as soft actor-critics do, in place of the greedy
    action"""
    twin_critic: bool = False
    """two critics with targets of their own, of which the smaller Q_tot counts; the actors climb
    the first (Fig 6)"""
    temperature: Literal["schedule", "fixed", "sac-discrete"] = "schedule"
    """alpha: falling with the updates as in the code, constant (Fig 6), or tuned to an entropy in
    reach (Eq 15)"""
    alpha: float = 1.0
    """the temperature if it is fixed"""
    log_alpha: float = -0.07
    """log alpha at first, if it is not fixed"""
    log_alpha_fall: float = 1e-4
    """how much the schedule's log alpha falls with each update"""
    alpha_floor: float = 0.19
    """the schedule's least alpha, late in training"""
    alpha_floor_after: int = 3_000_000
    """environment steps from which on that floor holds"""
    entropy_share: float = 0.2
    """the entropy that "sac-discrete" keeps, in parts of that of an agent's uniform policy over
    what is available"""
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
    temperature_optimiser: Adam = Adam(1e-3, max_grad_norm=0.0)
    """optimiser of log alpha for "sac-discrete" """
    replay: EpisodeRing = EpisodeRing(5_000, 128)
    """episodes kept and drawn"""
    pace: EpisodePace = EpisodePace(8, 0.125)
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "mixer_width", "target_period")
        check_range(self, 1, None, "message_size", "message_width")
        check_range(self, 0, 1, "gamma", "td_lambda", "entropy_share")
        check_range(self, 0, None, "hypernet", "alpha_floor_after")
        check_range(
            self, 0, None, "message_std", "message_weight", "kl_weight", "message_entropy_weight"
        )
        check_range(self, 0, None, "alpha", "log_alpha_fall", "alpha_floor")
        check_interval(self, "logit_clamp")
        if self.alpha != 1.0 and self.temperature != "fixed":
            raise ValueError(
                f"alpha={self.alpha} of LsfSac counts only with temperature='fixed', not {self.temperature!r}"
            )

    def init(self, spec: EnvSpec, key: Key) -> State:
        actor_key, critic_key = jax.random.split(key)
        actor = RecurrentNet(spec, self.hidden, key=actor_key)
        critics = jax.vmap(lambda k: self.make_critic(spec, k))(
            jax.random.split(critic_key, 1 + self.twin_critic)
        )
        log_alpha = Learner.create(jnp.float32(self.log_alpha), self.temperature_optimiser)
        return State(
            actor=Learner.create(actor, self.actor_optimiser),
            critic=Learner.create(critics, self.critic_optimiser),
            target_critic=critics,
            temperature=log_alpha if self.temperature == "sac-discrete" else None,
        )

    def make_critic(self, spec: EnvSpec, key: Key) -> Critic:
        messenger_key, utility_key, mixer_key = jax.random.split(key, 3)
        messenger, agents = None, spec.num_agents
        if self.messages == "pairwise" or self.messages == "broadcast":
            size: dict[str, Any] = dict(size=self.message_size, hidden=self.message_width)
            recurrent = self.encoder == "gru"
            messenger = Messenger(
                spec, self.messages, **size, recurrent=recurrent, key=messenger_key
            )
        told = 0 if self.messages == "none" else agents * self.message_size
        utility = MessageConditionedNet(spec, self.hidden, told, key=utility_key)
        mixer = Mixer(
            agents, spec.state_size, width=self.mixer_width, hypernet=self.hypernet, key=mixer_key
        )
        return Critic(messenger, utility, mixer)

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
        """Each agent by its own policy: no messages are needed."""
        del team
        hidden, logits = state.actor.value.step(memory, timestep.obs)
        logits, available = self.clamp(logits), timestep.available
        if explore and self.behaviour == "sample":
            action = jax.random.categorical(key, only_available(logits, available)).astype(
                jnp.int32
            )
        else:
            action = (
                self.explore(logits, available, clock, key)
                if explore
                else greedy(logits, available)
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

    def clamp(self, logits: Float[Array, "*batch actions"]) -> Float[Array, "*batch actions"]:
        return logits if self.logit_clamp is None else jnp.clip(logits, *self.logit_clamp)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """Every loss is that of the networks as they were; then each takes a step. The target is
        copied when due."""
        x = agent_inputs(
            state.actor.value.spec, batch.timesteps.obs, jax.vmap(last_actions)(batch.action)
        )
        # The policies' logits serve three losses; only the actor's is differentiated through them.
        unroll = lambda actor: self.clamp(actor.head(jax.vmap(actor.encoder.unroll)(x)))
        logits, pull_back = jax.vjp(unroll, state.actor.value)
        alpha = self.alpha_at(state, clock)
        online_key, target_key = jax.random.split(key)
        target = self.targets(state.target_critic, batch, x, logits, alpha, target_key)
        loss = lambda critics: self.critic_loss(critics, batch, x, logits, target, online_key)
        gradient, (utilities, metrics) = jax.grad(loss, has_aux=True)(state.critic.value)

        mixer = first(state.critic.value).mixer
        climb = lambda logits: self.actor_loss(logits, utilities, mixer, batch, alpha)
        actor_loss, by_logits = jax.value_and_grad(climb)(logits)
        actor, critic = state.actor.apply(*pull_back(by_logits)), state.critic.apply(gradient)
        temperature, entropy = self.fit_temperature(state, batch, logits)
        copied = copy_every(self.target_period, clock.updates, state.target_critic, critic.value)
        metrics |= {"actor_loss": actor_loss, "entropy": entropy, "alpha": alpha}
        return State(actor, critic, copied, temperature), metrics

    def utilities(
        self, critic: Critic, x: Float[Array, "time agents inputs"], key: Key
    ) -> tuple[Float[Array, "time agents actions"], Messages | None]:
        """q_i of one episode, and what was said."""
        messages = told = None
        if critic.messenger is not None:
            messages = critic.messenger(x, key, self.message_std)
            told = (
                jax.lax.stop_gradient(messages.received) if self.stop_td_into_encoder else messages.received
            )
        elif self.messages == "noise":
            told = noise_of_steps(key, (*x.shape[:-1], x.shape[-2] * self.message_size))
        return critic.utility.unroll(concat_messages(x, told)), messages

    def targets(
        self,
        critics: Critic,
        batch: Episode,
        x: Float[Array, "batch steps agents inputs"],
        logits: Float[Array, "batch steps agents actions"],
        alpha: Float[Array, ""],
        key: Key,
    ) -> Float[Array, "batch time"]:
        """y, by the smaller Q_tot of the target's towers."""

        def one(critic: Critic, key: Key, steps: Timestep, x: Array, logits: Array) -> Array:
            utilities, _ = self.utilities(critic, x, key)
            if self.soft_target:
                values = soft_value(utilities, logits, steps.available, alpha)
            else:
                values = pick(utilities, greedy(logits, steps.available))
            return critic.mixer(values[1:], steps.state[1:])

        next_value = each(one, critics, key, batch.timesteps, x, logits).min(axis=0)
        return episode_targets(batch, next_value, self.gamma, self.td_lambda)

    def critic_loss(
        self,
        critics: Critic,
        batch: Episode,
        x: Float[Array, "batch steps agents inputs"],
        logits: Float[Array, "batch steps agents actions"],
        target: Float[Array, "batch time"],
        key: Key,
    ) -> tuple[Float[Array, ""], tuple[Float[Array, "batch time agents actions"], Metrics]]:
        """Eq 8 but for the policies' loss, summed over towers; and the first tower's utilities."""
        label = greedy(logits, batch.timesteps.available)[:, :-1]

        def one(critic: Critic, key: Key, episode: Episode, x: Array, label: Array) -> tuple:
            utilities, messages = self.utilities(critic, x, key)
            q = critic.mixer(pick(utilities, episode.action), episode.timesteps.state[:-1])
            if critic.messenger is None or messages is None:
                return utilities, q, jnp.zeros_like(q)
            weights = self.kl_weight, self.message_entropy_weight
            return utilities, q, critic.messenger.bottleneck(x, messages, label, *weights)

        utilities, q, said = each(one, critics, key, batch, x[:, :-1], label)
        mean = lambda values: masked_mean(values, batch.mask)
        error, message_loss = mean(0.5 * jnp.square(q - target).sum(0)), mean(said.sum(0))
        metrics = {
            "critic_loss": error,
            "message_loss": message_loss,
            "value": mean(q[0]),
            "target_value": mean(target),
        }
        return error + self.message_weight * message_loss, (utilities[0], metrics)

    def actor_loss(
        self,
        logits: Float[Array, "batch steps agents actions"],
        utilities: Float[Array, "batch time agents actions"],
        mixer: Mixer,
        batch: Episode,
        alpha: Float[Array, ""],
    ) -> Float[Array, ""]:
        """Eq 14, in which all but the policies is given."""
        state, available = batch.timesteps.state[:, :-1], batch.timesteps.available
        assert available is not None  # discrete tasks say what is legal
        value = soft_value(utilities, logits[:, :-1], available[:, :-1], alpha)
        return masked_mean(
            -mixer(value, state) if self.policy_sign == "paper" else mixer(-value, state),
            batch.mask,
        )

    def alpha_at(self, state: State, clock: Clock) -> Float[Array, ""]:
        """The temperature of an update."""
        if self.temperature == "fixed":
            return jnp.float32(self.alpha)
        if state.temperature is not None:
            return jnp.exp(state.temperature.value)
        alpha = jnp.exp(self.log_alpha - self.log_alpha_fall * clock.updates.astype(jnp.float32))
        return jnp.where(
            clock.env_steps > self.alpha_floor_after, jnp.maximum(alpha, self.alpha_floor), alpha
        )

    def fit_temperature(
        self, state: State, batch: Episode, logits: Float[Array, "batch steps agents actions"]
    ) -> tuple[Learner[Array] | None, Float[Array, ""]]:
        """Eq 15: alpha falls while the policies' entropy is above its target. Also the entropy, a
        mean over agents."""
        available = batch.timesteps.available
        assert available is not None
        available = available[:, :-1]
        entropy = soft_value(
            jnp.zeros_like(logits[:, :-1]), logits[:, :-1], available, jnp.float32(1.0)
        ).mean(-1)
        wanted = self.entropy_share * jnp.log(
            jnp.maximum(available.sum(-1), 1).astype(jnp.float32)
        ).mean(-1)
        temperature = state.temperature
        if temperature is not None:
            temperature, _ = temperature.descend(
                lambda log_alpha: log_alpha * masked_mean(entropy - wanted, batch.mask)
            )
        return temperature, masked_mean(entropy, batch.mask)

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode, by one draw of the messages."""
        x = agent_inputs(
            state.actor.value.spec, episode.timesteps.obs, last_actions(episode.action)
        )
        critic = first(state.critic.value)
        utilities, _ = self.utilities(critic, x[:-1], key)
        return critic.mixer(pick(utilities, episode.action), episode.timesteps.state[:-1])
