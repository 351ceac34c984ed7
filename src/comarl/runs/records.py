"""What a run leaves in its folder, and the names that runs go by.

    config.json        the run's settings, which its folder is named after
    environment.json   what it ran with: versions, revision, machine, command line
    metrics.jsonl      one line per seed and evaluation
    payoff.csv         on matrix games: what each seed has learnt (`runs/payoff.py`)
    checkpoints/       the newest states of the run

A line of `metrics.jsonl` holds `seed`, `env_steps`, `updates`, `round`, `wall_time`, `marl_team`
(raw returns of the greedy episodes of the team that stands for the algorithm: its only one, or in a
population the one that MARL trains), `best_team` (the same of the team that did best in training,
only in a population) and `training` (each metric's mean since the last evaluation);
`worker_restarts` counts the worker processes of a task that died and were replaced, where any was.
What a task counts besides the return stands beside it, raw as well: `marl_team_won` and
`best_team_won` where it counts `won`.

These keys are the same for every algorithm, so that one reader reads all runs, old ones, too. What
people read says "return" where there is one team, and names the team where there is a population.
"""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from comarl.machine.hardware import cpu_model, total_memory, usable_cores
from comarl.runs.checkpoint import atomically

CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS = (
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
)
RETURN, WON = "return", "won"
TEAM_LABELS = {"marl_team": "MARL team", "best_team": "best team"}
"""the teams that a record has scores of, as people read them; the second only in a population"""
PACKAGES = (
    "comarl",
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "numpy",
    "mujoco",
    "gymnasium",
    "gymnasium-robotics",
    "pettingzoo",
    "mpe2",
    "box2d",
)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for people to read, atomically; what is not finite becomes null."""
    with atomically(path) as file:
        file.write((json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode())


def write_about(folder: Path, config: dict[str, Any]) -> None:
    """Writes `config.json` and `environment.json`, and makes the folder if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)
    write_json(folder / ENVIRONMENT, environment())


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`. Raises FileNotFoundError if there is none."""
    return json.loads((folder / CONFIG).read_text())


def plain(value: Any) -> Any:
    """Arrays and their scalars as Python lists and numbers; what is not finite as None, because
    JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.asarray(value)
        # bfloat16 and its kin have no Python number of their own
        return plain((array if array.dtype.isbuiltin == 1 else array.astype(np.float64)).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def score_key(team: str, metric: str) -> str:
    """The key of a team's metric in a line of the records.

    >>> score_key("marl_team", "return"), score_key("best_team", "won")
    ('marl_team', 'best_team_won')
    """
    return team if metric == RETURN else f"{team}_{metric}"


def extra_metrics(line: Mapping[str, Any]) -> list[str]:
    """The metrics besides the return that a line of the records has, such as "won".

    >>> extra_metrics({"marl_team": [1.0], "marl_team_won": [0.0]})
    ['won']
    """
    return [name.removeprefix("marl_team_") for name in line if name.startswith("marl_team_")]


def metric_label(metric: str) -> str:
    """A metric's name as people read it.

    >>> metric_label("won"), metric_label("td_loss")
    ('win rate', 'td loss')
    """
    return "win rate" if metric == WON else metric.replace("_", " ")


@dataclass(frozen=True)
class Records:
    """The file `metrics.jsonl` of one run, open for its only writer.

    Opening it drops a last line that was only half written.
    """

    folder: Path

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._cut(_whole(self.path.read_bytes()))

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.folder / METRICS

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines and waits until they are on the disk. NaN becomes null. Raises TypeError if
        one is not JSON."""
        text = "".join(json.dumps(plain(line), allow_nan=False) + "\n" for line in lines)
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def position(self) -> int:
        """The length in bytes, for a checkpoint to remember."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, position: int) -> None:
        """Drops all lines after `position`, so that a resumed run does not write them twice.

        Raises ValueError if the file is shorter than that, or a line begins elsewhere: it is not
        the file of the run.
        """
        content = self.path.read_bytes() if self.path.exists() else b""
        if not 0 <= position <= len(content) or _whole(content[:position]) != position:
            raise ValueError(
                f"{self.path} has {len(content)} bytes and no line that ends at byte {position}, "
                f"where the checkpoint says it was. Restore the file, or delete {self.folder} to "
                "start this run from the beginning."
            )
        self._cut(position)

    def _cut(self, position: int) -> None:
        if position < self.position():
            with self.path.open("r+b") as file:
                file.truncate(position)
                os.fsync(file.fileno())


def _whole(content: bytes) -> int:
    """The length of the lines that are whole."""
    return content.rfind(b"\n") + 1


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, also while it is being written; none if there is no
    such file.

    Raises ValueError with the number of the line that is not JSON.
    """
    path = folder / METRICS
    content = path.read_bytes() if path.exists() else b""
    lines = []
    for number, line in enumerate(content[: _whole(content)].splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return lines


def environment() -> dict[str, Any]:
    """What this process runs with. Devices are asked of JAX, which starts its backend."""
    return {
        "versions": versions(),
        "git": git_revision(Path(__file__).parents[1]),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": round(total_memory() / 2**30, 1),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "command": sys.argv,
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that can change a result, as far as they are
    installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision(package: Path) -> dict[str, Any] | None:
    """Revision of the checkout whose `src` holds `package`, and whether it has changes; None if it
    is installed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        # A package installed under somebody else's repository must not be taken for that
        # repository.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.resolve().parents[1]:
            return None
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
