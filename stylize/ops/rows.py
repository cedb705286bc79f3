"""Rows of an image as a convolution sees them: upsampled and padded."""

from __future__ import annotations

import torch
from torch import Tensor

from stylize.ops.dispatch import on_cpu
from stylize.ops.geometry import Geometry, Window, scale_factors, source_rows
from stylize.ops.limits import TILE_PX, limits
from stylize.ops.padding import outside
from stylize.system.scratch import SCRATCH

aten = torch.ops.aten


def by_pixel(x: Tensor) -> Tensor:
    """View channels-last maps pixel by pixel: `(N, C, H, W)` → `(N, H, W, C)`."""
    return x.permute(0, 2, 3, 1)


def as_maps(image: Tensor) -> Tensor:
    """View an image as channels-last maps: `(H, W, C)` → `(1, C, H, W)`."""
    return image[None].permute(0, 3, 1, 2)


def scratch(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return uninitialized memory for one strip; on a CPU the next strip reuses it."""
    return SCRATCH.take(shape, like.dtype) if on_cpu(like) else like.new_empty(shape)


def padded_rows(window: Window, geometry: Geometry, first: int, last: int) -> Tensor:
    """Return what result rows `first` to `last` − 1 are made of: `(rows, W + 2 border, C)`."""
    border_px = geometry.border_px
    height, width = geometry.upsampled(window.shape)
    start, end = geometry.span(first, last)
    low, high = geometry.upsampled_rows(first, last, height)
    source = window.rows(low, high) if geometry.size is None else upsampled_rows(window, geometry, low, high)
    padded = scratch((end - start, width + 2 * border_px, source.shape[-1]), source)
    inner = padded[:, border_px : border_px + width]
    inner[max(-start, 0) : min(end, height) - start] = source[max(start, 0) - low : min(end, height) - low]
    zero = geometry.border == "constant"
    for row in (*range(start, 0), *range(height, end)):
        inner[row - start] = 0.0 if zero else source[geometry.inside(row, height) - low]
    for column in outside(width, border_px):
        padded[:, column + border_px] = 0.0 if zero else inner[:, geometry.inside(column, width)]
    return padded


def upsampled_rows(window: Window, geometry: Geometry, low: int, high: int) -> Tensor:
    """Return rows `low` to `high` − 1 of the image upsampled to the geometry's size."""
    height, width = geometry.upsampled(window.shape)
    factors = scale_factors(window.shape, (height, width))
    first, last = source_rows(low, high, window.height) if factors[0] == 2 else (low, high)
    offset = int(first * factors[0])
    maps = as_maps(window.rows(first, last))
    size = [int(side * factor) for side, factor in zip(maps.shape[2:], factors, strict=True)]
    if on_cpu(maps):  # there the factors alone decide which pixels are made of which, so the width can be cropped now
        size[1] = width
    resized = as_maps(scratch((*size, maps.shape[1]), maps))
    if geometry.upsampling == "bilinear":
        aten.upsample_bilinear2d.out(maps, size, False, *factors, out=resized)
    else:
        aten.upsample_nearest2d.out(maps, size, *factors, out=resized)
    return by_pixel(resized)[0, low - offset : high - offset, :width]


def strip_rows(shape: tuple[int, int, int], geometry: Geometry, values_per_px: int) -> int:
    """Return how many rows of the result of an image `(H, W, C)` to compute at a time so that they stay in the cache.

    Args:
        shape: Shape of the image.
        geometry: Geometry of the convolution.
        values_per_px: Values that are held for a pixel of the result while it is computed.
    """
    width = geometry.upsampled(shape)[1]
    rows = limits.strip_values // (width * max(shape[-1] * geometry.stride, values_per_px // geometry.stride))
    return max(1, rows // TILE_PX) * TILE_PX
