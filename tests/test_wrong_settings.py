"""Wrong values for every setting, from Python, from config.json and from the command line: each is
refused in a sentence, and before anything is built."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from comarl.algorithms import find_algorithm
from comarl.cli import main
from comarl.envs import find_task
from comarl.runs.identity import identity
from comarl.training.load import load_settings
from tests.fuzz_settings import PAIRS, config_of, write

ON_THE_COMMAND_LINE = ["nan", "inf", "-inf", "-1", "1e18", "10000000000000000000", "x", "", "[]"]


@pytest.fixture(scope="module")
def found():
    """What became of wrong values, found by a process of its own, because here jaxtyping checks
    annotations before comarl can."""
    command = [sys.executable, "-m", "tests.fuzz_settings"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_wrong_value_of_every_field_is_refused_by_its_name_in_python(found):
    assert found["tried in Python"] > 10_000
    assert found["accepted in Python"] == []
    assert found["without the name of the field"] == []


def test_a_config_with_any_wrong_value_is_refused_or_means_what_it_says(found):
    assert found["configs refused"] > 1_500
    assert found["configs that mean something else"] == []
    assert found["configs refused in many lines"] == []


def test_a_config_as_it_is_written_is_read(tmp_path):
    for algorithm, task in PAIRS:
        run, config = load_settings(write(tmp_path, config_of(algorithm, task)))
        assert identity(run, algorithm, task) == {k: v for k, v in config.items() if k != "steps"}


def options_of(algorithm, task):
    from comarl.cli import TrainSettings
    from comarl.options import options

    settings = TrainSettings(find_algorithm(algorithm).algorithm, find_task(task))
    return [name for name in options(settings) if not name.startswith(("--no-", "--dry-run"))]


def try_on_the_command_line(pairs, capsys):
    """The options and values that are accepted though no value of them can be meant."""
    accepted = []
    for algorithm, task, option, value in pairs:
        capsys.readouterr()
        status = main(("train", algorithm, task, "--dry-run", option, value))
        shown = capsys.readouterr()
        assert shown.err.count("\n") == (status != 0), shown.err
        if status == 0 and value in ("nan", "inf", "-inf", "x", "1e18", "[]"):
            accepted.append((option, value))
        assert status in (0, 1, 2), (option, value, status)
    return [pair for pair in accepted if pair[0] != "--folder"]


def command_lines():
    for algorithm, task in PAIRS:
        for option in options_of(algorithm, task):
            for value in ON_THE_COMMAND_LINE:
                yield algorithm, task, option, value


def test_wrong_values_on_the_command_line_are_refused(capsys):
    some = random.Random(1).sample(list(command_lines()), 60)
    assert try_on_the_command_line(some, capsys) == []


@pytest.mark.fuzz
def test_every_wrong_value_on_the_command_line_is_refused(capsys):
    assert try_on_the_command_line(command_lines(), capsys) == []
