"""Painting a picture as a whole, on a CPU: all its maps in one piece of memory, where each is as long as it is needed.

A convolution takes its input from top to bottom and leaves its result from top to bottom. So the result of one that
halves the maps may lie over its input, and that of one that enlarges them may begin well before its input, and end over
what was read: of two maps that follow each other only the larger one takes room.

Floor: the largest map. Johnson's generator takes a few rows more, a third less than with every map by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from stylize.generators.base import Stage
from stylize.inference.plans import map_shape
from stylize.ops import Geometry, Window

ALIGNED_VALUES = 16  # 64 bytes: a line of the cache


class Maps(NamedTuple):
    """What a stage's convolution leaves, and how long that is needed.

    Attributes:
        shape: `(H, W, C)`.
        geometry: Of the convolution.
        last: The last stage that reads it.
    """

    shape: tuple[int, int, int]
    geometry: Geometry
    last: int

    @property
    def row_values(self) -> int:
        """Of a row."""
        return self.shape[1] * self.shape[2]

    @property
    def values(self) -> int:
        """Of all rows, and what fills the last line of the cache."""
        return -(-self.shape[0] * self.row_values // ALIGNED_VALUES) * ALIGNED_VALUES


class Layout(NamedTuple):
    """Where maps lie, in values.

    Attributes:
        starts: Where each begins.
        values: That all take.
    """

    starts: tuple[int, ...]
    values: int


def layout_of(stages: Sequence[Stage]) -> Layout:
    """Where the maps of all stages but the last lie; the last one's are the picture."""
    return lay_out(tuple(_maps(stages, i) for i in range(len(stages) - 1)))


@lru_cache
def lay_out(chain: tuple[Maps, ...]) -> Layout:
    """Each as far to the front as those that lie there already allow, the largest first."""
    starts: dict[int, int] = {}
    for i in sorted(range(len(chain)), key=lambda i: (-chain[i].values, -i)):
        rivals = [j for j in starts if i <= chain[j].last and j <= chain[i].last]
        ends = (starts[j] + chain[j].values for j in rivals)
        leads = [starts[j] + _lead(chain[i], chain[j]) for j in rivals if j == i + 1]
        leads += [starts[j] - _lead(chain[j], chain[i]) for j in rivals if j == i - 1]
        places = sorted({0, *ends, *(start for start in leads if start >= 0)})
        starts[i] = next(place for place in places if all(_agree(chain, {i: place, j: starts[j]}) for j in rivals))
    placed = tuple(starts[i] for i in range(len(chain)))
    return Layout(placed, max((start + maps.values for start, maps in zip(placed, chain, strict=True)), default=0))


def paint_whole(stages: Sequence[Stage], photograph: Tensor) -> Tensor:
    """Paint one picture.

    Args:
        stages: The generator's, for the picture.
        photograph: `(1, 3, H, W)` in [0, 1], float32, on a CPU.

    Returns:
        The same shape; without a gradient.
    """
    layout = layout_of(stages)
    room = torch.empty(layout.values)
    x = photograph
    results: list[Tensor] = []
    for i, stage in enumerate(stages):
        window = Window(x[0].permute(1, 2, 0), 0, x.shape[2])
        out = _view(room, layout.starts[i], map_shape(stage)) if i < len(layout.starts) else None
        x = stage.conv.rows(window, (0, stage.size[0]), stage.geometry, out)
        x = stage.finished_(x)
        if stage.residual_of is not None:
            x = x.add_(results[stage.residual_of])
        results.append(x)
    return x[..., : photograph.shape[2], : photograph.shape[3]]


def _maps(stages: Sequence[Stage], i: int) -> Maps:
    stage = stages[i]
    readers = [j for j, later in enumerate(stages) if later.residual_of == i]
    return Maps(map_shape(stage), stage.geometry, max((i + 1, *readers)))


def _agree(chain: Sequence[Maps], starts: dict[int, int]) -> bool:
    """Whether two maps, of which one is needed when the other is made, may lie so."""
    (i, start), (j, later_start) = sorted(starts.items())
    if start + chain[i].values <= later_start or later_start + chain[j].values <= start:
        return True
    over = j == i + 1 == chain[i].last and start - later_start >= _lead(chain[i], chain[j])
    return over and _reads_before_it_writes(chain[j].geometry)


def _reads_before_it_writes(geometry: Geometry) -> bool:
    """Whether a convolution goes strip by strip, each copied before it is convolved."""
    return geometry.stride > 1 or geometry.size is not None


@lru_cache
def _lead(before: Maps, after: Maps) -> int:
    """By how much at least maps must begin after the result that is written over them."""
    height = after.shape[0]
    leads = (
        row * after.row_values - after.geometry.needed_rows(row, height, before.shape[0])[0] * before.row_values
        for row in range(1, height)
    )
    most = max(leads, default=0)
    return -(-most // ALIGNED_VALUES) * ALIGNED_VALUES


def _view(room: Tensor, start: int, shape: tuple[int, int, int]) -> Tensor:
    height, width, channels = shape
    return room[start : start + height * width * channels].view(shape)
