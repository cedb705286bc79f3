"""Max pooling."""

from __future__ import annotations

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
    return F.max_pool2d(x, 2)
