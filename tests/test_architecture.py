"""Imports only point down the list of folders and never in a circle, as the code itself says."""

import ast
import importlib.util
import pkgutil
import re
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import comarl

SOURCE = Path(comarl.__file__).parent

LAYERS = (
    ("__main__",),
    ("cli",),
    ("doctor", "listing"),
    ("api",),
    ("options", "terminal"),
    ("watching",),
    ("reporting", "teams"),
    ("training",),
    ("algorithms",),
    ("evolution",),
    ("play",),
    ("envs",),
    ("nn",),
    ("ops",),
    ("replay",),
    ("runs",),
    ("workers",),
    ("machine",),
    ("names",),
    ("types", "validation", "escape"),
)
"""from the top: each imports from those below it, and from itself"""

LEVEL = {folder: level for level, layer in enumerate(LAYERS) for folder in layer}


def modules() -> dict[str, Path]:
    """Every module of comarl by its name, but the package itself, which gathers what is public."""
    paths = sorted(SOURCE.rglob("*.py"))
    names = {path: path.relative_to(SOURCE).with_suffix("").parts for path in paths}
    dotted = lambda parts: ".".join(("comarl", *(part for part in parts if part != "__init__")))
    return {dotted(parts): path for path, parts in names.items() if parts != ("__init__",)}


MODULES = modules()


@cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    """The modules of comarl that a module imports anywhere, functions included, and the lines."""
    found = []
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            # `from comarl.play import rollout` imports a module, other names are parts of one
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inside]
        else:
            continue
        found += [(name, node.lineno) for name in names if name.split(".")[0] == "comarl"]
    return tuple(found)


def folder(module: str) -> str:
    """The folder of a module below comarl, or its own name if it is in none."""
    return module.split(".")[1]


def test_every_folder_has_its_place_in_the_list():
    assert {folder(module) for module in MODULES} <= set(LEVEL)


def test_the_list_is_the_one_that_contributors_read():
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"`src/comarl/(\w+)/`", page.partition("| `tests/` |")[0])
    ours = [name for layer in LAYERS for name in layer if (SOURCE / name).is_dir()]
    assert listed == ours


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_point_down_the_list(module):
    level = LEVEL[folder(module)]
    up = [
        f"line {line} imports {name}"
        for name, line in imports(module)
        if name == "comarl" or (folder(name) != folder(module) and LEVEL[folder(name)] <= level)
    ]
    assert not up, f"{module}: {', '.join(up)}"


def test_no_module_imports_another_in_a_circle():
    graph = {module: {name for name, _ in imports(module)} - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_folder_imports_another_in_a_circle():
    graph = defaultdict(set)
    for module in MODULES:
        graph[folder(module)] |= {folder(name) for name, _ in imports(module)} - {folder(module)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def reachable(module: str) -> set[str]:
    """All that is loaded of comarl when a module is imported: what its file imports at its top."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found or name not in MODULES:
            continue
        found.add(name)
        top = ast.parse(MODULES[name].read_text()).body
        lines = {node.lineno for node in top if isinstance(node, ast.Import | ast.ImportFrom)}
        waiting += [other for other, line in imports(name) if line in lines]
    return found


@pytest.mark.parametrize("module", ["serve", "team", "walkers"])
def test_what_runs_in_a_worker_process_loads_no_jax(module):
    """A worker starts in half a second and takes little memory."""
    for name in reachable(f"comarl.workers.{module}"):
        body = ast.parse(MODULES[name].read_text()).body
        loads = {
            alias.name for node in body if isinstance(node, ast.Import) for alias in node.names
        }
        loads |= {str(node.module) for node in body if isinstance(node, ast.ImportFrom)}
        assert not {load.split(".")[0] for load in loads} & {"jax", "equinox", "jaxtyping", "optax"}
    assert "comarl.types" not in reachable(f"comarl.workers.{module}")


def test_every_module_is_found_by_its_name():
    found = {info.name for info in pkgutil.walk_packages(comarl.__path__, "comarl.")}
    assert found == set(MODULES), "a folder without __init__.py is left out of the package"
    assert all(importlib.util.find_spec(folder) for folder in {"comarl.runs", "comarl.machine"})
