"""Worker processes: whatever happens to them, the same episodes; and none is left behind."""

import contextlib
import functools
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import psutil
import pytest

from comarl.algorithms.matd3 import Matd3
from comarl.envs.multiwalker import Multiwalker
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.runs.identity import identity
from comarl.runs.records import read
from comarl.training.events import Note, Progress
from comarl.training.run import Options, Session
from comarl.training.settings import Run
from comarl.training.summary import restarts
from comarl.types import EnvSpec, HostEnvironment, TaskDied
from comarl.workers.output import LINES
from comarl.workers.pool import TRIES, Pool, Workers
from tests.envs.frail import Drift
from tests.sessions import raw

SPEC = EnvSpec(2, 2, 4, 2, discrete=False, horizon=6)
PLAYING = np.array([True, True, False, True, True])
SEEDS = np.array([3, 5, 11, 9, 4])  # episodes of 5, 7, 6, 4, 6 steps; the horizon is 6


def pool_of(make: Callable = Drift, copies=5, **workers):
    return Pool("drift", SPEC, make, copies, Workers(**workers))


def play(pool, rounds=1):
    """All that a pool says in some rounds, and the lines about its workers."""
    told, said = [], []
    pool.on_restart = told.append
    actions = (
        np.random.default_rng(0)
        .normal(size=(SPEC.horizon, pool.num_copies, 2, 2))
        .astype(np.float32)
    )
    try:
        for _ in range(rounds):
            said.append(pool.reset(SEEDS[: pool.num_copies], PLAYING[: pool.num_copies])[:2])
            for action in actions:
                timestep, *rest = pool.step(action)
                said.append((*timestep[:2], *rest))
    finally:
        pool.close()
    return said, told


@pytest.fixture(scope="module")
def undisturbed():
    pool = pool_of(count=1)
    assert isinstance(pool, HostEnvironment)
    said, told = play(pool)
    assert not told
    return said


def assert_same(said, expected):
    for ours, theirs in zip(said, expected, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(x, y, strict=True)


def test_a_pool_says_what_its_teams_say_one_by_one(undisturbed):
    actions = np.random.default_rng(0).normal(size=(SPEC.horizon, 5, 2, 2)).astype(np.float32)
    for copy in np.flatnonzero(PLAYING):
        team = Drift()
        seen, over = team.reset(SEEDS[copy]), False
        np.testing.assert_array_equal(undisturbed[0][0][copy], seen.obs)
        for time_, (obs, state, reward, terminated, truncated) in enumerate(undisturbed[1:]):
            expected = 0.0, False, False
            if not over:
                seen, *outcome, cut = team.step(actions[time_, copy])
                expected = (*outcome, cut or (time_ == 5 and not outcome[1]))
                over = expected[1] or expected[2]
            assert (reward[copy], terminated[copy], truncated[copy]) == pytest.approx(expected)
            np.testing.assert_array_equal(obs[copy], seen.obs)
            np.testing.assert_array_equal(state[copy], seen.state)


@pytest.mark.parametrize("count", [2, 5, 9])
def test_the_number_of_workers_changes_nothing(count, undisturbed):
    assert_same(play(pool_of(count=count))[0], undisturbed)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("killed", "was killed by SIGKILL in step 3 of the episode"),
        ("exits", "ended with exit status 3 in step 3"),
        ("hangs", "gave no answer for 1 s in step 3"),
    ],
)
def test_a_worker_that_fails_is_named_and_replaced_and_nothing_else_changes(
    fault, words, undisturbed, tmp_path
):
    make = functools.partial(Drift, fault, str(tmp_path))
    said, told = play(pool_of(make, count=2, timeout=1.0), rounds=2)
    assert_same(said, [*undisturbed, *undisturbed])
    (line,) = told
    assert (
        line.startswith(("worker 1 of 2 of drift (process ", "worker 2 of 2 of drift (process "))
        and words in line
    )
    assert "replaces it and plays the" in line


def test_a_worker_that_died_between_two_episodes_is_replaced_and_plays_only_the_second(undisturbed):
    pool = pool_of(count=2)
    pool.reset(SEEDS + 1, PLAYING)
    pool.step(np.zeros((5, 2, 2), np.float32))
    workers_of(psutil.Process())[0].kill()
    said, told = play(pool)
    assert_same(said, undisturbed)
    assert len(told) == 1 and "killed by SIGKILL in a reset" in told[0]


def test_what_dies_again_and_again_ends_the_run():
    pool, told = pool_of(functools.partial(Drift, "always killed"), copies=2, count=1), []
    pool.on_restart = told.append
    pool.reset(SEEDS[:2], PLAYING[:2])
    with pytest.raises(
        TaskDied, match=rf"^worker 1 of 1 of drift was killed by SIGKILL .* {TRIES} times"
    ):
        for _ in range(3):
            pool.step(np.zeros((2, 2, 2), np.float32))
    pool.close()
    assert len(told) == TRIES - 1


def test_an_error_of_the_task_ends_the_run_at_once_with_its_place():
    pool, told = pool_of(functools.partial(Drift, "raises"), copies=2, count=1), []
    pool.on_restart = told.append
    pool.reset(SEEDS[:2], PLAYING[:2])
    with pytest.raises(TaskDied) as error:
        for _ in range(3):
            pool.step(np.zeros((2, 2, 2), np.float32))
    pool.close()
    assert re.fullmatch(
        r"worker 1 of 1 of drift, in step 3 of the episode, raised ArithmeticError: the walls\n"
        r"are gone \(.*frail.py, line \d+\)",
        str(error.value),
    )
    assert not told, "an error would come again, so no worker is started in vain"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan obs", "copy 0, step 3 of the episode: obs[1, 0] is nan; it must be finite"),
        (
            "inf reward",
            "copy 0, step 3 of the episode: the reward is inf; it must be finite as float32",
        ),
        ("short state", "copy 0, step 3 of the episode: state has shape [1]; it must have [4]"),
    ],
)
def test_an_answer_that_is_no_number_or_of_another_shape_is_named(fault, words):
    pool = pool_of(functools.partial(Drift, fault), copies=2, count=1)
    pool.reset(SEEDS[:2], PLAYING[:2])
    with pytest.raises(TaskDied, match=re.escape(words)):
        for _ in range(3):
            pool.step(np.zeros((2, 2, 2), np.float32))
    pool.close()


def test_what_a_task_prints_is_marked_and_bounded():
    pool, told = pool_of(functools.partial(Drift, "prints"), copies=2, count=1), []
    pool.on_print = told.append
    pool.reset(SEEDS[:2], PLAYING[:2])
    for _ in range(3):
        pool.step(np.zeros((2, 2, 2), np.float32))
    pool.close()
    mark = "worker 1 of 1 of drift prints"
    assert told[0] == f"{mark}: [red]line 0" and told[LINES - 1] == f"{mark}: [red]line {LINES - 1}"
    assert told[LINES:] == [f"{mark} {2 * 100 - LINES} more lines, left out."]


def test_what_a_task_prints_is_told_while_it_hangs(tmp_path):
    pool, told = (
        pool_of(functools.partial(Drift, "hangs", str(tmp_path)), 2, count=1, timeout=2.0),
        [],
    )
    begun, note = time.monotonic(), lambda line: told.append((time.monotonic() - begun, line))
    pool.on_print = pool.on_restart = note
    pool.reset(SEEDS[:2], PLAYING[:2])
    for _ in range(3):
        pool.step(np.zeros((2, 2, 2), np.float32))
    pool.close()
    (printed, line), (replaced, _) = told
    assert line == "worker 1 of 1 of drift prints: waiting for the server"
    assert printed < replaced - 1, "long before it is given up"


def test_the_last_words_of_a_worker_that_dies_are_told_before_it_is_replaced(tmp_path):
    make = functools.partial(Drift, "last words", str(tmp_path))
    pool, told = pool_of(make, copies=2, count=1), []
    pool.on_print = pool.on_restart = told.append
    pool.reset(SEEDS[:2], PLAYING[:2])
    for _ in range(3):
        pool.step(np.zeros((2, 2, 2), np.float32))
    pool.close()
    assert told[0] == "worker 1 of 1 of drift prints: no memory left"
    assert "was killed by SIGKILL" in told[1] and len(told) == 2


def test_a_team_that_cannot_be_made_in_a_worker_is_told_at_once():
    with pytest.raises(
        TaskDied, match=r"worker 1 of 1 of drift, at its start, raised TypeError: .*'nothing'"
    ):
        pool_of(functools.partial(Drift, **{"nothing": 1}), copies=1)
    assert not workers_of(psutil.Process())


def test_a_task_that_depends_on_more_than_its_seed_is_told_so(tmp_path):
    _, told = play(pool_of(functools.partial(Drift, "chance", str(tmp_path)), copies=2, count=1))
    (line,) = told  # one for each worker that was replaced: they are counted
    assert "replaces it" in line and "came out differently" in line and "`comarl check`" in line


def test_an_action_that_is_no_number_ends_the_run():
    pool = pool_of(copies=2)
    pool.reset(SEEDS[:2], PLAYING[:2])
    with pytest.raises(TaskDied, match="drift, step 1 of the episode: an action is not finite"):
        pool.step(np.full((2, 2, 2), np.nan, np.float32))
    pool.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count=0 of Workers must be 1 or more"),
        ({"timeout": 0.0}, "timeout=0 of Workers must be more"),
    ],
)
def test_impossible_workers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Workers(**settings)


def test_the_summary_counts_what_was_replaced():
    line = {"seed": 0, "env_steps": 50, "updates": 7, "marl_team": [2.0], "worker_restarts": 3}
    assert restarts([line]) == (
        "Worker processes that died and were replaced: 3; their episodes were played again."
    )


def workers_of(process):
    found = []
    for child in process.children():
        with contextlib.suppress(psutil.Error):  # it may end as we look
            found += [child] if "comarl.workers" in " ".join(child.cmdline()) else []
    return found


HANGS = """
import functools, tempfile
import numpy as np
from comarl.workers.pool import Pool, Workers
from comarl.types import EnvSpec
from tests.envs.frail import Drift
from tests.sessions import raw
make = functools.partial(Drift, "hangs", tempfile.mkdtemp(), 1)
pool = Pool("drift", EnvSpec(2, 2, 4, 2, discrete=False, horizon=6), make, 2, Workers(2))
print("ready", flush=True)
pool.reset(np.arange(2), np.ones(2, bool))
pool.step(np.zeros((2, 2, 2), np.float32))
"""


def test_no_worker_outlives_the_process_that_started_it_even_in_the_middle_of_a_step():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    workers = workers_of(psutil.Process(process.pid))
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=30)
    assert not psutil.wait_procs(workers, timeout=30)[1]


RUN = Run(
    Matd3(
        hidden=(8, 8), replay=Ring(4_000, 16), pace=StepPace(warmup_steps=60, updates_per_step=0.1)
    ),
    Multiwalker(3, horizon=60, workers=Workers(2)),
    steps=600,
    evaluate_every=300,
    evaluation_episodes=2,
    seeds=2,
)


def train(folder, run=RUN, interrupted_after=None):
    """The state of a run at its end, and what it tells; Ctrl-C may come in the round after one."""
    notes = []

    def listen(event):
        if isinstance(event, Note):
            notes.append(event.text)
        if isinstance(event, Progress) and session.log.round == interrupted_after:
            raise KeyboardInterrupt

    config = identity(run, "matd3", "multiwalker/3")
    session = Session.open(run, config, folder, Options(checkpoint_seconds=0.0), listen)
    try:
        return session.train(), notes
    except KeyboardInterrupt:
        return None, notes
    finally:
        assert not workers_of(psutil.Process()), "no worker is left"


def kill_some(stop, killed):
    """Kills workers of this process at random moments, a few in all, but gives a new one the time
    to load the task."""
    chance = random.Random(0)
    while not stop.wait(chance.uniform(0.3, 2.0)) and len(killed) < 8:
        old = [
            worker
            for worker in workers_of(psutil.Process())
            if time.time() - worker.create_time() > 3.0
        ]
        if old:
            victim = chance.choice(old)
            with contextlib.suppress(psutil.Error):
                victim.kill()
                killed.append(victim.pid)


def test_a_run_whose_workers_are_killed_at_random_and_that_is_interrupted_is_the_run_that_never_was(
    tmp_path,
):
    stop, killed = threading.Event(), []
    killer = threading.Thread(target=kill_some, args=(stop, killed))
    killer.start()
    with_one_worker = replace(RUN, task=replace(RUN.task, workers=Workers(1)))
    try:
        _, before = train(tmp_path / "killed", interrupted_after=6)
        state, after = train(tmp_path / "killed", with_one_worker)
    finally:
        stop.set()
        killer.join()
    expected, calm = train(tmp_path / "whole")
    restarts = read(tmp_path / "killed")[-1]["worker_restarts"]
    assert 0 < restarts <= len(killed), "the record counts them"
    assert any("was killed by SIGKILL" in note for note in before + after)
    assert not any("SIGKILL" in note for note in calm)
    assert any(note.startswith("Resumed after round 6") for note in after)
    ours, theirs = map(raw, (state, expected))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(x, y)
    of_chance = ("wall_time", "worker_restarts")
    lines = [
        [{k: v for k, v in line.items() if k not in of_chance} for line in read(tmp_path / name)]
        for name in ("killed", "whole")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 4
    assert all("worker_restarts" not in line for line in read(tmp_path / "whole"))
