"""Saving a run's whole state, so that a resumed run is the run that never stopped.

A checkpoint is one uncompressed zip: `header.json` says whose it is, `arrays.json` what it holds,
and each array is a `.npy` member named by its path in the state. The CRC of every member finds
damage; nothing is pickled.
"""

import json
import os
import re
import struct
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpy.lib import format as npy

from comarl.runs.files import MIB, atomically, open_plain
from comarl.runs.identity import first_difference

# Bytes read at once: large enough to be fast, small enough to need no second copy of a replay
# memory
CHUNK = 1 << 24
# Bytes of header.json and of arrays.json that a checkpoint may have; its own are far smaller
MOST_JSON = 4 * MIB
# Members of a checkpoint's zip; a state has some hundreds of arrays
MOST_MEMBERS = 20_000
# The end of a zip without a comment: its signature and the number of its members are in it
ZIP_END = struct.Struct("<4s4xHH8x2x")
# Checkpoints that are tried before a folder is given up; a run keeps two
MOST_TRIED = 20
# Bytes of a .npy member before its numbers; NumPy itself writes at most a few hundred
MOST_NPY_HEADER = 4096


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read, or does not hold the state that was asked for."""


class DamagedCheckpointWarning(UserWarning):
    """A damaged checkpoint was skipped, and an older one is used."""


class OtherConfiguration(Exception):
    """A checkpoint that was written by a run with other settings."""


def save(path: Path, state: PyTree, header: dict[str, Any]) -> None:
    """Writes `state` and `header` (JSON data) to `path`, atomically.

    Raises TypeError for a leaf that is neither an array nor a function, ValueError for two leaves
    with one path or a header that is not JSON.
    """
    with atomically(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        # An entry without a date, so that equal states are equal files
        archive.writestr(
            zipfile.ZipInfo("header.json"), json.dumps(header, indent=1, allow_nan=False)
        )
        archive.writestr(zipfile.ZipInfo("arrays.json"), json.dumps(describe(state)))
        for name, leaf in arrays(state).items():
            raw = numbers(leaf)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array_header_1_0(member, npy.header_data_from_array_1_0(raw))
                # The array's own memory, not a copy
                member.write(raw.reshape(-1).view(np.uint8).data)


def load(path: Path, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """The state saved at `path`, in the structure of `like`, and the header.

    `like` is a state or the result of `jax.eval_shape`; functions among its leaves are taken from
    it. Its NumPy leaves come back as NumPy arrays, all others as JAX arrays. Raises
    DamagedCheckpoint if anything of the file is damaged or differs from `like`; TypeError if `like`
    has leaves that `save` would refuse.
    """
    leaves, wanted = _leaves(like), describe(like)
    values = []
    with _opened(path) as file:
        with _naming(path):
            archive = _archive(file)
            header = _json(archive, "header.json")
            # Cheap to find out, so before anything large is read.
            _compare(_json(archive, "arrays.json"), wanted)
        for name, leaf in leaves:
            if not _is_function(leaf):
                raw = _empty(leaf)
                with _naming(path):
                    _fill(raw, archive, name)
                # Not under _naming: if the device has no memory left, the file is not damaged
                leaf = _wrap(raw, leaf)
            values.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(like), values), header


def describe(state: PyTree) -> dict[str, str]:
    """Type and shape of each array of a state by its path, in JAX's short form: `float32[3,4]`,
    `key<fry>[]`.

    Raises as `save` does.
    """
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in arrays(state).items()
    }


def arrays(state: PyTree) -> dict[str, Any]:
    """Each array of a state by its path; functions are left out. Raises as `save` does."""
    return {name: leaf for name, leaf in _leaves(state) if not _is_function(leaf)}


def numbers(leaf: Any) -> np.ndarray:
    """The numbers of an array or key as a contiguous array of a type that NumPy can name in a
    file."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects cannot be saved")
    # Bfloat16 and its kin
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def read_header(path: Path) -> dict[str, Any]:
    """The header alone. Raises DamagedCheckpoint."""
    with _opened(path) as file, _naming(path):
        return _json(_archive(file), "header.json")


def check_config(path: Path, header: dict[str, Any], config: dict[str, Any]) -> None:
    """Raises OtherConfiguration or DamagedCheckpoint unless the header is of a run with
    `config`."""
    if not isinstance(header.get("config"), dict):
        raise DamagedCheckpoint(f"{path}: its header has no configuration")
    if difference := first_difference(header["config"], json.loads(json.dumps(config))):
        field, theirs, ours = difference
        raise OtherConfiguration(
            f"{field}: the checkpoint has {theirs}, this run has {ours} ({path}). "
            f"Give this run a folder of its own, or delete {path.parent} to start it from the "
            "beginning."
        )


def _warn(message: str) -> None:
    warnings.warn(message, DamagedCheckpointWarning, stacklevel=3)


def _accept(header: dict[str, Any]) -> None:
    """Accepts every header."""


def _clear(path: Path) -> None:
    """Deletes a file or link; a folder, which no run has made, is only put aside."""
    if path.is_dir() and not path.is_symlink():
        path.replace(path.with_name(f"not-a-file-{uuid.uuid4().hex[:8]}-{path.name}"))
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Checkpoints:
    """The newest checkpoints of one run, as `checkpoint-00000123.npz` in a folder of their own."""

    folder: Path
    keep: int = 2
    """how many to keep; with two, one may be damaged"""

    def __post_init__(self):
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, not {self.keep}")

    def path(self, number: int) -> Path:
        """Where the checkpoint of a round is."""
        return self.folder / f"checkpoint-{number:08d}.npz"

    def numbers(self) -> list[int]:
        """The numbers of the checkpoints there are, newest first."""
        names = (
            re.fullmatch(r"checkpoint-(\d{8,})\.npz", path.name)
            for path in self.folder.glob("checkpoint-*.npz")
        )
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def kept(self) -> str:
        """A sentence that says what there is to resume from."""
        if not (numbers := self.numbers()):
            return "The run has no checkpoint yet: the same command starts it from the beginning."
        return f"The same command resumes from {self.path(numbers[0])}."

    def save(self, number: int, state: PyTree, header: dict[str, Any]) -> Path:
        """Writes checkpoint `number`, then deletes those that are no longer needed.

        Higher numbers go too: the run has gone back before them, so they are of a future that is
        being replaced. Raises what `save` of this module raises.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Of a run that was killed while writing
        for stale in self.folder.glob("checkpoint-*.partial"):
            _clear(stale)
        if self.path(number).is_dir():
            _clear(self.path(number))
        save(self.path(number), state, header)
        kept = [n for n in self.numbers() if n <= number][: self.keep]
        for n in set(self.numbers()) - set(kept):
            _clear(self.path(n))
        return self.path(number)

    def newest(
        self,
        like: PyTree,
        config: dict[str, Any],
        tell: Callable[[str], None] = _warn,
        check: Callable[[dict[str, Any]], None] = _accept,
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """State and header of the newest checkpoint that can be read, or None if there is no
        checkpoint.

        Damaged ones are named through `tell`, by default as a DamagedCheckpointWarning. Raises
        OtherConfiguration if a checkpoint is not of a run with `config`, DamagedCheckpoint if none
        can be read. `check` raises ValueError for a header that lacks what the run needs: then the
        checkpoint is damaged, too.
        """
        causes = []
        for number in self.numbers()[:MOST_TRIED]:
            path = self.path(number)
            try:
                # The configuration decides the shapes, so a difference there is the cause to name.
                header = read_header(path)
                check_config(path, header, config)
                with _naming(path):
                    if header.get("round", number) != number:
                        raise ValueError(f"it is of round {header['round']}, not of {number}")
                    check(header)
                found = load(path, like)
            except DamagedCheckpoint as damage:
                causes.append(str(damage))
                continue
            except FileNotFoundError:  # its run has just replaced it by a newer one
                causes.append(f"{path} was deleted meanwhile")
                continue
            for cause in causes:
                tell(f"{cause}. The run resumes from the older {path.name}.")
            return found
        if causes:
            raise DamagedCheckpoint(
                f"no checkpoint in {self.folder} can be read: {'; '.join(causes)}. "
                f"Delete {self.folder} to start this run from the beginning."
            )
        return None


def _is_function(leaf: Any) -> bool:
    return callable(leaf) and not hasattr(leaf, "dtype")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves with their paths. Raises TypeError for one that cannot be saved, ValueError for a
    path used twice."""
    leaves = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    for name, leaf in leaves:
        if not _is_function(leaf) and not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise TypeError(f"{name} is a {type(leaf).__name__}; a state holds arrays only")
    names = [name for name, _ in leaves]
    if len(set(names)) < len(names):
        raise ValueError(f"two leaves of the state have one path: {max(names, key=names.count)}")
    return leaves


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever reading a damaged file raises into a DamagedCheckpoint with path and cause."""
    try:
        yield
    except (MemoryError, DamagedCheckpoint):
        raise
    # Any failure to read is damage: no list is complete of what zipfile, json and numpy raise
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DamagedCheckpoint(f"{path}: {cause}") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A checkpoint's file, open; what is no plain file is damaged, what is not there is missing."""
    try:
        with _naming(path):
            file = open_plain(path)
    except DamagedCheckpoint as damage:
        if isinstance(damage.__cause__, FileNotFoundError) and not path.is_symlink():
            raise damage.__cause__ from None
        raise
    with file:
        yield file


def _archive(file: IO[bytes]) -> zipfile.ZipFile:
    """A checkpoint's zip, opened. Raises ValueError for one with more members than a checkpoint
    has, before they are read."""
    file.seek(max(file.seek(0, os.SEEK_END) - ZIP_END.size, 0))
    end = file.read()
    if len(end) < ZIP_END.size or not end.startswith(b"PK\x05\x06"):
        raise ValueError("File is not a zip file")
    _, here, members = ZIP_END.unpack(end)
    if here != members or members > MOST_MEMBERS:
        raise ValueError(f"it has more than {MOST_MEMBERS} members")
    return zipfile.ZipFile(file)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> zipfile.ZipInfo:
    """A member's entry. Raises LookupError if there is none, ValueError if it is larger than what
    is expected or compressed, as no member of a checkpoint is."""
    if name not in archive.NameToInfo:
        raise LookupError(f"it has no {name}")
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise ValueError(f"its {name} is compressed or larger than {most} bytes")
    return info


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    value = json.loads(archive.read(_member(archive, name, MOST_JSON)))
    if not isinstance(value, dict):
        raise ValueError(f"its {name} is not an object")
    return value


def _compare(there: dict[str, Any], wanted: dict[str, str]) -> None:
    """Raises LookupError or ValueError unless the file has the arrays that are wanted and no
    others."""
    for name, description in wanted.items():
        if name not in there:
            raise LookupError(f"it has no array {name}")
        if there[name] != description:
            raise ValueError(f"its array {name} is {there[name]}, this run's is {description}")
    if surplus := [name for name in there if name not in wanted]:
        raise ValueError(f"it has an array {surplus[0]} that this run has not")


def _empty(like: Any) -> np.ndarray:
    """Memory for the numbers of an array or key, as `numbers` gives them."""
    numbers = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    dtype = np.dtype(numbers.dtype)
    return np.empty(numbers.shape, dtype if dtype.isbuiltin == 1 else f"u{dtype.itemsize}")


def _fill(raw: np.ndarray, archive: zipfile.ZipFile, name: str) -> None:
    """Reads one member into `raw`, to its end, where its CRC is checked. Raises ValueError with the
    array's name."""
    buffer, filled = raw.reshape(-1).view(np.uint8).data, 0
    try:
        entry = _member(archive, f"{name}.npy", MOST_NPY_HEADER + len(buffer))
        with archive.open(entry) as member:
            if npy.read_magic(member) != (1, 0) or npy.read_array_header_1_0(member) != (
                raw.shape,
                False,
                raw.dtype,
            ):
                raise ValueError("its type or shape is another")
            while piece := member.read(CHUNK):
                # ValueError if there is more than fits
                buffer[filled : filled + len(piece)] = piece
                filled += len(piece)
        if filled < len(buffer):
            raise ValueError("it is too short")
    except MemoryError:
        raise
    except Exception as error:  # as in `_naming`, with the array's name
        raise ValueError(f"its array {name} cannot be read: {error}") from error


def _wrap(raw: np.ndarray, like: Any) -> Any:
    """The array or key whose numbers are in `raw`, of the type of `like`."""
    if _is_key(like):
        # `like` itself may be a mere shape
        implementation = jax.random.key_impl(jnp.empty(0, like.dtype))
        return jax.random.wrap_key_data(jnp.asarray(raw), impl=implementation)
    array = raw.view(np.dtype(like.dtype))
    return array if isinstance(like, np.ndarray | np.generic) else jnp.asarray(array)
