"""What every family of tasks gives to be shown."""

from collections.abc import Callable
from typing import NamedTuple

from comarl.watching.canvas import Image, Number


class Scene(NamedTuple):
    """One episode, ready to be drawn."""

    picture: Callable[[int], Image]
    """what the task was like after so many steps; all pictures have one even size"""
    said: Callable[[int], str]
    """what happened in the step before, in a few words"""
    fps: Number
    """steps in a second, where nobody chooses another number"""
