"""The evaluations in the folders of runs, and the metric that the runs of a task are compared
by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from comarl.reporting.statistics import mean_over_episodes, on_common_grid
from comarl.runs import records
from comarl.runs.records import FATES, RETURN, WON, count_of, metric_label

Team = Literal["marl_team", "best_team"]
Values = tuple[tuple[float, ...], ...]
"""one number per episode of each evaluation"""


class ReportError(ValueError):
    """Runs that cannot be reported on as asked; the message names them and says what would be
    right."""


def shown_scale(metric: str) -> float:
    """What a metric is multiplied by to be shown: a win rate is shown in %."""
    return 100.0 if metric == WON else 1.0


@dataclass(frozen=True)
class SeedCurve:
    """The evaluations of one seed, in order, with the raw numbers of their episodes."""

    seed: int
    env_steps: tuple[int, ...]
    updates: tuple[int, ...]
    marl_team: Values
    """returns of the team; in a population of the one that MARL trains"""
    best_team: Values
    """returns; empty tuples where there is no population"""
    metrics: dict[str, Values] = field(default_factory=dict)
    """what the task counts besides the return, by its key in the record, such as "marl_team_won";
    empty tuples where missing"""
    training: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """training metrics, such as "td_loss": the mean since the last evaluation; nan where missing.
    Of what became of injected teams the share of all rounds so far, where the record has counts"""

    def values(self, team: Team, metric: str = RETURN) -> Values:
        """The raw numbers of a team's episodes."""
        if metric == RETURN:
            return getattr(self, team)
        return self.metrics.get(records.score_key(team, metric), ((),) * len(self.env_steps))

    def means(self, team: Team, metric: str = RETURN) -> np.ndarray:
        """One number per evaluation, so that seeds and not episodes are what statistics count."""
        return mean_over_episodes(self.values(team, metric))


@dataclass(frozen=True)
class Curves:
    """The seeds of one algorithm on one task."""

    folders: tuple[Path, ...]
    algorithm: str
    label: str
    """the algorithm's name, with the settings that tell this run from others of that name"""
    task: str
    seeds: tuple[SeedCurve, ...]
    config: dict[str, Any]

    @property
    def has_population(self) -> bool:
        """Whether there is a best team beside the MARL team."""
        return any(any(seed.best_team) for seed in self.seeds)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics besides the return that every evaluation of every seed has."""
        names = dict.fromkeys(
            name for seed in self.seeds for name in records.extra_metrics(seed.metrics)
        )
        return tuple(
            name
            for name in names
            if all(all(seed.values("marl_team", name)) for seed in self.seeds)
        )

    def training_label(self, name: str) -> str:
        """A training metric as people read it. Records of older versions have no counts of what
        became of injected teams, so that there only the means of each window are known."""
        label = f"{metric_label(name)} in training"
        if name not in FATES:
            return label
        counted = all(count_of(name) in seed.training for seed in self.seeds)
        return f"{label}, {'of all rounds so far' if counted else 'mean of each window'}"

    def on_grid(self, team: Team, metric: str = RETURN) -> tuple[np.ndarray, np.ndarray]:
        """The seeds' means on their common grid of env_steps: [time] and [seeds, time]."""
        env_steps = [np.array(seed.env_steps, float) for seed in self.seeds]
        return on_common_grid(env_steps, [seed.means(team, metric) for seed in self.seeds])

    @property
    def measured(self) -> tuple[str, ...]:
        """The training metrics that every seed has, such as "td_loss"."""
        names = dict.fromkeys(name for seed in self.seeds for name in seed.training)
        return tuple(
            name
            for name in names
            if all(np.isfinite(seed.training.get(name, ())).any() for seed in self.seeds)
        )

    def training_on_grid(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """As `on_grid`, of a training metric, from where each seed has a number."""
        values = [np.array(seed.training[name]) for seed in self.seeds]
        env_steps = [np.array(seed.env_steps, float) for seed in self.seeds]
        known = [np.isfinite(value) for value in values]
        pairs = list(zip(env_steps, values, known, strict=True))
        return on_common_grid(
            [steps[has] for steps, _, has in pairs], [value[has] for _, value, has in pairs]
        )


def compared_by(runs: Sequence[Curves], metric: str | None = None) -> dict[str, str]:
    """The metric by which the runs of each task are compared: by default the win rate where all
    have it, else returns.

    Raises ReportError if `metric` is given and a run lacks it.
    """
    chosen: dict[str, str] = {}
    for task in dict.fromkeys(run.task for run in runs):
        here = [run.metrics for run in runs if run.task == task]
        common = [RETURN, *(name for name in here[0] if all(name in names for names in here))]
        if metric is not None and metric not in common:
            raise ReportError(
                f"--metric {metric}: not every run on {task} has recorded it; there it can be "
                f"{' or '.join(common)}"
            )
        chosen[task] = metric or (WON if WON in common else RETURN)
    return chosen


def check_measured(runs: Sequence[Curves], names: Sequence[str]) -> None:
    """Raises ReportError if no run has measured one of `names` in training."""
    known = sorted({name for run in runs for name in run.measured})
    for name in names:
        if name not in known:
            what = f"it can be {', '.join(known)}" if known else "nor anything else"
            raise ReportError(f"--training {name}: no run has measured it in training; {what}")


def read_run(folder: Path) -> Curves:
    """The evaluations that a run has recorded in its folder so far. Raises ReportError if there are
    none."""
    if not (folder / records.METRICS).is_file():
        raise ReportError(
            f"{folder}: no {records.METRICS} in it; give the folder of a run, where training "
            "writes one"
        )
    try:
        lines = [line for line in records.read(folder) if line.get("marl_team")]
        seeds = sorted({line["seed"] for line in lines})
        curves = tuple(
            _seed_curve(seed, [line for line in lines if line["seed"] == seed]) for seed in seeds
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = error if isinstance(error, ValueError) else repr(error)
        raise ReportError(
            f"{folder}: its {records.METRICS} is not a run's record ({cause}); restore it"
        ) from error
    if not curves:
        raise ReportError(
            f"{folder}: no evaluation yet; wait for the first one, or train with a larger budget"
        )
    try:
        config = records.read_config(folder) if (folder / records.CONFIG).exists() else {}
    except ValueError as error:
        raise ReportError(
            f"{folder}: its {records.CONFIG} is not JSON ({error}); restore it or delete it"
        ) from error
    name, task = (
        str(config.get(key) or folder.resolve().name) for key in ("algorithm_name", "task_name")
    )
    return Curves((folder,), name, name, task, curves, config)


def _seed_curve(seed: int, lines: list[dict[str, Any]]) -> SeedCurve:
    def values(name: str) -> Values:  # a number that was not finite is null in the record
        return tuple(
            tuple(float("nan" if x is None else x) for x in line.get(name) or ()) for line in lines
        )

    env_steps, updates = (
        tuple(int(line[name]) for line in lines) for name in ("env_steps", "updates")
    )
    names = dict.fromkeys(
        name for line in lines for name in line if name.startswith(("marl_team_", "best_team_"))
    )
    metrics = {name: values(name) for name in names}
    measured = [line.get("training") or {} for line in lines]
    training = {
        name: tuple(float("nan" if (x := means.get(name)) is None else x) for means in measured)
        for name in dict.fromkeys(name for means in measured for name in means)
    }
    training |= cumulative_fates(training)
    return SeedCurve(
        seed, env_steps, updates, values("marl_team"), values("best_team"), metrics, training
    )


def cumulative_fates(
    training: Mapping[str, tuple[float, ...]],
) -> dict[str, tuple[float, ...]]:
    """What became of injected teams as shares of all rounds up to each evaluation (RACE, Fig. 4),
    from their counts since the last one; nothing where there are none.

    >>> counts = {"injected_elite_count": (1.0, 0.0), "injected_discarded_count": (0.0, 3.0)}
    >>> cumulative_fates(counts | {"injected_selected_count": (0.0, 0.0)})["injected_elite"]
    (1.0, 0.25)
    """
    if not all(count_of(fate) in training for fate in FATES):
        return {}
    counts = np.nan_to_num([training[count_of(fate)] for fate in FATES]).cumsum(axis=1)
    rounds = counts.sum(axis=0)
    shares = np.where(rounds > 0, counts / np.maximum(rounds, 1), np.nan)
    return {fate: tuple(share.tolist()) for fate, share in zip(FATES, shares, strict=True)}
