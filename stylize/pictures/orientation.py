"""Pictures as EXIF has them lie in the file, turned upright: whole ones, and strip by strip."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from stylize.pictures.limits import limits
from stylize.system.row_store import RowStore


def upright(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn a whole picture `(H, W, C)` upright.

    Source: EXIF 2.32, tag 0x0112.
    """
    turned = stored.swapaxes(0, 1) if orientation >= 5 else stored
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return turned[::-1] if orientation in (3, 4, 7, 8) else turned


class UprightRows:
    """Takes the strips of frames as they are stored, and writes their rows upright.

    Args:
        rows: Where to write.
        stored_size: Width and height of a frame as stored.
        orientation: How frames are stored, as EXIF says.
        folder: Where the tiles of a picture that is turned by 90° are kept; None: in memory.
    """

    def __init__(self, rows: RowStore, stored_size: tuple[int, int], orientation: int, folder: Path | None) -> None:
        self.rows, self.stored_size, self.orientation = rows, stored_size, orientation
        self.row_bytes = stored_size[0] * math.prod(rows.shape[2:]) * rows.dtype.itemsize
        self.tiles = _Tiles(stored_size, rows, folder) if orientation >= 5 else None
        self.strip_rows = limits.tile_px if orientation >= 5 else max(1, limits.strip_bytes // self.row_bytes)
        self.waiting = bytearray()
        self.frame = self.row = 0

    def __enter__(self) -> UprightRows:
        return self

    def __exit__(self, *error: object) -> None:
        if self.tiles is not None:
            self.tiles.store.close()

    def add(self, strip: NDArray[Any]) -> None:
        """Take the rows that follow the former ones."""
        self.waiting += strip.data.cast("B")
        while self.row < self.stored_size[1] and len(self.waiting) >= (wanted := self._wanted() * self.row_bytes):
            content = torch.frombuffer(bytearray(memoryview(self.waiting)[:wanted]), dtype=self.rows.dtype)
            del self.waiting[:wanted]
            self._take(content.view(-1, self.stored_size[0], self.rows.shape[2]))

    def _wanted(self) -> int:
        return min(self.strip_rows, self.stored_size[1] - self.row)

    def _take(self, strip: Tensor) -> None:
        height = self.stored_size[1]
        if self.tiles is not None:
            self.tiles.add(self.row, strip)
        else:
            strip = strip.flip(1) if self.orientation in (2, 3) else strip
            is_upside_down = self.orientation in (3, 4)
            first = height - self.row - len(strip) if is_upside_down else self.row
            self.rows.write(self.frame * height + first, strip.flip(0) if is_upside_down else strip)
        self.row += len(strip)
        if self.row == height:
            if self.tiles is not None:
                self.tiles.write_upright(self.rows, self.frame * self.stored_size[0], self.orientation)
            self.frame, self.row = self.frame + 1, 0


class _Tiles:
    """A frame that is turned by 90°: strips are split into tiles, which are read again by columns."""

    def __init__(self, stored_size: tuple[int, int], rows: RowStore, folder: Path | None) -> None:
        self.width, self.height = stored_size
        self.side_px = limits.tile_px
        self.down, self.across = math.ceil(self.height / self.side_px), math.ceil(self.width / self.side_px)
        shape = self.across * self.down, self.side_px, self.side_px, rows.shape[2]
        self.store = RowStore(shape, rows.dtype, folder, direct=False)

    def add(self, row: int, strip: Tensor) -> None:
        tile = torch.empty(1, *self.store.shape[1:], dtype=strip.dtype)
        for i in range(self.across):
            part = strip[:, i * self.side_px : (i + 1) * self.side_px]
            tile[0, : part.shape[0], : part.shape[1]] = part
            self.store.write(i * self.down + row // self.side_px, tile)

    def write_upright(self, rows: RowStore, first: int, orientation: int) -> None:
        for i in range(self.across):
            tiles = self.store.read(i * self.down, (i + 1) * self.down)
            columns = tiles.flatten(0, 1)[: self.height, : self.width - i * self.side_px].transpose(0, 1)
            columns = columns.flip(1) if orientation in (6, 7) else columns
            is_upside_down = orientation in (7, 8)
            place = self.width - i * self.side_px - len(columns) if is_upside_down else i * self.side_px
            rows.write(first + place, columns.flip(0) if is_upside_down else columns)
