"""What a person meets at the command line: help, suggestions, and one line for each mistake."""

import dataclasses
from pathlib import Path

import pytest

from comarl.algorithms import ALGORITHMS, TUNED, find_algorithm, tuned
from comarl.cli import UsageError, check_pair, main
from comarl.envs import TASKS, find_task
from comarl.envs.probes import PROBES
from comarl.training.load import rebuild
from comarl.training.records import to_config
from comarl.training.run import identity
from comarl.training.train import Run

HOPPER = ("train", "race-matd3", "mamujoco/Hopper-3x1")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, on one line, so that a break by the terminal's width does not matter."""
    out, err = capsys.readouterr()
    return " ".join((out + err).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "rce-matd3", "mamujoco/Hopper-3x1"), ("rce-matd3", "did you mean 'race-matd3'")),
        (("train", "matd3", "mamujoco/Hoper-3x1"), ("Hoper", "did you mean 'mamujoco/Hopper-3x1'")),
        (("train", "matd3", "mamujoco/Hopper-2x2"), ("partition", "2x2", "3x1")),
        (("train", "matd3"), ("names of an algorithm and a task",)),
        (("trane",), ("trane", "did you mean 'train'")),
        (("list", "all"), ("list takes no arguments", "all")),
        (("evaluate", "/nowhere"), ("/nowhere", "config.json")),
        (("report", "/nowhere"), ("/nowhere", "metrics.jsonl")),
        ((*HOPPER, "--task.robot", "Ant", "--task.partition", "4x2", "--dry-run"), ("--task.robot", "Hopper")),
        ((*HOPPER, "--steps", "0"), ("steps", "0", "must be 1 or more")),
        ((*HOPPER, "--seeds", "-1"), ("seeds", "-1", "1 or more")),
        ((*HOPPER, "--algorithm.replay.capacity", "10000000000", "--dry-run"), ("replay", "GiB", "would fit")),
    ],
)
def test_a_mistake_is_answered_in_one_line_that_names_it_and_what_would_be_right(arguments, words, capsys):
    assert main(arguments) in (1, 2)
    text = said(capsys)
    assert all(word in text for word in words), text
    assert "Traceback" not in text


def test_an_unknown_option_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main((*HOPPER, "--algorithm.bta", "1"))
    assert "--algorithm.beta" in said(capsys)


def test_help_shows_the_sentence_under_every_field(capsys):
    with pytest.raises(SystemExit):
        main((*HOPPER, "--help"))
    text = said(capsys).replace("│", "").replace("  ", " ")
    for field in dataclasses.fields(ALGORITHMS["race-matd3"].algorithm):
        assert f"--algorithm.{field.name.replace('_', '-')}" in text, field.name
    assert "swap whole agents" in text and "how many joints away" in text


def test_list_has_a_line_for_every_algorithm_and_task(capsys):
    assert main(("list",)) == 0
    text = said(capsys)
    assert all(name in text for name in (*ALGORITHMS, *TASKS))


def test_tuned_settings_apply_visibly_and_can_be_overridden(capsys):
    assert main((*HOPPER, "--dry-run")) == 0
    text = said(capsys)
    assert "mutated_fraction = 1.0 (the paper's setting" in text and "beta = 0.1 (the paper's setting" in text
    assert main((*HOPPER, "--dry-run", "--algorithm.beta", "0")) == 0
    assert "beta = 0.0 (overridden; the paper's is 0.1)" in said(capsys)


def test_tuned_settings_are_those_of_the_papers_table():
    rows = (Path(__file__).parents[1] / "src/comarl/report/paper_numbers.csv").read_text().splitlines()
    header, *lines = [row.split(",") for row in rows if not row.startswith("#")]
    table = {row[0]: dict(zip(header, row, strict=True)) for row in lines}
    for (algorithm, task), changes in TUNED.items():
        row = table[task.removeprefix("mamujoco/")]
        assert algorithm == "race-matd3"
        assert changes == {"mutated_fraction": float(row["alpha"]), "beta": float(row["beta"])}
    assert len(TUNED) == len(table) == 8


def test_an_algorithm_that_cannot_choose_a_tasks_actions_says_so_before_anything_is_built():
    class Discrete:
        spec = dataclasses.replace(PROBES["action"].spec, discrete=True)

    with pytest.raises(UsageError, match="matd3 chooses continuous actions and some/task has discrete ones"):
        check_pair("matd3", find_algorithm("matd3").algorithm, "some/task", Discrete())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_configuration_in_a_folder_is_the_run_it_was_written_from(name):
    algorithm, _ = tuned(name, "mamujoco/Ant-4x2")
    run = Run(algorithm, find_task("mamujoco/Ant-4x2"), seeds=3, steps=77)
    config = {**identity(run, name, "mamujoco/Ant-4x2"), "steps": 77}
    assert rebuild(config) == run
    assert to_config(rebuild(config)) == to_config(run)


def test_a_larger_budget_is_the_same_run_and_any_other_setting_is_not():
    run = Run(find_algorithm("matd3").algorithm, find_task("probe/action"))
    same = dataclasses.replace(run, steps=5)
    other = dataclasses.replace(run, algorithm=dataclasses.replace(run.algorithm, gamma=0.9))
    ours = identity(run, "matd3", "probe/action")
    assert identity(same, "matd3", "probe/action") == ours != identity(other, "matd3", "probe/action")


def test_train_evaluate_and_report_work_one_after_the_other(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--algorithm.hidden", "8", "8", "--algorithm.warmup-steps", "60", "--algorithm.replay.capacity", "2000")
    command = ("train", "matd3", "probe/action", "--steps", "150", "--evaluate-every", "50", *small)
    assert main(command) == 0
    text = said(capsys)
    assert "curve: " in text and "The run is done." in text
    (folder,) = Path("runs").iterdir()
    for name in ("config.json", "environment.json", "metrics.jsonl", "curve.png", "checkpoints"):
        assert (folder / name).exists(), name
    assert main(("evaluate", str(folder), "--episodes", "3")) == 0
    assert "3 greedy episodes" in said(capsys)
    assert main(("report", str(folder))) == 0
    for name in ("curves.png", "curves.svg", "table.md", "per_seed.csv"):
        assert (Path("report") / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("option", "value", "right"),
    [
        ("--algorithm.mutated-fraction", "1.5", "mutated_fraction=1.5 of RaceMatd3 must be between 0 and 1"),
        ("--algorithm.population", "1", "population=1 of RaceMatd3 must be 2 or more"),
        ("--algorithm.gamma", "99", "gamma=99.0 of RaceMatd3 must be between 0 and 1"),
        ("--algorithm.critic-optimiser.learning-rate", "-1", "learning_rate=-1.0 of Adam must be 0 or more"),
        ("--algorithm.replay.capacity", "100", "it must be 6006 or more"),
    ],
)
def test_an_impossible_setting_is_refused_by_its_name_and_what_would_be_right(option, value, right, capsys):
    try:
        assert main((*HOPPER, "--dry-run", option, value)) == 2
    except SystemExit as end:
        assert end.code == 2
    assert right in said(capsys).replace("│", "").replace("  ", " ")
