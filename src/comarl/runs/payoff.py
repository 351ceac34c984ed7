"""`payoff.csv` in the folder of a run on a matrix game: what each seed chooses, and how it values
every joint action."""

import csv
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

from comarl.runs.files import MIB, atomically, read_plain

PAYOFF = "payoff.csv"
ACTIONS = "ABC"
JOINT_ACTIONS = [first + second for first, second in itertools.product(ACTIONS, repeat=2)]
HEADER = ["seed", "state", "choice", "reward", *JOINT_ACTIONS]


@dataclass(frozen=True)
class PayoffLine:
    """What one seed has learnt of one state of a matrix game."""

    seed: int
    state: str
    """what the two agents see, such as "01" """
    choice: str
    """the joint action chosen without exploring, such as "AC" """
    reward: float
    """what the choice earns"""
    values: tuple[float, ...] = ()
    """the team's value of each joint action, in the order of `JOINT_ACTIONS`; empty for an
    algorithm that has none"""


def write_payoff(folder: Path, lines: list[PayoffLine]) -> Path:
    """Writes `payoff.csv`, atomically, and makes the folder if need be."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for line in lines:
        # Nine digits give back a number of 32 bits
        values = [f"{value:.9g}" for value in line.values] or [""] * len(JOINT_ACTIONS)
        writer.writerow([line.seed, line.state, line.choice, f"{line.reward:g}", *values])
    folder.mkdir(parents=True, exist_ok=True)
    with atomically(folder / PAYOFF) as file:
        file.write(text.getvalue().encode())
    return folder / PAYOFF


def read_payoff(folder: Path) -> list[PayoffLine]:
    """The lines of a run's `payoff.csv`. Raises FileNotFoundError if there is none, ValueError if
    it is not such a file."""
    path = folder / PAYOFF
    rows = csv.DictReader(read_plain(path, 16 * MIB).decode().splitlines())
    if rows.fieldnames != HEADER:
        raise ValueError(f"{path}: its columns are not those of a run's {PAYOFF}")
    return [
        PayoffLine(
            seed=int(row["seed"]),
            state=row["state"],
            choice=row["choice"],
            reward=float(row["reward"]),
            values=tuple(float(row[pair]) for pair in JOINT_ACTIONS) if row["AA"] else (),
        )
        for row in rows
    ]
