"""Paint a picture as a whole on a CPU, with all its maps in one allocation.

A convolution reads its input and writes its result from top to bottom. So the result of one that halves the maps may
overwrite its input, and that of one that upsamples them may begin before its input and end over rows that were read: of
two consecutive maps only the larger one takes memory.

Floor: the largest map. Johnson's generator takes a few rows more, a third less than with separate maps.
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

ALIGNED_VALUES = 16  # 64 bytes: a cache line


class Maps(NamedTuple):
    """The result of a stage's convolution.

    Attributes:
        shape: `(H, W, C)`.
        geometry: Geometry of the convolution.
        last: Last stage that reads it.
    """

    shape: tuple[int, int, int]
    geometry: Geometry
    last: int

    @property
    def row_values(self) -> int:
        """Number of values of a row."""
        return self.shape[1] * self.shape[2]

    @property
    def values(self) -> int:
        """Number of values, rounded up to whole cache lines."""
        return -(-self.shape[0] * self.row_values // ALIGNED_VALUES) * ALIGNED_VALUES


class Layout(NamedTuple):
    """Positions of maps in one allocation, in values.

    Attributes:
        starts: Position of each.
        values: Size of the allocation.
    """

    starts: tuple[int, ...]
    values: int


def layout_of(stages: Sequence[Stage]) -> Layout:
    """Return the layout of the maps of all stages but the last, whose result is the picture."""
    return lay_out(tuple(_maps(stages, i) for i in range(len(stages) - 1)))


@lru_cache
def lay_out(chain: tuple[Maps, ...]) -> Layout:
    """Place each as far to the front as those already placed allow, the largest first."""
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
        stages: The generator's stages for the picture.
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
    """Return whether two maps, one of which is needed while the other is computed, may be at these positions."""
    (i, start), (j, later_start) = sorted(starts.items())
    if start + chain[i].values <= later_start or later_start + chain[j].values <= start:
        return True
    over = j == i + 1 == chain[i].last and start - later_start >= _lead(chain[i], chain[j])
    return over and _reads_before_it_writes(chain[j].geometry)


def _reads_before_it_writes(geometry: Geometry) -> bool:
    """Return whether a convolution copies each strip of its input before it writes the result."""
    return geometry.stride > 1 or geometry.size is not None


@lru_cache
def _lead(before: Maps, after: Maps) -> int:
    """Return the least distance at which maps must begin after the result that overwrites them."""
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
