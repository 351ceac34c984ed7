"""MERL: multiagent evolutionary reinforcement learning (Majumdar et al., ICML 2020), as RACE compares with it.

A population of teams evolves beside one team that learns by gradient, and all play into one replay. Every team is a
network of its own: nothing is shared but experience. That is RACE without its shared encoders, and so without the
critic of many teams and without value-aware mutual information.

    fitness_j = return of one episode of team j
    W_1 .. W_n  bred by fitness: elite, tournaments, crossover and mutation of whole networks             (Algorithm 1)
    W_marl      learns from all teams' experience by the base algorithm, and takes the worst team's place

In its own paper the teams evolve for the team's reward while gradients climb each agent's own. Here, as in RACE's
comparison, tasks have no reward but the team's, and both serve that. The base is MATD3 or FACMAC, with its settings.

Neither RACE's authors nor the paper give MERL's settings for these bases. The scheme of selection is RACE's, so that
the two differ in what they share and in their operators alone; the operators are ERL's (Khadka & Tumer, NeurIPS 2018),
with the probabilities of MERL's code (0.9; a twentieth of the weights).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from comarl.algorithms.facmac import Facmac
from comarl.algorithms.matd3 import Matd3
from comarl.evolution import operators as evolution
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, tree_where
from comarl.validation import check_range


class State(eqx.Module):
    """What changes while MERL learns."""

    base: PyTree  # of the algorithm that trains one team
    population: PyTree  # the other teams' networks; leaves lead with `teams`
    fitness: Float[Array, " teams"]  # returns of the latest round
    elite: Int[Array, ""]  # the slot that won it
    injected: Int[Array, ""]  # the slot that the trained team took at the end of the last round; -1 before


@dataclass(frozen=True)
class Merl:
    """Hyperparameters of MERL."""

    base: Matd3 | Facmac = Matd3()
    """the algorithm that trains one team, and all of its settings"""
    population: int = 5
    """teams that evolve"""
    population_after: int = 0
    """environment steps, the base's warm-up included, that the trained team plays and learns alone at first"""
    mutated_fraction: float = 0.05
    """the largest share of a matrix's weights that a mutation changes"""
    mutation_probability: float = 0.9
    """chance that a team other than the elite mutates"""
    tournament_size: int = 3
    """teams that compete for each parent's place"""

    def __post_init__(self):
        check_range(self, 2, None, "population")
        check_range(self, 1, None, "tournament_size")
        check_range(self, 0, None, "population_after")
        check_range(self, 0, 1, "mutated_fraction", "mutation_probability")

    # What the loop asks of any algorithm is as the base has it.
    learns_from: ClassVar = property(lambda self: self.base.learns_from)
    actions: ClassVar = property(lambda self: self.base.actions)
    replay: ClassVar = property(lambda self: self.base.replay)
    warmup_steps: ClassVar = property(lambda self: getattr(self.base, "warmup_steps", 0))
    updates_per_step: ClassVar = property(lambda self: self.base.updates_per_step)
    parallel_envs: ClassVar = property(lambda self: getattr(self.base, "parallel_envs", 1))
    updates_per_episode: ClassVar = property(lambda self: self.base.updates_per_episode)

    @property
    def num_teams(self) -> int:
        return self.population + 1

    def init(self, spec: EnvSpec, key: Key) -> State:
        base_key, population_key = jax.random.split(key)
        return State(
            base=self.base.init(spec, base_key),
            population=make_population(self.base, spec, self.population, population_key),
            fitness=jnp.zeros(self.population),
            elite=jnp.int32(0),
            injected=jnp.int32(-1),
        )

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> PyTree:
        return self.base.initial_memory(state.base, timestep, key)

    def act(
        self, state: State, team: Index, memory: PyTree, timestep: Timestep, clock: Clock, key: Key, *, explore: bool
    ) -> tuple[PyTree, Array]:
        """The trained team as its algorithm has it; the others as they are."""
        policy = jax.tree.map(lambda all_: all_[team], state.population)
        evolved = self.base.perform(policy, memory, timestep, key, explore=explore)
        trained = self.base.act(state.base, team, memory, timestep, clock, key, explore=explore)
        return tree_where(jnp.asarray(team == self.population), trained, evolved)

    def update(self, state: State, batch: Any, clock: Clock, key: Key) -> tuple[State, Metrics]:
        base, metrics = self.base.update(state.base, batch, clock, key)
        return replace(state, base=base), metrics

    def evolve(self, state: State, fitness: Float[Array, " teams"], clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The next generation, bred by this round's returns."""
        del clock
        generation = breed_networks(self, state.population, fitness[: self.population], key)
        state = replace(state, population=generation.teams, fitness=fitness[: self.population], elite=generation.elite)
        return state, evolution.fate(state.injected, generation)

    def inject(self, state: State) -> State:
        """The trained team takes the place of the team that was worst, by the returns that bred this generation."""
        slot, policy = evolution.worst_slot(state.fitness, state.elite), self.base.policy(state.base)
        population = jax.tree.map(lambda all_, own: all_.at[slot].set(own), state.population, policy)
        return replace(state, population=population, injected=slot)

    def trained_team(self, state: State) -> Int[Array, ""]:
        return jnp.int32(self.population)

    def best_team(self, state: State) -> Int[Array, ""]:
        """The elite of the latest round."""
        return state.elite


def make_population(base: Matd3 | Facmac, spec: EnvSpec, size: int, key: Key) -> PyTree:
    """So many teams as the base would start with; leaves lead with `teams`."""
    team: Callable[[Key], PyTree] = lambda k: base.policy(base.init(spec, k))  # type: ignore[arg-type]
    return jax.vmap(team)(jax.random.split(key, size))


def breed_networks(settings: Any, population: PyTree, fitness: Array, key: Key) -> evolution.Generation:
    """The next generation of whole networks."""
    mutate = lambda team, k: evolution.mutate_networks(
        team, settings.mutated_fraction, settings.mutation_probability, k
    )
    return evolution.breed(population, fitness, settings.tournament_size, evolution.cross_networks, mutate, key)


MERL_FACMAC = Merl(Facmac(), population_after=10_000)
