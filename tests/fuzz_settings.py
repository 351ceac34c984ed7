"""Wrong values for every field of every setting, made from the fields themselves."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from comarl.algorithms import ALGORITHMS
from comarl.envs import FAMILIES, find_task
from comarl.replay.pace import StepPace
from comarl.training.events import Started
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
    tasks = [task for family in FAMILIES.values() for task in family.values()]
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
    if value == ():
        return (type(settings).__name__, name) in EMPTY
    return (type(settings).__name__, name) in MEANT


EMPTY = {
    ("Qplex", "importance_hidden"),
    ("PettingZoo", "kwargs"),
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
