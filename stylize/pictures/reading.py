"""From image files to pixels. Everything that reads a picture reads it here: training, measuring and painting."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import pyvips
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stylize.errors import StylizeError, reason_of
from stylize.pictures.color import is_output_profile, pixels_to_srgb, to_srgb
from stylize.pictures.decoders import ImageFile
from stylize.pictures.limits import limits
from stylize.pictures.opening import open_file
from stylize.pictures.orientation import UprightRows, upright
from stylize.pictures.picture import Picture, limited_size, scaled_size
from stylize.pictures.raster import Header, Raster
from stylize.pictures.vips import VERSION, Vips, color_bands, on_background, strips, vips_reason, with_bits
from stylize.system.row_store import RowStore

logger = logging.getLogger("stylize")

Decoded = TypeVar("Decoded")

SOURCE_STRIPS = 8
MOST_ROWS = 1 << 14  # of a very thin picture, which libvips would search for line by line
# A JPEG is decoded at the smallest scale that is at least this many times as large as what is wanted. What is painted
# gets the better picture; photographs to train on come faster: 12 megapixels to 288 px in 24.6 ms instead of 27.5 ms.
PAINTING_MARGIN, TRAINING_MARGIN = 2, 1
# A photograph that is enlarged to train on has at most so many pixels: times the square of its shorter side, or, where
# that side is large, absolutely, but always two squares.
ENLARGED_SQUARES, ENLARGED_PIXELS, LEAST_SQUARES = 16, 1 << 24, 2
# What decides the pixels beside the file: another version may give others.
READER = 2  # raised where the same file gives other pixels than before
DECODER = f"reader {READER}, libvips {VERSION} and Pillow {PIL.__version__}"


def open_picture(path: Path, *, max_pixels: int | None = None) -> OpenPicture:
    """Open an image file and read its header; of an animated GIF or WebP all frames count, of other files the first.

    Args:
        path: The file.
        max_pixels: Decode up to that many pixels, all frames together; default: 179 million, as Pillow.

    Raises:
        StylizeError: The file is missing, or no image.
    """
    with _refusals_of(path):
        return OpenPicture(path, open_file(path, unlimited=max_pixels is not None), max_pixels)


def read_header(path: Path) -> Header:
    """Return size, frames, depth and transparency of an image file of any size, without decoding it.

    Raises:
        StylizeError: The file is missing, or no image.
    """
    with _refusals_of(path):
        file = open_file(path, unlimited=True)
        file.close()
        return file.header


def read_raster(
    path: Path, *, max_size_px: int | None = None, max_pixels: int | None = None, folder: Path | None = None
) -> Raster:
    """Open and decode an image file; see `open_picture` and `OpenPicture.read`.

    Raises:
        StylizeError: The file is missing, no image, damaged or too large; or the folder has too little room.
    """
    with open_picture(path, max_pixels=max_pixels) as picture:
        return picture.read(max_size_px=max_size_px, folder=folder)


def read_picture(path: Path) -> Picture:
    """Return the picture of a file, of an animation the first frame, as float tensors.

    Raises:
        StylizeError: The file is missing, no image, damaged or too large.
    """
    with read_raster(path) as raster:
        return raster.picture()


def read_rgb(path: Path, shorter_side_px: int | None = None) -> Image.Image:
    """Return the picture of a file as 8-bit sRGB, transparency laid on white; of an animation the first frame.

    Args:
        path: The file.
        shorter_side_px: Shrink or enlarge to this shorter side.

    Raises:
        StylizeError: The file is missing, no image, damaged or too large.
    """
    with open_picture(path) as picture:
        rgb = picture.read_rgb() if shorter_side_px is None else picture.read_scaled(shorter_side_px)
        return Image.fromarray(rgb)


def size_to_train_on(size: tuple[int, int], shorter_side_px: int) -> tuple[int, int]:
    """Return width and height of a photograph with this shorter side, of which the training draws its crops.

    Of a thin picture that would be enlarged out of proportion only the middle part is taken.

    >>> size_to_train_on((600, 400), 288), size_to_train_on((9000, 300), 288), size_to_train_on((3000, 10), 288)
    ((432, 288), (8640, 288), (4608, 288))
    """
    width, height = scaled_size(size, shorter_side_px / min(size))
    square = shorter_side_px**2
    enlarged = max(LEAST_SQUARES * square, min(ENLARGED_SQUARES * square, ENLARGED_PIXELS))
    longest = max(size[0] * size[1], enlarged) // shorter_side_px
    return min(width, longest), min(height, longest)


class OpenPicture:
    """An image file whose header has been read, and whose pixels can be.

    Not to be used in several threads at once.

    Attributes:
        path: The file.
        header: Size, frames, depth and transparency.
    """

    def __init__(self, path: Path, file: ImageFile, max_pixels: int | None) -> None:
        self.path = path
        self.header = file.header
        self._file = file
        self._max_pixels = max_pixels
        self._note = file.note

    def read(
        self,
        *,
        max_size_px: int | None = None,
        folder: Path | None = None,
        background: tuple[int, int, int] | None = None,
    ) -> Raster:
        """Decode all frames, strip by strip; may be called several times.

        Args:
            max_size_px: Shrink to this longer side; smaller pictures stay as they are.
            folder: Where the pixels are kept, in a file without a name; None: in memory.
            background: Colour in sRGB, 0 to 255 each, on which transparency is laid; None: it stays.

        Raises:
            StylizeError: The file is damaged or too large, or the folder has too little room.
        """
        header, file = self.header, self._file
        self._tell()
        with _refusals_of(self.path):
            self._check_pixels(header.frames, "; --max-pixels lifts the limit")
            size = limited_size(header.size, max_size_px)
            stored_size = size if file.orientation < 5 else size[::-1]
            return self._decoded(lambda: self._read(size, stored_size, folder, background))

    def _read(
        self,
        size: tuple[int, int],
        stored_size: tuple[int, int],
        folder: Path | None,
        background: tuple[int, int, int] | None,
    ) -> Raster:
        file, frames = self._file, self.header.frames
        image, profile = file.load(stored_size, PAINTING_MARGIN), file.profile()
        rows_per_strip = _rows_per_strip(image, stored_size[1] * frames)
        pixels = to_srgb(_resized(image, frames, stored_size), profile)
        if background is not None:
            pixels = on_background(pixels, background)
        rows = _new_rows(pixels, (size[1] * frames, size[0], pixels.bands), folder)
        try:
            with UprightRows(rows, stored_size, file.orientation, folder) as turned:
                for strip in strips(pixels, rows_per_strip):
                    turned.add(strip)
            rows.finish()
        except BaseException:
            rows.close()
            raise
        return self._raster(rows, size, profile)

    def _decoded(self, decode: Callable[[], Decoded]) -> Decoded:
        """Decode, and again if the file has damage that can be passed over; that is told once."""
        try:
            return decode()
        except pyvips.Error as error:
            if self._file.fail_on != "warning":
                raise
            self._file.fail_on, reason = "error", vips_reason(error)
        decoded = decode()
        logger.warning("%s: its data are damaged (%s); part of the picture may be wrong", self.path, reason)
        return decoded

    def _tell(self) -> None:
        """Log once that pictures of the file are left out."""
        if self._note:
            logger.warning("%s: %s", self.path, self._note)
        self._note = ""

    def _raster(self, rows: RowStore, size: tuple[int, int], profile: bytes | None) -> Raster:
        metadata = replace(self._file.metadata(size), bits=8 * rows.dtype.itemsize)
        if profile is not None and is_output_profile(profile):
            metadata = replace(metadata, profile=profile)
        return Raster(rows, self.header.frames, metadata)

    def read_rgb(self, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Decode the first frame as 8-bit sRGB `(H, W, 3)`, transparency laid on white.

        Args:
            size: Shrink or enlarge to this width and height in px; None: as it is.

        Raises:
            StylizeError: The file is damaged or too large.
        """
        size = self.header.size if size is None else size
        return self._read_rgb(size, size)

    def read_scaled(self, shorter_side_px: int) -> NDArray[np.uint8]:
        """Decode the first frame as 8-bit sRGB, shrunk or enlarged to this shorter side; see `size_to_train_on`.

        Raises:
            StylizeError: The file is damaged or too large.
        """
        size = self.header.size
        whole = scaled_size(size, shorter_side_px / min(size))
        return self._read_rgb(whole, size_to_train_on(size, shorter_side_px))

    def _read_rgb(self, whole: tuple[int, int], part: tuple[int, int]) -> NDArray[np.uint8]:
        """Decode the first frame at the size `whole`, of which the middle `part` is returned."""
        file = self._file
        with _refusals_of(self.path):
            self._check_pixels(1, "; shrink it with another program")
            stored_whole, stored_part = (s if file.orientation < 5 else s[::-1] for s in (whole, part))
            rgb = self._decoded(lambda: self._read_part(stored_whole, stored_part))
            return np.ascontiguousarray(upright(rgb, file.orientation))

    def _read_part(self, whole: tuple[int, int], part: tuple[int, int]) -> NDArray[np.uint8]:
        file = self._file
        image, profile = file.load(whole, TRAINING_MARGIN, first_only=True), file.profile()
        if self.header.frames > 1:
            image = image.crop(0, 0, *file.stored_size)
        image = _middle(image, whole, part)
        rows_per_strip = _rows_per_strip(image, part[1])
        image = with_bits(_resized(image, 1, part), 8)
        if profile is None or color_bands(image) == 4:
            image, profile = to_srgb(image, profile), None
        pixels = np.concatenate(list(strips(image, rows_per_strip)))
        return _on_white(pixels, color_bands(image), profile)

    def _check_pixels(self, frames: int, remedy: str) -> None:
        (width, height), limit = self.header.size, self._max_pixels
        limit, pixels = limits.safe_pixels if limit is None else limit, width * height * frames
        if pixels > limit:
            each = f"{width}×{height}" if frames == 1 else f"{frames} frames of {width}×{height}"
            raise StylizeError(
                f"{self.path}: got {math.ceil(pixels / 1e5) / 10:,} megapixels ({each}), must be at most "
                f"{limit / 1e6:,.1f}{remedy}"
            )
        file_bytes = self.path.stat().st_size
        if self._max_pixels is None and pixels > max(limits.surely_safe_pixels, limits.pixels_per_byte * file_bytes):
            raise StylizeError(
                f"{self.path}: got {math.ceil(pixels / 1e5) / 10:,} megapixels in {file_bytes:,} bytes, must be at "
                f"most {limits.pixels_per_byte:,} pixels a byte{remedy}"
            )

    def close(self) -> None:
        """Close the file; rasters that were read stay."""
        self._file.close()

    def __enter__(self) -> OpenPicture:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _refusals_of(path: Path) -> Iterator[None]:
    try:
        yield
    except StylizeError:
        raise
    except pyvips.Error as error:
        raise StylizeError(f"{path}: cannot be read as an image ({vips_reason(error)})") from error
    except Exception as error:  # damaged files make the decoders raise almost anything
        raise StylizeError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return why a file could not be read, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, must be an image file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({reason_of(error)})"
    return f"cannot be read as an image ({error or type(error).__name__})".replace("\n", " ")


def _new_rows(pixels: Vips, shape: tuple[int, ...], folder: Path | None) -> RowStore:
    return RowStore(shape, torch.uint8 if pixels.format == "uchar" else torch.uint16, folder, direct=False)


def _rows_per_strip(image: Vips, height: int) -> int:
    """Return how many rows to compute at a time of an image that is resized to this height.

    The rows that the filter needs above and below a strip are computed for both strips: few of them, if strips are
    much higher than the filter.
    """
    row_bytes = image.width * image.bands * (1 if image.format == "uchar" else 2)
    rows = SOURCE_STRIPS * limits.strip_bytes / (row_bytes * max(1.0, image.height / height))
    return min(max(1, int(rows)), MOST_ROWS)


def _middle(image: Vips, whole: tuple[int, int], part: tuple[int, int]) -> Vips:
    """Return the middle part of an image that has the size `part` where the image has the size `whole`."""
    if part == whole:
        return image
    width, height = (
        max(1, round(side * p / w)) for side, p, w in zip((image.width, image.height), part, whole, strict=True)
    )
    return image.crop((image.width - width) // 2, (image.height - height) // 2, width, height)


def _resized(image: Vips, frames: int, size: tuple[int, int]) -> Vips:
    """Resize every frame with an antialiased Lanczos filter; colours are weighted by their opacity."""
    width, height = image.width, image.height // frames
    if (width, height) == size:
        return image
    parts = [image] if frames == 1 else [image.crop(0, i * height, width, height) for i in range(frames)]
    resized = [_resized_frame(part, size) for part in parts]
    return resized[0] if frames == 1 else pyvips.Image.arrayjoin(resized, across=1)


def _resized_frame(image: Vips, size: tuple[int, int]) -> Vips:
    scale: dict[str, Any] = {"vscale": size[1] / image.height, "kernel": "lanczos3"}
    if not image.hasalpha():
        return image.resize(size[0] / image.width, **scale)
    white = 255 if image.format == "uchar" else 65535
    weighted = image.premultiply(max_alpha=white).resize(size[0] / image.width, **scale).unpremultiply(max_alpha=white)
    return weighted.rint().cast(image.format).copy(interpretation=image.interpretation)


def _on_white(pixels: NDArray[np.uint8], channels: int, profile: bytes | None) -> NDArray[np.uint8]:
    """Convert gray or RGB pixels `(H, W, C)` to sRGB `(H, W, 3)`; an alpha after the channels is laid on white."""
    rgb = pixels_to_srgb(np.ascontiguousarray(pixels[:, :, :channels]), profile)
    if channels == pixels.shape[2]:
        return rgb
    alpha = pixels[:, :, channels : channels + 1].astype(np.uint16)
    return ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
