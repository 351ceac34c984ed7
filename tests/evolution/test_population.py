"""The population: who plays, who is replaced, and what the next generation is bred by."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.evolution.population import (
    Breeding,
    HeadBreeding,
    NetworkBreeding,
    Population,
)
from comarl.nn.mlp import Linear
from comarl.types import Key

# Slot 1 is the elite, slot 2 the worst; the last is the MARL team's, which has no part in breeding.
FITNESS = jnp.array([3.0, 50.0, -4.0, 20.0, 7.0, 1000.0])
ELITE, WORST, TEAMS = 1, 2, 5


def make_team(key: Key) -> Linear:
    """Two agents with three features and two actions."""
    return jax.vmap(lambda k: Linear(3, 2, key=k))(jax.random.split(key, 2))


@pytest.fixture(scope="module")
def population() -> Population:
    return Population.create(make_team, TEAMS, jax.random.key(0))


@pytest.fixture(scope="module")
def own() -> Linear:
    return make_team(jax.random.key(1))


@dataclasses.dataclass(frozen=True)
class Marking(HeadBreeding):
    """A variant of the mutation in a few lines: it adds 1 to what a team's biases are."""

    def mutate(self, team: Linear, key: Key) -> Linear:
        return eqx.tree_at(lambda t: t.bias, team, team.bias + 1.0)


def test_a_new_population_has_teams_that_differ_and_no_history(population):
    assert population.size == TEAMS and population.teams.weight.shape == (TEAMS, 2, 3, 2)
    assert len(np.unique(np.asarray(population.teams.weight)[:, 0, 0, 0])) == TEAMS
    assert (int(population.elite), int(population.injected)) == (0, -1)
    np.testing.assert_array_equal(population.fitness, np.zeros(TEAMS))


def test_the_team_after_the_last_that_evolves_is_the_one_that_marl_trains(population, own, bits):
    for index in range(TEAMS):
        expected = jax.tree.map(lambda w, i=index: w[i], population.teams)
        assert bits(population.team(jnp.int32(index), own)) == bits(expected)
        assert bits(population.evolving_team(index)) == bits(expected)
    assert bits(population.team(jnp.int32(TEAMS), own)) == bits(own)


def test_evolving_notes_the_returns_and_the_elite_and_forgets_the_marl_teams_return(population):
    after, outcome = population.evolve(FITNESS, HeadBreeding(), jax.random.key(2))
    np.testing.assert_array_equal(after.fitness, FITNESS[:TEAMS])
    assert (int(after.elite), int(after.injected)) == (ELITE, -1)
    assert len(outcome) == 3 and all(np.isnan(value) for value in outcome.values())
    np.testing.assert_array_equal(after.teams.weight[ELITE], population.teams.weight[ELITE])


def test_the_trained_team_takes_the_worst_slot_and_its_fate_is_told_a_round_later(population, own):
    evolve: Callable = jax.jit(lambda p, k: p.evolve(FITNESS, HeadBreeding(), k))
    injected = evolve(population, jax.random.key(3))[0].inject(own)
    assert int(injected.injected) == WORST
    np.testing.assert_array_equal(injected.teams.weight[WORST], own.weight)
    _, outcome = evolve(injected, jax.random.key(4))
    assert sum(map(float, outcome.values())) == 1 and outcome["injected_elite"] == 0


def test_an_empty_population_leaves_the_trained_team_alone(own, bits):
    """Where evolution is off: whichever team is asked for, it is the trained one."""
    empty = Population.create(make_team, 0, jax.random.key(0))
    assert empty.size == 0 and bits(empty.team(jnp.int32(0), own)) == bits(own)
    after, outcome = empty.evolve(jnp.zeros(1), HeadBreeding(), jax.random.key(0))
    assert outcome == {} and bits(after) == bits(empty) == bits(empty.inject(own))
    assert int(empty.elite) == 0


@pytest.mark.parametrize("breeding", [HeadBreeding(), NetworkBreeding(), Marking()])
def test_what_breeds_says_all_that_a_population_asks(breeding, population):
    assert isinstance(breeding, Breeding)
    after, _ = population.evolve(FITNESS, breeding, jax.random.key(5))
    assert jax.tree.structure(after.teams) == jax.tree.structure(population.teams)


def test_a_mutation_of_ones_own_happens_to_every_team_but_the_elite(population):
    still = jax.tree.map(jnp.zeros_like, population.teams)
    fixed = dataclasses.replace(population, teams=still)
    after, _ = fixed.evolve(FITNESS, Marking(), jax.random.key(6))
    expected = np.where(np.arange(TEAMS) == ELITE, 0.0, 1.0)
    np.testing.assert_array_equal(
        after.teams.bias, np.broadcast_to(expected[:, None, None], (TEAMS, 2, 2))
    )


def test_race_takes_a_mutation_of_ones_own(spec, clock_at, key):
    race = RaceMatd3(hidden=(4,), embedding=2, mine_width=2, breeding=Marking(population=3))
    state = race.init(spec, key)
    after, _ = race.evolve(state, jnp.array([1.0, 9.0, 2.0, 0.0]), clock_at(0), key)
    weight = [np.asarray(s.population.teams.weight) for s in (state, after)]
    of_old = (weight[1][:, :, None] == np.swapaxes(weight[0], 0, 1)[None]).all((-1, -2)).any(-1)
    assert of_old.all()  # offspring are whole agents, and no weight mutated
    was, became = (np.asarray(s.population.teams.bias) for s in (state, after))
    np.testing.assert_array_equal(became[1], was[1])
    ones = became[[0, 2]][:, :, None] - np.swapaxes(was, 0, 1)[None]
    assert np.isclose(ones, 1.0).all(-1).any(-1).all()


@pytest.mark.parametrize("kind", [HeadBreeding, NetworkBreeding])
@pytest.mark.parametrize(
    "fields",
    [
        dict(population=1),
        dict(tournament_size=0),
        dict(mutated_fraction=1.1),
        dict(mutation_probability=-0.1),
    ],
)
def test_settings_out_of_range_are_refused(kind, fields):
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        kind(**fields)
