"""Whether a folder without a checkpoint may become a run's: nothing in it may be lost.

A run writes `no-checkpoint-yet` before anything else, and deletes it after its first checkpoint. So
a run that was killed before it could save begins again by itself, and what else a folder holds is
never overwritten unasked.
"""

import shutil
from pathlib import Path
from typing import Any

from comarl.runs.files import MIB, atomically, read_plain
from comarl.runs.identity import canonical
from comarl.runs.kept import KEPT
from comarl.runs.lock import HOLDER, LOCK
from comarl.runs.payoff import PAYOFF
from comarl.runs.records import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS

MARKER = "no-checkpoint-yet"
OURS = (CONFIG, ENVIRONMENT, METRICS, PAYOFF, CHECKPOINTS, KEPT, "curve.png")
"""what a run leaves; `--overwrite` deletes these and nothing else"""


class FolderNotEmpty(ValueError):
    """A folder that holds something, and no checkpoint to resume from."""


def prepare(folder: Path, config: dict[str, Any], overwrite: bool = False) -> None:
    """Makes a folder without checkpoint ready for a new run of `config`.

    Raises FolderNotEmpty for one that holds anything but what a run of `config` left that was
    stopped before its first checkpoint, unless `overwrite`.
    """
    known = {LOCK, HOLDER, MARKER}
    found = sorted(path.name for path in folder.iterdir())
    found = [name for name in found if name not in known and not name.endswith(".partial")]
    if found and not overwrite and not _began(folder, config):
        listed = ", ".join(found[:5]) + (" and more" if len(found) > 5 else "")
        raise FolderNotEmpty(
            f"{folder} has no checkpoint to resume from, but holds {listed}. Give this run another "
            "--folder, or start anew here with --overwrite, which deletes a run's files."
        )
    if found:
        for name in OURS:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    with atomically(folder / MARKER) as file:
        file.write(canonical(config).encode())


def saved(folder: Path) -> None:
    """Says that the run has a checkpoint."""
    (folder / MARKER).unlink(missing_ok=True)


def _began(folder: Path, config: dict[str, Any]) -> bool:
    try:
        return read_plain(folder / MARKER, 4 * MIB) == canonical(config).encode()
    except (OSError, ValueError):
        return False
