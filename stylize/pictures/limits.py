"""Sizes at which reading and writing change their way of working."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Limits:
    """The limits of reading and writing; tests lower them, so that small pictures take every path.

    Attributes:
        safe_pixels: Most pixels of a file, all frames together, that are decoded without being asked for: as many as
            Pillow accepts. A file of some kilobytes can hold gigabytes of one colour.
        strip_bytes: Size of the strips of rows in which pixels are decoded and encoded.
        tile_px: Side of the tiles in which a picture is turned by 90°.
    """

    safe_pixels: int = 2 * (2**30 // 12)
    strip_bytes: int = 2**20
    tile_px: int = 128


limits = Limits()
