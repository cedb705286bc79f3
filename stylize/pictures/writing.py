"""From a raster to a file."""

from __future__ import annotations

import io
import logging
import math
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyvips
import torch
from PIL import Image

from stylize.errors import StylizeError
from stylize.pictures.exif import (
    JPEG_EXIF_BYTES,
    PNG_HEAD_BYTES,
    add_to_tiff,
    corrected_exif,
    jpeg_with,
    png_with,
    to_photoshop,
    webp_with_exif,
)
from stylize.pictures.images import WITH_ALPHA, format_of
from stylize.pictures.raster import Raster
from stylize.pictures.vips import (
    INCH_MM,
    INTENT,
    STRIP_BYTES,
    Calls,
    Options,
    Vips,
    changes,
    quiet_pillow,
    save,
    vips_reason,
)
from stylize.system.files import written_atomically
from stylize.system.row_store import RowStore

logger = logging.getLogger("stylize")

# The optimal code takes a quarter of the time of a small file, and all coefficients in memory, 12 bytes a pixel.
OPTIMIZED_JPEG_PX = range(1_000_000, 16_000_000)
CLASSIC_TIFF_BYTES = 3_900_000_000
ANIMATED = frozenset(("GIF", "WEBP"))
WITH_PROFILE = frozenset(("JPEG", "PNG", "WEBP", "TIFF", "AVIF"))
SIXTEEN_BIT = frozenset(("PNG", "TIFF"))
USUAL_DPI = (72.0, 72.0)  # EXIF's, for a file that says nothing; libvips cannot say nothing


def write_raster(path: Path, raster: Raster, *, quality: int = 95) -> None:
    """Write an image file in the format of its suffix, with all notes that it can hold; it appears whole or not at all.

    Pixels go back into the colours of the notes' profile. Formats without 16 bits get the nearest of 8, formats without
    transparency leave it out, GIF keeps whether a pixel is seen; formats without animation get the first frame.

    Args:
        path: Where to.
        raster: What to write.
        quality: 1 to 100, for JPEG, WebP and AVIF.

    Raises:
        StylizeError: Unknown suffix, the picture is too large for the format, or the place cannot be written to.
    """
    image_format = format_of(path)
    if raster.frames > 1 and image_format not in ANIMATED:
        logger.warning("%s: got %d frames, of which %s holds the first", path, raster.frames, image_format)
    with written_atomically(path) as file:
        try:
            WRITERS[image_format](file, raster, _Encoding(path, image_format, quality))
        except pyvips.Error as error:
            raise StylizeError(f"{path}: cannot be written ({vips_reason(error)})") from error
        except (ValueError, RuntimeError, struct.error) as error:  # Pillow's, of what is larger than the format allows
            raise StylizeError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error


class _RowsAsTiff:
    """An uncompressed TIFF that is made while libvips reads it; `rawload` would map all of its file into memory."""

    def __init__(self, rows: RowStore) -> None:
        self.rows = rows
        self.strip_rows = max(1, min(rows.shape[0], STRIP_BYTES // rows.row_bytes))
        self.header = self._directory(0)
        self.header = self._directory(len(self.header))
        self.length = len(self.header) + rows.shape[0] * rows.row_bytes
        self.place, self.strip, self.content = 0, -1, np.empty(0, np.uint8).data

    def read(self, length: int) -> bytes:
        if self.place < len(self.header):
            content = self.header[self.place : self.place + length]
        else:
            strip, offset = divmod(self.place - len(self.header), self.strip_rows * self.rows.row_bytes)
            content = bytes(self._strip(strip)[offset : offset + length])
        self.place += len(content)
        return content

    def seek(self, offset: int, whence: int) -> int:
        self.place = offset + (0, self.place, self.length)[whence]
        return self.place

    def _strip(self, strip: int) -> memoryview:
        if strip != self.strip:
            first = strip * self.strip_rows
            rows = self.rows.read(min(first, self.rows.shape[0]), min(first + self.strip_rows, self.rows.shape[0]))
            self.strip, self.content = strip, rows.contiguous().view(-1).view(torch.uint8).numpy().data
        return self.content

    def _directory(self, start: int) -> bytes:
        height, width, channels = self.rows.shape
        bits, strips = 8 * self.rows.dtype.itemsize, math.ceil(height / self.strip_rows)
        stride = self.strip_rows * self.rows.row_bytes
        counts = [min(stride, height * self.rows.row_bytes - i * stride) for i in range(strips)]
        offsets = [start + i * stride for i in range(strips)]
        entries = [(256, [width]), (257, [height]), (258, [bits] * channels), (259, [1]), (262, [2]), (273, offsets)]
        entries += [(277, [channels]), (278, [self.strip_rows]), (279, counts), (284, [1])]
        entries += [(338, [2])] if channels == 4 else []  # an alpha that is not multiplied in
        directory = struct.pack("=Q", len(entries))
        after = b""
        for tag, values in entries:
            code, kind = ("Q", 16) if tag in (273, 279) else ("H", 3) if tag in (258, 338) else ("I", 4)
            content = struct.pack(f"={len(values)}{code}", *values)
            if len(content) > 8:
                place = 16 + 8 + 20 * len(entries) + 8 + len(after)
                after += content
                content = struct.pack("=Q", place)
            directory += struct.pack("=HHQ", tag, kind, len(values)) + content.ljust(8, b"\0")
        magic = b"II" if sys.byteorder == "little" else b"MM"
        return magic + struct.pack("=HHHQ", 43, 8, 0, 16) + directory + bytes(8) + after


@dataclass(frozen=True)
class _Encoding:
    path: Path
    image_format: str
    quality: int


@contextmanager
def _encodable(raster: Raster, encoding: _Encoding) -> Iterator[Vips]:
    """The raster as an image of libvips, in the colours, bits and with the notes that the format can hold, but EXIF."""
    calls, source, tiff = Calls(), pyvips.SourceCustom(), _RowsAsTiff(raster.rows)
    source.on_read(calls.guarded(tiff.read, None))
    source.on_seek(calls.guarded(tiff.seek, -1))
    with calls.raised():
        image = pyvips.Image.tiffload_source(source, access="sequential", fail_on="error", unlimited=True)
        image_format, notes = encoding.image_format, raster.notes
        if image_format not in ANIMATED and raster.frames > 1:
            image = image.crop(0, 0, *raster.size)
        if image_format not in WITH_ALPHA | {"GIF"}:
            image = image.extract_band(0, n=3)
        bits = raster.bits if image_format in SIXTEEN_BIT else 8
        with _in_profile(image, notes.profile if image_format in WITH_PROFILE else None, bits) as converted:
            yield _annotated(_with_bits(converted, bits), raster, image_format)


@contextmanager
def _in_profile(image: Vips, profile: bytes | None, bits: int) -> Iterator[Vips]:
    """An sRGB image in the colours of a profile, and with it."""
    if profile is None:
        yield image
        return
    if changes(profile, "RGB"):
        with RowStore((len(profile),), torch.uint8, Path(tempfile.gettempdir()), direct=False) as file:
            file.write(0, torch.frombuffer(bytearray(profile), dtype=torch.uint8))  # libvips takes files alone
            image = image.icc_transform(file.file_name, input_profile="srgb", embedded=False, intent=INTENT, depth=bits)
    image = image.copy()
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    yield image


def _with_bits(image: Vips, bits: int) -> Vips:
    if image.format == "ushort" and bits == 8:
        return (image / 257).rint().cast("uchar").copy(interpretation="srgb")
    return image


def _annotated(image: Vips, raster: Raster, image_format: str) -> Vips:
    notes, dpi = raster.notes, raster.notes.dpi or USUAL_DPI
    image = image.copy(xres=dpi[0] / INCH_MM, yres=dpi[1] / INCH_MM)
    image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
    if notes.xmp is not None:
        image.set_type(pyvips.GValue.blob_type, "xmp-data", notes.xmp)
    if notes.iptc is not None and image_format == "JPEG":  # into TIFF libvips writes a fourth of it
        image.set_type(pyvips.GValue.blob_type, "iptc-data", to_photoshop(notes.iptc))
    if image_format in ANIMATED and raster.frames > 1:
        image.set_type(pyvips.GValue.gint_type, "page-height", raster.size[1])
        image.set_type(pyvips.GValue.array_int_type, "delay", list(notes.delays_ms or (100,) * raster.frames))
        image.set_type(pyvips.GValue.gint_type, "loop", notes.loops)
    return image


def _exif_to_write(raster: Raster) -> bytes | None:
    return None if raster.notes.exif is None else corrected_exif(raster.notes.exif, raster.size)


KEPT = {"keep": "icc:xmp:iptc:other"}  # EXIF is laid into the file as it is


def _write_jpeg(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    exif = _exif_to_write(raster)
    if exif is not None and len(exif) > JPEG_EXIF_BYTES:
        logger.warning("%s: its EXIF of %s bytes is left out: JPEG holds 65,527", encoding.path, f"{len(exif):,}")
        exif = None
    # painted colour edges are sharp, so colours have the full resolution
    options = {"Q": encoding.quality, "subsample_mode": "off"}
    options["optimize_coding"] = math.prod(raster.size) in OPTIMIZED_JPEG_PX
    with _encodable(raster, encoding) as image:
        write = _after_head(file, 2, lambda head: jpeg_with(head, exif, raster.notes.dpi))
        save(image, "jpegsave_target", {**options, **KEPT}, write)


def _write_png(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    exif = _exif_to_write(raster)
    with _encodable(raster, encoding) as image:
        write = _after_head(file, PNG_HEAD_BYTES, lambda head: png_with(head, exif))
        save(image, "pngsave_target", {"compression": 3, "filter": "sub", **KEPT}, write)


def _after_head(file: BinaryIO, head_bytes: int, changed: Callable[[bytes], bytes]) -> Callable[[Any], object]:
    """Writes to a file whose beginning, of at least so many bytes, is changed."""
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
    large = raster.rows.shape[0] * raster.rows.row_bytes > CLASSIC_TIFF_BYTES
    options = {"compression": "deflate", "predictor": "horizontal", "bigtiff": large, **KEPT}
    with open(file.fileno(), "r+b", closefd=False) as both:
        with _encodable(raster, encoding) as image:
            save(image, "tiffsave_target", options, both.write, both)
        try:
            add_to_tiff(both, _exif_to_write(raster), raster.notes.iptc)
        except struct.error as error:
            logger.warning("%s: its EXIF is left out, for it is damaged (%s)", encoding.path, error)
            add_to_tiff(both, None, raster.notes.iptc)


def _write_webp(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    content = io.BytesIO()
    with _encodable(raster, encoding) as image:
        save(image, "webpsave_target", {"Q": encoding.quality, "smart_subsample": True, **KEPT}, content.write)
    exif = _exif_to_write(raster)
    file.write(content.getvalue() if exif is None else webp_with_exif(content.getvalue(), exif))


def _write_gif(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    # spread errors would crawl from frame to frame
    options = {"dither": 1.0 if raster.frames == 1 else 0.0}
    with _encodable(raster, encoding) as image:
        save(image, "gifsave_target", options, file.write)


def _write_avif(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    """By Pillow: libvips, too, holds all of it in memory, and would write EXIF anew."""
    exif = _exif_to_write(raster)
    if exif is not None and not _is_read_by_pillow(exif):
        logger.warning("%s: its EXIF is left out, for it is damaged", encoding.path)
        exif = None
    told = {"exif": exif, "icc_profile": raster.notes.profile, "xmp": raster.notes.xmp}
    options = {"quality": encoding.quality, "subsampling": "4:4:4"}
    _save_by_pillow(file, raster, encoding, {**options, **{key: value for key, value in told.items() if value}})


def _is_read_by_pillow(exif: bytes) -> bool:
    try:
        with quiet_pillow(None):
            read = Image.Exif()
            read.load(exif)
            read.tobytes()
    except Exception:  # damaged notes make it raise almost anything
        return False
    return True


def _write_by_pillow(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    _save_by_pillow(file, raster, encoding, {"dpi": raster.notes.dpi} if raster.notes.dpi else {})


def _save_by_pillow(file: BinaryIO, raster: Raster, encoding: _Encoding, options: Options) -> None:
    content = io.BytesIO()  # Pillow passes over it when a full disk takes only a part of a file
    with _encodable(raster, encoding) as image, quiet_pillow(None):
        Image.fromarray(image.numpy()).save(content, encoding.image_format, **options)
    file.write(content.getbuffer())


WRITERS: dict[str, Callable[[BinaryIO, Raster, _Encoding], None]] = {
    "JPEG": _write_jpeg,
    "PNG": _write_png,
    "WEBP": _write_webp,
    "GIF": _write_gif,
    "TIFF": _write_tiff,
    "AVIF": _write_avif,
    "BMP": _write_by_pillow,
    "PPM": _write_by_pillow,
}
