"""What a run remembers of itself besides its state."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comarl.machine.interrupt import StopRequest
from comarl.runs.records import FATES, count_of
from comarl.validation import fits, is_whole


@dataclass
class Means:
    """Running sums and counts of each seed's training metrics since its last evaluation."""

    sums: list[dict[str, list[float | int]]]  # per seed: name -> [sum, count]

    @classmethod
    def of(cls, seeds: int) -> "Means":
        """Nothing measured yet."""
        return cls([{} for _ in range(seeds)])

    def add(self, seed: int, name: str, total: float, count: int) -> None:
        """Adds `count` measurements of one metric by their sum."""
        cell = self.sums[seed].setdefault(name, [0.0, 0])
        cell[0] += total
        cell[1] += count

    def take(self, seed: int) -> dict[str, float]:
        """A seed's means, which begin anew after it; of what became of injected teams the counts,
        too, of which rates over a whole run can be made."""
        sums, self.sums[seed] = self.sums[seed], {}
        means = {name: total / count for name, (total, count) in sums.items() if count}
        return means | {count_of(name): sums[name][0] for name in FATES if name in sums}


@dataclass
class Log:
    """What a run remembers of itself besides its state; a checkpoint's header keeps it."""

    means: Means
    round: int = 0
    worker_restarts: int = 0
    wall_time: float = 0.0
    """seconds of all stretches before this one"""
    has_learnt: bool = False
    """whether this stretch has made an update: the first one waits for a compilation"""
    unevaluated: list[int] | None = None
    """steps of each seed when the round began whose evaluation is still to be finished"""
    code: dict[str, str] = field(default_factory=dict)
    """fingerprints of the code that this stretch runs"""
    stop: StopRequest = field(default_factory=StopRequest)
    """whether somebody has asked to stop, and how"""
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Seconds that the run has taken, those before it was resumed included."""
        return self.wall_time + time.monotonic() - self.began


def check_header(header: dict[str, Any]) -> None:
    """Raises ValueError unless a checkpoint's header has all that a run resumes from."""
    for name, is_right in HEADER.items():
        missing = name in OPTIONAL and name not in header
        if not missing and not is_right(header.get(name)):
            raise ValueError(f"its header has no {name}, or another than a run writes")
    seeds = header["config"]["seeds"]
    for name in ("means", "unevaluated"):
        if len(header.get(name, range(seeds))) != seeds:
            raise ValueError(f"its header's {name} are not of {seeds} seeds")


def _is_count(value: Any) -> bool:
    return fits(value, int) and value >= 0


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_sum(cell: Any) -> bool:
    is_number = lambda part: isinstance(part, int | float) and math.isfinite(part)
    return isinstance(cell, list) and len(cell) == 2 and all(map(is_number, cell))


HEADER: dict[str, Callable[[Any], bool]] = {
    "round": _is_count,
    "wall_time": lambda value: fits(value, float) and value >= 0,
    "worker_restarts": _is_count,
    "records": lambda value: is_whole(value) and value >= 0,
    "means": lambda value: (
        isinstance(value, list)
        and all(_is_table(means) and all(map(_is_sum, means.values())) for means in value)
    ),
    "unevaluated": lambda value: isinstance(value, list) and all(map(_is_count, value)),
    "versions": _is_table,
    "code": _is_table,
}
"""what a checkpoint's header says besides its configuration, and whether that can be"""
OPTIONAL = ("worker_restarts", "unevaluated", "versions", "code")
"""of these, what the headers of some runs have not"""
