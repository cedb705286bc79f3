"""Max pooling."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.ops.dispatch import MAP_TYPES, count_kernel_call, cpu_kernels


def max_pool2x2(x: Tensor) -> Tensor:
    """Return the largest of every 2×2 px: `(N, C, H, W)` → `(N, C, H // 2, W // 2)`; NaN stays.

    The kernel can be differentiated once. It gives the gradient to the first of several that are the largest, by row,
    then by column.
    """
    if cpu_kernels(x, types=MAP_TYPES):
        from stylize.ops.cpu import max_pool

        if max_pool.is_supported(x):
            count_kernel_call()
            return max_pool.max_pool2x2(x)
    if torch.is_grad_enabled():
        return cast(Tensor, _MaxPool2x2.apply(x))
    return F.max_pool2d(x, 2)


class _MaxPool2x2(torch.autograd.Function):
    # torch's own gradient keeps 8 bytes for each value, and is not deterministic on GPUs.

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if not torch.compiler.is_compiling():
            return F.max_pool2d(x, 2)
        (a, b), (c, d) = _quarters(x)
        return torch.maximum(torch.maximum(a, b), torch.maximum(c, d))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,), (left,) = ctx.saved_tensors, gradients
        quarters = _quarters(x)
        most = torch.stack([torch.maximum(*pair) for pair in quarters]).amax(0)
        rows = []
        for pair in quarters:
            row = []
            for quarter in pair:
                is_first = quarter == most
                row.append(torch.where(is_first, left, 0))
                left = torch.where(is_first, 0, left)
            rows.append(torch.stack(row, -1).flatten(-2))
        gradient = torch.stack(rows, -2).flatten(-3, -2)
        return F.pad(gradient, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))


def _quarters(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return every second pixel of `x` in each direction, from the four corners; an odd row or column is left out."""
    even = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    return [(even[..., row::2, 0::2], even[..., row::2, 1::2]) for row in (0, 1)]
