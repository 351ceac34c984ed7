"""Algorithms and tasks by where they are: in comarl, in a user's own module, or in a package that
offers some under names of their own.

`my_package.mixers:DeepQmix` is what Python imports as `from my_package.mixers import DeepQmix`. A
package offers names through the entry points `comarl.algorithms` and `comarl.tasks`.
"""

import dataclasses
import difflib
import functools
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, Literal

from comarl.validation import UnknownName, WrongSetting, short

Kind = Literal["algorithm", "task"]


def is_own(name: str) -> bool:
    """Whether a name says where something is, rather than what it is called.

    >>> is_own("my_package.mixers:DeepQmix"), is_own("smax/3m")
    (True, False)
    """
    return ":" in name


@functools.cache
def offered(kind: Kind) -> dict[str, str]:
    """The names that installed packages offer, and where each is. Nothing is imported."""
    return {point.name: point.value for point in entry_points(group=f"comarl.{kind}s")}


def load(kind: Kind, where: str) -> Any:
    """What is at `module:Name`: a value, or a class with its defaults.

    Raises UnknownName where there is nothing, WrongSetting for what is no frozen dataclass and for
    a class whose fields have no defaults, ImportError for a module that fails.
    """
    found = find_class(where)
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            raise WrongSetting(
                f"{where} cannot be made without arguments, but each of its fields needs a "
                f"default: {error}",
                kind,
            ) from None
    check_frozen(kind, where, found)
    return found


def find_class(where: str) -> Any:
    """What a module has under a name. Raises UnknownName, or ImportError as the module does."""
    module, _, path = where.partition(":")
    if not all(name.isidentifier() for name in (*module.split("."), *path.split("."))):
        raise UnknownName(
            f"{where!r:.200} must be module:Name, as Python has it in `from module import Name`"
        )
    found = import_named(module)
    for name in path.split("."):
        if not hasattr(found, name):
            if module == "__main__":
                raise UnknownName(
                    f"{where[:200]} was defined in a script or a notebook, and this process is "
                    "another or has not defined it yet; classes in a module can be used from "
                    "everywhere"
                )
            near = difflib.get_close_matches(name, [n for n in vars(found) if n[0] != "_"], n=3)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UnknownName(f"{where[:200]}: {module} has no {name!r:.60}{meant}")
        found = getattr(found, name)
    return found


def import_named(module: str) -> Any:
    """A module that the user has named. Raises UnknownName if there is none, ImportError with the
    place in the user's code if it fails."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise UnknownName(
                f"module {module!r:.100} does not exist, neither in the working directory nor "
                "among the installed packages"
            ) from None
        raise ImportError(
            f"importing {module} failed: {type(error).__name__}: {error}{place_of(error)}"
        ) from error


def place_of(error: Exception) -> str:
    """Where an import failed, in brackets: the last line outside Python's own library, which may
    have been told something wrong. Nothing for a SyntaxError, which says it."""
    library = sysconfig.get_path("stdlib")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename[0] != "<"
        and ("site-packages" in frame.filename or not frame.filename.startswith(library))
    ]
    if isinstance(error, SyntaxError) or not frames:
        return ""
    return f" ({frames[-1].filename}, line {frames[-1].lineno})"


def check_frozen(kind: Kind, where: str, found: Any) -> None:
    """Raises WrongSetting unless something is a frozen dataclass whose fields can be hashed: it
    decides what is compiled."""
    parameters = getattr(type(found), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise WrongSetting(
            f"{where} must be a frozen dataclass or an instance of one, not {short(found)}: put "
            "@dataclass(frozen=True) above the class",
            kind,
        )
    try:
        dataclasses.replace(found)
    except TypeError as error:
        raise WrongSetting(
            f"{where}: its __init__ must take its fields, as a dataclass makes it; check values in "
            f"__post_init__ instead: {error}",
            kind,
        ) from None
    for field in dataclasses.fields(found):
        try:
            hash(value := getattr(found, field.name))
        except TypeError:
            raise WrongSetting(
                f"{where}: its field {field.name} must be hashable, such as a tuple, not "
                f"{short(value)}",
                kind,
            ) from None


def name_of(kind: Kind, value: Any) -> str:
    """Where the class of an algorithm or a task is.

    Raises WrongSetting for a class inside a function: nobody could find it again.
    """
    cls = type(value)
    if "<" in cls.__qualname__:
        raise WrongSetting(
            f"{kind}: the class {cls.__qualname__} is inside a function, where a run's folder "
            "could not name it; move it to the top of a module",
            kind,
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def check_imports(where: str, imports: Sequence[str], what: str) -> None:
    """Raises ValueError for a module that is neither in `imports`, nor inside a package that is,
    nor imported already.

    Whoever gives away a folder could else choose what runs on the machine of whoever opens it.
    """
    module = where.partition(":")[0]
    packages = [
        module[:end] for end in range(len(module) + 1) if module[end : end + 1] in ("", ".")
    ]
    if module not in sys.modules and not set(packages) & set(imports):
        raise ValueError(
            f"{what} is code of the module {short(module)}, which is imported only if you name it, "
            f"too: add --import {module}, or in Python imports=[{short(module)}]"
        )
