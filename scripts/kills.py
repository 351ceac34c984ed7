"""Kills runs at random moments, starts them again, and compares their ends with undisturbed ones.

    make kills                      100 times SIGKILL and 20 times SIGTERM over four kinds of run
    python scripts/kills.py --kills 3 --terms 1 --kinds jittable

All of it took 38 minutes on two cores that had other work, too.

Each run is killed again and again, in its start, while it trains, evaluates or saves, until it has
been killed as often as asked. Then it may end. Its last checkpoint and its records must equal those
of a run that nobody disturbed, bit for bit but for times; no worker process may be left, and no
command but the same one may be needed. Exit status 1 if anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

COMMON = "--evaluation-episodes 2 --checkpoint-seconds 0.5"
SMALL = "--algorithm.hidden 8 8 --algorithm.replay.batch-size 8"
RACE = f"{SMALL} --algorithm.embedding 4 --algorithm.mine-width 8 --algorithm.breeding.population 2"
KINDS = {
    "jittable": f"race-matd3 probe/truncated --seeds 3 --steps 6000 --evaluate-every 500 {RACE} "
    "--algorithm.pace.warmup-steps 60 --algorithm.replay.capacity 1000",
    "mujoco": f"race-matd3 mamujoco/Hopper-3x1 --steps 20000 --evaluate-every 1000 {RACE} "
    "--algorithm.pace.warmup-steps 300 --algorithm.replay.capacity 3003",
    "workers": "matd3 pettingzoo/mpe2.simple_spread_v3 --steps 12000 --evaluate-every 500 "
    f"--task.workers.count 2 {SMALL} --algorithm.pace.warmup-steps 100 "
    "--algorithm.replay.capacity 2000",
    "packed": "qmix smax/3m --seeds 2 --steps 8000 --evaluate-every 500 "
    "--algorithm.replay.capacity 16 --algorithm.replay.batch-size 4",
}
CALL = "import sys; from comarl.cli import main; sys.exit(main())"
UNEQUAL = {"wall_time", "worker_restarts"}
"""what of a record may differ: when, and what the machine did"""


@dataclass
class Tally:
    """What came of one kind of run."""

    kind: str
    killed: int = 0
    terminated: int = 0
    starts: int = 0
    faults: list[str] = field(default_factory=list)


def start(kind: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    """The command of a kind of run, whose output goes into a file beside its folder."""
    arguments = f"train {KINDS[kind]} {COMMON}".split()
    with folder.with_suffix(".txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", CALL, *arguments, "--folder", str(folder)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def progress(folder: Path) -> tuple[int, int]:
    """What changes when a run has saved or evaluated."""
    newest = max((folder / "checkpoints").glob("checkpoint-*.npz"), default=None)
    records = folder / "metrics.jsonl"
    return int(
        newest.stem[-8:]
    ) if newest else -1, records.stat().st_size if records.exists() else 0


def wait_for_a_moment(process: subprocess.Popen, folder: Path, chance: random.Random) -> None:
    """Waits until some moment: one in four in the run's start, the others at progress."""
    if chance.random() < 0.25:
        end = time.monotonic() + chance.uniform(0.0, 12.0)
    else:
        before, patience = progress(folder), time.monotonic() + 120
        while progress(folder) == before and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.002)
        end = time.monotonic() + chance.choice([0.0, chance.uniform(0.0, 1.5)])
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


def survivors(children: list[psutil.Process]) -> list[int]:
    """The worker processes that are still there some seconds after their run was killed."""
    _, alive = psutil.wait_procs(children, timeout=15)
    return [child.pid for child in alive]


def disturb(kind: str, folder: Path, signals: Sequence[int], environment: dict, seed: int) -> Tally:
    """Kills a run by each of `signals`, then lets it end."""
    tally, chance = Tally(kind), random.Random(seed)
    for number in signals:
        while True:
            tally.starts += 1
            process = start(kind, folder, environment)
            wait_for_a_moment(process, folder, chance)
            children = psutil.Process(process.pid).children() if process.poll() is None else []
            process.send_signal(number)
            status = process.wait(300)
            if left := survivors(children):
                tally.faults.append(f"workers {left} survived {signal.Signals(number).name}")
            if status in (-number, 128 + number):
                tally.killed += number == signal.SIGKILL
                tally.terminated += number == signal.SIGTERM
                break
            if status != 0:
                tally.faults.append(f"exit status {status} after {signal.Signals(number).name}")
                return tally
            # It was done before the signal came: a new life
            shutil.rmtree(folder)
    tally.starts += 1
    if status := start(kind, folder, environment).wait(900):
        tally.faults.append(f"exit status {status} of the last start: its folder needs help")
    return tally


def arrays(folder: Path) -> dict[str, bytes]:
    """The arrays of the newest checkpoint."""
    newest = max((folder / "checkpoints").glob("checkpoint-*.npz"))
    with zipfile.ZipFile(newest) as archive:
        return {
            name: archive.read(name) for name in archive.namelist() if name != "header.json"
        } | {"round": newest.name.encode()}


def records(folder: Path) -> list[dict]:
    """The lines of the records, without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in UNEQUAL} for line in lines]


def compare(tally: Tally, whole: Path, folder: Path) -> None:
    """Adds to the faults what differs between an undisturbed run and a disturbed one."""
    if tally.faults:
        return
    theirs, ours = arrays(whole), arrays(folder)
    if different := [name for name in theirs | ours if theirs.get(name) != ours.get(name)]:
        tally.faults.append(f"{len(different)} arrays differ, {different[0]} first")
    if records(whole) != records(folder):
        tally.faults.append("metrics.jsonl differs")


def one_kind(kind: str, place: Path, kills: int, terms: int, seed: int, environment: dict) -> Tally:
    """The undisturbed and the disturbed run of one kind, compared."""
    whole, folder = place / f"{kind}-whole", place / kind
    if status := start(kind, whole, environment).wait(900):
        return Tally(kind, faults=[f"exit status {status} of the undisturbed run"])
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    random.Random(seed).shuffle(signals)
    tally = disturb(kind, folder, signals, environment, seed)
    compare(tally, whole, folder)
    return tally


def main() -> int:
    """Runs all kinds, two at a time, and prints a table."""
    parser = argparse.ArgumentParser(description="Kills runs, and compares their ends")
    parser.add_argument("--kills", type=int, default=25, help="SIGKILLs of each kind of run")
    parser.add_argument("--terms", type=int, default=5, help="SIGTERMs of each kind of run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    given = parser.parse_args()
    place, began = Path(tempfile.mkdtemp(prefix="kills-")), time.monotonic()
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Programs that compile soon: all runs compared here have the same
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0",
        "MPLBACKEND": "Agg",
    }
    with ThreadPoolExecutor(2) as pool:
        run = lambda kind: one_kind(kind, place, given.kills, given.terms, given.seed, environment)
        tallies = list(pool.map(run, given.kinds))
    print(f"{'kind':10} {'SIGKILL':>8} {'SIGTERM':>8} {'starts':>7}  faults")
    for tally in tallies:
        faults = "; ".join(tally.faults) or "none"
        print(f"{tally.kind:10} {tally.killed:8} {tally.terminated:8} {tally.starts:7}  {faults}")
    print(f"{(time.monotonic() - began) / 60:.0f} minutes")
    failed = any(tally.faults for tally in tallies)
    print(
        f"What they left and said: {place}" if failed else "Every run equals the undisturbed one."
    )
    if not failed:
        shutil.rmtree(place)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
