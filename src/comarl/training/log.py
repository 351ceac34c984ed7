"""What a run remembers of itself besides its state."""

import time
from dataclasses import dataclass, field

from comarl.machine.interrupt import StopRequest
from comarl.runs.records import FATES, count_of


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
