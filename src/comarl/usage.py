"""Answers to wrong input: each names the field, the value, and what would be right."""

import difflib
from collections.abc import Iterable
from typing import Any


class UnknownName(ValueError):
    """A name that nothing has."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str) -> UnknownName:
    """`name` is no `kind`: says which known name is nearest, or else what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
    return UnknownName(f"{kind} {name!r} does not exist; {meant} {hint}")


def check_range(settings: Any, least: int, most: int | None, *names: str) -> None:
    """Raises ValueError for the first of the named fields that is below `least` or above `most`."""
    for name in names:
        value = getattr(settings, name)
        if not (value >= least and (most is None or value <= most)):
            side = f"{least} or more" if most is None else f"between {least} and {most}"
            raise ValueError(f"{name}={value} of {type(settings).__name__} must be {side}")
