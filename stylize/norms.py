"""Normalization layers for generators: instance, batch, batch-instance, layer, none.

Every layer computes `y = γ (x − μ)/√(σ² + ε) + β`; the kinds differ in the set of values over which μ and σ² are
taken. All of them follow from the statistics of the images' channels, so one reduction and one multiply-add serve every
kind, in any memory layout. A layer can record these statistics, and can be given others in place of an image's own:
modes of the same class (`recording`, `frozen`; see `stylize.generators.statistics`).

To add a kind: write the class, add its line to `NORMS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylize import ops
from stylize.errors import StylizeError, pick
from stylize.ops import Statistics, batch_statistics, layer_statistics
from stylize.system import distributed

NOTHING = Statistics(torch.empty(0, 0), torch.empty(0, 0))


class ParameterGroup(NamedTuple):
    """Parameters that share an optimizer setting.

    `learning_rate_factor` multiplies the configured learning rate.
    """

    parameters: list[nn.Parameter]
    learning_rate_factor: float = 1.0


class Norm(nn.Module):
    """A normalization layer over `(N, C, H, W)`. A kind is its `coefficients`.

    Args:
        num_channels: C.
        center: Learn the offset β; without it β = 0.
        scale: Learn the factor γ; without it γ = 1.
        eps: ε, added to the variance.

    Attributes:
        min_batch_size: Smallest batch with which the layer can be trained.
        why_min_batch_size: Reason for it, for the message that refuses a smaller one.
        needs_images: Whether images are normalized by statistics of their own in `eval()`.
        divides_by_images: Whether a channel is divided by its own deviation in an image, which may be 0. The gradient
            of one whose variance is below ε is scaled down; see `stylize.ops.normalize`.
        mixture: With several styles, the share of each in γ and β: `(N, S)`, or `(1, S)` for all images alike.
        recorded: Instance statistics of the last forward pass, where the layer was told to record.
        frozen: Instance statistics to use in place of the images' own, or None.
    """

    min_batch_size: ClassVar[int] = 1
    why_min_batch_size: ClassVar[str] = ""
    needs_images: ClassVar[bool] = True
    divides_by_images: ClassVar[bool] = False

    def __init__(self, num_channels: int, *, center: bool = True, scale: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels)) if scale else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if center else None
        self.mixture: Tensor | None = None
        self.recording = False
        self.recorded: Statistics | None = None
        self.frozen: Statistics | None = None

    @property
    def style_count(self) -> int:
        """Number of styles that the layer has γ and β for."""
        own = self.bias if self.weight is None else self.weight
        return 1 if own is None or own.dim() == 1 else len(own)

    def have_styles_(self, count: int) -> None:
        """Have γ and β for so many styles, `(S, C)`, each row as they were; for one they stay vectors.

        Source: Dumoulin et al. 2017, arXiv:1610.07629, conditional instance normalization.
        """
        for name in ("weight", "bias"):
            own = getattr(self, name)
            if own is not None and count > 1:
                setattr(self, name, nn.Parameter(own.detach().expand(count, -1).clone()))

    def blend_(self, shares: Tensor) -> None:
        """Have γ and β of one style, a blend of those so far by shares `(1, S)`."""
        for name in ("weight", "bias"):
            own = getattr(self, name)
            if own is not None and own.dim() == 2:
                setattr(self, name, nn.Parameter(blend(own.detach(), shares.to(own.device))[0]))
        self.mixture = None

    def coefficients(self, instance: Statistics, pixels: int) -> tuple[Tensor, Tensor]:
        """Return `(a, b)`, each `(N or 1, C)`, such that `a x + b` is the normalized `x`, before γ and β.

        Args:
            instance: Mean and biased variance of every image and channel, `(N, C)`; in `eval()` without `needs_images`
                they are empty.
            pixels: H·W.
        """
        raise NotImplementedError  # abstract: each kind is this choice

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` `(N, C, H, W)`; shape, layout and type stay.

        Raises:
            StylizeError: `x` is not 4-D, or its maps are 1×1 where there must be something to normalize over.
        """
        return self._normalized(x)

    def normalize_(
        self,
        x: Tensor,
        *,
        relu: bool = False,
        out: Tensor | None = None,
        instance: Statistics | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Like `forward`, then optional ReLU, reusing memory in inference. Always use the returned tensor.

        Args:
            x: `(N, C, H, W)`.
            relu: Whether to apply ReLU.
            out: Memory of the shape of `x` that may be used for the result; None: that of `x`.
            instance: Instance statistics to use in place of the images' own, or None.
            dtype: Type of the result; None: that of `x`.
        """
        if torch.is_grad_enabled() or self.training:
            return self._normalized(x, relu, None, instance, dtype)
        return self._normalized(x, relu, x if out is None else out, instance, dtype)

    def hold_running(self) -> None:
        """Keep the running statistics as they are, and normalize by them in training, too."""

    def project_(self) -> None:
        """Put the parameters back into their range; called after every optimizer step."""

    def param_groups(self) -> list[ParameterGroup]:
        """Return all of the layer's parameters, grouped by optimizer setting."""
        return [ParameterGroup(list(self.parameters(recurse=False)))]

    def histograms(self) -> dict[str, Tensor]:
        """Return values worth watching in training, by name."""
        return {}

    def extra_repr(self) -> str:
        flags = f"center={self.bias is not None}, scale={self.weight is not None}"
        return f"{self.num_channels}, {flags}, eps={self.eps}"

    def _normalized(
        self,
        x: Tensor,
        relu: bool = False,
        out: Tensor | None = None,
        instance: Statistics | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        if x.dim() != 4:
            raise StylizeError(f"{type(self).__name__}: got an input of shape {tuple(x.shape)}, must be (N, C, H, W)")
        pixels = x.shape[2] * x.shape[3]
        instance = self.frozen if instance is None else instance
        if instance is None and (self.training or self.needs_images):
            if not self.recording:
                parameters = tuple(self.parameters(recurse=False))
                even_below = self.eps if self.divides_by_images else 0.0
                return ops.normalize(
                    x,
                    lambda own: self._affine(own, pixels),
                    parameters,
                    relu=relu,
                    out=out,
                    dtype=dtype,
                    even_below=even_below,
                )
            instance = ops.instance_statistics(x)
            self.recorded = Statistics(*(s.detach().clone() for s in instance))
        return ops.affine(x, *self._affine(instance or NOTHING, pixels), relu=relu, out=out, dtype=dtype)

    def _affine(self, instance: Statistics, pixels: int) -> tuple[Tensor, Tensor]:
        """Return the coefficients with γ and β."""
        factor, offset = self.coefficients(instance, pixels)
        weight, bias = self._of_images(self.weight), self._of_images(self.bias)
        if weight is not None:
            factor, offset = factor * weight, offset * weight
        return factor, offset if bias is None else offset + bias

    def _of_images(self, parameter: Tensor | None) -> Tensor | None:
        """γ or β: `(C,)`, or with several styles `(N or 1, C)`."""
        if parameter is None or parameter.dim() == 1:
            return parameter
        if self.mixture is None:
            raise StylizeError(f"{type(self).__name__}: has {len(parameter)} styles, and was not told which to use")
        return blend(parameter, self.mixture)


class InstanceNorm(Norm):
    """Instance normalization: μ and σ² over H×W of one image and one channel.

    The same in `train()` and in `eval()`: there are no running statistics. At inference, too, each image is
    normalized by its own; freezing them would bring back the dependence on the content's contrast that the method
    removes.

    Source: Ulyanov et al. 2016, arXiv:1607.08022, equation for IN.
    """

    divides_by_images = True

    def coefficients(self, instance: Statistics, pixels: int) -> tuple[Tensor, Tensor]:
        return standardizing(instance, self.eps)


class LayerNorm(Norm):
    """Layer normalization: μ and σ² over C×H×W of one image; γ and β by channel.

    The same in `train()` and in `eval()`. `torch.nn.functional.group_norm` with one group; the statistics follow from
    those of the channels.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    def coefficients(self, instance: Statistics, pixels: int) -> tuple[Tensor, Tensor]:
        factor, offset = standardizing(layer_statistics(instance), self.eps)
        return factor.expand(-1, self.num_channels), offset.expand(-1, self.num_channels)


class RunningNorm(Norm):
    """A norm that keeps running statistics of the batches of a training.

    The batch's statistics follow from those of its images; several processes that train together have one batch.

    Args:
        momentum: Share of the new batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, *, momentum: float = 0.1, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.momentum = momentum
        self.holds_running = False
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def hold_running(self) -> None:
        self.holds_running = True

    def statistics(self, instance: Statistics, pixels: int) -> Statistics:
        """Return the batch's statistics in `train()`, and move the running ones; these in `eval()`. `(1, C)` each."""
        if not self.training or self.holds_running:
            return Statistics(self.running_mean[None], self.running_var[None])
        batch = batch_statistics(instance)
        self._update_running_(batch, distributed.count() * len(instance.mean) * pixels)
        return batch

    @torch.no_grad()
    def _update_running_(self, batch: Statistics, count: int) -> None:
        """Move the running statistics by a batch of `count` values a channel; the variance is the unbiased one."""
        self.running_mean.lerp_(batch.mean[0], self.momentum)
        self.running_var.lerp_(batch.variance[0] * (count / max(count - 1, 1)), self.momentum)


class BatchNorm(RunningNorm):
    """Batch normalization: μ and σ² over N×H×W of one channel, as `torch.nn.BatchNorm2d`.

    In `train()` the batch's own, which also move the running ones; in `eval()` the running ones.

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    needs_images = False

    def coefficients(self, instance: Statistics, pixels: int) -> tuple[Tensor, Tensor]:
        return standardizing(self.statistics(instance, pixels), self.eps)

    def forward(self, x: Tensor) -> Tensor:
        special = (
            self.style_count > 1
            or self.recording
            or self.frozen is not None
            or distributed.count() > 1
            or self.eps == 0
        )
        if special or x.dim() != 4 or x.shape[-2:].numel() == 1:
            return super().forward(x)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training and not self.holds_running,
            self.momentum,
            self.eps,
        )

    def normalize_(
        self,
        x: Tensor,
        *,
        relu: bool = False,
        out: Tensor | None = None,
        instance: Statistics | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        fused = self.training and ops.fuses_norms(x)
        if instance is None and not fused and self.style_count == 1 and (self.training or torch.is_grad_enabled()):
            normalized = self(x)
            return (torch.relu_(normalized) if relu else normalized).to(dtype or x.dtype)
        return super().normalize_(x, relu=relu, out=out, instance=instance, dtype=dtype)


class BatchInstanceNorm(RunningNorm):
    """Batch-instance normalization: `y = γ (ρ x̂_B + (1 − ρ) x̂_I) + β`, the gate ρ ∈ [0, 1] by channel.

    In `train()` x̂_B uses the batch's statistics, in `eval()` the running ones; x̂_I always the image's own. ρ starts
    at 1, is clipped after every optimizer step (`project_`) and learns ten times as fast (`param_groups`). With a
    single image x̂_B = x̂_I and ρ has no gradient: batches of 2 or more are needed to train.

    Source: Nam & Kim 2018, arXiv:1805.07925, equations 3 to 5.
    """

    divides_by_images = True
    gate_learning_rate_factor = 10.0
    min_batch_size = 2
    why_min_batch_size = "with one image batch and instance statistics are the same and the gates do not learn"

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.gate = nn.Parameter(torch.ones(num_channels))

    def coefficients(self, instance: Statistics, pixels: int) -> tuple[Tensor, Tensor]:
        batch = self.statistics(instance, pixels)
        of_batch = self.gate * torch.rsqrt(batch.variance + self.eps)
        of_instance = (1 - self.gate) * torch.rsqrt(instance.variance + self.eps)
        return of_batch + of_instance, -batch.mean * of_batch - instance.mean * of_instance

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

    needs_images = False

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **{**options, "center": False, "scale": False})

    def forward(self, x: Tensor) -> Tensor:
        return x

    def normalize_(
        self,
        x: Tensor,
        *,
        relu: bool = False,
        out: Tensor | None = None,
        instance: Statistics | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        result = (x if out is None else out.copy_(x)).to(dtype or x.dtype)
        return torch.relu_(result) if relu else result


NORMS: Mapping[str, type[Norm]] = {
    "instance": InstanceNorm,
    "batch": BatchNorm,
    "batch_instance": BatchInstanceNorm,
    "layer": LayerNorm,
    "none": NoNorm,
}


def build_norm(name: str, num_channels: int, **options: Any) -> Norm:
    """Return a normalization layer of that name.

    Raises:
        StylizeError: No such name.
    """
    return pick(NORMS, name, "generator.norm")(num_channels, **options)


def blend(parameter: Tensor, shares: Tensor) -> Tensor:
    """Return γ or β of blended styles, `(N, C)`: the mean of its rows `(S, C)` by shares `(N, S)`.

    No product of matrices, which a GPU may round to TensorFloat-32: a style with the whole share keeps its bits.
    """
    return (shares[:, :, None].to(parameter.dtype) * parameter).sum(1)


def standardizing(statistics: Statistics, eps: float) -> tuple[Tensor, Tensor]:
    """Return `(a, b)` such that `a x + b` is `(x − μ)/√(σ² + ε)`."""
    inverse = torch.rsqrt(statistics.variance + eps)
    return inverse, -statistics.mean * inverse
