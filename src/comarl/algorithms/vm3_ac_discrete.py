"""VM3-AC for discrete actions, on FOP (Kim, Jung, Cho, Sung, AAMAS 2023; FOP: Zhang et al., ICML
2021).

FOP whose policies receive a random vector z, new at every step and the same for all agents, and
whose entropy gives way to a lower bound of the mutual information of agents' actions: entropy, and
how well actions predict each other. The paper has one sentence on it: FOP, "by introducing the
latent variable and replacing the entropy term with the MI". The rest is the discrete form of the
equations of `comarl.algorithms.vm3_ac`, with exact sums over actions where those draw.

    pi_i    = softmax of W (h_i, z) over available actions,  z ~ N(0, I)
    q_ij(u_j | u_i, o_i, o_j)               predicts j's action from i's: `nn/action_predictor.py`
    m_i(u)  = 1/N sum_{j != i} sum_v pi_j(v) log q_ij(v | u, o_i, o_j)      (b), of every action
    L_act   = mean over steps and agents of
              sum_u pi_i(u) (alpha log pi_i(u) - min_k Q_i^k(o_i, u) - alpha m_i(u))
    M_i     = 1/N sum_{j != i} log q_ji(u_i | u_j, o_j, o_i)                (a), of a draw
                             + log q_ij(u_j | u_i, o_i, o_j)                (b)
    V_t     = min_k Q_tot^k'(s_t, u_t) + alpha mean_i (M_i - log pi_i(u_i,t))
    L_q     = mean over steps and pairs of -log q_ij(u_j | u_i, o_i, o_j), u of the replay

and y_t, Q_tot, L_crit and alpha of FOP. h_i is the memory of FOP's actor; u_t in V_t is drawn from
the policies as they are. In L_act others' policies are numbers: m_i moves pi_i alone. z is not
kept: an update draws a new one for each step of a batch. At execution z is 0, and each agent acts
alone.

With `information` 0 and `latent_size` 0 every update is FOP's, bit for bit. The differences from
the authors' FOP are those of `comarl.algorithms.fop`, with the same switches. Of what the paper
leaves open:
1. One network is q of all pairs, as FOP's agents share theirs; it gets i and j.
2. z enters after the memory, so that a new z changes no memory, and 0 at execution shifts none:
   `latent_at`.
3. Soft values V_i are FOP's, of Q_i; those of Q_i + alpha m_i, which policies maximise, are
   `information_in_value`.
"""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from comarl.algorithms.fop import (
    Bonus,
    Fop,
    LogPolicies,
    Scalar,
    SoftCritic,
    actor_loss,
    least_utilities,
    log_policies,
    now_and_later,
)
from comarl.nn.action_predictor import ActionPredictor
from comarl.nn.mlp import Linear
from comarl.nn.recurrent import Memory, RecurrentEncoder, agent_inputs, episode_inputs, input_size
from comarl.ops.distributions import draw_steps, noise_of_steps
from comarl.ops.exploration import greedy, pick
from comarl.ops.learner import Learner, Optimiser, RmsProp, Tracked
from comarl.ops.returns import masked_mean
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range

PROBED = 4  # episodes of a batch in which it is measured what z does

Latents = Float[Array, "steps batch latent"]


def concat_latent(
    x: Float[Array, "*steps agents features"], z: Float[Array, "*steps latent"]
) -> Float[Array, "*steps agents more"]:
    """What each agent has of its own, and z, which all have. Without any z the program is FOP's,
    rounding included."""
    if not z.shape[-1]:
        return x
    of_agents = jnp.broadcast_to(z[..., None, :], (*x.shape[:-1], z.shape[-1]))
    return jnp.concatenate([x, of_agents], axis=-1)


class LatentNet(eqx.Module):
    """pi_i(. | tau_i, z) as logits: FOP's actor, which gets z before its memory or after it."""

    encoder: RecurrentEncoder
    head: Linear
    spec: EnvSpec = eqx.field(static=True)
    early: int = eqx.field(static=True)  # how many entries of z come before the memory

    def __init__(self, spec: EnvSpec, hidden: int, early: int, late: int, *, key: Key):
        encoder_key, head_key = jax.random.split(key)
        self.encoder = RecurrentEncoder(input_size(spec) + early, hidden, key=encoder_key)
        self.head = Linear(hidden + late, spec.action_size, key=head_key)
        self.spec, self.early = spec, early

    def step(
        self, memory: Memory, obs: Float[Array, "agents obs"], z: Float[Array, " latent"]
    ) -> tuple[Float[Array, "agents hidden"], Float[Array, "agents actions"]]:
        """One step: what to remember, and the logits."""
        x = agent_inputs(self.spec, obs, memory.last_action)
        hidden = self.encoder(memory.hidden, concat_latent(x, z[: self.early]))
        return hidden, self.head(concat_latent(hidden, z[self.early :]))

    def unroll(
        self, episode: Episode, z: Float[Array, "steps latent"]
    ) -> Float[Array, "steps agents actions"]:
        """A whole episode, the step after its end included."""
        x = concat_latent(episode_inputs(self.spec, episode), z[:, : self.early])
        hidden = self.encoder.unroll(x, episode.starts)
        return self.head(concat_latent(hidden, z[:, self.early :]))


class State(eqx.Module):
    """What changes while the discrete VM3-AC learns."""

    actor: Learner[LatentNet]  # pi_i, shared by agents
    predictor: Learner[ActionPredictor] | None  # q_ij, where information counts
    critics: Tracked[SoftCritic]  # two; all leaves, the optimiser's too, lead with `critics`
    temperature: Scalar  # alpha at the last update, on which Q_tot depends


@dataclass(frozen=True)
class Vm3AcDiscrete:
    """Hyperparameters of the discrete VM3-AC: those of FOP, and what FOP has not."""

    base: Fop = Fop()
    """FOP, and all of its settings; alpha weighs information, too, which `entropy_in_return` counts
    with entropy"""
    information: float = 1.0
    """weight of actions' predicting each other, in that of their entropy, alpha; 0 leaves entropy
    alone"""
    latent_size: int = 8
    """length of z; 0 is FOP's policy"""
    latent_at: Literal["head", "input"] = "head"
    """where z enters a policy: after its memory, or before"""
    execution_latent: Literal["zero", "shared"] = "zero"
    """z of greedy play: 0, or N(0, I) from a seed that all agents share, which is the key of the
    step"""
    mi_norm: Literal["N", "N-1"] = "N"
    """divisor of m_i and M_i: the paper's, or the number of partners, which its bound (Eq. 8) leads
    to"""
    information_in_value: bool = False
    """soft values of agents are those of Q_i + alpha m_i, which policies maximise, rather than of
    Q_i"""
    predictor_hidden: int = 64
    """units of both hidden layers of q"""
    predictor_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of q"""

    # What the loop asks of any algorithm is as the base has it; z is not among what replay keeps.
    actions = frozenset({"discrete"})

    @property
    def replay(self) -> EpisodeRing:
        """As the base has it."""
        return self.base.replay

    @property
    def pace(self) -> EpisodePace:
        """As the base has it."""
        return self.base.pace

    def __post_init__(self):
        check_fields(self)
        check_range(self, 0, None, "information", "latent_size")
        check_range(self, 1, None, "predictor_hidden")

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        keys = jax.random.split(key, 4)
        predictor = None
        if self.information > 0 and spec.num_agents > 1:
            made = self.make_predictor(spec, keys[3])
            predictor = Learner.create(made, self.predictor_optimiser)
        return State(
            actor=Learner.create(self.make_actor(spec, keys[0]), self.base.actor_optimiser),
            predictor=predictor,
            critics=self.base.make_critics(spec, keys[1:3]),
            temperature=jnp.float32(self.base.temperature[0]),
        )

    def make_actor(self, spec: EnvSpec, key: Key) -> LatentNet:
        """pi_i(tau_i, z) as logits."""
        early = self.latent_size if self.latent_at == "input" else 0
        return LatentNet(spec, self.base.hidden, early, self.latent_size - early, key=key)

    def make_predictor(self, spec: EnvSpec, key: Key) -> ActionPredictor:
        """q_ij of all pairs."""
        return ActionPredictor(spec, self.predictor_hidden, key=key)

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> Memory:
        """Nothing was observed yet."""
        return Memory.empty(timestep.obs.shape[0], self.base.hidden)

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
        """Drawn with a share of random actions while exploring, else greedy. All agents have the
        same key, and so z."""
        del team
        draw_key, z_key = jax.random.split(key)
        z = jnp.zeros(self.latent_size)
        if explore or self.execution_latent == "shared":
            z = jax.random.normal(z_key, z.shape)
        hidden, logits = state.actor.value.step(memory, timestep.obs, z)
        if explore:
            action = self.base.explore(logits, timestep.available, clock, draw_key)
        else:
            action = greedy(logits, timestep.available)
        return Memory(hidden, action), action

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The actor, then the critics by the actor as it is now, and q; targets are copied when
        due."""
        draw_key, z_key = jax.random.split(key)
        alpha, epsilon = self.base.schedules(clock)
        z = self.latents(batch, z_key)

        # Actor: L_act, by the critics and q as they were.
        actor, metrics = self.fit_actor(state, batch, z, alpha, epsilon)

        # The policies as they are now, and a draw from them at every step.
        log_pi = self.log_policies(actor.value, batch, z, epsilon)
        drawn = draw_steps(log_pi, draw_key)

        # Critics: V_t, y_t and L_crit, by q as it was.
        critics, critic_metrics = self.fit_critics(state, batch, log_pi, drawn, alpha)

        # Predictor: L_q.
        predictor, predictor_metrics = self.fit_predictor(state.predictor, batch, drawn[:, :-1])

        # Targets.
        critics = critics.copy_every(self.base.target_period, clock.updates)
        metrics |= critic_metrics | predictor_metrics
        metrics |= self.latent_metrics(actor.value, batch, z, log_pi, epsilon)
        metrics |= {"temperature": alpha, "epsilon": self.base.epsilon.at(clock)}
        return State(actor, predictor, critics, alpha), metrics

    def latents(self, batch: Episode, key: Key) -> Latents:
        """A new z for each step of a batch, the one after an episode's end included."""
        size, steps = batch.timesteps.obs.shape[:2]
        return noise_of_steps(key, (steps, size, self.latent_size))

    def log_policies(
        self, actor: LatentNet, batch: Episode, z: Latents, epsilon: Scalar | None
    ) -> LogPolicies:
        """log pi_i(u | tau_i, z) at every step; given epsilon, with that share of random actions
        mixed in."""
        logits = jax.vmap(actor.unroll, in_axes=(0, 1))(batch, z)
        return log_policies(logits, batch.timesteps.available, epsilon)

    def fit_actor(
        self, state: State, batch: Episode, z: Latents, alpha: Scalar, epsilon: Scalar | None
    ) -> tuple[Learner[LatentNet], Metrics]:
        """Every agent maximises its least utility, its entropy, and what its action tells of
        others' (L_act)."""
        now, _ = now_and_later(batch.timesteps)
        q = least_utilities(state.critics.value, now.obs)

        def loss(actor: LatentNet) -> Scalar:
            log_pi = self.log_policies(actor, batch, z, epsilon)[:, :-1]
            bonus = self.action_bonus(state.predictor, now, log_pi, alpha)
            return actor_loss(log_pi, q + bonus, alpha, batch.mask)

        actor, policy_loss = state.actor.descend(loss)
        return actor, {"actor_loss": policy_loss}

    def fit_critics(
        self,
        state: State,
        batch: Episode,
        log_pi: LogPolicies,
        drawn: Int[Array, "batch steps agents"],
        alpha: Scalar,
    ) -> tuple[Tracked[SoftCritic], Metrics]:
        """As FOP, to values in which the information of a draw counts beside its entropy."""
        now, later = now_and_later(batch.timesteps)
        next_action = drawn[:, 1:]
        entropy = -pick(log_pi, drawn)[:, 1:].mean(axis=-1)
        metrics = {"entropy": masked_mean(entropy, batch.mask)}
        next_bonus, action_bonuses = entropy, (0.0, 0.0)
        if state.predictor is not None:
            information = self.information_of(state.predictor.value, later, next_action)
            next_bonus = entropy + self.information * information
            metrics["mutual_information"] = masked_mean(information, batch.mask)
        if self.information_in_value:
            bonus_now = self.action_bonus(state.predictor, now, log_pi[:, :-1], alpha)
            bonus_later = self.action_bonus(state.predictor, later, log_pi[:, 1:], alpha)
            action_bonuses = bonus_now, bonus_later
        critics, critic_metrics = self.base.fit_critics(
            state.critics, batch, next_action, alpha * next_bonus, alpha, action_bonuses
        )
        return critics, metrics | critic_metrics

    def action_bonus(
        self,
        predictor: Learner[ActionPredictor] | None,
        steps: Timestep,
        log_pi: Float[Array, "*batch agents actions"],
        alpha: Scalar,
    ) -> Bonus:
        """What each action is worth for what it tells of others', alpha m_i(u); others'
        policies are data in it."""
        if predictor is None:
            return 0.0
        agents, actions = log_pi.shape[-2:]
        pairs = (*log_pi.shape[:-2], agents, agents - 1)  # i, and its partners j
        log_q = predictor.value.table(steps.obs, steps.available)
        _, partner = predictor.value.pairs
        pi = jnp.exp(jax.lax.stop_gradient(log_pi))[..., partner, :]
        summed = jnp.einsum(
            "...ijuv,...ijv->...iu",
            log_q.reshape(*pairs, actions, actions),
            pi.reshape(*pairs, actions),
        )
        return alpha * self.information * summed / self.divisor(agents)

    def information_of(
        self, predictor: ActionPredictor, steps: Timestep, action: Int[Array, "*batch agents"]
    ) -> Float[Array, "*batch"]:
        """M_i of a joint action, the mean over agents: what is (b) for i is (a) for j, so each pair
        counts twice."""
        agents = action.shape[-1]
        pairs = predictor.log_q(action, action, steps.obs, steps.available)
        return 2.0 * pairs.sum(axis=-1) / (agents * self.divisor(agents))

    def divisor(self, agents: int) -> int:
        """Of m_i and M_i."""
        return agents if self.mi_norm == "N" else agents - 1

    def fit_predictor(
        self,
        predictor: Learner[ActionPredictor] | None,
        batch: Episode,
        drawn: Int[Array, "batch time agents"],
    ) -> tuple[Learner[ActionPredictor] | None, Metrics]:
        """q learns what was played (L_q). How it does where i's action is another one, drawn anew,
        is a metric."""
        if predictor is None:
            return None, {}
        now, _ = now_and_later(batch.timesteps)

        def loss(q: ActionPredictor, context_action: Int[Array, "batch time agents"]) -> Scalar:
            log_q = q.log_q(batch.action, context_action, now.obs, now.available)
            return -masked_mean(log_q.mean(axis=-1), batch.mask)

        unpaired = loss(predictor.value, drawn)
        predictor, paired = predictor.descend(lambda q: loss(q, batch.action))
        return predictor, {"predictor_loss": paired, "predictor_loss_unpaired": unpaired}

    def latent_metrics(
        self,
        actor: LatentNet,
        batch: Episode,
        z: Latents,
        log_pi: LogPolicies,
        epsilon: Scalar | None,
    ) -> Metrics:
        """How far policies move where another z stands for z: the total variation, in a few
        episodes."""
        if not self.latent_size:
            return {}
        few = batch.rows(PROBED)
        other_z = jnp.roll(z, 1, axis=1)[:, :PROBED]
        other_log_pi = self.log_policies(actor, few, other_z, epsilon)
        moved = jnp.abs(jnp.exp(other_log_pi) - jnp.exp(log_pi[:PROBED]))[:, :-1]
        distance = 0.5 * moved.sum(axis=-1).mean(axis=-1)
        return {"latent_sensitivity": masked_mean(distance, few.mask)}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode, at the z of execution."""
        del key
        now = jax.tree.map(lambda x: x[:-1], episode.timesteps)
        bonus = 0.0
        if self.information_in_value:
            z = jnp.zeros((episode.timesteps.obs.shape[0], self.latent_size))
            logits = state.actor.value.unroll(episode, z)
            log_pi = log_policies(logits[:-1], now.available, None)
            bonus = self.action_bonus(state.predictor, now, log_pi, state.temperature)
        return self.base.least_team(
            state.critics.value, now, episode.action, state.temperature, bonus
        )
