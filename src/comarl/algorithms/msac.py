"""mSAC: decomposed soft actor-critic (Pu et al., 2021).

Soft actor-critic for teams. The critic is factored by a mixer that is linear in the utilities, so
the expectation of the team's value over independent policies is the mix of the agents' own
expectations: nothing has to be sampled.

    pi_i     = softmax of clipped logits, among what is available
    Q^j_tot  = sum_i |w^j_i(s)| Q^j_i(tau_i, u_i) + b^j(s)                  j = 1, 2: twin critics
    V^j_t    = sum_i |w^j_i(s_t)| E_{u ~ pi_i} [Q^j_i(tau_i, u) - alpha log pi_i(u)] + b^j(s_t)
    y_t      = r~_t + gamma ((1 - lambda) min_j V^j'_{t+1} + lambda y_{t+1})        lambda is 0
    r~       = 10 (r - mean r) / std r, over the steps of the batch
    L_critic = sum_j mean over steps (Q^j_tot(s_t, u_t) - y_t)^2
    L_actor  = -mean over steps V^1_t
    L_alpha  = log alpha * mean over steps and agents (H(pi_i) - H*_i)

V is the soft value, ' is a slow copy; the critic in L_actor is the live one, which stays as it is;
alpha falls while H is above H*. Teams act by drawing from their policies, and greedily when
evaluated. The defaults are the authors'; `msac-pymarl2` has the settings of PyMARL2, `msac-single`
has one critic.

Differences from the authors' code:
1. A step's value is taken over the actions that are available at that step; theirs takes those of
   the step before.
2. H* is minus the number of actions, as theirs: no policy has so little entropy, so alpha falls at
   the optimiser's pace whatever the policies do. `entropy_share` sets a target that can be met.
3. The very first update has the alpha of the second; theirs has 0.2.
4. Rewards are standardised over the steps that took place.
5. An episode that was truncated ends in its own value wherever it ends within a batch.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mlp import Linear
from comarl.nn.recurrent import Memory, RecurrentNet
from comarl.ops.distributions import uniform_entropy
from comarl.ops.exploration import greedy, only_available, pick
from comarl.ops.learner import Adam, Learner, Optimiser, RmsProp, Tracked
from comarl.ops.returns import episode_targets, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_interval, check_range


class LinearMixer(eqx.Module):
    """Q_tot = sum_i |w_i(s)| Q_i + b(s), w and b linear in the state."""

    weights: Linear
    bias: Linear

    def __init__(self, num_agents: int, state_size: int, *, key: Key):
        weights_key, bias_key = jax.random.split(key)
        self.weights = Linear(state_size, num_agents, key=weights_key)
        self.bias = Linear(state_size, 1, key=bias_key)

    def __call__(
        self, utilities: Float[Array, "*batch agents"], state: Float[Array, "*batch state"]
    ) -> Float[Array, "*batch"]:
        return (jnp.abs(self.weights(state)) * utilities).sum(-1) + self.bias(state)[..., 0]


class Critic(eqx.Module):
    """Q_tot(s, u) by recurrent utilities and a mixer. In a state its leaves lead with `critics`."""

    utilities: RecurrentNet
    mixer: LinearMixer

    def __init__(self, spec: EnvSpec, hidden: int, *, key: Key):
        utilities_key, mixer_key = jax.random.split(key)
        self.utilities = RecurrentNet(spec, hidden, key=utilities_key)
        self.mixer = LinearMixer(spec.num_agents, spec.state_size, key=mixer_key)

    def values(self, episode: Episode) -> Float[Array, " time"]:
        """Q_tot of the actions of one episode."""
        utilities = self.utilities.unroll(episode)[:-1]
        return self.mixer(pick(utilities, episode.action), episode.timesteps.state[:-1])

    def soft_values(
        self,
        episode: Episode,
        log_pi: Float[Array, "steps agents actions"],
        alpha: Float[Array, ""],
    ) -> Float[Array, " steps"]:
        """V of every step of one episode, the one after its end included."""
        soft = jnp.exp(log_pi) * (self.utilities.unroll(episode) - alpha * log_pi)
        return self.mixer(soft.sum(-1), episode.timesteps.state)


class State(eqx.Module):
    """What changes while mSAC learns."""

    actor: Learner[RecurrentNet]  # pi_i, shared by agents
    critics: Tracked[Critic]  # leaves lead with `critics`
    log_alpha: Learner[Array]


@dataclass(frozen=True)
class Msac:
    """Hyperparameters of mSAC. The defaults are the authors'."""

    actions = frozenset({"discrete"})

    critics: int = 2
    """critics, whose least value is the target; the actor maximises the first"""
    hidden: int = 64
    """units of the recurrent layers of actor and critics"""
    logit_range: tuple[float, float] = (-5.0, 2.0)
    """bounds to which the actor's logits are clipped; beyond them they have no gradient"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.0
    """lambda of the TD(lambda) target; 0 looks one step ahead"""
    reward_scale: float = 10.0
    """standard deviation that the rewards of each batch are given, with mean 0; 0 leaves them as
    they are"""
    temperature: float = 1.0
    """alpha at first: the weight of entropy"""
    entropy_share: float | None = None
    """H* as a share of the entropy of a uniform choice among what is available; none: minus the
    number of actions"""
    tau: float = 0.005
    """step of the target critics"""
    actor_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of the actor"""
    critic_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of all critics together"""
    temperature_optimiser: Adam = Adam(3e-4, max_grad_norm=0.0)
    """optimiser of log alpha; with learning rate 0 the temperature is fixed"""
    replay: EpisodeRing = EpisodeRing(5_000, 32)
    """episodes kept and drawn"""
    pace: EpisodePace = EpisodePace()
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "critics", "hidden")
        check_range(self, 0, 1, "gamma", "td_lambda", "tau")
        check_range(self, 0, None, "reward_scale")
        check_interval(self, "logit_range")
        if self.entropy_share is not None:
            check_range(self, 0, 1, "entropy_share")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature={self.temperature} of Msac must be above 0: "
                "a small one, such as 1e-6, is almost none"
            )

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        actor_key, critic_key = jax.random.split(key)
        make_critic = lambda key: self.make_critic(spec, key)
        critics = jax.vmap(make_critic)(jax.random.split(critic_key, self.critics))
        log_alpha = jnp.log(jnp.float32(self.temperature))
        return State(
            actor=Learner.create(self.make_actor(spec, actor_key), self.actor_optimiser),
            critics=Tracked.create(critics, self.critic_optimiser),
            log_alpha=Learner.create(log_alpha, self.temperature_optimiser),
        )

    def make_actor(self, spec: EnvSpec, key: Key) -> RecurrentNet:
        """pi_i(tau_i) as logits, not yet clipped."""
        return RecurrentNet(spec, self.hidden, key=key)

    def make_critic(self, spec: EnvSpec, key: Key) -> Critic:
        """One of the critics."""
        return Critic(spec, self.hidden, key=key)

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
        """Drawn from the policies while exploring, else their most likely actions."""
        del team, clock
        hidden, logits = state.actor.value.step(memory, timestep.obs)
        logits = only_available(jnp.clip(logits, *self.logit_range), timestep.available)
        action = self.explore(logits, key) if explore else greedy(logits, None)
        return Memory(hidden, action), action

    def explore(self, logits: Float[Array, "agents actions"], key: Key) -> Int[Array, " agents"]:
        """Drawn from the policies, given logits of what is available."""
        return jax.random.categorical(key, logits).astype(jnp.int32)

    def log_policy(
        self, actor: RecurrentNet, episode: Episode
    ) -> Float[Array, "steps agents actions"]:
        """log pi of every step of one episode, the one after its end included."""
        logits = jnp.clip(actor.unroll(episode), *self.logit_range)
        return jax.nn.log_softmax(only_available(logits, episode.timesteps.available))

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The critics, then the actor by the first of them as it is now, then the temperature;
        targets follow."""
        del clock, key
        log_pi = jax.vmap(lambda episode: self.log_policy(state.actor.value, episode))(batch)
        alpha = jnp.exp(state.log_alpha.value)

        # Critics: L_critic.
        critics, metrics = self.fit_critics(state.critics, batch, log_pi, alpha)

        # Actor: L_actor.
        actor, actor_metrics = self.fit_actor(state.actor, critics.value, batch, alpha)

        # Temperature: L_alpha.
        log_alpha, entropy_metrics = self.fit_temperature(state.log_alpha, batch, log_pi)

        # Targets.
        critics = critics.polyak(self.tau)
        metrics |= actor_metrics | entropy_metrics | {"temperature": alpha}
        return State(actor, critics, log_alpha), metrics

    def fit_critics(
        self,
        critics: Tracked[Critic],
        batch: Episode,
        log_pi: Float[Array, "batch steps agents actions"],
        alpha: Float[Array, ""],
    ) -> tuple[Tracked[Critic], Metrics]:
        """TD(lambda) to the least soft value of the target critics, for all critics the same."""

        def soft_values(critic: Critic) -> Float[Array, "batch steps"]:
            of_episode = lambda episode, log_pi: critic.soft_values(episode, log_pi, alpha)
            return jax.vmap(of_episode)(batch, log_pi)

        next_value = jax.vmap(soft_values)(critics.target).min(axis=0)[:, 1:]
        rewarded = replace(batch, reward=self.standardised(batch.reward, batch.mask))
        target = episode_targets(rewarded, next_value, self.gamma, self.td_lambda)

        def loss(critics: Critic) -> tuple[Float[Array, ""], Float[Array, "critics batch time"]]:
            q = jax.vmap(lambda critic: jax.vmap(critic.values)(batch))(critics)
            error = lambda q: masked_mean(jnp.square(q - target), batch.mask)
            return jax.vmap(error)(q).sum(), q

        critics, (td_loss, q) = critics.descend(loss, has_aux=True)
        metrics = {"critic_loss": td_loss, "td_loss": td_loss}
        return critics, metrics | td_metrics(q[0], target, batch.mask)

    def standardised(
        self, reward: Float[Array, "batch time"], mask: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time"]:
        """r~; equal rewards all become 0."""
        if self.reward_scale == 0:
            return reward
        centred = reward - masked_mean(reward, mask)
        deviation = jnp.sqrt(masked_mean(jnp.square(centred), mask))
        return self.reward_scale * centred / (deviation + 1e-5)

    def fit_actor(
        self,
        actor: Learner[RecurrentNet],
        critics: Critic,
        batch: Episode,
        alpha: Float[Array, ""],
    ) -> tuple[Learner[RecurrentNet], Metrics]:
        """All agents at once maximise the soft value of the first critic."""
        critic = jax.tree.map(lambda leaf: leaf[0], critics)

        def loss(actor: RecurrentNet) -> Float[Array, ""]:
            def soft_values(episode: Episode) -> Float[Array, " steps"]:
                return critic.soft_values(episode, self.log_policy(actor, episode), alpha)

            return -masked_mean(jax.vmap(soft_values)(batch)[:, :-1], batch.mask)

        actor, actor_loss = actor.descend(loss)
        return actor, {"actor_loss": actor_loss}

    def fit_temperature(
        self,
        log_alpha: Learner[Array],
        batch: Episode,
        log_pi: Float[Array, "batch steps agents actions"],
    ) -> tuple[Learner[Array], Metrics]:
        """Towards the alpha at which the policies' entropy is its target."""
        available = batch.timesteps.available
        assert available is not None  # discrete tasks say what is legal
        entropy = -(jnp.exp(log_pi) * log_pi).sum(axis=-1)[:, :-1]
        if self.entropy_share is None:
            wanted = jnp.full_like(entropy, -available.shape[-1])
        else:
            wanted = self.entropy_share * uniform_entropy(available)[:, :-1]
        excess = masked_mean((entropy - wanted).mean(axis=-1), batch.mask)
        log_alpha, temperature_loss = log_alpha.descend(lambda value: value * excess)
        mean_entropy = masked_mean(entropy.mean(axis=-1), batch.mask)
        return log_alpha, {"temperature_loss": temperature_loss, "entropy": mean_entropy}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """The least Q_tot of what the team did at each step of one episode."""
        del key
        values = jax.vmap(lambda critic: critic.values(episode))(state.critics.value)
        return values.min(axis=0)
