"""Normalization layers for generators: instance, batch, batch-instance, layer, none.

Every layer computes `y = γ (x − μ)/√(σ² + ε) + β`; the kinds differ in the set of values over which μ and σ² are
taken. One fused multiply-add applies them, in any memory layout. A layer can report the statistics that it used
and can be given statistics to use instead of its own: modes of the same class (`recording`, `frozen`).

To add a kind: write the class, add its line to `NORMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stylize.errors import StylizeError, pick
from stylize.ops.cpu import norm as channelwise
from stylize.ops.cpu.norm import Affine
from stylize.system import distributed

PIXELS_A_SUM = 1 << 12


class Statistics(NamedTuple):
    """Mean and biased variance, each `(N or 1, C or 1)`, float32."""

    mean: Tensor
    variance: Tensor


class ParameterGroup(NamedTuple):
    """Parameters that share an optimizer setting.

    `learning_rate_factor` multiplies the configured learning rate.
    """

    parameters: list[nn.Parameter]
    learning_rate_factor: float = 1.0


class Norm(nn.Module):
    """A normalization layer over `(N, C, H, W)`.

    Args:
        num_channels: C.
        center: Learn the offset β; without it β = 0.
        scale: Learn the factor γ; without it γ = 1.
        eps: ε, added to the variance.

    Attributes:
        min_batch_size: The smallest batch that the layer can be trained with.
        why_min_batch_size: The reason, for the message that refuses a smaller one.
        recorded: The statistics that the last forward pass used, where the layer was told to record.
        frozen: Statistics to use instead of the layer's own, or None.
    """

    min_batch_size: int = 1
    why_min_batch_size: str = ""

    def __init__(self, num_channels: int, *, center: bool = True, scale: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels)) if scale else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if center else None
        self.recording = False
        self.recorded: Statistics | None = None
        self.frozen: Statistics | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` `(N, C, H, W)`; the same shape, layout and type come back.

        Raises:
            StylizeError: `x` is not 4-D.
        """
        if x.dim() != 4:
            raise StylizeError(f"{type(self).__name__}: got an input of shape {tuple(x.shape)}, must be (N, C, H, W)")
        if self._in_one(x):
            return self._normalized_in_one(x, relu=False)
        return _multiply_add(x, *self.coefficients(self._statistics(x)))

    def normalize_(self, x: Tensor, *, relu: bool = False, out: Tensor | None = None) -> Tensor:
        """The same as a call, and ReLU if asked, but written over `out`, or over `x` if none is given.

        Where that would be of no use, as with gradients, both stay as they are: what counts comes back.
        """
        if self._in_one(x):
            return self._normalized_in_one(x, relu)
        if torch.is_grad_enabled() or self.training or x.dim() != 4 or x.dtype != torch.float32:
            normalized: Tensor = self(x)
        else:
            out = x if out is None else out
            factor, offset = self.coefficients(self._statistics(x))
            if _is_dense_on_cpu(x) and channelwise.suits(x) and out.stride() == x.stride():
                shape = len(x), x.shape[1]
                return Affine(factor.expand(shape), offset.expand(shape), relu)(x, out)
            normalized = torch.addcmul(offset[:, :, None, None], x, factor[:, :, None, None], out=out)
        return torch.relu_(normalized) if relu else normalized

    def measure(self, x: Tensor) -> Statistics:
        """The statistics by which `x` `(N, C, H, W)` is to be normalized."""
        return self.settle(instance_statistics(x), x.shape[-2:].numel())

    def settle(self, instance: Statistics, pixels: int) -> Statistics:
        """The same from the statistics of the images, `(N, C)`, of so many pixels each."""
        return self.of_images(instance)

    def of_images(self, instance: Statistics) -> Statistics:
        """The statistics by which images are to be normalized in `eval()`, from those of their channels, `(N, C)`."""
        raise NotImplementedError  # abstract: each kind is this choice

    @property
    def needs_images(self) -> bool:
        """Whether images are normalized by statistics of their own in `eval()`."""
        return True

    def coefficients(self, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """`(a, b)`, each `(N or 1, C)`, such that `a x + b` is the normalized `x`."""
        inverse = torch.rsqrt(statistics.variance + self.eps)
        return self._affine(inverse, -statistics.mean * inverse)

    def project_(self) -> None:
        """Put the parameters back into their range; called after every optimizer step."""

    def param_groups(self) -> list[ParameterGroup]:
        """All of the layer's parameters, grouped by optimizer setting."""
        return [ParameterGroup(list(self.parameters(recurse=False)))]

    def histograms(self) -> dict[str, Tensor]:
        """Values worth watching in training, by name."""
        return {}

    def extra_repr(self) -> str:
        flags = f"center={self.bias is not None}, scale={self.weight is not None}"
        return f"{self.num_channels}, {flags}, eps={self.eps}"

    def _statistics(self, x: Tensor) -> Statistics:
        statistics = self.frozen if self.frozen is not None else self.measure(x)
        if self.recording:
            self.recorded = Statistics(*(s.detach().clone() for s in statistics))
        return statistics

    def _in_one(self, x: Tensor) -> bool:
        """Whether gradients are wanted, and all can be had at once."""
        watched = self.recording or self.frozen is not None or not torch.is_grad_enabled()
        own = self.training or self.needs_images
        return own and not watched and _is_dense_on_cpu(x) and x.shape[-2:].numel() > 1 and channelwise.suits(x)

    def _normalized_in_one(self, x: Tensor, relu: bool) -> Tensor:
        pixels = x.shape[-2:].numel()

        def coefficients(instance: Statistics) -> tuple[Tensor, Tensor]:
            return self.coefficients(self.settle(instance, pixels))

        result: Tensor = _Normalized.apply(x, coefficients, relu, *self.parameters(recurse=False))
        return result

    def _affine(self, factor: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        if self.weight is not None:
            factor, offset = factor * self.weight, offset * self.weight
        if self.bias is not None:
            offset = offset + self.bias
        return factor, offset


class InstanceNorm(Norm):
    """Instance normalization: μ and σ² over H×W of one image and one channel.

    The same in `train()` and in `eval()`: there are no running statistics. At inference, too, each image is
    normalized by its own; freezing them would bring back the dependence on the content's contrast that the method
    removes.

    Source: Ulyanov et al. 2016, arXiv:1607.08022, equation for IN.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.recording or self.frozen is not None or not _suits_group_norm(x):
            return super().forward(x)
        return F.group_norm(x, self.num_channels, self.weight, self.bias, self.eps)

    def of_images(self, instance: Statistics) -> Statistics:
        return instance


class LayerNorm(Norm):
    """Layer normalization: μ and σ² over C×H×W of one image; γ and β by channel.

    The same in `train()` and in `eval()`. `torch.nn.functional.group_norm` with one group; the statistics follow from
    those of the channels.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    def of_images(self, instance: Statistics) -> Statistics:
        between, mean = torch.var_mean(instance.mean, 1, correction=0, keepdim=True)
        return Statistics(mean, instance.variance.mean(1, keepdim=True) + between)

    def coefficients(self, statistics: Statistics) -> tuple[Tensor, Tensor]:
        factor, offset = super().coefficients(statistics)
        return factor.expand(-1, self.num_channels), offset.expand(-1, self.num_channels)


class BatchNorm(Norm):
    """Batch normalization: μ and σ² over N×H×W of one channel.

    In `train()` the batch's own, which also move the running ones; in `eval()` the running ones. The batch's
    statistics follow from those of its images; several processes that train together have one batch.

    Args:
        momentum: Share of the new batch in the running statistics.

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, *, momentum: float = 0.1, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        watched = self.recording or self.frozen is not None or distributed.count() > 1
        if watched or x.dim() != 4 or x.shape[-2:].numel() == 1 or self.eps == 0:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def measure(self, x: Tensor) -> Statistics:
        return super().measure(x) if self.training else self.running_statistics()

    def settle(self, instance: Statistics, pixels: int) -> Statistics:
        return self._of_batch(instance, pixels) if self.training else self.running_statistics()

    def _of_batch(self, instance: Statistics, pixels: int) -> Statistics:
        """The statistics of the batch, which the running ones have moved towards."""
        batch = batch_statistics(instance)
        self.update_running_(batch, count=distributed.count() * len(instance.mean) * pixels)
        return batch

    def of_images(self, instance: Statistics) -> Statistics:
        return self.running_statistics()

    @property
    def needs_images(self) -> bool:
        return False

    def running_statistics(self) -> Statistics:
        """The statistics for inference, each `(1, C)`."""
        return Statistics(self.running_mean[None], self.running_var[None])

    @torch.no_grad()
    def update_running_(self, batch: Statistics, count: int) -> None:
        """Move the running statistics towards those of a batch of `count` values a channel.

        The running variance is the unbiased one, as in `torch.nn.BatchNorm2d`.
        """
        self.running_mean.lerp_(batch.mean[0], self.momentum)
        self.running_var.lerp_(batch.variance[0] * (count / max(count - 1, 1)), self.momentum)


class BatchInstanceNorm(BatchNorm):
    """Batch-instance normalization: `y = γ (ρ x̂_B + (1 − ρ) x̂_I) + β`, the gate ρ ∈ [0, 1] by channel.

    In `train()` x̂_B uses the batch's statistics, in `eval()` the running ones; x̂_I always the image's own. ρ starts
    at 1, is clipped after every optimizer step (`project_`) and learns ten times as fast (`param_groups`). With a
    single image x̂_B = x̂_I and ρ has no gradient: batches of 2 or more are needed to train.

    Recorded and frozen statistics are the instance ones.

    Source: Nam & Kim 2018, arXiv:1805.07925, equations 3 to 5.
    """

    gate_learning_rate_factor = 10.0
    min_batch_size = 2
    why_min_batch_size = "with one image batch and instance statistics are the same and the gates do not learn"

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.gate = nn.Parameter(torch.ones(num_channels))
        self._batch: Statistics | None = None

    def forward(self, x: Tensor) -> Tensor:
        return Norm.forward(self, x)

    def measure(self, x: Tensor) -> Statistics:
        return Norm.measure(self, x)

    def settle(self, instance: Statistics, pixels: int) -> Statistics:
        if self.training:
            self._batch = self._of_batch(instance, pixels)
        return instance

    def of_images(self, instance: Statistics) -> Statistics:
        return instance

    @property
    def needs_images(self) -> bool:
        return True

    def coefficients(self, statistics: Statistics) -> tuple[Tensor, Tensor]:
        batch = self._batch if self._batch is not None else self.running_statistics()
        self._batch = None
        inverse_batch = self.gate * torch.rsqrt(batch.variance + self.eps)
        inverse_instance = (1 - self.gate) * torch.rsqrt(statistics.variance + self.eps)
        offset = -batch.mean * inverse_batch - statistics.mean * inverse_instance
        return self._affine(inverse_batch + inverse_instance, offset)

    @torch.no_grad()
    def project_(self) -> None:
        self.gate.clamp_(0, 1)

    def histograms(self) -> dict[str, Tensor]:
        return {"gate": self.gate}

    def param_groups(self) -> list[ParameterGroup]:
        rest = [p for p in self.parameters(recurse=False) if p is not self.gate]
        return [
            ParameterGroup(rest),
            ParameterGroup([self.gate], learning_rate_factor=self.gate_learning_rate_factor),
        ]


class NoNorm(Norm):
    """No normalization: the input comes back. It has neither parameters nor statistics."""

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **{**options, "center": False, "scale": False})

    def forward(self, x: Tensor) -> Tensor:
        return x

    def normalize_(self, x: Tensor, *, relu: bool = False, out: Tensor | None = None) -> Tensor:
        result = x if out is None else out.copy_(x)
        return torch.relu_(result) if relu else result

    @property
    def needs_images(self) -> bool:
        return False


NORMS: Mapping[str, type[Norm]] = {
    "instance": InstanceNorm,
    "batch": BatchNorm,
    "batch_instance": BatchInstanceNorm,
    "layer": LayerNorm,
    "none": NoNorm,
}


def build_norm(name: str, num_channels: int, **options: Any) -> Norm:
    """The normalization layer of that name.

    Raises:
        StylizeError: No such name.
    """
    return pick(NORMS, name, "generator.norm")(num_channels, **options)


def instance_statistics(x: Tensor) -> Statistics:
    """Mean and biased variance over H×W: `(N, C, H, W)` → two of `(N, C)`, in float32 (of float64: in float64).

    Raises:
        StylizeError: The maps are 1×1: there is nothing to normalize over.
    """
    if x.shape[-2] * x.shape[-1] == 1:
        raise StylizeError("normalization: got maps of 1×1, must be larger: there is nothing to take a variance of")
    if _is_dense_on_cpu(x):
        return Statistics(*_InstanceStatistics.apply(x))
    variance, mean = torch.var_mean(x if x.dtype == torch.float64 else x.float(), (2, 3), correction=0)
    return Statistics(mean, variance)


def batch_statistics(instance: Statistics) -> Statistics:
    """The statistics of the whole batch from those of its images: two of `(N, C)` → two of `(1, C)`.

    `μ_B = mean μ_n`, `σ²_B = mean σ²_n + mean (μ_n − μ_B)²`: the variance within the images and that between them. The
    batch is that of all processes of a training, each of which has as many images.

    Differs: from `mean(σ²_n + μ_n²) − μ_B²`, the same number, which cancels where the means are large.

    >>> x = torch.arange(24.0).reshape(2, 3, 2, 2)
    >>> float(batch_statistics(instance_statistics(x)).variance[0, 0])  # of 0, 1, 2, 3, 12, 13, 14, 15
    37.25
    """
    if distributed.count() == 1:
        between, mean = torch.var_mean(instance.mean, 0, correction=0, keepdim=True)
        return Statistics(mean, instance.variance.mean(0, keepdim=True) + between)
    mean = distributed.average(instance.mean.mean(0, keepdim=True))
    own = (instance.variance + (instance.mean - mean).square()).mean(0, keepdim=True)
    return Statistics(mean, distributed.average(own))


class MergedStatistics:
    """Statistics of an image that comes in pieces, merged in float64.

    Differs: from sums of values and of squares, the same numbers, which cancel where the means are large.

    Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, equation 2.1.

    >>> x = torch.arange(24.0).reshape(1, 2, 4, 3)
    >>> merged = MergedStatistics()
    >>> for piece in x.split([1, 3], dim=2):
    ...     merged.add(piece)
    >>> all(map(torch.allclose, merged.result(), instance_statistics(x)))
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
        """Mean and biased variance of all pieces together, each `(1, C)`."""
        means, variances = (torch.stack([values.cpu() for values in kind]) for kind in zip(*self._pieces, strict=True))
        merged = _merged(torch.tensor(self._pixels).view(-1, 1, 1), means, variances)
        return Statistics(*(values.to(self._pieces[0].mean.device) for values in merged))


def _merged(counts: Tensor, means: Tensor, variances: Tensor) -> Statistics:
    """Statistics of pieces, stacked in the first dimension, and how many values each of them is of → of all."""
    shares = counts.double() / counts.sum()
    mean = (shares * means.double()).sum(0)
    variance = (shares * (variances.double() + (means.double() - mean).square())).sum(0)
    return Statistics(mean.float(), variance.float())


@contextmanager
def recorded_statistics(module: nn.Module) -> Iterator[dict[str, Statistics]]:
    """Within the block, every norm in `module` records; afterwards the dict holds what each used last, by name."""
    layers = {n: m for n, m in module.named_modules() if isinstance(m, Norm)}
    statistics: dict[str, Statistics] = {}
    for layer in layers.values():
        layer.recording = True
    try:
        yield statistics
        statistics.update({n: m.recorded for n, m in layers.items() if m.recorded is not None})
    finally:
        for layer in layers.values():
            layer.recording, layer.recorded = False, None


@contextmanager
def frozen_statistics(module: nn.Module, statistics: Mapping[str, Statistics]) -> Iterator[None]:
    """Within the block, the norms named in `statistics` use those instead of their own.

    Raises:
        StylizeError: A name is not a norm of `module`.
    """
    layers = {n: m for n, m in module.named_modules() if isinstance(m, Norm)}
    chosen = [(pick(layers, name, "frozen statistics"), given) for name, given in statistics.items()]
    for layer, given in chosen:
        layer.frozen = given
    try:
        yield
    finally:
        for layer, _ in chosen:
            layer.frozen = None


def _suits_group_norm(x: Tensor) -> bool:
    """Whether torch's fused kernel is right and fast: on a CPU it is, but for channels-last, where it cancels."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
    return plain and x.dim() == 4 and x.shape[-2:].numel() > 1


def _is_dense_on_cpu(x: Tensor) -> bool:
    """Whether `x` is dense float32 on a CPU, where torch's reductions over H×W are slow but for batch norm's."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    return plain and (x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous())


def _multiply_add(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    if _is_dense_on_cpu(x) and factor.shape == (len(x), x.shape[1]):
        result: Tensor = _MultiplyAdd.apply(x, factor, offset)
        return result
    factor, offset = (t[:, :, None, None].to(x.dtype) for t in (factor, offset))
    return torch.addcmul(offset, x, factor)


class _Normalized(torch.autograd.Function):
    # The small graph from the images' statistics to the coefficients is kept, and gone through in the backward pass.

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        coefficients: Callable[[Statistics], tuple[Tensor, Tensor]],
        relu: bool,
        *parameters: Tensor,
    ) -> Tensor:
        instance = Statistics(*channelwise.measure(x))
        with torch.enable_grad():
            for statistic in instance:
                statistic.requires_grad_()
            factor, offset = (c.expand(instance.mean.shape) for c in coefficients(instance))
        ctx.instance, ctx.parameters, ctx.affine = instance, parameters, Affine(factor, offset, relu)
        ctx.save_for_backward(x)
        result: Tensor = ctx.affine(x)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=_layout(x))
        leaves = (*ctx.instance, *(p for p in ctx.parameters if p.requires_grad))
        of_leaves = torch.autograd.grad(
            ctx.affine[:2], leaves, ctx.affine.sums(x, gradient), retain_graph=True, materialize_grads=True
        )
        of_mean, of_variance, *of_parameters = of_leaves
        found = iter(of_parameters)
        of_x = None
        if ctx.needs_input_grad[0]:
            pixels = x.shape[2] * x.shape[3]
            slope = of_variance * (2 / pixels)
            of_x = ctx.affine.gradient(x, gradient, slope, of_mean / pixels - slope * ctx.instance.mean)
        return of_x, None, None, *(next(found) if p.requires_grad else None for p in ctx.parameters)


# Where neither the channels of a pixel nor the pixels of a channel fill vectors, the reductions are those of torch's
# batch norm, image by image.


def _image_statistics(image: Tensor) -> Statistics:
    """Mean and biased variance of every channel of an image `(C, H, W)`: two of `(C,)`.

    From bands of rows, merged: a float32 sum over the millions of pixels of a large picture would be too coarse.
    """
    width = image.shape[-1]
    bands = torch.split(image, max(1, PIXELS_A_SUM // width), dim=1)
    measured = [torch.batch_norm_update_stats(band[None], None, None, 0.0) for band in bands]
    if len(bands) == 1:
        return Statistics(*measured[0])
    means, variances = (torch.stack(values) for values in zip(*measured, strict=True))
    return _merged(torch.tensor([[band.shape[1]] for band in bands]), means, variances)


class _InstanceStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if channelwise.suits(x):
            mean, variance = channelwise.measure(x)
        else:
            mean, variance = (torch.stack(values) for values in zip(*map(_image_statistics, x), strict=True))
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.shape[-2] * x.shape[-1]
        of_mean, of_variance = gradients
        factor = of_variance * (2 / count)
        return _multiply_add(x, factor, of_mean / count - factor * mean)


class _MultiplyAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(x, factor)
        return torch.addcmul(offset[:, :, None, None], x, factor[:, :, None, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, factor = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=_layout(x))
        zero, one = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        sums = [
            torch.ops.aten.native_batch_norm_backward(
                g[None], image[None], None, None, None, zero, one, True, 0.0, [False, True, True]
            )
            for image, g in zip(x, gradient, strict=True)
        ]
        of_factor, of_offset = (torch.stack([s[i] for s in sums]) for i in (1, 2))
        of_x = gradient * factor[:, :, None, None] if ctx.needs_input_grad[0] else None
        return of_x, of_factor, of_offset


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last
