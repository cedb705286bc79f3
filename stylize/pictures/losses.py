"""What a format cannot hold of a photograph's file, told in one line a kind."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import TypeAlias

from stylize.pictures.formats import Format
from stylize.pictures.raster import Raster
from stylize.pictures.texts import Text

logger = logging.getLogger("stylize")

Tell: TypeAlias = Callable[[Path, str], None]
HOLD_TEXTS, HOLD_COMMENTS = frozenset(("PNG",)), frozenset(("JPEG", "GIF", "PPM"))
HOLD_IPTC = frozenset(("JPEG", "TIFF", "PNG"))
HOLD_RESOLUTION = frozenset(("JPEG", "TIFF", "PNG", "BMP"))
USUAL_DPI = range(71, 74)  # what files have that nobody has given one
CHECKED_ROWS = 256


def tell(path: Path, what: str) -> None:
    """Log what becomes of a file's contents."""
    logger.warning("%s: %s", path, what)


class Teller:
    """Logs what happens to many files: of each kind the first file, and at the end how many more there were."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()
        self._lock = Lock()

    def __call__(self, path: Path, what: str) -> None:
        """Log it for the first file, and count the others, which `-v` shows."""
        with self._lock:
            self._told[what] += 1
            is_first = self._told[what] == 1
        logger.log(logging.WARNING if is_first else logging.DEBUG, "%s: %s", path, what)

    def finish(self) -> None:
        """Log how many more files there were of each kind."""
        for what, number in self._told.items():
            if number > 1:
                logger.warning("%d more of the files: %s", number - 1, what)
        self._told.clear()


def held_texts(texts: tuple[Text, ...], image_format: Format) -> tuple[Text, ...]:
    """Return those of the texts and comments that a format can hold."""
    if image_format.name in HOLD_TEXTS:
        return texts
    return tuple(text for text in texts if text.is_comment and image_format.name in HOLD_COMMENTS)


def losses(raster: Raster, image_format: Format) -> Iterator[str]:
    """Yield what a file of this format does not keep of a raster and its metadata, each in one line."""
    if raster.metadata.left_out:
        yield f"not kept: {', '.join(raster.metadata.left_out)}"
    missing = list(_missing(raster, image_format))
    if missing:
        yield f"left out, for {image_format.name} has no place for it: {', '.join(missing)}"
    bits = 8 if raster.frames > 1 and image_format.name == "PNG" else image_format.bits
    if raster.bits > bits:
        yield f"{raster.bits} bits become {bits}, the most that {image_format.name} is written with"
    if raster.metadata.profile is not None and not image_format.has_profile:
        yield f"its colours become sRGB, for {image_format.name} has no place for a colour profile"
    if raster.has_alpha and image_format.alpha == "none":
        yield laid_on_white(image_format)
    if raster.has_alpha and image_format.alpha == "binary" and _is_partly_transparent(raster):
        yield f"partly transparent pixels are shown or hidden, for {image_format.name} has nothing in between"


def laid_on_white(image_format: Format) -> str:
    """Return what becomes of transparency in a format that has none."""
    return f"its transparency is laid on white, for {image_format.name} has none; --background chooses another colour"


def _missing(raster: Raster, image_format: Format) -> Iterator[str]:
    metadata, name = raster.metadata, image_format.name
    if metadata.exif is not None and not image_format.has_exif:
        yield "EXIF"
    if metadata.xmp is not None and (not image_format.has_exif or name == "JXL"):
        yield "XMP"
    if metadata.xmp_extension is not None and name != "JPEG":
        yield "extended XMP"
    if metadata.iptc is not None and name not in HOLD_IPTC:
        yield "IPTC"
    kept = held_texts(metadata.texts, image_format)
    lost = dict.fromkeys(text.keyword for text in metadata.texts if text not in kept)
    if lost:
        yield f"texts ({', '.join(keyword if keyword.isprintable() else repr(keyword) for keyword in list(lost)[:10])})"
    has_resolution = name in HOLD_RESOLUTION or (image_format.has_exif and metadata.exif is not None)
    if metadata.dpi is not None and not has_resolution and any(round(dpi) not in USUAL_DPI for dpi in metadata.dpi):
        yield "resolution"


def _is_partly_transparent(raster: Raster) -> bool:
    white, height = 2**raster.bits - 1, raster.rows.shape[0]
    for first in range(0, height, CHECKED_ROWS):
        alpha = raster.rows.read(first, min(height, first + CHECKED_ROWS)).numpy()[:, :, 3]
        if bool(((alpha > 0) & (alpha < white)).any()):
            return True
    return False
