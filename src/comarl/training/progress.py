"""Shows how a run goes: a live line on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from comarl import escape
from comarl.runs.records import RETURN, WON
from comarl.training.events import Ended, Evaluated, Event, Note, Progress, Started

WIDE = 110  # columns of a terminal on which everything fits
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
class Meter:
    """Speeds over the last seconds, and the time left, of one phase of a run."""

    steps: int
    seeds: int
    deadline: float | None
    """of `time.monotonic()`, where the run has a time budget"""
    phase: str = ""
    samples: deque = field(default_factory=deque)
    """of the last seconds: time, steps and updates of all seeds"""
    first: tuple[float, float] = (0.0, 0.0)
    """when the phase began, and the steps by then"""

    def add(self, phase: str, now: float, env_steps: np.ndarray, updates: int) -> None:
        """One more measurement. Each phase has a speed of its own, so it is timed by itself."""
        steps = float(env_steps.sum())
        if phase != self.phase:
            self.phase, self.first = phase, (now, steps)
            self.samples.clear()
        self.samples.append((now, steps, updates))
        while len(self.samples) > 2 and now - self.samples[0][0] > WINDOW:
            self.samples.popleft()

    def speeds(self) -> tuple[float, float]:
        """Environment steps and updates per second, of all seeds."""
        then, steps_then, updates_then = self.samples[0]
        now, steps, updates = self.samples[-1]
        elapsed = max(now - then, 1e-9)
        return (steps - steps_then) / elapsed, (updates - updates_then) / elapsed

    def time_left(self, env_steps: np.ndarray) -> str:
        """By the mean speed since the phase began, or by the time budget if that ends sooner."""
        now, steps, _ = self.samples[-1]
        then, steps_then = self.first
        gained = steps - steps_then
        todo = float(np.maximum(self.steps - env_steps, 0).sum())
        by_steps = todo * (now - then) / gained if gained > 0 else np.inf
        left = min(by_steps, (self.deadline or np.inf) - now)
        return f"{clock_text(max(left, 0))} left" if np.isfinite(left) else "time left: measuring"

    def fraction(self, env_steps: np.ndarray, began: float) -> float:
        """The share of the steps, or of the time budget if that is larger, that is behind."""
        now = self.samples[-1][0]
        done = float(np.minimum(env_steps, self.steps).sum()) / (self.steps * self.seeds)
        if self.deadline is None:
            return done
        of_time = 1 - max(self.deadline - now, 0) / max(self.deadline - began, 1e-9)
        return max(done, of_time)


@dataclass
class Display:
    """Shows a run's events: a live line on a terminal, and a line for each evaluation."""

    console: Console
    score: str = "return -"
    """of the latest evaluation"""
    meter: Meter | None = None
    bar: Bar | None = None
    began: float = 0.0

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case Started():
                self.start(event)
            case Progress():
                self.update(event)
            case Evaluated(line):
                self.evaluated(line)
            case Note(text, warning):
                text = f"Warning: {text}" if warning else text
                # Text from outside, such as an environment's message, is neither markup nor escapes
                shown = Text(escape.terminal(text))
                self.console.print(shown, highlight=False, soft_wrap=True)
            case Ended():
                if self.bar is not None:
                    self.bar.stop()

    def start(self, event: Started) -> None:
        """Begins the live line, where the console is a terminal."""
        self.began = time.monotonic()
        self.meter = Meter(event.steps, event.seeds, event.deadline)
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24 if self.console.width >= WIDE else 6),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[line]}", markup=False),
        )
        live = self.console.is_terminal
        self.bar = Bar(*columns, console=self.console, disable=not live, transient=False)
        self.bar.start()
        self.bar.add_task("starting", total=1.0, line="compiling")

    def update(self, event: Progress) -> None:
        """Shows the phase, the score, the speeds and the time left."""
        if self.meter is None or self.bar is None:
            return
        env_steps = event.env_steps
        self.meter.add(event.phase, time.monotonic(), env_steps, event.updates)
        steps_per_second, updates_per_second = self.meter.speeds()
        wide = self.console.width >= WIDE
        updates = f"  {updates_per_second:,.0f} updates/s" if wide else ""
        steps = f"{float(env_steps.min()):,.0f} steps  {steps_per_second:,.0f} steps/s{updates}"
        line = f"{self.score}  {steps}  {self.meter.time_left(env_steps)}"
        completed = self.meter.fraction(env_steps, self.began)
        for task in self.bar.task_ids:
            self.bar.update(task, description=event.phase, completed=completed, line=line)

    def evaluated(self, line: dict) -> None:
        """Shows one seed's evaluation: of two teams, where there is a population."""
        score = score_text(line, "marl_team")
        self.score = score.partition(", ")[2] or f"return {score}"
        shown = f"return {score}"
        if "best_team" in line:
            best = score_text(line, "best_team")
            shown = f"return of the MARL team {score}; best team {best}"
        self.console.print(
            f"seed {line['seed']}  {line['env_steps']:>9,} steps  {line['updates']:>9,} updates"
            f"  {shown}  ({clock_text(line['wall_time'])})",
            highlight=False,
            soft_wrap=True,
        )
