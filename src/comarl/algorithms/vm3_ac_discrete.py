"""VM3-AC for discrete actions, on FOP (Kim, Jung, Cho, Sung, AAMAS 2023; FOP: Zhang et al., ICML
2021).

FOP whose policies hear a random vector z, new at every step and the same for all agents, and whose
entropy gives way to a lower bound of the mutual information of agents' actions: entropy, and how
well actions predict each other. The paper has one sentence on it: FOP, "by introducing the latent
variable and replacing the entropy term with the MI". The rest is the discrete form of the equations
of `comarl.algorithms.vm3_ac`, with exact sums over actions where those draw.

    pi_i    = softmax of W (h_i, z) over available actions,  h_i the memory of FOP's actor,  z ~ N(0, I)
    q_ij(u_j | u_i, o_i, o_j)                 predicts j's action from i's             `comarl.nn.action_predictor`
    m_i(u)  = 1/N sum_{j != i} sum_v pi_j(v) log q_ij(v | u, o_i, o_j)                 (b), of every action
    L_act   = mean over steps and agents of sum_u pi_i(u) (alpha log pi_i(u) - min_k Q_i^k(o_i, u) - alpha m_i(u))
    M_i     = 1/N sum_{j != i} log q_ji(u_i | u_j, o_j, o_i) + log q_ij(u_j | u_i, o_i, o_j)    (a) and (b), of a draw
    V_t     = min_k Q_tot^k'(s_t, u_t) + alpha mean_i (M_i - log pi_i(u_i,t)),  u_t drawn from the policies as they are
    L_q     = mean over steps and pairs of -log q_ij(u_j | u_i, o_i, o_j), u the actions in the replay

and y_t, Q_tot, L_crit and alpha of FOP. In L_act others' policies are numbers: m_i moves pi_i
alone. z is not kept: an update draws a new one for each step of a batch. At execution z is 0, and
each agent acts alone.

With `information` 0 and `latent_size` 0 every update is FOP's, bit for bit. The differences from the authors' FOP are
those of `comarl.algorithms.fop`, with the same switches. Of what the paper leaves open:
1. One network is q of all pairs, as FOP's agents share theirs; it is told i and j.
2. z enters after the memory, so that a new z changes no memory, and 0 at execution shifts none: `latent_at`.
3. Soft values V_i are FOP's, of Q_i; those of Q_i + alpha m_i, which policies climb, are `information_in_value`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from comarl.algorithms.fop import (
    CriticLearners,
    Critics,
    Fop,
    Gain,
    LogPolicies,
    Scalar,
    actor_loss,
    log_policies,
    lower_utilities,
    values,
)
from comarl.nn.action_predictor import ActionPredictor
from comarl.nn.mlp import Linear
from comarl.nn.recurrent import Memory, RecurrentEncoder, agent_inputs, episode_inputs, input_size
from comarl.ops.distributions import draw_steps, noise_of_steps
from comarl.ops.exploration import greedy, pick
from comarl.ops.learner import Learner, Optimiser, RmsProp, copy_every
from comarl.ops.returns import masked_mean
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import check_fields, check_range

PROBED = 4  # episodes of a batch in which it is looked at what z does


def heard(
    x: Float[Array, "*steps agents features"], z: Float[Array, "*steps latent"]
) -> Float[Array, "..."]:
    """What each agent has of its own, and what all hear. Without anything the program is FOP's,
    rounding included."""
    if not z.shape[-1]:
        return x
    return jnp.concatenate(
        [x, jnp.broadcast_to(z[..., None, :], (*x.shape[:-1], z.shape[-1]))], axis=-1
    )


class LatentNet(eqx.Module):
    """pi_i(. | tau_i, z) as logits: FOP's actor, which hears z before its memory or after it."""

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
        hidden = self.encoder(memory.hidden, heard(x, z[: self.early]))
        return hidden, self.head(heard(hidden, z[self.early :]))

    def unroll(
        self, episode: Episode, z: Float[Array, "steps latent"]
    ) -> Float[Array, "steps agents actions"]:
        """A whole episode, the step after its end included."""
        x = heard(episode_inputs(self.spec, episode), z[:, : self.early])
        return self.head(heard(self.encoder.unroll(x, episode.starts), z[:, self.early :]))


class State(eqx.Module):
    """What changes while the discrete VM3-AC learns."""

    actor: Learner[LatentNet]  # pi_i, shared by agents
    predictor: Learner[ActionPredictor] | None  # q_ij, where information counts
    critics: CriticLearners
    targets: Critics
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
    """soft values of agents are those of Q_i + alpha m_i, which policies climb, rather than of
    Q_i"""
    predictor_hidden: int = 64
    """units of both hidden layers of q"""
    predictor_optimiser: Optimiser = RmsProp(5e-4)
    """optimiser of q"""

    # What the loop asks of any algorithm is as the base has it; z is not among what replay keeps.
    actions: ClassVar = frozenset({"discrete"})

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
        actor_key, *critic_keys, predictor_key = jax.random.split(key, 4)
        early = self.latent_size if self.latent_at == "input" else 0
        actor = LatentNet(spec, self.base.hidden, early, self.latent_size - early, key=actor_key)
        predictor = None
        if self.information > 0 and spec.num_agents > 1:
            made = ActionPredictor(spec, self.predictor_hidden, key=predictor_key)
            predictor = Learner.create(made, self.predictor_optimiser)
        critics = self.base.make_critics(spec, critic_keys)
        learner = Learner.create(actor, self.base.actor_optimiser)
        return State(
            learner, predictor, critics, values(critics), jnp.float32(self.base.temperature[0])
        )

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> Memory:
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
        action = (
            self.base.explore(logits, timestep.available, clock, draw_key)
            if explore
            else greedy(logits, timestep.available)
        )
        return Memory(hidden, action), action

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The actor, then the critics by the actor as it is now, and q; targets are copied when
        due."""
        alpha, epsilon = self.base.schedules(clock)
        (draw_key, z_key), steps = jax.random.split(key), batch.timesteps
        now, later = (
            jax.tree.map(lambda x: x[:, :-1], steps),
            jax.tree.map(lambda x: x[:, 1:], steps),
        )
        z = noise_of_steps(z_key, (steps.obs.shape[1], steps.obs.shape[0], self.latent_size))
        q = lower_utilities(state.critics, now.obs)

        def policies(
            actor: LatentNet, z: Float[Array, "steps batch latent"], batch: Episode
        ) -> LogPolicies:
            logits = jax.vmap(actor.unroll, in_axes=(0, 1))(batch, z)
            return log_policies(logits, batch.timesteps.available, epsilon)

        def loss(actor: LatentNet) -> Scalar:
            log_pi = policies(actor, z, batch)[:, :-1]
            return actor_loss(
                log_pi, q + self.gain(state.predictor, now, log_pi, alpha), alpha, batch.mask
            )

        actor, actor_loss_value = state.actor.descend(loss)
        log_pi = policies(actor.value, z, batch)
        drawn = draw_steps(log_pi, draw_key)
        action, entropy = drawn[:, 1:], -pick(log_pi, drawn)[:, 1:].mean(axis=-1)
        metrics: Metrics = {"entropy": masked_mean(entropy, batch.mask)}
        predictor, bonus, gain = None, entropy, (0.0, 0.0)
        if state.predictor is not None:
            information = self.information_of(state.predictor.value, later, action)
            bonus = entropy + self.information * information
            if self.information_in_value:
                ends = (now, log_pi[:, :-1]), (later, log_pi[:, 1:])
                gain = (
                    self.gain(state.predictor, *ends[0], alpha),
                    self.gain(state.predictor, *ends[1], alpha),
                )
            predictor, losses = self.fit_predictor(state.predictor, now, drawn[:, :-1], batch)
            metrics |= losses | {"predictability": masked_mean(information, batch.mask)}
        if self.latent_size:
            few, other = batch.rows(PROBED), jnp.roll(z, 1, axis=1)[:, :PROBED]
            moved = jnp.abs(jnp.exp(policies(actor.value, other, few)) - jnp.exp(log_pi[:PROBED]))[
                :, :-1
            ]
            metrics["latent_sensitivity"] = masked_mean(
                0.5 * moved.sum(axis=-1).mean(axis=-1), few.mask
            )
        critics, losses = self.base.fit_critics(
            state.critics, state.targets, batch, action, alpha * bonus, alpha, gain
        )
        metrics |= losses | {"actor_loss": actor_loss_value, "temperature": alpha}
        targets = copy_every(self.base.target_period, clock.updates, state.targets, values(critics))
        return State(actor, predictor, critics, targets, alpha), metrics

    def gain(
        self,
        predictor: Learner[ActionPredictor] | None,
        steps: Timestep,
        log_pi: Float[Array, "*batch agents actions"],
        alpha: Scalar,
    ) -> Gain:
        """What an action is worth for the information that it gives, alpha m_i(u), as data."""
        if predictor is None:
            return 0.0
        agents, actions = log_pi.shape[-2:]
        each = (*log_pi.shape[:-2], agents, agents - 1)  # i, and its partners j
        table = predictor.value.table(steps.obs, steps.available).reshape(*each, actions, actions)
        pi = jnp.exp(jax.lax.stop_gradient(log_pi))[..., predictor.value.pairs[1], :].reshape(
            *each, actions
        )
        return (
            alpha
            * self.information
            * jnp.einsum("...ijuv,...ijv->...iu", table, pi)
            / self.divisor(agents)
        )

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
        predictor: Learner[ActionPredictor],
        now: Timestep,
        drawn: Int[Array, "batch time agents"],
        batch: Episode,
    ) -> tuple[Learner[ActionPredictor], Metrics]:
        """q learns what was played; how it does where it hears another action of i's, drawn anew,
        is a metric."""

        def loss(q: ActionPredictor, given: Int[Array, "batch time agents"]) -> Scalar:
            return -masked_mean(
                q.log_q(batch.action, given, now.obs, now.available).mean(axis=-1), batch.mask
            )

        unpaired = loss(predictor.value, drawn)
        predictor, paired = predictor.descend(lambda q: loss(q, batch.action))
        return predictor, {"predictor_loss": paired, "predictor_loss_unpaired": unpaired}

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_tot of what the team did at each step of one episode, at the z of execution."""
        del key
        now, gain = jax.tree.map(lambda x: x[:-1], episode.timesteps), 0.0
        if self.information_in_value:
            logits = state.actor.value.unroll(
                episode, jnp.zeros((episode.timesteps.obs.shape[0], self.latent_size))
            )
            log_pi = log_policies(logits[:-1], now.available, None)
            gain = self.gain(state.predictor, now, log_pi, state.temperature)
        return self.base.lower_team(
            values(state.critics), now, episode.action, state.temperature, gain
        )
