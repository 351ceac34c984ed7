"""MERL: multiagent evolutionary reinforcement learning (Majumdar et al., ICML 2020), as RACE
compares with it.

A population of teams evolves beside one team that learns by gradient, and all play into one replay.
Every team is a network of its own: nothing is shared but experience. That is RACE without its
shared encoders, and so without the critic of many teams and without value-aware mutual information.

    fitness_j = return of one episode of team j
    W_1 .. W_n  bred by fitness: elite, tournaments, crossover and mutation           (Algorithm 1)
                of whole networks
    W_marl      learns from all teams' experience by the base algorithm,
                and takes the worst team's place

In its own paper the teams evolve for the team's reward while gradients maximise each agent's own.
Here, as in RACE's comparison, tasks have no reward but the team's, and both serve that. The base is
MATD3 or FACMAC, with its settings.

Neither RACE's authors nor the paper give MERL's settings for these bases. The scheme of selection
is RACE's, so that the two differ in what they share and in their operators alone; the operators are
ERL's (Khadka & Tumer, NeurIPS 2018), with the probabilities of MERL's code (0.9; a twentieth of the
weights).
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from comarl.algorithms.facmac import Facmac
from comarl.algorithms.matd3 import Matd3
from comarl.evolution.population import NetworkBreeding, Population
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Pace, Replay, Timestep, tree_where
from comarl.validation import check_fields, check_range


class State(eqx.Module):
    """What changes while MERL learns."""

    base: PyTree  # of the algorithm that trains one team
    population: Population  # the other teams' networks


@dataclass(frozen=True)
class Merl:
    """Hyperparameters of MERL."""

    base: Matd3 | Facmac = Matd3()
    """the algorithm that trains one team, and all of its settings"""
    population_after: int = 0
    """environment steps, the base's warm-up included, that the trained team plays and learns alone
    at first"""
    breeding: NetworkBreeding = NetworkBreeding()
    """how many other teams evolve, and how"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 0, None, "population_after")

    # What the loop asks of any algorithm is as the base has it.
    @property
    def actions(self) -> frozenset[str]:
        """As the base has them."""
        return self.base.actions

    @property
    def replay(self) -> Replay:
        """As the base has it."""
        return self.base.replay

    @property
    def pace(self) -> Pace:
        """As the base has it."""
        return self.base.pace

    @property
    def num_teams(self) -> int:
        """The teams that evolve, and the one that is trained."""
        return self.breeding.population + 1

    def init(self, spec: EnvSpec, key: Key) -> State:
        """New networks and optimisers for a task of these sizes."""
        base_key, population_key = jax.random.split(key)
        return State(
            base=self.base.init(spec, base_key),
            population=make_population(self.base, spec, self.breeding.population, population_key),
        )

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> PyTree:
        """Nothing was observed yet."""
        return self.base.initial_memory(state.base, timestep, key)

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
        """The trained team as its algorithm has it; the others as they are."""
        policy = state.population.evolving_team(team)
        evolving = self.base.perform(policy, memory, timestep, key, explore=explore)
        trained = self.base.act(state.base, team, memory, timestep, clock, key, explore=explore)
        return tree_where(team == self.breeding.population, trained, evolving)

    def update(self, state: State, batch: Any, clock: Clock, key: Key) -> tuple[State, Metrics]:
        """As the base has it."""
        base, metrics = self.base.update(state.base, batch, clock, key)
        return replace(state, base=base), metrics

    def evolve(
        self, state: State, fitness: Float[Array, " teams"], clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """The next generation, bred by this round's returns."""
        del clock
        population, outcome = state.population.evolve(fitness, self.breeding, key)
        return replace(state, population=population), outcome

    def inject(self, state: State) -> State:
        """The trained team takes the place of the team that was worst, by the returns that bred
        this generation."""
        return replace(state, population=state.population.inject(self.base.policy(state.base)))

    def trained_team(self, state: State) -> Int[Array, ""]:
        """The team that the base trains: the last."""
        return jnp.int32(self.breeding.population)

    def best_team(self, state: State) -> Int[Array, ""]:
        """The elite of the latest round."""
        return state.population.elite


def make_population(base: Matd3 | Facmac, spec: EnvSpec, size: int, key: Key) -> Population:
    """So many teams as the base would start with."""

    def make_team(key: Key) -> PyTree:
        state: Any = base.init(spec, key)  # the base's own
        return base.policy(state)

    return Population.create(make_team, size, key)
