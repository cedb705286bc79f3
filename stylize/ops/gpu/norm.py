"""Norms of channels-last maps on a GPU, without a gradient: statistics, and multiply-add with ReLU.

Maps of float32, bfloat16 or float16 are read once for the statistics, and once more for the multiply-add, which writes
them; statistics and coefficients are float32. Trainings have no need of these kernels: `torch.compile` makes the same
two of plain PyTorch, and their gradients.

Floor: these 3 passes through memory. Plain PyTorch takes 8 for maps of half the size, with copies in float32.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

TILE_VALUES = 4096
TILE_CHANNELS = 128
TILES_A_PROGRAM = 8
MOST_PROGRAMS = 2048  # that share the pixels of a batch: enough for every multiprocessor of large GPUs


@triton.jit
def _measure(
    x,
    means,
    squares,
    pixels,
    channels,
    tiles,
    TILE_PX: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
):
    image, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    c = tl.program_id(2) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    inside = c < channels
    mean = tl.zeros([TILE_CHANNELS], tl.float32)
    square = tl.zeros([TILE_CHANNELS], tl.float32)
    count = 0.0
    base = tl.load(x + image * pixels * channels + c, inside, other=0.0).to(tl.float32)
    for tile in range(tiles):
        first = (part * tiles + tile) * TILE_PX
        p = first + tl.arange(0, TILE_PX)
        mask = (p < pixels)[:, None] & inside[None, :]
        values = tl.load(x + (image * pixels + p[:, None]) * channels + c[None, :], mask, other=0.0)
        values = tl.where(mask, values.to(tl.float32) - base[None, :], 0.0)  # even maps have no variance at all
        here = tl.minimum(tl.maximum(pixels - first, 0), TILE_PX).to(tl.float32)
        mean_here = tl.sum(values, 0) / tl.maximum(here, 1.0)
        away = tl.where(mask, values - mean_here[None, :], 0.0)
        total = tl.maximum(count + here, 1.0)
        between = mean_here - mean
        mean += between * (here / total)
        square += tl.sum(away * away, 0) + between * between * (count * here / total)
        count += here
    place = (image * parts + part) * channels + c
    tl.store(means + place, mean, inside)
    tl.store(squares + place, square, inside)


@triton.jit
def _merge(
    x,
    means,
    squares,
    mean_of_all,
    variance_of_all,
    pixels,
    channels,
    parts,
    part_px,
    TILE_CHANNELS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    inside = c < channels
    mean = tl.zeros([TILE_CHANNELS], tl.float32)
    square = tl.zeros([TILE_CHANNELS], tl.float32)
    count = 0.0
    for part in range(parts):
        place = (image * parts + part) * channels + c
        here = tl.minimum(tl.maximum(pixels - part * part_px, 0), part_px).to(tl.float32)
        total = tl.maximum(count + here, 1.0)
        between = tl.load(means + place, inside, other=0.0) - mean
        mean += between * (here / total)
        square += tl.load(squares + place, inside, other=0.0) + between * between * (count * here / total)
        count += here
    base = tl.load(x + image * pixels * channels + c, inside, other=0.0).to(tl.float32)
    tl.store(mean_of_all + image * channels + c, base + mean, inside)
    tl.store(variance_of_all + image * channels + c, square / pixels, inside)


@triton.jit
def _multiply_add(
    x,
    factor,
    offset,
    result,
    pixels,
    channels,
    RELU: tl.constexpr,
    TILE_PX: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    p = tl.program_id(0) * TILE_PX + tl.arange(0, TILE_PX)
    inside = c < channels
    mask = (p < pixels)[:, None] & inside[None, :]
    place = (image * pixels + p[:, None]) * channels + c[None, :]
    a = tl.load(factor + image * channels + c, inside, other=0.0)
    b = tl.load(offset + image * channels + c, inside, other=0.0)
    values = a[None, :] * tl.load(x + place, mask, other=0.0).to(tl.float32) + b[None, :]
    if RELU:
        values = tl.where(values < 0.0, 0.0, values)  # NaN stays
    tl.store(result + place, values.to(result.dtype.element_ty), mask)


def is_supported(x: Tensor) -> bool:
    """Return whether the kernels take `x`: channels-last maps `(N, C, H, W)` of more than one pixel."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return channels_last and x.numel() > 0 and x.shape[-2:].numel() > 1 and x.shape[-2:].numel() < 2**31


def measure(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over H×W: `(N, C, H, W)` → two of `(N, C)`, float32.

    Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, equation 2.1.
    """
    count, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
    tile_channels, tile_px = _tile(channels)
    parts = max(1, min(triton.cdiv(pixels, tile_px * TILES_A_PROGRAM), MOST_PROGRAMS // count))
    tiles = triton.cdiv(pixels, tile_px * parts)
    means, squares = x.new_empty(2, count, parts, channels, dtype=torch.float32)
    mean, variance = x.new_empty(2, count, channels, dtype=torch.float32)
    columns = triton.cdiv(channels, tile_channels)
    _measure[(count, parts, columns)](x, means, squares, pixels, channels, tiles, tile_px, tile_channels)
    _merge[(count, columns)](x, means, squares, mean, variance, pixels, channels, parts, tiles * tile_px, tile_channels)
    return mean, variance


def affine(x: Tensor, factor: Tensor, offset: Tensor, relu: bool, out: Tensor) -> Tensor:
    """Write `factor · x + offset`, each `(N or 1, C)`, to `out`, channels-last of any type, and return it."""
    count, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
    tile_channels, tile_px = _tile(channels)
    factor, offset = (t.float().expand(count, channels).contiguous() for t in (factor, offset))
    grid = triton.cdiv(pixels, tile_px), count, triton.cdiv(channels, tile_channels)
    _multiply_add[grid](x, factor, offset, out, pixels, channels, relu, tile_px, tile_channels)
    return out


def _tile(channels: int) -> tuple[int, int]:
    """Return channels and pixels of a tile."""
    tile_channels = min(TILE_CHANNELS, triton.next_power_of_2(channels))
    return tile_channels, TILE_VALUES // tile_channels
