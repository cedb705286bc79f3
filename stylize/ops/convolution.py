"""Convolutions of float32 maps on CPUs: in channels-last strips, those of many channels by Winograd's algorithm.

A convolution here is all that one layer of a network does before its norm: enlarge the maps (where it is told to), put
a border around them, convolve. Nothing of the enlarged or bordered maps outlives a strip of rows (in training an
image), so neither stands in memory as a whole, and a strip is still in the processor's cache when it is convolved.

Floor: a convolution of C channels to K with a kernel of k×k takes C·K·k² multiplications a pixel. Winograd's
algorithm F(4×4, 3×3) takes C·K·36/16 in place of 9·C·K, and additions and copies that grow with C + K: it pays for
many channels. On other devices, and in bfloat16, the libraries' own convolutions are the better ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stylize.ops.cpu.matmul import PANEL, in_panels, multiply
from stylize.ops.cpu.simd import LANES
from stylize.ops.cpu.winograd import TILE_PX, Bordered, Indices, Winograd, winograd_of
from stylize.system.scratch import SCRATCH
from stylize.system.threads import in_threads

Border = Literal["reflect", "replicate", "constant"]
Enlargement = Literal["bilinear", "nearest"]

aten = torch.ops.aten

STRIP_VALUES = 1 << 20  # of bordered maps or of the result: 4 MiB
WINDOWED_VALUES = 1 << 18
FEW_CHANNELS = 8  # times as many come out
WINOGRAD_PAYS_FROM = 16 * 16  # products of channels; below, the transforms cost more than they save


class Geometry(NamedTuple):
    """What a convolution does with its maps.

    Attributes:
        kernel_px: Side of the kernel, odd.
        stride: 1 or 2.
        border: What stands beyond the edges, `kernel_px // 2` wide; see `torch.nn.functional.pad`.
        size: Height and width to which the maps are enlarged first (see `upsample_to`), or None.
        enlargement: How; `convolve_rows` knows both, `padded_conv2d` the bilinear one.
    """

    kernel_px: int
    stride: int
    border: Border
    size: tuple[int, int] | None = None
    enlargement: Enlargement = "bilinear"

    @property
    def border_px(self) -> int:
        """Width of the border."""
        return self.kernel_px // 2

    def enlarged(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of an image `(H, W, …)` of this shape after enlarging."""
        return self.size if self.size is not None else (shape[0], shape[1])

    def result_size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of the result for an image `(H, W, …)`."""
        height, width = self.enlarged(shape)
        return (height - 1) // self.stride + 1, (width - 1) // self.stride + 1

    def span(self, first: int, last: int) -> tuple[int, int]:
        """From which to before which row of the enlarged image, or beyond it, the result's rows are made."""
        return first * self.stride - self.border_px, (last - 1) * self.stride + self.border_px + 1

    def enlarged_rows(self, first: int, last: int, height: int) -> tuple[int, int]:
        """The same with what stands beyond traced back to rows of the enlarged image, of this height."""
        start, end = self.span(first, last)
        outer = [self.inside(row, height) for row in (*range(start, 0), *range(height, end))]
        return min(max(start, 0), *outer, height), 1 + max(min(end, height) - 1, *outer, 0)

    def needed_rows(self, first: int, last: int, height: int) -> tuple[int, int]:
        """From which to before which row of an image of this height the rows `first` to `last` − 1 of the result need.

        >>> Geometry(3, 1, "reflect").needed_rows(4, 6, 9), Geometry(3, 2, "reflect").needed_rows(0, 2, 9)
        ((3, 7), (0, 4))
        >>> Geometry(3, 1, "reflect", size=(18, 18)).needed_rows(4, 6, 9)
        (0, 5)
        """
        if self.size is None:
            return self.enlarged_rows(first, last, height)
        low, high = self.enlarged_rows(first, last, self.size[0])
        return _sources(low, high, height) if self.size[0] > height else (low, high)

    def inside(self, position: int, length: int) -> int:
        """The position in `0 … length − 1` whose value stands at a position beyond them."""
        if self.border == "reflect":
            return abs(length - 1 - abs(length - 1 - position))
        return min(max(position, 0), length - 1)


class Window(NamedTuple):
    """Some rows of an image.

    Attributes:
        values: `(rows, W, C)`.
        first: Where they begin in the image.
        height: How many rows the image has.
    """

    values: Tensor
    first: int
    height: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of the image, `(H, W, C)`."""
        return self.height, self.values.shape[1], self.values.shape[2]

    def rows(self, first: int, last: int) -> Tensor:
        """The rows `first` to `last` − 1 of the image, which must be among these: `(rows, W, C)`."""
        return self.values[first - self.first : last - self.first]


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `padded_conv2d` is right for these: float32 on a CPU, and no compiler at work, which has its own ways."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    fits = x.dim() == 4 and (x.shape[1] == weight.shape[1] or weight.shape[:2] == (x.shape[1], 1))
    return plain and fits and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def padded_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, *, relu: bool = False) -> Tensor:
    """Enlarge, border and convolve.

    Args:
        x: `(N, C, H, W)`, float32 on a CPU.
        weight: `(K, C, k, k)`; `(C, 1, k, k)` for a depthwise convolution, each channel with a kernel of its own.
        bias: `(K,)`, or None.
        geometry: How.
        relu: Whether nothing below 0 comes out.

    Returns:
        `(N, K, H', W')` in channels-last layout; the same numbers as of `torch.nn.functional.pad` and `conv2d` but
        for rounding (with Winograd's algorithm about 1e-5 of the largest).
    """
    result: Tensor = _PaddedConv2d.apply(x, weight, bias, geometry, relu, torch.is_grad_enabled())
    return result


def convolve_rows(
    window: Window,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    rows: tuple[int, int],
    out: Tensor | None = None,
) -> Tensor:
    """Some rows of the enlarged, bordered and convolved image, without a gradient; on any device, in any precision.

    Args:
        window: The rows of the image that these need (`Geometry.needed_rows`).
        weight: See `padded_conv2d`.
        bias: See `padded_conv2d`.
        geometry: How.
        rows: From which to before which row of the result.
        out: Where the result goes, `(rows, W', K)`; None: it is made. Where the image is enlarged or the stride is 2,
            each row may lie over those that only rows before it need.

    Returns:
        `(1, K, rows, W')` in channels-last layout: the same numbers as of the whole image, but for rounding.
    """
    channels = window.shape[-1]
    first, last = rows
    if not suits(_as_maps(window.values), weight):
        bordered = _as_maps(_bordered(window, geometry, first, last))
        convolved = F.conv2d(bordered, weight, bias, geometry.stride, groups=channels // weight.shape[1])
        return convolved if out is None else _as_maps(out.copy_(_by_pixel(convolved)[0]))
    if out is None:
        out = _room((last - first, geometry.result_size(window.shape)[1], len(weight)), weight)
    _convolve_strips(window, _kernel(weight, channels, geometry.stride), bias, geometry, False, rows, out)
    return _as_maps(out)


def upsample_to(x: Tensor, height: int, width: int) -> Tensor:
    """Double the size bilinearly and crop to `height`×`width`, at most one row and column less.

    A side that is right already stays. Resize, then convolve: a transposed convolution of kernel 3 and stride 2
    overlaps unevenly and leaves a checkerboard.

    Source: Odena et al. 2016, Deconvolution and checkerboard artifacts.
    Differs: bilinear in place of nearest-neighbour. A convolution of nearest-neighbour values has weights of its own
        for even and odd pixels, and the network paints a weave of two and four px with them.
    """
    factors = _factors(x.shape[-2:], (height, width))
    resized = F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)
    return resized[..., :height, :width]


def _factors(shape: Sequence[int], size: tuple[int, int]) -> tuple[float, float]:
    height, width = (2.0 if side < target else 1.0 for side, target in zip(shape[:2], size, strict=True))
    return height, width


def replicate_border(x: Tensor) -> Tensor:
    """One more pixel on every side, the same as its neighbour: `(…, H, W)` to `(…, H + 2, W + 2)`.

    Differs: from `torch.nn.ReplicationPad2d` in its backward pass alone, which torch.compile cannot lower on CPUs.
    """
    bordered: Tensor = _ReplicateBorder.apply(x)
    return bordered


class _ReplicateBorder(torch.autograd.Function):
    # What torch.cat and slices would do by themselves, in one copy each way: theirs make two, and for the gradient
    # four, each filled with zeros first.
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        bordered = torch.empty(
            (*x.shape[:-2], height + 2, width + 2), dtype=x.dtype, device=x.device, memory_format=_layout(x)
        )
        bordered[..., 1:-1, 1:-1] = x
        bordered[..., 0, 1:-1], bordered[..., -1, 1:-1] = x[..., 0, :], x[..., -1, :]
        bordered[..., 0], bordered[..., -1] = bordered[..., 1], bordered[..., -2]
        return bordered

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        (g,) = gradients
        inner = g[..., 1:-1, 1:-1].clone(memory_format=_layout(g))
        for row in (0, -1):
            inner[..., row, :] += g[..., row, 1:-1]
            inner[..., :, row] += g[..., 1:-1, row]
            for column in (0, -1):
                inner[..., row, column] += g[..., row, column]
        return inner


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


class _PaddedConv2d(torch.autograd.Function):
    # The input is kept as it came, neither enlarged nor bordered, and only where the weights train.

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool, trains: bool
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        result = _PaddedConv2d._convolved(x, weight, bias, geometry, relu, trains)
        ctx.geometry, ctx.shape = geometry, x.shape
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, result if relu else None)
        return result

    @staticmethod
    def _convolved(
        x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool, trains: bool
    ) -> Tensor:
        kernel = _kernel(weight, x.shape[1], geometry.stride)
        height, width = geometry.result_size(x.shape[2:])
        small = len(x) == 1 or x.shape[1] * FEW_CHANNELS <= len(weight)  # what has a border, beside the result
        if trains and isinstance(kernel, _Library) and small:  # no strips, so no copy of them
            bordered = [_bordered(_whole(image), geometry, 0, height) for image in _by_pixel(x)]
            at_once = kernel(torch.stack(bordered) if len(x) > 1 else bordered[0][None], bias)
            return at_once.relu_() if relu else at_once
        result = torch.empty((len(x), len(weight), height, width), memory_format=torch.channels_last)
        if isinstance(kernel, Winograd) and geometry.size is None:
            kernel.convolve(_framed(_by_pixel(x), geometry), bias, _by_pixel(result), relu)
            return result
        for image, out in zip(_by_pixel(x), _by_pixel(result), strict=True):
            _convolve_strips(_whole(image), kernel, bias, geometry, relu, (0, height), out)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rectified = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        kernel = _kernel(weight, ctx.shape[1], ctx.geometry.stride)
        if rectified is not None and (any(ctx.needs_input_grad[1:]) or not isinstance(kernel, Winograd)):
            gradient, rectified = aten.threshold_backward(gradient, rectified, 0), None
        gradient = _by_pixel(gradient)
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        of_x = _input_gradient(gradient, ctx.shape, kernel, ctx.geometry, rectified) if needs_x else None
        of_weight = _weight_gradient(gradient, _by_pixel(x), weight, kernel, ctx.geometry) if needs_weight else None
        of_bias = gradient.sum((0, 1, 2)) if needs_bias else None
        return of_x, of_weight, of_bias, None, None, None


def _input_gradient(
    gradient: Tensor, shape: torch.Size, kernel: _Library | Winograd, geometry: Geometry, rectified: Tensor | None
) -> Tensor:
    n, channels, height, width = shape
    size = _bordered_size((height, width, channels), geometry)

    def of_images(some: slice) -> Tensor:
        if rectified is not None and isinstance(kernel, Winograd):
            bordered = kernel.convolve_back(gradient[some], size, _by_pixel(rectified)[some])
        else:
            bordered = kernel.convolve_back(gradient[some], size)
        return _without_border(bordered, geometry, (height, width))

    groups = _groups(n, math.prod(size))
    if len(groups) == 1:
        return of_images(groups[0]).permute(0, 3, 1, 2)
    result = gradient.new_empty(n, height, width, channels)
    for some in groups:
        result[some] = of_images(some)
    return result.permute(0, 3, 1, 2)


def _weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, kernel: _Library | Winograd, geometry: Geometry
) -> Tensor:
    result = torch.zeros_like(weight)
    if isinstance(kernel, Winograd) and geometry.size is None:
        return result.copy_(kernel.weight_gradient(kernel.tile_products(_framed(x, geometry), gradient)))
    if isinstance(kernel, Winograd):
        totals = None
        for image, g in zip(x, gradient, strict=True):
            totals = kernel.tile_products(_gathered(_whole(image), geometry, 0, len(g)), g[None], totals)
        return result if totals is None else result.copy_(kernel.weight_gradient(totals))
    for image, g in zip(x, gradient, strict=True):
        result += kernel.weight_gradient(_bordered(_whole(image), geometry, 0, len(g)), g)
    return result


def _groups(count: int, values: int) -> list[slice]:
    """So many images, each of so many values: as many at a time as stay in the cache."""
    step = max(1, STRIP_VALUES // values)
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def _by_pixel(x: Tensor) -> Tensor:
    """A view of channels-last maps: `(N, C, H, W)` → `(N, H, W, C)`."""
    return x.permute(0, 2, 3, 1)


def _as_maps(image: Tensor) -> Tensor:
    """A view of an image: `(H, W, C)` → `(1, C, H, W)`, channels-last."""
    return image[None].permute(0, 3, 1, 2)


# --- The border, and maps enlarged ---------------------------------------------------------------------------------


def _whole(image: Tensor) -> Window:
    return Window(image, 0, len(image))


def _convolve_strips(
    window: Window,
    kernel: _Library | Winograd,
    bias: Tensor | None,
    geometry: Geometry,
    relu: bool,
    rows: tuple[int, int],
    out: Tensor,
) -> None:
    """The rows from `rows[0]` to before `rows[1]` of the result into `out`, as many at a time as stay in the cache."""
    first, last = rows
    strip_px = strip_rows(window.shape, geometry, kernel.values_per_px)
    if isinstance(kernel, Winograd) and geometry.size is None:
        strip_px = last - first  # nothing is written down that should stay in the cache
    for start in range(first, last, strip_px):
        end = min(last, start + strip_px)
        target = out[start - first : end - first]
        if isinstance(kernel, Winograd):
            kernel.convolve(_gathered(window, geometry, start, end), bias, target[None], relu)
        else:
            kernel.convolve(_bordered(window, geometry, start, end), bias, target)
            if relu:
                target.relu_()


def strip_rows(shape: tuple[int, int, int], geometry: Geometry, values_per_px: int) -> int:
    """How many rows of the result of an image `(H, W, C)` to compute at a time, with so many values a pixel of it."""
    width = geometry.enlarged(shape)[1]
    rows = STRIP_VALUES // (width * max(shape[-1] * geometry.stride, values_per_px // geometry.stride))
    return max(1, rows // TILE_PX) * TILE_PX


def _bordered_size(shape: tuple[int, int, int], geometry: Geometry) -> tuple[int, int, int]:
    height, width = geometry.enlarged(shape)
    return height + 2 * geometry.border_px, width + 2 * geometry.border_px, shape[-1]


def _bordered(window: Window, geometry: Geometry, first: int, last: int) -> Tensor:
    """What the rows `first` to `last` − 1 of the result are made of: `(rows, W + 2 border, C)`."""
    border_px = geometry.border_px
    height, width = geometry.enlarged(window.shape)
    start, end = geometry.span(first, last)
    low, high = geometry.enlarged_rows(first, last, height)
    source = window.rows(low, high) if geometry.size is None else _enlarged_rows(window, geometry, low, high)
    bordered = _room((end - start, width + 2 * border_px, source.shape[-1]), source)
    inner = bordered[:, border_px : border_px + width]
    inner[max(-start, 0) : min(end, height) - start] = source[max(start, 0) - low : min(end, height) - low]
    zero = geometry.border == "constant"
    for row in (*range(start, 0), *range(height, end)):
        inner[row - start] = 0.0 if zero else source[geometry.inside(row, height) - low]
    for column in _outside(width, border_px):
        bordered[:, column + border_px] = 0.0 if zero else inner[:, geometry.inside(column, width)]
    return bordered


def _gathered(window: Window, geometry: Geometry, first: int, last: int) -> Bordered:
    """The same as `_bordered`, not written down."""
    height, width = geometry.enlarged(window.shape)
    low, high = geometry.enlarged_rows(first, last, height)
    source = window.rows(low, high) if geometry.size is None else _enlarged_rows(window, geometry, low, high)
    rows = _origins(geometry, *geometry.span(first, last), height, low)
    columns = _origins(geometry, -geometry.border_px, width + geometry.border_px, width, 0)
    return Bordered(source.contiguous()[None], rows, columns)


def _framed(images: Tensor, geometry: Geometry) -> Bordered:
    """Whole images `(N, H, W, C)`, contiguous, with their borders, not written down."""
    border_px = geometry.border_px
    rows, columns = (
        _origins(geometry, -border_px, length + border_px, length, 0) for length in (images.shape[1], images.shape[2])
    )
    return Bordered(images, rows, columns)


@lru_cache(256)
def _origins(geometry: Geometry, start: int, end: int, length: int, low: int) -> Indices:
    """Where, counted from `low`, the values come from that stand from `start` to before `end`; −1 for zeros."""
    zero = geometry.border == "constant"
    outer = {p: -1 if zero else geometry.inside(p, length) - low for p in (*range(start, 0), *range(length, end))}
    return np.array([outer.get(position, position - low) for position in range(start, end)])


def _room(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """What is used up within a strip: on a CPU in memory that the next one has again."""
    return SCRATCH.take(shape, like.dtype) if like.device.type == "cpu" else like.new_empty(shape)


def _outside(width: int, border_px: int) -> tuple[int, ...]:
    return (*range(-border_px, 0), *range(width, width + border_px))


def _enlarged_rows(window: Window, geometry: Geometry, low: int, high: int) -> Tensor:
    """The rows `low` to `high` − 1 of the image enlarged to the geometry's size."""
    height, width = geometry.enlarged(window.shape)
    factors = _factors(window.shape, (height, width))
    first, last = _sources(low, high, window.height) if factors[0] == 2 else (low, high)
    offset = int(first * factors[0])
    maps = _as_maps(window.rows(first, last))
    size = [int(side * factor) for side, factor in zip(maps.shape[2:], factors, strict=True)]
    if maps.device.type == "cpu":  # where the factors alone say which pixels are made of which
        size[1] = width
    resized = _as_maps(_room((*size, maps.shape[1]), maps))
    if geometry.enlargement == "bilinear":
        aten.upsample_bilinear2d.out(maps, size, False, *factors, out=resized)
    else:
        aten.upsample_nearest2d.out(maps, size, *factors, out=resized)
    return _by_pixel(resized)[0, low - offset : high - offset, :width]


def _sources(low: int, high: int, height: int) -> tuple[int, int]:
    """Of which rows of an image of this height the rows `low` to `high` − 1 of the doubled one are made."""
    return max(0, low // 2 - 1), min(height, (high - 1) // 2 + 2)


def _without_border(gradient: Tensor, geometry: Geometry, size: tuple[int, int]) -> Tensor:
    """The gradients of bordered images `(N, H + 2 border, W + 2 border, C)`, used up → of the images, of this size."""
    border_px = geometry.border_px
    height, width = geometry.enlarged(size)
    inner = gradient[:, border_px : border_px + height, border_px : border_px + width]
    if geometry.border != "constant":
        columns = gradient[:, :, border_px : border_px + width]
        for column in _outside(width, border_px):
            columns[:, :, geometry.inside(column, width)] += gradient[:, :, column + border_px]
        for row in _outside(height, border_px):
            inner[:, geometry.inside(row, height)] += columns[:, row + border_px]
    if geometry.size is None:
        return inner
    factors = _factors(size, geometry.size)
    full = _grown(inner, int(size[0] * factors[0]), int(size[1] * factors[1])).permute(0, 3, 1, 2)
    shape = (*full.shape[:2], *size)
    return _by_pixel(aten.upsample_bilinear2d_backward(full, full.shape[2:], shape, False, *factors))


def _grown(images: Tensor, height: int, width: int, offset: int = 0) -> Tensor:
    """`(N, H, W, C)` → `(N, height, width, C)`, zeros around each image, `offset` from the upper left corner."""
    if images.shape[1:3] == (height, width):
        return images.contiguous()
    count, rows, columns, channels = images.shape
    grown = images.new_zeros(count, height, width, channels)
    grown[:, offset : offset + rows, offset : offset + columns] = images
    return grown


# --- The kernel ----------------------------------------------------------------------------------------------------


class _Library:
    """A convolution by the library.

    Args:
        weight: `(K, C, k, k)`, or depthwise `(C, 1, k, k)`.
        stride: 1 or 2.
        groups: 1, or C.

    Attributes:
        values_per_px: Of the result, while it is made.
    """

    def __init__(self, weight: Tensor, stride: int, groups: int = 1) -> None:
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.stride = stride
        self.groups = groups
        self.values_per_px = len(weight)

    def __call__(self, bordered: Tensor, bias: Tensor | None) -> Tensor:
        """`(N, H, W, C)` → `(N, K, H', W')`."""
        return F.conv2d(bordered.permute(0, 3, 1, 2), self.weight, bias, self.stride, groups=self.groups)

    def convolve(self, bordered: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """`(H, W, C)` → `(H', W', K)`."""
        out.copy_(_by_pixel(self(bordered[None], bias))[0])

    def convolve_back(self, gradient: Tensor, size: tuple[int, int, int]) -> Tensor:
        """The gradient of the result `(N, H', W', K)` → that of the bordered images, each of `size` `(H, W, C)`."""
        return _by_pixel(self._gradient(gradient, gradient.new_empty(1).expand(len(gradient), *size), 0))

    def weight_gradient(self, bordered: Tensor, gradient: Tensor) -> Tensor:
        """The bordered image and the gradient of the result → that of the weights, of their shape."""
        return self._gradient(gradient[None], bordered[None], 1)

    def _gradient(self, gradient: Tensor, bordered: Tensor, which: int) -> Tensor:
        asked = [which == i for i in range(3)]
        found: Tensor = aten.convolution_backward(
            gradient.permute(0, 3, 1, 2), bordered.permute(0, 3, 1, 2), self.weight, None, [self.stride] * 2, [0, 0],
            [1, 1], False, [0, 0], self.groups, asked,
        )[which]  # fmt: skip
        return found


class _Direct(_Library):
    """The same, but for the gradient of the weights, which the library computes slowly in this layout."""

    def weight_gradient(self, bordered: Tensor, gradient: Tensor) -> Tensor:
        """The bordered image and the gradient of the result → that of the weights, `(K, C, k, k)`."""
        outputs, inputs, kernel_px, _ = self.weight.shape
        if self.stride == 1 and outputs < inputs:  # the smaller side is the one to unfold
            height, width = bordered.shape[:2]
            frame_px = kernel_px - 1
            (framed,) = _grown(gradient[None], height + frame_px, width + frame_px, frame_px)
            flipped = _window_products(bordered, framed, kernel_px, 1)
            return flipped.flip(1, 2).permute(3, 0, 1, 2)
        return _window_products(gradient, bordered, kernel_px, self.stride).permute(0, 3, 1, 2)


class _Narrow(_Direct):
    """A large kernel for few results, which would leave most of a vector's lanes empty.

    Each column of the kernel becomes a convolution with results of its own; these are added up, moved by a pixel each.
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
    def suits(cls, weight: Tensor, stride: int) -> bool:
        """Whether it is the faster way."""
        outputs, _, kernel_px, _ = weight.shape
        return stride == 1 and kernel_px > 3 and outputs * kernel_px <= cls.LANES

    def __call__(self, bordered: Tensor, bias: Tensor | None) -> Tensor:
        outputs, _, kernel_px, _ = self.weight.shape
        parts = _by_pixel(F.conv2d(bordered.permute(0, 3, 1, 2), self.by_column))
        width = parts.shape[2] - kernel_px + 1
        result = parts[:, :, :width, :outputs] + (0 if bias is None else bias)
        for column in range(1, kernel_px):
            result += parts[:, :, column : column + width, column * outputs : (column + 1) * outputs]
        return result.permute(0, 3, 1, 2)


def _window_products(pixels: Tensor, source: Tensor, kernel_px: int, stride: int) -> Tensor:
    """Σ over pixels of their values times the window of the source there: `(H, W, A)`, … → `(A, k, k, C)`.

    A window's rows lie in the source as they are: so many values from each pixel on.
    """
    (height, width, values), (_, source_width, channels) = pixels.shape, source.shape
    side, row = kernel_px * channels, source_width * channels
    if in_panels(side) > side:  # what is read beyond the last window
        source = F.pad(source.flatten(), (0, in_panels(side) - side))
    windows = source.as_strided(
        (kernel_px, height, in_panels(side) // PANEL, width, PANEL), (row, stride * row, PANEL, stride * channels, 1)
    )
    threads = min(torch.get_num_threads(), height)
    totals = pixels.new_zeros(threads, kernel_px, values, in_panels(side))
    rows = max(1, WINDOWED_VALUES // (width * (values + channels)))

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


def _kernel(weight: Tensor, channels: int, stride: int) -> _Library | Winograd:
    outputs, inputs, kernel_px, _ = weight.shape
    if inputs != channels:
        return _Library(weight, stride, groups=channels)
    if kernel_px == 3 and stride == 1 and outputs * inputs >= WINOGRAD_PAYS_FROM and min(outputs, inputs) >= LANES:
        return winograd_of(weight)
    return _Narrow(weight, stride) if _Narrow.suits(weight, stride) else _Direct(weight, stride)
