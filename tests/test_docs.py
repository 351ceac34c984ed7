"""The documentation keeps its promises: pages exist, fields are explained, examples run."""

import dataclasses
import inspect
import operator
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms import ALGORITHMS
from comarl.cli import main
from comarl.envs import TASKS, find_task
from comarl.envs.known import MISSING
from comarl.evolution.population import HeadBreeding, NetworkBreeding
from comarl.nn.mixers import mix
from comarl.ops.exploration import Epsilon
from comarl.ops.learner import Adam, RmsProp
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace, StepPace
from comarl.replay.transitions import Ring
from comarl.reporting.runs import read_run
from comarl.training.settings import Run

ROOT = Path(__file__).parents[1]
FAMILIES = tuple(dict.fromkeys(name.partition("/")[0] for name in TASKS))
# Families whose sizes their pages have.
TABLES = (
    "matrix/",
    "predator-prey/",
    "smax/",
    "waves/",
    "treasure/",
    "navigation/",
    "multiwalker/",
)


PAGES = {  # a preset is on the page of its algorithm
    "matd3-td3": "matd3",
    "maddpg-vm3": "maddpg",
    **dict.fromkeys(("qmix-pymarl2", "vdn", "vdn-pymarl2", "iql"), "qmix"),
    "qplex-pymarl2": "qplex",
    "fop-pymarl2": "fop",
    "qtran-pymarl2": "qtran",
    **dict.fromkeys(("cw-qmix", "cw-qmix-pymarl2", "ow-qmix", "ow-qmix-pymarl2"), "wqmix"),
    "maven-pymarl2": "maven",
    **dict.fromkeys(("msac-pymarl2", "msac-single"), "msac"),
    **dict.fromkeys(("vdac-mix", "vdac-mix-pymarl2", "vdac-sum", "maa2c"), "vdac"),
    "lica-pymarl2": "lica",
    "dop-pymarl2": "dop",
    **dict.fromkeys(("ma-ac", "ma-sac"), "vm3-ac"),
    **dict.fromkeys(("lsf-sac-fixed-temperature", "masac", "masac-double-q"), "lsf-sac"),
    "ndq-pymarl2": "ndq",
    **dict.fromkeys(("facmac-nonmonotonic", "facmac-continuous"), "facmac"),
    **dict.fromkeys(("merl-matd3", "merl-facmac"), "merl"),
    **dict.fromkeys(("ea-matd3", "ea-facmac"), "ea"),
}


def page(name):
    return (ROOT / "docs/algorithms" / f"{PAGES.get(name, name)}.md").read_text()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_a_page_with_equations_differences_metrics_and_a_command(name):
    text = page(name)
    for heading in (
        "## Equations",
        "## Hyperparameters",
        "## Differences",
        "## Metrics",
        "## Results",
    ):
        assert heading in text, heading
    assert f"comarl train {name} " in text
    header = inspect.getmodule(type(ALGORITHMS[name].algorithm)).__doc__ or ""
    assert re.search(r"\([^)]*20\d\d", header), "the file's header does not name its paper"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_field_of_an_algorithm_is_in_its_pages_table_or_explained_there(name):
    text = page(name) + page("matd3")
    algorithm = ALGORITHMS[name].algorithm
    for field in dataclasses.fields(algorithm):
        assert field.name in text or field.name.replace("_", "-") in text, field.name


@pytest.mark.parametrize(
    "owner",
    [
        *dict.fromkeys(type(e.algorithm) for e in ALGORITHMS.values()),
        Run,
        *(Ring, EpisodeRing, StepPace, EpisodePace, Epsilon),
        *(HeadBreeding, NetworkBreeding, Adam, RmsProp),
        type(find_task("probe/action")),
    ],
)
def test_every_field_has_a_sentence_under_it(owner):
    source = inspect.getsource(owner)
    for field in dataclasses.fields(owner):
        assert re.search(rf'^    {field.name}: .*\n    """\S', source, re.MULTILINE), (
            f"{owner.__name__}.{field.name}"
        )


NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?:/\d+)?")


def numbers(text: str) -> list[float]:
    """The numbers of a cell, such as 5,000 or 1/32."""
    split = (number.replace(",", "").split("/") for number in NUMBER.findall(text))
    return [float(top) / float(*below or (1,)) for top, *below in split]


def rows_of_settings(name: str):
    """The fields and the cell of each row of hyperparameters that is about an algorithm by name, or
    about its defaults."""
    section = page(name).partition("## Hyperparameters")[2].partition("\n## ")[0]
    columns = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells or cells[0] == "field":
            own = name not in PAGES
            columns = [
                i for i, x in enumerate(cells) if f"`{name}`" in x or (x == "default" and own)
            ]
        for i in columns if "---" not in line else ():
            yield re.findall(r"`([a-z][\w.]*)`", cells[0]), cells[i]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_numbers_of_a_pages_table_are_those_of_the_settings(name):
    algorithm = ALGORITHMS[name].algorithm
    for paths, cell in rows_of_settings(name):
        found = numbers(cell)
        for i, path in enumerate(paths if len(found) >= len(paths) else ()):
            try:
                value = operator.attrgetter(path)(algorithm)
            except AttributeError:
                continue  # a row of another algorithm on the same page
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert value in (found if len(paths) == 1 else found[i : i + 1]), f"{path}: {cell}"


def family_page(family: str) -> str:
    """The page of a family of tasks."""
    name = "probes" if family == "probe" else family
    return (ROOT / f"docs/tasks/{name}.md").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_task_is_on_the_page_of_its_family(family):
    text = family_page(family).replace("\\|", "|")
    for name in TASKS:
        assert name in text or not name.startswith(f"{family}/"), name
    assert f"({'probes' if family == 'probe' else family}.md)" in index("tasks")


def test_every_algorithm_is_in_the_list_of_algorithms():
    text = index("algorithms")
    for name in ALGORITHMS:
        assert f"`{name}`" in text or name.endswith("-pymarl2"), name


def index(folder: str) -> str:
    """The first page of a folder."""
    return (ROOT / f"docs/{folder}/index.md").read_text()


def test_the_number_of_algorithms_in_the_readme_is_right():
    (number,) = re.findall(r"(\d+) algorithms, one file each", (ROOT / "README.md").read_text())
    assert int(number) == len({type(entry.algorithm) for entry in ALGORITHMS.values()})


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_sizes_of_tasks_on_their_pages_are_those_of_the_tasks():
    rows = re.findall(
        r"^\| `(\S+)` \|.*?" + r"\| (\d+) " * 5 + r"\|$",
        "\n".join(map(family_page, FAMILIES)),
        re.MULTILINE,
    )
    assert {name for name, *_ in rows} == {x for x in TASKS if x.startswith(TABLES)}
    for name, *sizes in rows:
        spec = find_task(name).spec
        expected = [spec.num_agents, spec.action_size, spec.obs_size, spec.state_size, spec.horizon]
        assert [int(size) for size in sizes] == expected, name


def test_the_page_of_smax_names_every_map_that_it_lacks():
    text = family_page("smax")
    assert all(f"`{name}`" in text and unit in text for name, unit in MISSING.items())


@pytest.mark.parametrize(
    "name",
    ["matrix/qtran", "predator-prey/small", "smax/3m", "waves/2", "treasure/3", "navigation/3"],
)
def test_what_a_task_counts_is_on_the_page_of_metrics(name):
    task, text = find_task(name), (ROOT / "docs/metrics.md").read_text()
    counted = jax.eval_shape(lambda: task.metrics(task.reset(jax.random.key(0))[0]))
    family = name.partition("/")[0]
    assert all(f"| `{family}/*` | `{metric}` |" in text for metric in counted)


@pytest.mark.parametrize("replay", [Ring, EpisodeRing])
def test_every_option_of_a_replay_is_in_the_table_of_your_own_algorithm(replay):
    table = (ROOT / "docs/own-algorithm.md").read_text().partition("| option |")[2]
    column = 2 if replay is Ring else 3
    rows = [row.split("|") for row in table.partition("\n\n")[0].splitlines() if "`" in row]
    options = {row[1].strip(" `") for row in rows[1:] if row[column].strip() != "-"}
    assert options == {field.name for field in dataclasses.fields(replay)}


def test_the_examples_of_teams_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    text = (ROOT / "docs/teams.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/teams.md", "exec"), names)
    assert names["actions"].shape == (names["team"].spec.num_agents,)
    assert names["returns"].shape == (100,) and isinstance(names["action"], int)
    assert names["matrix"].shape == (2, 2)


def test_the_examples_of_your_own_task_and_algorithm_run(
    spec, make_batch, clock_at, key, tmp_path, monkeypatch, capsys
):
    pages = (ROOT / "docs/own-task.md", ROOT / "docs/own-algorithm.md")  # the second uses the first
    text = "".join(page.read_text() for page in pages)
    monkeypatch.chdir(tmp_path)  # one of them trains
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, "docs/own-*.md", "exec"), names)
    folder = Path("runs/uniform-noise")
    left = {path.name for path in folder.iterdir()}
    assert left >= {"config.json", "environment.json", "metrics.jsonl", "checkpoints"}
    (seed,) = read_run(folder).seeds
    assert seed.env_steps[-1] >= 400
    assert main(("evaluate", str(folder))) == 2  # no module holds the blocks of a page
    assert "example" in capsys.readouterr().err
    mixer = names["WeightedQmix"](first_weight=0.0).make_mixer(spec, key)
    agents, size = spec.num_agents, spec.state_size
    q_tot = mix(mixer, jnp.ones((5, agents)), jnp.ones((5, size)))
    np.testing.assert_allclose(q_tot, np.full(5, agents * np.log(2.0)), rtol=1e-5)
    batch, clock = make_batch(spec), clock_at(0)
    seen = jax.tree.map(lambda x: x[0], batch.now)
    for name in ("PlainGradients", "UniformNoise"):
        algorithm = names[name](hidden=(8, 8))
        state = algorithm.init(spec, key)
        new, metrics = jax.jit(algorithm.update)(state, batch, clock, key)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert {"critic_loss", "td_loss", "actor_loss", "q_taken_mean"} <= metrics.keys()
        for explore in (True, False):
            _, action = algorithm.act(state, 0, (), seen, clock, key, explore=explore)
            assert action.shape == (spec.num_agents, spec.action_size)


def test_the_python_of_the_readme_and_the_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages = ((ROOT / page).read_text() for page in ("README.md", "docs/quickstart.md"))
    first, second = (re.findall(r"```py\n(.*?)```", page, re.DOTALL)[0] for page in pages)
    small = re.sub(r"steps=[\d_]+", "steps=12, evaluate_every=12, evaluation_episodes=2", first)
    small = re.sub(r'"smax/3m", seeds=3', '"matrix/penalty", seeds=1', small)
    names: dict[str, Any] = {}
    exec(compile(small, "README.md", "exec"), names)
    assert names["scores"]["marl_team"].shape == (1, 32) and Path("report/curves.png").exists()
    assert names["other"].settings.algorithm.hidden == 128
    # The quickstart begins with the same call, so that nothing is trained anew
    begun = names["run"].folder
    again = re.sub(r"comarl.train\(.*\)", f"comarl.open_run({str(begun)!r})", second)
    assert again != second
    exec(compile(again, "docs/quickstart.md", "exec"), names)
    assert names["run"].records[-1]["env_steps"] >= 12


def test_nothing_is_left_to_be_filled_in():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert "<!--" not in page.read_text(), page
