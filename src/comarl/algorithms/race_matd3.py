"""RACE on MATD3: representation asymmetry and collaborative evolution (Li et al., ICML 2023).

Every agent has one nonlinear observation encoder, which all teams share; a team is nothing but a
linear policy per agent on top. One team learns by MATD3, a population of teams evolves, and the
encoders serve them all: they maximise the values of every team, and information about the global
state where that state is a good one.

    z_i     = Z_phi_i(o_i)                  one encoder per agent, for all teams           (Sec 3.1)
    pi_j(o) = tanh(W_j^i z_i)               one linear policy per team and agent           (Sec 3.1)
    y_psi   = r + gamma (1-d) min_k Q_psi'_k(s', pi'_marl(o') + noise)
                                            the MARL team, as in TD3                          (Eq 1)
    y_theta = r + gamma (1-d) min_k Q_theta'_k(s', pi_j(o'), W_j)
                                            any team j, drawn anew each update                (Eq 1)
    L_VFM   = -mean Q_psi_1(s, pi_marl(o)) - mean Q_theta_1(s, pi_j(o), W_j)                  (Eq 2)
    I_i     = -gap_i                        Jensen-Shannon estimate of I(z_i; s)              (Eq 3)
                                            by T_omega_i(s, z_i) = f(s) . g(z_i)
    L_zeta  = mean (V_zeta(s) - max(y_psi, y_theta))^2    the best value over teams           (Eq 4)
    L_VMM   = -sum_i mean w(s) I_i          value-aware mutual information                    (Eq 5)
              w(s) = (V - min V) / (max V - min V)
    L_phi   = L_VFM + beta L_VMM            for the encoders, and T_omega                     (Eq 6)
    L_marl  = -mean Q_psi_1(s, pi_marl(o))  for W_marl alone                                  (Eq 7)

A round: every team plays one episode; the population evolves by its returns (elite, tournaments,
agent-level crossover and mutation, Sec 3.3); everything learns, one update per step played; W_marl
takes the worst team's place.

Ablations are fields: `beta` 0 is "VFM only", `encoder_learns_from` "neither" is "VMM only" (Fig.
5), `breeding.crossover` and `breeding.mutation` (Fig. 6), `breeding.mutated_fraction` is alpha
(Fig. 7), `beta` (Fig. 8), `evolution`, `value_weights`.

RACE's code for Multi-Agent MuJoCo is not published. Where the paper is silent this follows ERL-Re2,
the code base that it names. Choices, and differences from the authors' StarCraft code:
1. Selection happens once for whole teams and the elite keeps its slot untouched; their code selects
   per agent.
2. Crossover swaps agents between two teams (Sec 3.3); their code copies one way.
3. Mutation touches each weight with probability alpha; their code floors the count per action
   (`breeding.mutation_count`).
4. W enters Q_theta as aligned columns (an action's weights with its own bias); theirs are shifted
   after the first.
5. Teams for Q_theta are drawn from the population and W_marl, as in both their code bases; the
   paper says population.
6. V's target is the larger of the two full targets, discount and termination included, as in their
   code.
7. Value weights are scaled within the mini-batch, with 1e-8 in the denominator.
8. W_marl always learns from its own Q; in their code the "VMM only" ablation freezes it.
9. W_j is data to Q_theta: no gradient reaches it there, nor through the encoder's loss.
10. w(s) is by V after its step; in their code before (`new_value_weighs` off).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from comarl.algorithms.race import EncoderLearnsFrom, Parts, RaceState, move_targets
from comarl.evolution.population import HeadBreeding, Population
from comarl.nn.critics import Critic, TeamCritic
from comarl.nn.mine import Mine
from comarl.nn.mlp import MLP, Linear, Torso, leaky_relu
from comarl.nn.policies import (
    choose,
    encode,
    explore_with_noise,
    make_encoders,
    make_heads,
    smooth_target,
)
from comarl.ops.information import jensen_shannon_gap, value_weights
from comarl.ops.learner import Adam, Learner, Tracked, descend_jointly
from comarl.ops.returns import one_step_targets, td_metrics
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_layers, check_range


class State(RaceState[Torso, Critic, TeamCritic]):
    """What changes while RACE learns; `encoder`, `head` and `mine` lead with `agents`, each of whom
    has optimisers of its own."""


def no_terms() -> Metrics:
    """The terms of the encoders' loss as 0: of an update without it, or of parts that are off."""
    names = ("marl_actor_loss", "team_actor_loss", "vmm_loss", "mutual_information")
    return {name: jnp.float32(0.0) for name in names}


@dataclass(frozen=True)
class RaceMatd3:
    """Hyperparameters of RACE on MATD3."""

    actions = frozenset({"continuous"})
    population_after = 0  # the warm-up is long enough

    breeding: HeadBreeding = HeadBreeding()
    """how many teams evolve beside the one that MATD3 trains, and how (Figs. 6, 7)"""
    beta: float = 0.01
    """weight of value-aware mutual information, tuned per task (Table 3, Fig. 8); 0 is "VFM only"
    (Fig. 5a)"""
    evolution: bool = True
    """off leaves MATD3 whose encoder may still learn mutual information: no other teams exist"""
    encoder_learns_from: EncoderLearnsFrom = "both"
    """whose values shape the encoder: "neither" is VMM only, "marl" without EA, "teams" without
    MARL (Figs. 5b-5d)"""
    value_weights: bool = True
    """off gives every state weight 1 in the mutual information: plain MI"""
    new_value_weighs: bool = True
    """whether w(s) is by V after its step of the same update; off is before it, as in the released
    code"""
    hidden: tuple[int, ...] = (400, 300)
    """units of the hidden layers of encoders (tanh), critics and value (leaky ReLU)"""
    embedding: int = 64
    """units of the three layers that embed a team's policies for its critic"""
    mine_width: int = 128
    """units of the two branches that estimate mutual information"""
    layer_norm: bool = True
    """layer normalisation before each activation of encoders and critics, as in ERL-Re2; RACE's
    tables are silent"""
    gamma: float = 0.99
    """discount"""
    tau: float = 0.005
    """step of the target networks, on policy updates only"""
    policy_delay: int = 2
    """critic updates per policy update"""
    exploration_noise: float = 0.1
    """standard deviation of the noise on the MARL team's actions in training; other teams act as
    they are"""
    target_noise: float = 0.2
    """standard deviation of the noise on the MARL team's target actions; 0 turns smoothing off"""
    target_noise_clip: float = 0.5
    """bound on the noise on target actions"""
    encoder_optimiser: Adam = Adam(1e-3)
    """optimiser of each agent's encoder"""
    head_optimiser: Adam = Adam(1e-3)
    """optimiser of each of the MARL team's linear policies"""
    critic_optimiser: Adam = Adam(1e-3)
    """optimiser of both critics and of the value"""
    mine_optimiser: Adam = Adam(1e-3)
    """optimiser of each agent's estimator of mutual information"""
    replay: Ring = Ring(1_000_000, 128)
    """transitions kept and drawn"""
    pace: StepPace = StepPace()
    """random steps before learning starts, and gradient steps for each step after"""

    def __post_init__(self):
        check_fields(self)
        check_layers(self, "hidden")
        check_range(self, 1, None, "policy_delay", "embedding", "mine_width")
        check_range(self, 0, 1, "gamma", "tau")
        check_range(self, 0, None, "beta", "exploration_noise", "target_noise", "target_noise_clip")

    @property
    def num_teams(self) -> int:
        """Those that evolve, and the MARL team."""
        return self.breeding.population + 1 if self.evolution else 1

    @property
    def parts(self) -> Parts:
        """What an update has, by the switches above."""
        return Parts.of(self)

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        keys = jax.random.split(key, 7)
        features = self.hidden[-1]
        value = MLP((spec.state_size, *self.hidden, 1), activation=leaky_relu, key=keys[5])
        make_team = lambda k: make_heads(spec, features, k)
        make_mine = lambda k: Mine(spec.state_size, features, self.mine_width, key=k)
        mine = jax.vmap(make_mine)(jax.random.split(keys[6], spec.num_agents))
        return State(
            encoder=Tracked.create_each(self.make_encoder(spec, keys[0]), self.encoder_optimiser),
            head=Tracked.create_each(make_heads(spec, features, keys[1], 0.1), self.head_optimiser),
            population=Population.create(make_team, self.num_teams - 1, keys[2]),
            critic=Tracked.create(self.make_critic(spec, keys[3]), self.critic_optimiser),
            team_critic=Tracked.create(self.make_team_critic(spec, keys[4]), self.critic_optimiser),
            value=Learner.create(value, self.critic_optimiser),
            mine=Learner.create_each(mine, self.mine_optimiser),
            spec=spec,
        )

    def make_encoder(self, spec: EnvSpec, key: Key) -> Torso:
        """Z_phi_i of every agent, stacked."""
        return make_encoders(spec, self.hidden, self.layer_norm, key)

    def make_critic(self, spec: EnvSpec, key: Key) -> Critic:
        """Q_psi: two of them."""
        return Critic(spec, self.hidden, critics=2, layer_norm=self.layer_norm, key=key)

    def make_team_critic(self, spec: EnvSpec, key: Key) -> TeamCritic:
        """Q_theta: two of them."""
        sizes = (self.hidden[-1], self.hidden, self.embedding)
        return TeamCritic(spec, *sizes, layer_norm=self.layer_norm, key=key)

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> tuple[()]:
        """Nothing is carried from step to step."""
        return ()

    def act(
        self,
        state: State,
        team: Index,
        memory: tuple[()],
        timestep: Timestep,
        clock: Clock,
        key: Key,
        *,
        explore: bool,
    ) -> tuple[tuple[()], Float[Array, "agents action"]]:
        """Evolved teams act as they are; the MARL team explores with noise."""
        z = encode(state.encoder.value, timestep.obs)
        action = choose(state.team(team), z, state.spec)
        if not explore:
            return memory, action
        noisy = self.explore(action, state.spec, key)
        return memory, jnp.where(team == self.num_teams - 1, noisy, action)

    def explore(
        self, action: Float[Array, "agents action"], spec: EnvSpec, key: Key
    ) -> Float[Array, "agents action"]:
        """The MARL team's greedy action with Gaussian noise."""
        return explore_with_noise(action, self.exploration_noise, spec, key)

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """Critics and value in every update; encoders, W_marl, T and all targets in every
        `policy_delay`-th."""
        noise_key, team_key, other_key = jax.random.split(key, 3)

        # Q_psi, and Q_theta of a random team: Eq. 1.
        state, best_target, metrics = self.fit_critic(state, batch, noise_key)
        if self.parts.team_critic:
            state, team_target, more = self.fit_team_critic(state, batch, team_key)
            best_target = jnp.maximum(best_target, team_target)
            metrics |= more

        # V, by the better of the two targets: Eq. 4.
        fitted = state
        if self.parts.value:
            fitted, more = self.fit_value(state, batch, best_target)
            metrics |= more
        if self.new_value_weighs:
            state = fitted

        # Encoders, T and W_marl: Eqs. 6 and 7.
        state, more = jax.lax.cond(
            clock.update_in_round % self.policy_delay == 0,
            lambda s: self.fit_encoders(s, batch, other_key),
            lambda s: (s, no_terms()),
            state,
        )
        return replace(state, value=fitted.value), metrics | more

    def fit_critic(
        self, state: State, batch: Transition, key: Key
    ) -> tuple[State, Float[Array, " batch"], Metrics]:
        """Clipped double Q-learning of the MARL team with smoothed target actions.

        Also returns y_psi (Eq 1).
        """
        z = encode(state.encoder.target, batch.next.obs)
        next_action = smooth_target(
            choose(state.head.target, z, state.spec),
            self.target_noise,
            self.target_noise_clip,
            state.spec,
            key,
        )
        next_q = state.critic.target(batch.next.state, next_action).min(axis=0)
        target = one_step_targets(batch.reward, batch.terminated, next_q, self.gamma)

        def loss(critic: Critic) -> tuple[Float[Array, ""], Float[Array, "critics batch"]]:
            q = critic(batch.now.state, batch.action)
            return jnp.square(q - target).mean(axis=1).sum(), q

        critic, (td_loss, q) = state.critic.descend(loss, has_aux=True)
        metrics = {"critic_loss": td_loss, "td_loss": td_loss} | td_metrics(q[0], target)
        return replace(state, critic=critic), target, metrics

    def fit_team_critic(
        self, state: State, batch: Transition, key: Key
    ) -> tuple[State, Float[Array, " batch"], Metrics]:
        """The same for a random team, without smoothing, whose policies are an input.

        Also returns y_theta (Eq 1).
        """
        heads = state.team(jax.random.randint(key, (), 0, self.num_teams))
        # Encoders and W_j are the live ones here: only the critics have targets for the population.
        next_action = choose(heads, encode(state.encoder.value, batch.next.obs), state.spec)
        next_q = state.team_critic.target(batch.next.state, next_action, heads).min(axis=0)
        target = one_step_targets(batch.reward, batch.terminated, next_q, self.gamma)

        def loss(critic: TeamCritic) -> Float[Array, ""]:
            q = critic(batch.now.state, batch.action, heads)
            return jnp.square(q - target).mean(axis=1).sum()

        team_critic, critic_loss = state.team_critic.descend(loss)
        metrics = {"team_critic_loss": critic_loss, "team_target_value": target.mean()}
        return replace(state, team_critic=team_critic), target, metrics

    def fit_value(
        self, state: State, batch: Transition, best_target: Float[Array, " batch"]
    ) -> tuple[State, Metrics]:
        """V follows the better of the two targets (Eq 4)."""

        def loss(value: MLP) -> Float[Array, ""]:
            return jnp.square(value(batch.now.state)[:, 0] - best_target).mean()

        value, value_loss = state.value.descend(loss)
        return replace(state, value=value), {"value_loss": value_loss}

    def fit_encoders(self, state: State, batch: Transition, key: Key) -> tuple[State, Metrics]:
        """Encoders by Eq 6, W_marl by Eq 7, T by the bound that it estimates, from one set of
        parameters; then every target moves."""
        heads = state.team(jax.random.randint(key, (), 0, self.num_teams))

        def loss(trained: tuple[Torso, Linear, Mine]) -> tuple[Float[Array, ""], Metrics]:
            return self.encoder_loss(*trained, state, heads, batch)

        learners = (state.encoder, state.head, state.mine)
        (encoder, head, mine), (_, metrics) = descend_jointly(learners, loss)
        if not self.parts.information:
            mine = state.mine
        state = replace(state, encoder=encoder, head=head, mine=mine)
        return move_targets(state, lambda tracked: tracked.polyak(self.tau)), metrics

    def encoder_loss(
        self,
        encoder: Torso,
        head: Linear,
        mine: Mine,
        state: State,
        heads: Linear,
        batch: Transition,
    ) -> tuple[Float[Array, ""], Metrics]:
        """L_phi of Eq 6. Its gradient by `head` is that of Eq 7, as W_j is data to every other
        term."""
        states = batch.now.state
        z = encode(encoder, batch.now.obs)
        terms = no_terms()

        # -Q_psi: Eq. 7, and Eq. 2 where it is to shape the encoders.
        own_z = z if self.parts.marl else jax.lax.stop_gradient(z)
        action = choose(head, own_z, state.spec)
        terms["marl_actor_loss"] = -state.critic.value.first(states, action).mean()

        # -Q_theta: Eq. 2.
        if self.parts.teams:
            team_action = choose(heads, z, state.spec)
            team_q = state.team_critic.value.first(states, team_action, heads)
            terms["team_actor_loss"] = -team_q.mean()

        # L_VMM: Eqs. 3 and 5.
        if self.parts.information:
            information, vmm_loss = self.information(z, mine, state, batch)
            terms |= {"mutual_information": information, "vmm_loss": vmm_loss}

        # L_phi: Eq. 6.
        loss = terms["marl_actor_loss"] + terms["team_actor_loss"] + self.beta * terms["vmm_loss"]
        # Scaled so that their means over all updates are the means over those that compute them.
        return loss, {name: self.policy_delay * term for name, term in terms.items()}

    def information(
        self, z: Float[Array, "agents batch features"], mine: Mine, state: State, batch: Transition
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The mean estimate of I(z_i; s) (Eq 3), and L_VMM (Eq 5)."""
        states = batch.now.state
        gap = jax.vmap(lambda t, z_i: jensen_shannon_gap(t(states, z_i)))(mine, z)
        weights = jnp.ones_like(batch.reward)
        if self.value_weights:  # data to the encoders' loss, so that they do not train V
            weights = value_weights(jax.lax.stop_gradient(state.value.value(states)[:, 0]))
        return -gap.mean(), (weights * gap).mean(axis=1).sum()

    def evolve(
        self, state: State, fitness: Float[Array, " teams"], clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """The next generation of teams (Sec 3.3), bred by this round's returns."""
        del clock
        population, outcome = state.population.evolve(fitness, self.breeding, key)
        return replace(state, population=population), outcome

    def inject(self, state: State) -> State:
        """W_marl takes the place of the team that was worst, by the returns that bred this
        generation."""
        if not self.breeding.injection:
            return state
        return replace(state, population=state.population.inject(state.head.value))

    def trained_team(self, state: State) -> Int[Array, ""]:
        """The MARL team."""
        return jnp.int32(self.num_teams - 1)

    def best_team(self, state: State) -> Int[Array, ""]:
        """The elite of the latest round; the MARL team where nothing evolves."""
        return state.population.elite
