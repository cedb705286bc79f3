"""The door for the pictures that are painted: of any size, by strips, with all that stands beside their pixels.

libvips decodes and encodes by strips, so a raster on the disk takes little memory, however large the picture is. What
cannot be had by strips is held as a whole: progressive JPEG and interlaced PNG while they are read, WebP, GIF (frame by
frame) and AVIF both ways, and what Pillow reads or writes because libvips does not (BMP, PPM).

`images` stays the door for training: whole pictures, small, 8 bits.
"""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyvips
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from stylize.errors import StylizeError
from stylize.files import written_atomically
from stylize.images import (
    SRGB,
    WITH_ALPHA,
    Picture,
    alpha_of,
    format_of,
    reason_of,
    resize,
    to_rgb,
    transform_to_srgb,
)
from stylize.metadata import (
    JPEG_EXIF_BYTES,
    PNG_HEAD_BYTES,
    add_to_tiff,
    corrected_exif,
    corrected_xmp,
    exif_of_tiff,
    from_photoshop,
    gif_is_whole,
    jpeg_with,
    png_with,
    to_photoshop,
    webp_with_exif,
)
from stylize.rows import RowStore

logger = logging.getLogger("stylize")
logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # libvips warns of what is refused or mended here
pyvips.cache_set_max(0)  # no picture is decoded twice, and the cache would hold its files open
pyvips.concurrency_set(min(4, pyvips.concurrency_get()))  # every thread holds strips of its own

# Pillow refuses more than twice its limit: a file of some kilobytes can hold gigabytes of one colour.
SAFE_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**30 // 12)
STRIP_BYTES = 2**20  # libvips keeps several at a time
TILE_PX = 256
OPTIMIZED_JPEG_PX = 16_000_000  # the optimal code needs all coefficients in memory, 12 bytes a pixel
CLASSIC_TIFF_BYTES = 3_900_000_000
ANIMATED = frozenset(("GIF", "WEBP"))
WITH_PROFILE = frozenset(("JPEG", "PNG", "WEBP", "TIFF", "AVIF"))
SIXTEEN_BIT = frozenset(("PNG", "TIFF"))
INTENT = "perceptual"  # as `images` converts for training
INCH_MM = 25.4
USUAL_DPI = (72.0, 72.0)  # EXIF's, for a file that says nothing; libvips cannot say nothing
MODES = {1: "L", 3: "RGB", 4: "CMYK"}

Vips: TypeAlias = Any
Options: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Header:
    """What the beginning of a file says.

    Attributes:
        size: Width and height in px of a frame, upright.
        frames: More than 1 for an animation.
        bits: 8 or 16 a channel.
        has_alpha: Whether there is transparency.
    """

    size: tuple[int, int]
    frames: int = 1
    bits: int = 8
    has_alpha: bool = False

    def bytes_of(self, size: tuple[int, int]) -> int:
        """Of the raster, all frames at this width and height."""
        return size[0] * size[1] * self.frames * (3 + self.has_alpha) * self.bits // 8


@dataclass(frozen=True)
class Notes:
    """What belongs to a picture beside its pixels, and outlasts their painting.

    Attributes:
        bits: 8 or 16 a channel.
        exif: EXIF block without prefix and thumbnail, for an upright picture.
        xmp: XMP packet.
        iptc: IPTC block.
        dpi: Horizontally and vertically; None where the file does not tell.
        profile: ICC profile, of RGB, in whose colours files are written; None for sRGB that is not spelled out.
        delays_ms: How long each frame is shown; empty for a still picture.
        loops: How often an animation is shown; 0 for endlessly.
    """

    bits: int = 8
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    profile: bytes | None = None
    delays_ms: tuple[int, ...] = ()
    loops: int = 0


@dataclass(frozen=True)
class Raster:
    """Frames of pixels, in memory or on the disk, and what belongs to them.

    Attributes:
        rows: `(frames · H, W, C)`, uint8 or uint16: RGB or RGBA, upright sRGB, the alpha not multiplied in.
        frames: Their number; they lie one below the other.
        notes: What belongs to them.
    """

    rows: RowStore
    frames: int = 1
    notes: Notes = Notes()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px of a frame."""
        return self.rows.shape[1], self.rows.shape[0] // self.frames

    @property
    def bits(self) -> int:
        """8 or 16 a channel."""
        return 8 * self.rows.dtype.itemsize

    @property
    def has_alpha(self) -> bool:
        """Whether there is a fourth channel."""
        return self.rows.shape[2] == 4

    def picture(self, frame: int = 0) -> Picture:
        """A frame as a whole, in float32."""
        height = self.size[1]
        values = self.rows.read(frame * height, (frame + 1) * height).permute(2, 0, 1)
        levels = values.to(torch.float32, copy=True, memory_format=torch.contiguous_format).div_(2**self.bits - 1)
        return Picture(levels[:3], levels[3:] if self.has_alpha else None)

    def close(self) -> None:
        """Give the memory or the file back."""
        self.rows.close()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_header(path: Path) -> Header:
    """Size, frames, depth and transparency of an image file, without decoding it.

    Raises:
        StylizeError: The file is missing or no image.
    """
    with _refusals_of(path):
        file = _VipsFile.of(path, unlimited=True)
        return _PillowFile(path, None).header if file is None else file.header


def read_raster(
    path: Path, *, max_size_px: int | None = None, max_pixels: int | None = None, folder: Path | None = None
) -> Raster:
    """Decode an image file, of an animated GIF or WebP all frames, of other files the first.

    Args:
        path: The file.
        max_size_px: Shrink to this longer side; smaller pictures stay as they are.
        max_pixels: Take that many pixels, all frames together, instead of Pillow's limit of 179 million.
        folder: Where the pixels are kept, in a file without a name; None keeps them in memory.

    Raises:
        StylizeError: The file is missing, no image, damaged or too large; or the folder has not the room.
    """
    with _refusals_of(path):
        vips = _VipsFile.of(path, unlimited=max_pixels is not None)
        file = _PillowFile(path, max_pixels) if vips is None else vips
        _check_pixels(path, file.header, max_pixels)
        return file.decode(max_size_px, folder)


def raster_of(pictures: Sequence[Picture], notes: Notes) -> Raster:
    """Painted frames, all of one size, rounded to the nearest of the levels that the notes ask for; in memory."""
    width, height = pictures[0].size
    channels = 3 + any(picture.alpha is not None for picture in pictures)
    dtype, white = (torch.uint16, 65535) if notes.bits == 16 else (torch.uint8, 255)
    rows = RowStore((len(pictures) * height, width, channels), dtype)
    for i, picture in enumerate(pictures):
        alpha = [] if channels == 3 else [torch.ones(1, height, width) if picture.alpha is None else picture.alpha]
        levels = torch.cat([picture.rgb.cpu().float(), *(a.cpu().float() for a in alpha)])
        rows.write(i * height, levels.clamp(0, 1).mul_(white).round_().permute(1, 2, 0).to(dtype))
    return Raster(rows, len(pictures), notes)


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
            raise StylizeError(f"{path}: cannot be written ({_vips_reason(error)})") from error
        except (ValueError, RuntimeError, struct.error) as error:  # Pillow's, of what is larger than the format allows
            raise StylizeError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error


@contextmanager
def _refusals_of(path: Path) -> Iterator[None]:
    try:
        yield
    except StylizeError:
        raise
    except pyvips.Error as error:
        raise StylizeError(f"{path}: cannot be read as an image ({_vips_reason(error)})") from error
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise StylizeError(f"{path}: {reason_of(error)}") from error


def _vips_reason(error: pyvips.Error) -> str:
    """The first line of what libvips tells, which is the cause of the others."""
    lines = [line.strip() for line in str(error.detail).splitlines() if line.strip()]
    return lines[0] if lines else str(error.message)


def _check_pixels(path: Path, header: Header, max_pixels: int | None) -> None:
    (width, height), frames = header.size, header.frames
    limit, pixels = SAFE_PIXELS if max_pixels is None else max_pixels, width * height * frames
    if pixels > limit:
        each = f"{width}×{height}" if frames == 1 else f"{frames} frames of {width}×{height}"
        raise StylizeError(
            f"{path}: got {math.ceil(pixels / 1e5) / 10:,} megapixels ({each}), must be at most "
            f"{limit / 1e6:,.1f}; --max-pixels lifts the limit"
        )


def _shrunk(size: tuple[int, int], max_size_px: int | None) -> tuple[int, int]:
    factor = 1 if max_size_px is None else min(1, max_size_px / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


# How libvips reads a format: the file's beginning, the loader, its options.
EVERY_FRAME = {"n": -1}
LOADERS: tuple[tuple[bytes, str, Options], ...] = (
    (b"\xff\xd8\xff", "jpegload_source", {}),
    (b"\x89PNG\r\n\x1a\n", "pngload_source", {}),
    (b"GIF8", "gifload_source", EVERY_FRAME),
    (b"II*\0", "tiffload_source", {}),
    (b"MM\0*", "tiffload_source", {}),
    (b"II+\0", "tiffload_source", {}),
    (b"MM\0+", "tiffload_source", {}),
)
LIMITED = frozenset(("jpegload_source", "pngload_source", "tiffload_source", "heifload_source"))


def _loader(head: bytes) -> tuple[str, Options] | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webpload_source", EVERY_FRAME
    if head[4:8] == b"ftyp":
        return "heifload_source", {}
    return next((loader[1:] for loader in LOADERS if head.startswith(loader[0])), None)


class _VipsFile:
    """A file that libvips decodes."""

    def __init__(self, path: Path, loader: str, options: Options) -> None:
        self.path, self.loader, self.options = path, loader, options
        self.image = self.open()
        self.stored = self.image.width, _value(self.image, "page-height", self.image.height)
        self.frames = self.image.height // self.stored[1]
        turned = _value(self.image, "orientation", 1)
        self.orientation = turned if 1 <= turned <= 8 else 1
        size = self.stored if self.orientation < 5 else self.stored[::-1]
        self.header = Header(size, self.frames, 8 if self.image.format == "uchar" else 16, bool(self.image.hasalpha()))

    @classmethod
    def of(cls, path: Path, *, unlimited: bool) -> _VipsFile | None:
        """None for what libvips does not know."""
        with path.open("rb") as file:
            loader = _loader(file.read(16))
        if loader is None:
            return None
        name, options = loader
        try:
            return cls(path, name, {**options, "unlimited": True} if unlimited and name in LIMITED else options)
        except pyvips.Error:
            return None  # Pillow reads some kinds that libvips does not, and has the same words for files of no kind

    def open(self, **options: Any) -> Vips:
        load = getattr(pyvips.Image, self.loader)
        source = pyvips.Source.new_from_file(os.fsencode(self.path))  # names need not be text
        return load(source, access="sequential", fail_on="error", **self.options, **options)

    def decode(self, max_size_px: int | None, folder: Path | None) -> Raster:
        if self.loader == "gifload_source" and not gif_is_whole(self.path.read_bytes()):
            raise StylizeError(f"{self.path}: cannot be read as an image (it ends within a frame)")
        size = _shrunk(self.header.size, max_size_px)
        stored = size if self.orientation < 5 else size[::-1]
        image = _resized(_levels(self._shrunk_on_load(stored), self.open), self.frames, stored)
        profile = self._profile()
        pixels = _in_srgb(image, profile, self.path)
        bits = 8 if pixels.format == "uchar" else 16
        dtype = torch.uint8 if bits == 8 else torch.uint16
        rows = RowStore((size[1] * self.frames, size[0], pixels.bands), dtype, folder, direct=False)
        try:
            with _UprightRows(rows, stored, self.frames, self.orientation, folder) as upright:
                _save(pixels, "rawsave_target", {}, upright.add)
        except BaseException:
            rows.close()
            raise
        keeps = profile if profile is not None and _is_output(profile) else None
        return Raster(rows, self.frames, replace(self._notes(size), bits=bits, profile=keeps))

    def _shrunk_on_load(self, size: tuple[int, int]) -> Vips:
        """The image, from a JPEG at the smallest scale that leaves a factor of two to a better filter."""
        factor = min(self.stored[0] / size[0], self.stored[1] / size[1])
        shrink = next((s for s in (8, 4, 2) if factor >= 2 * s), 1)
        return self.open(shrink=shrink) if self.loader == "jpegload_source" and shrink > 1 else self.open()

    def _profile(self) -> bytes | None:
        """The colour profile, if it can be used."""
        profile: bytes | None = _value(self.image, "icc-profile-data", None)
        bands = self.image.bands - self.image.hasalpha()
        if profile is None or bands not in MODES:
            return None
        try:
            transform_to_srgb(profile, MODES[bands])
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
            logger.warning("%s: its colour profile cannot be used (%s); taken as sRGB", self.path, error)
            return None
        return profile

    def _notes(self, size: tuple[int, int]) -> Notes:
        exif, xmp = _value(self.image, "exif-data", None), _value(self.image, "xmp-data", None)
        iptc = _value(self.image, "iptc-data", None)
        if self.loader == "tiffload_source":
            exif = _exif_of_tiff(self.path)
        delays = _value(self.image, "delay", []) if self.frames > 1 else []
        resolution = self.image.xres, self.image.yres
        return Notes(
            exif=None if exif is None else corrected_exif(exif, size),
            xmp=None if xmp is None else corrected_xmp(xmp),
            iptc=None if iptc is None else from_photoshop(iptc),
            dpi=None if resolution == (1, 1) else (resolution[0] * INCH_MM, resolution[1] * INCH_MM),
            delays_ms=tuple(delays),
            loops=_value(self.image, "loop", 0),
        )


def _value(image: Vips, field: str, otherwise: Any) -> Any:
    return image.get(field) if image.get_typeof(field) else otherwise


def _exif_of_tiff(path: Path) -> bytes | None:
    try:
        with _quiet_pillow(None), Image.open(path) as image:
            return exif_of_tiff(image)
    except Exception as error:  # of notes alone; the pixels are another matter
        logger.debug("%s: its EXIF cannot be read (%s)", path, error)
        return None


def _levels(image: Vips, reopen: Callable[[], Vips]) -> Vips:
    """Any number format → 8 or 16 bits; floating point is taken as `images` does."""
    if image.format in ("uchar", "ushort"):
        return image
    if image.interpretation in ("lab", "labs", "xyz"):
        return image.colourspace("rgb16")
    if image.format in ("float", "double"):
        white = 1 if _finite(reopen()).max() <= 1 else 255
        image = _finite(image) * (65535 / white) + 0.5
    levels = image.cast("ushort")
    return levels.copy(interpretation="rgb16" if levels.bands >= 3 else "grey16")


def _finite(image: Vips) -> Vips:
    return (image == image).ifthenelse(image, 0)


def _resized(image: Vips, frames: int, size: tuple[int, int]) -> Vips:
    """Shrink every frame; Lanczos filter, antialiased; colours are weighted by their opacity."""
    width, height = image.width, image.height // frames
    if (width, height) == size:
        return image
    scale = {"vscale": size[1] / height, "kernel": "lanczos3"}
    parts = [image] if frames == 1 else [image.crop(0, i * height, width, height) for i in range(frames)]
    if image.hasalpha():
        white = 255 if image.format == "uchar" else 65535
        shrunk = [
            part.premultiply(max_alpha=white).resize(size[0] / width, **scale).unpremultiply(max_alpha=white)
            for part in parts
        ]
        parts = [part.rint().cast(image.format).copy(interpretation=image.interpretation) for part in shrunk]
    else:
        parts = [part.resize(size[0] / width, **scale) for part in parts]
    return parts[0] if frames == 1 else pyvips.Image.arrayjoin(parts, across=1)


def _in_srgb(image: Vips, profile: bytes | None, path: Path) -> Vips:
    """Any colours → RGB or RGBA in sRGB, of the same bits."""
    bits = 8 if image.format == "uchar" else 16
    if image.interpretation == "cmyk" or (profile is not None and _changes(profile, MODES[_colours(image)])):
        given = {"input_profile": "cmyk"} if profile is None else {"embedded": True}
        image = image.icc_transform("srgb", intent=INTENT, depth=bits, **given)
    elif image.interpretation not in ("srgb", "rgb", "rgb16", "b-w", "grey16", "multiband"):
        image = image.colourspace("srgb" if bits == 8 else "rgb16")
    colours = _colours(image)
    if colours < 3:
        bands = image.bandsplit()
        image = bands[0].bandjoin([bands[0], bands[0], *bands[1:2]])
    return image if image.bands <= 4 else image.extract_band(0, n=4 if image.hasalpha() else 3)


def _colours(image: Vips) -> int:
    return int(image.bands - image.hasalpha())


def _changes(profile: bytes, mode: str) -> bool:
    return transform_to_srgb(profile, mode) is not None


def _is_output(profile: bytes) -> bool:
    """Whether colours can be converted into those of a profile of RGB."""
    try:
        ImageCms.buildTransform(SRGB, ImageCms.ImageCmsProfile(io.BytesIO(profile)), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return False
    return True


class _UprightRows:
    """Takes the rows of frames as they are stored, and writes them upright.

    Args:
        rows: Where to.
        stored: Width and height of a frame as stored.
        frames: Their number.
        orientation: How they are stored, as EXIF says.
        folder: Where a turned picture waits in tiles; None where memory has room for it.
    """

    def __init__(
        self, rows: RowStore, stored: tuple[int, int], frames: int, orientation: int, folder: Path | None
    ) -> None:
        self.rows, self.stored, self.orientation = rows, stored, orientation
        self.row_bytes = stored[0] * math.prod(rows.shape[2:]) * rows.dtype.itemsize
        self.strip_rows = TILE_PX if orientation >= 5 else max(1, STRIP_BYTES // self.row_bytes)
        self.tiles = _Tiles(stored, rows, folder) if orientation >= 5 else None
        self.waiting = bytearray()
        self.frame = self.row = 0

    def __enter__(self) -> _UprightRows:
        return self

    def __exit__(self, *error: object) -> None:
        if self.tiles is not None:
            self.tiles.store.close()

    def add(self, content: Any) -> None:
        """Take bytes that follow the former ones."""
        self.waiting += content
        while self.row < self.stored[1] and len(self.waiting) >= (wanted := self._wanted() * self.row_bytes):
            strip = torch.frombuffer(bytearray(memoryview(self.waiting)[:wanted]), dtype=self.rows.dtype)
            del self.waiting[:wanted]
            self._take(strip.view(-1, self.stored[0], self.rows.shape[2]))

    def _wanted(self) -> int:
        return min(self.strip_rows, self.stored[1] - self.row)

    def _take(self, strip: Tensor) -> None:
        if self.tiles is not None:
            self.tiles.add(self.row, strip)
        else:
            strip = strip.flip(1) if self.orientation in (2, 3) else strip
            upside_down = self.orientation in (3, 4)
            first = self.stored[1] - self.row - len(strip) if upside_down else self.row
            self.rows.write(self.frame * self.stored[1] + first, strip.flip(0) if upside_down else strip)
        self.row += len(strip)
        if self.row == self.stored[1]:
            if self.tiles is not None:
                self.tiles.write_upright(self.rows, self.frame * self.stored[0], self.orientation)
            self.frame, self.row = self.frame + 1, 0


class _Tiles:
    """A frame that must be turned: it comes in strips of tiles, and goes in columns of them."""

    def __init__(self, stored: tuple[int, int], rows: RowStore, folder: Path | None) -> None:
        self.width, self.height = stored
        self.channels = rows.shape[2]
        self.down, self.across = math.ceil(self.height / TILE_PX), math.ceil(self.width / TILE_PX)
        shape = self.across * self.down, TILE_PX, TILE_PX, self.channels
        self.store = RowStore(shape, rows.dtype, folder, direct=False)

    def add(self, row: int, strip: Tensor) -> None:
        tile = torch.empty(1, *self.store.shape[1:], dtype=strip.dtype)
        for i in range(self.across):
            part = strip[:, i * TILE_PX : (i + 1) * TILE_PX]
            tile[0, : part.shape[0], : part.shape[1]] = part
            self.store.write(i * self.down + row // TILE_PX, tile)

    def write_upright(self, rows: RowStore, first: int, orientation: int) -> None:
        for i in range(self.across):
            tiles = self.store.read(i * self.down, (i + 1) * self.down)
            columns = tiles.flatten(0, 1)[: self.height, : self.width - i * TILE_PX].transpose(0, 1)
            columns = columns.flip(1) if orientation in (6, 7) else columns
            upside_down = orientation in (7, 8)
            place = self.width - i * TILE_PX - len(columns) if upside_down else i * TILE_PX
            rows.write(first + place, columns.flip(0) if upside_down else columns)


_pillow_lock = threading.Lock()


@contextmanager
def _quiet_pillow(max_pixels: int | None) -> Iterator[None]:
    """Without Pillow's warnings and its limit of pixels, which are the whole process's, so one thread at a time."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = usual if max_pixels is None else None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


class _PillowFile:
    """A file that only Pillow decodes: its first frame, as a whole, in 8 bits."""

    def __init__(self, path: Path, max_pixels: int | None) -> None:
        self.path, self.max_pixels = path, max_pixels
        with _quiet_pillow(2**62), Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            alpha = "A" in image.getbands() or "transparency" in image.info
            self.header = Header(image.size[::-1] if turned else image.size, has_alpha=alpha)

    def decode(self, max_size_px: int | None, folder: Path | None) -> Raster:
        with _quiet_pillow(self.max_pixels), Image.open(self.path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            alpha, rgb = alpha_of(upright), to_rgb(upright, self.path)
            told = dict(image.info)
        if alpha is not None:
            rgb.putalpha(alpha)
        size = _shrunk(rgb.size, max_size_px)
        rgb = rgb if rgb.size == size else resize(rgb, max(size) / max(rgb.size))
        values = np.array(rgb)
        rows = RowStore(values.shape, torch.uint8, folder, direct=False)
        rows.write(0, torch.from_numpy(values))
        return Raster(rows, 1, _told_by_pillow(told, rgb.size))


def _told_by_pillow(told: Mapping[Any, Any], size: tuple[int, int]) -> Notes:
    exif, profile, dpi = told.get("exif"), told.get("icc_profile"), told.get("dpi")
    return Notes(
        exif=corrected_exif(exif, size) if exif else None,
        dpi=None if dpi is None or min(dpi) <= 0 else (float(dpi[0]), float(dpi[1])),
        profile=profile if profile and _is_output(profile) else None,
    )


class _Calls:
    """Functions that libvips calls back, maybe from its own threads; their errors wait until it returns."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def guarded(self, call: Callable[..., Any], failed: Any) -> Callable[..., Any]:
        def guarded(*arguments: Any) -> Any:
            try:
                return failed if self.error is not None else call(*arguments)
            except BaseException as error:  # a ctrl-c, too, may come in here
                self.error = error
                return failed

        return guarded

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Within the block libvips calls."""
        try:
            yield
        except pyvips.Error:
            if self.error is None:
                raise
        if self.error is not None:
            raise self.error


def _save(
    image: Vips, saver: str, options: Options, write: Callable[[Any], object], file: BinaryIO | None = None
) -> None:
    """Compute an image and hand what a saver makes of it to `write`; where that needs it, with a file to seek in."""
    calls, target = _Calls(), pyvips.TargetCustom()

    def take(content: Any) -> int:
        write(content)
        return len(content)

    target.on_write(calls.guarded(take, -1))
    if file is not None:
        target.on_read(calls.guarded(file.read, None))
        target.on_seek(calls.guarded(file.seek, -1))
    with calls.raised():
        getattr(image, saver)(target, **options)


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
    calls, source, tiff = _Calls(), pyvips.SourceCustom(), _RowsAsTiff(raster.rows)
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
    if _changes(profile, "RGB"):
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
    options["optimize_coding"] = math.prod(raster.size) <= OPTIMIZED_JPEG_PX
    with _encodable(raster, encoding) as image:
        write = _after_head(file, 2, lambda head: jpeg_with(head, exif, raster.notes.dpi))
        _save(image, "jpegsave_target", {**options, **KEPT}, write)


def _write_png(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    exif = _exif_to_write(raster)
    with _encodable(raster, encoding) as image:
        write = _after_head(file, PNG_HEAD_BYTES, lambda head: png_with(head, exif))
        _save(image, "pngsave_target", {"compression": 3, "filter": "sub", **KEPT}, write)


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
            _save(image, "tiffsave_target", options, both.write, both)
        try:
            add_to_tiff(both, _exif_to_write(raster), raster.notes.iptc)
        except struct.error as error:
            logger.warning("%s: its EXIF is left out, for it is damaged (%s)", encoding.path, error)
            add_to_tiff(both, None, raster.notes.iptc)


def _write_webp(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    content = io.BytesIO()
    with _encodable(raster, encoding) as image:
        _save(image, "webpsave_target", {"Q": encoding.quality, "smart_subsample": True, **KEPT}, content.write)
    exif = _exif_to_write(raster)
    file.write(content.getvalue() if exif is None else webp_with_exif(content.getvalue(), exif))


def _write_gif(file: BinaryIO, raster: Raster, encoding: _Encoding) -> None:
    # spread errors would crawl from frame to frame
    options = {"dither": 1.0 if raster.frames == 1 else 0.0}
    with _encodable(raster, encoding) as image:
        _save(image, "gifsave_target", options, file.write)


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
        with _quiet_pillow(None):
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
    with _encodable(raster, encoding) as image, _quiet_pillow(None):
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
