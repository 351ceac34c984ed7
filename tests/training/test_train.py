"""The loop's promises: exact counts, exact repeats, seeds that do not see each other, one
compilation."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.evolution.population import HeadBreeding
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.runs.identity import identity
from comarl.runs.records import FATES, count_of, read, read_config
from comarl.training import run as training
from comarl.training import train
from comarl.training.evaluate import evaluate
from comarl.training.run import Diverged
from comarl.training.settings import Run
from comarl.types import TaskDied
from tests import sessions
from tests.sessions import raw

from .tasks import HostWander, Wander

SMALL: dict[str, Any] = {"hidden": (8, 8), "replay": Ring(400, 8), "pace": StepPace(60)}
ALGORITHMS = {
    "matd3": Matd3(**SMALL),
    "race-matd3": RaceMatd3(
        **SMALL, breeding=HeadBreeding(population=3), embedding=4, mine_width=8, beta=0.1
    ),
}
RUNS = {
    "race-matd3": Run(
        ALGORITHMS["race-matd3"], Wander(), 3, steps=300, evaluate_every=100, evaluation_episodes=2
    ),
    "matd3, host": Run(
        ALGORITHMS["matd3"], HostWander(), 3, steps=150, evaluate_every=50, evaluation_episodes=2
    ),
}


def session(run, folder, **options):
    return sessions.session(run, folder, **{"checkpoint_seconds": 0.0, **options})


def same_bits(one, other):
    pairs = zip(jax.tree.leaves(raw(one)), jax.tree.leaves(raw(other)), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def without_time(folder):
    return [
        {name: value for name, value in line.items() if name != "wall_time"}
        for line in read(folder)
    ]


@pytest.fixture(scope="module", params=RUNS)
def finished(request, tmp_path_factory):
    """A run, its folder, and its state at the end."""
    run, folder = RUNS[request.param], tmp_path_factory.mktemp("run")
    return run, folder, session(run, folder).train()


def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    run, folder, state = finished
    assert same_bits(session(run, tmp_path).train(), state)
    assert without_time(tmp_path) == without_time(folder)


def test_a_run_in_three_stretches_is_the_run_that_never_stopped(finished, tmp_path):
    run, folder, state = finished
    for steps in (50, 110, run.steps):  # in the warm-up, in training, to the end
        last = session(dataclasses.replace(run, steps=steps), tmp_path).train()
    assert same_bits(last, state)
    ends = {line["env_steps"] for line in without_time(folder)}
    # Each stretch ends with an evaluation of its own; what both runs evaluated is equal.
    assert [
        line for line in without_time(tmp_path) if line["env_steps"] in ends and "training" in line
    ]
    for line in without_time(tmp_path):
        for other in without_time(folder):
            if (line["seed"], line["env_steps"]) == (other["seed"], other["env_steps"]):
                assert line["marl_team"] == other["marl_team"]


def test_a_seed_does_not_depend_on_its_neighbours(finished, tmp_path):
    run, _, together = finished
    alone = session(dataclasses.replace(run, seeds=1, first_seed=1), tmp_path).train()
    assert int(alone.clock.env_steps[0]) == int(together.clock.env_steps[1])
    for a, b in zip(
        jax.tree.leaves(raw(alone.agent)), jax.tree.leaves(raw(together.agent)), strict=True
    ):
        np.testing.assert_allclose(a[0], b[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("together", [True, False])
def test_seeds_of_one_device_learn_what_seeds_with_a_device_each_learn(
    finished, tmp_path, together
):
    run, _, apart = finished
    state = session(run, tmp_path, vmapped_seeds=together).train()
    assert len(apart.key.devices()) == run.seeds and len(state.key.devices()) == 1
    for a, b in zip(
        jax.tree.leaves(raw(state.agent)), jax.tree.leaves(raw(apart.agent)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_a_run_goes_on_with_its_seeds_placed_otherwise(finished, tmp_path):
    run, _, apart = finished
    session(dataclasses.replace(run, steps=110), tmp_path, vmapped_seeds=False).train()
    state = session(run, tmp_path).train()
    for a, b in zip(
        jax.tree.leaves(raw(state.agent)), jax.tree.leaves(raw(apart.agent)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_seeds_differ(finished):
    _, _, state = finished
    weights = jax.tree.leaves(state.agent.critic.value)[0]
    assert not np.allclose(weights[0], weights[1])


def test_each_seed_learns_exactly_once_from_each_step_after_the_warmup(finished):
    run, _, state = finished
    for seed in range(run.seeds):
        warmup = int(state.clock.env_steps[seed]) - int(state.clock.updates[seed])
        # The warm-up ends with the first episode that reaches its length; no episode is longer than
        # the horizon.
        assert (
            run.algorithm.pace.warmup_steps
            <= warmup
            < run.algorithm.pace.warmup_steps + run.spec.horizon
        )
    assert len(set(np.asarray(state.clock.updates).tolist())) > 1, (
        "seeds of equal length would prove nothing"
    )
    counts = jax.device_get(state.agent.critic.learner.opt_state)
    (steps,) = {leaf.tobytes() for leaf in jax.tree.leaves(counts) if leaf.dtype == np.int32}
    assert steps == np.asarray(state.clock.updates).tobytes(), (
        "the optimiser counted other updates than the clock"
    )


def test_the_warmup_plays_random_actions_of_one_team_and_learns_nothing(tmp_path):
    run = dataclasses.replace(RUNS["race-matd3"], steps=60)
    fresh = raw(train.start(run).agent)
    state = session(run, tmp_path).train()
    assert same_bits(state.agent, fresh)
    held = int(state.replay.size[0])
    assert held == int(state.clock.env_steps[0]) >= 60
    action = np.asarray(state.replay.action[0])[np.asarray(state.replay.starts[0])[:held]]
    assert np.abs(action).max() > 0.8 and abs(action.mean()) < 0.2


def test_a_seed_that_is_done_waits_unchanged_for_the_others(finished):
    run, _, state = finished
    steps = np.asarray(state.clock.env_steps)
    longest_round = run.num_teams * run.spec.horizon
    assert (steps >= run.steps).all() and (steps < run.steps + longest_round).all()


def test_a_smaller_budget_leaves_a_finished_run_and_its_settings_as_they_are(finished):
    run, folder, state = finished
    settings = read_config(folder)
    again = session(dataclasses.replace(run, steps=10), folder).train()
    assert same_bits(again, state) and read_config(folder) == settings


def test_one_compilation_serves_all_rounds(tmp_path):
    host = RUNS["matd3, host"]
    for run, steps in (
        (dataclasses.replace(RUNS["race-matd3"], evaluate_every=37), 120),
        (host, 100),
    ):
        folder = tmp_path / run.algorithm.__class__.__name__
        session(dataclasses.replace(run, steps=steps), folder).train()
        with sessions.compilations() as compiled:
            session(dataclasses.replace(run, steps=3 * steps), folder).train()
        assert not compiled


def test_evaluation_records_raw_returns_of_both_teams_apart(finished):
    run, folder, _ = finished
    lines = read(folder)
    for seed in range(run.seeds):
        steps = [line["env_steps"] for line in lines if line["seed"] == seed]
        assert steps == sorted(steps) and steps[-1] >= run.steps
        passed = [step // run.evaluate_every for step in steps]
        assert len(set(passed)) == len(passed), "evaluated twice in one interval"
    teams = {"marl_team"} | ({"best_team"} if run.num_teams > 1 else set())
    for line in lines:
        assert teams <= line.keys() and ("best_team" in line) == (run.num_teams > 1)
        assert all(len(line[team]) == run.evaluation_episodes for team in teams)
    assert "critic_loss" in lines[-1]["training"]


def test_what_became_of_the_injected_team_is_counted_where_there_is_a_population(finished):
    run, folder, _ = finished
    rates = read(folder)[-1]["training"]
    outcomes = {name: rate for name, rate in rates.items() if name in FATES}
    assert (len(outcomes) == 3) == (run.num_teams > 1)
    assert sum(outcomes.values()) == pytest.approx(float(run.num_teams > 1))
    counts = {name: rates[count_of(name)] for name in outcomes}
    rounds = sum(counts.values())
    assert counts == pytest.approx({name: rate * rounds for name, rate in outcomes.items()})
    assert all(count == int(count) for count in counts.values())


def test_a_loss_that_is_not_a_number_stops_the_run_at_its_round_and_keeps_the_checkpoint(tmp_path):
    good = dataclasses.replace(RUNS["race-matd3"], steps=60)
    session(good, tmp_path).train()
    bad = dataclasses.replace(good, task=Wander(reward_after=1e30), steps=300)
    broken = session(bad, tmp_path)
    # The same run, whose task goes wrong from here on
    broken.config = identity(good, "test", "test")
    with pytest.raises(
        Diverged, match=r"critic_loss of seed \d became (inf|nan) in round \d+.*learning rate"
    ):
        broken.train()
    resumed = session(dataclasses.replace(good, steps=150), tmp_path).train()
    assert all(
        np.isfinite(leaf).all()
        for leaf in jax.tree.leaves(raw(resumed.agent))
        if leaf.dtype == np.float32
    )


def test_a_task_that_dies_says_so_and_loses_nothing(tmp_path):
    run = RUNS["matd3, host"]
    dying = session(dataclasses.replace(run, task=HostWander(dies_at=120)), tmp_path)
    dying.config = identity(run, "test", "test")
    with pytest.raises(TaskDied, match="unstable at step 120"):
        dying.train()
    assert same_bits(session(run, tmp_path).train(), session(run, tmp_path / "whole").train())


def test_an_evaluation_that_the_task_dies_of_is_made_up_for_when_the_run_resumes(
    finished, tmp_path, monkeypatch
):
    run, folder, state = finished
    for good in (1, 0, 1):  # the second stretch dies at once, in the same evaluation
        with monkeypatch.context() as patched, pytest.raises(TaskDied, match="gone"):
            patched.setattr(training, "evaluate", dies_after(good))
            session(run, tmp_path, checkpoint_seconds=1e9).train()
    assert same_bits(session(run, tmp_path).train(), state)
    assert without_time(tmp_path) == without_time(folder)


def dies_after(good):
    """Evaluates so many times, and then no more."""
    left = iter(range(good))

    def evaluate_or_die(*given):
        if next(left, None) is None:
            raise TaskDied("the goal is gone")
        return evaluate(*given)

    return evaluate_or_die
