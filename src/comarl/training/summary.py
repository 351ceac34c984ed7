"""What a run came to, as tables for a terminal or a notebook."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from numpy import ndarray
from rich.table import Table

from comarl.runs.records import (
    RETURN,
    TEAM_LABELS,
    extra_metrics,
    metric_label,
    score_key,
)
from comarl.training.progress import mean_text, number_text


def last_evaluations(records: Sequence[dict[str, Any]]) -> Table:
    """The last evaluation of every seed."""
    last = {line["seed"]: line for line in records}
    metrics = [
        RETURN,
        *dict.fromkeys(name for line in last.values() for name in extra_metrics(line)),
    ]
    has_population = any(line.get("best_team") for line in last.values())
    teams = TEAM_LABELS if has_population else {"marl_team": ""}
    columns = [(team, name) for team in teams for name in metrics]
    heads = (f"{teams[team]} {metric_label(name)}".strip() for team, name in columns)
    table = Table(
        "seed", "steps", "updates", *heads, title="Last evaluation: means of greedy episodes"
    )
    for seed, line in sorted(last.items()):
        means = (mean_text(line.get(score_key(team, name)), name) for team, name in columns)
        table.add_row(str(seed), f"{line['env_steps']:,}", f"{line['updates']:,}", *means)
    return table


def restarts(records: Sequence[dict[str, Any]]) -> str | None:
    """A sentence on worker processes that were replaced; None if there were none."""
    count = max((line.get("worker_restarts", 0) for line in records), default=0)
    if not count:
        return None
    return (
        f"Worker processes that died and were replaced: {count}; their episodes were played again."
    )


def scores_table(
    scores: dict[str, Float[ndarray, "seeds episodes"]] | dict[str, Any], first_seed: int
) -> Table:
    """A row for each seed and team; `scores` holds `[seeds, episodes]` by the key of the
    records."""
    metrics = extra_metrics(scores)
    teams = [team for team in TEAM_LABELS if team in scores]
    of_team = ("team",) if len(teams) > 1 else ()
    heads = ("seed", *of_team, "mean", "minimum", "maximum", *map(metric_label, metrics))
    episodes = scores["marl_team"].shape[1]
    table = Table(*heads, title=f"{episodes} greedy episodes: return")
    for team in teams:
        label = (TEAM_LABELS[team],) if len(teams) > 1 else ()
        for seed, row in enumerate(scores[team]):
            numbers = (number_text(float(x)) for x in (row.mean(), row.min(), row.max()))
            extra = (
                mean_text(scores[score_key(team, name)][seed].tolist(), name) for name in metrics
            )
            table.add_row(str(first_seed + seed), *label, *numbers, *extra)
    return table
