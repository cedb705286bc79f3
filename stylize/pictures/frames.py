"""Animations that Pillow decodes, frame by frame: PNG and AVIF."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stylize.errors import StylizeError
from stylize.pictures.decoders import PillowFile, VipsFile
from stylize.pictures.formats import Format
from stylize.pictures.raster import Metadata
from stylize.pictures.tiff_source import image_of_rows
from stylize.pictures.vips import Callbacks, Vips, quiet_pillow

PNG_SIGNATURE_BYTES = 8
MOST_CHUNKS = 10_000
FRAME_BYTES = 16  # that a frame takes at the least
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class FrameRows:
    """The rows of frames, one below the other, each decoded when its rows are read; one is in memory at a time.

    Args:
        shape: `(frames · H, W, C)`.
        frames: Number of frames.
        decode: Returns a frame `(H, W, C)`, 8 bits, by its number.
    """

    dtype = torch.uint8

    def __init__(self, shape: tuple[int, int, int], frames: int, decode: Callable[[int], NDArray[np.uint8]]) -> None:
        self.shape = shape
        self.row_bytes = shape[1] * shape[2]
        self._height, self._decode = shape[0] // frames, decode
        self._number, self._frame = -1, torch.empty(0)

    def read(self, first: int, last: int) -> torch.Tensor:
        """The rows `first` to `last` − 1."""
        parts = [torch.empty(0, *self.shape[1:], dtype=self.dtype)]
        while first < last:
            number, row = divmod(first, self._height)
            if number != self._number:
                self._frame = torch.from_numpy(self._decoded(number))
                self._number = number
            parts.append(self._frame[row : row + last - first])
            first += len(parts[-1])
        return torch.cat(parts)

    def _decoded(self, number: int) -> NDArray[np.uint8]:
        frame = self._decode(number)
        if frame.shape != (self._height, *self.shape[1:]):
            raise ValueError(f"frame {number + 1} has another size or other channels than the first")
        return frame


def animated_png(path: Path, image_format: Format, *, unlimited: bool) -> VipsFile:
    """Open a PNG file, animated or not."""
    is_animated = _png_frames(path) > 1
    return (AnimatedPng if is_animated else VipsFile)(path, image_format, unlimited=unlimited)


def _png_frames(path: Path) -> int:
    """Return the number of frames that a PNG file states before its first pixels; 1 for a still picture."""
    with path.open("rb") as file:
        file.seek(PNG_SIGNATURE_BYTES)
        for _ in range(MOST_CHUNKS):
            head = file.read(12)
            if len(head) < 12 or head[4:8] == b"IDAT":
                break
            if head[4:8] == b"acTL":
                return int(struct.unpack_from(">I", head, 8)[0])
            file.seek(struct.unpack_from(">I", head)[0], 1)
    return 1


class AnimatedPng(VipsFile):
    """An animated PNG: libvips reads what is beside the pixels, Pillow the frames, with 8 bits."""

    def __init__(self, path: Path, image_format: Format, *, unlimited: bool) -> None:
        super().__init__(path, image_format, unlimited=unlimited)
        self.unlimited, self.channels = unlimited, int(self.image.bands)
        self.frames = _PillowFrames(path, unlimited)
        self.is_deep = self.header.bits > 8
        self.header = replace(self.header, frames=self.frames.count, bits=8)

    def load(self, stored_size: tuple[int, int], margin: int, *, first_only: bool = False) -> Vips:
        if self.frames.count == 1:
            return super().load(stored_size, margin)
        return self.frames.as_image(self.stored_size, self.channels, self._decoded, first_only)

    def _decoded(self, frame: Image.Image) -> Image.Image:
        if frame.mode.startswith("I"):  # 16 bits of gray, which Pillow's own conversion clips
            frame = Image.fromarray((np.asarray(frame) // 257).astype(np.uint8))
        return frame.convert(MODES[self.channels])

    def metadata(self, size: tuple[int, int]) -> Metadata:
        kept = super().metadata(size)
        left_out = (*kept.left_out, "more than 8 bits of its frames") if self.is_deep else kept.left_out
        return replace(kept, delays_ms=self.frames.delays_ms(), loops=self.frames.loops, left_out=left_out)

    def close(self) -> None:
        super().close()
        self.frames.close()


class AnimatedAvif(PillowFile):
    """An animated AVIF file, of which libvips knows only the first frame or none."""

    note = ""

    def __init__(self, path: Path, *, unlimited: bool) -> None:
        super().__init__(path, unlimited=unlimited)
        self.frames = _PillowFrames(path, unlimited)
        self.header = replace(self.header, frames=self.frames.count)
        self.note = ""

    def load(self, stored_size: tuple[int, int], margin: int, *, first_only: bool = False) -> Vips:
        return self.frames.as_image(self.stored_size, 3 + self.header.has_alpha, self._decoded, first_only)

    def _decoded(self, frame: Image.Image) -> Image.Image:
        return self.to_levels(frame).convert(MODES[3 + self.header.has_alpha])

    def metadata(self, size: tuple[int, int]) -> Metadata:
        return replace(super().metadata(size), delays_ms=self.frames.delays_ms())

    def close(self) -> None:
        super().close()
        self.frames.close()


class _PillowFrames:
    """The frames of an animation, opened by Pillow."""

    def __init__(self, path: Path, unlimited: bool) -> None:
        self.unlimited = unlimited
        with quiet_pillow(unlimited=True):
            self.image = Image.open(path)
        # the picture that programs without animation show may be no frame
        self.first = int(getattr(self.image, "default_image", False))
        try:
            self.count = max(1, getattr(self.image, "n_frames", 1) - self.first)
        except BaseException:
            self.close()
            raise
        length = path.stat().st_size
        if self.count > length // FRAME_BYTES:
            self.close()
            raise StylizeError(f"{path}: cannot be read as an image (states {self.count:,} frames in {length:,} bytes)")
        self.loops = int(self.image.info.get("loop", 0))
        self._delays: dict[int, int] = {}
        self._callbacks: Callbacks | None = None

    def as_image(
        self,
        size: tuple[int, int],
        channels: int,
        convert: Callable[[Image.Image], Image.Image],
        first_only: bool,
    ) -> Vips:
        """Return all frames, one below the other, as an image whose pixels are decoded when they are computed."""

        def decode(number: int) -> NDArray[np.uint8]:
            with quiet_pillow(unlimited=self.unlimited):
                self.image.seek(self.first + number)
                self.image.load()
                self._delays[number] = round(self.image.info.get("duration") or 0)
                frame = self.image.copy()
            values = np.asarray(convert(frame))
            return np.array(values.reshape(*values.shape[:2], channels))

        count = 1 if first_only else self.count
        rows = FrameRows((count * size[1], size[0], channels), count, decode)
        self._callbacks = Callbacks()
        return image_of_rows(rows, self._callbacks).copy(interpretation="srgb" if channels >= 3 else "b-w")

    def delays_ms(self) -> tuple[int, ...]:
        """Return how long each of the decoded frames is shown."""
        return tuple(self._delays.get(i, 0) for i in range(self.count)) if self.count > 1 else ()

    def close(self) -> None:
        """Close the file."""
        self.image.close()
