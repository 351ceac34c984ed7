"""Algorithms and tasks of a user's own, without a fork: the files of examples/, from the command
line and from Python."""

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import comarl
from comarl import names
from comarl.cli import main
from comarl.runs.records import read, read_config
from comarl.validation import UnknownName, WrongSetting

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = [
    "--steps",
    "60",
    "--evaluate-every",
    "30",
    "--evaluation-episodes",
    "2",
    "--algorithm.hidden",
    "4",
    "--algorithm.replay.capacity",
    "20",
    "--algorithm.replay.batch-size",
    "4",
]
OURS = ("train", "deep_qmix:DeepQmix", "meeting:Meeting", *TINY, "--task.cells", "4")


@pytest.fixture
def at_examples(monkeypatch):
    """As if the user were in the folder of the examples, and had imported nothing of it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    modules = ("deep_qmix", "gentle_race", "meeting")
    for module in modules:
        sys.modules.pop(module, None)
    yield
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of an own algorithm on an own task, trained from the command line."""
    folder = tmp_path_factory.mktemp("own") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        assert main([*OURS, "--folder", str(folder)]) == 0
    return folder


def forget(*modules):
    for module in modules:
        sys.modules.pop(module, None)


def test_a_run_records_the_classes_by_module_and_name(trained):
    config = read_config(trained)
    assert (config["algorithm_name"], config["task_name"]) == (
        "deep_qmix:DeepQmix",
        "meeting:Meeting",
    )
    assert config["algorithm"]["kind"] == "deep_qmix:DeepQmix"
    assert (config["algorithm"]["depth"], config["task"]["cells"]) == (3, 4)
    assert read(trained)[-1]["marl_team_met"]
    stretches = json.loads((trained / "environment.json").read_text())
    assert {"comarl", "algorithm deep_qmix", "task meeting"} <= set(stretches[0]["code"])


def test_the_same_command_resumes_and_edited_code_is_noticed(trained, at_examples, capsys):
    more = [*OURS, "--folder", str(trained)]
    more[more.index("60")] = "90"
    assert main(more) == 0
    assert "Resumed after" in capsys.readouterr().out
    assert read(trained)[-1]["env_steps"] >= 90


def test_a_folder_alone_imports_nothing(trained, at_examples, capsys):
    forget("deep_qmix", "meeting")
    assert main(["evaluate", str(trained), "--episodes", "2"]) == 2
    assert "add --import deep_qmix" in " ".join(capsys.readouterr().err.split())
    assert not {"deep_qmix", "meeting"} & set(sys.modules)
    with pytest.raises(ValueError, match=r"add --import meeting, or .* imports=\['meeting'\]"):
        comarl.evaluate(trained, 2, imports=["deep_qmix"])
    assert "meeting" not in sys.modules
    command = ["evaluate", str(trained), "--episodes", "2", "--import", "deep_qmix", "meeting"]
    assert main(command) == 0
    assert comarl.open_run(trained).settings.task.cells == 4, "both are imported now"


def test_values_and_names_are_one_run(trained, at_examples, tmp_path):
    import deep_qmix  # type: ignore[import-not-found]
    import meeting  # type: ignore[import-not-found]

    from comarl.api import plan
    from comarl.replay.episodes import EpisodeRing

    algorithm = deep_qmix.DeepQmix(hidden=4, replay=EpisodeRing(20, 4))
    task = meeting.Meeting(cells=4)
    ours = plan(algorithm, task, steps=60, evaluate_every=30, evaluation_episodes=2)
    config = {name: value for name, value in read_config(trained).items() if name != "steps"}
    assert ours.config == config
    assert ours.folder.name.startswith("deep-qmix-DeepQmix-meeting-Meeting-")


def test_a_part_of_an_algorithm_may_be_ones_own(at_examples, tmp_path):
    import gentle_race  # type: ignore[import-not-found]

    from comarl.api import plan
    from comarl.training.load import rebuild

    breeding = gentle_race.GentleBreeding(population=3, std=0.5)
    team = jax.eval_shape(
        lambda: comarl.RaceMatd3().init(comarl.task("probe/action").spec, jax.random.key(0))
    ).population.teams
    team = jax.tree.map(lambda x: jnp.ones(x.shape[1:]), team)
    mutant = breeding.mutate(team, jax.random.key(0))
    assert 0.3 < float((mutant.weight - team.weight).std()) < 0.7
    np.testing.assert_array_equal(mutant.bias, team.bias)
    planned = plan(comarl.RaceMatd3(breeding=breeding), "probe/action")
    assert planned.config["algorithm"]["breeding"]["kind"] == "gentle_race:GentleBreeding"
    config = json.loads(json.dumps({**planned.config, "steps": 10}))
    again = rebuild(config)
    assert again.algorithm == planned.settings.algorithm
    forget("gentle_race")
    with pytest.raises(ValueError, match="add --import gentle_race"):
        rebuild(config)
    evil = {**config, "algorithm": {**config["algorithm"], "breeding": {"kind": "os:PathLike"}}}
    with pytest.raises(ValueError, match="kind='os:PathLike'"):
        rebuild(evil)


def test_examples_are_ten_lines_beside_their_mathematics():
    for name, cls in (("deep_qmix", "DeepQmix"), ("gentle_race", "GentleBreeding")):
        text = (EXAMPLES / f"{name}.py").read_text()
        body = text.partition(f"class {cls}(")[2].partition("\n\n\n")[0]
        assert 0 < len([line for line in body.splitlines() if line.strip()]) <= 10


BAD = {
    "nothing_here:Meeting": (UnknownName, "module 'nothing_here' does not exist"),
    "meeting:Meting": (UnknownName, "has no 'Meting'; did you mean Meeting"),
    "bad_code:A": (
        ImportError,
        r"importing bad_code failed: ZeroDivisionError.*bad_code.py, line 1",
    ),
    "bad_import:A": (ImportError, "No module named 'not_there_either'"),
    "bad_word:A": (ImportError, r"SyntaxError: invalid syntax \(bad_word.py, line 1\)$"),
    "bad_field:A": (ImportError, r"non-default argument 'b' .*bad_field.py, line 2\)$"),
    "loose:Loose": (WrongSetting, "must be a frozen dataclass"),
    "loose:needs": (WrongSetting, "must be a frozen dataclass"),
    "loose:Needs": (WrongSetting, "each of its fields needs a default"),
    "loose:Listed": (WrongSetting, "its field sizes must be hashable"),
    "loose:Strange": (WrongSetting, "its __init__ must take its fields"),
    "__main__:Gone": (UnknownName, "was defined in a script or a notebook"),
    "meeting:": (UnknownName, "must be module:Name"),
    ":Meeting": (UnknownName, "must be module:Name"),
    "../meeting:Meeting": (UnknownName, "must be module:Name"),
}


@pytest.mark.parametrize("where", BAD)
def test_what_cannot_be_meant_is_named(where, at_examples, tmp_path, monkeypatch):
    (tmp_path / "bad_code.py").write_text("1 / 0\n")
    (tmp_path / "bad_import.py").write_text("import not_there_either\n")
    (tmp_path / "bad_word.py").write_text("def (:\n")
    (tmp_path / "bad_field.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    a: int = 1\n    b: int\n"
    )
    (tmp_path / "loose.py").write_text(
        "import dataclasses\n"
        "class Loose: pass\n"
        "needs = 3\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Needs:\n    size: int\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Listed:\n    sizes: list = dataclasses.field(default_factory=list)\n"
        "class Strange(Listed):\n    def __init__(self): super().__init__(())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    error, words = BAD[where]
    with pytest.raises(error, match=words):
        comarl.task(where)
    forget("loose", "bad_code", "bad_import", "bad_word", "bad_field")


def test_a_class_inside_a_function_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Hidden(comarl.Qmix):
        pass

    with pytest.raises(WrongSetting, match="inside a function"):
        comarl.train(Hidden(), "matrix/climbing", show=False)


def test_packages_offer_names_by_entry_points(at_examples, monkeypatch):
    points = {
        "comarl.tasks": [
            importlib.metadata.EntryPoint("line/8", "meeting:Meeting", "comarl.tasks")
        ],
        "comarl.algorithms": [
            importlib.metadata.EntryPoint("deep", "deep_qmix:DeepQmix", "comarl.algorithms")
        ],
    }
    monkeypatch.setattr(names, "entry_points", lambda group: points[group])
    names.offered.cache_clear()
    try:
        assert comarl.task("line/8").cells == 8
        assert comarl.algorithm("deep").depth == 3
        with pytest.raises(UnknownName, match="did you mean 'line/8'"):
            comarl.task("line/9")
    finally:
        names.offered.cache_clear()


def test_every_named_task_has_its_summary_and_finds_its_name_again():
    from comarl.envs import TASKS, find_task, name_of_task

    for name, summary in TASKS.items():
        if name.startswith("pettingzoo/"):
            continue  # made of any name
        task = find_task(name)
        assert getattr(task, "summary", summary) == summary
        assert name_of_task(task) == name


def test_names_are_looked_up_without_loading_jax():
    script = (
        "import sys, comarl; from comarl.algorithms import find_algorithm; "
        "from comarl.envs import TASKS, find_task; import comarl.cli\n"
        "find_algorithm('qmix')\n"
        "try: find_task('smax/3n')\n"
        "except ValueError: pass\n"
        "loaded = {'jax', 'numpy', 'equinox'} & set(sys.modules)\n"
        "assert comarl.__version__ and 'Qmix' in dir(comarl)\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_what_is_public_is_there():
    for name in comarl.__all__:
        assert getattr(comarl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Qmixx'"):
        getattr(comarl, "Qmixx")  # noqa: B009
    found: Any = comarl.report
    assert callable(found), "no folder of comarl may hide the function"
