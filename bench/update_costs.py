"""What one update of each episodic algorithm costs relative to QMIX's, on the same batch of the
same task.

    python bench/update_costs.py                       # or: make bench
    python bench/update_costs.py --algorithms qmix lsf-sac --task smax/3s5z

A batch is 32 whole episodes at the time limit, whatever batch an algorithm has by default: so
nothing gains from what comes after an end. What is timed is training's own compiled call,
`comarl.training.train.learn`, with the draw from a filled replay. Each algorithm takes turns with
QMIX and is then forgotten, because a process cannot keep the programs of all; a figure is the
median over turns of the ratio to QMIX's turn beside it. Costs are per update: how many updates an
algorithm makes per episode is its own affair.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rows import write

from comarl.algorithms import ALGORITHMS
from comarl.envs import find_task
from comarl.machine.allocator import keep_freed_memory
from comarl.machine.hardware import cpu_model, usable_cores
from comarl.machine.placement import place
from comarl.play.rollout import play
from comarl.replay.episodes import EpisodeRing
from comarl.training.settings import num_teams
from comarl.training.train import learn
from comarl.types import Clock, Episode

CONSOLE = Console(width=max(Console().width, 100))
BATCH = 32


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    algorithms: tuple[str, ...] = ()
    """names, of which qmix is always one; by default every algorithm that learns from episodes,
    without PyMARL2's"""
    task: str = "predator-prey/small"
    """whose sizes the batch has"""
    seconds: float = 2.0
    """least time of each turn"""
    turns: int = 5
    """turns of each algorithm"""
    cpu_time: bool = False
    """count the processor's seconds instead of the clock's: for one core (`taskset -c 0`) that
    others use, too"""
    csv: Path | None = None
    """where to write the rows"""


@dataclass(frozen=True)
class Row:
    """One algorithm; `cost` is its time per update over QMIX's."""

    algorithm: str
    task: str
    cost: float
    updates_per_second: float
    parameters: int
    hardware: str


def with_batch(algorithm: Any) -> Any:
    """The algorithm with a small replay and batches of 32, however its replay draws them."""
    if hasattr(algorithm, "base"):  # whose replay it is
        return replace(algorithm, base=with_batch(algorithm.base))
    replay = replace(algorithm.replay, capacity=64, batch_size=BATCH)
    if isinstance(replay, EpisodeRing) and replay.recent:
        replay = replace(replay, batch_size=BATCH // 2, recent_batch=BATCH // 2)
    return replace(algorithm, replay=replay)


class Side:
    """An algorithm that is timed."""

    def __init__(self, name: str, settings: Settings):
        task = find_task(settings.task)
        self.name, self.algorithm, self.spec = (
            name,
            with_batch(ALGORITHMS[name].algorithm),
            task.spec,
        )
        algorithm, zero, key = self.algorithm, jnp.zeros(1, jnp.int32), jax.random.key(0)[None]
        clock = Clock(zero, zero, jnp.int32(0))
        agent = jax.jit(lambda k: algorithm.init(task.spec, k))(jax.random.key(0))
        self.parameters = sum(
            x.size for x in jax.tree.leaves(agent) if jnp.issubdtype(x.dtype, jnp.floating)
        )
        self.agent = jax.tree.map(lambda x: x[None], agent)
        teams = jnp.arange(64)[None] % num_teams(algorithm)
        episodes = play(
            algorithm, task, self.agent, clock, teams, jnp.ones((1, 64), bool), key, "explore"
        )
        episodes = jax.vmap(self.whole)(episodes)
        ring = algorithm.replay
        ring = jax.vmap(lambda e: ring.add(ring.init(task.spec), e, task.spec))(episodes)
        self.rest, self.updates = (ring, clock, key, jnp.full(1, 2**30)), 0
        arguments = (algorithm, task.spec, self.agent, *self.rest, np.int32(0), 1, place(1, None))
        self.learn = learn.lower(*arguments).compile()
        self.play(replace(settings, seconds=0.0))  # the first call is slower than those after it

    def whole(self, episodes: Episode) -> Episode:
        """The same episodes as if none had ended before the time limit."""
        return replace(
            episodes,
            mask=jnp.ones_like(episodes.mask),
            terminated=jnp.zeros_like(episodes.terminated),
        )

    def play(self, settings: Settings) -> float:
        """Takes a turn: seconds per update."""
        clock = time.process_time if settings.cpu_time else time.perf_counter
        done, begin = 0, clock()
        while done == 0 or clock() - begin < settings.seconds:
            self.agent, sums = self.learn(self.agent, *self.rest, np.int32(self.updates))
            jax.device_get(sums)
            self.updates, done = self.updates + 1, done + 1
        return (clock() - begin) / done


def chosen(settings: Settings) -> list[str]:
    """QMIX first."""
    episodic = [
        n
        for n, e in ALGORITHMS.items()
        if e.algorithm.replay.batch is Episode and "discrete" in e.algorithm.actions
    ]
    names = settings.algorithms or [n for n in episodic if not n.endswith("-pymarl2")]
    return list(dict.fromkeys(["qmix", *names]))


def measure(name: str, qmix: Side, settings: Settings) -> Row:
    """An algorithm beside QMIX."""
    side = qmix if name == qmix.name else Side(name, settings)
    seconds = np.array([(side.play(settings), qmix.play(settings)) for _ in range(settings.turns)])
    cost, own = np.median(seconds[:, 0] / seconds[:, 1]), np.median(seconds[:, 0])
    CONSOLE.print(f"{name}: {cost:.2f}")
    jax.clear_caches()
    machine = f"{cpu_model()}, {usable_cores()} core(s)"
    return Row(
        name,
        settings.task,
        round(float(cost), 2),
        round(1 / float(own), 2),
        side.parameters,
        machine,
    )


def main(settings: Settings) -> None:
    """Measures, prints and writes."""
    keep_freed_memory()
    qmix, *others = chosen(settings)
    one = Side(qmix, settings)
    rows = [measure(name, one, settings) for name in (qmix, *others)]
    table = Table(
        title=f"One update on 32 episodes of {settings.task}, on {rows[0].hardware}",
        title_justify="left",
    )
    for column in ("algorithm", "cost, QMIX 1", "updates/s", "numbers kept"):
        table.add_column(column, justify="left" if column == "algorithm" else "right")
    for row in sorted(rows, key=lambda row: row.cost):
        table.add_row(
            row.algorithm, f"{row.cost:.2f}", f"{row.updates_per_second:.1f}", f"{row.parameters:,}"
        )
    CONSOLE.print(table)
    write(settings.csv, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
