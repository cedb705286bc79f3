"""Norms of float32 or bfloat16 maps on a CPU: statistics, multiply-add with ReLU, and their gradients.

Every value is read once for the statistics, and once more for the multiply-add, which writes it; the gradient of both
reads the maps and the result's gradient once for two sums by channel, and once more for what it writes. ReLU costs
nothing more: its mask is computed anew.

Floor: these 3 and 5 passes through memory. The library's own steps, one after the other, are 5 and 12.

Statistics, coefficients and sums are float32 for both types of maps; a result is rounded once, when it is stored.

The kernels are for channels-last maps. A channel of contiguous maps is treated as an image of its own whose pixels are
vectors: their lanes are its channels, which are reduced to one afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stylize.ops.cpu.compile import LANES, Values, compiled
from stylize.ops.cpu.simd import larger, load, splat, store, where_positive
from stylize.ops.moments import Statistics, merged
from stylize.ops.padding import layout
from stylize.system.threads import in_threads

BAND_VALUES = 1 << 16  # of a sum: part of the cache, and few enough for float32
SPAN_PX = 32  # that a group of channels is taken through before the next one: 16 KiB of 128 channels
PIXELS_A_SUM = 1 << 12

Coefficients = Callable[[Statistics], tuple[Tensor, Tensor]]


def is_supported(x: Tensor) -> bool:
    """Return whether `instance_statistics` takes `x`: dense maps `(N, C, H, W)` of more than one pixel.

    Maps of bfloat16 must be vectorized: torch's batch norm would round their statistics.
    """
    if x.dtype != torch.float32:
        return is_vectorized(x) and x.shape[-2:].numel() > 1
    dense = x.dim() == 4 and (x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous())
    return dense and x.shape[-2:].numel() > 1


def is_vectorized(x: Tensor) -> bool:
    """Return whether the compiled functions take `x`, see `is_vectorized_by_pixel`, or channels are whole vectors."""
    by_channel = x.dim() == 4 and x.numel() > 0 and x.shape[-2:].numel() % LANES == 0 and x.is_contiguous()
    return by_channel or is_vectorized_by_pixel(x)


def is_vectorized_by_pixel(x: Tensor) -> bool:
    """Return whether `x` is channels-last maps `(N, C, H, W)` of which every pixel is whole vectors of channels."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return channels_last and x.shape[1] % LANES == 0 and x.numel() > 0


def normalize(
    x: Tensor,
    coefficients: Coefficients,
    parameters: Sequence[Tensor],
    relu: bool,
    dtype: torch.dtype,
    even_below: float = 0.0,
) -> Tensor:
    """See `stylize.ops.normalization.normalize`; for vectorized maps, with a gradient."""
    result: Tensor = _Normalize.apply(x, coefficients, relu, dtype, even_below, *parameters)
    return result


def affine(x: Tensor, factor: Tensor, offset: Tensor, relu: bool, out: Tensor) -> Tensor:
    """See `stylize.ops.normalization.affine`; for vectorized maps, without a gradient."""
    shape = len(x), x.shape[1]
    return Affine(factor.expand(shape), offset.expand(shape), relu)(x, out)


def instance_statistics(x: Tensor) -> Statistics:
    """See `stylize.ops.normalization.instance_statistics`."""
    return Statistics(*_InstanceStatistics.apply(x))


def multiply_add(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Return `factor · x + offset`, each `(N, C)`, with a gradient by torch's batch norm, whose reductions are fast."""
    result: Tensor = _MultiplyAdd.apply(x, factor, offset)
    return result


class Affine(NamedTuple):
    """`y = factor · x + offset`, with ReLU if asked.

    Attributes:
        factor: `(N, C)`.
        offset: `(N, C)`.
        relu: Whether ReLU follows.
    """

    factor: Tensor
    offset: Tensor
    relu: bool = False

    @property
    def _least(self) -> float:
        return 0.0 if self.relu else -math.inf

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Apply to vectorized maps `(N, C, H, W)`.

        The result is written to `out`, of any type of maps, which may be `x`; or to new memory, of the type of `x`.
        """
        result = torch.empty_like(x) if out is None else out
        maps, target = _by_image(x), _by_image(result)
        factor, offset = _by_channel(self.factor, x), _by_channel(self.offset, x)
        threads = torch.get_num_threads()
        in_threads(lambda t: _multiply_add(maps, factor, offset, self._least, t, threads, target), threads)
        return result

    def sums(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of factor and offset, each `(N, C)`, from that of `y`."""
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
        """Return the gradient of `x` from that of `y`, plus `slope · x + constant`, each `(N, C)`."""
        result = torch.empty_like(x)
        maps, towards, target = _by_image(x), _by_image(gradient), _by_image(result)
        factor, offset, added, fixed = (_by_channel(v, x) for v in (self.factor, self.offset, slope, constant))
        threads = torch.get_num_threads()
        in_threads(
            lambda t: _combine(maps, towards, factor, offset, self._least, added, fixed, t, threads, target), threads
        )
        return result


def measure(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over H×W of vectorized maps: `(N, C, H, W)` → two of `(N, C)`.

    Bands of pixels are read twice while they are in the cache, and merged in float64.

    Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, equation 2.1.
    """
    maps = _by_image(x)
    count, pixels, channels = maps.shape
    bands = _bands(maps)
    means, squares = (np.empty((count, bands, channels), np.float32) for _ in range(2))
    threads = torch.get_num_threads()
    in_threads(lambda t: _measure(maps, t, threads, means, squares), threads)
    by_pixel = is_vectorized_by_pixel(x)
    if bands == 1 and by_pixel:
        return torch.from_numpy(means[:, 0]), torch.from_numpy(squares[:, 0] / np.float32(pixels))
    band_px = _band_px(channels)
    sizes = np.minimum(band_px, pixels - band_px * np.arange(bands)) / pixels
    if not by_pixel:  # every lane of a band has its own statistics
        means, squares = (v.reshape(count, bands * LANES, 1) for v in (means, squares))
        sizes, pixels = np.repeat(sizes / LANES, LANES), pixels * LANES
    mean = (sizes[:, None] * means).sum(1, keepdims=True)
    variance = squares.sum(1, dtype=np.float64) / pixels + (sizes[:, None] * (means - mean) ** 2).sum(1)
    return _of_channels(mean, x), _of_channels(variance, x)


class _Normalize(torch.autograd.Function):
    # The small graph from the images' statistics to the coefficients is kept for the backward pass.

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        coefficients: Coefficients,
        relu: bool,
        dtype: torch.dtype,
        even_below: float,
        *parameters: Tensor,
    ) -> Tensor:
        instance = Statistics(*measure(x))
        with torch.enable_grad():
            for statistic in instance:
                statistic.requires_grad_()
            factor, offset = (c.expand(instance.mean.shape) for c in coefficients(instance))
        ctx.instance, ctx.parameters, ctx.affine = instance, parameters, Affine(factor, offset, relu)
        ctx.even_below = even_below
        ctx.save_for_backward(x)
        result: Tensor = ctx.affine(x, torch.empty_like(x, dtype=dtype))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=layout(x))
        leaves = (*ctx.instance, *(p for p in ctx.parameters if p.requires_grad))
        of_leaves = torch.autograd.grad(
            ctx.affine[:2], leaves, ctx.affine.sums(x, gradient), retain_graph=True, materialize_grads=True
        )
        of_mean, of_variance, *of_parameters = of_leaves
        found = iter(of_parameters)
        of_x = None
        if ctx.needs_input_grad[0]:
            pixels = x.shape[2] * x.shape[3]
            slope = of_variance * (2 / pixels)
            of_x = ctx.affine.gradient(x, gradient, slope, of_mean / pixels - slope * ctx.instance.mean)
            variance = ctx.instance.variance.detach()
            if variance.min() < ctx.even_below:
                of_x *= (variance / ctx.even_below).clamp(max=1)[:, :, None, None]
        return of_x, None, None, None, None, *(next(found) if p.requires_grad else None for p in ctx.parameters)


def _image_statistics(image: Tensor) -> Statistics:
    """Return mean and biased variance of every channel of an image by torch's batch norm: `(C, H, W)` → two of `(C,)`.

    Bands of rows are merged: a float32 sum over the millions of pixels of a large picture would be too coarse.
    """
    width = image.shape[-1]
    bands = torch.split(image, max(1, PIXELS_A_SUM // width), dim=1)
    measured = [torch.batch_norm_update_stats(band[None], None, None, 0.0) for band in bands]
    if len(bands) == 1:
        return Statistics(*measured[0])
    means, variances = (torch.stack(values) for values in zip(*measured, strict=True))
    return merged(torch.tensor([[band.shape[1]] for band in bands]), means, variances)


class _InstanceStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if is_vectorized(x):
            mean, variance = measure(x)
        else:
            mean, variance = (torch.stack(values) for values in zip(*map(_image_statistics, x), strict=True))
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.shape[-2] * x.shape[-1]
        of_mean, of_variance = gradients
        factor = of_variance * (2 / count)
        constant = of_mean / count - factor * mean
        return multiply_add(x, factor, constant) if x.dtype == torch.float32 else Affine(factor, constant)(x)


class _MultiplyAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(x, factor)
        return torch.addcmul(offset[:, :, None, None], x, factor[:, :, None, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, factor = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=layout(x))
        zero, one = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        sums = [
            torch.ops.aten.native_batch_norm_backward(
                g[None], image[None], None, None, None, zero, one, True, 0.0, [False, True, True]
            )
            for image, g in zip(x, gradient, strict=True)
        ]
        of_factor, of_offset = (torch.stack([s[i] for s in sums]) for i in (1, 2))
        of_x = gradient * factor[:, :, None, None] if ctx.needs_input_grad[0] else None
        return of_x, of_factor, of_offset


def load_kernels(dtype: torch.dtype = torch.float32) -> None:
    """Load the compiled functions of inference for maps of this type, or compile them."""
    maps = torch.zeros(1, LANES, 1, 2, dtype=dtype).contiguous(memory_format=torch.channels_last)
    Affine(*measure(maps))(maps)


def values_of(x: Tensor) -> Values:
    """View maps as an array of their values, those of bfloat16 by their bits; see `stylize.ops.cpu.simd`."""
    x = x.detach()
    view: Values = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
    return view


def _by_image(x: Tensor) -> Values:
    """View `(N, C, H, W)` as `(N, H·W, C)` where it is channels-last, else, with L lanes, as `(N·C, H·W/L, L)`."""
    if is_vectorized_by_pixel(x):
        return values_of(x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1]))
    return values_of(x.reshape(len(x) * x.shape[1], -1, LANES))


def _by_channel(values: Tensor, x: Tensor) -> Values:
    """Expand `(N, C)` to `(N, 1, C)`, for contiguous maps `x` to `(N·C, 1, L)`."""
    values = (
        values.detach()[:, None]
        if is_vectorized_by_pixel(x)
        else values.detach().reshape(-1, 1, 1).expand(-1, 1, LANES)
    )
    array: Values = values.contiguous().numpy()
    return array


def _total(of_bands: Values, x: Tensor) -> Tensor:
    """Sum `(N, bands, C)` to `(N, C)`, for contiguous maps `x` from `(N·C, bands, L)`."""
    return _of_channels(of_bands.sum(1 if is_vectorized_by_pixel(x) else (1, 2), dtype=np.float64), x)


def _of_channels(values: Values, x: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).reshape(x.shape[:2])


def _bands(maps: Values) -> int:
    return int(-(-maps.shape[1] // _band_px(maps.shape[2])))


@compiled
def _band_px(channels: int) -> int:
    return max(1, BAND_VALUES // channels)


# A thread takes every `threads`-th band, span by span. Each span is summed by itself: so few values lose little in
# float32.


@compiled
def _measure(x: Values, thread: int, threads: int, means: Values, squares: Values) -> None:
    count, pixels, channels = x.shape
    bands, band_px = means.shape[1], _band_px(channels)
    for item in range(thread, count * bands, threads):
        i, band = item // bands, item % bands
        first, last = band * band_px, min((band + 1) * band_px, pixels)
        for c in range(0, channels, LANES):
            store(means, i, band, c, splat(0.0))
            store(squares, i, band, c, splat(0.0))
        for start in range(first, last, SPAN_PX):
            for c in range(0, channels, LANES):
                total, base = splat(0.0), load(x, i, first, c)  # subtracted, for large means would be rounded
                for p in range(start, min(start + SPAN_PX, last)):
                    total = total + (load(x, i, p, c) - base)
                store(means, i, band, c, load(means, i, band, c) + total)
        for c in range(0, channels, LANES):
            mean = load(x, i, first, c) + (1.0 / (last - first)) * load(means, i, band, c)
            store(means, i, band, c, mean)
        for start in range(first, last, SPAN_PX):
            for c in range(0, channels, LANES):
                mean, total = load(means, i, band, c), splat(0.0)
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
                a, b, floor = load(factor, i, 0, c), load(offset, i, 0, c), splat(least)
                for p in range(start, min(start + SPAN_PX, last)):
                    store(result, i, p, c, larger(a * load(x, i, p, c) + b, floor))


@compiled
def _passed(gradient: Any, x: Any, a: Any, b: Any, floor: Any) -> Any:
    """Return the gradient where ReLU passes it, else 0."""
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
            store(of_factor, i, band, c, splat(0.0))
            store(of_offset, i, band, c, splat(0.0))
        for start in range(first, last, SPAN_PX):
            for c in range(0, channels, LANES):
                a, b, floor = load(factor, i, 0, c), load(offset, i, 0, c), splat(least)
                products, total = splat(0.0), splat(0.0)
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
                a, b, floor = load(factor, i, 0, c), load(offset, i, 0, c), splat(least)
                added, fixed = load(slope, i, 0, c), load(constant, i, 0, c)
                for p in range(start, min(start + SPAN_PX, last)):
                    value = load(x, i, p, c)
                    passed = _passed(load(gradient, i, p, c), value, a, b, floor)
                    store(result, i, p, c, a * passed + (added * value + fixed))
