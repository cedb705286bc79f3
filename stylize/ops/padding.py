"""Padding and upsampling of maps in plain PyTorch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.ops.geometry import Border, Geometry, Upsampling, scale_factors


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
    elif torch.is_grad_enabled():
        resized = cast(Tensor, _Bilinear.apply(x, factors))
    else:
        resized = _bilinear(x, factors)
    return resized[..., : size[0], : size[1]]


def _bilinear(x: Tensor, factors: tuple[float, float]) -> Tensor:
    return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)


class _Bilinear(torch.autograd.Function):
    # torch's own gradient adds atomically on GPUs: in another order at every run, and slowly.

    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: tuple[float, float]) -> Tensor:
        ctx.factors = factors
        return _bilinear(x, factors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        for dim, factor in zip((-2, -1), ctx.factors, strict=True):
            g = _halved(g, dim) if factor == 2 else g
        return g, None


def _halved(g: Tensor, dim: int) -> Tensor:
    """Return the gradient of values that were doubled bilinearly along a side.

    A value gives 3/4 of itself to its two nearest results and 1/4 to the next two; at the ends these are one.
    """
    even, odd = (g[..., i::2] if dim == -1 else g[..., i::2, :] for i in (0, 1))
    count = even.shape[dim]
    before = torch.cat([even.narrow(dim, 0, 1), odd.narrow(dim, 0, count - 1)], dim)
    after = torch.cat([even.narrow(dim, 1, count - 1), odd.narrow(dim, count - 1, 1)], dim)
    return 0.75 * (even + odd) + 0.25 * (before + after)


def pad(x: Tensor, border_px: int, border: Border) -> Tensor:
    """Pad all four sides of `x` `(N, C, H, W)`; the layout stays.

    Differs: from `torch.nn.functional.pad`, which makes channels-last maps contiguous on GPUs, whose gradient is not
        deterministic there, and whose gradient of replication torch.compile cannot lower.
    """
    if not border_px:
        return x
    if border == "constant" or (border == "reflect" and torch.compiler.is_compiling()):
        return F.pad(x, (border_px,) * 4, border)
    if not torch.is_grad_enabled():
        return _padded(x, border_px, border)
    padded: Tensor = _Pad.apply(x, border_px, border)
    return padded


def layout(x: Tensor) -> torch.memory_format:
    """Return channels-last for channels-last maps, else contiguous."""
    return torch.channels_last if _is_by_pixel(x) else torch.contiguous_format


def _is_by_pixel(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _padded(x: Tensor, border_px: int, border: Border) -> Tensor:
    if not _is_by_pixel(x):
        return F.pad(x, (border_px,) * 4, border)
    # By one kernel: height and width of volumes whose last side are the channels.
    volumes = x.permute(0, 2, 3, 1)[:, None]
    padded = F.pad(volumes, (0, 0, *(border_px,) * 4), border)
    return padded[:, 0].permute(0, 3, 1, 2)


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, border_px: int, border: Border) -> Tensor:
        ctx.border_px, ctx.border = border_px, border
        if not torch.compiler.is_compiling():
            return _padded(x, border_px, border)
        rows, columns = (
            torch.arange(-border_px, side + border_px, device=x.device).clamp(0, side - 1) for side in x.shape[-2:]
        )
        return x[..., rows, :][..., columns]  # one kernel, with what comes before it

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return unpadded(gradients[0], ctx.border_px, ctx.border), None, None


def unpadded(gradient: Tensor, border_px: int, border: Border) -> Tensor:
    """Return the gradient of `x` `(N, C, H, W)` from that of `pad(x)`, summed in a fixed order.

    One copy and an addition for each row and column of the border: `torch.cat` and slices would make two copies, and
    four more of zeros. A compiler gets a single expression, and makes one kernel of it.
    """
    inner = Geometry(2 * border_px + 1, 1, border)
    height, width = (side - 2 * border_px for side in gradient.shape[-2:])
    if torch.compiler.is_compiling():
        for dim, length in ((-1, width), (-2, height)):
            positions = torch.arange(length, device=gradient.device).view(-1, *[1] * (-1 - dim))
            total = gradient.narrow(dim, border_px, length)
            for outer in outside(length, border_px):
                added = gradient.narrow(dim, outer + border_px, 1)
                total = total + torch.where(positions == inner.inside(outer, length), added, 0)
            gradient = total
        return gradient
    columns = gradient[..., border_px : border_px + width].clone(memory_format=layout(gradient))
    for column in outside(width, border_px):
        columns[..., inner.inside(column, width)] += gradient[..., column + border_px]
    rows = columns[..., border_px : border_px + height, :]
    for row in outside(height, border_px):
        rows[..., inner.inside(row, height), :] += columns[..., row + border_px, :]
    return rows


def outside(length: int, border_px: int) -> tuple[int, ...]:
    """Return the positions of the padding of a side of this length.

    >>> outside(5, 2)
    (-2, -1, 5, 6)
    """
    return (*range(-border_px, 0), *range(length, length + border_px))
