"""Which revision of which repository the code of a run is."""

import contextlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OWN = Path(__file__).parents[1]
INSTALLED = {"site-packages", "dist-packages"}


def git(place: Path, *arguments: str) -> str:
    """What git says in a folder. Raises OSError or SubprocessError where there is no git, or none
    that works."""
    # A setting of the repository could name a program for git to start
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(place), *arguments]
    # Variables that a hook of git has would name another repository
    names = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return done.stdout.strip()


def checkout_of(place: Path) -> Path | None:
    """The checkout that a folder or file lies in, None if in none. What is installed lies in none,
    also where the environment is inside a repository."""
    place = place.resolve()
    if INSTALLED & set(place.parts):
        return None
    try:
        return Path(git(place if place.is_dir() else place.parent, "rev-parse", "--show-toplevel"))
    except (OSError, subprocess.SubprocessError):
        return None


def state_of(checkout: Path) -> dict[str, Any] | None:
    """A checkout's revision, and whether it has changes; None where git does not know."""
    try:
        revision = git(checkout, "rev-parse", "HEAD")
        return {"revision": revision, "dirty": bool(git(checkout, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def own_revision(package: Path = OWN) -> dict[str, Any] | None:
    """Revision of the checkout whose `src` holds comarl's `package`, and whether it has changes;
    None if it is installed."""
    checkout = checkout_of(package)
    # A package under somebody else's repository must not be taken for that repository
    if checkout is None or checkout.resolve() != package.resolve().parents[1]:
        return None
    return state_of(checkout)


def users_revisions(places: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Revision, and whether there are changes, of each checkout besides comarl's own that the
    working directory or one of `places` lies in, with the names of what it holds."""
    holds: dict[Path, list[str]] = {}
    own = checkout_of(OWN)
    with contextlib.suppress(OSError):  # it may have been deleted
        places = {**places, "working directory": Path.cwd()}
    for name, place in places.items():
        checkout = checkout_of(place)
        if checkout is not None and checkout != own:
            holds.setdefault(checkout, []).append(name)
    found = ((names, state_of(checkout)) for checkout, names in holds.items())
    return [{"holds": names, **state} for names, state in found if state is not None]
