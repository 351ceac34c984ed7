"""Teams that a run keeps, and runs that begin with them."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from comarl.algorithms import find_algorithm
from comarl.cli import main
from comarl.envs import find_task
from comarl.ops.learner import networks
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.runs.checkpoint import DamagedCheckpoint, OtherConfiguration
from comarl.runs.identity import identity
from comarl.runs.kept import Keep, Kept
from comarl.runs.records import read, read_config
from comarl.training import keep as keeping
from comarl.training.keep import score
from comarl.training.load import load_run, load_trained
from comarl.training.networks import begin_with, read_networks
from comarl.training.run import Options, Session, evaluate_once
from comarl.training.settings import Run
from comarl.training.train import start
from comarl.validation import WrongSetting

from .test_train import same_bits

NAMES = ("matd3", "probe/truncated")
SMALL: dict[str, Any] = {
    "hidden": (8, 8),
    "replay": Ring(400, 8),
    "pace": StepPace(60, parallel_envs=10),
}
RUN = Run(
    dataclasses.replace(find_algorithm(NAMES[0]).algorithm, **SMALL),
    find_task(NAMES[1]),
    seeds=2,
    first_seed=3,
    steps=400,
    evaluate_every=50,
    evaluation_episodes=4,
)
KEEP = ("best", "every 120")


def session(run, folder, given=None, **options):
    run = dataclasses.replace(run, begun_from=given and given.fingerprint)
    chosen = Options(checkpoint_seconds=0.0, **options)
    return Session.open(run, identity(run, *NAMES), folder, chosen, networks=given)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A finished run that kept its best teams and one every 120 steps."""
    folder = tmp_path_factory.mktemp("kept")
    return folder, session(RUN, folder, keep=KEEP).train()


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "kept").iterdir())}


def test_the_best_and_every_so_many_steps_are_kept_for_each_seed(kept):
    folder, state = kept
    assert Kept(folder).names() == ["best", "120", "240", "360"]
    run, config, newest = load_run(folder)
    assert same_bits(newest.agent, state.agent)
    for name in ("120", "240", "360"):
        clock = load_trained(folder, run, config, name).clock
        # A seed is kept at the end of the round in which it passes the number.
        assert all(int(name) <= steps < int(name) + 120 for steps in clock.env_steps.tolist())
    for seed in (3, 4):
        lines = [line for line in read(folder) if line["seed"] == seed]
        best = max(lines, key=score)  # the first of equal ones
        taken = load_trained(folder, run, config, "best").clock
        assert taken.env_steps[seed - 3] == best["env_steps"]
        assert Kept(folder).score(seed) == score(best)


def test_the_best_team_plays_as_it_was_recorded(kept):
    folder, _ = kept
    run, config, _ = load_run(folder)
    scores = evaluate_once(run, load_trained(folder, run, config, "best"))
    for seed in (3, 4):
        best = max((line for line in read(folder) if line["seed"] == seed), key=score)
        np.testing.assert_array_equal(scores["marl_team"][seed - 3], best["marl_team"])


def test_a_run_in_stretches_keeps_what_an_undisturbed_run_keeps(kept, tmp_path):
    folder, _ = kept
    for steps in (130, 260):
        session(dataclasses.replace(RUN, steps=steps), tmp_path, keep=KEEP).train()
    # Killed after it had evaluated and kept more than its newest checkpoint knows
    shutil.copytree(folder / "kept", tmp_path / "kept", dirs_exist_ok=True)
    session(RUN, tmp_path, keep=KEEP).train()
    ours, theirs = files(tmp_path), files(folder)
    assert set(ours) >= set(theirs)
    numbered = {name for name in theirs if not name.startswith("best")}
    assert all(ours[name] == theirs[name] for name in numbered)


def test_with_other_code_nothing_later_than_the_checkpoint_stays_kept(kept, tmp_path):
    folder, _ = kept
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    Kept(tmp_path).forget_after(3, 250)
    left = {path.name for path in (tmp_path / "kept").iterdir()}
    assert {"120-seed3.npz", "360-seed4.npz"} <= left
    assert "360-seed3.npz" not in left


@pytest.mark.parametrize(
    ("words", "means"),
    [
        (("best",), Keep(best=True)),
        (("every", "500"), Keep(every=500)),
        (("best", "every 500"), Keep(True, 500)),
        (("every", "500", "best"), Keep(True, 500)),
        ((), Keep()),
    ],
)
def test_the_words_of_keep(words, means):
    assert Keep.parse(words) == means
    assert Options(keep=words).keep == words


@pytest.mark.parametrize(
    "words", [("worst",), ("every",), ("every", "0"), ("every", "-5"), ("500",), ("best", "best")]
)
def test_other_words_are_refused(words):
    with pytest.raises(WrongSetting, match="must be best, every N"):
        Options(keep=words)


def test_what_was_not_kept_is_named_with_what_was(kept):
    folder, _ = kept
    run, config, _ = load_run(folder)
    with pytest.raises(FileNotFoundError, match=r"'500'.* newest, best, 120, 240, 360"):
        load_trained(folder, run, config, "500")
    with pytest.raises(FileNotFoundError, match=r"'\.\./x'"):
        load_trained(folder, run, config, "../x")


def test_a_kept_team_of_another_seed_or_run_is_no_team_of_this_one(kept, tmp_path):
    folder, _ = kept
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    run, config, _ = load_run(tmp_path)
    places = tmp_path / "kept"
    shutil.copy(places / "best-seed4.npz", places / "best-seed3.npz")
    with pytest.raises(DamagedCheckpoint, match="is of seed 4, not of 3"):
        load_trained(tmp_path, run, config, "best")
    other = {**config, "evaluation_episodes": 7}
    with pytest.raises(OtherConfiguration, match="evaluation_episodes"):
        load_trained(tmp_path, run, other, "120")


# Runs that begin with trained networks


def test_a_run_begins_with_the_networks_alone(kept):
    folder, state = kept
    given = read_networks(folder, RUN)
    begun = session(RUN, folder / "unused", given)
    first = begun_state(begun, given)
    fresh = start(RUN)
    assert same_bits(networks(first.agent), networks(state.agent))
    assert same_bits(first._replace(agent=()), fresh._replace(agent=()))
    # All that is not networks, which are optimisers, is as in a fresh run
    blank = lambda agent: jax.tree.leaves(agent.critic.learner.opt_state)
    assert same_bits(blank(first.agent), blank(fresh.agent))
    assert not same_bits(blank(first.agent), blank(state.agent))


def begun_state(begun, given):
    assert begun.run.begun_from == given.fingerprint
    return begin_with(start(begun.run), given)


def test_a_run_that_begins_with_networks_resumes_to_the_same_bits(kept, tmp_path):
    folder, _ = kept
    given = read_networks(folder, RUN, "360")
    whole = session(RUN, tmp_path / "whole", given).train()
    for steps in (90, RUN.steps):
        last = session(dataclasses.replace(RUN, steps=steps), tmp_path / "parts", given).train()
    assert same_bits(last, whole)
    assert not same_bits(session(RUN, tmp_path / "fresh").train().agent, whole.agent)
    config = read_config(tmp_path / "whole")
    assert config["begun_from"] == given.fingerprint
    about = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert about[0]["begun_from"] == str(folder)
    # It loads like any other run
    assert load_run(tmp_path / "whole")[0].begun_from == given.fingerprint


def test_networks_are_part_of_what_a_run_is(kept, tmp_path):
    folder, _ = kept
    newest, best = read_networks(folder, RUN), read_networks(folder, RUN, "120")
    assert newest.fingerprint != best.fingerprint
    assert "begun_from" not in identity(RUN, *NAMES), "older runs keep their names"
    session(dataclasses.replace(RUN, steps=70), tmp_path, newest).train()
    for other in (best, None):
        with pytest.raises(OtherConfiguration, match="begun_from"):
            session(RUN, tmp_path, other).train()
    with pytest.raises(ValueError, match="networks with this fingerprint are not given"):
        run = dataclasses.replace(RUN, begun_from="0" * 16)
        Session.open(run, identity(run, *NAMES), tmp_path / "new").train()


def test_one_seed_serves_all_and_other_numbers_are_refused(kept, tmp_path):
    folder, _ = kept
    alone = dataclasses.replace(RUN, seeds=1, steps=70)
    session(alone, tmp_path).train()
    for values in jax.tree.leaves(read_networks(tmp_path, RUN).values):
        np.testing.assert_array_equal(values[0], values[1])
    with pytest.raises(WrongSetting, match=r"has 2 seeds, .* must have as many, not 3"):
        read_networks(folder, dataclasses.replace(RUN, seeds=3))


def test_other_shapes_are_refused_with_the_shapes(kept):
    folder, _ = kept
    wide: Any = find_algorithm(NAMES[0]).algorithm
    wide = dataclasses.replace(wide, **{**SMALL, "hidden": (8, 16)})
    with pytest.raises(WrongSetting, match=r"float32\[2,.*8\].* and of this run float32\[2,.*16"):
        read_networks(folder, dataclasses.replace(RUN, algorithm=wide))
    qmix = Run(find_algorithm("qmix").algorithm, find_task("matrix/climbing"), seeds=2)
    with pytest.raises(WrongSetting, match="is missing, and of this run"):
        read_networks(folder, qmix)


def test_the_command_line_keeps_evaluates_and_begins(kept, tmp_path, capsys, monkeypatch):
    folder, _ = kept
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(folder), "--checkpoint", "best", "--episodes", "4"]) == 0
    assert main(["evaluate", str(folder), "--checkpoint", "worst"]) == 1
    assert "newest, best, 120, 240, 360" in " ".join(capsys.readouterr().err.split())
    options = "--seeds 3 --first-seed 3 --algorithm.hidden 8 8 --algorithm.replay.capacity 400"
    assert main(["train", *NAMES, *options.split(), "--from", str(folder)]) == 2
    assert "--from: " in capsys.readouterr().err
    assert main(["train", *NAMES, "--keep", "sometimes", "--dry-run"]) == 2
    assert "--keep" in capsys.readouterr().err


def test_of_equal_evaluations_the_first_is_the_best(tmp_path, monkeypatch):
    kept, saved = Kept(tmp_path), []
    monkeypatch.setattr(keeping, "Kept", lambda folder: kept)
    monkeypatch.setattr(Kept, "save", lambda self, name, *rest: saved.append(name))
    monkeypatch.setattr(Kept, "score", lambda self, seed: 2.0)
    state = start(dataclasses.replace(RUN, seeds=1))
    arguments = (Keep(best=True), tmp_path, RUN, {}, state, np.zeros(1, int))
    for value, saves in ((2.0, 0), (1.0, 0), (2.5, 1)):
        keeping.keep_teams(*arguments, [{"seed": 3, "marl_team": [value]}])
        assert len(saved) == saves
