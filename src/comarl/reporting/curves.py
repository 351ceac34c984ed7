"""Learning curves.

Drawing needs matplotlib, which comes with the extra `report` and is imported by the functions that
draw. They build figures of their own and leave the caller's pyplot, backend and settings as they
are.
"""

import textwrap
import zlib
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from comarl import escape
from comarl.reporting.runs import Curves, Team, compared_by, read_run, shown_scale
from comarl.reporting.statistics import SEEDS_FOR_AN_INTERVAL, Middle, summarise
from comarl.runs.records import RETURN, WON, metric_label

# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow, which is faint
# on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK = PALETTE
COLOURS = {
    **{"race": BLUE, "merl": GREEN, "matd3": ORANGE, "facmac": PURPLE, "ea": BLACK, "maddpg": SKY},
    **{"qmix": ORANGE, "vdn": SKY, "iql": VERMILLION, "lsf-sac": BLUE, "vm3-ac": GREEN},
}
"""by an algorithm's name, or else by how it begins: "race" is for race-matd3 and race-facmac"""
MARKERS = "os^DvPX"
FEW_LABELS, FEW_RUNS = 4, 3
"""more labels in a figure than this have markers, too; with more runs in a panel the seeds' thin
lines would hide it"""
LINES: dict[Team, tuple[str, str]] = {
    "marl_team": ("-", "MARL team"),
    "best_team": ("--", "best team by training"),
}


def draw(
    runs: Sequence[Curves],
    by: Mapping[str, str] | None = None,
    *,
    tasks: Sequence[str] | None = None,
    best_team: bool = True,
    middle: Middle = "mean",
) -> Any:
    """A matplotlib figure with one panel per task and one colour per algorithm; `by` says each
    task's metric.

    The line is the mean over seeds. Around it is the 95 % t interval, or for fewer than five seeds
    their range, with each seed as a thin line where few runs share the panel; the text above it
    says which. Around a `middle` of "median" is the range of all seeds. Where there is a
    population, the solid line is the MARL team and a dashed one the best team. Of the runs only
    those on `tasks` are drawn, in the colours that they have among all.
    """
    by = by or compared_by(runs)
    tasks = tasks or list(by)
    every = line_styles({run.label: run.algorithm for run in runs})
    shown = [run for run in runs if run.task in tasks]
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        here = [run for run in shown if run.task == task]
        if len(here) > 1 and all(len(seed.env_steps) == 1 for run in here for seed in run.seeds):
            _draw_once(axis, here, by[task], every, middle)
            continue
        for run in here:
            style, thin = every[run.label], shows_seeds(run, here)
            _draw_team(axis, run, "marl_team", by[task], style, middle, shaded=True, thin=thin)
            if best_team and run.has_population:
                _draw_team(
                    axis, run, "best_team", by[task], style, middle, shaded=False, thin=False
                )
        _describe(axis, here, task, captions(here, middle), y_label(here, best_team, by[task]))
        _limit(axis, by[task])
    both = best_team and any(run.has_population for run in shown)
    kinds = [(name, {"color": "0.4", "linestyle": style}) for style, name in LINES.values()]
    labels = dict.fromkeys(run.label for run in shown)
    _legend(figure, [*((label, every[label]) for label in labels), *(kinds if both else [])])
    return figure


def draw_training(runs: Sequence[Curves], names: Sequence[str], *, middle: Middle = "mean") -> Any:
    """A matplotlib figure of what was measured in training: a panel for each task and name, of the
    runs that have it.

    The colours are those of `draw`. A point is a seed's mean since its last evaluation, or of what
    became of injected teams the share of all rounds so far.
    """
    every = line_styles({run.label: run.algorithm for run in runs})
    panels = [(task, name) for task in dict.fromkeys(run.task for run in runs) for name in names]
    figure, axes = _panels(len(panels))
    for axis, (task, name) in zip(axes, panels, strict=True):
        here = [run for run in runs if run.task == task and name in run.measured]
        for run in here:
            grid, values = run.training_on_grid(name)
            _draw_line(
                axis,
                grid,
                values,
                every[run.label],
                middle,
                shaded=True,
                thin=shows_seeds(run, here),
            )
        _describe(
            axis,
            here,
            task,
            captions(here, middle) if here else "not measured here",
            " / ".join(dict.fromkeys(run.training_label(name) for run in here))
            or f"{metric_label(name)} in training",
        )
    _legend(figure, list(every.items()))
    return figure


def draw_single(run: Curves) -> Any:
    """A matplotlib figure of one run: each seed as a thin line, and their mean.

    A population has both for the MARL team and for the best team. Beside the return's panel is one
    of the win rate, where the task has it.
    """
    metrics = [*([WON] if WON in run.metrics else []), RETURN]
    figure, axes = _panels(len(metrics))
    teams: list[tuple[Team, str]] = [
        ("marl_team", BLUE),
        *([("best_team", VERMILLION)] if run.has_population else []),
    ]
    label = {team: LINES[team][1] if run.has_population else run.label for team, _ in teams}
    styles = [
        (label[team], {"color": colour, "linestyle": LINES[team][0]}) for team, colour in teams
    ]
    for axis, metric in zip(axes, metrics, strict=True):
        for (team, _), (_, style) in zip(teams, styles, strict=True):
            _draw_team(axis, run, team, metric, style, "mean", shaded=False, thin=True)
        _describe(
            axis,
            [run],
            f"{run.label} on {run.task}",
            _caption(run, "mean", thin=True),
            y_label([run], True, metric),
        )
        _limit(axis, metric)
    _legend(figure, styles)
    return figure


def single_run_curve(folder: Path) -> Path:
    """Draws the curve of one run into its own folder, and returns the picture's path."""
    return save(draw_single(read_run(folder)), folder / "curve.png")


def line_styles(algorithms: dict[str, str]) -> dict[str, dict[str, Any]]:
    """How to draw each label: the fixed colour of its algorithm, the next free one if another label
    here has that.

    Beyond four labels each has a marker, too. Beyond seven colours repeat, with other markers.
    """
    first: dict[int, str] = {}  # place in the palette -> the label that has it
    for label, name in algorithms.items():
        first.setdefault(PALETTE.index(colour_of(name)), label)
    free = [place for place in range(len(PALETTE)) if place not in first]
    again = [(place, turn) for turn in range(1, len(MARKERS)) for place in range(len(PALETTE))]
    rest = [label for label in algorithms if label not in first.values()]
    places = {label: (place, 0) for place, label in first.items()}
    places |= dict(zip(rest, cycle([*((place, 0) for place in free), *again]), strict=False))
    styles: dict[str, dict[str, Any]] = {}
    for label in algorithms:
        place, turn = places[label]
        styles[label] = {"color": PALETTE[place]}
        if turn or len(algorithms) > FEW_LABELS:
            marker = MARKERS[(place + turn) % len(MARKERS)]
            styles[label] |= {"marker": marker, "markevery": (0.02 * place, 0.14), "markersize": 5}
    return styles


def colour_of(algorithm: str) -> str:
    """The fixed colour of a name; any name has one."""
    known = COLOURS.get(algorithm) or COLOURS.get(algorithm.partition("-")[0])
    return known or PALETTE[zlib.crc32(algorithm.encode()) % len(PALETTE)]


def shows_seeds(run: Curves, here: Sequence[Curves]) -> bool:
    """Whether a run's seeds are drawn one by one, in a panel of these runs."""
    return len(run.seeds) < SEEDS_FOR_AN_INTERVAL and len(here) <= FEW_RUNS


def captions(runs: Sequence[Curves], middle: Middle = "mean") -> str:
    """What is drawn, with what around it, and of how many seeds: once for all runs of which the
    same is said."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        drawn = summarise(np.zeros((len(run.seeds), 1)), middle)[-1]
        labels.setdefault(_caption(run, drawn, thin=shows_seeds(run, runs)), []).append(run.label)
    usual = max(labels, key=lambda phrase: len(labels[phrase]))
    if len(labels) == 1:
        return usual
    named = {phrase: f"{', '.join(of)}: {phrase}" for phrase, of in labels.items()}
    if len(labels[usual]) > 1:
        named = {
            usual: f"{usual}, but",
            **{phrase: text for phrase, text in named.items() if phrase != usual},
        }
    return "\n".join(named.values())


def _caption(run: Curves, drawn: str, *, thin: bool) -> str:
    count = len(run.seeds)
    if count == 1:
        return "1 seed, no interval"
    if len(run.on_grid("marl_team")[0]) < 2:
        return f"the evaluations of {count} seeds as dots, too few for a mean"
    return f"{drawn} of {count} seeds{'; thin: each seed' if thin else ''}"


def y_label(runs: Sequence[Curves], best_team: bool, metric: str = RETURN) -> str:
    """What is measured, with the episodes of an evaluation: "10 episodes", or "5-10" where
    evaluations differ.

    The team is named where there is a population of which only the MARL team is drawn.
    """
    counts = {len(values) for run in runs for seed in run.seeds for values in seed.marl_team}
    number = "-".join(str(count) for count in sorted({min(counts), max(counts)}))
    alone = not best_team and any(run.has_population for run in runs)
    name = "test win rate" if metric == WON else metric_label(metric)
    team, unit = " of the MARL team" if alone else "", " in %" if metric == WON else ""
    return f"{name}{team}{unit}\n(greedy, {number} episode{'' if number == '1' else 's'})"


def x_label(runs: Sequence[Curves]) -> str:
    """What the axis of time counts: of a population the steps of all its teams together."""
    teams = " (all teams)" if any(run.has_population for run in runs) else ""
    return f"environment steps{teams}"


def save(figure: Any, path: Path) -> Path:
    """Writes a figure as its suffix says, with the same bytes each time."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "comarl"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _panels(number: int) -> tuple[Any, list[Any]]:
    """An empty figure and its axes, row by row, at most three in each."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ImportError(
            'drawing curves needs matplotlib: pip install "comarl[report]"'
        ) from error
    columns = 2 if number == 4 else min(3, number)
    rows = -(-number // columns)
    figure = Figure(
        figsize=(max(6.4, 4.4 * columns), 3.4 * rows + 1.0), layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[number:]:
        axis.remove()
    for axis in axes[:number]:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes[:number]


def _draw_team(
    axis: Any,
    run: Curves,
    team: Team,
    metric: str,
    style: dict[str, Any],
    middle: Middle,
    *,
    shaded: bool,
    thin: bool,
) -> None:
    """The middle of the seeds as a line; a band around it; the seeds as thin lines, up to where the
    line ends."""
    style = {"linestyle": LINES[team][0], **style}
    if team == "best_team":  # the same colour, and quieter
        style |= {"linewidth": 1.3, "marker": None}
    scale = shown_scale(metric)
    grid, values = run.on_grid(team, metric)
    _draw_line(axis, grid, scale * values, style, middle, shaded=shaded, thin=thin)
    if len(grid) < 2:  # too early for lines: a dot per evaluation
        for seed in run.seeds:
            axis.plot(
                seed.env_steps,
                scale * seed.means(team, metric),
                "o",
                color=style["color"],
                markersize=4,
            )


def _draw_once(
    axis: Any,
    here: Sequence[Curves],
    metric: str,
    styles: Mapping[str, dict[str, Any]],
    middle: Middle,
) -> None:
    """Runs that were evaluated once, side by side: a dot for each seed, and their middle with what
    is around it."""
    scale, drawn = shown_scale(metric), ""
    for place, run in enumerate(here):
        values = scale * np.stack([seed.means("marl_team", metric) for seed in run.seeds])
        color = styles[run.label]["color"]
        axis.plot(
            np.full(len(values), place - 0.1), values, "o", color=color, alpha=0.5, markersize=5
        )
        (line,), (low,), (high,), drawn = summarise(values, middle)
        axis.errorbar(
            place + 0.1, line, [[line - low], [high - line]], fmt="D", color=color, capsize=4
        )
    axis.set_xlim(-0.6, len(here) - 0.4)
    axis.set_xticks([])
    steps = sorted({seed.env_steps[0] for run in here for seed in run.seeds})
    caption = f"{drawn} of {len(here[-1].seeds)} seeds; dots: each seed"
    _describe(axis, here, here[0].task, caption, y_label(here, False, metric))
    between = " to ".join(f"{x:,}" for x in dict.fromkeys((steps[0], steps[-1])))
    axis.set_xlabel(f"after {between} environment steps", fontsize=9)
    _limit(axis, metric)


def _draw_line(
    axis: Any,
    grid: Any,
    values: Any,
    style: dict[str, Any],
    middle: Middle,
    *,
    shaded: bool,
    thin: bool,
) -> None:
    """The middle of `values` `[seeds time]` as a line; a band around it; the seeds as thin
    lines."""
    if thin and len(values) > 1:
        for value in values:
            axis.plot(grid, value, color=style["color"], linewidth=0.6, alpha=0.6)
    line, low, high, _ = summarise(values, middle)
    if shaded and len(values) > 1:
        axis.fill_between(grid, low, high, color=style["color"], alpha=0.18, linewidth=0)
    if len(grid) > 1:
        axis.plot(grid, line, **{"linewidth": 1.8, **style})


def _describe(axis: Any, here: Sequence[Curves], title: str, caption: str, y_label: str) -> None:
    """The words around a panel."""
    axis.set_xlabel(x_label(here), fontsize=9)
    axis.set_ylabel(escape.plot(y_label), fontsize=9)
    whole = escape.plot(caption).replace(
        "95 % t interval", "95\u00a0%\u00a0t\u00a0interval"
    )  # no line ends within it
    lines = [
        part for line in whole.split("\n") for part in textwrap.wrap(line, 56)
    ]  # a panel is about as wide
    axis.set_title(
        escape.plot(title), loc="left", fontsize=11, fontweight="bold", pad=8 + 11 * len(lines)
    )
    place = {"xycoords": "axes fraction", "xytext": (0, 5), "textcoords": "offset points"}
    axis.annotate("\n".join(lines), (0, 1), **place, fontsize=8, color="0.35", va="bottom")


def _limit(axis: Any, metric: str) -> None:
    """A win rate is shown from 0 to 100 %, wherever its interval reaches."""
    if metric == WON:
        axis.set_ylim(-3, 103)


def _legend(figure: Any, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=escape.plot(label), linewidth=1.8, **style) for label, style in entries
    ]
    widest = 0.8 + 0.075 * max(len(label) for label, _ in entries)  # inches
    columns = max(1, min(len(entries), int(figure.get_figwidth() / widest)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
