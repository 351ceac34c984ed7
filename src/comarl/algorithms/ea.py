"""EA: teams that only evolve, as RACE compares with it.

It is the genetic algorithm of ERL (Khadka & Tumer, NeurIPS 2018), for whole teams.

    fitness_j = return of one episode of team j
    W_1 .. W_n  bred by fitness: elite, tournaments, crossover and mutation       (Algorithms 1, 3)
                of whole networks

No gradient, no replay, no other memory than the teams themselves. They are the networks that the
base algorithm, MATD3 or FACMAC, would start with, so that only the way to search differs. RACE does
not say how many teams its EA has; five, as many as evolve in RACE.
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree

from comarl.algorithms.facmac import Facmac
from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.merl import make_population
from comarl.evolution.population import NetworkBreeding, Population
from comarl.replay.pace import EpisodePace
from comarl.replay.transitions import NoReplay
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep
from comarl.validation import check_fields


class State(eqx.Module):
    """What changes while teams evolve."""

    population: Population  # the teams' networks


@dataclass(frozen=True)
class Ea:
    """Hyperparameters of the evolutionary algorithm."""

    replay = NoReplay()
    population_after = 0

    base: Matd3 | Facmac = Matd3()
    """the algorithm whose networks the teams are; it trains none of them"""
    breeding: NetworkBreeding = NetworkBreeding()
    """how many teams evolve, and how"""

    def __post_init__(self):
        check_fields(self)

    @property
    def actions(self) -> frozenset[str]:
        """As the base has them."""
        return self.base.actions

    @property
    def pace(self) -> EpisodePace:
        """As many episodes side by side as the base plays, and no gradient step."""
        return EpisodePace(self.base.pace.parallel_envs, updates_per_episode=0.0)

    @property
    def num_teams(self) -> int:
        """The teams that evolve."""
        return self.breeding.population

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        return State(make_population(self.base, spec, self.breeding.population, key))

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> PyTree:
        """Nothing was observed yet."""
        return self.base.initial_memory(state, timestep, key)

    def act(
        self,
        state: State,
        team: Index,
        memory: PyTree,
        timestep: Timestep,
        clock: Clock,
        key: Key,
        *,
        explore: bool,
    ) -> tuple[PyTree, Array]:
        """Every team as it is."""
        del clock
        policy = state.population.evolving_team(team)
        return self.base.perform(policy, memory, timestep, key, explore=explore)

    def update(self, state: State, batch: Any, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """Nothing learns by gradient."""
        return state, {}

    def evolve(
        self, state: State, fitness: Float[Array, " teams"], clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """The next generation, bred by this round's returns."""
        del clock
        population, _ = state.population.evolve(fitness, self.breeding, key)  # nothing is injected
        return State(population), {}

    def inject(self, state: State) -> State:
        """No team comes from elsewhere."""
        return state

    def trained_team(self, state: State) -> Int[Array, ""]:
        """No team is trained; the elite stands for the algorithm."""
        return state.population.elite

    def best_team(self, state: State) -> Int[Array, ""]:
        """The elite of the latest round."""
        return state.population.elite
