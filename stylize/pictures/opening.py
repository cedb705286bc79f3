"""From a file's beginning to the decoder that reads it."""

from __future__ import annotations

from pathlib import Path

import pyvips
from PIL import UnidentifiedImageError

from stylize.pictures.decoders import ImageFile, PillowFile, VipsFile
from stylize.pictures.foreign import beginning_of, check_foreign
from stylize.pictures.formats import SIGNATURE_BYTES, check_installed, format_of_content
from stylize.pictures.frames import AnimatedAvif, animated_png
from stylize.pictures.plugins import load_plugin
from stylize.pictures.tiff_pages import choose_pages
from stylize.pictures.vips import replace_lost_threads

AVIF_SEQUENCE = b"avis"


def open_file(path: Path, *, unlimited: bool) -> ImageFile:
    """Open an image file and read its header.

    Args:
        path: The file.
        unlimited: Lift the decoders' own limits of size.

    Raises:
        StylizeError: It is of a kind that is not read.
        Exception: Whatever a decoder raises for a file that is no image or damaged.
    """
    replace_lost_threads()
    head = beginning_of(path)
    image_format = format_of_content(head[:SIGNATURE_BYTES])
    if image_format is None or image_format.name == "TIFF":
        check_foreign(path, head)
    if image_format is not None and image_format.plugin is not None:
        check_installed(path, image_format)
        load_plugin(image_format)
    if image_format is not None and image_format.name == "AVIF" and AVIF_SEQUENCE in head[8:40]:
        return AnimatedAvif(path, unlimited=unlimited)
    if image_format is None or image_format.loader is None:
        return PillowFile(path, unlimited=unlimited)
    try:
        opened = animated_png if image_format.name == "PNG" else VipsFile
        return opened(path, image_format, unlimited=unlimited)
    except pyvips.Error as error:  # Pillow reads some kinds that libvips does not
        if image_format.name == "TIFF" and not choose_pages(path).is_first:
            raise  # of a TIFF file Pillow would take the first picture
        try:
            return PillowFile(path, unlimited=unlimited)
        except UnidentifiedImageError:
            raise error from None  # which knows why
