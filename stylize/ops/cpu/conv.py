"""Convolutions of float32 maps on CPUs: in channels-last strips, those of many channels by Winograd's algorithm.

Upsampled or padded maps exist for a strip of rows only (in training for one image), never as a whole, and a strip is
still in the processor's cache when it is convolved.

Floor: a convolution of C channels to K with a kernel of k×k takes C·K·k² multiplications a pixel. Winograd's
algorithm F(4×4, 3×3) takes C·K·36/16 in place of 9·C·K, and additions and copies that grow with C + K: it pays for
many channels. On other devices, and in bfloat16, the libraries' own convolutions are the better ones.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stylize.ops.cpu.compile import LANES, PANEL, Indices
from stylize.ops.cpu.matmul import in_panels, multiply
from stylize.ops.cpu.winograd import PaddedImages, Winograd, winograd_of
from stylize.ops.geometry import Geometry, Window, scale_factors, whole
from stylize.ops.limits import limits
from stylize.ops.padding import outside
from stylize.ops.rows import as_maps, by_pixel, padded_rows, scratch, strip_rows, upsampled_rows
from stylize.system.threads import in_threads

aten = torch.ops.aten

FEW_CHANNELS = 8  # output channels for each input channel, from which the padded maps are small beside the result
WINOGRAD_PAYS_FROM = 16 * 16  # input times output channels; below, the transforms cost more than they save


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool) -> Tensor:
    """See `stylize.ops.convolution.conv2d`; upsampling with a gradient is bilinear."""
    result: Tensor = _Conv2d.apply(x, weight, bias, geometry, relu, torch.is_grad_enabled())
    return result


def conv2d_rows(
    window: Window, weight: Tensor, bias: Tensor | None, geometry: Geometry, rows: tuple[int, int], out: Tensor | None
) -> Tensor:
    """See `stylize.ops.convolution.conv2d_rows`."""
    first, last = rows
    if out is None:
        out = scratch((last - first, geometry.result_size(window.shape)[1], len(weight)), weight)
    _convolve_strips(window, _kernel(weight, window.shape[-1], geometry.stride), bias, geometry, False, rows, out)
    return as_maps(out)


class _Conv2d(torch.autograd.Function):
    # The input is saved as it came, before upsampling and padding, and only where the weights are trained.

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool, trains: bool
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        result = _Conv2d._convolved(x, weight, bias, geometry, relu, trains)
        ctx.geometry, ctx.shape = geometry, x.shape
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, result if relu else None)
        return result

    @staticmethod
    def _convolved(
        x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool, trains: bool
    ) -> Tensor:
        kernel = _kernel(weight, x.shape[1], geometry.stride)
        height, width = geometry.result_size(x.shape[2:])
        small = len(x) == 1 or x.shape[1] * FEW_CHANNELS <= len(weight)  # the padded maps, beside the result
        if trains and isinstance(kernel, _LibraryConv) and small:  # without strips their results need no copy
            padded = [padded_rows(whole(image), geometry, 0, height) for image in by_pixel(x)]
            convolved = kernel(torch.stack(padded) if len(x) > 1 else padded[0][None], bias)
            return convolved.relu_() if relu else convolved
        shape = len(x), len(weight), height, width
        result = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        if isinstance(kernel, Winograd) and geometry.size is None:
            kernel.convolve(_padded_images(by_pixel(x), geometry), bias, by_pixel(result), relu)
            return result
        for image, out in zip(by_pixel(x), by_pixel(result), strict=True):
            _convolve_strips(whole(image), kernel, bias, geometry, relu, (0, height), out)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rectified = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        kernel = _kernel(weight, ctx.shape[1], ctx.geometry.stride)
        if rectified is not None and (any(ctx.needs_input_grad[1:]) or not isinstance(kernel, Winograd)):
            gradient, rectified = aten.threshold_backward(gradient, rectified, 0), None
        gradient = by_pixel(gradient)
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        x_gradient = _input_gradient(gradient, ctx.shape, kernel, ctx.geometry, rectified) if needs_x else None
        weight_gradient = (
            _weight_gradient(gradient, by_pixel(x), weight, kernel, ctx.geometry) if needs_weight else None
        )
        bias_gradient = gradient.sum((0, 1, 2)) if needs_bias else None
        return x_gradient, weight_gradient, bias_gradient, None, None, None


def _input_gradient(
    gradient: Tensor, shape: torch.Size, kernel: _LibraryConv | Winograd, geometry: Geometry, rectified: Tensor | None
) -> Tensor:
    n, channels, height, width = shape
    size = _padded_size((height, width, channels), geometry)

    def for_images(some: slice) -> Tensor:
        if rectified is not None and isinstance(kernel, Winograd):
            padded = kernel.convolve_back(gradient[some], size, by_pixel(rectified)[some])
        else:
            padded = kernel.convolve_back(gradient[some], size)
        return _unpadded_(padded, geometry, (height, width))

    groups = _groups(n, math.prod(size))
    if len(groups) == 1:
        return for_images(groups[0]).permute(0, 3, 1, 2)
    result = gradient.new_empty(n, height, width, channels)
    for some in groups:
        result[some] = for_images(some)
    return result.permute(0, 3, 1, 2)


def _weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, kernel: _LibraryConv | Winograd, geometry: Geometry
) -> Tensor:
    result = torch.zeros_like(weight)
    if isinstance(kernel, Winograd) and geometry.size is None:
        return result.copy_(kernel.weight_gradient(kernel.tile_products(_padded_images(x, geometry), gradient)))
    if isinstance(kernel, Winograd):
        totals = None
        for image, g in zip(x, gradient, strict=True):
            totals = kernel.tile_products(_padded_strip(whole(image), geometry, 0, len(g)), g[None], totals)
        return result if totals is None else result.copy_(kernel.weight_gradient(totals))
    for image, g in zip(x, gradient, strict=True):
        result += kernel.weight_gradient(padded_rows(whole(image), geometry, 0, len(g)), g)
    return result


def _groups(count: int, values: int) -> list[slice]:
    """Divide `count` images of so many values each into groups that stay in the cache."""
    step = max(1, limits.strip_values // values)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def _convolve_strips(
    window: Window,
    kernel: _LibraryConv | Winograd,
    bias: Tensor | None,
    geometry: Geometry,
    relu: bool,
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    """Write rows `rows[0]` to `rows[1]` − 1 of the result to `out`, as many at a time as stay in the cache."""
    first, last = rows
    strip_px = strip_rows(window.shape, geometry, kernel.values_per_px)
    if isinstance(kernel, Winograd) and geometry.size is None:
        strip_px = last - first  # the padded maps are read in place
    for start in range(first, last, strip_px):
        end = min(last, start + strip_px)
        target = out[start - first : end - first]
        if isinstance(kernel, Winograd):
            kernel.convolve(_padded_strip(window, geometry, start, end), bias, target[None], relu)
        else:
            kernel.convolve(padded_rows(window, geometry, start, end), bias, target)
            if relu:
                target.relu_()


def _padded_size(shape: tuple[int, int, int], geometry: Geometry) -> tuple[int, int, int]:
    height, width = geometry.upsampled(shape)
    return height + 2 * geometry.border_px, width + 2 * geometry.border_px, shape[-1]


def _padded_strip(window: Window, geometry: Geometry, first: int, last: int) -> PaddedImages:
    """Return what `padded_rows` returns, as indices into the image in place of a copy."""
    height, width = geometry.upsampled(window.shape)
    low, high = geometry.upsampled_rows(first, last, height)
    source = window.rows(low, high) if geometry.size is None else upsampled_rows(window, geometry, low, high)
    rows = _origins(geometry, *geometry.span(first, last), height, low)
    columns = _origins(geometry, -geometry.border_px, width + geometry.border_px, width, 0)
    return PaddedImages(source.contiguous()[None], rows, columns)


def _padded_images(images: Tensor, geometry: Geometry) -> PaddedImages:
    """Return whole images `(N, H, W, C)`, contiguous, with their padding as indices."""
    border_px = geometry.border_px
    rows, columns = (
        _origins(geometry, -border_px, length + border_px, length, 0) for length in (images.shape[1], images.shape[2])
    )
    return PaddedImages(images, rows, columns)


@lru_cache(256)
def _origins(geometry: Geometry, start: int, end: int, length: int, low: int) -> Indices:
    """Return the sources of padded positions `start` to `end` − 1, counted from `low`; −1 for zeros."""
    zero = geometry.border == "constant"
    outer = {p: -1 if zero else geometry.inside(p, length) - low for p in (*range(start, 0), *range(length, end))}
    return np.array([outer.get(position, position - low) for position in range(start, end)])


def _unpadded_(gradient: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """Turn the gradient of padded images, `(N, H + 2 border, W + 2 border, C)`, into that of images of this size."""
    border_px = geometry.border_px
    height, width = geometry.upsampled(size)
    inner = gradient[:, border_px : border_px + height, border_px : border_px + width]
    if geometry.border != "constant":
        columns = gradient[:, :, border_px : border_px + width]
        for column in outside(width, border_px):
            columns[:, :, geometry.inside(column, width)] += gradient[:, :, column + border_px]
        for row in outside(height, border_px):
            inner[:, geometry.inside(row, height)] += columns[:, row + border_px]
    if geometry.size is None:
        return inner
    factors = scale_factors(size, geometry.size)
    full = _grown(inner, int(size[0] * factors[0]), int(size[1] * factors[1])).permute(0, 3, 1, 2)
    shape = (*full.shape[:2], *size)
    return by_pixel(aten.upsample_bilinear2d_backward(full, full.shape[2:], shape, False, *factors))


def _grown(images: Tensor, height: int, width: int, offset: int = 0) -> Tensor:
    """Put zeros around images: `(N, H, W, C)` → `(N, height, width, C)`, `offset` px from the upper left corner."""
    if images.shape[1:3] == (height, width):
        return images.contiguous()
    count, rows, columns, channels = images.shape
    grown = images.new_zeros(count, height, width, channels)
    grown[:, offset : offset + rows, offset : offset + columns] = images
    return grown


class _LibraryConv:
    """A convolution by torch's library.

    Args:
        weight: `(K, C, k, k)`, or depthwise `(C, 1, k, k)`.
        stride: 1 or 2.
        groups: 1, or C.

    Attributes:
        values_per_px: Values that are held for a pixel of the result while it is computed.
    """

    def __init__(self, weight: Tensor, stride: int, groups: int = 1) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.stride = stride
        self.groups = groups
        self.values_per_px = len(weight)

    def __call__(self, padded: Tensor, bias: Tensor | None) -> Tensor:
        """`(N, H, W, C)` → `(N, K, H', W')`."""
        return F.conv2d(padded.permute(0, 3, 1, 2), self.weight, bias, self.stride, groups=self.groups)

    def convolve(self, padded: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """`(H, W, C)` → `(H', W', K)`."""
        out.copy_(by_pixel(self(padded[None], bias))[0])

    def convolve_back(self, gradient: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Return the gradient of padded images of `size` `(H, W, C)` from that of the result, `(N, H', W', K)`."""
        return by_pixel(self._gradient(gradient, gradient.new_empty(1).expand(len(gradient), *size), 0))

    def weight_gradient(self, padded: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the weights, from a padded image and the gradient of its result."""
        return self._gradient(gradient[None], padded[None], 1)

    def _gradient(self, gradient: Tensor, padded: Tensor, which: int) -> Tensor:
        asked = [which == i for i in range(3)]
        found: Tensor = aten.convolution_backward(
            gradient.permute(0, 3, 1, 2), padded.permute(0, 3, 1, 2), self.weight, None, [self.stride] * 2, [0, 0],
            [1, 1], False, [0, 0], self.groups, asked,
        )[which]  # fmt: skip
        return found


class _DirectConv(_LibraryConv):
    """The same, but with a gradient of the weights of its own: the library's is slow in this layout."""

    def weight_gradient(self, padded: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the weights, `(K, C, k, k)`."""
        outputs, inputs, kernel_px, _ = self.weight.shape
        if self.stride == 1 and outputs < inputs:  # unfold the side with fewer channels
            height, width = padded.shape[:2]
            frame_px = kernel_px - 1
            (framed,) = _grown(gradient[None], height + frame_px, width + frame_px, frame_px)
            flipped = _window_products(padded, framed, kernel_px, 1)
            return flipped.flip(1, 2).permute(3, 0, 1, 2)
        return _window_products(gradient, padded, kernel_px, self.stride).permute(0, 3, 1, 2)


class _NarrowConv(_DirectConv):
    """A large kernel with few output channels, which would leave most lanes of a vector empty.

    Each column of the kernel becomes a convolution with output channels of its own; these are summed, each moved by a
    pixel.
    """

    LANES = 32

    def __init__(self, weight: Tensor, stride: int) -> None:
        super().__init__(weight, stride)
        outputs, inputs, kernel_px, _ = weight.shape
        by_column = weight.permute(3, 0, 1, 2).reshape(kernel_px * outputs, inputs, kernel_px, 1)
        empty = weight.new_zeros(self.LANES - len(by_column), *by_column.shape[1:])
        self.by_column = torch.cat([by_column, empty]).contiguous(memory_format=torch.channels_last)
        self.values_per_px = self.LANES

    @classmethod
    def is_supported(cls, weight: Tensor, stride: int) -> bool:
        """Return whether this is faster than a direct convolution."""
        outputs, _, kernel_px, _ = weight.shape
        return stride == 1 and kernel_px > 3 and outputs * kernel_px <= cls.LANES

    def __call__(self, padded: Tensor, bias: Tensor | None) -> Tensor:
        outputs, _, kernel_px, _ = self.weight.shape
        parts = by_pixel(F.conv2d(padded.permute(0, 3, 1, 2), self.by_column))
        width = parts.shape[2] - kernel_px + 1
        result = parts[:, :, :width, :outputs] + (0 if bias is None else bias)
        for column in range(1, kernel_px):
            result += parts[:, :, column : column + width, column * outputs : (column + 1) * outputs]
        return result.permute(0, 3, 1, 2)


def _window_products(pixels: Tensor, source: Tensor, kernel_px: int, stride: int) -> Tensor:
    """Sum over pixels the products of their values and the window of the source there: `(H, W, A)`, … → `(A, k, k, C)`.

    A row of a window is contiguous in the source, so windows are views.
    """
    (height, width, values), (_, source_width, channels) = pixels.shape, source.shape
    side, row = kernel_px * channels, source_width * channels
    if in_panels(side) > side:  # panels reach beyond the last window
        source = F.pad(source.flatten(), (0, in_panels(side) - side))
    windows = source.as_strided(
        (kernel_px, height, in_panels(side) // PANEL, width, PANEL), (row, stride * row, PANEL, stride * channels, 1)
    )
    threads = min(torch.get_num_threads(), height)
    totals = pixels.new_zeros(threads, kernel_px, values, in_panels(side))
    rows = max(1, limits.windowed_values // (width * (values + channels)))

    def add_part(thread: int) -> None:
        last = height * (thread + 1) // threads
        for first in range(height * thread // threads, last, rows):
            some = slice(first, min(first + rows, last))
            of_pixels = pixels[some].transpose(1, 2)
            for own, total in zip(windows[:, some], totals[thread], strict=True):
                multiply(of_pixels, own, total.expand(len(of_pixels), -1, -1), add=True)

    in_threads(add_part, threads)
    total = totals.sum(0)[..., :side].transpose(0, 1)
    return total.reshape(values, kernel_px, kernel_px, channels)


def _kernel(weight: Tensor, channels: int, stride: int) -> _LibraryConv | Winograd:
    outputs, inputs, kernel_px, _ = weight.shape
    if inputs != channels:
        return _LibraryConv(weight, stride, groups=channels)
    if weight.dtype != torch.float32:
        return _LibraryConv(weight, stride)
    if kernel_px == 3 and stride == 1 and outputs * inputs >= WINOGRAD_PAYS_FROM and min(outputs, inputs) >= LANES:
        return winograd_of(weight)
    return _NarrowConv(weight, stride) if _NarrowConv.is_supported(weight, stride) else _DirectConv(weight, stride)
