"""A run from its folder: its settings, and its newest state."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from comarl.training.checkpoint import Checkpoints
from comarl.training.records import CHECKPOINTS, CONFIG, read_config
from comarl.training.train import Run, RunState, start


def load_run(folder: Path) -> tuple[Run, dict[str, Any], RunState]:
    """The run in `folder`, its configuration, and the state of its newest good checkpoint.

    Raises FileNotFoundError if the folder holds no run or no checkpoint, DamagedCheckpoint if none can be read.
    """
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    config = read_config(folder)
    run = rebuild(config)
    identity = {name: value for name, value in config.items() if name != "steps"}
    found = Checkpoints(folder / CHECKPOINTS).newest(jax.eval_shape(lambda: start(run)), identity)
    if found is None:
        raise FileNotFoundError(f"{folder} has no checkpoint yet")
    return run, config, jax.tree.map(jnp.asarray, found[0])


def rebuild(config: dict[str, Any]) -> Run:
    """The settings that `config.json` holds, as the dataclasses that they were."""
    from comarl.algorithms import find_algorithm
    from comarl.envs import find_task

    algorithm = find_algorithm(config["algorithm_name"]).algorithm
    template = Run(algorithm, find_task(config["task_name"]))
    return fill(template, config)


def fill(template: Any, data: Any) -> Any:
    """`template` with the values of `data`, its JSON form, field by field."""
    if dataclasses.is_dataclass(template) and isinstance(data, dict):
        names = [field.name for field in dataclasses.fields(template) if field.name in data]
        changes = {name: fill(getattr(template, name), data[name]) for name in names}
        return dataclasses.replace(template, **changes)  # type: ignore[type-var]
    return tuple(fill(None, item) for item in data) if isinstance(data, list) else data
