"""`comarl list`: the names of algorithms and tasks, each with its kind and a line on what it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import tyro
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from comarl.escape import terminal
from comarl.names import Kind, offered
from comarl.options import parsed
from comarl.validation import UnknownName, short

Flag = tyro.conf.FlagCreatePairsOff[bool]

ACTIONS = {
    "mamujoco": "continuous",
    "matrix": "discrete",
    "predator-prey": "discrete",
    "smax": "discrete",
    "waves": "continuous",
    "treasure": "continuous",
    "navigation": "continuous",
    "multiwalker": "continuous",
    "pettingzoo": "continuous or discrete",
}
"""family of tasks -> the actions of its agents: to ask the tasks themselves would build every map
of SMAX, which takes seconds"""


@dataclass(frozen=True)
class ListSettings:
    """Show algorithms and tasks, a line each."""

    words: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="WORD...", help_behavior_hint="(default: none)"),
    ] = ()
    """show only lines in which all of these words stand, such as: evolutionary discrete"""
    algorithms: Flag = False
    """show algorithms alone"""
    tasks: Flag = False
    """show tasks alone"""
    all: Flag = False
    """show probes, too: tasks of one or two steps for testing algorithms"""


@dataclass(frozen=True)
class Line:
    """An algorithm or a task as it is listed."""

    name: str
    kind: str
    summary: str

    def has(self, words: Iterable[str]) -> bool:
        """Whether each word stands somewhere in the line, in upper or lower case."""
        text = f"{self.name} {self.kind} {self.summary}".casefold()
        return all(word.casefold() in text for word in words)


@runtime_checkable
class HasUtilities(Protocol):
    """What value-based algorithms are known by: agents choose by the values of their own actions,
    and no policy is learnt."""

    def make_utilities(self, spec: Any, key: Any) -> Any:
        """The network of the agents' own values."""
        ...


def kind_of(algorithm: Any) -> str:
    """How an algorithm learns, and which actions its agents choose.

    >>> from comarl import Matd3, Qmix
    >>> kind_of(Qmix())
    'value-based, discrete'
    >>> kind_of(Matd3())
    'actor-critic, continuous'
    """
    from comarl.types import Evolutionary

    actions = " or ".join(sorted(algorithm.actions))
    if isinstance(algorithm, Evolutionary):
        learns = "evolutionary"
    elif isinstance(algorithm, HasUtilities):
        learns = "value-based"
    else:
        learns = "actor-critic"
    return f"{learns}, {actions}"


def algorithms() -> list[Line]:
    """All algorithms and presets that have a name."""
    from comarl.algorithms import ALGORITHMS

    own = [Line(name, kind_of(e.algorithm), e.summary) for name, e in ALGORITHMS.items()]
    return own + of_other_packages("algorithm")


def tasks(probes: bool) -> list[Line]:
    """All tasks that have a name, with the probes or without them."""
    from comarl.envs import TASKS, find_task

    lines = []
    for name, summary in TASKS.items():
        family = name.partition("/")[0]
        if family != "probe":
            lines.append(Line(name, ACTIONS[family], summary))
        elif probes:
            kind = "discrete" if find_task(name).spec.discrete else "continuous"
            lines.append(Line(name, kind, summary))
    return lines + of_other_packages("task")


def of_other_packages(kind: Kind) -> list[Line]:
    """What installed packages offer. Their code is not run, so that what it is stays unknown."""
    return [Line(name, "", f"from another package: {at}") for name, at in offered(kind).items()]


def show(console: Console, arguments: Sequence[str]) -> None:
    """Prints what `comarl list` was asked for. Raises UnknownName where no line has the words."""
    asked = parsed(ListSettings, ListSettings(), arguments, "comarl list")
    both = asked.algorithms == asked.tasks
    tables = {}
    if both or asked.algorithms:
        tables["Algorithms"] = algorithms()
    if both or asked.tasks:
        tables["Tasks"] = tasks(asked.all)
    found = {title: [x for x in lines if x.has(asked.words)] for title, lines in tables.items()}
    if not any(found.values()):
        raise UnknownName(
            f"no line has {short(' '.join(asked.words))}; `comarl list --all` shows all lines"
        )
    for title, lines in found.items():
        if lines:
            print_table(console, title, lines)


def print_table(console: Console, title: str, lines: Iterable[Line]) -> None:
    """A title, and a row for each line."""
    columns = ("kind" if title == "Algorithms" else "actions", "what it is")
    # A name stays whole on a narrow terminal, so that it can be copied
    columns = (Column("name", no_wrap=True), *columns)
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for line in lines:
        table.add_row(*(Text(terminal(x)) for x in (line.name, line.kind, line.summary)))
    console.print(table, highlight=False)
    console.print()
