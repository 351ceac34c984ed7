"""Tables of final returns beside the papers' numbers, and the per-seed CSV behind every curve."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from math import ceil, floor, isnan, log10
from typing import Any

import numpy as np

from comarl.report.curves import Curves, Team
from comarl.report.statistics import SEEDS_FOR_AN_INTERVAL, bootstrap_interval, probability_of_improvement, t_interval

PAPER_STEPS = 1_000_000
PAPER_COLUMNS = {"race-matd3": "race", "merl": "merl", "matd3": "matd3", "facmac": "facmac", "ea": "ea"}
"""an algorithm's column in paper_numbers.csv, RACE's Fig. 2, where its base learner is MATD3"""

HEADER = (
    *("task", "algorithm", "final return", "best seed", "best team"),
    *("seeds", "env. steps", "paper at 1e6 steps"),
)
CSV_HEADER = (
    *("algorithm", "task", "seed", "env_steps", "updates"),
    *("marl_team_mean", "best_team_mean", "marl_team_returns", "best_team_returns"),
)
LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "†": r"$^\dagger$"},
}


@dataclass(frozen=True)
class Row:
    """The final returns of one algorithm on one task."""

    task: str
    algorithm: str
    final: float
    """mean over seeds of `final_scores` of the MARL team"""
    half_interval: float
    """half the width of the 95 % t interval over seeds; nan for one seed"""
    best_seed: float
    """the highest of the seeds' final scores"""
    best_team: float
    """as `final`, of the team that did best in training; nan without a population"""
    seeds: int
    env_steps: tuple[int, int]
    """of the seed that took the fewest and of the one that took the most"""
    paper: str
    """the paper's number as printed there, or empty"""

    @property
    def at_papers_budget(self) -> bool:
        return all(abs(steps - PAPER_STEPS) <= 0.02 * PAPER_STEPS for steps in self.env_steps)


def final_scores(run: Curves, team: Team = "marl_team") -> np.ndarray:
    """One score per seed: the mean over the last 10 % of its evaluations, rounded up, so at least one."""
    return np.array([seed.means(team)[-ceil(len(seed.env_steps) / 10) :].mean() for seed in run.seeds])


def table_rows(runs: Sequence[Curves]) -> list[Row]:
    """One row per run, those of one task together."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    papers = paper_numbers()
    return [_row(run, papers) for run in sorted(runs, key=lambda run: tasks.index(run.task))]


def _row(run: Curves, papers: dict[tuple[str, str], str]) -> Row:
    scores, last = final_scores(run), [seed.env_steps[-1] for seed in run.seeds]
    return Row(
        task=run.task,
        algorithm=run.label,
        final=float(scores.mean()),
        half_interval=float(t_interval(scores)[1] - scores.mean()),
        best_seed=float(scores.max()),
        best_team=float(final_scores(run, "best_team").mean()),
        seeds=len(scores),
        env_steps=(min(last), max(last)),
        paper=papers.get((run.task, run.algorithm), ""),
    )


def paper_numbers() -> dict[tuple[str, str], str]:
    """The papers' returns at 1e6 environment steps, as printed, by task and algorithm."""
    text = (resources.files("comarl.report") / "paper_numbers.csv").read_text()
    lines = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {(f"mamujoco/{x['task']}", name): x[column] for x in lines for name, column in PAPER_COLUMNS.items()}


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is read, in the order of HEADER."""
    digits = decimals(max(abs(row.final), 0.0 if isnan(row.half_interval) else row.half_interval))
    interval = " (no interval)" if isnan(row.half_interval) else f" ± {row.half_interval:.{digits}f}"
    return (
        row.task,
        row.algorithm,
        f"{row.final:.{digits}f}{interval}",
        f"{row.best_seed:.{digits}f}",
        "" if isnan(row.best_team) else f"{row.best_team:.{digits}f}",
        str(row.seeds),
        " to ".join(f"{steps:,}" for steps in sorted(set(row.env_steps))),
        row.paper and row.paper + ("" if row.at_papers_budget else " †"),
    )


def decimals(size: float) -> int:
    """Decimals that show three digits of a number of this size, at most six."""
    return max(0, min(6, 2 - floor(log10(size)))) if 0 < size < float("inf") else 0


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know about the numbers of a table."""
    said = [
        "Final return: the MARL team, greedy, mean over episodes, then over the last 10 % of a seed's evaluations "
        "(at least one), then over seeds; ± is the 95 % Student t interval over seeds."
    ]
    if any(row.seeds == 1 for row in rows):
        said.append("One seed has no interval: it says nothing about the next seed.")
    if any(row.seeds == 2 for row in rows):
        said.append("Two seeds have an interval of 12.7 standard errors to either side.")
    if any(not isnan(row.best_team) for row in rows):
        said.append("Best team: the same mean for the team of the population that did best in training.")
    if any(row.paper for row in rows):
        said.append(
            "Paper: RACE (ICML 2023), Fig. 2, at 1e6 environment steps, 5 seeds, its own settings, read off the plot; "
            "gym v2 tasks on mujoco-py, whose Ant and Humanoid returns are not comparable with v4 and v5 tasks."
        )
    if any(row.paper and not row.at_papers_budget for row in rows):
        said.append("† the paper's number is at another budget than this row's environment steps: no comparison.")
    return said


def improvements(runs: Sequence[Curves]) -> list[str]:
    """For each two algorithms on one task, the probability that a seed of the first beats one of the second."""
    lines = []
    for one, other in combinations(runs, 2):
        if one.task != other.task or min(len(one.seeds), len(other.seeds)) < 2:
            continue
        scores = final_scores(one)[:, None], final_scores(other)[:, None]
        counts = len(one.seeds), len(other.seeds)
        chance = f"P({one.label} > {other.label}) = {probability_of_improvement(*scores):.2f}"
        if min(counts) >= SEEDS_FOR_AN_INTERVAL:  # resampling fewer gives intervals that are far too narrow
            chance += " [{:.2f}, {:.2f}]".format(*bootstrap_interval(probability_of_improvement, *scores))
        lines.append(f"{one.task}: {chance}, {counts[0]} and {counts[1]} seeds")
    return lines


def markdown_table(rows: Sequence[Row], chances: Sequence[str] = ()) -> str:
    """A Markdown table, its notes, and what `improvements` found."""
    lines = [HEADER, ("---", "---", *("---:",) * (len(HEADER) - 2)), *map(cells, rows)]
    table = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
    below = ["", *(f"- {note}" for note in notes(rows))]
    if chances:
        below += [
            "",
            "Probability of improvement in the final return, a tie counting half; from 5 seeds on with its 95 %",
        ]
        below += ["percentile interval by the stratified bootstrap over seeds:", "", *(f"- {line}" for line in chances)]
    return "\n".join([*table, *below]) + "\n"


def latex_table(rows: Sequence[Row]) -> str:
    """A LaTeX tabular with the rules of the package booktabs, and its notes as comments above it."""
    body = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in (HEADER, *map(cells, rows))]
    begin = r"\begin{tabular}{ll" + "r" * (len(HEADER) - 2) + "}"
    rules = [begin, r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*(f"% {note}" for note in notes(rows)), *rules]) + "\n"


def _latex(cell: str) -> str:
    return "".join(LATEX.get(character, character) for character in cell)


def rich_table(rows: Sequence[Row]) -> Any:
    """The table for the terminal, a rich.table.Table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Final returns", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = "\n".join(notes(rows)), "left"
    for place, name in enumerate(HEADER):
        table.add_column(name.replace(" ", "\n"), justify="left" if place < 2 else "right", overflow="fold")
    for row in rows:  # broken where it can be, to fit 80 columns
        table.add_row(*(Text(cell.replace(" to ", " to\n").replace("/", "/\n")) for cell in cells(row)))
    return table


def per_seed_csv(runs: Sequence[Curves]) -> str:
    """Every evaluation of every seed with its raw returns; numbers are written so that reading gives them back."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for run in runs:
        for seed in run.seeds:
            means = zip(seed.means("marl_team"), seed.means("best_team"), strict=True)
            raw = zip(seed.env_steps, seed.updates, means, seed.marl_team, seed.best_team, strict=True)
            for env_steps, updates, (marl, best), *returns in raw:
                exacts = exact(marl), exact(best) if returns[1] else "", *(";".join(map(exact, x)) for x in returns)
                writer.writerow([run.label, run.task, seed.seed, env_steps, updates, *exacts])
    return file.getvalue()


def exact(number: float) -> str:
    """The shortest text that `float` reads back as the same number."""
    return repr(float(number))
