"""What a session tells its user."""

import dataclasses
import importlib
import subprocess

import pytest

from comarl.algorithms import ALGORITHMS
from comarl.envs import find_task
from comarl.envs.matrix import GAMES
from comarl.training.run import Session, learning_rate_option
from comarl.training.settings import Run
from tests.sessions import session


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if not name.startswith("ea-")])
def test_the_advice_after_a_loss_that_is_no_number_names_an_option_that_exists(name):
    value = algorithm = ALGORITHMS[name].algorithm
    path, rate = learning_rate_option(algorithm, "critic_loss").split(" ")
    for part in path.removeprefix("--algorithm.").split("."):
        value = getattr(value, part.replace("-", "_"))
    assert 0 < float(rate) < value


def test_the_advice_is_about_the_optimiser_that_the_loss_has():
    facmac = ALGORITHMS["facmac"].algorithm
    assert (
        learning_rate_option(facmac, "actor_loss")
        == "--algorithm.actor-optimiser.learning-rate 8e-04"
    )
    assert (
        learning_rate_option(facmac, "critic_loss")
        == "--algorithm.critic-optimiser.learning-rate 2e-04"
    )
    vm3_ac, si_moa = (ALGORITHMS[name].algorithm for name in ("vm3-ac", "si-moa"))
    assert (
        learning_rate_option(vm3_ac, "value_loss")
        == "--algorithm.critic-optimiser.learning-rate 1e-04"
    )
    assert (
        learning_rate_option(si_moa, "model_error")
        == "--algorithm.model-optimiser.learning-rate 1e-04"
    )
    assert (
        learning_rate_option(si_moa, "actor_loss")
        == "--algorithm.base.actor-optimiser.learning-rate 1e-04"
    )


def test_a_session_of_a_run_without_names_is_refused(tmp_path):
    run = Run(ALGORITHMS["qmix"].algorithm, find_task("matrix/qtran"))
    with pytest.raises(ValueError, match="config has no algorithm_name and no task_name: make it"):
        Session.open(run, {}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pace_that_never_comes_to_an_update_is_refused_with_what_would():
    slow = dataclasses.replace(
        ALGORITHMS["qmix-pymarl2"].algorithm,
        pace=dataclasses.replace(ALGORITHMS["qmix-pymarl2"].algorithm.pace, parallel_envs=1),
    )
    with pytest.raises(
        ValueError,
        match=r"updates_per_episode 0.125: .* more than 4 episodes: set --algorithm.pace.parallel",
    ):
        Run(slow, find_task("matrix/qtran"))


def test_a_round_of_too_few_steps_for_an_update_is_refused():
    short = dataclasses.replace(
        ALGORITHMS["maddpg"].algorithm,
        pace=dataclasses.replace(ALGORITHMS["maddpg"].algorithm.pace, parallel_envs=2),
    )
    with pytest.raises(
        ValueError, match=r"updates_per_step 0.01: a round of 2 .* 25 steps .* more than 50 steps"
    ):
        Run(short, find_task("navigation/3"))
    Run(
        dataclasses.replace(short, pace=dataclasses.replace(short.pace, parallel_envs=3)),
        find_task("navigation/3"),
    )


def test_a_round_comes_to_no_more_updates_than_its_longest_episodes_allow():
    most = lambda name, task: Run(ALGORITHMS[name].algorithm, find_task(task)).most_updates
    assert most("vm3-ac", "waves/4") == 25
    assert most("race-matd3", "waves/4") == 6 * 100
    assert most("qmix-pymarl2", "matrix/qtran") == most("ea-matd3", "waves/4") == 1


def test_a_run_records_the_repository_of_the_users_own_task(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "my_game.py").write_text(
        "from comarl.envs.matrix import MatrixGame\nclass MyGame(MatrixGame): pass\n"
    )
    for command in (("init",), ("add", "."), ("commit", "-m", "first")):
        subprocess.run([*git, *command], check=True, capture_output=True)
    monkeypatch.syspath_prepend(tmp_path)
    game = importlib.import_module("my_game").MyGame(**vars(GAMES["qtran"]))
    run = Run(ALGORITHMS["qmix"].algorithm, game)
    about = session(run, tmp_path / "run").about()
    assert [*about["code"]] == ["comarl", "task my_game"]
    (repository,) = about["repositories"]
    assert repository["holds"] == ["task my_game"] and len(repository["revision"]) == 40
