"""What a run leaves in its folder, and the names that runs go by.

    config.json        the run's settings, which its folder is named after
    environment.json   what each stretch of it ran with: versions, revision, machine, command line
    run.lock           held by the process that trains (`runs/lock.py`)
    no-checkpoint-yet  from a run's first moment to its first checkpoint (`runs/beginning.py`)
    metrics.jsonl      one line per seed and evaluation
    payoff.csv         on matrix games: what each seed has learnt (`runs/payoff.py`)
    checkpoints/       the newest states of the run
    kept/              teams that were asked for besides (`runs/kept.py`)

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

import datetime
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from comarl.machine.hardware import cpu_model, total_memory, usable_cores
from comarl.runs.files import MIB, atomically, naming, open_plain, read_plain
from comarl.runs.revisions import own_revision

CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS = (
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
)
MOST_RECORDS = 256 * MIB
MOST_LINE = 16 * MIB
"""bytes of `metrics.jsonl` and of a line of it that are read; a line has a few thousand"""
RETURN, WON = "return", "won"
FATES = ("injected_elite", "injected_selected", "injected_discarded")
"""what may become of a team that was injected; of each `training` has the share of rounds since the
last evaluation, and under `count_of` their number"""
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


def write_about(folder: Path, config: dict[str, Any], code: dict[str, Any] | None = None) -> None:
    """Writes `config.json`, adds this stretch to `environment.json`, and makes the folder if need
    be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)
    write_json(folder / ENVIRONMENT, [*read_stretches(folder), environment() | (code or {})])


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`. Raises FileNotFoundError if there is none, ValueError if
    it is not a plain file with a JSON object of at most 4 MiB."""
    config = parse(read_plain(folder / CONFIG, 4 * MIB), folder / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} must be a JSON object, not {config!r:.40}")
    return config


def read_stretches(folder: Path) -> list[dict[str, Any]]:
    """What each stretch of the run in `folder` ran with, oldest first; older versions wrote one
    object. Of a file that cannot be read nothing is known: an empty list."""
    try:
        found = parse(read_plain(folder / ENVIRONMENT, 16 * MIB), folder / ENVIRONMENT)
    except (OSError, ValueError):
        return []
    stretches = found if isinstance(found, list) else [found]
    return [stretch for stretch in stretches if isinstance(stretch, dict)]


def parse(content: bytes, where: Path | str) -> Any:
    """What a JSON text says, which has no NaN and no infinity. Raises ValueError that names `where`
    it stands."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON; what is not finite is null")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from error


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


def count_of(fate: str) -> str:
    """Under which name `training` has how often it was so since the last evaluation.

    >>> count_of("injected_elite")
    'injected_elite_count'
    """
    return f"{fate}_count"


def metric_label(metric: str) -> str:
    """A metric's name as people read it.

    >>> metric_label("won"), metric_label("td_loss")
    ('win rate', 'td loss')
    """
    return "win rate" if metric == WON else metric.replace("_", " ")


@dataclass(frozen=True)
class Records:
    """The file `metrics.jsonl` of one run, for its only writer."""

    folder: Path

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.folder / METRICS

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines and waits until they are on the disk. NaN becomes null. Raises TypeError if
        one is not JSON."""
        text = "".join(json.dumps(plain(line), allow_nan=False) + "\n" for line in lines)
        with naming(self.path), self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def position(self) -> int:
        """The length in bytes, for a checkpoint to remember."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, position: int) -> None:
        """Drops all lines after `position`, so that a resumed run does not write them twice.

        Raises ValueError if the file is shorter than that, if a line begins elsewhere, or if one
        that stays is none that a run writes: it is not the file of the run, and stays as it is.
        """
        _, end = _lines(self.path, position)
        if end != position:
            raise ValueError(
                f"{self.path} has {self.position()} bytes and no line that ends at byte "
                f"{position}, where the checkpoint says it was. Restore the file, or delete "
                f"{self.folder} to start this run from the beginning."
            )
        self._cut(position)

    def _cut(self, position: int) -> None:
        if position < self.position():
            with self.path.open("r+b") as file:
                file.truncate(position)
                os.fsync(file.fileno())


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, also while it is being written; none if there is no
    such file.

    Raises ValueError with the number of the first line that no run has written there.
    """
    return _lines(folder / METRICS)[0]


def _lines(path: Path, end: int | float = math.inf) -> tuple[list[dict[str, Any]], int]:
    """The lines of records, as far as they are whole and begin before byte `end`, and the byte at
    which the last one ends. Raises as `read` does."""
    lines, latest, position, text = [], {}, 0, b""
    if not path.exists():
        return lines, position
    with open_plain(path, MOST_RECORDS) as file:
        while position < end and (text := file.readline(MOST_LINE + 1)).endswith(b"\n"):
            where = f"{path}, line {len(lines) + 1}"
            line = parse(text, where)
            if fault := line_fault(line, latest):
                raise ValueError(f"{where}: {fault}")
            latest[line["seed"]] = line["env_steps"]
            lines.append(line)
            position += len(text)
    if len(text) > MOST_LINE:
        raise ValueError(f"{path}, line {len(lines) + 1}: it has more than {MOST_LINE // MIB} MiB")
    return lines, position


def line_fault(line: Any, latest: Mapping[int, int]) -> str | None:
    """What is wrong with a line of the records, given the latest `env_steps` of each seed; None if
    nothing is.

    >>> line_fault({"seed": 0, "env_steps": 10, "updates": 1}, {0: 20})
    'env_steps 10 of seed 0 must be more than 20, which an earlier line has'
    """
    if not isinstance(line, dict):
        return f"{line!r:.40} must be an object with seed, env_steps and returns"
    for name in ("seed", "env_steps", "updates"):
        if type(line.get(name)) is not int or not 0 <= line[name] < 2**63:
            return f"{name} {line.get(name)!r:.40} must be a whole number from 0"
    seed, steps = line["seed"], line["env_steps"]
    if seed in latest and steps <= latest[seed]:
        return (
            f"env_steps {steps} of seed {seed} must be more than {latest[seed]}, which an earlier "
            "line has"
        )
    for name, value in line.items():
        team = name.startswith(tuple(TEAM_LABELS))
        if team and not (isinstance(value, list) and all(map(_is_number, value))):
            return f"{name} {value!r:.40} must be a list of numbers"
    training = line.get("training", {})
    if not isinstance(training, dict) or not all(map(_is_number, training.values())):
        return f"training {training!r:.40} must be an object of numbers"
    return None


def _is_number(value: Any) -> bool:
    """Whether a value of the records is one: what was not finite is null."""
    if value is None or isinstance(value, bool | int):
        return True
    return isinstance(value, float) and math.isfinite(value)


def environment() -> dict[str, Any]:
    """What this process runs with. Devices are asked of JAX, which starts its backend."""
    return {
        "versions": versions(),
        "git": own_revision(),
        "when": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
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
