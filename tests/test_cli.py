"""What a person meets at the command line: help, suggestions, and one line for each mistake."""

import csv
import dataclasses
import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from comarl.algorithms import ALGORITHMS, find_algorithm, tuned
from comarl.algorithms.presets import TUNED
from comarl.cli import main, summarise
from comarl.envs import TASKS, find_task
from comarl.runs.identity import identity, to_config
from comarl.runs.records import read, read_config
from comarl.training.load import rebuild
from comarl.training.settings import Run
from comarl.training.summary import scores_table
from tests.report.folders import noisy_run

GAME = ("train", "qmix", "matrix/climbing")
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
        (("train", "matd3"), ("names of an algorithm and a task", "`comarl train --help`")),
        (("trane",), ("trane", "did you mean 'train'")),
        (("evaluate", "/nowhere"), ("/nowhere", "config.json")),
        (("report", "/nowhere"), ("/nowhere", "metrics.jsonl")),
        (
            (*HOPPER, "--task.robot", "Ant", "--task.partition", "4x2", "--dry-run"),
            ("--task.robot", "Hopper"),
        ),
        ((*HOPPER, "--steps", "0"), ("--steps", "steps=0", "between 1 and 2000000000")),
        ((*HOPPER, "--seeds", "-1"), ("--seeds", "seeds=-1", "between 1 and 4096")),
        (
            (*HOPPER, "--algorithm.replay.capacity", "2000000000", "--dry-run"),
            ("replay", "GiB", "would fit"),
        ),
        ((*GAME, "--algorithm.lr", "1"), ("mean --algorithm.optimiser.learning-rate?", "--help")),
        ((*GAME, "--from-checkpoint", "best"), ("--from-checkpoint", "which run?", "--from")),
        ((*GAME, "--first-seed", "4294967296"), ("--first-seed", "between 0 and 4294967295")),
        ((*GAME, "--first-seed", "-1"), ("--first-seed", "between 0 and 4294967295")),
        ((*GAME, "--first-seed", "1" + "0" * 20), ("--first-seed", "between 0 and 4294967295")),
        ((*GAME, "--seeds", "1" + "0" * 18), ("--seeds", "an int of at most 2147483647")),
        ((*GAME, "--steps", "1" + "0" * 18), ("--steps", "an int of at most 2147483647")),
        ((*GAME, "--evaluate-every", "2147483648"), ("--evaluate-every", "at most 2147483647")),
        ((*GAME, "--minutes", "nan", "--dry-run"), ("--minutes", "a finite float", "not nan")),
        ((*GAME, "--minutes", "-1"), ("--minutes", "minutes=-1.0 of Options must be 0 or more")),
        ((*GAME, "--checkpoint-seconds", "inf"), ("--checkpoint-seconds", "not inf")),
        (("train", "qmix", "pettingzoo/.."), ("module='..'", "mpe2.simple_spread_v3")),
        (("train", "qmix", "nothing/like-it"), ("'nothing/like-it' does not exist", "comarl list")),
    ],
)
def test_a_mistake_is_answered_in_one_line_that_names_it_and_what_would_be_right(
    arguments, words, capsys
):
    assert main(arguments) in (1, 2)
    text = said(capsys)
    assert all(word in text for word in words), text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("optimiser.learning-rate", "inf", "learning_rate of RmsProp must be a finite float"),
        ("optimiser.learning-rate", "-1", "learning_rate=-1.0 of RmsProp must be between 0 and"),
        ("pace.updates-per-episode", "inf", "updates_per_episode of EpisodePace must be a finite"),
        ("pace.parallel-envs", "0", "parallel_envs=0 of EpisodePace must be 1 or more"),
        ("hidden", "0", "hidden=0 of Qmix must be 1 or more"),
        ("gamma", "nan", "gamma of Qmix must be a finite float, not nan"),
    ],
)
def test_a_meaningless_setting_of_the_algorithm_is_refused_where_it_stands(
    option, value, words, capsys
):
    assert main((*GAME, f"--algorithm.{option}", value)) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"comarl: --algorithm.{option}: {words}") and text.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--algorithm.hidden", "abc"), "--algorithm.hidden: 'abc' is no whole number; `comarl"),
        (("--algorithm.hidden", "[] " * 999), "--algorithm.hidden: '[] [] "),
        (("--algorithm.gamma", "x"), "--algorithm.gamma: 'x' is no number; `comarl train qmix"),
        (("--algorithm.hidden",), "--algorithm.hidden: its value is missing; `comarl train"),
        (("--vmapped-seeds", "3"), "--vmapped-seeds: '3' is no choice; it can be '"),
        (("--seeds", "3", "4"), "4: nothing of that name or value is expected here; `comarl"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_no_value_of_an_option_is_refused_in_one_sentence(
    options, words, terminal, monkeypatch, capsys
):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert main((*GAME, *options)) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"comarl: {words}") and text.count("\n") == 1 and len(text) < 600
    assert text.endswith("`comarl train qmix matrix/climbing --help` shows all options.\n")


def test_a_name_like_no_other_is_not_answered_with_all_names(capsys):
    assert main(("train", "qmix", "nothing/like-it")) == 2
    assert len(said(capsys)) < 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--version",), "comarl "),
        (("help",), "usage: comarl COMMAND"),
        (("doctor", "--help"), "usage: comarl doctor"),
    ],
)
def test_what_people_try_first_works(arguments, words, capsys):
    assert main(arguments) == 0
    assert words in said(capsys)


@pytest.mark.parametrize(
    ("command", "option", "more"),
    [
        ("train ALGORITHM TASK", "--checkpoint-seconds", "algorithm and of the task"),
        ("evaluate RUN", "--cross-play", "algorithm and of the task"),
        ("export RUN", "--stablehlo", ""),
        ("watch RUN", "--fps", ""),
        ("check TASK", "--seed", "options of the task"),
    ],
)
def test_help_needs_no_names(command, option, more, capsys):
    with pytest.raises(SystemExit) as end:
        main(("help", command.split()[0]))
    text = said(capsys)
    assert not end.value.code and f"usage: comarl {command}" in text and option in text
    assert more in text and "--algorithm" not in text and "--task" not in text


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("matrix/climbing", ("summary", "payoff")),
        ("mamujoco/Hopper-3x1", ("robot", "partition")),
        ("probe/action", ("name", "summary")),
    ],
)
def test_what_the_name_of_a_task_says_is_no_option(task, fields, capsys):
    algorithm = "qmix" if task.startswith("matrix") else "matd3"
    with pytest.raises(SystemExit):
        main(("train", algorithm, task, "--help"))
    text = said(capsys)
    assert not any(f"--task.{field}" in text for field in fields)
    assert main(("train", algorithm, task, f"--task.{fields[0]}", "x")) == 2
    assert "give another name" in said(capsys)


def test_an_unknown_option_suggests_the_nearest(capsys):
    assert main((*HOPPER, "--algorithm.bta", "1")) == 2
    assert "--algorithm.beta" in said(capsys)


def test_help_shows_the_sentence_under_every_field(capsys):
    with pytest.raises(SystemExit):
        main((*HOPPER, "--help"))
    text = said(capsys).replace("│", "").replace("  ", " ")
    for field in dataclasses.fields(ALGORITHMS["race-matd3"].algorithm):
        assert f"--algorithm.{field.name.replace('_', '-')}" in text, field.name
    for option in ("pace.updates-per-step", "breeding.mutated-fraction", "replay.capacity"):
        assert f"--algorithm.{option}" in text, option
    assert "swap whole agents" in text and "how many joints away" in text


def test_help_is_silent_about_what_is_not_to_be_set_and_about_empty_defaults(capsys):
    for arguments in (("train", "qmix", "matrix/qtran", "--help"), ("report", "--help")):
        with pytest.raises(SystemExit):
            main(arguments)
        text = said(capsys)
        assert "--task." not in text and "(default: )" not in text


def test_counts_and_sizes_are_in_words_that_fit_them(capsys):
    for seeds, words in ((1, "1 seed,"), (2, "2 seeds,")):
        game = ("train", "vdn", "matrix/qtran", "--dry-run", "--seeds", str(seeds))
        assert main(game) == 0
        text = said(capsys)
        assert words in text and "MiB" in text and "0.0 " not in text


def test_list_has_a_line_for_every_algorithm_and_task(capsys):
    assert main(("list", "--all")) == 0
    text = said(capsys)
    assert all(name in text for name in (*ALGORITHMS, *TASKS))


def test_tuned_settings_apply_visibly_and_can_be_overridden(capsys):
    assert main((*HOPPER, "--dry-run")) == 0
    text = said(capsys)
    assert (
        "mutated_fraction = 1.0 (the paper's setting" in text
        and "beta = 0.1 (the paper's setting" in text
    )
    assert main((*HOPPER, "--dry-run", "--algorithm.beta", "0")) == 0
    assert "beta = 0.0 (overridden; the paper's is 0.1)" in said(capsys)


def test_tuned_settings_are_those_of_the_papers_table():
    expected = {}
    for name, algorithm, family in (
        ("", "race-matd3", "mamujoco"),
        ("_race_smac", "race-facmac", "smax"),
    ):
        rows = (
            (Path(__file__).parents[1] / f"src/comarl/reporting/paper_numbers{name}.csv")
            .read_text()
            .splitlines()
        )
        for row in csv.DictReader(row for row in rows if not row.startswith("#")):
            task = row["task"] if family == "mamujoco" else row["map"]
            expected[algorithm, f"{family}/{task}"] = {
                "breeding.mutated_fraction": float(row["alpha"]),
                "beta": float(row["beta"]),
            }
    expected["lsf-sac", "smax/6h_vs_8z"] = {"epsilon.steps": 500_000}  # in its released code
    assert expected == TUNED
    assert len(TUNED) == 8 + 8 + 1
    assert tuned("lsf-sac", "smax/6h_vs_8z")[0].epsilon.steps == 500_000


def test_an_algorithm_that_cannot_choose_a_tasks_actions_is_answered_with_those_that_can(capsys):
    assert main(("train", "matd3", "matrix/qtran", "--dry-run")) == 2
    told = capsys.readouterr().err
    words = (
        "Matd3 chooses continuous actions and MatrixGame has discrete ones; algorithms for it are "
    )
    assert words in told and told.count("\n") == 1
    able = told.partition(words)[2].strip().split(", ")
    assert "qmix" in able and "matd3" not in able and "race-matd3" not in able


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_configuration_in_a_folder_is_the_run_it_was_written_from(name):
    task = (
        "mamujoco/Ant-4x2" if "continuous" in find_algorithm(name).algorithm.actions else "smax/3m"
    )
    algorithm, _ = tuned(name, task)
    run = Run(algorithm, find_task(task), seeds=3, steps=77)
    config = {**identity(run, name, task), "steps": 77}
    assert rebuild(config) == run
    assert to_config(rebuild(config)) == to_config(run)


def test_a_larger_budget_is_the_same_run_and_any_other_setting_is_not():
    algorithm = find_algorithm("matd3").algorithm
    run = Run(algorithm, find_task("probe/action"))
    same = dataclasses.replace(run, steps=5)
    other = dataclasses.replace(run, algorithm=dataclasses.replace(algorithm, gamma=0.9))
    ours = identity(run, "matd3", "probe/action")
    assert (
        identity(same, "matd3", "probe/action") == ours != identity(other, "matd3", "probe/action")
    )


def test_train_evaluate_and_report_work_one_after_the_other(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = (
        "--algorithm.hidden",
        "8",
        "8",
        "--algorithm.pace.warmup-steps",
        "60",
        "--algorithm.replay.capacity",
        "2000",
    )
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


def test_a_team_is_evaluated_otherwise_than_it_was_trained_and_its_record_is_reported_beside_it(
    tmp_path, capsys
):
    small = (
        "--algorithm.hidden",
        "8",
        "8",
        "--algorithm.pace.warmup-steps",
        "20",
        "--algorithm.replay.capacity",
        "100",
    )
    wide = ("--algorithm.log-std-range", "-2", "0")
    train, shared = (
        ("train", "vm3-ac", "waves/2", "--task.horizon", "10", *small, *wide),
        tmp_path / "shared",
    )
    assert (
        main((*train, "--steps", "60", "--evaluate-every", "30", "--folder", str(tmp_path / "run")))
        == 0
    )
    evaluate = ("evaluate", str(tmp_path / "run"), "--episodes", "4")
    assert main((*evaluate, "--folder", str(tmp_path / "zero"))) == 0
    assert main((*evaluate, "--algorithm.execution-latent", "shared", "--folder", str(shared))) == 0
    capsys.readouterr()
    (zero_line,), (shared_line,) = (read(tmp_path / name) for name in ("zero", "shared"))
    assert (
        zero_line["env_steps"] == shared_line["env_steps"] == 60
        and len(zero_line["marl_team"]) == 4
    )
    assert read_config(shared)["algorithm"]["execution_latent"] == "shared"
    assert (
        main(("report", str(tmp_path / "zero"), str(shared), "--out", str(tmp_path / "out"))) == 0
    )
    assert "vm3-ac (execution_latent=shared)" in (tmp_path / "out" / "table.md").read_text()

    capsys.readouterr()
    assert main((*evaluate, "--folder", str(shared))) == 2
    assert "it exists" in said(capsys)
    wider = ("--algorithm.beta", "0.2", "--algorithm.hidden", "8", "16")
    assert main((*evaluate, *wider, "--folder", str(tmp_path / "new"))) == 2
    assert (
        "--algorithm.hidden[1] (trained with 8)" in (text := said(capsys))
        and "--algorithm.beta" in text
    )
    assert "--evaluation-episodes" not in text
    assert not (tmp_path / "new").exists()
    assert main(("evaluate",)) == 2
    assert "needs the folder of a run" in said(capsys)


@pytest.mark.filterwarnings("always")  # elsewhere in the tests a warning is an error
def test_what_a_report_warns_of_is_a_line_of_its_own(tmp_path, capsys):
    folders = [
        noisy_run(tmp_path / name, [0], rng=i, name="qmix") for i, name in enumerate(("one", "two"))
    ]
    assert main(("report", *map(str, folders), "--out", str(tmp_path / "out"))) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"comarl: {folders[1]}: seed 0 of qmix is in another folder too; counted once"]


def test_what_a_task_counts_is_in_the_summary_in_evaluate_and_in_the_report(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tiny = ("--algorithm.hidden", "4", "--task.horizon", "4", "--evaluation-episodes", "2")
    small = ("--algorithm.replay.capacity", "8", "--algorithm.replay.batch-size", "2", *tiny)
    assert (
        main(
            (
                "train",
                "iql",
                "predator-prey/small",
                "--steps",
                "12",
                "--evaluate-every",
                "6",
                *small,
            )
        )
        == 0
    )
    assert "captures" in said(capsys)
    (folder,) = Path("runs").iterdir()
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert len(line["marl_team"]) == len(line["marl_team_captures"]) == 2
    assert main(("evaluate", str(folder), "--episodes", "3")) == 0
    assert "captures" in said(capsys)
    assert main(("report", str(folder), "--metric", "captures")) == 0
    assert Path("report/curves_return.png").exists()
    assert "| captures | final return |" in Path("report/table.md").read_text()
    capsys.readouterr()
    assert main(("report", str(folder), "--metric", "won")) == 2
    assert (
        "--metric won" in (text := said(capsys))
        and "return or captures" in text
        and "Traceback" not in text
    )


SCORES = {"marl_team": [2.0, 0.5, 0.5], "best_team": [2.0, 2.0, 2.0]}
SCORES |= {"marl_team_won": [1.0, 0.0, 0.0], "best_team_won": [1.0, 1.0, 1.0]}
OF_ONE_TEAM = {key: values for key, values in SCORES.items() if key.startswith("marl_team")}


def shown(show) -> list[list[str]]:
    """The words of each line that `show(console)` prints."""
    screen = io.StringIO()
    show(Console(file=screen, width=140))
    return [
        line.replace("│", " ").replace("┃", " ").split() for line in screen.getvalue().splitlines()
    ]


@pytest.mark.parametrize("scores", [SCORES, OF_ONE_TEAM])
def test_the_summary_shows_win_rates_in_percent_and_teams_where_there_is_a_population(
    tmp_path, scores
):
    line: dict[str, Any] = {
        "seed": 4,
        "env_steps": 5000,
        "updates": 70,
        "round": 9,
        "wall_time": 1.0,
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**line, **scores, "training": {}}) + "\n")
    run = SimpleNamespace(folder=tmp_path, records=read(tmp_path), is_done=True)
    lines = shown(lambda console: summarise(run, console))
    text = " ".join(word for words in lines for word in words)
    numbers = ["4", "5,000", "70", "1.00", "33.3", "%"]
    if scores is SCORES:
        assert [*numbers, "2.00", "100", "%"] in lines and "MARL team" in text
    else:
        assert numbers in lines and "team" not in text.partition("curve")[0]
    assert "win rate" in text and "The run is done." in text


def test_evaluate_shows_win_rates_in_percent_and_teams_where_there_is_a_population():
    def table(scores):
        played = {name: np.array([values]) for name, values in scores.items()}
        return shown(lambda console: console.print(scores_table(played, first_seed=4)))

    both, one = table(SCORES), table(OF_ONE_TEAM)
    assert [words for words in both if words[:1] == ["4"]] == [
        ["4", "MARL", "team", "1.00", "0.50", "2.00", "33.3", "%"],
        ["4", "best", "team", "2.00", "2.00", "2.00", "100", "%"],
    ]
    assert ["4", "1.00", "0.50", "2.00", "33.3", "%"] in one
    assert ["3", "greedy", "episodes:", "return"] in one
    assert not any("team" in words for words in one)


@pytest.mark.parametrize(
    ("option", "value", "right"),
    [
        (
            "--algorithm.breeding.mutated-fraction",
            "1.5",
            "mutated_fraction=1.5 of HeadBreeding must be between 0 and 1",
        ),
        (
            "--algorithm.breeding.population",
            "1",
            "population=1 of HeadBreeding must be 2 or more",
        ),
        ("--algorithm.gamma", "99", "gamma=99.0 of RaceMatd3 must be between 0 and 1"),
        (
            "--algorithm.critic-optimiser.learning-rate",
            "-1",
            "learning_rate=-1.0 of Adam must be between 0 and",
        ),
        ("--algorithm.replay.capacity", "100", "it must be 6006 or more"),
    ],
)
def test_an_impossible_setting_is_refused_by_its_name_and_what_would_be_right(
    option, value, right, capsys
):
    try:
        assert main((*HOPPER, "--dry-run", option, value)) == 2
    except SystemExit as end:
        assert end.code == 2
    assert right in said(capsys).replace("│", "").replace("  ", " ")


def test_the_package_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["comarl", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("comarl", run_name="__main__")
    assert not end.value.code and said(capsys).startswith("comarl ")
