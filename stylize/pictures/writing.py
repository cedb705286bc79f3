"""From rasters and pictures to image files."""

from __future__ import annotations

import io
import logging
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyvips
from PIL import Image

from stylize.errors import StylizeError
from stylize.pictures.color import in_profile
from stylize.pictures.exif import (
    JPEG_EXIF_BYTES,
    PNG_HEAD_BYTES,
    add_to_tiff,
    corrected_exif,
    jpeg_with,
    png_with,
    to_photoshop,
    webp_with,
)
from stylize.pictures.formats import Format, format_of
from stylize.pictures.mark import add_to_gif, avif_box, bmp_with, jpeg_comment, mark_of, png_text, ppm_with, webp_chunk
from stylize.pictures.picture import Picture
from stylize.pictures.raster import Metadata, Raster, raster_of
from stylize.pictures.tiff_source import rows_as_image
from stylize.pictures.vips import INCH_MM, Options, Vips, quiet_pillow, save, vips_reason, with_bits
from stylize.system.files import written_atomically

logger = logging.getLogger("stylize")

# The optimal code takes a quarter of the time of a small file, and all coefficients in memory, 12 bytes per pixel.
OPTIMIZED_JPEG_PX = range(1_000_000, 16_000_000)
CLASSIC_TIFF_BYTES = 3_900_000_000
USUAL_DPI = (72.0, 72.0)  # EXIF's default; libvips always writes a resolution
KEPT = {"keep": "icc:xmp:iptc:other"}  # EXIF is laid into the file as it is


def write_raster(path: Path, raster: Raster, *, quality: int = 95, style: str | None = None) -> None:
    """Write an image file in the format of its suffix, with all metadata that it can hold, whole or not at all.

    Pixels are converted to the metadata's profile. Formats without 16 bits get the nearest 8-bit levels, formats
    without transparency leave it out, GIF keeps whether a pixel is opaque, formats without animation get the first
    frame.

    Args:
        path: Where to write.
        raster: The pixels and their metadata.
        quality: 1 to 100, for JPEG, WebP and AVIF.
        style: Name of the style for the mark of painted files; None: no mark.

    Raises:
        StylizeError: Unknown suffix, the picture is too large for the format, or the place cannot be written to.
    """
    image_format = format_of(path)
    if raster.frames > 1 and not image_format.is_animated:
        logger.warning("%s: got %d frames, of which %s holds the first", path, raster.frames, image_format.name)
    write = WRITERS.get(image_format.name, _write_by_pillow)
    with written_atomically(path) as file:
        try:
            write(file, raster, _Encoding(path, image_format, quality, None if style is None else mark_of(style)))
        except pyvips.Error as error:
            raise StylizeError(f"{path}: cannot be written ({vips_reason(error)})") from error
        except (ValueError, RuntimeError, struct.error) as error:  # Pillow's, of what is larger than the format allows
            raise StylizeError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error


def write_picture(path: Path, picture: Picture, *, quality: int = 95) -> None:
    """Write one picture with 8 bits per channel and without metadata; otherwise as `write_raster`.

    Raises:
        StylizeError: Unknown suffix, the picture is too large for the format, or the place cannot be written to.
    """
    with raster_of([picture], Metadata()) as raster:
        write_raster(path, raster, quality=quality)


@dataclass(frozen=True)
class _Encoding:
    path: Path
    format: Format
    quality: int
    mark: bytes | None = None


@contextmanager
def _encodable(raster: Raster, image_format: Format) -> Iterator[Vips]:
    """Yield the raster as an image with the colours, bits and metadata, except EXIF, that the format can hold."""
    with rows_as_image(raster.rows) as image:
        if raster.frames > 1 and not image_format.is_animated:
            image = image.crop(0, 0, *raster.size)
        if image_format.alpha == "none":
            image = image.extract_band(0, n=3)
        bits = min(raster.bits, image_format.bits)
        profile = raster.metadata.profile if image_format.has_profile else None
        with in_profile(image, profile, bits) as converted:
            yield _annotated(with_bits(converted, bits), raster, image_format)


def _annotated(image: Vips, raster: Raster, image_format: Format) -> Vips:
    metadata, dpi = raster.metadata, raster.metadata.dpi or USUAL_DPI
    image = image.copy(xres=dpi[0] / INCH_MM, yres=dpi[1] / INCH_MM)
    image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
    if metadata.xmp is not None:
        image.set_type(pyvips.GValue.blob_type, "xmp-data", metadata.xmp)
    if metadata.iptc is not None and image_format.name == "JPEG":  # into TIFF libvips writes a fourth of it
        image.set_type(pyvips.GValue.blob_type, "iptc-data", to_photoshop(metadata.iptc))
    if image_format.is_animated and raster.frames > 1:
        image.set_type(pyvips.GValue.gint_type, "page-height", raster.size[1])
        image.set_type(pyvips.GValue.array_int_type, "delay", list(metadata.delays_ms or (100,) * raster.frames))
        image.set_type(pyvips.GValue.gint_type, "loop", metadata.loops)
    return image


def _exif_to_write(raster: Raster) -> bytes | None:
    return None if raster.metadata.exif is None else corrected_exif(raster.metadata.exif, raster.size)


def _write_jpeg(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    exif, mark = _exif_to_write(raster), b"" if encoding.mark is None else jpeg_comment(encoding.mark)
    if exif is not None and len(exif) > JPEG_EXIF_BYTES:
        logger.warning("%s: its EXIF of %s bytes is left out: JPEG holds 65,527", encoding.path, f"{len(exif):,}")
        exif = None
    # painted colour edges are sharp, so colours have the full resolution
    options = {"Q": encoding.quality, "subsample_mode": "off"}
    options["optimize_coding"] = math.prod(raster.size) in OPTIMIZED_JPEG_PX
    with _encodable(raster, encoding.format) as image:
        write = _after_head(file, 2, lambda head: jpeg_with(head, exif, raster.metadata.dpi, mark))
        save(image, "jpegsave_target", {**options, **KEPT}, write)


def _write_png(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    exif, mark = _exif_to_write(raster), b"" if encoding.mark is None else png_text(encoding.mark)
    with _encodable(raster, encoding.format) as image:
        write = _after_head(file, PNG_HEAD_BYTES, lambda head: png_with(head, mark, exif))
        save(image, "pngsave_target", {"compression": 3, "filter": "sub", **KEPT}, write)


def _after_head(file: BinaryIO, head_bytes: int, changed: Callable[[bytes], bytes]) -> Callable[[Any], object]:
    """Return a function that writes to a file and changes its beginning, which has at least so many bytes."""
    head: bytearray | None = bytearray()

    def write(content: Any) -> None:
        nonlocal head
        if head is None:
            file.write(content)
            return
        head += content
        if len(head) >= head_bytes:
            file.write(changed(bytes(head)))
            head = None

    return write


def _write_tiff(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    is_large = raster.rows.shape[0] * raster.rows.row_bytes > CLASSIC_TIFF_BYTES
    options = {"compression": "deflate", "predictor": "horizontal", "bigtiff": is_large, **KEPT}
    with open(file.fileno(), "r+b", closefd=False) as both:
        with _encodable(raster, encoding.format) as image:
            save(image, "tiffsave_target", options, both.write, both)
        try:
            add_to_tiff(both, _exif_to_write(raster), raster.metadata.iptc)
        except struct.error as error:
            logger.warning("%s: its EXIF is left out, for it is damaged (%s)", encoding.path, error)
            add_to_tiff(both, None, raster.metadata.iptc)
        both.seek(0, 2)
        both.write(encoding.mark or b"")


def _write_webp(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    content = io.BytesIO()
    with _encodable(raster, encoding.format) as image:
        save(image, "webpsave_target", {"Q": encoding.quality, "smart_subsample": True, **KEPT}, content.write)
    exif = _exif_to_write(raster)
    file.write(webp_with(content.getvalue(), exif, b"" if encoding.mark is None else webp_chunk(encoding.mark)))


def _write_gif(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    # dithering would crawl from frame to frame
    options = {"dither": 1.0 if raster.frames == 1 else 0.0}
    with _encodable(raster, encoding.format) as image:
        save(image, "gifsave_target", options, file.write)
    if encoding.mark is not None:
        add_to_gif(file, encoding.mark)


def _write_avif(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    """Write by Pillow: libvips holds all of it in memory, too, and would write EXIF anew."""
    exif = _exif_to_write(raster)
    if exif is not None and not _is_read_by_pillow(exif):
        logger.warning("%s: its EXIF is left out, for it is damaged", encoding.path)
        exif = None
    metadata = {"exif": exif, "icc_profile": raster.metadata.profile, "xmp": raster.metadata.xmp}
    options = {"quality": encoding.quality, "subsampling": "4:4:4"}
    _save_by_pillow(file, raster, encoding, {**options, **{key: value for key, value in metadata.items() if value}})
    if encoding.mark is not None:
        file.write(avif_box(encoding.mark))


def _is_read_by_pillow(exif: bytes) -> bool:
    try:
        with quiet_pillow(unlimited=False):
            read = Image.Exif()
            read.load(exif)
            read.tobytes()
    except Exception:  # damaged metadata make it raise almost anything
        return False
    return True


def _write_by_pillow(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    _save_by_pillow(file, raster, encoding, {"dpi": raster.metadata.dpi} if raster.metadata.dpi else {})


def _save_by_pillow(file: BinaryIO, raster: Raster, encoding: _Encoding, options: Options) -> None:
    with_mark = {"PPM": ppm_with, "BMP": bmp_with}.get(encoding.format.name)
    content = io.BytesIO()  # Pillow does not notice when a full disk takes only a part of a file
    with _encodable(raster, encoding.format) as image, quiet_pillow(unlimited=False):
        Image.fromarray(image.numpy()).save(content, encoding.format.name, **options)
    if encoding.mark is None or with_mark is None:
        file.write(content.getbuffer())
    else:
        file.write(with_mark(content.getvalue(), encoding.mark))


# The encoders of the formats that Pillow alone does not write well enough.
WRITERS: dict[str, Callable[[BinaryIO, Raster, _Encoding], None]] = {
    "JPEG": _write_jpeg,
    "PNG": _write_png,
    "WEBP": _write_webp,
    "GIF": _write_gif,
    "TIFF": _write_tiff,
    "AVIF": _write_avif,
}
