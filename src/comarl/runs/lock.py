"""One process at a time writes into a run's folder.

The lock is the operating system's, on `run.lock`: it ends with the process, however that ends.
Beside it, `run.lock.json` says who holds it.
"""

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from comarl.runs.files import MIB, atomically, read_plain

LOCK, HOLDER = "run.lock", "run.lock.json"


class FolderInUse(ValueError):
    """Another process writes into the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made if need be.

    Raises FolderInUse with the holder's host, process and start if another process has it, or
    another session of this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUse(
            f"{folder} is in use by {holder(folder)}. Wait until that process ends, or give this "
            "run another --folder."
        ) from None
    try:
        about = {
            "host": platform.node(),
            "pid": os.getpid(),
            "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        with atomically(folder / HOLDER) as file:
            file.write(json.dumps(about).encode())
        yield
    finally:
        # Before the lock ends: afterwards the file may be another process's
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def holder(folder: Path) -> str:
    """Who holds the lock of a folder, in words."""
    try:
        about = json.loads(read_plain(folder / HOLDER, MIB))
        return f"process {about['pid']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        # It has just begun, or just ended
        return "another process"
