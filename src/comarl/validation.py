"""Answers to wrong input: each names the field, the value, and what would be right."""

import dataclasses
import difflib
from collections.abc import Iterable
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin

NUMBERS = (bool, int, float)


class UnknownName(ValueError):
    """A name that nothing has."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str) -> UnknownName:
    """`name` is no `kind`: says which known name is nearest, or else what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
    return UnknownName(f"{kind} {name!r} does not exist; {meant} {hint}")


def counted(number: int, noun: str) -> str:
    """A number with its noun, as a sentence has it.

    >>> counted(1, "seed"), counted(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def check_range(settings: Any, minimum: int, maximum: int | None, *names: str) -> None:
    """Raises ValueError for the first of the named fields that is, or has an entry, below `minimum`
    or above `maximum`."""
    for name in names:
        value = getattr(settings, name)
        entries = value if isinstance(value, tuple) else (value,)
        if not all(entry >= minimum and (maximum is None or entry <= maximum) for entry in entries):
            side = f"{minimum} or more" if maximum is None else f"between {minimum} and {maximum}"
            raise ValueError(f"{name}={value} of {type(settings).__name__} must be {side}")


def check_layers(settings: Any, *names: str) -> None:
    """Raises ValueError for the first of the named fields that is not one or more widths of hidden
    layers."""
    check_range(settings, 1, None, *names)
    for name in names:
        if not getattr(settings, name):
            raise ValueError(
                f"{name}=() of {type(settings).__name__} must name one hidden layer at least, such "
                "as (64,)"
            )


def check_interval(settings: Any, *names: str) -> None:
    """Raises ValueError for the first of the named fields whose lower end is not below its upper
    one; None is none."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value[0] < value[1]:
            raise ValueError(
                f"{name}={value} of {type(settings).__name__} must begin below where it ends"
            )


def check_fields(settings: Any) -> None:
    """Raises ValueError for the first field whose value is not of its kind.

    A field that is a Literal must have one of its values. A number must be of the field's type,
    where an int may stand for a float. What is a part of an algorithm, such as a replay, must be
    such a part. The command line knows all this itself. In Python a misspelt choice would else be
    taken for another, True for 1, and a wrong part would fail where it is used.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        _check_choice(settings, field, value)
        _check_number(settings, field, value)
        _check_part(settings, field, value)


def _check_choice(settings: Any, field: dataclasses.Field, value: Any) -> None:
    allowed = get_args(field.type) if get_origin(field.type) is Literal else ()
    if allowed and value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
        choices = " or ".join(map(repr, allowed))
        meant = f"did you mean {near[0]!r}?" if near else f"it can be {choices}."
        whose = f"{field.name}={value!r} of {type(settings).__name__}"
        raise ValueError(f"{whose} is no choice; {meant}")


def _check_number(settings: Any, field: dataclasses.Field, value: Any) -> None:
    kinds = _kinds(field)
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    if type(value) in NUMBERS and any(kind in NUMBERS for kind in kinds) and not fits:
        _refuse(settings, field, value)


def _check_part(settings: Any, field: dataclasses.Field, value: Any) -> None:
    kinds = _kinds(field)
    are_parts = all(dataclasses.is_dataclass(kind) for kind in kinds)
    if are_parts and not isinstance(value, kinds):
        _refuse(settings, field, value)


def _kinds(field: dataclasses.Field) -> tuple[Any, ...]:
    """The types that a field may have: those of a union, or its one."""
    return get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)


def _refuse(settings: Any, field: dataclasses.Field, value: Any) -> NoReturn:
    kinds = _kinds(field)
    names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    article = "an" if names[0] in "AEIOaeio" else "a"
    whose = f"{field.name} of {type(settings).__name__}"
    raise ValueError(f"{whose} must be {article} {names}, not {value!r}")
