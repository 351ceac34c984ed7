"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from comarl.runs.records import RETURN, WON

WINDOW = 20.0  # seconds over which speeds are averaged


def clock_text(seconds: int | float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def number_text(value: float) -> str:
    """12,345 for large numbers, 12.3 or 0.12 for small ones."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def percent_text(share: float) -> str:
    """A share in %, with the decimal that it needs: 43.8 % or 100 %."""
    return f"{round(100 * share, 1):g} %"


def mean_text(values: Sequence[float | None] | None, metric: str = RETURN) -> str:
    """The mean of a metric over episodes; a win rate in %."""
    if not values:
        return "-"
    mean = float(np.mean(np.array(values, float)))
    return percent_text(mean) if metric == WON else number_text(mean)


def score_text(line: dict, team: str) -> str:
    """A team's mean return in a line of the records; the win rate after it where the task has
    one."""
    won = f", won {mean_text(line[f'{team}_{WON}'], WON)}" if f"{team}_{WON}" in line else ""
    return mean_text(line[team]) + won


@dataclass
class Display:
    """Return or win rate, steps/s, updates/s and time left of one run."""

    console: Console
    steps: int
    seeds: int
    deadline: float | None = None  # of time.monotonic(), where the run has a time budget
    score: str = "return -"  # of the latest evaluation
    samples: deque = field(default_factory=deque)
    phase: str = ""
    first: tuple[float, np.ndarray] | None = None  # when the phase began, and the steps by then

    def __enter__(self) -> "Display":
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24 if self.console.width >= 110 else 6),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[line]}"),
        )
        live, self.started = self.console.is_terminal, time.monotonic()
        self.bar = Progress(*columns, console=self.console, disable=not live, transient=False)
        self.bar.start()
        self.task = self.bar.add_task("starting", total=1.0, line="compiling")
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def update(self, phase: str, env_steps: np.ndarray, updates: int) -> None:
        """`env_steps` of each seed so far; `updates` of all seeds so far, those of the running
        round included."""
        now = time.monotonic()
        if phase != self.phase:  # each phase has a speed of its own, so it is timed by itself
            self.phase, self.first = phase, None
            self.samples.clear()
        self.samples.append((now, float(env_steps.sum()), updates))
        while len(self.samples) > 2 and now - self.samples[0][0] > WINDOW:
            self.samples.popleft()
        then, before, update = self.samples[0]
        elapsed = max(now - then, 1e-9)
        speed = (float(env_steps.sum()) - before) / elapsed
        steps = f"{float(env_steps.min()):,.0f} steps  " if self.console.width >= 110 else ""
        speeds = f"{speed:,.0f} steps/s  {(updates - update) / elapsed:,.0f} updates/s"
        line = f"{self.score}  {steps}{speeds}  {self.time_left(env_steps, now)}"
        self.bar.update(
            self.task, description=phase, completed=self.fraction(env_steps, now), line=line
        )

    def fraction(self, env_steps: np.ndarray, now: float) -> float:
        done = float(np.minimum(env_steps, self.steps).sum()) / (self.steps * self.seeds)
        if self.deadline is None:
            return done
        return max(done, 1 - max(self.deadline - now, 0) / max(self.deadline - self.started, 1e-9))

    def time_left(self, env_steps: np.ndarray, now: float) -> str:
        """By the mean speed since the phase began, or by the time budget if that ends sooner."""
        then, steps = self.first = self.first or (now, env_steps.copy())
        gained = float((env_steps - steps).sum())
        todo = float(np.maximum(self.steps - env_steps, 0).sum())
        by_steps = todo * (now - then) / gained if gained > 0 else np.inf
        left = min(by_steps, (self.deadline or np.inf) - now)
        return f"{clock_text(max(left, 0))} left" if np.isfinite(left) else "time left: measuring"

    def evaluated(self, line: dict) -> None:
        """Shows one seed's evaluation."""
        both = score_text(line, "marl_team")
        self.score = both.partition(", ")[2] or f"return {both}"
        best = f"; best team {score_text(line, 'best_team')}" if "best_team" in line else ""
        self.console.print(
            f"seed {line['seed']}  {line['env_steps']:>9,} steps  {line['updates']:>9,} updates"
            f"  return of the MARL team {both}{best}  ({clock_text(line['wall_time'])})",
            highlight=False,
        )
