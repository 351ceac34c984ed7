"""Answers to wrong input: each names the field, the value, and what would be right.

Settings are checked where they are made, in the `__post_init__` of their dataclass, so that the
command line, Python and `config.json` are answered by the same sentences. `check_fields` reads the
types of the fields; `check_range`, `check_layers` and `check_interval` know their bounds.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterable
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST_INT = 2**31 - 1
"""of a whole number in a setting: JAX counts in 32 bits"""
LARGEST_FLOAT = 1e9
"""of any other number: no weight, rate, size or duration that is meant is larger"""
MOST_SEEDS = 4096
"""that train together: far more than any machine has room for"""
Wide = Annotated[int, "wide"]
"""of a field that is an int beyond 32 bits, whose bounds are checked by `check_range`"""
FEW = 8
"""of so many names or fewer all are shown in answer to a wrong one"""


class UnknownName(ValueError):
    """A name that nothing has."""


class WrongSetting(ValueError):
    """A setting that cannot be meant; `field` is its name in its dataclass."""

    def __init__(self, sentence: str, field: str):
        super().__init__(sentence)
        self.field = field


def unknown(kind: str, name: str, known: Iterable[str], hint: str) -> UnknownName:
    """`name` is no `kind`: says which known names are near, or all if they are few.

    >>> str(unknown("command", "lits", ["list", "train"], "`comarl help` shows all."))
    "command 'lits' does not exist; did you mean 'list'? `comarl help` shows all."
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        meant = f"; did you mean {' or '.join(map(repr, near))}? "
    elif len(known) <= FEW:
        meant = f"; there are {', '.join(known)}. "
    else:
        meant = ". "
    return UnknownName(f"{kind} {short(name)} does not exist{meant}{hint}")


def short(value: Any) -> str:
    """How Python writes a value, on one line of 120 characters at most.

    >>> short("a" * 200)[-3:]
    '...'
    """
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits, which Python does not write
        text = f"{type(value).__name__} too large to write"
    return text if len(text) <= 120 else f"{text[:117]}..."


def counted(number: int, noun: str) -> str:
    """A number with its noun, as a sentence has it.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def check_range(settings: Any, minimum: int, maximum: int | None, *names: str) -> None:
    """Raises ValueError for the first of the named fields that is, or has an entry, below `minimum`
    or above `maximum`; None is neither."""
    for name in names:
        value = getattr(settings, name)
        if value is None:  # a field that may be left to its default
            continue
        entries = value if isinstance(value, tuple) else (value,)
        if not all(entry >= minimum and (maximum is None or entry <= maximum) for entry in entries):
            side = f"{minimum} or more" if maximum is None else f"between {minimum} and {maximum}"
            whose = type(settings).__name__
            raise WrongSetting(f"{name}={short(value)} of {whose} must be {side}", name)


def check_layers(settings: Any, *names: str) -> None:
    """Raises ValueError for the first of the named fields that is not one or more widths of hidden
    layers."""
    check_range(settings, 1, None, *names)
    for name in names:
        if not getattr(settings, name):
            raise WrongSetting(
                f"{name}=() of {type(settings).__name__} must name one hidden layer at least, such "
                "as (64,)",
                name,
            )


def check_interval(settings: Any, *names: str) -> None:
    """Raises ValueError for the first of the named fields whose lower end is not below its upper
    one; None is none."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value[0] < value[1]:
            raise WrongSetting(
                f"{name}={value} of {type(settings).__name__} must begin below where it ends", name
            )


def check_fields(settings: Any) -> None:
    """Raises WrongSetting for the first field whose value is not of the field's type.

    An int may stand for a float, and numbers are finite and fit 32 bits. A Literal must have one of
    its values, a tuple entries of its types, and a part such as a replay must be such a part. What
    cannot be checked by type, such as Any, is taken as it is.
    """
    for name, hint in field_types(type(settings)).items():
        value = getattr(settings, name)
        if not fits(value, hint):
            raise WrongSetting(_sentence(type(settings).__name__, name, value, hint), name)


@functools.cache
def field_types(settings: type) -> dict[str, Any]:
    """The type of each field of a dataclass, which may be written as text in its source."""
    fields = dataclasses.fields(settings)
    written = any(isinstance(field.type, str) for field in fields)
    types = get_type_hints(settings, include_extras=True) if written else {}
    return {field.name: types.get(field.name, field.type) for field in fields}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have: those of a union, or its one.

    >>> alternatives(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    if get_origin(hint) is Annotated:
        return alternatives(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a field, as `check_fields` has it.

    >>> fits((64, 64), tuple[int, ...]), fits(64, tuple[int, ...]), fits(float("nan"), float)
    (True, False, False)
    """
    if hint is Wide:
        return is_whole(value)
    return any(_is(value, kind) for kind in alternatives(hint))


def _is(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is None or kind is type(None):
        return value is None
    if origin is Literal:
        return isinstance(value, str | bool | int) and value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1:] == (...,):
            return all(fits(entry, parts[0]) for entry in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return is_whole(value) and abs(value) <= LARGEST_INT
    if kind is float:
        return _is_number(value) and abs(value) <= LARGEST_FLOAT  # which NaN is not
    known = origin or kind
    return isinstance(value, known) if isinstance(known, type) and known is not Any else True


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, which True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _sentence(whose: str, name: str, value: Any, hint: Any) -> str:
    kinds = alternatives(hint)
    allowed = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if allowed:
        near = difflib.get_close_matches(str(value), map(str, allowed), n=1, cutoff=0.5)
        choices = " or ".join(map(repr, allowed))
        meant = f"did you mean {near[0]!r}?" if near else f"it can be {choices}."
        return f"{name}={short(value)} of {whose} is no choice; {meant}"
    words = " or ".join(_noun(kind) for kind in kinds)
    article = "" if words.startswith("None") else "an " if words[0] in "AEIOaeio" else "a "
    if _is_number(value) and float in kinds:
        finite = "" if abs(value) < math.inf else "finite "
        article = "a " if finite else article
        words = f"{finite}{words}" + ("" if finite else f" of at most {LARGEST_FLOAT:g}")
    elif is_whole(value) and int in kinds:
        words += f" of at most {LARGEST_INT}"
    return f"{name} of {whose} must be {article}{words}, not {short(value)}"


def _noun(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is type(None):
        return "None"
    if origin is tuple:
        if parts[-1:] == (...,):
            example = ", such as (64, 64)" if parts[0] is int else ""
            return f"tuple of {_noun(parts[0])}s{example}"
        return f"tuple of {', '.join(map(_noun, parts))}"
    return (origin or kind).__name__ if isinstance(origin or kind, type) else str(kind)
