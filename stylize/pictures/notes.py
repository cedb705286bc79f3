"""What files hold beside their pixels, where the decoders do not look."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path

from stylize.pictures.comments import read_gif, read_jpeg, read_ppm
from stylize.pictures.exif import exif_orientation
from stylize.pictures.png_chunks import read_png
from stylize.pictures.texts import Notes
from stylize.pictures.xmp import xmp_orientation

logger = logging.getLogger("stylize")

READERS: dict[str, Callable[[Path], Notes]] = {"PNG": read_png, "JPEG": read_jpeg, "GIF": read_gif, "PPM": read_ppm}


def read_notes(path: Path, format_name: str) -> Notes:
    """Return what the blocks of a file hold that its decoder does not give."""
    reader = READERS.get(format_name)
    try:
        return Notes() if reader is None else reader(path)
    except (OSError, ValueError, struct.error) as error:  # of the metadata alone; the pixels are another matter
        logger.debug("%s: its texts cannot be read (%s)", path, error)
        return Notes()


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """Return how a picture is stored, 1 to 8: as EXIF says, or else XMP."""
    given = None if exif is None else exif_orientation(exif)
    if given is None and xmp is not None:
        given = xmp_orientation(xmp)
    return 1 if given is None else given
