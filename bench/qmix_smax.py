"""Environment steps per second of the whole training of QMIX on SMAX: comarl against JaxMARL's own
baseline.

    git clone https://github.com/FLAIROx/JaxMARL   # for its scripts; comarl[smax] has the package
    pip install "comarl[smax,bench]"               # flashbax for JaxMARL's script, six for gymnax
    python bench/qmix_smax.py --jaxmarl JaxMARL    # or: make bench JAXMARL=JaxMARL

JaxMARL's side is `baselines/QLearning/qmix_rnn.py` of that checkout, unchanged:
`jit(vmap(make_train(config, env)))` with the released `config/alg/ql_rnn_smax.yaml`. wandb, hydra
and omegaconf, which it starts and logs with, are stubs. comarl's side is the session that `comarl
train` runs. What is the same on both sides:

- The task: the map with comarl's time limit, 16 parallel environments.
- The networks: linear, ReLU, GRU, linear (512 units); mixer (64) and hypernetworks (256). comarl's
  agents also see their last action. Adam at the same rate with the same clipping; JaxMARL's is
  RAdam, which costs the same.
- The ratio: one gradient step per 256 environment steps of a seed (theirs: 8 after every 16 x 128
  steps; ours: after the round in which they are due), double Q-learning, a target copied every 80
  gradient steps, epsilon from 1 on.
- The batch: 4096 environment steps that took place (theirs: 32 windows of 128, in which the next
  episode follows the last; ours: `episodes` whole ones). comarl's episodes are arrays as long as
  the time limit, so that it computes, and masks, more steps than these: this counts against it.
  `batch_steps` is what a batch holds on average.
- No evaluation, no checkpoints, nothing logged but one line to nowhere for each iteration.

Replays hold 5000 windows, or episodes. Both learn from the first steps that there are, so that
turns begin soon. Steps are those that took place, of all seeds together: 256 for each update that a
turn had time for. (A turn of comarl's may hold a round more or less than these;
`env_steps_per_update` is what turns did hold.) Several seeds: theirs are mapped as in their script;
ours both so ("together") and in turns, which on one core is as fast as comarl's default on a CPU, a
device for each.

Every side runs in a process of its own and waits while another has its turn, on the same cores.
JaxMARL runs once as it is and once with comarl's setting of malloc (`comarl.machine.allocator`);
the better of both counts, and runs several seeds. Figures are medians over turns, after
compilation, whose time stands beside them. Where other programs run on the same cores, trust the
rates by CPU time.
"""

import math
import multiprocessing
import os
import time
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rows import write

# JAX is imported by the sides alone, after they have chosen how to get memory.
from comarl.machine.allocator import keep_freed_memory

CONSOLE = Console(width=max(Console().width, 120))


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    jaxmarl: Path
    """a checkout of github.com/FLAIROx/JaxMARL"""
    map_name: str = "3m"
    """the battle"""
    episodes: int = 224
    """episodes in comarl's batch: those of 3m last 18 steps while most actions are random"""
    changes: dict[str, int] = field(default_factory=dict)
    """settings of JaxMARL's file to change on both sides, such as HIDDEN_SIZE 64"""
    seconds: float = 20.0
    """least time of each turn"""
    turns: int = 3
    """turns of each side, whose median counts"""
    seeds: int = 4
    """seeds that train side by side, besides one alone; 1 for one alone only"""
    together: bool = True
    """measure comarl's seeds mapped over array axes, too; at 512 units this takes more than 5 GB"""
    cores: tuple[int, ...] = ()
    """numbers of the cores to run on; by default all that are allowed"""
    csv: Path | None = None
    """where to write the rows"""


@dataclass(frozen=True)
class Side:
    """Whatever is timed."""

    framework: str
    seeds: int
    together: bool
    keeps_memory: bool

    @property
    def mode(self) -> str:
        seeds = "" if self.seeds == 1 else "seeds vmapped" if self.together else "seeds sequential"
        malloc = "malloc keeps memory" if self.keeps_memory else "malloc as it is"
        return ", ".join(filter(None, (seeds, malloc)))


@dataclass(frozen=True)
class Row:
    """One measurement. Rates are of all seeds; ratios are to JaxMARL's better way, with as many
    seeds or with one."""

    framework: str
    mode: str
    seeds: int
    env_steps_per_second: float
    env_steps_per_cpu_second: float
    updates_per_second: float
    env_steps_per_update: float
    compile_seconds: float
    hidden: int
    batch_steps: int
    hardware: str
    ratio: float = math.nan
    ratio_to_one_seed: float = math.nan
    ratio_by_cpu_time: float = math.nan


def serve(pipe: Connection, side: Side, settings: Settings) -> None:
    """Trains, in a process of its own."""
    if side.keeps_memory:
        keep_freed_memory()
    from qmix_sides import Turns, play_comarl, play_jaxmarl, read_config

    config = read_config(settings.jaxmarl, settings.changes, settings.map_name)
    turns = Turns(pipe, config)
    if side.framework == "JaxMARL":
        play_jaxmarl(turns, settings.jaxmarl, config, side.seeds)
    else:
        play_comarl(turns, config, settings.episodes, side.seeds, side.together)


class Child:
    """A side's process, from here."""

    def __init__(self, side: Side, settings: Settings):
        context = multiprocessing.get_context("spawn")
        self.side, (self.pipe, theirs) = side, context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, side, settings), daemon=True)
        begin = time.perf_counter()
        self.process.start()
        theirs.close()
        self.ready = self.pipe.recv()
        CONSOLE.print(
            f"{side.framework}, {side.seeds} seed(s), {side.mode}: "
            f"compiled in {self.ready.compile_seconds:.0f} s, "
            f"learns after {time.perf_counter() - begin:.0f} s"
        )

    def play(self, seconds: float) -> Any:
        self.pipe.send(seconds)
        return self.pipe.recv()

    def close(self) -> None:
        self.process.terminate()
        self.process.join()


def sides(seeds: int, together: bool, keeps: tuple[bool, ...]) -> list[Side]:
    """JaxMARL with the settings of malloc that `keeps` names, then comarl, its seeds in turns and
    perhaps together."""
    theirs = [Side("JaxMARL", seeds, seeds > 1, keep) for keep in keeps]
    return theirs + [
        Side("comarl", seeds, mode, True) for mode in ((False, True) if together else (False,))
    ]


def measure(sides: list[Side], settings: Settings) -> list[Row]:
    """All sides, in turns; without the ratios."""
    children: list[Child] = []
    try:
        children += [Child(side, settings) for side in sides]
        turns = []
        for number in range(settings.turns):
            turns.append([child.play(settings.seconds) for child in children])
            rates = ", ".join(
                f"{child.ready.steps_per_update * t.updates / t.seconds:.0f}"
                for child, t in zip(children, turns[-1], strict=True)
            )
            CONSOLE.print(f"turn {number + 1}: {rates} steps/s")
    finally:
        for child in children:
            child.close()
    return [
        to_row(child, np.array([turn[i] for turn in turns])) for i, child in enumerate(children)
    ]


def to_row(child: Child, turns: np.ndarray) -> Row:
    """The medians of one side's `turns`."""
    side, ready, (seconds, cpu_seconds, env_steps, updates, batch_steps) = (
        child.side,
        child.ready,
        turns.T,
    )
    rate = lambda factor, time: round(float(np.median(factor * updates / time)), 3)
    return Row(
        framework=side.framework,
        mode=side.mode,
        seeds=side.seeds,
        env_steps_per_second=rate(ready.steps_per_update, seconds),
        env_steps_per_cpu_second=rate(ready.steps_per_update, cpu_seconds),
        updates_per_second=rate(1.0, seconds),
        env_steps_per_update=round(float(env_steps.sum() / updates.sum()), 1),
        compile_seconds=round(ready.compile_seconds, 1),
        hidden=ready.hidden,
        batch_steps=round(float(batch_steps[-1])),
        hardware=ready.hardware,
    )


def with_ratios(rows: list[Row]) -> list[Row]:
    """The rows with their ratios to JaxMARL's better way."""

    def best(seeds: int, rate: str) -> float:
        return max(
            getattr(row, rate) for row in rows if row.framework == "JaxMARL" and row.seeds == seeds
        )

    def ratios(row: Row) -> dict[str, float]:
        wall, cpu = "env_steps_per_second", "env_steps_per_cpu_second"
        to = lambda seeds, rate: round(getattr(row, rate) / best(seeds, rate), 2)
        return dict(
            ratio=to(row.seeds, wall),
            ratio_to_one_seed=to(1, wall),
            ratio_by_cpu_time=to(row.seeds, cpu),
        )

    return [replace(row, **ratios(row)) for row in rows]


def show(rows: list[Row], settings: Settings) -> None:
    title = (
        f"Training QMIX on SMAX {settings.map_name}, {rows[0].hidden} units, on {rows[0].hardware}"
    )
    table = Table(title=title, title_justify="left")
    numbers = ("seeds", "steps/s", "per CPU s", "updates/s", "batch", "ratio", "to one", "by CPU")
    for name in ("", "mode", *numbers, "goal"):
        table.add_column(name, justify="right" if name in numbers else "left")
    for row in rows:
        rates = (
            f"{row.env_steps_per_second:.0f}",
            f"{row.env_steps_per_cpu_second:.0f}",
            f"{row.updates_per_second:.2f}",
        )
        ratios = (f"{x:.2f}" for x in (row.ratio, row.ratio_to_one_seed, row.ratio_by_cpu_time))
        table.add_row(
            row.framework,
            row.mode,
            str(row.seeds),
            *rates,
            str(row.batch_steps),
            *ratios,
            goal(row),
        )
    CONSOLE.print(table)
    CONSOLE.print(
        "ratio: to JaxMARL's steps/s with as many seeds, the better of its rows; to one: with one "
        "seed; by CPU: as ratio, of steps per second of CPU time. batch: environment steps that it "
        "holds"
    )


def goal(row: Row) -> str:
    """What comarl aims at in this row, if anything."""
    if row.framework != "comarl":
        return ""
    return "ratio at least 1" if row.seeds == 1 else "ratio at least 2"


def main(settings: Settings) -> None:
    """Measures, prints and writes."""
    if settings.cores:
        os.sched_setaffinity(0, settings.cores)
    rows = measure(sides(1, False, keeps=(False, True)), settings)
    if settings.seeds > 1:
        better = rows[1].env_steps_per_second > rows[0].env_steps_per_second
        rows += measure(sides(settings.seeds, settings.together, keeps=(better,)), settings)
    rows = with_ratios(rows)
    show(rows, settings)
    write(settings.csv, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
