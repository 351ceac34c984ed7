"""Values and spaces at random, sensible and senseless, for the fuzz of an environment's answers."""

import random
from typing import Any

import numpy as np
from gymnasium import spaces

ATOMS = (
    *(None, True, False, 0, 1, -1, 7, 2**63, 10**400, 0.0, -0.5, 1e39, 1e300),
    *(
        float("nan"),
        float("inf"),
        1j,
        "",
        "1",
        "nan",
        b"x",
        "a\x1b[2J\n[/x]",
        ...,
        int,
        NotImplemented,
    ),
)
KINDS = (
    "?",
    "i1",
    "u1",
    "i4",
    "i8",
    "u8",
    "f2",
    "f4",
    "f8",
    "c8",
    "U3",
    "S2",
    "O",
    "M8[s]",
    "m8[s]",
)
SHAPES = ((), (0,), (1,), (2,), (3,), (2, 1), (1, 2), (2, 2), (0, 2), (1, 1, 3))


class Evil:
    """Raises at whatever is asked of it."""

    def fail(self, *given: Any, **more: Any) -> Any:
        raise RuntimeError("no")

    __array__ = __len__ = __iter__ = __eq__ = __repr__ = __bool__ = __float__ = __getitem__ = fail
    __hash__ = object.__hash__


class Numbers(dict):
    """A dictionary that is an array of two numbers, too."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array([0.1, 0.2], dtype)


def value(chance: random.Random, depth: int = 3) -> Any:
    """Any value: an atom, an array of any type and shape, something nested, or an evil object."""
    kind = chance.randrange(9 if depth else 5)
    if kind < 2:
        return chance.choice(ATOMS)
    if kind < 4:
        return array(chance)
    if kind == 4:
        odd = (Evil(), Numbers(), np.ma.masked, (i for i in range(2)), range(chance.randrange(4)))
        return chance.choice(odd)
    parts = [value(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind == 5:
        return parts
    if kind == 6:
        return tuple(parts)
    if kind == 7:
        return {chance.choice(("ann", "bob", "zoe", 0, None)): part for part in parts}
    made = np.empty(len(parts), object)
    for i, part in enumerate(parts):
        made[i] = part
    return made


def array(chance: random.Random) -> np.ndarray:
    """An array, of which one entry may be no finite number."""
    kind, shape = chance.choice(KINDS), chance.choice(SHAPES)
    made = np.ones(shape, "i1").astype(kind)
    if made.size and made.dtype.kind == "f" and chance.random() < 0.5:
        made.reshape(-1)[chance.randrange(made.size)] = chance.choice((np.nan, np.inf, -np.inf))
    return made


def space(chance: random.Random, depth: int = 2) -> Any:
    """Any space of Gymnasium, or what is none."""
    shape = chance.choice(SHAPES)
    kind = chance.randrange(12 if depth else 9)
    if kind < 3:
        dtype: Any = chance.choice((np.float32, np.float64, np.float16, np.int32, np.uint8))
        low, high = chance.choice(((0, 1), (0, 255), (-2, 2) if dtype != np.uint8 else (0, 2)))
        if chance.random() < 0.2 and np.issubdtype(dtype, np.floating):
            low, high = -np.inf, np.inf
        return spaces.Box(low, high, shape, dtype)
    if kind == 3:
        return spaces.Discrete(chance.randrange(1, 4), start=chance.randrange(-1, 3))
    if kind == 4:
        return spaces.MultiDiscrete([chance.randrange(1, 4) for _ in range(chance.randrange(1, 3))])
    if kind == 5:
        return spaces.MultiBinary(chance.randrange(1, 4))
    if kind == 6:
        return spaces.Text(3)
    if kind == 7:
        return spaces.Sequence(spaces.Discrete(2))
    if kind == 8:
        return chance.choice((None, 3, "Box", object(), spaces.Discrete, Evil()))
    parts = [space(chance, depth - 1) for _ in range(chance.randrange(1, 3))]
    known = [part for part in parts if isinstance(part, spaces.Space)] or [spaces.Discrete(2)]
    if kind == 9:
        return spaces.Tuple(known)
    names = ("action_mask", "observation", "b", "a")
    return spaces.Dict(dict(zip(names, known, strict=False)))
