"""What a run is: its settings as plain data, and the names and folders that follow from them."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from comarl.validation import alternatives, field_types


def to_config(value: Any) -> Any:
    """Settings as JSON data: dataclasses become dicts with their class as "kind", tuples lists,
    functions their names.

    Fields that do not count when dataclasses are compared, such as a number of threads, are left
    out.

    Raises TypeError for what has no lasting name, such as a lambda or an array; ValueError for a
    field called "kind".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {str(key): to_config(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_config(item) for item in value]
    if isinstance(value, np.generic):
        return to_config(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for it
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if callable(value) and "<" not in (name := getattr(value, "__qualname__", "<")):
        return f"{value.__module__}.{name}"
    raise TypeError(f"a setting must be plain data or have a name of its own: {value!r}")


def _fields(value: Any) -> dict[str, Any]:
    config = {"kind": kind_of(type(value))}
    types = field_types(type(value))
    for field in dataclasses.fields(value):
        if not field.compare:
            continue  # it changes no result
        if field.name == "kind":
            raise ValueError(
                f'{type(value).__name__} has a field "kind", which names the class in a config'
            )
        item = getattr(value, field.name)
        # beta=0 and beta=0.0 are one setting, so they must not be two folders.
        kinds = alternatives(types[field.name])
        if type(item) is int and float in kinds and int not in kinds:
            item = float(item)
        config[field.name] = to_config(item)
    return config


def kind_of(cls: type) -> str:
    """What a configuration calls the class of some settings; one outside comarl by its module, too.

    >>> from comarl.algorithms.qmix import Qmix
    >>> kind_of(Qmix)
    'Qmix'
    """
    own = cls.__module__.partition(".")[0] != "comarl"
    return f"{cls.__module__}:{cls.__qualname__}" if own else cls.__name__


def identity(run: Any, algorithm: str, task: str) -> dict[str, Any]:
    """The configuration that a run's folder and checkpoints stand for.

    The budget is no part of it: with more steps the same run is resumed. The networks that a run
    begins with are, where it does not draw its own.
    """
    config = {"algorithm_name": algorithm, "task_name": task, **to_config(run)}
    del config["steps"]
    if config["begun_from"] is None:
        del config["begun_from"]
    return config


def canonical(config: Any) -> str:
    """A configuration on one line, always written in the same way."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(config: Any) -> str:
    """Ten hex digits that stand for a configuration, for the name of its folder."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:10]


def folder_name(config: dict[str, Any]) -> str:
    """The name of a run's folder: algorithm, task and the fingerprint of all settings.

    >>> folder_name({"algorithm_name": "qmix", "task_name": "smax/3m"})
    'qmix-smax-3m-5851c4ab45'
    """
    plain = lambda name: "".join(c if c.isalnum() else "-" for c in name)
    names = f"{plain(config['algorithm_name'])}-{plain(config['task_name'])}"
    return f"{names}-{fingerprint(config)}"


def called(config: dict[str, Any]) -> str:
    """What a run is called where people read it.

    >>> called({"algorithm_name": "qmix", "task_name": "smax/3m"})
    'qmix on smax/3m'
    """
    return f"{config['algorithm_name']} on {config['task_name']}"


def first_difference(theirs: Any, ours: Any) -> tuple[str, str, str] | None:
    """The first of the `differences` of two configurations; None if there is none."""
    return next(differences(theirs, ours), None)


def differences(theirs: Any, ours: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """The dotted path of each field in which two configurations (JSON data) differ, and both values
    as JSON.

    >>> list(differences({"a": {"b": 1}}, {"a": {"b": 2}}))
    [('a.b', '1', '2')]
    """
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for field in [*ours, *(field for field in theirs if field not in ours)]:
            here = f"{path}.{field}" if path else str(field)
            if field in theirs and field in ours:
                yield from differences(theirs[field], ours[field], here)
            else:
                was, given = (
                    json.dumps(side[field]) if field in side else "no such field"
                    for side in (theirs, ours)
                )
                yield here, was, given
        return
    # 1, 1.0 and True are equal in Python but are different settings, so it is their JSON that is
    # compared.
    was = json.dumps(theirs, sort_keys=True)
    given = json.dumps(ours, sort_keys=True)
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for i, pair in enumerate(zip(theirs, ours, strict=True)):
            yield from differences(*pair, f"{path}[{i}]")
    elif was != given:
        yield path, was, given
