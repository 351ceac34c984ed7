"""The front door in Python, and the notebook that shows it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import comarl
from comarl.cli import main
from comarl.replay.episodes import EpisodeRing
from comarl.training.events import Ended, Evaluated, Note, Progress, Started
from comarl.validation import WrongSetting

EXAMPLES = Path(__file__).parents[1] / "examples"
GAME = comarl.task("matrix/penalty")
TINY = comarl.Qmix(hidden=4, mixer_width=4, hypernet=4, replay=EpisodeRing(20, 4))
BUDGET: Any = {"steps": 30, "evaluate_every": 10, "evaluation_episodes": 2, "seeds": 2}


@dataclasses.dataclass(frozen=True)
class NoCopies:
    """A task outside JAX that makes nothing."""

    spec = comarl.task("matrix/penalty").spec


class NoMetrics(NoCopies):
    """A task that counts nothing, and does not say so."""

    reset = step = comarl.MatrixGame.step


class MethodSpec(comarl.PredatorPrey):
    """A task whose sizes are no property."""

    def spec(self):  # type: ignore[override]
        """Sizes."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run from Python, and the events that it told."""
    heard, folder = [], tmp_path_factory.mktemp("api") / "run"
    run = comarl.train(
        TINY, "matrix/penalty", folder=folder, show=False, on_event=heard.append, **BUDGET
    )
    return run, heard


def test_train_returns_the_run_and_tells_its_events(run):
    trained, heard = run
    assert trained.is_done and trained.settings.algorithm is TINY
    assert [line["env_steps"] for line in trained.records] == [10, 10, 20, 20, 30, 30]
    assert trained.state.clock.env_steps.tolist() == [30, 30]
    kinds = [type(event) for event in heard]
    assert kinds[0] is Note and str(trained.folder) in heard[0].text
    assert kinds.count(Started) == kinds.count(Ended) == 1 and kinds.count(Evaluated) == 6
    assert Progress in kinds
    assert repr(trained) == (
        f"<TrainedRun of {trained.config['algorithm_name']} on matrix/penalty: 2 seeds, 30 steps "
        f"each: {trained.folder}>"
    )


def test_the_same_call_finds_the_run_done_and_the_command_line_the_same_run(run, capsys):
    trained, _ = run
    again = comarl.train(TINY, "matrix/penalty", folder=trained.folder, show=False, **BUDGET)
    assert again.records == trained.records
    options = "--algorithm.hidden 4 --algorithm.mixer-width 4 --algorithm.hypernet 4"
    options += " --algorithm.replay.capacity 20 --algorithm.replay.batch-size 4"
    options += " --seeds 2 --steps 30 --evaluate-every 10 --evaluation-episodes 2"
    command = ["train", "qmix", "matrix/penalty", *options.split()]
    assert main([*command, "--folder", str(trained.folder)]) == 0
    assert "The run is done." in capsys.readouterr().out


def test_evaluate_takes_a_run_or_its_folder(run, tmp_path):
    trained, _ = run
    scores = comarl.evaluate(trained, 3)
    assert scores["marl_team"].shape == (2, 3)
    np.testing.assert_array_equal(
        scores["marl_team"], comarl.evaluate(trained.folder, 3)["marl_team"]
    )
    comarl.evaluate(trained, 2, folder=tmp_path / "kept")
    assert (tmp_path / "kept" / "metrics.jsonl").exists()
    with pytest.raises(ValueError, match="it exists"):
        comarl.evaluate(trained, 2, folder=tmp_path / "kept")


def test_a_run_is_opened_from_its_folder(run):
    trained, _ = run
    opened = comarl.open_run(trained.folder)
    assert opened.settings == trained.settings and opened.is_done
    np.testing.assert_array_equal(opened.state.clock.updates, trained.state.clock.updates)


def test_report_draws_runs_and_folders(run, tmp_path):
    trained, _ = run
    written = comarl.report([trained, trained.folder], tmp_path / "report")
    assert {path.name for path in written} >= {"curves.png", "table.md", "per_seed.csv"}
    assert all(path.exists() for path in written)
    table = (tmp_path / "report" / "table.md").read_text()
    for number, one in enumerate((trained, trained.folder, str(trained.folder))):
        comarl.report(one, tmp_path / str(number))
        assert (tmp_path / str(number) / "table.md").read_text() == table, "two were one run"


def test_a_value_of_a_name_is_called_by_that_name(tmp_path):
    from comarl.api import plan

    planned = plan(comarl.presets.VDN, comarl.task("predator-prey/small-punished"))
    assert planned.config["algorithm_name"] == "vdn"
    assert planned.config["task_name"] == "predator-prey/small-punished"
    assert planned.settings.evaluation_episodes == 32
    tuned = plan("lsf-sac", "smax/6h_vs_8z").settings.algorithm
    assert tuned != comarl.algorithm("lsf-sac"), "a name has what the paper tuned"
    assert plan("matd3", "pettingzoo/mpe2.simple_spread_v3").settings.task.spec.discrete is False


WRONG = {
    "an algorithm by a wrong name": (("qmux", "matrix/penalty"), {}, "did you mean 'qmix'"),
    "a class": ((comarl.Qmix, "matrix/penalty"), {}, r"algorithm.*not its class: write Qmix\(\)$"),
    "a task that is none": (("qmix", 3), {}, "must be a task, such as .*, not 3$"),
    "no metrics": (("qmix", NoMetrics()), {}, r"not NoMetrics\(\), which lacks metrics$"),
    "no copies": (("qmix", NoCopies()), {}, r"not NoCopies\(\), which lacks make$"),
    "a method spec": (("qmix", MethodSpec()), {}, "spec of MethodSpec must be a property"),
    "actions it has not": (("qmix", "navigation/3"), {}, "algorithms for it are"),
    "no seeds": (("qmix", "matrix/penalty"), {"seeds": 0}, "seeds=0"),
    "words": (("qmix", "matrix/penalty"), {"keep": "often"}, "must be best, every N"),
    "a checkpoint of nothing": (("qmix", "matrix/penalty"), {"from_checkpoint": "best"}, "--from"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(what, tmp_path, monkeypatch):
    arguments, settings, words = WRONG[what]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        comarl.train(*arguments, show=False, **settings)
    assert not list(tmp_path.iterdir())


def test_check_takes_names_and_values():
    assert comarl.check("matrix/penalty", 20).episodes > 0
    assert comarl.check(comarl.Waves(), 20).mean_length > 0
    with pytest.raises(WrongSetting, match="task"):
        comarl.check(3)


def test_the_notebook_runs(tmp_path):
    """Its cells, one after the other, in a process of their own that starts in an empty folder."""
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6
    (tmp_path / "cells.py").write_text("\n\n".join(cells))
    environment = {"PYTHONPATH": f"{Path(comarl.__file__).parents[1]}:{EXAMPLES}"}
    ran = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "report" / "curves.png").exists()


def test_a_team_is_loaded_acts_and_is_given_away(run, tmp_path):
    trained, _ = run
    game = comarl.task("matrix/penalty")
    _, seen = game.reset(jax.random.key(0))
    obs, available = np.asarray(seen.obs), np.asarray(seen.available)
    team = comarl.load(trained.folder, seed=1)
    actions = team.reset().act(obs, available)
    assert comarl.load(trained, seed=1).reset().act(obs, available).tolist() == actions.tolist()
    for agent in range(2):
        assert team.agent(agent).reset().act(obs[agent], available[agent]) == actions[agent]
    path = comarl.export(trained, tmp_path / "team.safetensors", seed=1)
    assert comarl.load(path).reset().act(obs, available).tolist() == actions.tolist()
    about = json.loads(path.with_suffix(".json").read_text())
    last = [line for line in trained.records if line["seed"] == 1][-1]
    assert about["scores"] == {"return": np.mean(last["marl_team"])}
    mixed = comarl.load(trained, agents=[0, 1])
    other = comarl.load(trained, seed=0).reset().act(obs, available)
    assert mixed.reset().act(obs, available).tolist() == [other[0], actions[1]]


def test_a_run_and_a_file_can_be_watched(run, tmp_path):
    trained, _ = run
    film = comarl.watch(trained, tmp_path / "run.gif", seed=1, size=200)
    path = comarl.export(trained, tmp_path / "team.safetensors", seed=1)
    assert main(["watch", str(path), "--out", str(tmp_path / "file.gif"), "--size", "200"]) == 0
    sizes = [Path(name).stat().st_size for name in (film, tmp_path / "file.gif")]
    assert min(sizes) > 1000 and sizes[0] != sizes[1], "a file has no values to show"
    assert main(["watch", str(path), "--out", str(tmp_path / "file.gif")]) == 1, "it is there"


def test_cross_play_has_each_seeds_own_team_on_the_diagonal(run):
    trained, _ = run
    returns = comarl.cross_play(trained, 4)
    own = comarl.evaluate(trained, 4)["marl_team"].mean(axis=1)
    np.testing.assert_allclose(np.diag(returns), own)


def test_what_load_cannot_mean_is_refused(run, tmp_path):
    trained, _ = run
    with pytest.raises(ValueError, match="seed=7"):
        comarl.load(trained, seed=7)
    with pytest.raises(ValueError, match="both given"):
        comarl.load(trained, seed=0, agents=[0, 1])
    with pytest.raises(ValueError, match="one for each agent"):
        comarl.load(trained, agents=[0])
    with pytest.raises(FileNotFoundError, match="nothing: there is neither a run's folder nor"):
        comarl.load(tmp_path / "nothing")
    path = comarl.export(trained, tmp_path / "team.safetensors")
    with pytest.raises(ValueError, match="has the team of seed 0 alone, not of 1"):
        comarl.load(path, seed=1)


def test_the_commands_export_evaluate_and_cross_play(run, tmp_path, capsys, monkeypatch):
    trained, _ = run
    monkeypatch.chdir(tmp_path)
    folder = str(trained.folder)
    assert main(["export", folder, "--out", "mine.safetensors", "--seed", "1"]) == 0
    assert "mine.safetensors" in capsys.readouterr().out
    assert main(["export", folder, "--out", "mine.bin"]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert main(["evaluate", folder, "--cross-play", "--episodes", "2"]) == 0
    assert "others less own" in capsys.readouterr().out
    assert main(["evaluate", folder, "--cross-play", "--folder", "kept"]) == 2
    assert "leave out --cross-play" in capsys.readouterr().err


def test_cross_play_takes_the_settings_that_evaluate_takes(run):
    trained, _ = run
    doubled = tuple(tuple(tuple(2 * x for x in row) for row in t) for t in GAME.payoff)
    task = dataclasses.replace(GAME, payoff=doubled)
    twice, once = comarl.cross_play(trained, 4, task=task), comarl.cross_play(trained, 4)
    np.testing.assert_allclose(twice, 2 * once)


def test_a_file_has_one_team_and_other_ones_are_refused(tmp_path):
    base = comarl.Facmac(hidden=4, replay=EpisodeRing(20, 4))
    ea = dataclasses.replace(comarl.presets.EA_FACMAC, base=base)
    ea = dataclasses.replace(ea, breeding=dataclasses.replace(ea.breeding, population=2))
    run = comarl.train(
        ea, "matrix/penalty", steps=20, evaluate_every=20, folder=tmp_path / "run", show=False
    )
    path = comarl.export(run, tmp_path / "best.safetensors", which="best_team")
    assert comarl.load(path).about.which == "best_team"
    assert comarl.watch(path, tmp_path / "best.gif", size=200).exists()
    for load in (comarl.load, lambda path, **how: comarl.watch(path, tmp_path / "x.gif", **how)):
        with pytest.raises(ValueError, match="the best_team alone"):
            load(path, which="marl_team")
        with pytest.raises(ValueError, match="one team without checkpoints"):
            load(path, checkpoint="best")
