"""What a norm does with maps on a CPU, compiled: statistics, multiply-add with ReLU, and their gradients.

Every value is read once for the statistics, and once more for the multiply-add, which writes it; the gradient of both
reads the maps and the result's gradient once for two sums by channel, and once more for what it writes. ReLU costs
nothing more: its mask is computed anew.

Floor: these 3 and 5 passes through memory. The library's own steps, one after the other, are 5 and 12.

The functions are of channels-last maps. A contiguous channel goes through them as a picture of its own, whose pixels
are as many values as a vector has, and these its channels; what they have by channel is brought together afterwards.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stylize.ops.cpu.matmul import Values, compiled
from stylize.ops.cpu.simd import LANES, everywhere, larger, load, store, where_positive
from stylize.system.threads import in_threads

BAND_VALUES = 1 << 16  # what a sum goes over: a share of the cache, and few enough for float32
SPAN_PX = 32  # what one group of channels is taken through before the next one: of 128 channels 16 KiB


class Affine(NamedTuple):
    """`y = factor · x + offset`, and ReLU after it or not.

    Attributes:
        factor: By image and channel, `(N, C)`.
        offset: The same.
        relu: Whether nothing below 0 comes out.
    """

    factor: Tensor
    offset: Tensor
    relu: bool = False

    @property
    def _least(self) -> float:
        return 0.0 if self.relu else -math.inf

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Maps `(N, C, H, W)`, see `suits`, → the same shape and layout; into `out`, which may be `x`."""
        result = torch.empty_like(x) if out is None else out
        maps, target = _by_image(x), _by_image(result)
        factor, offset = _by_channel(self.factor, x), _by_channel(self.offset, x)
        threads = torch.get_num_threads()
        in_threads(lambda t: _multiply_add(maps, factor, offset, self._least, t, threads, target), threads)
        return result

    def sums(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the factor and of the offset from that of `y`: each `(N, C)`."""
        maps, towards = _by_image(x), _by_image(gradient)
        factor, offset = _by_channel(self.factor, x), _by_channel(self.offset, x)
        bands = _bands(maps)
        of_factor, of_offset = (np.empty((len(maps), bands, maps.shape[2]), np.float32) for _ in range(2))
        threads = torch.get_num_threads()
        in_threads(
            lambda t: _sum(maps, towards, factor, offset, self._least, t, threads, of_factor, of_offset), threads
        )
        return _total(of_factor, x), _total(of_offset, x)

    def gradient(self, x: Tensor, gradient: Tensor, slope: Tensor, constant: Tensor) -> Tensor:
        """The gradient of `x` from that of `y`, and besides `slope · x + constant`, each `(N, C)`."""
        result = torch.empty_like(x)
        maps, towards, target = _by_image(x), _by_image(gradient), _by_image(result)
        factor, offset, added, fixed = (_by_channel(v, x) for v in (self.factor, self.offset, slope, constant))
        threads = torch.get_num_threads()
        in_threads(
            lambda t: _combine(maps, towards, factor, offset, self._least, added, fixed, t, threads, target), threads
        )
        return result


def suits(x: Tensor) -> bool:
    """Whether these functions take `x`: maps `(N, C, H, W)` of float32, see `suits_by_pixel`, or contiguous ones whose
    channels are whole vectors.
    """
    by_channel = x.dim() == 4 and x.numel() > 0 and x.shape[-2:].numel() % LANES == 0 and x.is_contiguous()
    return by_channel or suits_by_pixel(x)


def suits_by_pixel(x: Tensor) -> bool:
    """Whether `x` is channels-last maps `(N, C, H, W)` of which every pixel is whole vectors of channels."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return channels_last and x.shape[1] % LANES == 0 and x.numel() > 0


def measure(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over H×W: `(N, C, H, W)`, see `suits`, → two of `(N, C)`.

    By bands of pixels, each twice while it is in the cache, which are merged in float64.

    Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, equation 2.1.
    """
    maps = _by_image(x)
    count, pixels, channels = maps.shape
    bands = _bands(maps)
    means, squares = (np.empty((count, bands, channels), np.float32) for _ in range(2))
    threads = torch.get_num_threads()
    in_threads(lambda t: _measure(maps, t, threads, means, squares), threads)
    by_pixel = suits_by_pixel(x)
    if bands == 1 and by_pixel:
        return torch.from_numpy(means[:, 0]), torch.from_numpy(squares[:, 0] / np.float32(pixels))
    band_px = _band_px(channels)
    sizes = np.minimum(band_px, pixels - band_px * np.arange(bands)) / pixels
    if not by_pixel:  # every lane of a band has statistics of its own
        means, squares = (v.reshape(count, bands * LANES, 1) for v in (means, squares))
        sizes, pixels = np.repeat(sizes / LANES, LANES), pixels * LANES
    mean = (sizes[:, None] * means).sum(1, keepdims=True)
    variance = squares.sum(1, dtype=np.float64) / pixels + (sizes[:, None] * (means - mean) ** 2).sum(1)
    return _of_channels(mean, x), _of_channels(variance, x)


def load_compiled_functions() -> None:
    """Load what paints, or compile it: its time and memory are then not part of the first picture's."""
    maps = torch.zeros(1, LANES, 1, 2).contiguous(memory_format=torch.channels_last)
    Affine(*measure(maps))(maps)


def _by_image(x: Tensor) -> Values:
    """A view: `(N, C, H, W)`, channels-last, → `(N, H·W, C)`; contiguous, with L lanes: → `(N·C, H·W/L, L)`."""
    x = x.detach()
    if suits_by_pixel(x):
        view: Values = x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1]).numpy()
    else:
        view = x.reshape(len(x) * x.shape[1], -1, LANES).numpy()
    return view


def _by_channel(values: Tensor, x: Tensor) -> Values:
    """`(N, C)` → `(N, 1, C)`, of contiguous maps `x` → `(N·C, 1, L)`."""
    values = values.detach()[:, None] if suits_by_pixel(x) else values.detach().reshape(-1, 1, 1).expand(-1, 1, LANES)
    array: Values = values.contiguous().numpy()
    return array


def _total(of_bands: Values, x: Tensor) -> Tensor:
    """`(N, bands, C)` → `(N, C)`, of contiguous maps `x` from `(N·C, bands, L)`."""
    return _of_channels(of_bands.sum(1 if suits_by_pixel(x) else (1, 2), dtype=np.float64), x)


def _of_channels(values: Values, x: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).reshape(x.shape[:2])


def _bands(maps: Values) -> int:
    return int(-(-maps.shape[1] // _band_px(maps.shape[2])))


@compiled
def _band_px(channels: int) -> int:
    return max(1, BAND_VALUES // channels)


# A thread takes every so many-th band, whose pixels it goes through span by span. A span has sums of its own, which are
# then added: so few values in a row lose little.


@compiled
def _measure(x: Values, thread: int, threads: int, means: Values, squares: Values) -> None:
    count, pixels, channels = x.shape
    bands, band_px = means.shape[1], _band_px(channels)
    for item in range(thread, count * bands, threads):
        i, band = item // bands, item % bands
        first, last = band * band_px, min((band + 1) * band_px, pixels)
        for c in range(0, channels, LANES):
            store(means, i, band, c, everywhere(0.0))
            store(squares, i, band, c, everywhere(0.0))
        for start in range(first, last, SPAN_PX):
            for c in range(0, channels, LANES):
                total, base = everywhere(0.0), load(x, i, first, c)  # without it, large means would round
                for p in range(start, min(start + SPAN_PX, last)):
                    total = total + (load(x, i, p, c) - base)
                store(means, i, band, c, load(means, i, band, c) + total)
        for c in range(0, channels, LANES):
            mean = load(x, i, first, c) + (1.0 / (last - first)) * load(means, i, band, c)
            store(means, i, band, c, mean)
        for start in range(first, last, SPAN_PX):
            for c in range(0, channels, LANES):
                mean, total = load(means, i, band, c), everywhere(0.0)
                for p in range(start, min(start + SPAN_PX, last)):
                    away = load(x, i, p, c) - mean
                    total = total + away * away
                store(squares, i, band, c, load(squares, i, band, c) + total)


@compiled
def _multiply_add(
    x: Values, factor: Values, offset: Values, least: float, thread: int, threads: int, result: Values
) -> None:
    count, pixels, channels = x.shape
    band_px = _band_px(channels)
    bands = -(-pixels // band_px)
    for item in range(thread, count * bands, threads):
        i, band = item // bands, item % bands
        last = min((band + 1) * band_px, pixels)
        for start in range(band * band_px, last, SPAN_PX):
            for c in range(0, channels, LANES):
                a, b, floor = load(factor, i, 0, c), load(offset, i, 0, c), everywhere(least)
                for p in range(start, min(start + SPAN_PX, last)):
                    store(result, i, p, c, larger(a * load(x, i, p, c) + b, floor))


@compiled
def _passed(gradient: Any, x: Any, a: Any, b: Any, floor: Any) -> Any:
    """What ReLU lets through of the gradient."""
    return where_positive(gradient, (a * x + b) - floor)


@compiled
def _sum(
    x: Values,
    gradient: Values,
    factor: Values,
    offset: Values,
    least: float,
    thread: int,
    threads: int,
    of_factor: Values,
    of_offset: Values,
) -> None:
    count, pixels, channels = x.shape
    bands, band_px = of_factor.shape[1], _band_px(channels)
    for item in range(thread, count * bands, threads):
        i, band = item // bands, item % bands
        first, last = band * band_px, min((band + 1) * band_px, pixels)
        for c in range(0, channels, LANES):
            store(of_factor, i, band, c, everywhere(0.0))
            store(of_offset, i, band, c, everywhere(0.0))
        for start in range(first, last, SPAN_PX):
            for c in range(0, channels, LANES):
                a, b, floor = load(factor, i, 0, c), load(offset, i, 0, c), everywhere(least)
                products, total = everywhere(0.0), everywhere(0.0)
                for p in range(start, min(start + SPAN_PX, last)):
                    value = load(x, i, p, c)
                    passed = _passed(load(gradient, i, p, c), value, a, b, floor)
                    products = products + passed * value
                    total = total + passed
                store(of_factor, i, band, c, load(of_factor, i, band, c) + products)
                store(of_offset, i, band, c, load(of_offset, i, band, c) + total)


@compiled
def _combine(
    x: Values,
    gradient: Values,
    factor: Values,
    offset: Values,
    least: float,
    slope: Values,
    constant: Values,
    thread: int,
    threads: int,
    result: Values,
) -> None:
    count, pixels, channels = x.shape
    band_px = _band_px(channels)
    bands = -(-pixels // band_px)
    for item in range(thread, count * bands, threads):
        i, band = item // bands, item % bands
        last = min((band + 1) * band_px, pixels)
        for start in range(band * band_px, last, SPAN_PX):
            for c in range(0, channels, LANES):
                a, b, floor = load(factor, i, 0, c), load(offset, i, 0, c), everywhere(least)
                added, fixed = load(slope, i, 0, c), load(constant, i, 0, c)
                for p in range(start, min(start + SPAN_PX, last)):
                    value = load(x, i, p, c)
                    passed = _passed(load(gradient, i, p, c), value, a, b, floor)
                    store(result, i, p, c, a * passed + (added * value + fixed))
