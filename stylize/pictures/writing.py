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
from stylize.pictures.comments import (
    JPEG_XMP_BYTES,
    SEGMENT_BYTES,
    add_to_gif,
    jpeg_segment,
    ppm_with,
    xmp_segments,
)
from stylize.pictures.exif import (
    EXIF_PREFIX,
    JPEG_EXIF_BYTES,
    add_to_tiff,
    corrected_exif,
    exif_segment,
    jpeg_with,
    to_photoshop,
    webp_with,
)
from stylize.pictures.formats import Format, format_of
from stylize.pictures.losses import Tell, held_texts, losses, tell
from stylize.pictures.mark import avif_box, bmp_with, jpeg_comment, mark_of, png_text, webp_chunk
from stylize.pictures.picture import Picture
from stylize.pictures.plugins import load_plugin
from stylize.pictures.png_chunks import iptc_chunk, png_chunk, text_chunk, xmp_chunk
from stylize.pictures.raster import Metadata, Raster, raster_of
from stylize.pictures.tiff_source import rows_as_image
from stylize.pictures.vips import INCH_MM, Options, Vips, on_background, quiet_pillow, save, vips_reason, with_bits
from stylize.system.files import written_atomically

logger = logging.getLogger("stylize")

# The optimal code takes a quarter of the time of a small file, and all coefficients in memory, 12 bytes per pixel.
OPTIMIZED_JPEG_PX = range(1_000_000, 16_000_000)
CLASSIC_TIFF_BYTES = 3_900_000_000
PNG_HEAD_BYTES = 33  # other chunks may follow them
WHITE = 255, 255, 255
USUAL_DPI = (72.0, 72.0)  # EXIF's default; libvips always writes a resolution
KEPT = {"keep": "icc:xmp:iptc:other"}  # EXIF is laid into the file as it is


def write_raster(path: Path, raster: Raster, *, quality: int = 95, style: str | None = None, tell: Tell = tell) -> None:
    """Write an image file in the format of its suffix, with all metadata that it can hold, whole or not at all.

    Pixels are converted to the metadata's profile. Formats without 16 bits get the nearest 8-bit levels, formats
    without transparency get it laid on white, GIF keeps whether a pixel is opaque, formats without animation get the
    first frame.

    Args:
        path: Where to write.
        raster: The pixels and their metadata.
        quality: 1 to 100, for JPEG, WebP and AVIF.
        style: Name of the style for the mark of painted files; None: no mark.
        tell: Called with the path and a line for what the format cannot hold.

    Raises:
        StylizeError: Unknown suffix, the picture is too large for the format, or the place cannot be written to.
    """
    image_format = format_of(path)
    if raster.frames > 1 and not image_format.is_animated:
        logger.warning("%s: got %d frames, of which %s holds the first", path, raster.frames, image_format.name)
    for loss in losses(raster, image_format):
        tell(path, loss)
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
            image = on_background(image, WHITE)
        bits = min(raster.bits, image_format.bits)
        profile = raster.metadata.profile if image_format.has_profile else None
        with in_profile(image, profile, bits) as converted:
            yield _annotated(with_bits(converted, bits), raster, image_format)


def _annotated(image: Vips, raster: Raster, image_format: Format) -> Vips:
    metadata, dpi = raster.metadata, raster.metadata.dpi or USUAL_DPI
    image = image.copy(xres=dpi[0] / INCH_MM, yres=dpi[1] / INCH_MM)
    image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
    if metadata.xmp is not None and image_format.name in ("WEBP", "TIFF"):
        image.set_type(pyvips.GValue.blob_type, "xmp-data", metadata.xmp)
    if image_format.is_animated and raster.frames > 1:
        image.set_type(pyvips.GValue.gint_type, "page-height", raster.size[1])
        image.set_type(pyvips.GValue.array_int_type, "delay", list(metadata.delays_ms or (100,) * raster.frames))
        image.set_type(pyvips.GValue.gint_type, "loop", metadata.loops)
    return image


def _exif_to_write(raster: Raster) -> bytes | None:
    return None if raster.metadata.exif is None else corrected_exif(raster.metadata.exif, raster.size)


def _write_jpeg(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    segments = b"".join(_jpeg_segments(raster, encoding))
    # painted colour edges are sharp, so colours have the full resolution
    options = {"Q": encoding.quality, "subsample_mode": "off"}
    options["optimize_coding"] = math.prod(raster.size) in OPTIMIZED_JPEG_PX
    with _encodable(raster, encoding.format) as image:
        write = _after_head(file, 2, lambda head: jpeg_with(head, raster.metadata.dpi, segments))
        save(image, "jpegsave_target", {**options, **KEPT}, write)


def _jpeg_segments(raster: Raster, encoding: _Encoding) -> Iterator[bytes]:
    metadata, exif = raster.metadata, _exif_to_write(raster)
    if encoding.mark is not None:
        yield jpeg_comment(encoding.mark)
    if exif is not None and _fits(exif, JPEG_EXIF_BYTES, "EXIF", encoding):
        yield exif_segment(exif)
    if metadata.xmp is not None and _fits(metadata.xmp, JPEG_XMP_BYTES, "XMP", encoding):
        yield xmp_segments(metadata.xmp, metadata.xmp_extension)
    if metadata.iptc is not None and _fits(iptc := to_photoshop(metadata.iptc), SEGMENT_BYTES, "IPTC", encoding):
        yield jpeg_segment(0xED, iptc)
    for text in held_texts(metadata.texts, encoding.format):
        if _fits(comment := text.as_comment(), SEGMENT_BYTES, "comment", encoding):
            yield jpeg_segment(0xFE, comment)


def _fits(block: bytes, most: int, name: str, encoding: _Encoding) -> bool:
    """Return whether a block fits into a segment of JPEG; log it where it does not."""
    if len(block) > most:
        logger.warning(
            "%s: its %s of %s bytes is left out: JPEG holds %s", encoding.path, name, f"{len(block):,}", f"{most:,}"
        )
    return len(block) <= most


def _png_chunks(raster: Raster, encoding: _Encoding) -> Iterator[bytes]:
    metadata, exif = raster.metadata, _exif_to_write(raster)
    if encoding.mark is not None:
        yield png_text(encoding.mark)
    if exif is not None:
        yield png_chunk(b"eXIf", exif)
    if metadata.xmp is not None:
        yield xmp_chunk(metadata.xmp)
    if metadata.iptc is not None:
        yield iptc_chunk(to_photoshop(metadata.iptc, b""))
    for text in metadata.texts:
        chunk = text_chunk(text)
        if chunk is None:
            logger.warning("%s: a comment is left out, for it is no text", encoding.path)
        else:
            yield chunk


def _write_png(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    chunks = b"".join(_png_chunks(raster, encoding))
    if raster.frames > 1:
        _write_animated_png(file, raster, encoding, chunks)
        return
    with _encodable(raster, encoding.format) as image:
        write = _after_head(file, PNG_HEAD_BYTES, lambda head: head[:33] + chunks + head[33:])
        save(image, "pngsave_target", {"compression": 3, "filter": "sub", **KEPT}, write)


def _write_animated_png(file: BinaryIO, raster: Raster, encoding: _Encoding, chunks: bytes) -> None:
    """Write by Pillow, with 8 bits: libvips writes no animations in PNG."""
    options: Options = {"loop": raster.metadata.loops, "disposal": 0, "blend": 0}
    if raster.metadata.profile is not None:
        options["icc_profile"] = raster.metadata.profile
    if raster.metadata.dpi is not None:
        options["dpi"] = raster.metadata.dpi
    content = io.BytesIO()
    _save_by_pillow(content, raster, encoding, options)
    _after_head(file, PNG_HEAD_BYTES, lambda head: head[:33] + chunks + head[33:])(content.getvalue())


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
    comments = [text.as_comment() for text in held_texts(raster.metadata.texts, encoding.format)]
    add_to_gif(file, [*comments, *([] if encoding.mark is None else [encoding.mark])])


def _write_avif(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    """Write by Pillow: libvips holds all of it in memory, too, and would write EXIF anew."""
    exif = _exif_to_write(raster)
    if exif is not None and not _is_read_by_pillow(exif):
        logger.warning("%s: its EXIF is left out, for it is damaged", encoding.path)
        exif = None
    metadata = {"exif": exif, "icc_profile": raster.metadata.profile, "xmp": raster.metadata.xmp}
    options = {"quality": encoding.quality, "subsampling": "4:4:4"}
    _save_by_pillow(file, raster, encoding, {**options, **{key: value for key, value in metadata.items() if value}})


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


def _write_by_plugin(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    load_plugin(encoding.format)
    exif, profile = _exif_to_write(raster), raster.metadata.profile
    options: Options = {"quality": encoding.quality}
    if exif is not None and _is_read_by_pillow(exif):
        options["exif"] = EXIF_PREFIX + exif
    if profile is not None:
        options["icc_profile"] = profile
    if raster.metadata.xmp is not None:
        options["xmp"] = raster.metadata.xmp
    _save_by_pillow(file, raster, encoding, options)


def _save_by_pillow(file: BinaryIO, raster: Raster, encoding: _Encoding, options: Options) -> None:
    content = io.BytesIO()  # Pillow does not notice when a full disk takes only a part of a file
    with _encodable(raster, encoding.format) as image, quiet_pillow(unlimited=False):
        frames = _frames_of(with_bits(image, 8), raster.size[1])
        if len(frames) > 1:
            delays = list(raster.metadata.delays_ms or (100,) * len(frames))
            options = {**options, "save_all": True, "append_images": frames[1:], "duration": delays}
        frames[0].save(content, encoding.format.name, **options)
    file.write(_annotated_content(content.getvalue(), raster, encoding))


def _annotated_content(content: bytes, raster: Raster, encoding: _Encoding) -> bytes:
    mark = [] if encoding.mark is None else [encoding.mark]
    if encoding.format.name == "PPM":
        return ppm_with(
            content, [*mark, *(text.as_comment() for text in held_texts(raster.metadata.texts, encoding.format))]
        )
    if encoding.format.name == "BMP" and mark:
        return bmp_with(content, mark[0])
    return content + b"".join(map(avif_box, mark)) if encoding.format.name in ("AVIF", "HEIF") else content


def _frames_of(image: Vips, height: int) -> list[Image.Image]:
    """Return the frames of an image, each of this height, as images of Pillow."""
    values = image.numpy()
    return [Image.fromarray(values[first : first + height]) for first in range(0, len(values), height)]


# The encoders of the formats that Pillow alone does not write well enough.
WRITERS: dict[str, Callable[[BinaryIO, Raster, _Encoding], None]] = {
    "JPEG": _write_jpeg,
    "PNG": _write_png,
    "WEBP": _write_webp,
    "GIF": _write_gif,
    "TIFF": _write_tiff,
    "AVIF": _write_avif,
    "HEIF": _write_by_plugin,
    "JXL": _write_by_plugin,
}
