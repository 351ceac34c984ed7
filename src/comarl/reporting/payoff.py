"""What runs on matrix games have learnt: the value of every joint action, and the one that is
chosen."""

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from comarl.escape import csv_cell, markdown
from comarl.reporting.runs import Curves, ReportError
from comarl.runs.payoff import JOINT_ACTIONS, PAYOFF, PayoffLine, read_payoff

# LSF-SAC (arXiv 2201.01247), Table I; its row C, and LSF-SAC's own table, cannot be read in print
PAPER = {
    "qtran": ((8.0, 6.13, 6.1), (2.1, 0.2, 0.2)),
    "vdn": ((-5.4, -4.6, -4.7), (-4.4, -3.5, -3.6)),
    "qmix": ((-8.1, -8.1, -8.1), (-8.1, 0.0, 0.0)),
    "dop": ((-7.8, -6.0, -4.2), (-6.1, -4.4, -2.6)),
}


@dataclass(frozen=True)
class Learnt:
    """What the seeds of one algorithm have learnt of a game, a line for each seed and state."""

    label: str
    algorithm: str
    task: str
    payoff: np.ndarray
    """the game's tables, `[tables, 3, 3]`; the parity of a state picks one"""
    lines: tuple[PayoffLine, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The numbers of the seeds, in order."""
        return tuple(dict.fromkeys(line.seed for line in self.lines))

    @property
    def hits(self) -> int:
        """How many seeds choose a best joint action in every state."""
        missed = {line.seed for line in self.lines if line.reward < self.best(line.state)}
        return len(self.seeds) - len(missed)

    @property
    def mean_reward(self) -> float:
        """What the choices earn, the mean over seeds and states."""
        return float(np.mean([line.reward for line in self.lines]))

    def best(self, state: str) -> float:
        """The most that a joint action earns in a state such as "01"."""
        return float(self.payoff[sum(map(int, state)) % len(self.payoff)].max())

    def median_values(self) -> np.ndarray | None:
        """The median over seeds of the value of each joint action, `[3, 3]`, in a game of one
        state; None if the algorithm has no such values."""
        if not all(line.values for line in self.lines):
            return None
        return np.median([line.values for line in self.lines], axis=0).reshape(3, 3)


def learnt(run: Curves) -> Learnt | None:
    """What a run on a matrix game has learnt, from the `payoff.csv` of its folders.

    A folder without that file is named in a warning and left out; None if no folder has one. A seed
    that is in two folders counts once, the first time.
    """
    found: dict[int, list[PayoffLine]] = {}
    for folder in run.folders:
        try:
            lines = read_payoff(folder)
        except FileNotFoundError:
            warnings.warn(
                f"{folder}: no {PAYOFF} in it, so the report leaves out what it learnt of "
                f"{run.task}; `comarl evaluate {folder}` writes that file",
                stacklevel=3,
            )
            continue
        except (ValueError, TypeError) as error:
            raise ReportError(
                f"{folder}: its {PAYOFF} cannot be read ({error}); `comarl evaluate {folder}` "
                "writes it anew"
            ) from error
        of_folder: dict[int, list[PayoffLine]] = {}
        for line in lines:
            of_folder.setdefault(line.seed, []).append(line)
        found = {**of_folder, **found}
    if not found:
        return None
    payoff = np.array(run.config["task"]["payoff"], float)
    ordered = tuple(line for seed in sorted(found) for line in found[seed])
    return Learnt(run.label, run.algorithm, run.task, payoff, ordered)


def payoff_csv(found: Sequence[Learnt]) -> str:
    """One line per run, seed and state: the choice, what it earns, and the value of each joint
    action."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = ["algorithm", "task", "seed", "state", "choice", "reward", *JOINT_ACTIONS]
    writer.writerow(heads)
    for run in found:
        for line in run.lines:
            values = [f"{value:.3f}" for value in line.values] or [""] * len(JOINT_ACTIONS)
            about = [
                csv_cell(run.label),
                csv_cell(run.task),
                line.seed,
                line.state,
                line.choice,
                f"{line.reward:g}",
            ]
            writer.writerow([*about, *values])
    return text.getvalue()


def payoff_markdown(found: Sequence[Learnt]) -> str:
    """How many seeds found the best joint action; and, where there is one state, the median of what
    they learnt."""
    sections = []
    for task in dict.fromkeys(run.task for run in found):
        runs = [run for run in found if run.task == task]
        lines = [
            f"## {markdown(task)}",
            "",
            "| algorithm | seeds that choose the best | mean reward of the choices |",
            "|---|---|---|",
            *(
                f"| {markdown(run.label)} | {run.hits} of {len(run.seeds)} | "
                f"{run.mean_reward:.2f} |"
                for run in runs
            ),
        ]
        if len(runs[0].payoff) == 1:
            lines += ["", *_tables(runs)]
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def _tables(runs: Sequence[Learnt]) -> list[str]:
    """The game's table, and below it each run's, with that of the paper beside it."""
    row = lambda numbers: " ".join(f"{x:.1f}" for x in numbers)
    rows = lambda table: " | ".join(row(numbers) for numbers in table)
    lines = [
        "The team's value of each joint action, the median over seeds. The first agent's action is "
        "the column. Each cell has three numbers, for the second agent's actions A, B and C.",
        "",
        "| | first agent A | B | C | paper: A | paper: B |",
        "|---|---|---|---|---|---|",
        f"| payoff | {rows(runs[0].payoff[0])} | | |",
    ]
    for run in runs:
        values = run.median_values()
        if values is None:
            continue
        known = PAPER.get(run.algorithm.removesuffix("-pymarl2"))
        paper = known if known and run.task == "matrix/qtran" else ((), ())
        lines.append(f"| {markdown(run.label)} | {rows(values)} | {rows(paper)} |")
    return lines
