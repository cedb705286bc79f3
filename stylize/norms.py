"""Normalization layers for generators: instance, batch, batch-instance, layer, none.

Every layer computes `y = γ (x − μ)/√(σ² + ε) + β`; the kinds differ in the set of values over which μ and σ² are
taken. One fused multiply-add applies them, in any memory layout. A layer can report the statistics that it used
and can be given statistics to use instead of its own: modes of the same class (`recording`, `frozen`).

To add a kind: write the class, add its line to `NORMS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylize import processes
from stylize.errors import StylizeError, pick


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
        recorded: The statistics that the last forward pass used, where the layer was told to record.
        frozen: Statistics to use instead of the layer's own, or None.
    """

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
        statistics = self.frozen if self.frozen is not None else self.measure(x)
        if self.recording:
            self.recorded = Statistics(*(s.detach().clone() for s in statistics))
        return _multiply_add(x, *self.coefficients(statistics))

    def measure(self, x: Tensor) -> Statistics:
        """The statistics by which `x` `(N, C, H, W)` is to be normalized."""
        raise NotImplementedError  # abstract: each kind is this choice

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

    def measure(self, x: Tensor) -> Statistics:
        return instance_statistics(x)


class LayerNorm(Norm):
    """Layer normalization: μ and σ² over C×H×W of one image; γ and β by channel.

    The same in `train()` and in `eval()`. `torch.nn.functional.group_norm` with one group.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    def measure(self, x: Tensor) -> Statistics:
        variance, mean = torch.var_mean(x.float(), (1, 2, 3), correction=0)
        return Statistics(mean[:, None], variance[:, None])

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

    def measure(self, x: Tensor) -> Statistics:
        if not self.training:
            return self.running_statistics()
        batch = batch_statistics(instance_statistics(x))
        self.update_running_(batch, count=processes.count() * x.numel() // self.num_channels)
        return batch

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

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.gate = nn.Parameter(torch.ones(num_channels))
        self._batch: Statistics | None = None

    def measure(self, x: Tensor) -> Statistics:
        instance = instance_statistics(x)
        if self.training:
            self._batch = batch_statistics(instance)
            self.update_running_(self._batch, count=processes.count() * x.numel() // self.num_channels)
        return instance

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
    """Mean and biased variance over H×W: `(N, C, H, W)` → two of `(N, C)`, in float32.

    Raises:
        StylizeError: The maps are 1×1: there is nothing to normalize over.
    """
    if x.shape[-2] * x.shape[-1] == 1:
        raise StylizeError("normalization: got maps of 1×1, must be larger: there is nothing to take a variance of")
    variance, mean = torch.var_mean(x.float(), (2, 3), correction=0)
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
    if processes.count() == 1:
        between, mean = torch.var_mean(instance.mean, 0, correction=0, keepdim=True)
        return Statistics(mean, instance.variance.mean(0, keepdim=True) + between)
    mean = processes.average(instance.mean.mean(0, keepdim=True))
    own = (instance.variance + (instance.mean - mean).square()).mean(0, keepdim=True)
    return Statistics(mean, processes.average(own))


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


def _multiply_add(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    factor, offset = (t[:, :, None, None].to(x.dtype) for t in (factor, offset))
    return torch.addcmul(offset, x, factor)
