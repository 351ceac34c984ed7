"""MERL and EA: each team a network of its own, on both bases."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms import ea as ea_module
from comarl.algorithms.ea import Ea
from comarl.algorithms.facmac import Facmac
from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.merl import Merl
from comarl.algorithms.presets import EA_FACMAC, MERL_FACMAC
from comarl.envs.matrix import GAMES
from comarl.evolution.population import NetworkBreeding
from comarl.ops.learner import Adam
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace, StepPace
from comarl.replay.transitions import Ring
from comarl.runs.records import read
from comarl.training.settings import Run
from comarl.training.train import start
from comarl.types import Clock, EnvSpec, Transition
from tests.data import make_episodes
from tests.sessions import session
from tests.training.tasks import SPEC as WANDER_SPEC
from tests.training.tasks import HostWander, Stroll

DISCRETE = EnvSpec(2, 2, 2, 3, discrete=True, horizon=4)
MATD3 = Matd3(hidden=(5, 4), replay=Ring(300, 8), pace=StepPace(warmup_steps=20))
FACMAC = Facmac(
    hidden=4, mixer_width=3, hypernet=3, replay=EpisodeRing(60, 3), actor_optimiser=Adam(1e-2)
)
BASES = {"matd3": (MATD3, WANDER_SPEC), "facmac": (FACMAC, DISCRETE)}
TEAMS = 3  # that evolve
FITNESS, ELITE, WORST = (3.0, 50.0, -4.0, 1000.0), 1, 2  # the last is the trained team's
CLOCK = Clock(jnp.int32(100), jnp.int32(7), jnp.int32(0))


class Case:
    """A base, MERL and EA on it, and a state of MERL in which no target equals what it follows."""

    def __init__(self, name, make_batch, scramble):
        self.name, (self.base, self.spec) = name, BASES[name]
        self.merl, self.ea = (
            Merl(self.base, breeding=NetworkBreeding(population=TEAMS)),
            Ea(self.base, breeding=NetworkBreeding(population=TEAMS)),
        )
        self.batch = (
            make_batch(self.spec) if name == "matd3" else make_episodes(self.spec, (2, 4, 3))
        )
        state = jax.jit(lambda k: self.merl.init(self.spec, k))(jax.random.key(0))
        self.state = eqx.tree_at(
            lambda s: (s.base, s.population.teams),
            state,
            scramble((state.base, state.population.teams), 0),
        )
        first = (
            self.batch.now
            if isinstance(self.batch, Transition)
            else jax.tree.map(lambda x: x[:, 0], self.batch.timesteps)
        )
        self.timestep = jax.tree.map(lambda x: x[0], first)
        self.memory = self.base.initial_memory(self.state.base, self.timestep, jax.random.key(0))

    @functools.cached_property
    def act(self):
        """`act(state, team, key, explore)`: MERL's action."""
        one = lambda s, j, k, explore: self.merl.act(
            s, j, self.memory, self.timestep, CLOCK, k, explore=explore
        )[1]
        return jax.jit(one, static_argnums=3)

    @functools.cached_property
    def perform(self):
        one = lambda p, k, explore: self.base.perform(
            p, self.memory, self.timestep, k, explore=explore
        )[1]
        return jax.jit(one, static_argnums=2)

    @functools.cached_property
    def act_base(self):
        one = lambda s, k, explore: self.base.act(
            s, 0, self.memory, self.timestep, CLOCK, k, explore=explore
        )[1]
        return jax.jit(one, static_argnums=2)


@pytest.fixture(scope="module", params=BASES)
def case(request, make_batch, scramble) -> Case:
    return Case(request.param, make_batch, scramble)


def test_an_update_is_the_bases_bit_for_bit_and_leaves_the_population_alone(case, bits, key):
    after, metrics = jax.jit(case.merl.update)(case.state, case.batch, CLOCK, key)
    expected, base_metrics = jax.jit(case.base.update)(case.state.base, case.batch, CLOCK, key)
    assert bits(after.base) == bits(expected) != bits(case.state.base)
    assert bits(metrics) == bits(base_metrics) and metrics.keys() == base_metrics.keys()
    assert bits(dataclasses.replace(after, base=case.state.base)) == bits(case.state)


def test_each_evolving_team_acts_by_its_own_network_and_the_last_as_the_base_does(case):
    for explore in (False, True):
        for team in range(TEAMS):
            policy = case.state.population.evolving_team(team)
            for key in jax.random.split(jax.random.key(1), 4):
                found = case.act(case.state, jnp.int32(team), key, explore)
                np.testing.assert_array_equal(found, case.perform(policy, key, explore))
        for key in jax.random.split(jax.random.key(1), 4):
            found = case.act(case.state, jnp.int32(TEAMS), key, explore)
            np.testing.assert_array_equal(found, case.act_base(case.state.base, key, explore))


def test_teams_share_nothing(case, scramble):
    """Whatever becomes of one network, the other teams act as before; the base's critics have no
    say at all."""
    keys = jax.random.split(jax.random.key(2), 8)
    actions = lambda state: np.stack(
        [[case.act(state, jnp.int32(j), k, True) for k in keys] for j in range(TEAMS + 1)]
    ).reshape(TEAMS + 1, -1)
    before = actions(case.state)
    teams = case.state.population.teams
    other = scramble(teams, 5, 2.0)
    for changed in range(TEAMS):
        swap = lambda old, new, j=changed: old.at[j].set(new[j])
        swapped = jax.tree.map(swap, teams, other)
        state = eqx.tree_at(lambda s: s.population.teams, case.state, swapped)
        differs = (actions(state) != before).any(1)
        np.testing.assert_array_equal(differs, np.arange(TEAMS + 1) == changed)
    base = eqx.tree_at(
        lambda s: s.critic.learner.value, case.state.base, scramble(case.state.base.critic.value, 6)
    )
    np.testing.assert_array_equal(actions(dataclasses.replace(case.state, base=base)), before)


def test_evolving_teams_add_no_noise_of_the_bases_exploration(case):
    """On MATD3 they act as they are; on FACMAC they draw from their policies without random
    actions."""
    if case.name == "matd3":
        for key in jax.random.split(jax.random.key(3), 3):
            one, other = (
                case.act(case.state, jnp.int32(0), key, explore) for explore in (True, False)
            )
            np.testing.assert_array_equal(one, other)
    else:
        head = lambda s: (s.population.teams.head.weight, s.population.teams.head.bias)
        bias = jnp.broadcast_to(jnp.array([40.0, 0.0, 0.0]), (TEAMS, 3))
        sure = eqx.tree_at(head, case.state, (jnp.zeros((TEAMS, 4, 3)), bias))
        timestep = eqx.tree_at(lambda t: t.available, case.timestep, jnp.ones((2, 3), bool))
        one = lambda k: case.merl.act(sure, 0, case.memory, timestep, CLOCK, k, explore=True)[1]
        assert not np.asarray(
            jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 200))
        ).any()


def ranked(state, fitness, elite: int):
    population = dataclasses.replace(
        state.population, fitness=jnp.array(fitness), elite=jnp.int32(elite)
    )
    return dataclasses.replace(state, population=population)


@pytest.mark.parametrize(
    ("fitness", "elite", "slot"), [((3.0, 50.0, -4.0), 1, 2), ((5.0, 5.0, 5.0), 0, 1)]
)
def test_the_trained_network_takes_the_worst_slot_and_never_the_elites(case, fitness, elite, slot):
    after = case.merl.inject(ranked(case.state, fitness, elite))
    assert int(after.population.injected) == slot != elite
    own = case.base.policy(case.state.base)
    for new, old, mine in zip(
        *map(jax.tree.leaves, (after.population.teams, case.state.population.teams, own)),
        strict=True,
    ):
        np.testing.assert_array_equal(new[slot], mine)
        others = jnp.array([team for team in range(TEAMS) if team != slot])
        np.testing.assert_array_equal(new[others], old[others])
    key = jax.random.key(4)
    greedy = case.act(after, jnp.int32(slot), key, False)
    np.testing.assert_array_equal(greedy, case.act(after, jnp.int32(TEAMS), key, False))


def test_evolution_keeps_the_elite_bit_for_bit_and_changes_other_networks_alone(case, bits):
    evolve = lambda k: case.merl.evolve(case.state, jnp.array(FITNESS), CLOCK, k)
    after, metrics = jax.jit(jax.vmap(evolve))(jax.random.split(jax.random.key(5), 20))
    changed = []
    for new, old in zip(
        *map(jax.tree.leaves, (after.population.teams, case.state.population.teams)), strict=True
    ):
        np.testing.assert_array_equal(
            new[:, ELITE], np.broadcast_to(old[ELITE], new[:, ELITE].shape)
        )
        changed.append((np.asarray(new) != np.asarray(old)).any((0, *range(2, new.ndim))))
    np.testing.assert_array_equal(np.any(changed, axis=0), np.arange(TEAMS) != ELITE)
    assert (np.asarray(after.population.elite) == ELITE).all() and all(
        np.isnan(outcome).all() for outcome in metrics.values()
    )
    first = jax.tree.map(lambda x: x[0], after)
    np.testing.assert_array_equal(
        first.population.fitness, FITNESS[:TEAMS]
    )  # not the trained team's
    assert bits(first.base) == bits(case.state.base) and int(first.population.injected) == -1
    assert (int(case.merl.best_team(first)), int(case.merl.trained_team(first))) == (ELITE, TEAMS)


def test_teams_start_as_the_base_would_and_apart(case):
    state = jax.jit(lambda k: case.merl.init(case.spec, k))(jax.random.key(0))
    own = case.base.policy(state.base)
    assert jax.tree.structure(state.population.teams) == jax.tree.structure(own)
    for (path, teams), mine in zip(
        jax.tree.leaves_with_path(state.population.teams), jax.tree.leaves(own), strict=True
    ):
        assert teams.shape == (TEAMS, *mine.shape)
        if getattr(path[-1], "name", "") == "weight":
            assert all((teams[i] != x).all() for i in range(TEAMS) for x in (mine, *teams[i + 1 :]))


def test_pace_and_replay_are_the_bases():
    merl = Merl(MATD3)
    assert (merl.actions, merl.replay, merl.pace) == (MATD3.actions, MATD3.replay, MATD3.pace)
    assert merl.num_teams == 6
    pace = EpisodePace(parallel_envs=4, updates_per_episode=0.5)
    discrete = Merl(dataclasses.replace(FACMAC, pace=pace))
    assert (discrete.actions, discrete.replay, discrete.pace) == (
        FACMAC.actions,
        FACMAC.replay,
        pace,
    )
    assert isinstance(MERL_FACMAC.base, Facmac) and isinstance(EA_FACMAC.base, Facmac)


def test_ea_plays_as_many_episodes_as_its_base_and_keeps_and_learns_nothing():
    ea = Ea(dataclasses.replace(FACMAC, pace=EpisodePace(parallel_envs=4)))
    assert ea.pace == EpisodePace(parallel_envs=4, updates_per_episode=0.0)
    assert (ea.num_teams, ea.replay.capacity, ea.pace.warmup_steps) == (5, 0, 0)
    assert Ea(MATD3).pace.parallel_envs == 1 and Ea(MATD3).actions == MATD3.actions


# EA


def test_nothing_learns_by_gradient_in_ea_and_nobody_is_injected(case, bits, key):
    state = ea_module.State(case.state.population)
    after, metrics = case.ea.update(state, case.batch, CLOCK, key)
    assert metrics == {} and bits(after) == bits(state) == bits(case.ea.inject(state))


@pytest.mark.parametrize("case", ["facmac"], indirect=True)
def test_the_elite_of_ea_never_gets_worse_and_stands_for_the_algorithm(case):
    """By a fitness without chance: how small the parameters are."""
    state = jax.jit(lambda k: case.ea.init(case.spec, k))(jax.random.key(1))
    evolve = jax.jit(lambda s, f, k: case.ea.evolve(s, f, CLOCK, k)[0])
    fitness = lambda s: (
        -sum(jnp.square(x).reshape(TEAMS, -1).sum(1) for x in jax.tree.leaves(s.population.teams))
    )
    best = []
    for key in jax.random.split(jax.random.key(6), 12):
        scores = jnp.asarray(fitness(state))
        elite, after = int(jnp.argmax(scores)), evolve(state, scores, key)
        for new, old in zip(
            *map(jax.tree.leaves, (after.population.teams, state.population.teams)), strict=True
        ):
            assert np.asarray(new[elite]).tobytes() == np.asarray(old[elite]).tobytes()
        assert (
            int(after.population.elite)
            == elite
            == int(case.ea.best_team(after))
            == int(case.ea.trained_team(after))
        )
        state = after
        best.append(float(scores.max()))
    assert best == sorted(best) and best[-1] > best[0]


def test_a_team_of_ea_acts_by_its_network_alone(case):
    state = ea_module.State(case.state.population)
    memory = case.ea.initial_memory(state, case.timestep, jax.random.key(0))
    one = lambda j, k, explore: case.ea.act(
        state, j, memory, case.timestep, CLOCK, k, explore=explore
    )[1]
    act = jax.jit(one, static_argnums=2)
    for team in range(TEAMS):
        policy = case.state.population.evolving_team(team)
        for explore in (False, True):
            key = jax.random.key(team)
            np.testing.assert_array_equal(
                act(jnp.int32(team), key, explore), case.perform(policy, key, explore)
            )


# Whole runs


def test_the_trained_team_is_alone_at_first_and_all_seeds_wait_for_each_other(tmp_path):
    run = Run(Merl(MATD3, population_after=100), HostWander(), seeds=2, steps=1000)
    phases = session(run, tmp_path)
    for env_steps, phase, active in (
        ((0, 0), "warm-up", (True, True)),
        ((25, 19), "warm-up", (False, True)),
        ((25, 20), "alone", (True, True)),
        ((99, 100), "alone", (True, False)),
        ((104, 100), "training", (True, True)),
        ((1003, 100), "training", (False, True)),
    ):
        found, playing = phases.phase(np.array(env_steps))
        assert (found, tuple(playing.tolist())) == (phase, active)


ROUNDS = Run(
    Merl(FACMAC, breeding=NetworkBreeding(population=TEAMS), population_after=25),
    Stroll(),
    steps=25,
    evaluate_every=1000,
    evaluation_episodes=2,
)


def test_while_it_is_alone_only_the_trained_team_plays_and_learns_and_then_all_do(tmp_path, bits):
    fresh = start(ROUNDS).agent
    alone = session(ROUNDS, tmp_path).train()
    episodes = int(alone.replay.size[0])
    # One team plays: 25 steps are more than 4 of its episodes, of at most 6 steps, and the next
    # begins only if there are fewer.
    assert 25 <= int(alone.clock.env_steps[0]) < 25 + 6 and episodes > 4
    assert int(alone.clock.updates[0]) == episodes - 2  # from when the replay held a batch of 3
    assert (
        bits(alone.agent.population.teams) == bits(fresh.population.teams)
        and int(alone.agent.population.injected[0]) == -1
    )
    assert bits(alone.agent.base.actor.value) != bits(fresh.base.actor.value)
    after = session(dataclasses.replace(ROUNDS, steps=80), tmp_path).train()
    all_episodes = int(after.replay.size[0])
    assert all_episodes > episodes and (all_episodes - episodes) % (TEAMS + 1) == 0
    assert int(after.clock.updates[0]) == all_episodes - 2
    assert (
        bits(after.agent.population.teams) != bits(fresh.population.teams)
        and int(after.agent.population.injected[0]) >= 0
    )
    policy = FACMAC.policy(jax.tree.map(lambda x: x[0], after.agent.base))
    slot = int(after.agent.population.injected[0])
    for teams, own in zip(
        jax.tree.leaves(after.agent.population.teams), jax.tree.leaves(policy), strict=True
    ):
        np.testing.assert_array_equal(teams[0, slot], own)  # what joined is what had learnt


@pytest.mark.parametrize(
    ("algorithm", "task", "steps"),
    [
        (Merl(MATD3, breeding=NetworkBreeding(population=TEAMS)), HostWander(), 70),
        (Ea(FACMAC, breeding=NetworkBreeding(population=TEAMS)), GAMES["climbing"], 30),
    ],
    ids=["merl-matd3", "ea-facmac"],
)
def test_whole_runs_record_both_teams(algorithm, task, steps, tmp_path):
    run = Run(algorithm, task, steps=steps, evaluate_every=1000, evaluation_episodes=2)
    state = session(run, tmp_path).train()
    assert int(state.clock.env_steps[0]) >= steps
    (line,) = read(tmp_path)
    training = line["training"]
    if isinstance(algorithm, Ea):
        assert int(state.clock.updates[0]) == 0 and "critic_loss" not in training
        assert line["marl_team"] == line["best_team"]  # both are the elite
    else:
        assert int(state.clock.updates[0]) > 0 and np.isfinite(training["critic_loss"])
        assert "injected_elite" in training
