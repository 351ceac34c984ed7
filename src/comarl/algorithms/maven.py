"""MAVEN: multi-agent variational exploration (Mahajan et al., NeurIPS 2019).

Before an episode the team draws a mode z, and keeps it to the end. Every agent's utility depends on
it, so a team explores by committing to one of several ways of acting rather than by chance at every
step. A discriminator makes modes differ: it guesses z from what the team does, and the utilities
are trained to help it.

    z     one-hot, uniform; or ~ pi(. | s_0), which is learnt (`latent_policy`)             (Sec 4)
    Q_i(tau_i, . ; z) = W_i(z) h_i      W_i is linear in z and the agent's number, both one-hot
    Q_tot = g_{s, z}(Q_1 .. Q_N)        QMIX's mixer, for which z is a part of the state
    y_t   = r_t + gamma ((1 - lambda) V_{t+1} + lambda y_{t+1})     V by double Q-learning with z
    L_QL  = mean over steps (Q_tot(s_t, u_t; z) - y_t)^2
    p_i   = softmax_u Q_i(tau_i, u; z), among what is available         the Boltzmann policy
    L_MI  = -mean over steps log q(z | s_t, p_1 .. p_N)
    L     = L_QL + mi_weight L_MI       utilities, mixer and discriminator learn together
    L_pi  = -mean over episodes ((R - mean R) log pi(z | s_0) + latent_entropy H(pi(. | s_0)))

H(z) - L_MI bounds the mutual information of z and behaviour from below. L_pi is REINFORCE, in which
R is the return.

With `intrinsic` above 0 mutual information is a reward instead: r_t + intrinsic (log q(z | ..) +
log |z|), and L_MI teaches the discriminator alone.

The defaults are the authors' for StarCraft; `maven-pymarl2` has the settings of PyMARL2.
Differences from the authors' code:
1. An episode that was cut by time ends in its own value wherever it ends within a batch; theirs
   relies on the longest.
2. The intrinsic reward is high where z is recognised. Theirs adds the cross-entropy, which is high
   where it is not.
3. A learnt pi learns from the batch that everything else learns from. Its episodes are older than
   those of theirs, which keeps the last 512 for it, and nothing corrects for that: with the mean
   return as a baseline a mode that did better than average still gains, at the pace at which it was
   played.
4. There is no recurrent discriminator, and no bandit that ignores the state.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mixers import Mixer, UtilityMixer, mix
from comarl.nn.mlp import MLP, Linear
from comarl.nn.recurrent import RecurrentEncoder, agent_inputs, input_size, unroll_episode
from comarl.ops.exploration import Epsilon, epsilon_greedy, greedy, only_available, pick
from comarl.ops.learner import Adam, Learner, Optimiser, RmsProp, Tracked
from comarl.ops.returns import lambda_returns, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range


class Memory(eqx.Module):
    """What a team carries from step to step; of it replay keeps `latent`.

    `latent` is z, one-hot: the same for all agents and steps of an episode.
    """

    hidden: Float[Array, "*batch agents hidden"]
    last_action: Int[Array, "*batch agents"]
    latent: Float[Array, "*batch latents"]


class Utilities(eqx.Module):
    """Q_i(tau_i, . ; z): a recurrent encoder, and a head whose weights are made from z and i.

    The head has no bias.
    """

    encoder: RecurrentEncoder
    head: Linear
    spec: EnvSpec = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, hidden: int, latents: int, *, key: Key):
        encoder_key, head_key = jax.random.split(key)
        self.encoder = RecurrentEncoder(input_size(spec), hidden, key=encoder_key)
        self.head = Linear(latents + spec.num_agents, hidden * spec.action_size, key=head_key)
        self.spec = spec

    def __call__(
        self, hidden: Float[Array, "*time agents hidden"], latent: Float[Array, " latents"]
    ) -> Float[Array, "*time agents actions"]:
        """W_i(z) h_i of every agent."""
        weights = self.head(concat_latent(jnp.eye(self.spec.num_agents), latent))
        heads = weights.reshape(self.spec.num_agents, -1, self.spec.action_size)
        return jnp.einsum("...nh,nha->...na", hidden, heads)

    def step(
        self, memory: Memory, obs: Float[Array, "agents obs"]
    ) -> tuple[Float[Array, "agents hidden"], Float[Array, "agents actions"]]:
        """One step: what to remember, and the utilities."""
        hidden = self.encoder(memory.hidden, agent_inputs(self.spec, obs, memory.last_action))
        return hidden, self(hidden, memory.latent)

    def unroll(self, episode: Episode) -> Float[Array, "steps agents actions"]:
        """A whole episode, the step after its end included."""
        return self(unroll_episode(self.encoder, self.spec, episode), episode.memory.latent)


class Network(eqx.Module):
    """All that learns together."""

    utilities: Utilities
    mixer: UtilityMixer  # g
    discriminator: MLP  # q(z | ..)


class State(eqx.Module):
    """What changes while MAVEN learns."""

    network: Tracked[Network]
    latent_policy: Learner[MLP] | None  # pi(z | s_0); None: uniform


@dataclass(frozen=True)
class Maven:
    """Hyperparameters of MAVEN. The defaults are the authors' for StarCraft."""

    actions = frozenset({"discrete"})

    latents: int = 2
    """modes that z may be"""
    latent_policy: Literal["uniform", "learned"] = "uniform"
    """how z is drawn, also in evaluation: any as likely, or by a policy of the first state, learnt
    by REINFORCE"""
    latent_hidden: int = 128
    """units of the hidden layer of the policy that draws z"""
    latent_entropy: float = 0.001
    """weight of the entropy of that policy"""
    mi_weight: float = 1.0
    """weight of the discriminator's loss, and so of mutual information in what utilities learn"""
    intrinsic: float = 0.0
    """weight of mutual information as a reward; above 0 its gradient no longer reaches the
    utilities"""
    discriminator: tuple[int, ...] = (64, 64, 64)
    """units of the hidden layers of the discriminator (ReLU)"""
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
    target_period: int = 25
    """updates between copies of the network to the target"""
    optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of utilities, mixer and discriminator together"""
    latent_optimiser: Adam = Adam(1e-3)
    """optimiser of the policy that draws z"""
    replay: EpisodeRing = EpisodeRing(5_000, 32)
    """episodes kept and drawn; its `latent` is set to `latents`"""
    pace: EpisodePace = EpisodePace(8, 0.125)
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "latents", "latent_hidden", "discriminator")
        check_range(self, 1, None, "hidden", "mixer_width", "target_period")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "latent_entropy", "mi_weight", "intrinsic", "hypernet")
        # One number, in one place.
        object.__setattr__(self, "replay", replace(self.replay, latent=self.latents))

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        utilities_key, mixer_key, discriminator_key, policy_key = jax.random.split(key, 4)
        network = Network(
            utilities=self.make_utilities(spec, utilities_key),
            mixer=self.make_mixer(spec, mixer_key),
            discriminator=self.make_discriminator(spec, discriminator_key),
        )
        policy = None
        if self.latent_policy == "learned":
            policy = Learner.create(
                self.make_latent_policy(spec, policy_key), self.latent_optimiser
            )
        return State(Tracked.create(network, self.optimiser), policy)

    def make_utilities(self, spec: EnvSpec, key: Key) -> Utilities:
        """Q_i(tau_i, . ; z): one recurrent network for all agents."""
        return Utilities(spec, self.hidden, self.latents, key=key)

    def make_mixer(self, spec: EnvSpec, key: Key) -> UtilityMixer:
        """g: it takes the state with z behind it."""
        return Mixer(
            spec.num_agents,
            spec.state_size + self.latents,
            width=self.mixer_width,
            hypernet=self.hypernet,
            key=key,
        )

    def make_discriminator(self, spec: EnvSpec, key: Key) -> MLP:
        """The logits of q(z | s, p_1 .. p_N)."""
        inputs = spec.state_size + spec.num_agents * spec.action_size
        sizes = (inputs, *self.discriminator, self.latents)
        return MLP(sizes, activation=jax.nn.relu, key=key)

    def make_latent_policy(self, spec: EnvSpec, key: Key) -> MLP:
        """The logits of pi(z | s_0)."""
        sizes = (spec.state_size, self.latent_hidden, self.latents)
        return MLP(sizes, activation=jax.nn.relu, key=key)

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> Memory:
        """Draws z."""
        policy, num_agents = state.latent_policy, timestep.obs.shape[0]
        logits = jnp.zeros(self.latents) if policy is None else policy.value(timestep.state)
        return Memory(
            hidden=jnp.zeros((num_agents, self.hidden)),
            last_action=jnp.full(num_agents, -1, jnp.int32),
            latent=jax.nn.one_hot(jax.random.categorical(key, logits), self.latents),
        )

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
        return Memory(hidden, action, memory.latent), action

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
        """One step down L, and one of pi down L_pi if it learns; the target is copied when due."""
        del key
        target_network = state.network.target

        # Utilities, mixer and discriminator: L = L_QL + mi_weight L_MI.
        def loss(network: Network) -> tuple[Float[Array, ""], Metrics]:
            q, y, log_guess = jax.vmap(
                lambda episode: self.values(network, target_network, episode)
            )(batch)
            y = jax.lax.stop_gradient(y)
            td_loss = masked_mean(jnp.square(q - y), batch.mask)
            log_guess = masked_mean(log_guess, batch.mask)
            total = td_loss - self.mi_weight * log_guess
            information = log_guess + math.log(self.latents)
            metrics = {"td_loss": td_loss, "mutual_information": information}
            return total, metrics | td_metrics(q, y, batch.mask)

        network, (total, metrics) = state.network.descend(loss, has_aux=True)
        network = network.copy_every(self.target_period, clock.updates)
        metrics = metrics | {"loss": total, "epsilon": self.epsilon.at(clock)}

        # The policy that draws z: L_pi.
        policy = state.latent_policy
        if policy is not None:
            policy, policy_metrics = self.fit_latent_policy(policy, batch)
            metrics = metrics | policy_metrics
        return State(network, policy), metrics

    def values(
        self, network: Network, target: Network, episode: Episode
    ) -> tuple[Float[Array, " time"], Float[Array, " time"], Float[Array, " time"]]:
        """Of one episode: Q_tot of its actions, their targets y, and log q(z | ..) of its z."""
        utilities = network.utilities.unroll(episode)
        target_utilities = target.utilities.unroll(episode)
        available = episode.timesteps.available
        state = concat_latent(episode.timesteps.state, episode.memory.latent)

        # Q_tot of what was done, and V of what the live network likes best.
        q = mix(network.mixer, pick(utilities[:-1], episode.action), state[:-1])
        best_value = pick(target_utilities, greedy(utilities, available))
        next_value = mix(target.mixer, best_value[1:], state[1:])

        # The guess of z from the Boltzmann policies.
        policies = jax.nn.softmax(only_available(utilities, available))[:-1]
        if self.intrinsic > 0:
            policies = jax.lax.stop_gradient(policies)
        log_guess = self.log_guess(network.discriminator, policies, episode)

        # y, of the reward and what mutual information adds to it.
        reward = episode.reward + self.intrinsic * (log_guess + math.log(self.latents))
        discount = self.gamma * jnp.where(episode.terminated, 0.0, 1.0)
        y = lambda_returns(reward, discount, next_value, episode.mask, self.td_lambda)
        return q, y, log_guess

    def log_guess(
        self,
        discriminator: MLP,
        policies: Float[Array, "time agents actions"],
        episode: Episode,
    ) -> Float[Array, " time"]:
        """log q(z | s, p_1 .. p_N) of one episode's z, at each step."""
        behaviour = policies.reshape(policies.shape[0], -1)
        inputs = jnp.concatenate([episode.timesteps.state[:-1], behaviour], axis=-1)
        log_q = jax.nn.log_softmax(discriminator(inputs))
        return (log_q * episode.memory.latent).sum(axis=-1)

    def fit_latent_policy(
        self, policy: Learner[MLP], batch: Episode
    ) -> tuple[Learner[MLP], Metrics]:
        """One step of pi down L_pi: REINFORCE with the batch's mean return as a baseline."""
        returns = batch.returns()

        def loss(policy: MLP) -> tuple[Float[Array, ""], Float[Array, ""]]:
            log_pi = jax.nn.log_softmax(policy(batch.timesteps.state[:, 0]))
            entropy = -(jnp.exp(log_pi) * log_pi).sum(axis=-1)
            gain = (returns - returns.mean()) * (log_pi * batch.memory.latent).sum(axis=-1)
            return -(gain + self.latent_entropy * entropy).mean(), entropy.mean()

        policy, (total, entropy) = policy.descend(loss, has_aux=True)
        return policy, {"latent_policy_loss": total, "latent_entropy": entropy}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode, in the mode that it drew."""
        del key
        return self.values(state.network.value, state.network.target, episode)[0]


def concat_latent(
    x: Float[Array, "*batch features"], latent: Float[Array, " latents"]
) -> Float[Array, "*batch features_and_latents"]:
    """Each vector with z behind it."""
    latents = jnp.broadcast_to(latent, (*x.shape[:-1], latent.shape[-1]))
    return jnp.concatenate([x, latents], axis=-1)
