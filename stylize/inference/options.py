"""How to paint."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

from PIL import ImageColor

from stylize.errors import StylizeError
from stylize.generators import MIN_SIZE_PX
from stylize.inference.strokes import LARGEST_SCALE


@dataclass(frozen=True)
class PaintOptions:
    """How to paint pictures.

    Attributes:
        strength: 0 gives the photograph, 1 the stylized picture; a mixture of the two in between.
        keep_colors: Take the luminance from the stylized picture and the colors from the photograph.
        max_size_px: Shrink larger pictures to this longer side first; None: keep their size.
        stroke_scale: Paint strokes this many times as large, 1 to 8: pictures are painted at this fraction of their
            size and enlarged with the detail of the photograph.

    Raises:
        StylizeError: A value is out of range.

    >>> PaintOptions(strength=2)
    Traceback (most recent call last):
    ...
    stylize.errors.StylizeError: strength: got 2, must be a number from 0 to 1
    """

    strength: float = 1.0
    keep_colors: bool = False
    max_size_px: int | None = None
    stroke_scale: float = 1.0

    @property
    def needs_photograph(self) -> bool:
        """Whether the result is made of the photograph, too, once it is painted at full size."""
        return self.keep_colors or self.strength != 1

    def __post_init__(self) -> None:
        _check_number("strength", self.strength, 0, 1)
        _check_number("stroke_scale", self.stroke_scale, 1, LARGEST_SCALE)
        side = self.max_size_px
        if side is not None and not (isinstance(side, int) and side >= MIN_SIZE_PX):
            raise StylizeError(f"max_size: got {side!r}, must be a whole number of at least {MIN_SIZE_PX} px, or None")


def color_of(name: str, text: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255 each, of a colour as CSS names it.

    Raises:
        StylizeError: There is no such colour, or it is transparent itself; `name` begins the message.

    >>> color_of("background", "navy"), color_of("background", "#ff8000")
    ((0, 0, 128), (255, 128, 0))
    """
    color: tuple[int, ...] = ()
    with suppress(ValueError, AttributeError):
        color = ImageColor.getrgb(text.strip())
    if len(color) != 3 or not all(0 <= level <= 255 for level in color):
        raise StylizeError(
            f"{name}: got {str(text)[:100]!r}, must be an opaque colour as 'white', '#rrggbb' or 'rgb(9, 9, 9)'"
        )
    return color[0], color[1], color[2]


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:
        raise StylizeError(f"{name}: got {value!r}, must be a number from {least:g} to {most:g}")
