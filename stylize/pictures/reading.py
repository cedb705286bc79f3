"""From a file to a raster."""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from stylize.errors import StylizeError
from stylize.pictures.exif import corrected_exif, corrected_xmp, exif_of_tiff, from_photoshop, gif_is_whole
from stylize.pictures.images import SRGB, alpha_of, limited_size, reason_of, resize, to_rgb, transform_to_srgb
from stylize.pictures.raster import Header, Notes, Raster
from stylize.pictures.vips import (
    INCH_MM,
    INTENT,
    MODES,
    STRIP_BYTES,
    Options,
    Vips,
    changes,
    quiet_pillow,
    save,
    value,
    vips_reason,
)
from stylize.system.row_store import RowStore

logger = logging.getLogger("stylize")

# Pillow refuses more than twice its limit: a file of some kilobytes can hold gigabytes of one colour.
SAFE_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**30 // 12)
TILE_PX = 128


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


@contextmanager
def _refusals_of(path: Path) -> Iterator[None]:
    try:
        yield
    except StylizeError:
        raise
    except pyvips.Error as error:
        raise StylizeError(f"{path}: cannot be read as an image ({vips_reason(error)})") from error
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise StylizeError(f"{path}: {reason_of(error)}") from error


def _check_pixels(path: Path, header: Header, max_pixels: int | None) -> None:
    (width, height), frames = header.size, header.frames
    limit, pixels = SAFE_PIXELS if max_pixels is None else max_pixels, width * height * frames
    if pixels > limit:
        each = f"{width}×{height}" if frames == 1 else f"{frames} frames of {width}×{height}"
        raise StylizeError(
            f"{path}: got {math.ceil(pixels / 1e5) / 10:,} megapixels ({each}), must be at most "
            f"{limit / 1e6:,.1f}; --max-pixels lifts the limit"
        )


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
        self.stored = self.image.width, value(self.image, "page-height", self.image.height)
        self.frames = self.image.height // self.stored[1]
        turned = value(self.image, "orientation", 1)
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
        size = limited_size(self.header.size, max_size_px)
        stored = size if self.orientation < 5 else size[::-1]
        image = _resized(_levels(self._shrunk_on_load(stored), self.open), self.frames, stored)
        profile = self._profile()
        pixels = _in_srgb(image, profile, self.path)
        bits = 8 if pixels.format == "uchar" else 16
        dtype = torch.uint8 if bits == 8 else torch.uint16
        rows = RowStore((size[1] * self.frames, size[0], pixels.bands), dtype, folder, direct=False)
        try:
            with _UprightRows(rows, stored, self.frames, self.orientation, folder) as upright:
                save(pixels, "rawsave_target", {}, upright.add)
            rows.finish()
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
        profile: bytes | None = value(self.image, "icc-profile-data", None)
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
        exif, xmp = value(self.image, "exif-data", None), value(self.image, "xmp-data", None)
        iptc = value(self.image, "iptc-data", None)
        if self.loader == "tiffload_source":
            exif = _exif_of_tiff(self.path)
        delays = value(self.image, "delay", []) if self.frames > 1 else []
        resolution = self.image.xres, self.image.yres
        return Notes(
            exif=None if exif is None else corrected_exif(exif, size),
            xmp=None if xmp is None else corrected_xmp(xmp),
            iptc=None if iptc is None else from_photoshop(iptc),
            dpi=None if resolution == (1, 1) else (resolution[0] * INCH_MM, resolution[1] * INCH_MM),
            delays_ms=tuple(delays),
            loops=value(self.image, "loop", 0),
        )


def _exif_of_tiff(path: Path) -> bytes | None:
    try:
        with quiet_pillow(None), Image.open(path) as image:
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
    if image.interpretation == "cmyk" or (profile is not None and changes(profile, MODES[_colours(image)])):
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


class _PillowFile:
    """A file that only Pillow decodes: its first frame, as a whole, in 8 bits."""

    def __init__(self, path: Path, max_pixels: int | None) -> None:
        self.path, self.max_pixels = path, max_pixels
        with quiet_pillow(2**62), Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            alpha = "A" in image.getbands() or "transparency" in image.info
            self.header = Header(image.size[::-1] if turned else image.size, has_alpha=alpha)

    def decode(self, max_size_px: int | None, folder: Path | None) -> Raster:
        with quiet_pillow(self.max_pixels), Image.open(self.path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            alpha, rgb = alpha_of(upright), to_rgb(upright, self.path)
            told = dict(image.info)
        if alpha is not None:
            rgb.putalpha(alpha)
        size = limited_size(rgb.size, max_size_px)
        rgb = rgb if rgb.size == size else resize(rgb, max(size) / max(rgb.size))
        values = np.array(rgb)
        rows = RowStore(values.shape, torch.uint8, folder, direct=False)
        rows.write(0, torch.from_numpy(values))
        rows.finish()
        return Raster(rows, 1, _told_by_pillow(told, rgb.size))


def _told_by_pillow(told: Mapping[Any, Any], size: tuple[int, int]) -> Notes:
    exif, profile, dpi = told.get("exif"), told.get("icc_profile"), told.get("dpi")
    return Notes(
        exif=corrected_exif(exif, size) if exif else None,
        dpi=None if dpi is None or min(dpi) <= 0 else (float(dpi[0]), float(dpi[1])),
        profile=profile if profile and _is_output(profile) else None,
    )
