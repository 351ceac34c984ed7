"""Environment steps and updates per second of VM3-AC on waves of prey with four predators: comarl
with several seeds in one run, against the same training of one seed in plain PyTorch on a NumPy
task (`bench/torch_vm3_ac.py`).

comarl's side is a session as `comarl train` runs it, without evaluations, after the warm-up; all
its seeds' steps count. PyTorch has the number of threads that suits it best, found beforehand. The
two take turns within one process, so that a busy machine slows both; figures are medians over
turns, and both learn once for every four steps.
"""

import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from rows import write
from torch_vm3_ac import Training

from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.envs.waves import PRESETS
from comarl.machine.allocator import keep_freed_memory
from comarl.machine.hardware import cpu_model, usable_cores
from comarl.machine.placement import see_a_device_for_each
from comarl.play.player import Player
from comarl.training.progress import Display
from comarl.training.run import Options, Session
from comarl.training.settings import Run
from comarl.training.train import RunState

CONSOLE = Console(width=max(Console().width, 110))  # that no name is broken, in a file either
ALGORITHM, TASK = Vm3Ac(), PRESETS["4"]
LONG = 2**30  # environment steps that nothing here reaches

ReadClock = Callable[[], float]
Count = np.ndarray  # environment steps and updates so far


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    seeds: int = 7
    """seeds that comarl trains in one run"""
    seconds: float = 20.0
    """least time of each turn"""
    turns: int = 5
    """turns of each side, whose median counts"""
    vmapped_seeds: bool | None = None
    """comarl's seeds vmapped, or sequential; by default as `comarl train`
    does: on a CPU each has a device of its own"""
    cpu_time: bool = False
    """count the processor's seconds instead of the clock's: for one core (`taskset -c 0`) that
    others use, too"""
    csv: Path | None = None
    """where to write the rows"""


@dataclass(frozen=True)
class Row:
    """One measurement, of all seeds together; `ratio` is to PyTorch's one, turn by turn."""

    framework: str
    seeds: int
    threads: int
    env_steps_per_second: float
    updates_per_second: float
    ratio: float
    clock: str
    hardware: str


class PyTorch:
    """Training in PyTorch, as fast as a number of threads makes it."""

    def __init__(self, settings: Settings, clock: ReadClock):
        state = jax.jit(lambda key: ALGORITHM.init(TASK.spec, key))(jax.random.key(0))
        self.training, self.clock, self.threads = Training(ALGORITHM, TASK, state), clock, 1
        rates = {
            threads: self.play(settings.seconds / 4, threads)[0] for threads in (1, usable_cores())
        }
        self.threads = max(rates, key=lambda threads: rates[threads])
        for threads, rate in rates.items():
            CONSOLE.print(f"PyTorch, {threads} thread(s): {rate:.0f} steps/s")

    def play(self, seconds: float, threads: int | None = None) -> Count:
        """Takes a turn of at least so long: steps and updates per second."""
        torch.set_num_threads(threads or self.threads)
        training, begin = self.training, self.clock()
        before = np.array([training.env_steps, training.updates])
        while self.clock() - begin < seconds:
            training.round()
        return (np.array([training.env_steps, training.updates]) - before) / (self.clock() - begin)


def take_turns(
    settings: Settings, clock: ReadClock, theirs: PyTorch
) -> Generator[bool, Count, None]:
    """Is told comarl's count after each of its rounds, and says whether it shall go on; rates are
    in `rates`."""
    now = yield True
    rates = np.zeros((settings.turns, 2, 2))  # [turn, side, steps or updates]
    for turn in rates:
        before, begin = now, clock()
        while clock() - begin < settings.seconds:
            now = yield True
        turn[0] = (now - before) / (clock() - begin)
        turn[1] = theirs.play(settings.seconds)
    show(settings, rates, theirs)
    yield False


class Timed(Session):
    """A session whose rounds are counted once all is compiled, and which ends when it is told
    to."""

    referee: Generator[bool, Count, None]
    goes_on = True

    def round(
        self, state: RunState, player: Player, evaluator: Player, display: Display
    ) -> RunState:
        has_learnt = self.updates(state) > 0
        state = super().round(state, player, evaluator, display)
        if has_learnt:
            self.goes_on = self.referee.send(
                np.array([np.asarray(state.clock.env_steps).sum(), self.updates(state)])
            )
        return state

    def is_over(self, state: RunState) -> bool:
        return not self.goes_on


def show(settings: Settings, rates: np.ndarray, theirs: PyTorch) -> None:
    """Prints and writes medians, and those of comarl's ratios to the turns of PyTorch beside its
    own."""
    clock, machine = (
        "processor" if settings.cpu_time else "wall",
        f"{cpu_model()}, {usable_cores()} core(s)",
    )
    medians, ratio = (
        np.median(rates, axis=0).round(1),
        round(float(np.median(rates[:, 0, 0] / rates[:, 1, 0])), 2),
    )
    rows = [
        Row("comarl", settings.seeds, usable_cores(), *medians[0].tolist(), ratio, clock, machine),
        Row("PyTorch", 1, theirs.threads, *medians[1].tolist(), 1.0, clock, machine),
    ]
    title = f"VM3-AC on waves/4, per {clock} second on {machine}"
    table = Table(title=title, title_justify="left")
    for column in ("framework", "seeds", "threads", "env steps/s", "updates/s", "ratio", "goal"):
        table.add_column(column, justify="left" if column in ("framework", "goal") else "right")
    for row in rows:
        numbers = (f"{x:.1f}" for x in (row.env_steps_per_second, row.updates_per_second))
        goal = "at least 15" if row.framework == "comarl" else ""
        table.add_row(
            row.framework, str(row.seeds), str(row.threads), *numbers, f"{row.ratio:.2f}", goal
        )
    CONSOLE.print(table)
    write(settings.csv, rows)


def main(settings: Settings) -> None:
    """Measures, prints and writes."""
    keep_freed_memory(settings.seeds)  # as `comarl train` does
    see_a_device_for_each(settings.seeds)
    clock = time.process_time if settings.cpu_time else time.perf_counter
    run = Run(ALGORITHM, TASK, settings.seeds, steps=LONG, evaluate_every=LONG)
    options = Options(checkpoint_seconds=float("inf"), vmapped_seeds=settings.vmapped_seeds)
    with tempfile.TemporaryDirectory() as folder:
        session = Timed(run, {}, Path(folder), options, Console(quiet=True))
        session.referee = take_turns(settings, clock, PyTorch(settings, clock))
        next(session.referee)
        session.train()


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
