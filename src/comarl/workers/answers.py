"""What an environment answers, held against PettingZoo's rules at every step.

Each fault becomes one sentence: the module, the method, what came, and what PettingZoo wants. The
checks run where the environment is, so that the sentence has the user's own names.
"""

import reprlib
import sysconfig
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

RESET = "reset(seed, options) that returns (observations, infos)"
STEP = "step(actions) that returns (observations, rewards, terminations, truncations, infos)"
BY_AGENT = "a dictionary by agent"

NOT_THE_USERS = (
    Path(__file__).parents[1],
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)


class BrokenAnswer(ValueError):
    """An environment answers otherwise than PettingZoo wants; trying again would not help."""


def shown(value: Any) -> str:
    """A value in a few characters of one line."""
    return " ".join(reprlib.repr(value).split())


def described(error: BaseException) -> str:
    """Type, message, and the file and line in the user's code where it was raised.

    That is the innermost frame which is neither comarl's nor of an installed package, if any is.
    """
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        frame
        for frame in frames
        if not any(Path(frame.filename).is_relative_to(folder) for folder in NOT_THE_USERS)
        and not frame.filename.startswith("<")
    ]
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if not frames or isinstance(error, SyntaxError):  # which says its own place
        return said
    frame = (theirs or frames)[-1]
    return f"{said} ({frame.filename}, line {frame.lineno})"


def called(where: str, wants: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """What a method of the environment returns. Raises BrokenAnswer for whatever it raises."""
    try:
        return function(*args, **kwargs)
    except BrokenAnswer:
        raise
    except (Exception, SystemExit) as error:
        raise BrokenAnswer(
            f"{where} raised {described(error)}; PettingZoo wants {wants}"
        ) from error


def split(where: str, wants: str, answer: Any, names: tuple[str, ...]) -> tuple[Mapping, ...]:
    """The parts of what reset or step returns, each a dictionary by agent."""
    if not isinstance(answer, tuple | list) or len(answer) != len(names):
        raise BrokenAnswer(f"{where} returned {shown(answer)}; PettingZoo wants {wants}")
    for name, part in zip(names, answer, strict=True):
        if not isinstance(part, Mapping):
            raise BrokenAnswer(
                f"{where} returned {name} that are {shown(part)}; PettingZoo wants {BY_AGENT}"
            )
    return tuple(answer)


def check_names(where: str, name: str, found: Collection, agents: Collection) -> None:
    """Raises BrokenAnswer if something is said of an agent that there never is."""
    for agent in found:
        if agent not in agents:
            raise BrokenAnswer(
                f"{where} returned {name} with {shown(agent)}, which is none of possible_agents; "
                "PettingZoo wants all agents there from the start"
            )


def of_agent(where: str, name: str, part: Mapping, agent: Any) -> Any:
    """One agent's entry, which must be there."""
    if agent not in part:
        raise BrokenAnswer(
            f"{where} returned no {name} of agent {agent!r}; PettingZoo wants them of every agent "
            "that acted or acts next"
        )
    return part[agent]


def number(where: str, name: str, value: Any) -> float:
    """A number that is finite as float32, such as a reward."""
    array = called(where, f"a number as {name}", np.asarray, value)
    if array.dtype.kind not in "biuf" or array.shape != ():
        raise BrokenAnswer(f"{where} returned {name} {shown(value)}; PettingZoo wants a number")
    check_finite(where, name, array)
    check_finite(where, f"{name} {array}, which as float32 is", single(array))
    return float(array)


def flag(where: str, name: str, value: Any) -> bool:
    """Whether an agent terminated, or was truncated."""
    if not isinstance(value, bool | np.bool_ | int | np.integer) or value not in (0, 1):
        raise BrokenAnswer(f"{where} returned {name} {shown(value)}; PettingZoo wants a bool")
    return bool(value)


def vector(where: str, name: str, value: Any, size: int | None = None) -> np.ndarray:
    """A finite array of numbers as float32 of one axis, of this size if one is known."""
    array = called(where, f"an array of numbers as {name}", np.asarray, value)
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise BrokenAnswer(
            f"{where} returned {name} {shown(value)}; PettingZoo wants an array of numbers"
        )
    if size is not None and array.size != size:
        raise BrokenAnswer(
            f"{where} returned {name} of {array.size} entries; there were {size} at first, and "
            "networks need them to stay as many"
        )
    check_finite(where, name, array)
    found = single(array).reshape(-1)
    check_finite(where, f"{name}, as float32,", found)
    return found


def single(array: np.ndarray) -> np.ndarray:
    """The same as float32, in which all is computed; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def check_finite(where: str, name: str, array: np.ndarray) -> None:
    """Raises BrokenAnswer for the first entry that is NaN or infinite."""
    if not np.isfinite(array).all():
        entry = int(np.isfinite(array).reshape(-1).argmin())
        place = f" at entry {entry}" if array.size > 1 else ""
        raise BrokenAnswer(
            f"{where} returned {name} {array.reshape(-1)[entry]}{place}; it must be finite"
        )


def check_observation(where: str, name: str, space: Any, value: Any) -> None:
    """Raises BrokenAnswer for what does not have the form of its space.

    Numbers of a Box may lie outside its bounds, which are often no more than a guess.
    """
    from gymnasium import spaces

    wrong = lambda: BrokenAnswer(
        f"{where} returned {name} {shown(value)}; its space is {shown(space)}"
    )
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or set(space.spaces) - set(value):
            raise wrong()
        for key, part in space.spaces.items():
            check_observation(where, f"{name}[{key!r}]", part, value[key])
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            raise wrong()
        for i, part in enumerate(space.spaces):
            check_observation(where, f"{name}[{i}]", part, value[i])
    elif isinstance(space, spaces.Box):
        array = called(where, f"an array of numbers as {name}", np.asarray, value)
        if array.shape != space.shape:
            raise BrokenAnswer(
                f"{where} returned {name} of shape {list(array.shape)}; its space has "
                f"{list(space.shape)}"
            )
        if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, space.dtype, "same_kind"):
            raise BrokenAnswer(
                f"{where} returned {name} of type {array.dtype}; its space has {space.dtype}"
            )
    else:
        listed = called(where, f"{name} of {space}", np.asarray, value)
        exact = isinstance(value, np.ndarray) or not isinstance(space, spaces.MultiBinary)
        if not called(where, f"{name} of {space}", space.contains, value if exact else listed):
            raise wrong()
