"""VDAC: value-decomposition actor-critics (Su, Adams, Beling, AAAI 2021), and MAA2C with a
decomposed value.

Every agent has a policy and a value of its own history; a mixer, whose weights are never negative,
joins the values into the team's. What the team got beyond that value is every agent's advantage.

    pi_i(u | tau_i) = (1 - epsilon) softmax(A h_i) + epsilon / (number of available actions)
    V_tot = g_s(V_1(tau_1) .. V_N(tau_N)),  dV_tot / dV_i >= 0          VDAC-mix
    V_tot = sum_i V_i                                                   VDAC-sum
    G_t   = r_t + gamma ((1 - lambda) V_tot,t+1 + lambda G_t+1)         by the network as it is now
    L_pi  = -mean over steps and agents (G_t - V_tot,t) log pi_i(u_i,t | tau_i,t)
    L_V   = mean over steps (V_tot,t - G_t)^2
    L     = L_pi + c L_V - beta mean H(pi_i)

The advantage G - V_tot and the target G are data. pi_i with its share of random actions is how the
team explores. It is on-policy: a round's episodes are learnt from once, then forgotten. By default
pi_i and V_i are two heads on one encoder, as the authors have it. `maa2c` is the advantage
actor-critic with the same decomposed value, to which papers compare: two networks, each with its
optimiser (c then only says where gradients are clipped), and a bonus on entropy.

The defaults are the authors'; `vdac-mix-pymarl2` has the settings of PyMARL2 (Hu et al., 2021),
which calls it VMIX. Differences from the authors' code:
1. An episode that was truncated ends in its own value wherever it ends within a batch; theirs
   relies on the longest.
2. Random actions are uniform over what is available; theirs over all actions, of which some are
   then struck out.
3. The gradients of actor and critic are clipped each by its own norm; theirs by that of both
   together.
4. Epsilon in the loss is that after the round; theirs is that of its last step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mixers import Mixer, Mixing, Sum, make_mixer
from comarl.nn.mlp import Linear
from comarl.nn.recurrent import Memory, RecurrentEncoder, RecurrentNet, input_size, unroll_episode
from comarl.ops.distributions import entropy, log_probability
from comarl.ops.exploration import Epsilon, epsilon_softmax, greedy, pick, policy_with_epsilon
from comarl.ops.learner import Learner, Optimiser, RmsProp, descend_jointly
from comarl.ops.returns import episode_targets, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range


class Critic(eqx.Module):
    """V_tot: what each agent's history is worth, joined by a mixer."""

    encoder: RecurrentEncoder | None  # None: the actor's
    head: Linear
    mixer: Mixer | Sum


class State(eqx.Module):
    """What changes while VDAC learns."""

    actor: Learner[RecurrentNet]  # pi_i, shared by agents
    critic: Learner[Critic]


@dataclass(frozen=True)
class Vdac:
    """Hyperparameters of VDAC. The defaults are the authors'."""

    actions = frozenset({"discrete"})

    mixing: Mixing = "monotonic"
    """how the agents' values are joined: QMIX's mixer, the same without its sign constraint, or a
    sum (VDAC-sum)"""
    separate: bool = False
    """the critic has an encoder of its own; off, policies and values are two heads on one"""
    hidden: int = 64
    """units of the recurrent layer"""
    mixer_width: int = 32
    """units of the mixer's hidden layer"""
    hypernet: int = 64
    """units of the hidden layer that makes the mixer's weights; 0 makes them linear in the state"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.8
    """lambda of the TD(lambda) return; 0 looks one step ahead"""
    value_weight: float = 0.1
    """c: weight of the critic's loss beside the actor's"""
    entropy_weight: float = 0.0
    """beta: weight of the policies' mean entropy, which is rewarded"""
    epsilon: Epsilon = Epsilon(0.5, 0.01, 100_000)
    """share of random actions while exploring, at first and in the end"""
    epsilon_in_loss: bool = True
    """the policy that learns is the one that explores; off, the loss takes the softmax alone"""
    actor_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of the actor, and of the encoder if there is one"""
    critic_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of what belongs to the critic alone"""
    replay: EpisodeRing = EpisodeRing(8, 8)
    """as many episodes as a round plays, all of them drawn: anything else is not on-policy"""
    pace: EpisodePace = EpisodePace(8, 0.125)
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "mixer_width")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "hypernet", "value_weight", "entropy_weight")

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        actor_key, *critic_keys = jax.random.split(key, 4)
        actor = self.make_actor(spec, actor_key)
        critic = self.make_critic(spec, critic_keys)
        return State(
            actor=Learner.create(actor, self.actor_optimiser),
            critic=Learner.create(critic, self.critic_optimiser),
        )

    def make_actor(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """pi_i(tau_i) as logits."""
        return RecurrentNet(spec, self.hidden, key=key)

    def make_critic(self, spec: EnvSpec, keys: Sequence[Key]) -> Critic:
        """V_tot: encoder, if it has one of its own, head and mixer, each by a key."""
        encoder_key, head_key, mixer_key = keys
        encoder = None
        if self.separate:
            encoder = RecurrentEncoder(input_size(spec), self.hidden, key=encoder_key)
        return Critic(
            encoder, Linear(self.hidden, 1, key=head_key), self.make_mixer(spec, mixer_key)
        )

    def make_mixer(self, spec: EnvSpec, key: Key) -> Mixer | Sum:
        """g_s, which joins the agents' values."""
        size = dict(width=self.mixer_width, hypernet=self.hypernet)
        return make_mixer(self.mixing, spec.num_agents, spec.state_size, **size, key=key)

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
        """Drawn from the policies with a share of random actions while exploring, else greedy."""
        del team
        hidden, logits = state.actor.value.step(memory, timestep.obs)
        if explore:
            action = self.explore(logits, timestep.available, clock, key)
        else:
            action = greedy(logits, timestep.available)
        return Memory(hidden, action), action

    def explore(
        self,
        logits: Float[Array, "agents actions"],
        available: Bool[Array, "agents actions"] | None,
        clock: Clock,
        key: Key,
    ) -> Int[Array, " agents"]:
        """Drawn from the policies, with a share epsilon of random actions."""
        return epsilon_softmax(logits, available, self.epsilon.at(clock), key)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """One step of actor and critic, down one loss."""
        del key
        epsilon = self.epsilon.at(clock)

        def loss(networks: tuple[RecurrentNet, Critic]) -> tuple[Float[Array, ""], Metrics]:
            return self.loss(*networks, batch, epsilon if self.epsilon_in_loss else 0.0)

        learners, (_, metrics) = descend_jointly((state.actor, state.critic), loss)
        return State(*learners), metrics | {"epsilon": epsilon}

    def loss(
        self, actor: RecurrentNet, critic: Critic, batch: Episode, epsilon: Float[Array, ""] | float
    ) -> tuple[Float[Array, ""], Metrics]:
        """L, and its parts."""
        available = batch.timesteps.available
        assert available is not None  # discrete tasks say what is legal
        every_agent = jnp.broadcast_to(batch.mask[..., None], batch.action.shape)
        evaluate = lambda episode: self.evaluate(actor, critic, episode)
        logits, value = jax.vmap(evaluate)(batch)

        # Critic: L_V.
        target = episode_targets(batch, value[:, 1:], self.gamma, self.td_lambda)
        td_loss = masked_mean(jnp.square(value[:, :-1] - target), batch.mask)
        critic_loss = self.value_weight * td_loss

        # Policies: L_pi, and the bonus on their entropy.
        policy = policy_with_epsilon(logits[:, :-1], available[:, :-1], epsilon)
        log_pi = log_probability(pick(policy, batch.action))
        advantage = jax.lax.stop_gradient(target - value[:, :-1])
        policy_loss = -masked_mean(advantage[..., None] * log_pi, every_agent)
        mean_entropy = masked_mean(entropy(policy), every_agent)

        total = policy_loss + critic_loss - self.entropy_weight * mean_entropy
        return total, {
            "loss": total,
            "actor_loss": policy_loss - self.entropy_weight * mean_entropy,
            "critic_loss": critic_loss,
            "td_loss": td_loss,
            "entropy": mean_entropy,
            **td_metrics(value[:, :-1], target, batch.mask),
        }

    def evaluate(
        self, actor: RecurrentNet, critic: Critic, episode: Episode
    ) -> tuple[Float[Array, "steps agents actions"], Float[Array, " steps"]]:
        """The policies' logits and V_tot at each step of one episode, and after its end."""
        history = critic_history = unroll_episode(actor.encoder, actor.spec, episode)
        if critic.encoder is not None:
            critic_history = unroll_episode(critic.encoder, actor.spec, episode)
        values = critic.head(critic_history)[..., 0]
        return actor.head(history), critic.mixer(values, episode.timesteps.state)

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """V_tot at each step of one episode."""
        del key
        return self.evaluate(state.actor.value, state.critic.value, episode)[1][:-1]
