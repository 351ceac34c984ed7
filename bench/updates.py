"""Gradient updates per second at the sizes of RACE's paper: comarl against the same updates in
eager PyTorch.

What runs is what training runs: `comarl.training.train.learn`, draws from a filled replay included.
All sides take turns within one run on the same cores, so that a busy machine slows all of them;
figures are medians over turns. PyTorch has the number of threads and the Adam that suit it best,
found beforehand. On a GPU both run there.
"""

import functools
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# PyTorch wants a part of a GPU's memory
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from multiply_adds import of_update
from rich.console import Console
from rich.table import Table
from rows import write
from sides import (
    ALGORITHMS,
    SPEC,
    Comarl,
    Product,
    Side,
    Torch,
    begin_with,
    device,
    random_episodes,
    torch_replay,
)
from torch_matd3 import Replay

from comarl.machine.hardware import cpu_model, usable_cores
from comarl.machine.placement import place, see_a_device_for_each

CONSOLE = Console(width=max(Console().width, 100))  # that no name is broken, in a file either


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    seconds: float = 3.0
    """least time of each turn"""
    turns: int = 3
    """turns of each side, whose median counts"""
    seeds: int = 5
    """seeds that comarl trains side by side, besides one alone"""
    compile: bool = False
    """let PyTorch try torch.compile, too"""
    csv: Path | None = None
    """where to write the rows"""


@dataclass(frozen=True)
class Row:
    """One measurement. `ratio` is to PyTorch's updates per second with one seed, or what the name
    says."""

    name: str
    framework: str
    seeds: int
    threads: int
    updates_per_second: float | None
    ratio: float | None
    hardware: str


def hardware() -> str:
    kind = f"{cpu_model()}, {usable_cores()} cores"
    return kind if jax.default_backend() == "cpu" else f"{jax.devices()[0].device_kind}; {kind}"


def best_torch(name: str, make: Callable[..., Any], replay: Replay, settings: Settings) -> Torch:
    """PyTorch as it is fastest here."""
    threads = sorted({1, usable_cores()}) if device() == "cpu" else [1]
    kinds = [
        ("for", False),
        ("foreach", False),
        ("fused", False),
        *[("fused", True)] * settings.compile,
    ]
    sides = [
        Torch(
            name,
            make(kind=kind, compile=compiled),
            replay,
            count,
            f"{kind} Adam{', compiled' * compiled}",
        )
        for count, (kind, compiled) in itertools.product(threads, kinds)
    ]
    for side in sides:
        side.play(0.2 * settings.seconds / 3)
    rates = np.max(
        [[side.play(0.6 * settings.seconds / 3) for side in sides] for _ in range(2)], axis=0
    )
    for side, rate in zip(sides, rates, strict=True):
        CONSOLE.print(f"{name}, PyTorch, {side.threads} threads, {side.mode}: {rate:.0f} updates/s")
    return sides[int(np.argmax(rates))]


def prepare(settings: Settings) -> list[Side]:
    """All sides, compiled: for each algorithm PyTorch, then comarl with one seed, then with several
    in every way."""
    episodes, ring = random_episodes(), ALGORITHMS["MATD3"][0].replay
    filled = jax.jit(ring.add, static_argnums=2)(ring.init(SPEC), episodes, SPEC)
    repeat = lambda n: jax.tree.map(lambda x: jnp.repeat(x[None], n, axis=0), filled)
    replays = {n: repeat(n) for n in {1, settings.seeds}}
    theirs = torch_replay(episodes, ring.batch_size)
    sides: list[Side] = [Product()]

    def comarl(name: str, seeds: int, together: bool | None) -> Comarl:
        side = Comarl(name, seeds, place(seeds, together), replays[seeds])
        CONSOLE.print(
            f"{side.title}, comarl, seeds: {seeds}: compiled in {side.compile_seconds:.1f} s"
        )
        return side

    ways = (None, False, True) if jax.default_backend() == "cpu" else (False, True)
    for name, (algorithm, update) in ALGORITHMS.items():
        ours = [comarl(name, 1, None)]
        make = functools.partial(update, algorithm, begin_with(name), device())
        sides += [best_torch(name, make, theirs, settings), *ours]
        if settings.seeds > 1:
            sides += [comarl(name, settings.seeds, together) for together in ways]
    return sides


def to_rows(sides: list[Side], rates: np.ndarray) -> list[Row]:
    """The median of each side, and of its ratios to PyTorch's turns beside it."""
    rows, machine = [], hardware()
    theirs = {side.name: i for i, side in enumerate(sides) if isinstance(side, Torch)}
    for i, side in enumerate(sides):
        ratio, rate = None, float(np.median(rates[:, i]))
        if side.name in theirs:
            ratio = float(np.median(rates[:, i] / rates[:, theirs[side.name]]))
        rows.append(Row(side.title, side.framework, side.seeds, side.threads, rate, ratio, machine))
    return rows


def to_shares(sides: list[Side], rates: np.ndarray) -> list[Row]:
    """What one seed of comarl reaches of the machine's matrix products, and what RACE costs beside
    MATD3."""
    rows, machine, cores = [], hardware(), usable_cores()
    ours = {
        side.name: rates[:, i]
        for i, side in enumerate(sides)
        if isinstance(side, Comarl) and side.seeds == 1
    }
    for name, (algorithm, _) in ALGORITHMS.items():
        flop = 2e-3 * sum(of_update(algorithm, SPEC).values())  # in 10^9, as the product's rate
        share = float(np.median(flop * ours[name] / rates[:, 0]))
        rows.append(
            Row(
                f"{name}, share of the matrix product's rate",
                "comarl",
                1,
                cores,
                None,
                share,
                machine,
            )
        )
    cost = float(np.median(ours["MATD3"] / ours["RACE"]))
    return [
        *rows,
        Row("RACE, cost of an update in MATD3's", "comarl", 1, cores, None, cost, machine),
    ]


def show_count() -> None:
    """Where the multiply-adds go."""
    for name, (algorithm, _) in ALGORITHMS.items():
        count = of_update(algorithm, SPEC)
        table = Table(title=f"{name}: multiply-adds of one update", title_justify="left")
        table.add_column("for")
        table.add_column("10^6", justify="right")
        for what, millions in count.items():
            table.add_row(what, f"{millions:.1f}")
        table.add_section()
        table.add_row("all", f"{sum(count.values()):.1f}")
        CONSOLE.print(table)


def show(rows: list[Row]) -> None:
    table = Table(title=f"Updates per second on {rows[0].hardware}", title_justify="left")
    for column in ("", "framework", "seeds", "threads", "updates/s", "ratio", "goal"):
        is_number = column in ("seeds", "threads", "updates/s", "ratio")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        rate = "" if row.updates_per_second is None else f"{row.updates_per_second:.1f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(
            row.name, row.framework, str(row.seeds), str(row.threads), rate, ratio, goal(row)
        )
    CONSOLE.print(table)
    CONSOLE.print(
        "ratio: to PyTorch's updates per second with one seed, or what the row's name says"
    )


def goal(row: Row) -> str:
    """What comarl aims at in this row, if anything."""
    if row.name.startswith("RACE, cost"):
        return "at most 3.5"
    if (
        row.framework != "comarl"
        or not row.name.startswith("MATD3")
        or row.updates_per_second is None
    ):
        return ""
    if jax.default_backend() == "cpu":
        return "at least 1.5" if row.seeds == 1 else ""
    return "at least 20" if row.seeds > 1 and "vmapped" in row.name else ""


def main(settings: Settings) -> None:
    """Measures, prints and writes."""
    see_a_device_for_each(settings.seeds)
    if device() == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX does it
    elif jax.default_backend() != "cpu":
        CONSOLE.print(
            "[yellow]PyTorch sees no GPU: it runs on the CPU, so that its ratios mean little."
        )
    sides = prepare(settings)
    CONSOLE.print(
        f"Measuring: {settings.turns} turns of {settings.seconds:g} s for each of "
        f"{len(sides)} sides"
    )
    rates = np.array(
        [[side.play(settings.seconds) for side in sides] for _ in range(settings.turns)]
    )
    rows = [*to_rows(sides, rates), *to_shares(sides, rates)]
    show_count()
    show(rows)
    write(settings.csv, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
