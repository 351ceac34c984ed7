"""Looking things up by name, with a suggestion for what was probably meant."""

import difflib
from collections.abc import Iterable


class UnknownName(ValueError):
    """A name that nothing has."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str) -> UnknownName:
    """`name` is no `kind`: says which known name is nearest, or else what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
    return UnknownName(f"{kind} {name!r} does not exist; {meant} {hint}")
