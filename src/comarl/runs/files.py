"""Reading and writing the files of a run: only plain files of a bounded size are read, and what is
written takes the place of the old at once."""

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

MIB = 1 << 20


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file's name to what the system says of a disk that is full: of a file that is open
    it says none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends: a crash leaves the old or
    the new one whole.

    If the block raises, `path` stays as it was.
    """
    beside = path.with_name(path.name + ".partial")
    try:
        with naming(path), beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive a power cut
    finally:
        os.close(folder)


def open_plain(path: Path, most: int | float = math.inf) -> IO[bytes]:
    """`path`, open for reading. Raises OSError, ValueError if it is no plain file or has more than
    `most` bytes."""
    _check_plain(path, path.stat(), most)
    # Without O_NONBLOCK, a pipe that has taken the file's place since would wait for a writer
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    try:
        _check_plain(path, os.fstat(descriptor), most)
    except ValueError:
        file.close()
        raise
    return file


def read_plain(path: Path, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes. Raises OSError, ValueError for any
    other file."""
    with open_plain(path, most) as file:
        return file.read(most)  # what is added to it meanwhile does not count


def _check_plain(path: Path, about: os.stat_result, most: int | float) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path} is no plain file")
    if about.st_size > most:
        raise ValueError(f"{path} has more than {most // MIB:.0f} MiB, which no run writes")
