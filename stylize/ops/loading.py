"""Load the kernels ahead of their first use."""

from __future__ import annotations

import torch

from stylize.ops.dispatch import MAP_TYPES, cpu_kernels


def load_kernels(dtype: torch.dtype = torch.float32) -> None:
    """Load the kernels that paint on a CPU, or compile them.

    Their time and memory are then not part of the first picture's.

    Args:
        dtype: Type of the maps.
    """
    if not cpu_kernels():
        return
    from stylize.ops.cpu import norm, winograd

    norm.load_kernels()  # the first norm is always of float32
    if dtype == torch.float32:
        winograd.load_kernels()
    elif dtype in MAP_TYPES:
        norm.load_kernels(dtype)
