"""A population of teams, and how the next generation is bred from it (RACE, Sec. 3.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from comarl.evolution import operators
from comarl.evolution.operators import Crossover, Mutation
from comarl.nn.mlp import Linear
from comarl.types import Index, Key, Metrics
from comarl.validation import check_fields, check_range


@runtime_checkable
class Breeding(Protocol):
    """What a population needs to know to breed: a frozen dataclass whose operators are methods.

    A variant of a mutation or a crossover is a subclass that replaces one method.
    """

    @property
    def population(self) -> int: ...
    @property
    def tournament_size(self) -> int: ...

    def cross(self, one: PyTree, other: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        """The two offspring of two teams."""
        ...

    def mutate(self, team: PyTree, key: Key) -> PyTree:
        """A team after mutation."""
        ...


@dataclass(frozen=True)
class HeadBreeding:
    """How teams of linear policies evolve (RACE, Sec. 3.3)."""

    population: int = 5
    """teams that evolve"""
    mutated_fraction: float = 0.7
    """alpha: the share of each policy's weights that a mutation changes, tuned per task (Fig. 7)"""
    mutation_probability: float = 0.9
    """chance that a mutation happens: per agent, of each team but the elite"""
    mutation_count: Literal["bernoulli", "floor"] = "bernoulli"
    """alpha as a probability per weight, or as floor(alpha * features) weights per action (the
    released code)"""
    crossover: Crossover = "agent"
    """swap whole agents; "copy" them one way (the released code), or single rows of weights as ERL
    does (Fig. 6a)"""
    mutation: Mutation = "agent"
    """perturb one agent's policy, or single weights of the whole team as ERL does (Fig. 6b)"""
    tournament_size: int = 3
    """teams that compete for each parent's place"""
    injection: bool = True
    """whether the MARL team takes the worst team's place after each round"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 2, None, "population")
        check_range(self, 1, None, "tournament_size")
        check_range(self, 0, 1, "mutated_fraction", "mutation_probability")

    def cross(self, one: Linear, other: Linear, key: Key) -> tuple[Linear, Linear]:
        """The two offspring of two teams."""
        return operators.cross(self.crossover, one, other, key)

    def mutate(self, team: Linear, key: Key) -> Linear:
        """A team after mutation, each agent on its own."""
        return operators.mutate(
            self.mutation,
            team,
            self.mutated_fraction,
            self.mutation_count,
            self.mutation_probability,
            key,
        )


@dataclass(frozen=True)
class NetworkBreeding:
    """How teams of whole networks evolve: by the operators of ERL (Khadka & Tumer, 2018)."""

    population: int = 5
    """teams that evolve"""
    mutated_fraction: float = 0.05
    """the largest share of a matrix's weights that a mutation changes"""
    mutation_probability: float = 0.9
    """chance that a team other than the elite mutates"""
    tournament_size: int = 3
    """teams that compete for each parent's place"""

    def __post_init__(self):
        check_range(self, 2, None, "population")
        check_range(self, 1, None, "tournament_size")
        check_range(self, 0, 1, "mutated_fraction", "mutation_probability")

    def cross(self, one: PyTree, other: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        """The two offspring of two teams."""
        return operators.cross_networks(one, other, key)

    def mutate(self, team: PyTree, key: Key) -> PyTree:
        """A team after mutation."""
        return operators.mutate_networks(
            team, self.mutated_fraction, self.mutation_probability, key
        )


class Population(eqx.Module):
    """The teams that evolve, and what became of them in the latest round."""

    teams: PyTree  # leaves lead with `teams`
    fitness: Float[Array, " teams"]  # returns of the latest round
    elite: Int[Array, ""]  # the slot that won it
    injected: Int[Array, ""]  # the slot that the MARL team took at its end; -1 before

    @classmethod
    def create(cls, make_team: Callable[[Key], PyTree], size: int, key: Key) -> "Population":
        """A population of `size` new teams."""
        teams = jax.vmap(make_team)(jax.random.split(key, size))
        return cls(teams, jnp.zeros(size), jnp.int32(0), jnp.int32(-1))

    @property
    def size(self) -> int:
        """How many teams evolve."""
        return self.fitness.shape[0]

    def team(self, index: Index, own: PyTree) -> PyTree:
        """Team `index`; the one after the last that evolves is `own`, which MARL trains."""
        is_own = index == self.size
        return jax.tree.map(lambda all_, o: jnp.where(is_own, o, all_[index]), self.teams, own)

    def evolve(
        self, fitness: Float[Array, " all"], breeding: Breeding, key: Key
    ) -> tuple["Population", Metrics]:
        """The next generation, bred from the returns of this round.

        `fitness` may have the MARL team's at its end, which has no part in breeding. The metrics
        say what became of the team that was injected last (RACE, Fig. 4).
        """
        fitness = fitness[: self.size]
        generation = operators.next_generation(
            self.teams, fitness, breeding.tournament_size, breeding.cross, breeding.mutate, key
        )
        outcome = operators.injection_outcome(self.injected, generation)
        return Population(generation.teams, fitness, generation.elite, self.injected), outcome

    def inject(self, own: PyTree) -> "Population":
        """The population after `own` took the place of the team that was worst.

        The returns that bred this generation decide.
        """
        slot = operators.replacement_index(self.fitness, self.elite)
        teams = jax.tree.map(lambda all_, o: all_.at[slot].set(o), self.teams, own)
        return Population(teams, self.fitness, self.elite, slot)
