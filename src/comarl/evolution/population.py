"""A population of teams, and how the next generation is bred from it (RACE, Sec. 3.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from comarl.evolution import operators
from comarl.evolution.operators import Crossover, Mutation, MutationCount
from comarl.nn.mlp import Linear
from comarl.types import Index, Key, Metrics, tree_where
from comarl.validation import check_fields, check_range


@runtime_checkable
class Breeding(Protocol):
    """What a population needs to know to breed: a frozen dataclass whose operators are methods.

    A variant of a mutation or a crossover is a subclass that replaces one method.
    """

    @property
    def population(self) -> int:
        """Teams that evolve."""
        ...

    @property
    def tournament_size(self) -> int:
        """Teams that compete in each tournament."""
        ...

    def cross(self, first: PyTree, second: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        """The two offspring of two teams."""
        ...

    def mutate(self, team: PyTree, key: Key) -> PyTree:
        """A team after mutation. It is called for every team but the elite."""
        ...


@dataclass(frozen=True)
class HeadBreeding:
    """How teams of linear policies evolve (RACE, Sec. 3.3).

    A variant replaces `cross` or `mutate`:

    >>> class Shrinking(HeadBreeding):
    ...     def mutate(self, team, key):
    ...         return jax.tree.map(lambda w: 0.9 * w, team)
    >>> Shrinking(population=3).mutate(jnp.ones(2), jax.random.key(0)).tolist()
    [0.8999999761581421, 0.8999999761581421]
    """

    population: int = 5
    """teams that evolve"""
    mutated_fraction: float = 0.7
    """alpha: the share of each policy's weights that a mutation changes, tuned per task (Fig. 7)"""
    mutation_probability: float = 0.9
    """chance that a mutation happens: per agent, of each team but the elite"""
    mutation_count: MutationCount = "bernoulli"
    """alpha as a probability per weight, or as floor(alpha * features) weights per action (the
    released code)"""
    crossover: Crossover = "agent"
    """swap whole agents; "copy" them one way (the released code), or single rows of weights as ERL
    does (Fig. 6a)"""
    mutation: Mutation = "agent"
    """for each agent on its own: perturb its policy, a share of the weights of every action, or
    single weights of it as ERL does (Fig. 6b)"""
    tournament_size: int = 3
    """teams that compete for each parent's place"""
    injection: bool = True
    """whether the MARL team takes the worst team's place after each round"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 2, None, "population")
        check_range(self, 1, None, "tournament_size")
        check_range(self, 0, 1, "mutated_fraction", "mutation_probability")

    def cross(self, first: Linear, second: Linear, key: Key) -> tuple[Linear, Linear]:
        """The two offspring of two teams."""
        return operators.cross_heads(self.crossover, first, second, key)

    def mutate(self, team: Linear, key: Key) -> Linear:
        """A team after mutation, each agent on its own."""
        return operators.mutate_heads(
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
        check_fields(self)
        check_range(self, 2, None, "population")
        check_range(self, 1, None, "tournament_size")
        check_range(self, 0, 1, "mutated_fraction", "mutation_probability")

    def cross(self, first: PyTree, second: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        """The two offspring of two teams."""
        return operators.cross_networks(first, second, key)

    def mutate(self, team: PyTree, key: Key) -> PyTree:
        """A team after mutation."""
        fraction, probability = self.mutated_fraction, self.mutation_probability
        return operators.mutate_networks(team, fraction, probability, key)


class Population(eqx.Module):
    """The teams that evolve, and what became of them in the latest round.

    It may be empty, where an algorithm's evolution is off: then nothing here changes anything.

    >>> make_team = lambda key: jax.random.normal(key, (4,))
    >>> population = Population.create(make_team, 3, jax.random.key(0))
    >>> population.size, population.teams.shape
    (3, (3, 4))
    >>> injected = population.inject(jnp.zeros(4))  # all are equal yet; slot 0 is the elite's
    >>> int(injected.injected), injected.evolving_team(1).tolist()
    (1, [0.0, 0.0, 0.0, 0.0])
    """

    teams: PyTree  # leaves lead with `teams`
    fitness: Float[Array, " teams"]  # returns of the latest round
    elite: Int[Array, ""]  # the slot that won it
    injected: Int[Array, ""]  # the slot that the MARL team took at its end; -1 before the first

    @classmethod
    def create(cls, make_team: Callable[[Key], PyTree], size: int, key: Key) -> "Population":
        """A population of `size` new teams."""
        teams = jax.vmap(make_team)(jax.random.split(key, size))
        return cls(teams, jnp.zeros(size), jnp.int32(0), jnp.int32(-1))

    @property
    def size(self) -> int:
        """How many teams evolve."""
        return self.fitness.shape[0]

    def evolving_team(self, index: Index) -> PyTree:
        """Team `index` of those that evolve."""
        return operators.take_team(self.teams, index)

    def team(self, index: Index, own: PyTree) -> PyTree:
        """Team `index` of all; the one after the last that evolves is `own`, which MARL trains."""
        if not self.size:
            return own
        return tree_where(index == self.size, own, self.evolving_team(index))

    def evolve(
        self, fitness: Float[Array, " all"], breeding: Breeding, key: Key
    ) -> tuple["Population", Metrics]:
        """The next generation, bred from the returns of this round.

        `fitness` may have the MARL team's at its end, which has no part in breeding. The metrics
        say what became of the team that was injected last (RACE, Fig. 4).
        """
        if not self.size:
            return self, {}
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
        if not self.size:
            return self
        slot = operators.replacement_index(self.fitness, self.elite)
        teams = jax.tree.map(lambda all_, o: all_.at[slot].set(o), self.teams, own)
        return Population(teams, self.fitness, self.elite, slot)
