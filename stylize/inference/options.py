"""How to paint."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:
        raise StylizeError(f"{name}: got {value!r}, must be a number from {least:g} to {most:g}")
