"""Max pooling of 2×2 px of channels-last maps, float32 or bfloat16, on a CPU, compiled, with its gradient.

The backward pass finds the largest of the four again in the maps, which the layer before keeps anyway; torch's saves 8
bytes for each value of the result, and fills the gradient with zeros before it writes to it.

Floor: forward the maps are read and a quarter is written; backward the maps and a quarter are read, the maps written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stylize.ops.cpu.compile import LANES, Values, compiled
from stylize.ops.cpu.norm import is_vectorized_by_pixel, values_of
from stylize.ops.cpu.simd import largest, load, splat, store, where_equal
from stylize.system.threads import in_threads


def is_supported(x: Tensor) -> bool:
    """Return whether `max_pool2x2` takes `x`: channels-last, pixels of whole vectors, at least 2 px high and wide."""
    return min(x.shape[-2:]) >= 2 and is_vectorized_by_pixel(x)


def max_pool2x2(x: Tensor) -> Tensor:
    """See `stylize.ops.pooling.max_pool2x2`; the result is channels-last, and NaN gets no gradient."""
    result: Tensor = _MaxPool2x2.apply(x)
    return result


class _MaxPool2x2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        result = torch.empty(
            (count, channels, height // 2, width // 2), dtype=x.dtype, memory_format=torch.channels_last
        )
        maps, target = _by_image(x), _by_image(result)
        threads = torch.get_num_threads()
        in_threads(lambda t: _pool(maps, t, threads, target), threads)
        ctx.save_for_backward(x)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result = torch.empty_like(x)
        (gradient,) = gradients
        if gradient.stride(1) != 1:  # strides of rows and columns may be any
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        maps, towards, target = _by_image(x), _by_image(gradient), _by_image(result)
        threads = torch.get_num_threads()
        in_threads(lambda t: _pool_back(maps, towards, t, threads, target), threads)
        return result


def _by_image(x: Tensor) -> Values:
    """View channels-last maps `(N, C, H, W)` as `(N, H, W, C)`."""
    return values_of(x.permute(0, 2, 3, 1))


# A thread takes every `threads`-th row of the result.


@compiled
def _pool(x: Values, thread: int, threads: int, result: Values) -> None:
    count, height, width, channels = result.shape
    for item in range(thread, count * height, threads):
        image, y = item // height, item % height
        of_image, out = x[image], result[image]
        for column in range(width):
            for c in range(0, channels, LANES):
                above = largest(load(of_image, 2 * y, 2 * column, c), load(of_image, 2 * y, 2 * column + 1, c))
                below = largest(load(of_image, 2 * y + 1, 2 * column, c), load(of_image, 2 * y + 1, 2 * column + 1, c))
                store(out, y, column, c, largest(above, below))


@compiled
def _pool_back(x: Values, gradient: Values, thread: int, threads: int, result: Values) -> None:
    count, height, width, channels = gradient.shape
    for item in range(thread, count * height, threads):
        image, y = item // height, item % height
        of_image, towards, out = x[image], gradient[image], result[image]
        for column in range(width):
            for c in range(0, channels, LANES):
                p, q = load(of_image, 2 * y, 2 * column, c), load(of_image, 2 * y, 2 * column + 1, c)
                r, s = load(of_image, 2 * y + 1, 2 * column, c), load(of_image, 2 * y + 1, 2 * column + 1, c)
                most, left, zero = largest(largest(p, q), largest(r, s)), load(towards, y, column, c), splat(0.0)
                store(out, 2 * y, 2 * column, c, where_equal(p, most, left, zero))
                left = where_equal(p, most, zero, left)
                store(out, 2 * y, 2 * column + 1, c, where_equal(q, most, left, zero))
                left = where_equal(q, most, zero, left)
                store(out, 2 * y + 1, 2 * column, c, where_equal(r, most, left, zero))
                left = where_equal(r, most, zero, left)
                store(out, 2 * y + 1, 2 * column + 1, c, where_equal(s, most, left, zero))
        if x.shape[2] > 2 * width:  # an odd column
            out[2 * y : 2 * y + 2, 2 * width] = 0
        if y + 1 == height and x.shape[1] > 2 * height:
            out[2 * height] = 0
