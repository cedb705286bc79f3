"""Sizes at which reading and writing change their way of working."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Limits:
    """The limits of reading and writing; tests lower them, so that small pictures take every path.

    Attributes:
        safe_pixels: Most pixels of a file, all frames together, that are decoded without being asked for: as many as
            Pillow accepts. A file of some kilobytes can hold gigabytes of one colour.
        surely_safe_pixels: Most pixels that are decoded whatever the size of the file.
        pixels_per_byte: Most pixels above those, for each byte of the file: a large picture of one colour in a tiny
            file is a bomb rather than a photograph.
        strip_bytes: Size of the strips of rows in which pixels are decoded and encoded.
        tile_px: Side of the tiles in which a picture is turned by 90°.
    """

    safe_pixels: int = 2 * (2**30 // 12)
    surely_safe_pixels: int = 40_000_000
    pixels_per_byte: int = 2000
    strip_bytes: int = 2**20
    tile_px: int = 128


limits = Limits()
