"""Tasks that draw themselves: environments of PettingZoo, and tasks of one's own with `render`."""

import functools
from collections.abc import Callable

import numpy as np

from comarl.types import Draws
from comarl.watching.canvas import Image, Number, even, import_pillow
from comarl.watching.play import Played
from comarl.watching.scene import Scene


def simulator(played: Played, size: int) -> Scene:
    """The pictures that the environment's own `render` gave."""
    return _of_pictures(lambda time: played.states[time], played, size, fps=15)


def own(task: Draws, played: Played, size: int) -> Scene:
    """What the task's `render` makes of its states.

    Raises ValueError for what is no picture, when it is drawn.
    """

    def drawn(time: int) -> np.ndarray:
        found = np.asarray(task.render(played.states[time]))
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
            raise ValueError(
                f"render of {type(task).__name__} gave {found.dtype} {list(found.shape)}; it must "
                "be uint8 [height, width, 3]"
            )
        return found

    return _of_pictures(drawn, played, size, fps=8)


def _of_pictures(
    drawn: Callable[[int], np.ndarray], played: Played, size: int, fps: Number
) -> Scene:
    pil, *_ = import_pillow()

    @functools.cache
    def shape() -> tuple[int, int]:
        height, width, _ = drawn(0).shape
        return size, even(size * height / width)

    def picture(time: int) -> Image:
        image = pil.fromarray(drawn(time))
        # Small pictures are of cells, which stay sharp
        how = pil.Resampling.NEAREST if image.width < size / 4 else pil.Resampling.LANCZOS
        return image if image.size == shape() else image.resize(shape(), how)

    said = lambda time: f"reward {played.reward[time - 1]:+.3g}" if time else "the start"
    return Scene(picture, said, fps)
