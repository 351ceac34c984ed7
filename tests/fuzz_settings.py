"""Wrong values for every field of every setting, made from the fields themselves."""

import copy
import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from comarl.algorithms import ALGORITHMS, find_algorithm
from comarl.envs import TASKS, find_task
from comarl.replay.pace import StepPace
from comarl.runs.identity import identity
from comarl.training.events import Started
from comarl.training.load import load_settings
from comarl.training.run import Options
from comarl.training.settings import Run
from comarl.validation import alternatives, field_types, fits

NUMBERS = (math.nan, math.inf, -math.inf, -1, -0.5, -(2**31), 2**31, 10**18, 10**400, 1e39)
OTHERS = (
    True,
    None,
    "",
    "3",
    "nan",
    (),
    (0,),
    (-1,),
    (math.nan,),
    [],
    [64],
    {},
    {"a": 1},
    b"x",
    ...,
)
NESTED = (((),), ((64, (64,)),), ([[1]],), object(), int, Options, Started(1, 1, None))
WRONG = (*NUMBERS, *OTHERS, *NESTED)

MEANT = {
    ("Run", "first_seed"): "a seed has 32 bits, so 2**31 is one",
    ("Temperature", "log_alpha"): "the logarithm of a temperature may be negative",
    ("Ndq", "drop_below"): "a mean of messages may be negative",
    ("PredatorPrey", "punishment"): "is negative",
}
"""fields of which a negative number is meant, and why"""


class Wrong(NamedTuple):
    """One field with a value that cannot be meant."""

    settings: Any
    name: str
    value: Any

    def __str__(self) -> str:
        return f"{type(self.settings).__name__}.{self.name}={self.value!r:.40}"


def parts(settings: Any) -> Iterator[Any]:
    """Settings, and all settings inside them."""
    yield settings
    for value in vars(settings).values():
        if dataclasses.is_dataclass(value):
            yield from parts(value)


def all_settings() -> list[Any]:
    """One of each class: algorithms, tasks, what is inside them, a run, and how to run it."""
    algorithms = [entry.algorithm for entry in ALGORITHMS.values()]
    tasks = [find_task(name) for name in TASKS]
    named = [find_task("pettingzoo/mpe2.simple_spread_v3"), find_task("mamujoco/Hopper-3x1")]
    run = Run(find_task_algorithm(), find_task("matrix/climbing"))
    whole = (*algorithms, *(task for task in tasks if not isinstance(task, str)), *named, Options())
    found = {type(part): part for settings in whole for part in parts(settings)}
    return [*found.values(), StepPace(), run]


def find_task_algorithm() -> Any:
    """An algorithm for the matrix games."""
    return ALGORITHMS["qmix"].algorithm


def is_meant(settings: Any, name: str, value: Any, hint: Any) -> bool:
    """Whether this value of a field is a sensible one after all."""
    kinds = alternatives(hint)
    if not fits(value, hint):
        return False
    if value is None or value is True or (value == "" and str not in kinds):
        return True
    if isinstance(value, str):
        return True  # names are looked up where they are used
    if value in ((), ((),)):
        return (type(settings).__name__, name) in EMPTY
    return (type(settings).__name__, name) in MEANT


EMPTY = {
    ("MultiAgentMujoco", "global_categories"),
    ("MultiAgentMujoco", "local_categories"),
    ("Qplex", "importance_hidden"),
    ("PettingZoo", "kwargs"),
    ("Options", "keep"),
    *((name, "hidden") for name in ("Maddpg", "FacmacContinuous", "Vm3Ac")),
    *((name, "discriminator") for name in ("Maven", "MavenAc")),
    ("Qtran", "joint_hidden"),
    ("SiMoa", "model_hidden"),
}
"""tuples that may be empty: a network without hidden layers is linear"""


def wrong_settings() -> Iterator[Wrong]:
    """Every field of every class with every wrong value."""
    for settings in all_settings():
        for name, hint in field_types(type(settings)).items():
            for value in WRONG:
                if not is_meant(settings, name, value, hint):
                    yield Wrong(settings, name, value)


def answer(wrong: Wrong) -> str | None:
    """The sentence that refuses it; None if it is accepted. Raises what is no ValueError."""
    try:
        dataclasses.replace(wrong.settings, **{wrong.name: wrong.value})
    except ValueError as error:
        return str(error)
    return None


JSON_WRONG = ["", "3", "nan", True, None, [], [64], [[]], {}, {"a": 1}, -1, -0.5, 10**18, 1e39]
PAIRS = [("qmix", "matrix/climbing"), ("race-facmac", "predator-prey/small"), ("matd3", "waves/2")]


def places(config, path=()):
    """The path of every value in a configuration."""
    entries = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def config_of(algorithm, task):
    run = Run(find_algorithm(algorithm).algorithm, find_task(task))
    return json.loads(json.dumps({**identity(run, algorithm, task), "steps": run.steps}))


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def try_configs(folder: Path) -> dict[str, Any]:
    """Every value of some config.json replaced by every wrong one: how many are refused, and those
    that are accepted as something else, or refused in many lines."""
    refused, others, long = 0, [], []
    for algorithm, task in PAIRS:
        right = config_of(algorithm, task)
        for path in places(right):
            for value in JSON_WRONG:
                config = copy.deepcopy(right)
                holder = config
                for key in path[:-1]:
                    holder = holder[key]
                if value == {} and isinstance(holder[path[-1]], dict):
                    continue  # what a config leaves out has its default, as in older versions'
                holder[path[-1]] = value
                try:
                    run, _ = load_settings(write(folder, config))
                except ValueError as error:
                    refused += 1
                    if "\n" in str(error) or len(str(error)) > 500:
                        long.append(str(error))
                    continue
                back = {**identity(run, algorithm, task), "steps": run.steps}
                if json.loads(json.dumps(back)) != config:
                    others.append((path, value))
    return {
        "configs refused": refused,
        "configs that mean something else": others,
        "configs refused in many lines": long,
    }


def main() -> None:
    """Tries all, and prints what was found as JSON."""
    wrong = [(w, answer(w)) for w in wrong_settings()]
    shown = lambda w: f"{type(w.settings).__name__}.{w.name}={w.value!r:.60}"
    found = {
        "tried in Python": len(wrong),
        "accepted in Python": [shown(w) for w, said in wrong if said is None],
        "without the name of the field": [
            shown(w) for w, said in wrong if said and w.name not in said
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        found |= try_configs(Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
