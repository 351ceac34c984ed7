"""A team as a file to give away: its acting networks alone, and what is needed to act by them.

    team.safetensors   the networks, and as metadata the description
    team.json          the description once more, for people and other programs
    team.stablehlo     on demand: one step of the team as a program, with its networks inside

The description has a `format`, `comarl` (the version that wrote it), `algorithm_name` and
`algorithm` (settings as in a run's config.json), `task_name` and `task`, `spec` (sizes), `team` and
`which` (of a population), `task_in_jax`, `seed`, `clock`, `scores` and a `sha256` of the networks.
A file may come from anybody: nothing of it is run, its sizes are bounded, and what it says is
checked before it is used.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array
from safetensors import SafetensorError

from comarl.escape import line
from comarl.runs.checkpoint import numbers
from comarl.runs.files import MIB, atomically, read_plain
from comarl.runs.identity import to_config
from comarl.runs.records import CONFIG, TEAM_LABELS, parse, plain, write_json
from comarl.teams.acting import Acting, Form, clock_of
from comarl.teams.program import interface, program, serialise
from comarl.teams.team import About, Team
from comarl.training.load import rebuild_algorithm, tuples
from comarl.training.settings import num_teams
from comarl.types import EnvSpec
from comarl.validation import LARGEST_INT, check_fields, fits, is_whole, short

FORMAT = 1
SUFFIX = ".safetensors"
DESCRIPTION = "comarl"
"""the name of the description in the metadata"""
MOST_BYTES = 2048 * MIB
MOST_HEADER = 4 * MIB
MOST_AGENTS = 4096
MOST_NUMBERS = 10_000_000
"""of the observations of a team, of its actions, of a state"""
MOST_STEPS = 1_000_000
"""of an episode"""


def export(team: Team, path: Path | str, *, stablehlo: bool = False) -> Path:
    """Writes a team to `path`, which ends in .safetensors, with its description beside it, and the
    path.

    With `stablehlo` also writes one step of the team as a program for a CPU (`program`). Raises
    ValueError for a path of another ending, for a mixed team, and where the description would take
    the place of another program's file; ModuleNotFoundError where `stablehlo` lacks flatbuffers.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path} must end in {SUFFIX}, such as team{SUFFIX}")
    acting = team.acting
    if not isinstance(acting, Acting):
        raise ValueError("a mixed team cannot be exported; export the teams its agents come from")
    if (beside := path.with_suffix(".json")).exists() and not is_description(beside):
        raise ValueError(f"{beside} is there already and no team's: choose another name for {path}")
    check_spec(acting.spec)
    code = serialise(program(acting)) if stablehlo else None
    arrays = stored(acting)
    about = describe(team.about, acting, arrays) | (
        {"stablehlo": interface(acting)} if stablehlo else {}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as file:
        text = json.dumps(about, allow_nan=False)
        file.write(safetensors.numpy.save(arrays, {DESCRIPTION: text}))
    write_json(beside, about)
    if code is not None:
        with atomically(path.with_suffix(".stablehlo")) as file:
            file.write(code)
    return path


def stored(acting: Acting) -> dict[str, np.ndarray]:
    """The arrays of a team by their paths in the agent's state."""
    names = [name for name, _, _ in acting.form.kept]
    return {name: numbers(leaf) for name, leaf in zip(names, acting.leaves, strict=True)}


def describe(about: About, acting: Acting, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is needed to act by the arrays, and where they come from, as JSON data."""
    form, clock = acting.form, acting.clock
    return {
        "format": FORMAT,
        "comarl": importlib.metadata.version("comarl"),
        **about.config,
        "spec": to_config(form.spec),
        "team": form.team,
        "which": about.which,
        "task_in_jax": form.task_in_jax,
        "seed": int(about.seed),
        "clock": {"env_steps": int(clock.env_steps), "updates": int(clock.updates)},
        "scores": plain(about.scores),
        "sha256": digest(arrays),
    }


def digest(arrays: dict[str, np.ndarray]) -> str:
    """What finds damage: a hash of all arrays, by their names."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        found.update(arrays[name].tobytes())
    return found.hexdigest()


def is_description(path: Path) -> bool:
    """Whether a file is the description of a team."""
    try:
        found = parse(read_plain(path, MOST_HEADER), path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"format", "comarl", "sha256"} <= found.keys()


def read(path: Path | str, imports: Sequence[str] = ()) -> Team:
    """The team in a file that `export` wrote. No trainer, replay, task or run is needed.

    `imports` are modules of algorithms of your own that the file may name. Raises OSError if there
    is no file, ValueError, in one sentence, for one that is damaged or of another kind, that needs
    code not named, or that this version of comarl cannot act by.
    """
    path = Path(path)
    content = read_plain(path, MOST_BYTES)
    try:
        return build(content, imports)
    except ValueError as error:
        raise ValueError(f"{path}: {line(str(error)).replace(CONFIG, 'its description')}") from None


def build(content: bytes, imports: Sequence[str]) -> Team:
    """The team in the content of a file. Raises ValueError."""
    header, about = read_header(content)
    check_description(about)
    algorithm = rebuild_algorithm(about, imports, "the team's")
    spec = read_spec(about["spec"])
    if (kind := "discrete" if spec.discrete else "continuous") not in algorithm.actions:
        raise ValueError(f"{type(algorithm).__name__} cannot choose {kind} actions")
    check_whole("team", about["team"], num_teams(algorithm) - 1)
    form = Form.of(algorithm, spec, about["team"], about["task_in_jax"])
    leaves = read_leaves(content, header, form, about["sha256"])
    clock = clock_of(about["clock"]["env_steps"], about["clock"]["updates"])
    config = {name: about[name] for name in ("algorithm_name", "task_name", "algorithm", "task")}
    where = About(config, about["seed"], about["which"], about["scores"])
    return Team(Acting(leaves, clock, form), where)


def read_header(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file of safetensors says of its arrays, and the description among its metadata."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(MOST_HEADER, len(content) - 8):
        raise ValueError("it is no file of safetensors, or was cut")
    header = parse(content[8 : 8 + length], "its header")
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get(DESCRIPTION), str):
        raise ValueError("it is no team that comarl exported: its metadata has no description")
    about = parse(metadata[DESCRIPTION].encode(), "its description")
    if not isinstance(about, dict):
        raise ValueError("its description must be an object")
    return header, about


FIELDS: dict[str, type] = {
    "format": int,
    "comarl": str,
    "algorithm_name": str,
    "algorithm": dict,
    "task_name": str,
    "task": dict,
    "spec": dict,
    "team": int,
    "which": str,
    "task_in_jax": bool,
    "seed": int,
    "clock": dict,
    "scores": dict,
    "sha256": str,
}
"""of the description, and their types"""


def check_description(about: dict[str, Any]) -> None:
    """Raises ValueError for a description with other fields or other types than `describe`'s."""
    if about.get("format") != FORMAT:
        raise ValueError(f"format={short(about.get('format'))} is not one that this version reads")
    for name, kind in FIELDS.items():
        if name not in about:
            raise ValueError(f"its description has no {name}")
        if not fits(about[name], kind):
            raise ValueError(
                f"{name} must be of the type {kind.__name__}, not {short(about[name])}"
            )
    if surplus := about.keys() - FIELDS.keys() - {"stablehlo"}:
        raise ValueError(f"its description has an unknown field {min(surplus)[:60]!r}")
    if about["which"] not in TEAM_LABELS:
        raise ValueError(f"which={short(about['which'])} must be {' or '.join(TEAM_LABELS)}")
    if about["clock"].keys() != {"env_steps", "updates"}:
        raise ValueError(f"clock={short(about['clock'])} must have env_steps and updates")
    for name, value in [*about["clock"].items(), ("seed", about["seed"])]:
        check_whole(name, value, LARGEST_INT)


def check_whole(name: str, value: Any, most: int, least: int = 0) -> None:
    """Raises ValueError unless a value is a whole number within these bounds."""
    if not is_whole(value) or not least <= value <= most:
        raise ValueError(f"{name}={short(value)} must be between {least} and {most}")


def read_spec(data: dict[str, Any]) -> EnvSpec:
    """The sizes of a task from their JSON form. Raises ValueError for what no task has."""
    known = {field.name for field in dataclasses.fields(EnvSpec)}
    if not known | {"kind"} >= data.keys():
        raise ValueError(f"spec has an unknown field {min(data.keys() - known)[:60]!r}")
    try:
        spec = EnvSpec(**{name: tuples(data[name]) for name in known & data.keys()})
    except TypeError:
        raise ValueError("spec has not all sizes of a task") from None
    check_spec(spec)
    return spec


def check_spec(spec: EnvSpec) -> None:
    """Raises ValueError for sizes that are none, or beyond what a file may ask for."""
    check_fields(spec)
    check_whole("num_agents", spec.num_agents, MOST_AGENTS, 1)
    for name in ("obs_size", "action_size"):
        check_whole(name, getattr(spec, name), MOST_NUMBERS // spec.num_agents, 1)
    check_whole("state_size", spec.state_size, MOST_NUMBERS)
    check_whole("horizon", spec.horizon, MOST_STEPS, 1)
    for name, most in (("obs_sizes", spec.obs_size), ("action_sizes", spec.action_size)):
        sizes = getattr(spec, name)
        if sizes is not None and (len(sizes) != spec.num_agents or not min(sizes) >= 0):
            raise ValueError(f"{name}={short(sizes)} must be one size for each agent")
        if sizes is not None and max(sizes) > most:
            raise ValueError(f"{name}={short(sizes)} must be {most} at most")
    rows = spec.obs_from_state
    if rows is not None and (
        len(rows) != spec.num_agents
        or any(len(row) > spec.obs_size for row in rows)
        or any(not 0 <= index < spec.state_size for row in rows for index in row)
    ):
        raise ValueError("obs_from_state must be indices of the state, a row for each agent")


def read_leaves(
    content: bytes, header: dict[str, Any], form: Form, sha256: str
) -> tuple[Array, ...]:
    """The arrays that a team needs. Raises ValueError unless the file has these and no others."""
    wanted = {name: leaf for name, _, leaf in form.kept}
    for name, leaf in wanted.items():
        entry = header.get(name)
        if not isinstance(entry, dict):
            raise ValueError(f"it has no array {name}")
        if entry.get("shape") != list(leaf.shape):
            raise ValueError(
                f"its array {name} has the shape {short(entry.get('shape'))}; a team with these "
                f"settings has {list(leaf.shape)}"
            )
    if surplus := header.keys() - wanted.keys():
        raise ValueError(f"it has an array that its team has not: {min(surplus)[:100]!r}")
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"its arrays cannot be read: {error}") from None
    if digest(arrays) != sha256:
        raise ValueError("its arrays are not those that were written: the file is damaged")
    for name, leaf in wanted.items():
        if arrays[name].dtype.itemsize != np.dtype(leaf.dtype).itemsize:
            raise ValueError(f"its array {name} is {arrays[name].dtype}, not {leaf.dtype}")
    return tuple(jnp.asarray(arrays[name].view(leaf.dtype)) for name, leaf in wanted.items())
