"""RACE on FACMAC: recurrent teams with discrete actions (Li et al., ICML 2023).

It is RACE as on MATD3. All agents of all teams share one recurrent encoder; an evolving team is a
linear policy per agent on top of it, the MARL team one policy for all its agents, as in FACMAC
(App. A.1). It learns by FACMAC, a population of teams evolves, and the encoder serves them all.

    z_t,i   = Z_phi(tau_t,i)                a GRU over what agent i saw and did            (Sec 3.1)
    pi_j    = softmax(W_j^i z_i)            one linear policy per team and agent           (Sec 3.1)
                                            W_marl^i is the same for all i              (App. A.1)
    Q_theta = g_{s, chi}(Q_i(chi_i, o_i, u_i))            chi embeds the team's policies
    y_psi   = lambda-return of Q_psi'(s', greedy pi'_marl)
                                            the MARL team, as in FACMAC                       (Eq 1)
    y_theta = lambda-return of Q_theta'(s', greedy pi_j, W_j)
                                            any team j, drawn anew each update                (Eq 1)
    L_VFM   = -mean Q_psi(s, pi_marl) - mean Q_theta(s, pi_j, W_j)                            (Eq 2)
    I_t,i   = -gap_t,i                      Jensen-Shannon estimate of I(z_i; s)              (Eq 3)
                                            by T_omega(s, z_i) = f(s) . g(z_i)
    L_zeta  = mean (V_zeta(s) - max(y_psi, y_theta))^2    the best value over teams           (Eq 4)
    L_VMM   = -sum over t of the mean over episodes of w(s_t) mean_i I_t,i                    (Eq 5)
              w(s) = (V - min V) / (max V - min V)
    L_phi   = L_VFM + beta L_VMM            for the encoder, and T_omega                      (Eq 6)
    L_marl  = -mean Q_psi(s, pi_marl)       for W_marl alone                                  (Eq 7)

pi in L_VFM and L_marl is a straight-through Gumbel-softmax draw. A round: every team plays one
episode (evolving teams draw from their policies, the MARL team explores as FACMAC does); the
population evolves by its returns, as on MATD3; everything learns, one update per episode played;
W_marl takes the worst team's place. Before `population_after` steps the MARL team plays and learns
alone.

Ablations are fields, as on MATD3 (Figs. 4-8). The released code is for StarCraft and differs from
the paper; a field brings back what changes results:
1. There all evolving teams act with the policy of agent 0 (`heads_shared_by_agents`).
2. There a mutation changes floor(alpha 64) weights per action, which is none on three maps
   (`breeding.mutation_count` "floor").
3. There crossover copies one way (`breeding.crossover` "copy"); the paper swaps.
4. There selection happens for each agent anew; here once for whole teams, and the elite keeps its
   slot (Sec 3.3).
5. L_VMM is summed over an episode's steps, as there, where beta was tuned; the paper's expectation
   is `vmm_reduce` "mean". Steps after an end do not count here, neither in the sum nor in the scale
   of w.
6. Agents of one episode share its state, so they are no counterexamples to each other in gap; there
   they are.
7. W enters Q_theta as aligned columns; theirs are shifted after the first.
8. W_marl takes one optimiser step per update; there it takes one per agent, as it stands in the
   list so often: `head_optimiser` with as many times the step size comes near it.
9. Teams for Q_theta are drawn from the population and W_marl, as there; W_j gets no gradient.
10. w(s) is by V after its step; there before (`new_value_weighs` off).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from comarl.algorithms.race import EncoderLearnsFrom, Parts, RaceState, move_targets
from comarl.evolution.population import HeadBreeding, Population
from comarl.nn.critics import FactoredCritic, TeamFactoredCritic
from comarl.nn.mine import Mine
from comarl.nn.mixers import Mixing
from comarl.nn.mlp import MLP, Linear
from comarl.nn.policies import make_heads
from comarl.nn.recurrent import Memory, RecurrentEncoder, agent_inputs, input_size, unroll_episode
from comarl.ops.distributions import straight_through_steps
from comarl.ops.exploration import Epsilon, epsilon_softmax, greedy
from comarl.ops.information import team_gaps, value_weights
from comarl.ops.learner import Adam, Learner, Tracked
from comarl.ops.returns import episode_targets, masked_mean, td_metrics
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.types import Clock, EnvSpec, Episode, Index, Key, Metrics, Timestep
from comarl.validation import WrongSetting, check_fields, check_range

# z of every step, and of the one after the end
Histories = Float[Array, "batch steps agents hidden"]


class State(RaceState[RecurrentEncoder, FactoredCritic, TeamFactoredCritic]):
    """What changes while RACE learns; `encoder` and `mine` are shared by all agents.

    Where W_marl is one policy for all agents the leaves of `head` lead with 1 instead of `agents`.
    """

    def own_team(self) -> Linear:
        """W_marl as a team like the others: leaves lead with `agents`."""
        agents = self.spec.num_agents
        spread = lambda leaf: jnp.broadcast_to(leaf, (agents, *leaf.shape[1:]))
        return jax.tree.map(spread, self.head.value)


@dataclass(frozen=True)
class RaceFacmac:
    """Hyperparameters of RACE on FACMAC. Where they are not RACE's own they are FACMAC's."""

    actions = frozenset({"discrete"})

    population_after: int = 10_000
    """environment steps that the MARL team plays and learns alone at first"""
    breeding: HeadBreeding = HeadBreeding(mutated_fraction=0.05)
    """how many teams evolve beside the one that FACMAC trains, and how (Figs. 6, 7)"""
    beta: float = 0.001
    """weight of value-aware mutual information, tuned per map (Table 4, Fig. 8); 0 is "VFM only"
    (Fig. 5a)"""
    evolution: bool = True
    """off leaves FACMAC, whose encoder may still learn mutual information"""
    encoder_learns_from: EncoderLearnsFrom = "both"
    """whose values shape the encoder: "neither" is VMM only, "marl" without EA, "teams" without
    MARL (Figs. 5b-5d)"""
    value_weights: bool = True
    """off gives every state weight 1 in the mutual information: plain MI"""
    new_value_weighs: bool = True
    """whether w(s) is by V after its step of the same update; off is before it, as in the released
    code"""
    vmm_reduce: Literal["sum", "mean"] = "sum"
    """whether L_VMM adds up an episode's steps, for which the paper's beta was tuned, or is a mean
    over all steps"""
    shared_head: bool = True
    """W_marl is one policy for all agents, as FACMAC's (App. A.1); off gives each its own"""
    heads_shared_by_agents: bool = False
    """every agent of an evolving team acts by the policy of agent 0, as in the released code; the
    others only drift"""
    embedding: int = 64
    """units of the three layers that embed a team's policies for its critic"""
    mine_width: int = 128
    """units of the two branches that estimate mutual information"""
    value_hidden: int = 32
    """units of the two hidden layers of V"""
    mixing: Mixing = "monotonic"
    """how utilities are joined: QMIX's mixer, the same without its sign constraint, or VDN's sum"""
    hidden: int = 64
    """units of the recurrent encoder and of the two hidden layers of the utilities"""
    mixer_width: int = 32
    """units of the mixers' hidden layer"""
    hypernet: int = 64
    """units of the hidden layer that makes the mixers' weights; 0 makes them linear in the state"""
    gamma: float = 0.99
    """discount"""
    td_lambda: float = 0.8
    """lambda of the TD(lambda) targets"""
    epsilon: Epsilon = Epsilon(0.5, 0.05, 50_000)
    """share of random actions while the MARL team explores, at first and in the end"""
    target_period: int = 200
    """updates between copies of everything that has a target"""
    actor_optimiser: Adam = Adam(2.5e-3, epsilon=1e-7)
    """optimiser of the encoder; it is clipped by the norm of its gradient and W_marl's together"""
    head_optimiser: Adam = Adam(2.5e-3, epsilon=1e-7)
    """optimiser of W_marl, clipped by the same norm"""
    critic_optimiser: Adam = Adam(5e-4, epsilon=1e-7)
    """optimiser of both critics and of the value"""
    mine_optimiser: Adam = Adam(5e-4)
    """optimiser of the estimator of mutual information"""
    replay: EpisodeRing = EpisodeRing(5_000, 32)
    """episodes kept and drawn"""
    pace: EpisodePace = EpisodePace()
    """episodes played side by side, and gradient steps for each"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "hidden", "mixer_width", "target_period")
        check_range(self, 1, None, "embedding", "mine_width", "value_hidden")
        check_range(self, 0, 1, "gamma", "td_lambda")
        check_range(self, 0, None, "beta", "hypernet", "population_after")
        if self.heads_shared_by_agents and not self.shared_head:
            # Else the policies that nobody acts by would enter Q_theta and never learn.
            raise WrongSetting(
                "shared_head=False of RaceFacmac must be True where heads_shared_by_agents is",
                "shared_head",
            )

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
        make_team = lambda k: make_heads(spec, self.hidden, k)
        one_for_all = lambda team: jax.tree.map(lambda leaf: leaf[:1], team)
        own = one_for_all(make_team(keys[1])) if self.shared_head else make_team(keys[1])
        value_sizes = (spec.state_size, self.value_hidden, self.value_hidden, 1)
        value = MLP(value_sizes, activation=jax.nn.relu, key=keys[5])
        mine = Mine(spec.state_size, self.hidden, self.mine_width, key=keys[6])
        return State(
            encoder=Tracked.create(self.make_encoder(spec, keys[0]), self.actor_optimiser),
            head=Tracked.create(own, self.head_optimiser),
            population=Population.create(make_team, self.num_teams - 1, keys[2]),
            critic=Tracked.create(self.make_critic(spec, keys[3]), self.critic_optimiser),
            team_critic=Tracked.create(self.make_team_critic(spec, keys[4]), self.critic_optimiser),
            value=Learner.create(value, self.critic_optimiser),
            mine=Learner.create(mine, self.mine_optimiser),
            spec=spec,
        )

    def make_encoder(self, spec: EnvSpec, key: Key) -> RecurrentEncoder:
        """Z_phi of all agents."""
        return RecurrentEncoder(input_size(spec), self.hidden, key=key)

    def make_critic(self, spec: EnvSpec, key: Key) -> FactoredCritic:
        """Q_psi."""
        size: dict[str, Any] = dict(width=self.mixer_width, hypernet=self.hypernet)
        return FactoredCritic(spec, (self.hidden, self.hidden), self.mixing, **size, key=key)

    def make_team_critic(self, spec: EnvSpec, key: Key) -> TeamFactoredCritic:
        """Q_theta."""
        size: dict[str, Any] = dict(width=self.mixer_width, hypernet=self.hypernet)
        layers = (self.hidden, self.hidden)
        return TeamFactoredCritic(
            spec, self.hidden, layers, self.embedding, self.mixing, **size, key=key
        )

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> Memory:
        """Nothing was observed yet."""
        return Memory.empty(timestep.obs.shape[0], self.hidden)

    def logits(
        self, heads: Linear, z: Float[Array, "*batch agents hidden"]
    ) -> Float[Array, "*batch agents actions"]:
        """W_i z_i for every agent; `heads` lead with `agents`, or with 1 for one policy for all."""
        if self.heads_shared_by_agents or heads.weight.shape[0] == 1:
            return z @ heads.weight[0] + heads.bias[0]
        return jnp.einsum("...nh,nha->...na", z, heads.weight) + heads.bias

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
        """Evolved teams draw from their policies; the MARL team mixes in random actions."""
        inputs = agent_inputs(state.spec, timestep.obs, memory.last_action)
        hidden = state.encoder.value(memory.hidden, inputs)
        logits = self.logits(state.team(team), hidden)
        if explore:
            epsilon = jnp.where(team == self.num_teams - 1, self.epsilon.at(clock), 0.0)
            action = self.explore(logits, timestep.available, epsilon, key)
        else:
            action = greedy(logits, timestep.available)
        return Memory(hidden, action), action

    def explore(
        self,
        logits: Float[Array, "agents actions"],
        available: Bool[Array, "agents actions"] | None,
        epsilon: Float[Array, ""],
        key: Key,
    ) -> Int[Array, " agents"]:
        """Drawn from the policies, with a share epsilon of random actions."""
        return epsilon_softmax(logits, available, epsilon, key)

    def update(self, state: State, batch: Episode, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """Critics and value, then encoder, W_marl and T by the critics as they are now; targets
        when due."""
        team_key, *actor_keys = jax.random.split(key, 4)
        # Unrolled once: targets, both actor terms and the information all start from the same
        # histories; `to_encoder` carries the gradient by them back to the encoder.
        unroll = lambda encoder: self.unroll(encoder, state.spec, batch)
        z, to_encoder = jax.vjp(unroll, state.encoder.value)

        # Q_psi, and Q_theta of a random team: Eq. 1.
        state, best_target, metrics = self.fit_critic(state, batch)
        if self.parts.team_critic:
            state, team_target, more = self.fit_team_critic(state, batch, z, team_key)
            best_target = jnp.maximum(best_target, team_target)
            metrics |= more

        # V, by the better of the two targets: Eq. 4.
        fitted = state
        if self.parts.value:
            fitted, more = self.fit_value(state, batch, best_target)
            metrics |= more
        if self.new_value_weighs:
            state = fitted

        # Encoder, T and W_marl: Eqs. 6 and 7.
        state, more = self.fit_encoder(state, batch, z, to_encoder, actor_keys)
        state = replace(state, value=fitted.value)

        # Targets.
        copy = lambda tracked: tracked.copy_every(self.target_period, clock.updates)
        state = move_targets(state, copy)
        return state, metrics | more | {"epsilon": self.epsilon.at(clock)}

    def unroll(self, encoder: RecurrentEncoder, spec: EnvSpec, batch: Episode) -> Histories:
        """z of a batch."""
        return jax.vmap(lambda episode: unroll_episode(encoder, spec, episode))(batch)

    def one_hot(self, logits: Float[Array, "batch time agents actions"], batch: Episode) -> Array:
        """The greedy joint actions of a batch."""
        return jax.nn.one_hot(greedy(logits, batch.timesteps.available), logits.shape[-1])

    def fit_critic(
        self, state: State, batch: Episode
    ) -> tuple[State, Float[Array, "batch time"], Metrics]:
        """TD(lambda) with the target MARL team's greedy actions; also returns y_psi (Eq 1)."""
        steps = batch.timesteps
        z = self.unroll(state.encoder.target, state.spec, batch)
        next_action = self.one_hot(self.logits(state.head.target, z), batch)[:, 1:]
        next_q = state.critic.target(steps.obs[:, 1:], next_action, steps.state[:, 1:])
        target = episode_targets(batch, next_q, self.gamma, self.td_lambda)
        action = jax.nn.one_hot(batch.action, state.spec.action_size)

        def loss(critic: FactoredCritic) -> tuple[Float[Array, ""], Float[Array, "batch time"]]:
            q = critic(steps.obs[:, :-1], action, steps.state[:, :-1])
            return masked_mean(jnp.square(q - target), batch.mask), q

        critic, (td_loss, q) = state.critic.descend(loss, has_aux=True)
        metrics = {"critic_loss": td_loss, "td_loss": td_loss}
        metrics |= td_metrics(q, target, batch.mask)
        return replace(state, critic=critic), target, metrics

    def team_values(self, state: State, episode: Episode, key: Key) -> Float[Array, " time"]:
        """Q_psi of what the team did at each step of one episode."""
        del key
        steps = episode.timesteps
        action = jax.nn.one_hot(episode.action, state.spec.action_size)
        return state.critic.value(steps.obs[:-1], action, steps.state[:-1])

    def fit_team_critic(
        self, state: State, batch: Episode, z: Histories, key: Key
    ) -> tuple[State, Float[Array, "batch time"], Metrics]:
        """The same for a random team, whose policies are an input; also returns y_theta (Eq 1)."""
        steps = batch.timesteps
        heads = state.team(jax.random.randint(key, (), 0, self.num_teams))
        # The encoder and W_j are the live ones here: only the critics have targets for the
        # population.
        next_action = self.one_hot(self.logits(heads, z), batch)[:, 1:]
        next_q = state.team_critic.target(steps.obs[:, 1:], next_action, steps.state[:, 1:], heads)
        target = episode_targets(batch, next_q, self.gamma, self.td_lambda)
        action = jax.nn.one_hot(batch.action, state.spec.action_size)

        def loss(critic: TeamFactoredCritic) -> Float[Array, ""]:
            q = critic(steps.obs[:, :-1], action, steps.state[:, :-1], heads)
            return masked_mean(jnp.square(q - target), batch.mask)

        team_critic, critic_loss = state.team_critic.descend(loss)
        metrics = {
            "team_critic_loss": critic_loss,
            "team_target_value": masked_mean(target, batch.mask),
        }
        return replace(state, team_critic=team_critic), target, metrics

    def fit_value(
        self, state: State, batch: Episode, best_target: Float[Array, "batch time"]
    ) -> tuple[State, Metrics]:
        """V follows the better of the two targets (Eq 4)."""
        states = batch.timesteps.state[:, :-1]

        def loss(value: MLP) -> Float[Array, ""]:
            return masked_mean(jnp.square(value(states)[..., 0] - best_target), batch.mask)

        value, value_loss = state.value.descend(loss)
        return replace(state, value=value), {"value_loss": value_loss}

    def fit_encoder(
        self,
        state: State,
        batch: Episode,
        z: Histories,
        to_encoder: Callable[[Histories], tuple[RecurrentEncoder]],
        keys: list[Key],
    ) -> tuple[State, Metrics]:
        """The encoder by Eq 6, W_marl by Eq 7, T by the bound that it estimates, from one set of
        parameters. `to_encoder` is the pullback of the unroll that gave `z`."""

        def loss(
            trained: tuple[Histories, Linear, Mine],
        ) -> tuple[Float[Array, ""], Metrics]:
            return self.encoder_loss(*trained, state, batch, keys)

        trained = (z, state.head.value, state.mine.value)
        (by_z, by_head, by_mine), metrics = jax.grad(loss, has_aux=True)(trained)
        (by_encoder,) = to_encoder(by_z)
        # Clipped as one network, as FACMAC's actor is.
        norm = optax.tree.norm((by_encoder, by_head))
        state = replace(
            state,
            encoder=state.encoder.apply(by_encoder, norm),
            head=state.head.apply(by_head, norm),
            mine=state.mine.apply(by_mine) if self.parts.information else state.mine,
        )
        return state, metrics

    def encoder_loss(
        self, z: Histories, head: Linear, mine: Mine, state: State, batch: Episode, keys: list[Key]
    ) -> tuple[Float[Array, ""], Metrics]:
        """L_phi of Eq 6. Its gradient by `head` is that of Eq 7, as W_j is data to every other
        term."""
        steps, mask = batch.timesteps, batch.mask
        assert steps.available is not None  # discrete tasks say what is legal
        z = z[:, :-1]
        obs, states, available = steps.obs[:, :-1], steps.state[:, :-1], steps.available[:, :-1]
        marl_key, team_key, draw_key = keys

        # -Q_psi: Eq. 7, and Eq. 2 where it is to shape the encoder.
        own_z = z if self.parts.marl else jax.lax.stop_gradient(z)
        action = straight_through_steps(self.logits(head, own_z), available, marl_key)
        loss = -masked_mean(state.critic.value(obs, action, states), mask)
        metrics = {"marl_actor_loss": loss}

        # -Q_theta: Eq. 2.
        if self.parts.teams:
            heads = state.team(jax.random.randint(team_key, (), 0, self.num_teams))
            team_action = straight_through_steps(self.logits(heads, z), available, draw_key)
            team_q = state.team_critic.value(obs, team_action, states, heads)
            metrics["team_actor_loss"] = -masked_mean(team_q, mask)
            loss += metrics["team_actor_loss"]

        # beta L_VMM: Eqs. 3, 5 and 6.
        if self.parts.information:
            information, vmm_loss = self.information(z, mine, state, batch)
            metrics |= {"mutual_information": information, "vmm_loss": vmm_loss}
            loss += self.beta * vmm_loss
        return loss, metrics

    def information(
        self, z: Histories, mine: Mine, state: State, batch: Episode
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The mean estimate of I(z; s) (Eq 3), and L_VMM (Eq 5)."""
        states, mask = batch.timesteps.state[:, :-1], batch.mask

        def gaps_of_step(s: Array, z_t: Array, m: Array) -> Float[Array, "batch agents"]:
            return team_gaps(mine.team_scores(s, z_t), m)

        gap = jax.vmap(gaps_of_step, in_axes=1, out_axes=1)(states, z, mask)
        gap = gap.mean(axis=-1)  # over agents: [batch, time]
        weights = jnp.ones_like(gap)
        if self.value_weights:  # data to the encoder's loss, so that they do not train V
            weights = value_weights(jax.lax.stop_gradient(state.value.value(states)[..., 0]), mask)
        weighted = jnp.where(mask, weights * gap, 0.0)
        if self.vmm_reduce == "sum":
            vmm_loss = weighted.sum() / mask.shape[0]
        else:
            vmm_loss = masked_mean(weighted, mask)
        return -masked_mean(gap, mask), vmm_loss

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
        return replace(state, population=state.population.inject(state.own_team()))

    def trained_team(self, state: State) -> Int[Array, ""]:
        """The MARL team."""
        return jnp.int32(self.num_teams - 1)

    def best_team(self, state: State) -> Int[Array, ""]:
        """The elite of the latest round; the MARL team where nothing evolves."""
        return state.population.elite
