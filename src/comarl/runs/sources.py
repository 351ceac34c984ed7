"""Fingerprints of the code that a result depends on, so that no edited code mixes into a run."""

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHOWN_ONLY = ("reporting", "watching", "cli", "doctor", "listing", "api", "teams")
"""the folders and modules of comarl that change no result"""


def fingerprints(algorithm: Any, task: Any) -> dict[str, str]:
    """A hash of the sources of comarl, and of those of the algorithm and of the task where they lie
    outside it, by name.

    Of a package outside comarl all modules count, else the one module. What has no file, such as a
    notebook's class, has no hash.
    """
    own = {"comarl": _hash(Path(__file__).parents[1], SHOWN_ONLY)}
    return own | {name: _hash(place) for name, place in places_outside(algorithm, task).items()}


def places_outside(algorithm: Any, task: Any) -> dict[str, Path]:
    """Where the code of the algorithm and of the task lies, by name, if it is not comarl's."""
    modules = [("algorithm", module) for module in modules_of(algorithm)]
    modules += [("task", module) for module in modules_of(task)]
    # A task may name the module that its worker processes import
    if isinstance(inside := vars(task).get("module"), str):
        modules.append(("task's environment", inside))
    found = {f"{part} {module}": place_of(module) for part, module in modules}
    return {name: place for name, place in found.items() if place is not None}


def modules_of(settings: Any) -> list[str]:
    """The modules of the classes of some settings and of the settings inside them, and of what
    these classes inherit from."""
    found = [cls.__module__ for cls in type(settings).__mro__]
    for value in vars(settings).values():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found += modules_of(value)
    own = (name for name in found if name.partition(".")[0] not in sys.stdlib_module_names)
    return list(dict.fromkeys(own))


def place_of(module: str) -> Path | None:
    """The folder of the package that a module belongs to, or its own file; None for comarl's and
    for what has no file. Nothing is imported."""
    top = module.partition(".")[0]
    if top == "comarl":
        return None
    loaded = sys.modules.get(top)
    if loaded is not None:
        origin = vars(loaded).get("__file__")
    else:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
        origin = None if spec is None else spec.origin
    if origin is None or not Path(origin).is_file():
        return None
    return Path(origin).parent if Path(origin).name == "__init__.py" else Path(origin)


def changes(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What differs between two sets of fingerprints or of versions, a part each.

    >>> changes({"jax": "0.10.0", "numpy": "2.1"}, {"jax": "0.12.0", "numpy": "2.1"})
    ['jax 0.10.0 -> 0.12.0']
    """
    words = lambda value: "none" if value is None else str(value)
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        f"{name} {words(theirs.get(name))} -> {words(ours.get(name))}"
        for name in names
        if theirs.get(name) != ours.get(name)
    ]


def _hash(place: Path, without: Iterable[str] = ()) -> str:
    """Twelve hex digits of the Python files in a folder, or of one file; line endings do not
    count."""
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(place).as_posix() if place.is_dir() else file.name
        if name.partition("/")[0].removesuffix(".py") in without:
            continue
        content = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:12]
