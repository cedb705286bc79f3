"""Padding and upsampling of maps in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.ops.geometry import Border, Upsampling, scale_factors


def upsample_to(x: Tensor, size: tuple[int, int], upsampling: Upsampling = "bilinear") -> Tensor:
    """Double the height and width of `x` and crop to `size`, at most one row and column less.

    A side that is right already stays. Resize, then convolve: a transposed convolution of kernel 3 and stride 2
    overlaps unevenly and leaves a checkerboard.

    Args:
        x: `(N, C, H, W)`.
        size: Height and width of the result.
        upsampling: Filter.

    Source: Odena et al. 2016, Deconvolution and checkerboard artifacts.
    Differs: bilinear by default, in place of nearest-neighbour. A convolution of nearest-neighbour values has separate
        weights for even and odd pixels, and the network paints a weave of two and four px with them.
    """
    factors = scale_factors(x.shape[-2:], size)
    if upsampling == "nearest":
        resized = F.interpolate(x, scale_factor=factors, mode="nearest")
    else:
        resized = F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)
    return resized[..., : size[0], : size[1]]


def pad(x: Tensor, border_px: int, border: Border) -> Tensor:
    """Pad all four sides of `x` `(N, C, H, W)`.

    Differs: from `torch.nn.functional.pad` for replication of one px and while compiling: torch.compile cannot lower
        the backward pass of torch's own on CPUs.
    """
    if not border_px:
        return x
    if border != "replicate" or (border_px > 1 and not torch.compiler.is_compiling()):
        return F.pad(x, (border_px,) * 4, border)
    for _ in range(border_px):
        x = replicate_border(x)
    return x


def replicate_border(x: Tensor) -> Tensor:
    """Pad with one more pixel on every side, equal to its neighbour: `(…, H, W)` → `(…, H + 2, W + 2)`."""
    bordered: Tensor = _ReplicateBorder.apply(x)
    return bordered


def layout(x: Tensor) -> torch.memory_format:
    """Return channels-last for channels-last maps, else contiguous."""
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


class _ReplicateBorder(torch.autograd.Function):
    # One copy each way. torch.cat and slices would make two, and four for the gradient, each filled with zeros first.
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        bordered = torch.empty(
            (*x.shape[:-2], height + 2, width + 2), dtype=x.dtype, device=x.device, memory_format=layout(x)
        )
        bordered[..., 1:-1, 1:-1] = x
        bordered[..., 0, 1:-1], bordered[..., -1, 1:-1] = x[..., 0, :], x[..., -1, :]
        bordered[..., 0], bordered[..., -1] = bordered[..., 1], bordered[..., -2]
        return bordered

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        (g,) = gradients
        inner = g[..., 1:-1, 1:-1].clone(memory_format=layout(g))
        for row in (0, -1):
            inner[..., row, :] += g[..., row, 1:-1]
            inner[..., :, row] += g[..., 1:-1, row]
            for column in (0, -1):
                inner[..., row, column] += g[..., row, column]
        return inner
