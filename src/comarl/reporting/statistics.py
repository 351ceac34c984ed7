"""Statistics of a comparison, after Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", NeurIPS 2021, whose library rliable is what the tests compare with.

Seeds are the unit of replication. The episodes of one evaluation share one trained team, so they
are averaged first (`mean_over_episodes`) and every function below sees one score per seed. `scores`
has the axes [seeds, tasks].
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

Scores = Float[np.ndarray, "seeds tasks"]
Middle = Literal["mean", "median"]

SEEDS_FOR_AN_INTERVAL = 5
"""with fewer, a curve shows the range of its seeds: for 2 the 95 % t interval reaches 12.7 standard
errors"""


def mean_over_episodes(returns: Sequence[Sequence[float]]) -> Float[np.ndarray, " evaluations"]:
    """One number per evaluation of one seed: the mean over its episodes, nan where none was
    played."""
    return np.array([np.mean(episodes) if len(episodes) else np.nan for episodes in returns], float)


def mean(scores: Scores) -> float:
    """Mean over tasks of the mean over seeds (rliable's `aggregate_mean`)."""
    return float(scores.mean(axis=0).mean())


def median(scores: Scores) -> float:
    """Median over tasks of the mean over seeds (rliable's `aggregate_median`)."""
    return float(np.median(scores.mean(axis=0)))


def iqm(scores: Scores) -> float:
    """Interquartile mean: the mean of the middle half of all runs of all tasks (Agarwal et al.
    2021, §4.3).

    The lowest and the highest quarter are left out; a quarter is rounded down to whole runs, as in
    rliable.
    """
    ordered = np.sort(scores, axis=None)
    quarter = ordered.size // 4
    return float(ordered[quarter : ordered.size - quarter].mean())


def probability_of_improvement(scores: Scores, others: Float[np.ndarray, "others tasks"]) -> float:
    """P(X > Y): the chance that a seed of X beats a seed of Y on a task, a tie counting half,
    averaged over tasks.

    It is the Mann-Whitney U statistic over the number of pairs (Agarwal et al. 2021, §4.3). The two
    may have different numbers of seeds; the tasks must be the same, in the same order.
    """
    x, y = scores[:, None, :], others[None, :, :]
    return float(((x > y) + 0.5 * (x == y)).mean())


def bootstrap_interval(
    statistic: Callable[..., float],
    *scores: np.ndarray,
    confidence: float = 0.95,
    reps: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic by the stratified bootstrap over seeds (Agarwal et al.
    2021, §4.1).

    Seeds are drawn with replacement within each task, and independently for each of the score
    arrays [seeds, tasks], of which `statistic` takes as many as are given. The same `seed` gives
    the same interval. One seed says nothing about the next one: the interval is then (nan, nan).
    """
    if min(len(array) for array in scores) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    values = [statistic(*(_resample(array, rng) for array in scores)) for _ in range(reps)]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resample(scores: Scores, rng: np.random.Generator) -> Scores:
    """As many seeds again, drawn with replacement for each task on its own."""
    return np.take_along_axis(scores, rng.integers(len(scores), size=scores.shape), axis=0)


def t_interval(
    values: Float[np.ndarray, "seeds *rest"], confidence: float = 0.95
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Student's t interval of the mean over seeds: mean ± t(n - 1) · s / √n, with s on n - 1
    degrees of freedom.

    The factor t belongs to the number of seeds at hand (12.71 for 2, 4.30 for 3, 2.26 for 10),
    never 1.96. With one seed there is no interval: nan.
    """
    n = len(values)
    centre = np.asarray(values.mean(axis=0))
    if n < 2:
        return np.full_like(centre, np.nan), np.full_like(centre, np.nan)
    half = stdtrit(n - 1, (1 + confidence) / 2) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return np.asarray(centre - half), np.asarray(centre + half)


def band(
    values: Float[np.ndarray, "seeds time"],
) -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, " time"], str]:
    """What to shade around the mean curve, and its name: the 95 % t interval, or for few seeds
    their range."""
    if len(values) >= SEEDS_FOR_AN_INTERVAL:
        return *t_interval(values), "95 % t interval"
    if len(values) > 1:
        return values.min(axis=0), values.max(axis=0), "min-max range"
    return *t_interval(values), "no interval"


def summarise(
    values: Float[np.ndarray, "seeds time"], middle: Middle
) -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, " time"], Float[np.ndarray, " time"], str]:
    """The line of a curve, what to shade around it, from below and above, and the name of both."""
    if middle == "median":
        return (
            np.median(values, axis=0),
            values.min(axis=0),
            values.max(axis=0),
            "median and min-max range",
        )
    low, high, name = band(values)
    return values.mean(axis=0), low, high, f"mean and {name}"


def on_common_grid(
    env_steps: Sequence[Float[np.ndarray, "_"]], values: Sequence[Float[np.ndarray, "_"]]
) -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, "seeds time"]]:
    """The seeds' curves on one grid of env_steps, each interpolated linearly between its own
    evaluations.

    The grid holds every step at which some seed was evaluated, from where all seeds have begun to
    where the first one ends: nothing is extrapolated. It is empty when the seeds' ranges do not
    meet.
    """
    start = max(steps[0] for steps in env_steps)
    end = min(steps[-1] for steps in env_steps)
    grid = np.unique(np.concatenate(env_steps)).astype(float)
    grid = grid[(grid >= start) & (grid <= end)]
    curves = [np.interp(grid, steps, value) for steps, value in zip(env_steps, values, strict=True)]
    return grid, np.stack(curves)
