"""A run from its folder: its settings, and its newest state."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from comarl.algorithms import find_algorithm
from comarl.envs import find_task, task_names
from comarl.envs.pettingzoo import PettingZoo
from comarl.escape import line
from comarl.names import check_imports, find_class, is_own
from comarl.runs.checkpoint import Checkpoints, describe
from comarl.runs.identity import differences, identity, kind_of
from comarl.runs.kept import Kept
from comarl.runs.records import CHECKPOINTS, CONFIG, read_config
from comarl.training.settings import Run
from comarl.training.train import RunState, Trained, snapshot, start
from comarl.types import Clock
from comarl.validation import UnknownName, WrongSetting, alternatives, field_types, short

NAMES = ("algorithm_name", "task_name")
"""what a configuration says besides the fields of a Run"""
NEWEST = "newest"
"""the state that a run resumes from"""


def load_run(folder: Path, imports: Sequence[str] = ()) -> tuple[Run, dict[str, Any], RunState]:
    """The run in `folder`, its configuration, and the state of its newest good checkpoint.

    `imports` are the modules that the run's task may import. Raises as `load_settings` and
    `load_state` do.
    """
    run, config = load_settings(folder, imports)
    return run, config, load_state(folder, run, config)


def load_settings(folder: Path, imports: Sequence[str] = ()) -> tuple[Run, dict[str, Any]]:
    """The run in `folder`, and its configuration.

    Raises FileNotFoundError if the folder holds none, ValueError as `rebuild` does.
    """
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    config = read_config(folder)
    return rebuild(config, imports), config


def load_state(folder: Path, run: Run, config: dict[str, Any]) -> RunState:
    """The state of the newest good checkpoint in `folder`, for `run`: the one of `config`, or one
    with other settings.

    Raises FileNotFoundError if there is no checkpoint, DamagedCheckpoint if none can be read,
    ValueError if with the settings of `run` the state would have another form.
    """
    theirs, like = saved_config(config), jax.eval_shape(lambda: start(run))
    check_form(run, config, like)
    found = Checkpoints(folder / CHECKPOINTS).newest(like, theirs)
    if found is None:
        raise FileNotFoundError(f"{folder} has no checkpoint yet")
    return jax.tree.map(jnp.asarray, found[0])


def load_trained(
    folder: Path, run: Run, config: dict[str, Any], checkpoint: str = NEWEST
) -> Trained:
    """What the run in `folder` had learnt at its `newest` checkpoint, when it was `best`, or after
    so many steps, for `run` as in `load_state`.

    Raises as `load_state`; FileNotFoundError for what was not kept, with what was.
    """
    if checkpoint == NEWEST:
        state = load_state(folder, run, config)
        return Trained(state.agent, state.clock)
    like = jax.eval_shape(lambda: start(run))
    check_form(run, config, like)
    one = jax.eval_shape(lambda state: snapshot(state, 0), like)
    found = Kept(folder).load(checkpoint, run.seed_numbers, one, saved_config(config))
    stacked = jax.tree.map(lambda *seeds: jnp.stack(seeds), *found)
    clock = Clock(stacked.env_steps, stacked.updates, jnp.int32(0))
    return Trained(stacked.agent, clock)


def saved_config(config: dict[str, Any]) -> dict[str, Any]:
    """The identity of the run whose `config.json` this is."""
    return {name: value for name, value in config.items() if name != "steps"}


def check_form(run: Run, config: dict[str, Any], like: RunState) -> None:
    """Raises ValueError where a state of `run`, of the shapes `like`, has another form than one of
    the run that `config` is of, with the settings that make the difference."""
    ours = identity(run, config["algorithm_name"], config["task_name"])
    changed = list(differences(saved_config(config), ours))
    if not changed:
        return
    trained = rebuild(config, imports_of(run.task))
    if describe(like) != describe(jax.eval_shape(lambda: start(trained))):
        options = (
            f"--{field.replace('_', '-')} (trained with {was})"
            for field, was, _ in changed
            if field.startswith(("algorithm.", "task."))
        )
        raise ValueError(
            f"{', '.join(options)}: with the values given, the run's networks or what it remembers "
            "would have another form. Leave out what changes that."
        )


def rebuild(config: dict[str, Any], imports: Sequence[str] = ()) -> Run:
    """The settings that `config.json` holds, as the dataclasses that they were.

    Raises ValueError for a field that this version has not, for a value that the field cannot have,
    and for code that would be imported though it is neither in `imports` nor imported already.
    """
    for name in NAMES:
        if not isinstance(value := config.get(name), str):
            raise ValueError(f"{name}={short(value)} of {CONFIG} must be a name, in quotes")
    known = {name: value for name, value in config.items() if name not in NAMES}
    if (kind := known.pop("kind", Run.__name__)) != Run.__name__:
        raise ValueError(f"kind={short(kind)} of {CONFIG} must be 'Run'")
    for name in known:
        if name not in field_types(Run):
            raise unknown_field(name)
    algorithm, task = rebuild_algorithm(config, imports), rebuild_task(config, imports)
    return Run(**{**known, "algorithm": algorithm, "task": task})


def rebuild_algorithm(
    config: dict[str, Any], imports: Sequence[str] = (), whose: str = "the run's"
) -> Any:
    """The algorithm that `algorithm_name` and `algorithm` say. Raises as `rebuild`."""
    if is_own(name := config["algorithm_name"]):
        check_imports(name, imports, f"{whose} algorithm")
    algorithm = find_algorithm(name).algorithm
    return fill(algorithm, config.get("algorithm", {}), "algorithm", imports)


def rebuild_task(
    config: dict[str, Any], imports: Sequence[str] = (), whose: str = "the run's"
) -> Any:
    """The task that `task_name` and `task` say. Raises as `rebuild`."""
    if is_own(name := config["task_name"]):
        check_imports(name, imports, f"{whose} task")
    named = find_task(name)
    task = fill(named, config.get("task", {}), "task", imports)
    check_named(named, task)
    if isinstance(named, PettingZoo):
        check_imports(named.module, imports, f"{whose} task")
    return task


def check_named(named: Any, task: Any) -> None:
    """Raises ValueError where the settings of a task say another task than its name does."""
    if type(named) is not type(task) or task_names(named) != task_names(task):
        raise ValueError(f"task of {CONFIG} is {task}, but task_name says {named}; restore it")


def imports_of(task: Any) -> list[str]:
    """The modules that whoever names this task has allowed to be imported."""
    return [task.module] if isinstance(task, PettingZoo) else []


def fill(template: Any, data: Any, path: str, imports: Sequence[str] = ()) -> Any:
    """`template` with the values of `data`, its JSON form, field by field; `path` is its name.
    `imports` are the modules that settings may be classes of.

    Raises ValueError for a field that the template has not: then the run is of another version; and
    for a value that the field cannot have.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{path} of {CONFIG} must be an object of settings, not {short(data)}")
    types, changes = field_types(type(template)), {}
    expected = kind_of(type(template))
    if (kind := data.get("kind", expected)) != expected:
        raise ValueError(f"{path}.kind={short(kind)} of {CONFIG} must be {expected!r}")
    for name, value in data.items():
        if name == "kind":
            continue
        here = f"{path}.{name}"
        if name not in types:
            raise unknown_field(here)
        part = template_of(types[name], value, vars(template)[name], here, imports)
        is_part = dataclasses.is_dataclass(part) and value is not None
        changes[name] = fill(part, value, here, imports) if is_part else tuples(value)
    try:
        return dataclasses.replace(template, **changes)
    except WrongSetting as error:
        raise ValueError(f"{path}.{error.field} of {CONFIG}: {error}") from None
    except UnknownName as error:
        raise ValueError(f"{path} of {CONFIG}: {error}") from None


def template_of(hint: Any, data: Any, usual: Any, path: str, imports: Sequence[str]) -> Any:
    """The settings that `data` changes: the usual ones, or others of the class that it names, which
    may be a user's variant of what the field can be."""
    parts: list[Any] = [kind for kind in alternatives(hint) if dataclasses.is_dataclass(kind)]
    kinds = {kind_of(part): part for part in parts}
    if not kinds or not isinstance(data, dict):
        return usual
    kind = data.get("kind", kind_of(type(usual)))
    if isinstance(kind, str) and is_own(kind) and kind not in kinds:
        check_imports(kind, imports, f"the run's {path}")
        cls = find_class(kind)
        if isinstance(cls, type) and issubclass(cls, tuple(parts)):
            kinds[kind] = cls
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(
            f"{path}.kind={short(kind)} of {CONFIG} must be {' or '.join(map(repr, kinds))}"
        )
    return usual if type(usual) is kinds[kind] else kinds[kind]()


def unknown_field(path: str) -> ValueError:
    """What to say of a setting that this version has not."""
    return ValueError(
        f"{line(path)[:100]}: the run has this setting, and this version of comarl has not. "
        "Its records can be reported. To evaluate or resume it, use the version that "
        "environment.json names; or train anew"
    )


def tuples(data: Any) -> Any:
    """JSON data with tuples for its lists."""
    return tuple(map(tuples, data)) if isinstance(data, list) else data
