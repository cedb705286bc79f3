"""Convolution with all that a layer does before its norm: upsample, pad, convolve, rectify."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.ops.dispatch import MAP_TYPES, count_kernel_call, cpu_kernels
from stylize.ops.geometry import Geometry, Window
from stylize.ops.padding import pad, upsample_to
from stylize.ops.rows import as_maps, by_pixel, padded_rows


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, *, relu: bool = False) -> Tensor:
    """Upsample (where the geometry asks for it), pad and convolve.

    Args:
        x: `(N, C, H, W)`.
        weight: `(K, C, k, k)`; `(C, 1, k, k)` for a depthwise convolution. It is cast to the type of `x`.
        bias: `(K,)`, or None; likewise.
        geometry: Kernel size, stride, padding, upsampling.
        relu: Whether to apply ReLU to the result.

    Returns:
        `(N, K, H', W')`. The compiled kernels' result is channels-last, and equal to PyTorch's but for rounding (with
        Winograd's algorithm about 1e-5 of the largest value); it can be differentiated once.

    Raises:
        ValueError: The shapes do not fit together.
    """
    _check(x.shape, weight, bias, geometry)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if _has_kernel(x, weight, bias):
        from stylize.ops.cpu import conv

        count_kernel_call()
        if geometry.size is not None and geometry.upsampling == "nearest" and torch.is_grad_enabled():
            x, geometry = upsample_to(x, geometry.size, "nearest"), geometry._replace(size=None)
        return conv.conv2d(x, weight, bias, geometry, relu)
    convolved = _plain(x, weight, bias, geometry)
    return F.relu(convolved, inplace=True) if relu else convolved


def conv2d_rows(
    window: Window,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    rows: tuple[int, int],
    out: Tensor | None = None,
) -> Tensor:
    """Compute some rows of `conv2d` of one image, without a gradient.

    Args:
        window: The rows of the image that these need (`Geometry.needed_rows`).
        weight: See `conv2d`.
        bias: See `conv2d`.
        geometry: See `conv2d`.
        rows: First row of the result, and the row after the last.
        out: Memory for the result, `(rows, W', K)`, contiguous; None: it is allocated. Where the image is upsampled or
            the stride is 2, each row may overlap rows of the image that only rows before it need.

    Returns:
        `(1, K, rows, W')` in channels-last layout: the same numbers as of the whole image, but for rounding.

    Raises:
        ValueError: The shapes, or the strides or type of `out`, do not fit.
    """
    first, last = rows
    shape = (last - first, geometry.result_size(window.shape)[1], len(weight))
    _check((1, window.shape[2], *window.shape[:2]), weight, bias, geometry)
    check_out(out, shape, window.values)
    dtype = window.values.dtype
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if _has_kernel(as_maps(window.values), weight, bias):
        from stylize.ops.cpu import conv

        count_kernel_call()
        return conv.conv2d_rows(window, weight, bias, geometry, rows, out)
    padded = as_maps(padded_rows(window, geometry, first, last))
    convolved = F.conv2d(padded, weight, bias, geometry.stride, groups=padded.shape[1] // weight.shape[1])
    return convolved if out is None else as_maps(out.copy_(by_pixel(convolved)[0]))


def check_out(out: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse memory for a result into which a kernel would write beyond its end.

    Raises:
        ValueError: It has another shape, type, device or layout than the result.
    """
    if out is None:
        return
    if tuple(out.shape) != shape or not out.is_contiguous():
        raise ValueError(f"out: got shape {tuple(out.shape)} with strides {out.stride()}, must be contiguous {shape}")
    if out.dtype != like.dtype or out.device != like.device:
        raise ValueError(f"out: got {out.dtype} on {out.device}, must be {like.dtype} on {like.device}")


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    groups = x.shape[1] // weight.shape[1]
    if geometry.border == "constant":
        x = x if geometry.size is None else upsample_to(x, geometry.size, geometry.upsampling)
        return F.conv2d(x, weight, bias, geometry.stride, geometry.border_px, groups=groups)
    # In one expression: the upsampled maps are the largest of all, and must be freed before the convolution runs.
    padded = pad(
        x if geometry.size is None else upsample_to(x, geometry.size, geometry.upsampling),
        geometry.border_px,
        geometry.border,
    )
    return F.conv2d(padded, weight, bias, geometry.stride, groups=groups)


def _check(shape: Sequence[int], weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
    kernel = geometry.kernel_px
    if len(shape) != 4 or weight.dim() != 4 or weight.shape[2:] != (kernel, kernel) or shape[1] % weight.shape[1]:
        raise ValueError(
            f"conv2d: got maps {tuple(shape)} and weights {tuple(weight.shape)}, must be (N, C, H, W) and "
            f"(K, C, {kernel}, {kernel}), or (C, 1, {kernel}, {kernel}) for a depthwise convolution"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv2d: got a bias {tuple(bias.shape)}, must be ({len(weight)},)")


def _has_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether the kernels have this convolution: plain or depthwise, no other groups."""
    channels = x.shape[1]
    known = weight.shape[1] == channels or weight.shape[:2] == (channels, 1)
    # In bfloat16 the library convolves, with and without a gradient; strips that stay in the cache are for inference.
    types = (torch.float32,) if torch.is_grad_enabled() else MAP_TYPES
    return known and cpu_kernels(x, weight, bias, types=types)
