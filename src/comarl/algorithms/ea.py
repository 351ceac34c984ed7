"""EA: teams that only evolve, as RACE compares with it (the genetic algorithm of ERL, Khadka & Tumer, NeurIPS 2018).

    fitness_j = return of one episode of team j
    W_1 .. W_n  bred by fitness: elite, tournaments, crossover and mutation of whole networks          (Algorithms 1, 3)

No gradient, no replay, no other memory than the teams themselves. They are the networks that the base algorithm, MATD3
or FACMAC, would start with, so that only the way to search differs. RACE does not say how many teams its EA has; five,
as many as evolve in RACE.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from comarl.algorithms.facmac import Facmac
from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.merl import breed_networks, make_population
from comarl.replay.transitions import Nothing
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep
from comarl.validation import check_range


class State(eqx.Module):
    """What changes while teams evolve."""

    population: PyTree  # the teams' networks; leaves lead with `teams`
    elite: Int[Array, ""]  # the slot that won the latest round


@dataclass(frozen=True)
class Ea:
    """Hyperparameters of the evolutionary algorithm."""

    replay: ClassVar = Nothing()
    warmup_steps: ClassVar = 0
    updates_per_step: ClassVar = 0.0
    updates_per_episode: ClassVar = 0.0
    population_after: ClassVar = 0

    base: Matd3 | Facmac = Matd3()
    """the algorithm whose networks the teams are; it trains none of them"""
    population: int = 5
    """teams that evolve"""
    mutated_fraction: float = 0.05
    """the largest share of a matrix's weights that a mutation changes"""
    mutation_probability: float = 0.9
    """chance that a team other than the elite mutates"""
    tournament_size: int = 3
    """teams that compete for each parent's place"""

    learns_from: ClassVar = property(lambda self: self.base.learns_from)
    actions: ClassVar = property(lambda self: self.base.actions)
    parallel_envs: ClassVar = property(lambda self: getattr(self.base, "parallel_envs", 1))

    def __post_init__(self):
        check_range(self, 2, None, "population")
        check_range(self, 1, None, "tournament_size")
        check_range(self, 0, 1, "mutated_fraction", "mutation_probability")

    @property
    def num_teams(self) -> int:
        return self.population

    def init(self, spec: EnvSpec, key: Key) -> State:
        return State(make_population(self.base, spec, self.population, key), jnp.int32(0))

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> PyTree:
        return self.base.initial_memory(state, timestep, key)

    def act(
        self, state: State, team: Index, memory: PyTree, timestep: Timestep, clock: Clock, key: Key, *, explore: bool
    ) -> tuple[PyTree, Array]:
        del clock
        policy = jax.tree.map(lambda all_: all_[team], state.population)
        return self.base.perform(policy, memory, timestep, key, explore=explore)

    def update(self, state: State, batch: Any, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """Nothing learns by gradient."""
        return state, {}

    def evolve(self, state: State, fitness: Float[Array, " teams"], clock: Clock, key: Key) -> tuple[State, Metrics]:
        """The next generation, bred by this round's returns."""
        del clock
        generation = breed_networks(self, state.population, fitness, key)
        return replace(state, population=generation.teams, elite=generation.elite), {}

    def inject(self, state: State) -> State:
        """No team comes from elsewhere."""
        return state

    def trained_team(self, state: State) -> Int[Array, ""]:
        """No team is trained; the elite stands for the algorithm."""
        return state.elite

    def best_team(self, state: State) -> Int[Array, ""]:
        """The elite of the latest round."""
        return state.elite


EA_FACMAC = Ea(Facmac())
