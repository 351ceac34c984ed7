"""An algorithm that learns from episodes takes turns with its twins in PyTorch: `race_facmac.py`
and `lsf_sac.py`.

comarl's side is what training runs, `comarl.training.train.learn`, with the draw from a filled
replay; a twin has an update in two ways, "stepped" and "whole". Each has the number of threads and
the Adam that suit it best, found beforehand. All sides take turns within one process, so that a
busy machine slows all of them; figures are medians over turns. All get memory as comarl's training
does (`comarl.machine.allocator`).
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rows import write
from torch_race_facmac import Mode, Replay, to_torch

from comarl.machine.allocator import keep_freed_memory
from comarl.machine.hardware import cpu_model, usable_cores
from comarl.machine.placement import place
from comarl.training.run import CHUNKS
from comarl.training.train import learn
from comarl.types import Clock, EnvSpec, Episode, Timestep

CONSOLE = Console(width=max(Console().width, 110))  # that no name is broken, in a file either
CHUNK = CHUNKS[Episode]  # updates of each compiled call, as in training

ReadClock = Callable[[], float]


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    seconds: float = 10.0
    """least time of each turn"""
    turns: int = 5
    """turns of each side, whose median counts"""
    cpu_time: bool = False
    """count the processor's seconds instead of the clock's: for one core (`taskset -c 0`) that
    others use, too"""
    csv: Path | None = None
    """where to write the rows"""


@dataclass(frozen=True)
class Subject:
    """Whose updates are measured, and on what."""

    title: str
    algorithm: Any
    """its replay holds so many episodes as there are to draw from"""
    spec: EnvSpec
    twin: Callable[..., Any]
    """makes the update in PyTorch, from the algorithm, its state, a mode and a kind of Adam"""
    goal: str
    """how many times as fast as "stepped" comarl is to be"""


@dataclass(frozen=True)
class Row:
    """One measurement; `ratio` is of comarl's updates per second to this side's, turn by turn."""

    framework: str
    mode: str
    threads: int
    updates_per_second: float
    ratio: float
    clock: str
    hardware: str


def random_episodes(spec: EnvSpec, number: int) -> Episode:
    """So many, all of them at the time limit."""
    draw, steps = np.random.default_rng(0), (number, spec.horizon)
    normal = lambda *shape: draw.normal(size=shape).astype(np.float32)
    longer, team = (number, spec.horizon + 1), (spec.num_agents, spec.action_size)
    action = draw.integers(spec.action_size, size=(*steps, spec.num_agents)).astype(np.int32)
    available = draw.random((*longer, *team)) < 0.7
    np.put_along_axis(available[:, :-1], action[..., None], True, axis=-1)
    available[..., 0] = True
    timesteps = Timestep(
        normal(*longer, spec.num_agents, spec.obs_size), normal(*longer, spec.state_size), available
    )
    episodes = Episode(
        (), timesteps, action, normal(*steps), np.zeros(steps, bool), np.ones(steps, bool)
    )
    return jax.tree.map(jnp.asarray, episodes)


class Side:
    """Whatever is timed."""

    framework: str
    mode: str
    threads: int

    def step(self) -> int:
        """Makes some updates and says how many."""
        raise NotImplementedError

    def play(self, seconds: float, clock: ReadClock) -> float:
        """Takes a turn of at least so long: updates per second."""
        done, begin = 0, clock()
        while clock() - begin < seconds:
            done += self.step()
        return done / (clock() - begin)


class Comarl(Side):
    """Training's compiled call: the draw of a batch, and one update."""

    framework, mode = "comarl", "compiled"

    def __init__(self, algorithm: Any, spec: EnvSpec, state: Any, episodes: Episode):
        self.threads, zero = usable_cores(), jnp.zeros(1, jnp.int32)
        # Copied: `learn` reuses its memory
        one_seed = lambda tree: jax.tree.map(lambda x: jnp.array(x)[None], tree)
        ring = algorithm.replay
        filled = jax.jit(ring.add, static_argnums=2)(ring.init(spec), episodes, spec)
        self.agent, self.updates = one_seed(state), 0
        keys = jax.random.key(0)[None]
        self.rest = (one_seed(filled), Clock(zero, zero, jnp.int32(0)), keys, jnp.full(1, 2**30))
        begin = time.perf_counter()
        self.learn = learn.lower(
            algorithm, spec, self.agent, *self.rest, np.int32(0), CHUNK, place(1, None)
        ).compile()
        CONSOLE.print(f"comarl: compiled in {time.perf_counter() - begin:.0f} s")

    def step(self) -> int:
        self.agent, sums = self.learn(self.agent, *self.rest, np.int32(self.updates))
        jax.device_get(sums)
        self.updates += CHUNK
        return CHUNK


class Torch(Side):
    """The same in PyTorch."""

    framework = "PyTorch"

    def __init__(self, learner: Any, replay: Replay, threads: int, kind: str):
        self.learner, self.replay, self.threads = learner, replay, threads
        self.mode = f"{learner.mode}, {kind} Adam"

    def step(self) -> int:
        torch.set_num_threads(self.threads)
        self.learner.step(self.replay)
        return 1


def best_torch(
    subject: Subject, mode: Mode, state: Any, replay: Replay, seconds: float, clock: ReadClock
) -> Torch:
    """PyTorch as it is fastest here: by the best of two short turns."""
    sides = [
        Torch(subject.twin(subject.algorithm, state, mode, kind), replay, threads, kind)
        for threads, kind in itertools.product(
            sorted({1, usable_cores()}), ("for", "foreach", "fused")
        )
    ]
    for side in sides:
        side.step()
    rates = np.max([[side.play(seconds / 4, clock) for side in sides] for _ in range(2)], axis=0)
    for side, rate in zip(sides, rates, strict=True):
        CONSOLE.print(f"PyTorch, {side.mode}, {side.threads} thread(s): {rate:.2f} updates/s")
    return sides[int(np.argmax(rates))]


def to_rows(sides: list[Side], rates: np.ndarray, clock: str) -> list[Row]:
    """The median of each side, and of its ratios to comarl's turns beside it."""
    machine, medians = f"{cpu_model()}, {usable_cores()} core(s)", np.median(rates, axis=0)
    ratios = np.median(rates[:, :1] / rates, axis=0)
    return [
        Row(
            side.framework,
            side.mode,
            side.threads,
            round(float(rate), 3),
            round(float(ratio), 2),
            clock,
            machine,
        )
        for side, rate, ratio in zip(sides, medians, ratios, strict=True)
    ]


def show(subject: Subject, rows: list[Row]) -> None:
    title = f"{subject.title}, updates per {rows[0].clock} second on {rows[0].hardware}"
    table = Table(title=title, title_justify="left")
    for column in ("framework", "mode", "threads", "updates/s", "comarl is faster by", "goal"):
        table.add_column(
            column, justify="left" if column in ("framework", "mode", "goal") else "right"
        )
    for row in rows:
        goal = subject.goal if row.mode.startswith("stepped") else ""
        numbers = (str(row.threads), f"{row.updates_per_second:.2f}", f"{row.ratio:.2f}")
        table.add_row(row.framework, row.mode, *numbers, goal)
    CONSOLE.print(table)


def measure(subject: Subject, settings: Settings) -> None:
    """Measures, prints and writes."""
    keep_freed_memory()
    clock = time.process_time if settings.cpu_time else time.perf_counter
    algorithm, spec = subject.algorithm, subject.spec
    episodes = random_episodes(spec, algorithm.replay.capacity)
    state = jax.jit(lambda key: algorithm.init(spec, key))(jax.random.key(0))
    replay = Replay(to_torch(episodes, spec), algorithm.replay.batch_size)
    theirs = [
        best_torch(subject, mode, state, replay, settings.seconds, clock)
        for mode in ("stepped", "whole")
    ]
    sides: list[Side] = [Comarl(algorithm, spec, state, episodes), *theirs]
    sides[0].step()
    CONSOLE.print(
        f"Measuring: {settings.turns} turns of {settings.seconds:g} s for each of "
        f"{len(sides)} sides"
    )
    rates = np.array(
        [[side.play(settings.seconds, clock) for side in sides] for _ in range(settings.turns)]
    )
    rows = to_rows(sides, rates, "processor" if settings.cpu_time else "wall")
    show(subject, rows)
    write(settings.csv, rows)
