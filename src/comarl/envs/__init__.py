"""The table of tasks: every name begins with its family."""

from typing import Any

from comarl.envs import discrete_probes, mamujoco, matrix, navigation, predator_prey, probes, smax, treasure, waves
from comarl.usage import unknown

TASKS: dict[str, str] = {
    **{f"mamujoco/{name}": summary for name, summary in mamujoco.TASKS.items()},
    **{f"matrix/{name}": game.summary for name, game in matrix.GAMES.items()},
    **{f"predator-prey/{name}": preset.summary for name, preset in predator_prey.PRESETS.items()},
    **{f"smax/{name}": summary for name, summary in smax.TASKS.items()},
    **{f"waves/{name}": preset.summary for name, preset in waves.PRESETS.items()},
    **{f"treasure/{name}": preset.summary for name, preset in treasure.PRESETS.items()},
    **{f"navigation/{name}": preset.summary for name, preset in navigation.PRESETS.items()},
    **{f"probe/{name}": probe.summary for name, probe in (probes.PROBES | discrete_probes.PROBES).items()},
}
"""name -> what the task is, in a line"""


def find_task(name: str) -> Any:
    """The task of a name: an `Environment` or a `Task`.

    Raises UnknownName for a name that no family has, ValueError for an impossible partition of a known robot.
    """
    family, _, rest = name.partition("/")
    if family == "probe" and rest in probes.PROBES:
        return probes.PROBES[rest]
    if family == "probe" and rest in discrete_probes.PROBES:
        return discrete_probes.PROBES[rest]
    if family == "matrix" and rest in matrix.GAMES:
        return matrix.GAMES[rest]
    if family == "predator-prey" and rest in predator_prey.PRESETS:
        return predator_prey.PRESETS[rest]
    if family == "waves" and rest in waves.PRESETS:
        return waves.PRESETS[rest]
    if family == "treasure" and rest in treasure.PRESETS:
        return treasure.PRESETS[rest]
    if family == "navigation" and rest in navigation.PRESETS:
        return navigation.PRESETS[rest]
    if family == "mamujoco" and rest.partition("-")[0] in mamujoco.PARTITIONS:
        return mamujoco.parse(rest)
    if family == "smax" and rest in (*smax.MAPS, *smax.MISSING):
        return smax.Smax(rest)
    raise unknown("task", name, TASKS, "`comarl list` shows all; other partitions of a robot work by name, too.")
