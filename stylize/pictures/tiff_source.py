"""A raster's rows as an image of libvips."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import pyvips
import torch

from stylize.pictures.limits import limits
from stylize.pictures.vips import Callbacks, Vips, replace_lost_threads


class Rows(Protocol):
    """What is read of a `RowStore`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(H, W, C)`."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""

    def read(self, first: int, last: int) -> torch.Tensor:
        """The rows `first` to `last` − 1."""


@contextmanager
def rows_as_image(rows: Rows) -> Iterator[Vips]:
    """Yield rows `(H, W, 1 to 4)` as an image, which libvips reads in strips; errors of reading are raised at the end.

    They are handed over as an uncompressed TIFF file: `rawload` would map all of its file into memory.
    """
    callbacks = Callbacks()
    with callbacks.raised():
        yield image_of_rows(rows, callbacks)


def image_of_rows(rows: Rows, callbacks: Callbacks) -> Vips:
    """Return rows `(H, W, 1 to 4)` as an image, usable as long as the callbacks live, which keep errors of reading."""
    replace_lost_threads()
    callbacks.owner = source = pyvips.SourceCustom()
    tiff = _RowsAsTiff(rows)
    source.on_read(callbacks.guarded(tiff.read, None))
    source.on_seek(callbacks.guarded(tiff.seek, -1))
    return pyvips.Image.tiffload_source(source, access="sequential", fail_on="error", unlimited=True)


class _RowsAsTiff:
    """An uncompressed TIFF file that is made while it is read."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.strip_rows = max(1, min(rows.shape[0], limits.strip_bytes // rows.row_bytes))
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
        entries = [(256, [width]), (257, [height]), (258, [bits] * channels), (259, [1])]
        entries += [(262, [1 if channels < 3 else 2]), (273, offsets)]
        entries += [(277, [channels]), (278, [self.strip_rows]), (279, counts), (284, [1])]
        entries += [(338, [2])] if channels % 2 == 0 else []  # not premultiplied
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
