"""The Gram matrix."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from stylize.ops.dispatch import (
    MAP_TYPES,
    count_kernel_call,
    cpu_kernels,
    multiplies_into_float32,
    widened,
    without_autocast,
)


def gram_matrix(features: Tensor) -> Tensor:
    """Return `G = F Fᵀ / (C·H·W)`.

    Args:
        features: `(N, C, H, W)`. Products are exact, and their sum is in float32 (of float64: in float64), whatever the
            type and autocast say: in bfloat16 a sum over a map loses its small terms.

    Returns:
        `(N, C, C)`.

    >>> gram_matrix(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 1, 2)).tolist()
    [[[1.25, 2.75], [2.75, 6.25]]]

    Source: Johnson et al. 2016, arXiv:1603.08155, equation 3.
    """
    pixels = features.permute(0, 2, 3, 1).flatten(1, 2)  # (N, H·W, C): of a channels-last map a view
    products: Tensor = _ProductsOfChannels.apply(pixels)
    return products / (pixels.shape[1] * pixels.shape[2])


class _ProductsOfChannels(torch.autograd.Function):
    # (N, P, C) → (N, C, C). By itself autograd computes the gradient as two large products and their sum.

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(pixels)
        with without_autocast(pixels):
            if _has_kernel(pixels):
                from stylize.ops.cpu import matmul

                count_kernel_call()
                images = (widened(image) for image in pixels)
                return torch.stack([matmul.matmul_transposed(image, image) for image in images])
            if multiplies_into_float32(pixels):
                return torch.bmm(pixels.transpose(1, 2), pixels, out_dtype=torch.float32)
            wide = widened(pixels)
            return wide.transpose(1, 2) @ wide

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (pixels,), (g,) = ctx.saved_tensors, gradients
        both = (g + g.transpose(1, 2)).to(pixels.dtype)
        with without_autocast(pixels):
            if torch.is_grad_enabled() or pixels.dtype != torch.float32 or not _has_kernel(pixels):
                return cast(Tensor, pixels @ both)  # with a gradient it is differentiated again
            from stylize.ops.cpu import matmul

            gradient = torch.empty_like(pixels)
            for image, factor, out in zip(pixels, both, gradient, strict=True):
                matmul.matmul(image, factor, out)
            return gradient


def _has_kernel(pixels: Tensor) -> bool:
    if not cpu_kernels(pixels, types=MAP_TYPES):
        return False
    from stylize.ops.cpu import matmul

    return matmul.is_supported(pixels)
