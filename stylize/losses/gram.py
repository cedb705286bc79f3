"""The Gram matrix of feature maps."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from stylize.ops.cpu import matmul as products


def gram_matrix(features: Tensor) -> Tensor:
    """`G = F Fᵀ / (C·H·W)`, in float32 whatever the input and autocast say: a bfloat16 sum over a map loses it.

    Args:
        features: `(N, C, H, W)`.

    Returns:
        `(N, C, C)`.

    >>> gram_matrix(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 1, 2)).tolist()
    [[[1.25, 2.75], [2.75, 6.25]]]

    Source: Johnson et al. 2016, arXiv:1603.08155, equation 3.
    """
    # (N, H·W, C): of a channels-last map a view.
    flat = features.float().permute(0, 2, 3, 1).flatten(1, 2)
    products: Tensor = _ProductsOfChannels.apply(flat)
    return products / (flat.shape[1] * flat.shape[2])


class _ProductsOfChannels(torch.autograd.Function):
    # (N, P, C) → (N, C, C). By itself autograd computes the gradient as two large products and their sum.

    @staticmethod
    def forward(ctx: Any, flat: Tensor) -> Tensor:
        ctx.save_for_backward(flat)
        if products.suit(flat):
            return torch.stack([products.over_rows(image, image) for image in flat])
        with torch.autocast(flat.device.type, enabled=False):
            return flat.transpose(1, 2) @ flat

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (flat,), (g,) = ctx.saved_tensors, gradients
        both = g + g.transpose(1, 2)
        if products.suit(flat) and not torch.is_grad_enabled():  # not where it is derived again
            gradient = torch.empty_like(flat)
            for image, factor, out in zip(flat, both, gradient, strict=True):
                products.by_rows(image, factor, out)
            return gradient
        with torch.autocast(flat.device.type, enabled=False):
            return cast(Tensor, flat @ both)
