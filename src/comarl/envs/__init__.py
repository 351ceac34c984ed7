"""The table of tasks: every name begins with its family."""

from typing import Any

from comarl.envs import (
    discrete_probes,
    mamujoco,
    matrix,
    multiwalker,
    navigation,
    pettingzoo,
    predator_prey,
    probes,
    smax,
    treasure,
    waves,
)
from comarl.validation import unknown

FAMILIES: dict[str, dict[str, Any]] = {
    "mamujoco": mamujoco.TASKS,
    "matrix": matrix.GAMES,
    "predator-prey": predator_prey.PRESETS,
    "smax": smax.TASKS,
    "waves": waves.PRESETS,
    "treasure": treasure.PRESETS,
    "navigation": navigation.PRESETS,
    "multiwalker": multiwalker.PRESETS,
    "pettingzoo": pettingzoo.TASKS,
    "probe": {**probes.PROBES, **discrete_probes.PROBES},
}
"""family -> name -> the task, or a line on it where a family makes tasks out of names"""

TASKS: dict[str, str] = {
    f"{family}/{name}": task if isinstance(task, str) else task.summary
    for family, tasks in FAMILIES.items()
    for name, task in tasks.items()
}
"""name -> what the task is, in a line"""


FIXED = frozenset({"robot", "partition", "module", "name", "map_name", "summary", "payoff"})
"""fields of tasks that say which task it is"""


def find_task(name: str) -> Any:
    """The task of a name: an `Environment` or a `Task`.

    Raises UnknownName for a name that no family has, ValueError for an impossible partition of a
    known robot.
    """
    family, _, rest = name.partition("/")
    task = FAMILIES.get(family, {}).get(rest)
    if task is not None and not isinstance(task, str):
        return task
    if family == "mamujoco" and rest.partition("-")[0] in mamujoco.PARTITIONS:
        return mamujoco.parse(rest)
    other = rest if family == "mamujoco" else name
    if mamujoco.is_other_name(other):
        return mamujoco.parse(other)  # which says what it is called here
    if family == "pettingzoo" and rest:
        return pettingzoo.PettingZoo(rest)
    if family == "smax" and rest in (*smax.MAPS, *smax.MISSING):
        return smax.Smax(rest)
    raise unknown(
        "task",
        name,
        TASKS,
        "`comarl list` shows all; other partitions of a robot work by name, too.",
    )


def task_names(task: Any) -> dict[str, Any]:
    """The fields of a task that its name fixes, and so no option nor setting may change."""
    return {name: value for name, value in vars(task).items() if name in FIXED}
