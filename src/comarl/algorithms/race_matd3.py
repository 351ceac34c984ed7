"""RACE on MATD3: representation asymmetry and collaborative evolution (Li et al., ICML 2023).

Every agent has one nonlinear observation encoder, which all teams share; a team is nothing but a
linear policy per agent on top. One team learns by MATD3, a population of teams evolves, and the
encoders serve them all: they climb the values of every team, and are pulled towards information
about the global state where that state is a good one.

    z_i     = Z_phi_i(o_i)                         one encoder per agent, shared by all teams                  (Sec 3.1)
    pi_j(o) = tanh(W_j^i z_i)                      one linear policy per team and agent                        (Sec 3.1)
    y_theta = r + gamma (1-d) min_k Q_theta'_k(s', pi_j(o'), W_j)         any team j, drawn anew each update    (Eq 1)
    y_psi   = r + gamma (1-d) min_k Q_psi'_k(s', pi'_marl(o') + noise)    the MARL team, as in TD3              (Eq 1)
    L_zeta  = mean (V_zeta(s) - max(y_psi, y_theta))^2                    the best value over teams             (Eq 4)
    I_i     = -gap_i, the Jensen-Shannon estimate of I(z_i; s) by T_omega_i(s, z_i) = f(s) . g(z_i)             (Eq 3)
    L_VMM_i = -mean w(s) I_i,  w(s) = (V - min V) / (max V - min V)       value-aware mutual information        (Eq 5)
    L_phi   = -mean Q_psi_1(s, pi_marl(o)) - mean Q_theta_1(s, pi_j(o), W_j) + beta L_VMM                     (Eqs 2, 6)
    L_marl  = -mean Q_psi_1(s, pi_marl(o))         for W_marl alone                                             (Eq 7)

A round: every team plays one episode; the population evolves by its returns (elite, tournaments,
agent-level crossover and mutation, Sec 3.3); everything learns, one update per step played; W_marl
takes the worst team's place.

Ablations are fields: `beta` 0 is "VFM only", `encoder_learns_from` "neither" is "VMM only" (Fig.
5), `crossover` and `mutation` (Fig. 6), `mutated_fraction` is alpha (Fig. 7), `beta` (Fig. 8),
`evolution`, `value_weights`.

RACE's code for Multi-Agent MuJoCo is not published. Where the paper is silent this follows ERL-Re2, the code base that
it names. Choices, and differences from the authors' StarCraft code:
1. Selection happens once for whole teams and the elite keeps its slot untouched; their code selects per agent.
2. Crossover swaps agents between two teams (Sec 3.3); their code copies one way.
3. Mutation touches each weight with probability alpha; their code floors the count per action (`mutation_count`).
4. W enters Q_theta as aligned columns (an action's weights with its own bias); theirs are shifted after the first.
5. Teams for Q_theta are drawn from the population and W_marl, as in both their code bases; the paper says population.
6. V's target is the larger of the two full targets, discount and termination included, as in their code.
7. Value weights are scaled within the mini-batch, with 1e-8 in the denominator.
8. W_marl always learns from its own Q; in their code the "VMM only" ablation freezes it.
9. W_j is data to Q_theta: no gradient reaches it there, nor through the encoder's loss.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
from comarl.ops.learner import Adam, Learner, polyak
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_layers, check_range


class State(eqx.Module):
    """What changes while RACE learns. Stacks lead with `teams` (of the population), then
    `agents`."""

    encoders: Learner[Torso]  # Z_phi_i
    head: Learner[Linear]  # W_marl
    population: Population  # of teams of linear policies, W_1 .. W_n
    critic: Learner[Critic]  # Q_psi(s, u)
    team_critic: Learner[TeamCritic]  # Q_theta(s, u, W)
    value: Learner[MLP]  # V_zeta(s)
    mine: Learner[Mine]  # T_omega_i(s, z_i)
    target_encoders: Torso
    target_head: Linear
    target_critic: Critic
    target_team_critic: TeamCritic


@dataclass(frozen=True)
class RaceMatd3:
    """Hyperparameters of RACE on MATD3."""

    actions: ClassVar = frozenset({"continuous"})
    population_after: ClassVar = 0  # the warm-up is long enough

    breeding: HeadBreeding = HeadBreeding()
    """how many teams evolve beside the one that MATD3 trains, and how (Figs. 6, 7)"""
    beta: float = 0.01
    """weight of value-aware mutual information, tuned per task (Table 3, Fig. 8); 0 is "VFM only"
    (Fig. 5a)"""
    evolution: bool = True
    """off leaves MATD3 whose encoder may still learn mutual information: no other teams exist"""
    encoder_learns_from: Literal["both", "marl", "teams", "neither"] = "both"
    """whose values shape the encoder: "neither" is VMM only, "marl" without EA, "teams" without
    MARL (Figs. 5b-5d)"""
    value_weights: bool = True
    """off gives every state weight 1 in the mutual information: plain MI"""
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
    """optimiser of the encoders"""
    head_optimiser: Adam = Adam(1e-3)
    """optimiser of the MARL team's linear policies"""
    critic_optimiser: Adam = Adam(1e-3)
    """optimiser of both critics and of the value"""
    mine_optimiser: Adam = Adam(1e-3)
    """optimiser of the estimators of mutual information"""
    replay: Ring = Ring(1_000_000, 128)
    """transitions kept and drawn"""
    pace: StepPace = StepPace()
    """random steps before learning starts, and gradient steps for each step after"""

    def __post_init__(self):
        check_fields(self)
        check_layers(self, "hidden")
        check_range(self, 1, None, "policy_delay")
        check_range(self, 0, 1, "gamma", "tau")
        check_range(self, 0, None, "beta", "exploration_noise", "target_noise")

    @property
    def num_teams(self) -> int:
        return self.breeding.population + 1 if self.evolution else 1

    @property
    def learns_from_teams(self) -> bool:
        return self.evolution and self.encoder_learns_from in ("both", "teams")

    @property
    def needs_team_critic(self) -> bool:
        return self.learns_from_teams or (self.evolution and self.beta > 0 and self.value_weights)

    def init(self, spec: EnvSpec, key: Key) -> State:
        keys = jax.random.split(key, 7)
        features = self.hidden[-1]
        encoders = make_encoders(spec, self.hidden, self.layer_norm, keys[0])
        head = make_heads(spec, features, keys[1], scale=0.1)
        make_team = lambda k: make_heads(spec, features, k)
        critic = Critic(spec, self.hidden, critics=2, layer_norm=self.layer_norm, key=keys[3])
        team_critic = TeamCritic(
            spec, features, self.hidden, self.embedding, layer_norm=self.layer_norm, key=keys[4]
        )
        value = MLP((spec.state_size, *self.hidden, 1), activation=leaky_relu, key=keys[5])
        make_mine = lambda k: Mine(spec.state_size, features, self.mine_width, key=k)
        return State(
            encoders=Learner.create(encoders, self.encoder_optimiser),
            head=Learner.create(head, self.head_optimiser),
            population=Population.create(make_team, self.breeding.population, keys[2]),
            critic=Learner.create(critic, self.critic_optimiser),
            team_critic=Learner.create(team_critic, self.critic_optimiser),
            value=Learner.create(value, self.critic_optimiser),
            mine=Learner.create(
                jax.vmap(make_mine)(jax.random.split(keys[6], spec.num_agents)), self.mine_optimiser
            ),
            target_encoders=encoders,
            target_head=head,
            target_critic=critic,
            target_team_critic=team_critic,
        )

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> tuple[()]:
        return ()

    def team(self, state: State, index: Index) -> Linear:
        """W_j; the last team is the MARL team."""
        if not self.evolution:
            return state.head.value
        return state.population.team(index, state.head.value)

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
        spec = state.team_critic.value.spec
        action = choose(self.team(state, team), encode(state.encoders.value, timestep.obs), spec)
        if not explore:
            return memory, action
        noisy = explore_with_noise(action, self.exploration_noise, spec, key)
        return memory, jnp.where(team == self.num_teams - 1, noisy, action)

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """Critics and value in every update; encoders, W_marl, T and all targets in every
        `policy_delay`-th."""
        noise_key, team_key, other_key = jax.random.split(key, 3)
        critic, best_target, metrics = self.fit_critic(state, batch, noise_key)
        team_critic, value = state.team_critic, state.value
        if self.needs_team_critic:
            team_critic, team_target, team_metrics = self.fit_team_critic(state, batch, team_key)
            best_target, metrics = jnp.maximum(best_target, team_target), metrics | team_metrics
        if self.beta > 0 and self.value_weights:
            value, value_loss = self.fit_value(state, batch, best_target)
            metrics = metrics | {"value_loss": value_loss}
        state, more = jax.lax.cond(
            clock.update_in_round % self.policy_delay == 0,
            lambda s: self.fit_encoders(s, batch, other_key),
            lambda s: (s, {"mutual_information": jnp.float32(0.0)}),
            replace(state, critic=critic, team_critic=team_critic, value=value),
        )
        return state, metrics | more

    def fit_critic(
        self, state: State, batch: Transition, key: Key
    ) -> tuple[Learner[Critic], Float[Array, " batch"], Metrics]:
        """Clipped double Q-learning of the MARL team with smoothed target actions; also returns
        y_psi (Eq 1)."""
        spec = state.team_critic.value.spec
        next_action = choose(state.target_head, encode(state.target_encoders, batch.next.obs), spec)
        next_action = smooth_target(
            next_action, self.target_noise, self.target_noise_clip, spec, key
        )
        next_q = state.target_critic(batch.next.state, next_action).min(axis=0)
        target = batch.reward + self.gamma * jnp.where(batch.terminated, 0.0, next_q)

        def loss(critic: Critic) -> Float[Array, ""]:
            return jnp.square(critic(batch.now.state, batch.action) - target).mean(axis=1).sum()

        critic, critic_loss = state.critic.descend(loss)
        return critic, target, {"critic_loss": critic_loss, "target_value": target.mean()}

    def fit_team_critic(
        self, state: State, batch: Transition, key: Key
    ) -> tuple[Learner[TeamCritic], Float[Array, " batch"], Metrics]:
        """The same for a random team, without smoothing, whose policies are an input; also returns
        y_theta (Eq 1)."""
        heads = self.team(state, jax.random.randint(key, (), 0, self.num_teams))
        # Encoders and W_j are the live ones here: only the critics have targets for the population.
        next_action = choose(
            heads, encode(state.encoders.value, batch.next.obs), state.team_critic.value.spec
        )
        next_q = state.target_team_critic(batch.next.state, next_action, heads).min(axis=0)
        target = batch.reward + self.gamma * jnp.where(batch.terminated, 0.0, next_q)

        def loss(critic: TeamCritic) -> Float[Array, ""]:
            return (
                jnp.square(critic(batch.now.state, batch.action, heads) - target).mean(axis=1).sum()
            )

        critic, critic_loss = state.team_critic.descend(loss)
        return critic, target, {"team_critic_loss": critic_loss, "team_target_value": target.mean()}

    def fit_value(
        self, state: State, batch: Transition, best_target: Float[Array, " batch"]
    ) -> tuple[Learner[MLP], Float[Array, ""]]:
        """V follows the better of the two targets (Eq 4)."""
        return state.value.descend(
            lambda value: jnp.square(value(batch.now.state)[:, 0] - best_target).mean()
        )

    def fit_encoders(self, state: State, batch: Transition, key: Key) -> tuple[State, Metrics]:
        """Encoders by Eq 6, W_marl by Eq 7, T by the bound that it estimates, from one set of
        parameters."""
        heads = self.team(state, jax.random.randint(key, (), 0, self.num_teams))
        loss = lambda trained: self.encoder_loss(
            trained[0], trained[1], trained[2], state, heads, batch
        )
        trained = (state.encoders.value, state.head.value, state.mine.value)
        (encoders, head, mine), metrics = jax.grad(loss, has_aux=True)(trained)
        state = replace(
            state,
            encoders=state.encoders.apply(encoders),
            head=state.head.apply(head),
            mine=state.mine.apply(mine) if self.beta > 0 else state.mine,
        )
        targets = (
            state.target_encoders,
            state.target_head,
            state.target_critic,
            state.target_team_critic,
        )
        online = (
            state.encoders.value,
            state.head.value,
            state.critic.value,
            state.team_critic.value,
        )
        moved = polyak(targets, online, self.tau)
        names = ("target_encoders", "target_head", "target_critic", "target_team_critic")
        return replace(state, **dict(zip(names, moved, strict=True))), metrics

    def encoder_loss(
        self,
        encoders: Torso,
        head: Linear,
        mine: Mine,
        state: State,
        heads: Linear,
        batch: Transition,
    ) -> tuple[Float[Array, ""], Metrics]:
        """L_phi of Eq 6. Its gradient by `head` is that of Eq 7, as W_j is data to every other
        term."""
        spec = state.team_critic.value.spec
        z = encode(encoders, batch.now.obs)
        still = jax.lax.stop_gradient(z)
        action = choose(head, z if self.encoder_learns_from in ("both", "marl") else still, spec)
        loss = -state.critic.value.first(batch.now.state, action).mean()
        if self.learns_from_teams:
            team_action = choose(heads, z, spec)
            loss -= state.team_critic.value.first(batch.now.state, team_action, heads).mean()
        information = jnp.float32(0.0)
        if self.beta > 0:
            gap = jax.vmap(lambda t, z_i: jensen_shannon_gap(t(batch.now.state, z_i)))(
                mine, z
            )  # [agents, batch]
            weights = self.weigh(state, batch)
            loss += self.beta * (weights * gap).mean(axis=1).sum()
            information = -gap.mean()
        # Scaled so that its mean over all updates is the mean over those that compute it.
        return loss, {"mutual_information": self.policy_delay * information}

    def weigh(self, state: State, batch: Transition) -> Float[Array, " batch"]:
        """w(s) of Eq 5, which is data: the weights do not train V."""
        if not self.value_weights:
            return jnp.ones_like(batch.reward)
        return value_weights(jax.lax.stop_gradient(state.value.value(batch.now.state)[:, 0]))

    def evolve(
        self, state: State, fitness: Float[Array, " teams"], clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """The next generation of teams (Sec 3.3), bred by this round's returns."""
        del clock
        if not self.evolution:
            return state, {}
        population, outcome = state.population.evolve(fitness, self.breeding, key)
        return replace(state, population=population), outcome

    def inject(self, state: State) -> State:
        """W_marl takes the place of the team that was worst, by the returns that bred this
        generation."""
        if not (self.evolution and self.breeding.injection):
            return state
        return replace(state, population=state.population.inject(state.head.value))

    def trained_team(self, state: State) -> Int[Array, ""]:
        return jnp.int32(self.num_teams - 1)

    def best_team(self, state: State) -> Int[Array, ""]:
        """The elite of the latest round; the MARL team where nothing evolves."""
        return state.population.elite if self.evolution else jnp.int32(0)
