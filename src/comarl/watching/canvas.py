"""What pictures are drawn with: one palette, smooth edges, coordinates of what is drawn.

Pillow is imported when something is drawn, so that comarl works without it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from comarl.reporting.curves import PALETTE

Image = Any
"""a PIL.Image.Image; Pillow is an extra and may not be installed"""
Point = Sequence[float | int | np.floating] | np.ndarray
Number = float | int | np.floating

PAPER, INK, GREY, PALE = "#FFFFFF", "#1A1A1A", "#8A8A8A", "#E4E4E4"
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, _ = PALETTE
TEAM = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
"""the colours of agents, in their order; beyond six they repeat, so agents have numbers, too"""
FINE = 2
"""how many times as large as it will be a picture is drawn, so that edges are smooth"""


def import_pillow() -> Any:
    """Pillow's Image, ImageDraw and ImageFont. Raises ImportError with the remedy."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError('watching is an extra: pip install "comarl[watch]"') from error
    return Image, ImageDraw, ImageFont


def agent_colour(agent: int) -> str:
    """The colour of an agent, by its number."""
    return TEAM[agent % len(TEAM)]


def even(length: Number) -> int:
    """The nearest even whole number: videos have no others."""
    return max(2, 2 * round(length / 2))


class Canvas:
    """A picture `size` pixels wide of the rectangle from `low` to `high`, y growing upwards unless
    `down`."""

    def __init__(self, size: int, low: Point, high: Point, down: bool = False):
        pil, draw, self._fonts = import_pillow()
        self._low, self._high = np.asarray(low, float), np.asarray(high, float)
        width, height = self._high - self._low
        self._scale, self._down = FINE * size / width, down
        self._size = size, even(size * height / width)
        self._image = pil.new("RGB", (FINE * self._size[0], FINE * self._size[1]), PAPER)
        self._draw = draw.Draw(self._image)

    @property
    def unit(self) -> float:
        """A pixel of the finished picture, in the units of what is drawn."""
        return FINE / self._scale

    def picture(self) -> Image:
        """What was drawn."""
        return self._image.reduce(FINE)

    def line(self, points: Sequence[Point], colour: str, width: Number = 2) -> None:
        """Through points; `width` is in pixels."""
        if len(points) > 1:
            at = [self._at(point) for point in points]
            self._draw.line(at, fill=colour, width=round(FINE * width), joint="curve")

    def disc(
        self,
        centre: Point,
        radius: Number,
        fill: str | None,
        edge: str | None = None,
        width: Number = 2,
    ) -> None:
        """A disc, or a ring without `fill`."""
        x, y = self._at(centre)
        r = radius * self._scale
        self._draw.ellipse(
            (x - r, y - r, x + r, y + r), fill=fill, outline=edge, width=round(FINE * width)
        )

    def polygon(
        self, centre: Point, radius: Number, corners: int, fill: str, edge: str | None = None
    ) -> None:
        """A regular polygon with a corner at the top."""
        angles = np.pi / 2 * (-1 if self._down else 1) + 2 * np.pi * np.arange(corners) / corners
        offsets = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = [self._at(np.asarray(centre) + offset) for offset in offsets]
        self._draw.polygon(points, fill=fill, outline=edge, width=2 * FINE)

    def box(
        self,
        low: Point,
        high: Point,
        fill: str | None = None,
        edge: str | None = None,
        width: Number = 2,
    ) -> None:
        """A rectangle between two opposite corners."""
        (x1, y1), (x2, y2) = self._at(low), self._at(high)
        corners = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        self._draw.rectangle(corners, fill=fill, outline=edge, width=round(FINE * width))

    def cross(self, centre: Point, radius: Number, colour: str, width: Number = 3) -> None:
        """Two diagonal strokes."""
        (x, y), r = centre, radius
        self.line([(x - r, y - r), (x + r, y + r)], colour, width)
        self.line([(x - r, y + r), (x + r, y - r)], colour, width)

    def text(
        self, at: Point, words: str, pixels: Number, colour: str = INK, anchor: str = "mm"
    ) -> None:
        """Words of a height in pixels; `anchor` is Pillow's, in the middle by default."""
        font = self._fonts.load_default(FINE * pixels)
        self._draw.text(self._at(at), words, fill=colour, font=font, anchor=anchor)

    def _at(self, point: Point) -> tuple[float, float]:
        x, y = np.asarray(point, float)
        vertical = y - self._low[1] if self._down else self._high[1] - y
        return (x - self._low[0]) * self._scale, vertical * self._scale


def square_around(
    points: np.ndarray, margin: Number, least: Number
) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a square that holds all points, `margin` away from its edges; each side is
    `least` or more."""
    low, high = points.min(0) - margin, points.max(0) + margin
    centre, side = (low + high) / 2, max(least, *(high - low))
    return centre - side / 2, centre + side / 2


def captioned(picture: Image, left: str, right: str, below: str, strong: bool) -> Image:
    """A picture with a band of words under it: two at the ends of a line, and a line below, dark if
    `strong`."""
    pil, draw, fonts = import_pillow()
    width, height = picture.size
    band, margin = even(0.125 * width), round(0.025 * width)
    image = pil.new("RGB", (width, height + band), PAPER)
    image.paste(picture, (0, 0))
    pen = draw.Draw(image)
    pen.line((0, height, width, height), fill=GREY, width=1)
    most = width - 2 * margin
    first, second = height + 0.3 * band, height + 0.72 * band
    pixels = 0.036 * width
    font = _fitting(fonts, f"{left}  {right}", pixels, most)
    pen.text((margin, first), left, fill=INK, font=font, anchor="lm")
    pen.text((width - margin, first), right, fill=INK, font=font, anchor="rm")
    font = _fitting(fonts, below, pixels, most)
    pen.text((margin, second), below, fill=INK if strong else "#555555", font=font, anchor="lm")
    return image


def _fitting(fonts: Any, words: str, pixels: Number, most: Number) -> Any:
    """The font of so many pixels, or of fewer if the words would be longer than `most`."""
    font = fonts.load_default(pixels)
    length = font.getlength(words)
    return font if length <= most else fonts.load_default(pixels * most / length)
