"""`comarl report RUN...`: curves and tables of finished or running runs, from their records
alone."""

import dataclasses
import warnings
from collections.abc import Sequence
from itertools import chain, combinations, compress
from pathlib import Path
from typing import Any

from comarl.reporting.curves import draw, draw_training, save
from comarl.reporting.curves import single_run_curve as single_run_curve
from comarl.reporting.payoff import learnt, payoff_csv, payoff_markdown
from comarl.reporting.runs import Curves as Curves
from comarl.reporting.runs import ReportError as ReportError
from comarl.reporting.runs import SeedCurve as SeedCurve
from comarl.reporting.runs import check_measured, compared_by, read_run
from comarl.reporting.statistics import Middle
from comarl.reporting.tables import (
    improvements,
    latex_table,
    markdown_table,
    per_seed_csv,
    table_rows,
    training_csv,
)
from comarl.reporting.tables import rich_table as rich_table
from comarl.runs.records import RETURN


def report(
    runs: list[Path],
    out: Path,
    metric: str | None = None,
    middle: Middle = "mean",
    training: Sequence[str] = (),
) -> list[Path]:
    """Writes curves.png, curves.svg, table.md, table.tex and per_seed.csv of these run folders into
    `out`.

    `metric` is what the runs are compared by: by default the win rate on tasks that have it, else
    the return. For tasks that are compared by another metric the returns are drawn, too, in
    curves_return.png and .svg. The `middle` of the seeds is the line of a curve; tables show means.
    Of matrix games payoff.md and payoff.csv say what was learnt; a run whose folder has no
    payoff.csv is named in a warning and left out there.

    What `training` names, such as "critic_loss", is drawn over training, too, in training.png and
    .svg, with the numbers in training.csv.

    Raises ReportError for a folder without evaluations, or without `metric`, or if no run has
    measured what `training` names, before anything is written.
    """
    curves = comparison(runs)
    by = compared_by(curves, metric)
    rows = table_rows(curves, by)
    figures = {"curves": draw(curves, by, middle=middle)}
    by_other = [task for task, name in by.items() if name != RETURN]
    if by_other:
        returns = dict.fromkeys(by, RETURN)
        figures["curves_return"] = draw(curves, returns, tasks=by_other, middle=middle)
    if training:
        check_measured(curves, training)
        figures["training"] = draw_training(curves, training, middle=middle)
    found = [learnt(run) for run in curves if run.task.startswith("matrix/")]
    games = [game for game in found if game is not None]
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.md": markdown_table(rows, improvements(curves, by)),
        "table.tex": latex_table(rows),
        "per_seed.csv": per_seed_csv(curves),
    }
    if training:
        texts["training.csv"] = training_csv(curves, training)
    if games:
        texts |= {"payoff.md": payoff_markdown(games), "payoff.csv": payoff_csv(games)}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    pictures = [
        save(figure, out / f"{name}{kind}")
        for name, figure in figures.items()
        for kind in (".png", ".svg")
    ]
    return [*pictures, *(out / name for name in texts)]


def comparison(folders: Sequence[Path]) -> list[Curves]:
    """The runs in these folders: runs that differ in nothing but seeds and budget are one, others
    are told apart.

    Warns if two seeds that should differ have the same curve. A folder that is named twice counts
    once.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    if not folders:
        raise ReportError("no run given; name at least one folder that training has written")
    runs = [read_run(folder) for folder in folders]
    _warn_of_equal_curves(runs)
    settings = [_settings(run.config) for run in runs]
    labelled = [
        dataclasses.replace(run, label=_label(place, runs, settings))
        for place, run in enumerate(runs)
    ]
    groups: dict[tuple[str, str], list[Curves]] = {}
    for run in labelled:
        groups.setdefault((run.label, run.task), []).append(run)
    return [_pool(group) for group in groups.values()]


def _warn_of_equal_curves(runs: Sequence[Curves]) -> None:
    """Two seeds of one number and one curve, or two of one run: then something that should vary did
    not.

    A return that never changes proves nothing: all who never catch anything get 0.
    """
    seeds = [(run, seed) for run in runs for seed in run.seeds]
    for (run, one), (other, two) in combinations(seeds, 2):
        curves = ((seed.env_steps, seed.marl_team) for seed in (one, two))
        if run.task != other.task or next(curves) != next(curves):
            continue
        varied = len({value for returns in one.marl_team for value in returns}) > 1
        if varied and (one.seed == two.seed or run is other):
            warnings.warn(
                f"{run.folders[0]} seed {one.seed} and {other.folders[0]} seed {two.seed} have "
                "identical curves: seed not varied?",
                stacklevel=4,
            )


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as one level, "algorithm.beta": 0.1, without what says which seeds were run,
    and how far."""
    if not isinstance(config, dict):
        return {prefix: config}
    items = {
        name: value
        for name, value in config.items()
        if "seed" not in name and f"{prefix}.{name}" != ".steps"
    }
    return {
        key: x
        for name, value in items.items()
        for key, x in _settings(value, f"{prefix}.{name}").items()
    }


def _label(place: int, runs: Sequence[Curves], settings: Sequence[dict[str, Any]]) -> str:
    """An algorithm's name, with the settings in which its runs on this task differ: "race-matd3
    (beta=0.0)"."""
    run, mine = runs[place], settings[place]
    same = [(other.algorithm, other.task) == (run.algorithm, run.task) for other in runs]
    namesakes = list(compress(settings, same))
    names = [
        name
        for name in dict.fromkeys(chain(*namesakes))
        if any(x.get(name) != mine.get(name) for x in namesakes)
    ]
    if not names:
        return run.algorithm
    short = ", ".join(_setting(name.rpartition(".")[2], mine.get(name)) for name in names)
    return f"{run.algorithm} ({short if len(names) <= 3 else run.folders[0].resolve().name})"


def _setting(name: str, value: Any) -> str:
    """A setting in a label."""
    if name == "begun_from":
        return "own start" if value is None else f"begun from {value[:6]}"
    return f"{name}={value}"


def _pool(runs: Sequence[Curves]) -> Curves:
    """Runs that differ in nothing but seeds as one; a seed that was run twice counts once, the
    first time."""
    seeds: dict[int, SeedCurve] = {}
    for run in runs:
        for seed in run.seeds:
            if seed.seed in seeds:
                warnings.warn(
                    f"{run.folders[0]}: seed {seed.seed} of {run.label} is in another folder too; "
                    "counted once",
                    stacklevel=4,
                )
            seeds.setdefault(seed.seed, seed)
    folders = tuple(folder for run in runs for folder in run.folders)
    return dataclasses.replace(
        runs[0], folders=folders, seeds=tuple(seeds[number] for number in sorted(seeds))
    )
