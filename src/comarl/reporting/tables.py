"""Tables of final returns beside the papers' numbers, and the per-seed CSV behind every curve."""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from math import ceil, floor, isnan, log10
from typing import Any, NamedTuple

import numpy as np

from comarl import escape
from comarl.reporting.papers import Paper, paper_numbers
from comarl.reporting.runs import Curves, SeedCurve, Team, compared_by, shown_scale
from comarl.reporting.statistics import (
    SEEDS_FOR_AN_INTERVAL,
    bootstrap_interval,
    probability_of_improvement,
    t_interval,
)
from comarl.runs.records import FATES, RETURN, WON, count_of, metric_label

CSV_HEADER = ("algorithm", "task", "seed", "env_steps", "updates")
ALL_PAIRS = 4
"""up to so many algorithms on a task, all pairs of them are compared; of more, the first with each
other one"""
TEAMS: tuple[Team, ...] = ("marl_team", "best_team")


class Final(NamedTuple):
    """What `final_scores` come to over the seeds of one run."""

    mean: float
    """of the team, or in a population of the MARL team"""
    half_interval: float
    """half the width of the 95 % t interval over seeds; nan for one seed"""
    best_seed: float
    """the highest of the seeds' scores"""
    best_team: float
    """as `mean`, of the team that did best in training; nan without a population"""


@dataclass(frozen=True)
class Row:
    """What one algorithm came to on one task."""

    task: str
    algorithm: str
    metric: str
    """by which the task's runs are compared; best seed and best team are by it"""
    finals: dict[str, Final]
    """of the return, of the win rate if the task has it, and of `metric`"""
    seeds: int
    env_steps: tuple[int, int]
    """of the seed that took the fewest and of the one that took the most"""
    paper: Paper

    @property
    def at_papers_budget(self) -> bool:
        """Whether the run has as many steps as the paper's."""
        return all(
            abs(steps - self.paper.steps) <= 0.02 * self.paper.steps for steps in self.env_steps
        )

    @property
    def mark(self) -> str:
        """What keeps the paper's number from being compared: another game, or another budget."""
        if not self.paper.text:
            return ""
        return " ‡" if not self.paper.same_game else "" if self.at_papers_budget else " †"


def final_scores(run: Curves, team: Team = "marl_team", metric: str = RETURN) -> np.ndarray:
    """One score per seed: the mean over the last 10 % of its evaluations, rounded up, so at least
    one."""
    return np.array(
        [seed.means(team, metric)[-ceil(len(seed.env_steps) / 10) :].mean() for seed in run.seeds]
    )


def table_rows(runs: Sequence[Curves], by: Mapping[str, str] | None = None) -> list[Row]:
    """One row per run, those of one task together; `by` says each task's metric."""
    by, papers = by or compared_by(runs), paper_numbers()
    tasks = list(by)
    return [
        _row(run, by[run.task], papers)
        for run in sorted(runs, key=lambda run: tasks.index(run.task))
    ]


def _row(run: Curves, metric: str, papers: dict[tuple[str, str], Paper]) -> Row:
    shown = [*([WON] if WON in run.metrics else []), metric, RETURN]
    last = [seed.env_steps[-1] for seed in run.seeds]
    return Row(
        task=run.task,
        algorithm=run.label,
        metric=metric,
        finals={name: _final(run, name) for name in dict.fromkeys(shown)},
        seeds=len(run.seeds),
        env_steps=(min(last), max(last)),
        paper=papers.get((run.task, run.algorithm), Paper("")),
    )


def _final(run: Curves, metric: str) -> Final:
    scores = final_scores(run, metric=metric)
    return Final(
        mean=float(scores.mean()),
        half_interval=float(t_interval(scores)[1] - scores.mean()),
        best_seed=float(scores.max()),
        best_team=float(final_scores(run, "best_team", metric).mean()),
    )


def columns(rows: Sequence[Row]) -> list[str]:
    """The metrics that a table shows, the return last."""
    return [*dict.fromkeys(name for row in rows for name in row.finals if name != RETURN), RETURN]


def header(rows: Sequence[Row]) -> tuple[str, ...]:
    """The heads of a table's columns."""
    metrics = ("final return" if name == RETURN else metric_label(name) for name in columns(rows))
    paper = "paper at 1e6 steps" if all(row.paper.same_game for row in rows) else "paper"
    best = ("best seed", "best team") if has_best_team(rows) else ("best seed",)
    return ("task", "algorithm", *metrics, *best, "seeds", "env. steps", paper)


def has_best_team(rows: Sequence[Row]) -> bool:
    """Whether one of the algorithms has a population, and so a best team beside the MARL team."""
    return any(not isnan(row.finals[row.metric].best_team) for row in rows)


def cells(
    row: Row, metrics: Sequence[str] = (RETURN,), *, best_team: bool = True
) -> tuple[str, ...]:
    """A row as it is read, in the order of `header`; `metrics` are the table's `columns`, and
    `best_team` says whether it has that column."""
    main = row.finals[row.metric]
    best = "" if isnan(main.best_team) else _number(main.best_team, main, row.metric)
    return (
        row.task,
        row.algorithm,
        *(_with_interval(row.finals[name], name) if name in row.finals else "" for name in metrics),
        _number(main.best_seed, main, row.metric),
        *([best] if best_team else []),
        str(row.seeds),
        " to ".join(f"{steps:,}" for steps in sorted(set(row.env_steps))),
        row.paper.text + row.mark,
    )


def lines_of(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The heads of a table and its rows; without the papers' column where no paper has a number."""
    metrics = columns(rows)
    best_team = has_best_team(rows)
    lines = [header(rows), *(cells(row, metrics, best_team=best_team) for row in rows)]
    return lines if any(row.paper.text for row in rows) else [line[:-1] for line in lines]


def _with_interval(final: Final, metric: str) -> str:
    """ "2.00 ± 2.48", or "43.8 % ± 5.1 %" for a win rate."""
    if isnan(final.half_interval):
        return f"{_number(final.mean, final, metric)} (no interval)"
    return f"{_number(final.mean, final, metric)} ± {_number(final.half_interval, final, metric)}"


def _number(value: float, final: Final, metric: str) -> str:
    """With as many decimals as the mean and its interval need."""
    if metric == WON:
        return f"{shown_scale(metric) * value:.1f} %"
    digits = decimals(
        max(abs(final.mean), 0.0 if isnan(final.half_interval) else final.half_interval)
    )
    return f"{value:.{digits}f}"


def decimals(size: float) -> int:
    """Decimals that show three digits of a number of this size, at most six."""
    return max(0, min(6, 2 - floor(log10(size)))) if 0 < size < float("inf") else 0


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know about the numbers of a table."""
    best_team = has_best_team(rows)
    team = " of the MARL team where there is a population," if best_team else ""
    found = [
        f"Final return:{team} greedy, mean over episodes, then over the last 10 % of a seed's "
        "evaluations (at least one), then over seeds; ± is the 95 % Student t interval over seeds."
    ]
    if any(WON in row.finals for row in rows):
        found.append(
            "Win rate: the share of greedy episodes that were won, averaged and with an interval "
            "in the same way."
        )
    others = dict.fromkeys(metric_label(row.metric) for row in rows if row.metric != RETURN)
    if others:
        best = "Best seed and best team" if best_team else "Best seed"
        found.append(f"{best}: by {' or '.join(others)} where a task has that, else by return.")
    if any(row.seeds == 1 for row in rows):
        found.append("One seed has no interval: it says nothing about the next seed.")
    if any(row.seeds == 2 for row in rows):
        found.append("Two seeds have an interval of 12.7 standard errors to either side.")
    if best_team:
        found.append(
            "Best team: the same mean for the team of the population that did best in training."
        )
    found += dict.fromkeys(row.paper.source for row in rows if row.paper.text)
    if any(row.mark == " †" for row in rows):
        found.append(
            "† the paper's number is at another budget than this row's environment steps: no "
            "comparison."
        )
    if any(row.mark == " ‡" for row in rows):
        found.append(
            "‡ a win rate of StarCraft II (SMAC) on the map of that name: another game than SMAX, "
            "no comparison."
        )
    return found


def improvements(runs: Sequence[Curves], by: Mapping[str, str] | None = None) -> list[str]:
    """For each two algorithms on one task, the probability that a seed of the first beats one of
    the second.

    Of more than four algorithms on a task, only the first is compared with each other one.
    """
    lines, by = [], by or compared_by(runs)
    first, number = {run.task: run for run in reversed(runs)}, Counter(run.task for run in runs)
    for one, other in combinations(runs, 2):
        if one.task != other.task or min(len(one.seeds), len(other.seeds)) < 2:
            continue
        if number[one.task] > ALL_PAIRS and one is not first[one.task]:
            continue
        scores = [final_scores(run, metric=by[run.task])[:, None] for run in (one, other)]
        counts = len(one.seeds), len(other.seeds)
        chance = f"P({one.label} > {other.label}) = {probability_of_improvement(*scores):.2f}"
        # Resampling fewer seeds gives intervals that are far too narrow.
        if min(counts) >= SEEDS_FOR_AN_INTERVAL:
            low, high = bootstrap_interval(probability_of_improvement, *scores)
            chance += f" [{low:.2f}, {high:.2f}]"
        lines.append(f"{one.task}: {chance}, {counts[0]} and {counts[1]} seeds")
    return lines


def markdown_table(rows: Sequence[Row], chances: Sequence[str] = ()) -> str:
    """A Markdown table, its notes, and what `improvements` found."""
    heads, *body = lines_of(rows)
    lines = [heads, ("---", "---", *("---:",) * (len(heads) - 2)), *body]
    table = ["| " + " | ".join(map(escape.markdown, line)) + " |" for line in lines]
    below = ["", *(f"- {note}" for note in notes(rows))]
    if chances:
        measured = " or ".join(dict.fromkeys(metric_label(row.metric) for row in rows))
        below += [
            "",
            f"Probability of improvement in the final {measured}, a tie counting half; from 5 "
            "seeds on with its 95 %",
            "percentile interval by the stratified bootstrap over seeds:",
            "",
            *(f"- {escape.markdown(line)}" for line in chances),
        ]
    return "\n".join([*table, *below]) + "\n"


def latex_table(rows: Sequence[Row]) -> str:
    """A LaTeX tabular with the rules of the package booktabs, and its notes as comments above
    it."""
    lines = lines_of(rows)
    body = [" & ".join(map(escape.latex, line)) + r" \\" for line in lines]
    begin = r"\begin{tabular}{ll" + "r" * (len(lines[0]) - 2) + "}"
    rules = [begin, r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*(f"% {escape.line(note)}" for note in notes(rows)), *rules]) + "\n"


def rich_table(rows: Sequence[Row]) -> Any:
    """The table for the terminal, a rich.table.Table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Final returns", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = "\n".join(notes(rows)), "left"
    heads, *body = lines_of(rows)
    for place, name in enumerate(heads):
        table.add_column(
            name.replace(" ", "\n"), justify="left" if place < 2 else "right", overflow="fold"
        )
    for line in body:  # broken where it can be, to fit 80 columns
        table.add_row(
            *(Text(escape.line(cell).replace(" to ", " to\n").replace("/", "/\n")) for cell in line)
        )
    return table


def per_seed_csv(runs: Sequence[Curves]) -> str:
    """Every evaluation of every seed with its raw numbers, written so that reading gives them back.

    Of each metric there is the mean over episodes and then the raw numbers: `return_mean` and
    `returns`, `won_mean` and `won`. Where a run has a population, these are in pairs, of the MARL
    team and of the best team: `marl_team_return_mean`, `best_team_return_mean`, and so on. What
    became of injected teams is the share of all rounds so far, `injected_elite` and the like; of
    records without counts it is that of the rounds since the last evaluation,
    `injected_elite_of_window`.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = (RETURN, *dict.fromkeys(name for run in runs for name in run.metrics))
    teams = TEAMS if any(run.has_population for run in runs) else TEAMS[:1]
    prefixes = [f"{team}_" for team in TEAMS] if len(teams) > 1 else [""]
    heads = [
        head for name in names for head in (f"{name}_mean", "returns" if name == RETURN else name)
    ]
    fates = _fates(runs)
    of_teams = [escape.csv_cell(prefix + head) for head in heads for prefix in prefixes]
    writer.writerow([*CSV_HEADER, *of_teams, *fates])
    for run in runs:
        for seed in run.seeds:
            of_metrics = zip(*(_texts(seed, name, teams) for name in names), strict=True)
            steps = zip(seed.env_steps, seed.updates, of_metrics, strict=True)
            shares = [_fates_of(seed).get(name) for name in fates]
            for place, (env_steps, updates, texts) in enumerate(steps):
                about = [*names_of(run), seed.seed, env_steps, updates]
                last = [_measured(values[place]) if values else "" for values in shares]
                writer.writerow([*about, *chain(*texts), *last])
    return file.getvalue()


def _fates(runs: Sequence[Curves]) -> list[str]:
    """The columns of what became of injected teams that these runs have."""
    names = dict.fromkeys(name for run in runs for seed in run.seeds for name in _fates_of(seed))
    return list(names)


def _fates_of(seed: SeedCurve) -> dict[str, tuple[float, ...]]:
    """What became of injected teams at each evaluation, by the name of its column."""
    return {
        fate if count_of(fate) in seed.training else f"{fate}_of_window": seed.training[fate]
        for fate in FATES
        if fate in seed.training
    }


def _measured(value: float) -> str:
    """A training metric in a CSV; empty where it was not measured."""
    return exact(value) if math.isfinite(value) else ""


def training_csv(runs: Sequence[Curves], names: Sequence[str]) -> str:
    """The training metrics `names` of every seed, up to each evaluation; empty where they were not
    measured."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["algorithm", "task", "seed", "env_steps", "updates", *map(escape.csv_cell, names)]
    )
    for run in runs:
        for seed in run.seeds:
            columns = [seed.training.get(name, (math.nan,) * len(seed.env_steps)) for name in names]
            for env_steps, updates, *values in zip(
                seed.env_steps, seed.updates, *columns, strict=True
            ):
                about = [*names_of(run), seed.seed, env_steps, updates]
                writer.writerow([*about, *map(_measured, values)])
    return file.getvalue()


def names_of(run: Any) -> tuple[str, str]:
    """What a run is called in a CSV: its label and its task."""
    return escape.csv_cell(run.label), escape.csv_cell(run.task)


def _texts(seed: SeedCurve, metric: str, teams: Sequence[Team]) -> list[tuple[str, ...]]:
    """For each evaluation the teams' means, then their raw numbers; empty where a team has none."""
    pairs = [(seed.means(team, metric), seed.values(team, metric)) for team in teams]
    means = [
        [exact(mean) if raw else "" for mean, raw in zip(*pair, strict=True)] for pair in pairs
    ]
    raws = [[";".join(map(exact, raw)) for raw in values] for _, values in pairs]
    return list(zip(*means, *raws, strict=True))


def exact(number: float) -> str:
    """The shortest text that `float` reads back as the same number."""
    return repr(float(number))
