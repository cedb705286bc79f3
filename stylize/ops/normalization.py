"""Normalize maps: statistics of every image and channel, and one multiply-add by coefficients made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stylize.errors import StylizeError
from stylize.ops.dispatch import MAP_TYPES, count_kernel_call, cpu_kernels, gpu_kernels, try_gpu_kernel, widened
from stylize.ops.moments import Statistics, merged

Coefficients = Callable[[Statistics], tuple[Tensor, Tensor]]


def normalize(
    x: Tensor,
    coefficients: Coefficients,
    parameters: Sequence[Tensor],
    *,
    relu: bool = False,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    even_below: float = 0.0,
) -> Tensor:
    """Return `factor · x + offset` by coefficients that are functions of the images' own statistics.

    Args:
        x: `(N, C, H, W)`.
        coefficients: Maps the statistics of the images, each `(N, C)`, to factor and offset, each `(N or 1, C)`.
        parameters: All tensors with a gradient that `coefficients` uses.
        relu: Whether to apply ReLU to the result.
        out: Memory that may be used for the result, without a gradient; it may be `x`. Always use the returned tensor.
        dtype: Type of the result; None: that of `x`.
        even_below: Variance below which a channel of an image is even. Its gradient with respect to `x` is multiplied
            by the ratio of its variance to this: an even channel passes nothing on, instead of rounding errors that
            each norm multiplies by 1/√ε.

    Returns:
        The shape and layout of `x`.

    Raises:
        StylizeError: The maps are 1×1: there is nothing to normalize over.
        ValueError: `out` has another shape or type than `x`.
    """
    _check_out(out, x)
    fuses = torch.is_grad_enabled() and fuses_norms(x) and (dtype or x.dtype) in MAP_TYPES
    if fuses and x.shape[-2:].numel() > 1:
        from stylize.ops.cpu import norm

        count_kernel_call()
        return norm.normalize(x, coefficients, parameters, relu, dtype or x.dtype, even_below)
    wide = x if cpu_kernels(x, types=MAP_TYPES) or gpu_kernels(x) else widened(x)  # once for both operations
    instance = instance_statistics(wide)
    if torch.is_grad_enabled() and even_below:
        shares = even_shares(instance.variance, even_below)
        instance = Statistics(*(_PassedOn.apply(statistic, shares) for statistic in instance))
        wide = _PassedOn.apply(wide, shares[:, :, None, None])
        return affine(wide, *coefficients(instance), relu=relu).to(dtype or x.dtype)
    if wide is x:
        return affine(x, *coefficients(instance), relu=relu, out=out, dtype=dtype)
    result = affine(wide, *coefficients(instance), relu=relu, out=wide)
    return _stored(result, _usable(out, x, dtype), dtype or x.dtype)


def affine(
    x: Tensor,
    factor: Tensor,
    offset: Tensor,
    *,
    relu: bool = False,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return `factor · x + offset` and apply ReLU if asked.

    Args:
        x: `(N, C, H, W)`.
        factor: `(N or 1, C)`.
        offset: `(N or 1, C)`.
        relu: Whether to apply ReLU.
        out: See `normalize`.
        dtype: Likewise.
    """
    _check_out(out, x)
    dtype = dtype or x.dtype
    out = _usable(out, x, dtype)
    if cpu_kernels(x, types=MAP_TYPES) and cpu_kernels(factor, offset) and dtype in MAP_TYPES:
        from stylize.ops.cpu import norm

        same_layout = out is None or out.stride() == x.stride()
        if not torch.is_grad_enabled() and norm.is_vectorized(x) and same_layout:
            count_kernel_call()
            return norm.affine(x, factor, offset, relu, torch.empty_like(x, dtype=dtype) if out is None else out)
        if torch.is_grad_enabled() and norm.is_supported(x) and factor.shape == x.shape[:2] and cpu_kernels(x):
            count_kernel_call()
            result = norm.multiply_add(x, factor, offset)
            return (torch.relu_(result) if relu else result).to(dtype)
    if gpu_kernels(x):
        from stylize.ops.gpu import norm as gpu_norm

        target = torch.empty_like(x, dtype=dtype) if out is None else out
        if gpu_norm.is_supported(x) and target.stride() == x.stride():
            written = try_gpu_kernel(lambda: gpu_norm.affine(x, factor, offset, relu, target))
            if written is not None:
                return written
    wide = widened(x)  # so are the coefficients: rounded, they would move a channel as a whole
    room = out if wide is x else None if torch.is_grad_enabled() else wide
    factor, offset = (t[:, :, None, None].to(wide.dtype) for t in (factor, offset))
    result = torch.addcmul(offset, wide, factor, out=room)
    return _stored(torch.relu_(result) if relu else result, out, dtype)


def _usable(out: Tensor | None, x: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """Return the memory for a result of this type, unless it is of another type, or has to be differentiated."""
    return None if torch.is_grad_enabled() or dtype not in (None, x.dtype) else out


def _stored(result: Tensor, out: Tensor | None, dtype: torch.dtype) -> Tensor:
    return result.to(dtype) if out is None or out is result else out.copy_(result)


def instance_statistics(x: Tensor) -> Statistics:
    """Return mean and biased variance over H×W: `(N, C, H, W)` → two of `(N, C)`, in float32 (of float64: in float64).

    Raises:
        StylizeError: The maps are 1×1: there is nothing to normalize over.
    """
    if x.shape[-2] * x.shape[-1] == 1:
        raise StylizeError("normalization: got maps of 1×1, must be larger: there is nothing to take a variance of")
    if cpu_kernels(x, types=MAP_TYPES):
        from stylize.ops.cpu import norm

        if norm.is_supported(x):
            count_kernel_call()
            return norm.instance_statistics(x)
    if gpu_kernels(x):
        from stylize.ops.gpu import norm as gpu_norm

        measured = try_gpu_kernel(lambda: gpu_norm.measure(x)) if gpu_norm.is_supported(x) else None
        if measured is not None:
            return Statistics(*measured)
    variance, mean = torch.var_mean(widened(x), (2, 3), correction=0)
    return Statistics(mean, variance)


def fuses_norms(x: Tensor) -> bool:
    """Return whether a kernel normalizes `x` `(N, C, H, W)` and rectifies it in one pass, forward and backward."""
    if not cpu_kernels(x, types=MAP_TYPES):
        return False
    from stylize.ops.cpu import norm

    return norm.is_vectorized(x)


def even_shares(variance: Tensor, even_below: float) -> Tensor:
    """Return the share of its gradient that each channel of an image passes on: `(N, C)`, 0 to 1; see `normalize`."""
    return (variance.detach() / even_below).clamp(max=1)


class _PassedOn(torch.autograd.Function):
    """The identity, whose gradient is multiplied by shares."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Tensor) -> Tensor:
        ctx.save_for_backward(shares)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0].to(gradients[0].dtype), None


class MergedStatistics:
    """Statistics of an image that comes in pieces, merged in float64.

    Differs: from sums of values and of squares, the same numbers, which cancel where the means are large.

    >>> x = torch.arange(24.0).reshape(1, 2, 4, 3)
    >>> statistics = MergedStatistics()
    >>> for piece in x.split([1, 3], dim=2):
    ...     statistics.add(piece)
    >>> all(map(torch.allclose, statistics.result(), instance_statistics(x)))
    True
    """

    def __init__(self) -> None:
        self._pixels: list[int] = []
        self._pieces: list[Statistics] = []

    def add(self, piece: Tensor) -> None:
        """Take a piece `(1, C, rows, columns)`."""
        self._pieces.append(instance_statistics(piece))
        self._pixels.append(piece.shape[-2] * piece.shape[-1])

    def result(self) -> Statistics:
        """Return mean and biased variance of all pieces together, each `(1, C)`. The host waits for the device once."""
        means, variances = torch.stack([torch.stack(piece) for piece in self._pieces], 1).cpu()
        total = merged(torch.tensor(self._pixels).view(-1, 1, 1), means, variances)
        return Statistics(*(values.to(self._pieces[0].mean.device) for values in total))


def _check_out(out: Tensor | None, x: Tensor) -> None:
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype or out.device != x.device):
        raise ValueError(
            f"out: got {out.dtype} {tuple(out.shape)} on {out.device}, must be {x.dtype} {tuple(x.shape)} on {x.device}"
        )
