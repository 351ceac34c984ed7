"""The table of tasks: every name begins with its family.

Nothing of them is loaded before it is used, so that names can be looked up at once.
"""

from importlib import import_module
from typing import Any

from comarl.envs.known import MISSING, PARTITIONS, called_here
from comarl.names import is_own, load, name_of, offered
from comarl.validation import UnknownName, unknown

TASKS: dict[str, str] = {
    "mamujoco/HalfCheetah-2x3": "a two-legged runner; its hind and its front leg are agents",
    "mamujoco/HalfCheetah-6x1": "a two-legged runner; each of its six joints is an agent",
    "mamujoco/Ant-2x4": "a four-legged walker; its front and its back legs are agents",
    "mamujoco/Ant-2x4d": "a four-legged walker; each diagonal pair of legs is an agent",
    "mamujoco/Ant-4x2": "a four-legged walker; each of its legs is an agent",
    "mamujoco/Hopper-3x1": "a one-legged hopper; each of its three joints is an agent",
    "mamujoco/Humanoid-9|8": "a humanoid that is to run; its upper and its lower body are agents",
    "mamujoco/HumanoidStandup-9|8": (
        "a humanoid that is to stand up; its upper and lower body are agents"
    ),
    "matrix/qtran": (
        "one step, the best joint action earns 8, but -12 if one agent deviates from it; 0 is safe"
    ),
    "matrix/climbing": (
        "one step, worth 11 at best, and -30 where one agent alone leaves that for the next best"
    ),
    "matrix/penalty": (
        "one step, two best joint actions worth 10, and -100 for agents who aim at different ones"
    ),
    "matrix/two-states": (
        "one step, each agent sees a bit, and only both bits together say which of two tables "
        "is played"
    ),
    "predator-prey/full": "8 predators, 8 prey, 10x10 cells; two catch one",
    "predator-prey/full-punished": (
        "8 predators, 8 prey, 10x10 cells; two catch one; a lone catch is worth -2"
    ),
    "predator-prey/small": "4 predators, 4 prey, 6x6 cells; two catch one",
    "predator-prey/small-punished": (
        "4 predators, 4 prey, 6x6 cells; two catch one; a lone catch is worth -2"
    ),
    "smax/2m_vs_1z": "2 marines against 1 zealot",
    "smax/3m": "3 marines against 3 marines",
    "smax/8m": "8 marines against 8 marines",
    "smax/25m": "25 marines against 25 marines",
    "smax/5m_vs_6m": "5 marines against 6 marines",
    "smax/8m_vs_9m": "8 marines against 9 marines",
    "smax/10m_vs_11m": "10 marines against 11 marines",
    "smax/27m_vs_30m": "27 marines against 30 marines",
    "smax/2s3z": "2 stalkers and 3 zealots against 2 stalkers and 3 zealots",
    "smax/3s5z": "3 stalkers and 5 zealots against 3 stalkers and 5 zealots",
    "smax/3s5z_vs_3s6z": "3 stalkers and 5 zealots against 3 stalkers and 6 zealots",
    "smax/3s_vs_3z": "3 stalkers against 3 zealots",
    "smax/3s_vs_4z": "3 stalkers against 4 zealots",
    "smax/3s_vs_5z": "3 stalkers against 5 zealots",
    "smax/6h_vs_8z": "6 hydralisks against 8 zealots",
    "smax/corridor": "6 zealots against 24 zerglings",
    "smax/smacv2_5_units": "5 random units against 5 random units",
    "smax/smacv2_10_units": "10 random units against 10 random units",
    "smax/smacv2_20_units": "20 random units against 20 random units",
    "waves/2": "2 predators, waves of 16 prey that stand still; one catches a prey",
    "waves/3": "3 predators, waves of 16 prey that stand still; one catches a prey",
    "waves/4": "4 predators, waves of 16 prey that stand still; 2 together catch a prey",
    "treasure/3": "2 collectors bring treasures to 1 deposit",
    "treasure/4": "2 collectors bring treasures to 2 deposits",
    "treasure/8": "6 collectors bring treasures to 2 deposits",
    "navigation/3": "3 agents are to cover 3 landmarks and not to collide",
    "multiwalker/3": "3 walkers carry a package over rough ground (PettingZoo, Box2D)",
    "multiwalker/4": "4 walkers carry a package over rough ground (PettingZoo, Box2D)",
    "pettingzoo/mpe2.simple_spread_v3": (
        "an example: any cooperative parallel environment of PettingZoo works by its import name"
    ),
    "probe/constant": "one step, reward 1: the value of a constant is 1",
    "probe/signal": (
        "one step, the reward is what is seen, 1 or -1: the value follows the observation"
    ),
    "probe/delayed": "two steps, reward 1 on the second: the first is worth gamma",
    "probe/truncated": "one step, reward 1, cut by time: worth 1 / (1 - gamma)",
    "probe/action": "one step, each agent has a best action of its own: 0.5 and -0.5, worth 1",
    "probe/signal-action": "one step, the best action is half of what is seen, worth 1",
    "probe/together": "one step, the two actions must sum to 1 and be equal: 0.5 each, worth 1",
    "probe/discrete-constant": "one step, reward 1: the value of a constant is 1",
    "probe/discrete-signal": (
        "one step, the reward is what is seen, 1 or -1: the value follows the observation"
    ),
    "probe/discrete-delayed": "two steps, reward 1 on the second: the first is worth gamma",
    "probe/discrete-truncated": "two steps, reward 1, cut by time: each worth 1 / (1 - gamma)",
    "probe/discrete-action": (
        "one step, each agent has a best action of its own: 2 and 0, worth a half each"
    ),
    "probe/discrete-signal-action": (
        "one step, what is seen, -1 or 1, names the best action: 0 or 2, worth 1"
    ),
    "probe/discrete-together": "one step, worth 1 if both choose action 1, else nothing",
    "probe/discrete-memory": (
        "two steps, the first shows which action the second rewards: 0 or 2, worth 1"
    ),
}
"""name -> what the task is, in a line"""

TABLES = {
    "matrix": ("matrix:GAMES",),
    "predator-prey": ("predator_prey:PRESETS",),
    "waves": ("waves:PRESETS",),
    "treasure": ("treasure:PRESETS",),
    "navigation": ("navigation:PRESETS",),
    "multiwalker": ("multiwalker:PRESETS",),
    "probe": ("probes:PROBES", "discrete_probes:PROBES"),
}
"""family -> where its tasks are, by name; those of other families are made out of their names"""

FIXED = frozenset({"robot", "partition", "module", "name", "map_name", "summary", "payoff"})
"""fields of tasks that say which task it is"""


def find_task(name: str) -> Any:
    """The task of a name: an `Environment` or a `Task`, of a family, of another package, or
    `module:Name`.

    Raises UnknownName for a name that no family has, ValueError for an impossible partition of a
    known robot.
    """
    family, _, rest = name.partition("/")
    for table in TABLES.get(family, ()):
        module, _, attribute = table.partition(":")
        tasks = getattr(import_module(f"comarl.envs.{module}"), attribute)
        if rest in tasks:
            return tasks[rest]
    if is_own(name):
        return load("task", name)
    if name in (others := offered("task")):
        return load("task", others[name])
    if (task := _made(family, rest)) is not None:
        return task
    theirs = rest if family == "mamujoco" else name
    if ours := called_here(theirs):
        raise UnknownName(f"task {theirs!r} is called {ours} here")
    hint = "`comarl list` shows all; other partitions of a robot work by name, too."
    raise unknown("task", name, [*TASKS, *others], hint)


def _made(family: str, rest: str) -> Any:
    """A task that its family makes out of a name; None if it makes none of this one."""
    if family == "mamujoco" and rest.partition("-")[0] in PARTITIONS:
        from comarl.envs import mamujoco

        return mamujoco.parse(rest)
    if family == "pettingzoo" and rest:
        from comarl.envs import pettingzoo

        return pettingzoo.PettingZoo(rest)
    if family == "smax" and (f"smax/{rest}" in TASKS or rest in MISSING):
        from comarl.envs import smax

        return smax.Smax(rest)  # which says what unit is missing
    return None


def task_names(task: Any) -> dict[str, Any]:
    """The fields of a task that its name fixes, and so no option nor setting may change."""
    return {name: value for name, value in vars(task).items() if name in FIXED}


def name_of_task(task: Any) -> str:
    """What a task is called, whatever settings it has; `module:Name` for a user's own.

    >>> from comarl.envs.waves import PRESETS
    >>> name_of_task(PRESETS["2"])
    'waves/2'

    Raises WrongSetting as `comarl.names.name_of`.
    """
    fixed = task_names(task)
    made = {
        "MultiAgentMujoco": ("mamujoco", "{robot}-{partition}"),
        "PettingZoo": ("pettingzoo", "{module}"),
        "Smax": ("smax", "{map_name}"),
    }
    if not type(task).__module__.startswith("comarl.envs."):
        return name_of("task", task)
    if type(task).__name__ in made:
        family, form = made[type(task).__name__]
        return f"{family}/{form.format(**fixed)}"
    families = [name for name in TASKS if name.partition("/")[0] in TABLES]
    equal = (name for name in families if find_task(name) == task)
    alike = (name for name in families if _is_called_alike(find_task(name), task))
    return next(equal, None) or next(alike, None) or name_of("task", task)


def _is_called_alike(one: Any, other: Any) -> bool:
    return type(one) is type(other) and task_names(one) == task_names(other)
