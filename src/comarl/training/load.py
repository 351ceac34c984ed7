"""A run from its folder: its settings, and its newest state."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from comarl.algorithms import find_algorithm
from comarl.envs import find_task
from comarl.runs.checkpoint import Checkpoints, describe
from comarl.runs.identity import differences, identity
from comarl.runs.records import CHECKPOINTS, CONFIG, read_config
from comarl.training.settings import Run
from comarl.training.train import RunState, start


def load_run(folder: Path) -> tuple[Run, dict[str, Any], RunState]:
    """The run in `folder`, its configuration, and the state of its newest good checkpoint.

    Raises as `load_settings` and `load_state` do.
    """
    run, config = load_settings(folder)
    return run, config, load_state(folder, run, config)


def load_settings(folder: Path) -> tuple[Run, dict[str, Any]]:
    """The run in `folder`, and its configuration. Raises FileNotFoundError if the folder holds
    none."""
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    config = read_config(folder)
    return rebuild(config), config


def load_state(folder: Path, run: Run, config: dict[str, Any]) -> RunState:
    """The state of the newest good checkpoint in `folder`, for `run`: the one of `config`, or one
    with other settings.

    Raises FileNotFoundError if there is no checkpoint, DamagedCheckpoint if none can be read,
    ValueError if with the settings of `run` the state would have another form.
    """
    theirs = {name: value for name, value in config.items() if name != "steps"}
    ours = identity(run, config["algorithm_name"], config["task_name"])
    like = jax.eval_shape(lambda: start(run))
    changed = list(differences(theirs, ours))
    if changed and describe(like) != describe(jax.eval_shape(lambda: start(rebuild(config)))):
        options = (
            f"--{field.replace('_', '-')} (trained with {was})"
            for field, was, _ in changed
            if field.startswith(("algorithm.", "task."))
        )
        raise ValueError(
            f"{', '.join(options)}: with the values given, the run's networks or what it remembers "
            "would have another form. Leave out what changes that."
        )
    found = Checkpoints(folder / CHECKPOINTS).newest(like, theirs)
    if found is None:
        raise FileNotFoundError(f"{folder} has no checkpoint yet")
    return jax.tree.map(jnp.asarray, found[0])


def rebuild(config: dict[str, Any]) -> Run:
    """The settings that `config.json` holds, as the dataclasses that they were.

    Raises ValueError if it has a field that this version has not.
    """
    algorithm = find_algorithm(config["algorithm_name"]).algorithm
    template = Run(algorithm, find_task(config["task_name"]))
    settings = {k: v for k, v in config.items() if k not in ("algorithm_name", "task_name")}
    return fill(template, settings)


def fill(template: Any, data: Any, path: str = "") -> Any:
    """`template` with the values of `data`, its JSON form, field by field.

    Raises ValueError for a field that the template has not: then the run is of another version.
    """
    if dataclasses.is_dataclass(template) and isinstance(data, dict):
        known = vars(template)
        changes = {}
        for name, value in data.items():
            if name == "kind":  # the class, which the template has
                continue
            if name not in known:
                raise ValueError(
                    f"{path}{name}: the run has this setting, and this version of comarl has not. "
                    "Its records can be reported. To evaluate or resume it, use the version that "
                    "environment.json names; or train anew"
                )
            changes[name] = fill(known[name], value, f"{path}{name}.")
        return dataclasses.replace(template, **changes)  # type: ignore[type-var]
    return tuple(fill(None, item) for item in data) if isinstance(data, list) else data
