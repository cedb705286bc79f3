"""The perceptual loss: content, Gram-matrix style and total variation, as named terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stylize.errors import StylizeError, unknown_name
from stylize.losses.vgg import TAPS, VGG19, Pooling, VGGPadding
from stylize.ops import gram_matrix

PIXELS_TOGETHER = 1 << 16  # of small pictures, whose features stand in memory at a time


def _known_taps(weights: Mapping[str, float]) -> Mapping[str, float]:
    for tap, weight in weights.items():
        if tap not in TAPS:
            raise ValueError(unknown_name(tap, TAPS, "").removeprefix(": "))
        if not 0 < weight < math.inf:
            raise ValueError(f"got {tap}: {weight}, must be a finite weight above 0")
    if not weights:
        raise ValueError("got no layers, must name at least one")
    return weights


LayerWeights = Annotated[dict[str, float], AfterValidator(_known_taps)]


class LossConfig(BaseModel):
    """What the generator is trained against."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    vgg: str = Field(
        "imagenet", description="VGG-19 weights: imagenet, compact, random, a file, or a-or-b: the first to be had"
    )
    pooling: Pooling = Field("max", description="pooling in VGG-19")
    padding: VGGPadding = Field("replication", description="what VGG-19 sees beyond the border")
    content_layers: LayerWeights = Field(
        {"relu4_2": 1.0}, description="layers whose features keep the content, with weights"
    )
    style_layers: LayerWeights = Field(
        {"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0, "relu4_1": 1.0},
        description="layers whose Gram matrices carry the style, with weights",
    )
    channel_balance: float = Field(
        0.5, ge=0, le=1, description="relative: 0: strong channels count most in Gram matrices; 1: all alike"
    )
    content_weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="factor of the content term")
    style_weight: float = Field(3.0, ge=0, allow_inf_nan=False, description="factor of the style term")
    tv_weight: float = Field(0.0, ge=0, allow_inf_nan=False, description="factor of the total variation")
    scale: Literal["relative", "raw"] = Field(
        "relative",
        description="relative: each term over the energy of what it compares; raw: mean squares, as in the papers",
    )

    def taps(self) -> tuple[str, ...]:
        """Every layer that the loss looks at."""
        return tuple({**self.style_layers, **self.content_layers})


class PerceptualLoss(nn.Module):
    """Content, style and total-variation terms of stylized pictures.

    With `scale: relative` a style layer's squared Gram difference is divided by the energy of the style's Gram matrix,
    `‖G − G*‖² / ‖G*‖²`; a content layer's squared feature difference by the energy of the photograph's features and the
    style's together, `‖F − F*‖² / (‖F*‖² + ‖F_style‖²)`, each per value; and layers are averaged by their weights. So a
    weight means much the same for every VGG and every style. (Over the photograph's energy alone a style of strong
    contrast would drive the content term far above 1, whatever the network does: a painting in that style has the
    style's energy.)
    With `channel_balance` b the Gram entry of channels i and j is first divided by `(G*_ii G*_jj)^(b/2)`: at 0 it is
    the plain Gram matrix, in which a few channels that see brightness and edges outweigh all that see colour, and pale
    styles lose theirs; at 1 every channel counts alike.
    With `raw` a layer's term is the mean squared difference, and layers are summed, as in the papers' code.

    Args:
        vgg: The frozen descriptor, deep enough for the configured layers.
        config: Layers, weights, scale.
        styles: Style images, each `(3, H, W)` in [0, 1]; they may differ in size.
        style_image_weights: A weight for each; their Gram matrices are averaged by it.

    Source: Gatys et al. 2016, equations 1 to 7; Johnson et al. 2016, arXiv:1603.08155, equations 1 to 4.
    Differs: in the raw scale the style term is the mean over C×C of the squared Gram difference, as both authors'
        released code has it, not the sum.
    """

    def __init__(
        self,
        vgg: VGG19,
        config: LossConfig,
        styles: Sequence[Tensor],
        style_image_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.vgg = vgg
        self.config = config
        weights = torch.tensor(style_image_weights or [1.0] * len(styles))
        targets = [self._style_targets(style) for style in styles]
        for name in targets[0]:
            mean = sum(w * t[name] for w, t in zip(weights / weights.sum(), targets, strict=True))
            self.register_buffer(name, mean)
        for tap in config.style_layers:
            gram = self.get_buffer(f"gram_{tap}")
            balance = channel_balance(gram, config.channel_balance)
            self.register_buffer(f"balance_{tap}", balance)
            self.register_buffer(f"balanced_gram_{tap}", balance * gram)

    def forward(self, stylized: Tensor, content: Tensor) -> dict[str, Tensor]:
        """The terms for a batch of pictures.

        Args:
            stylized: `(N, 3, H, W)` in [0, 1].
            content: The photographs, the same shape.

        Returns:
            Scalars by name: every layer (`style/relu1_1`, `content/relu2_2`), the terms `style`, `content` and
            `tv` before their weights, and `total`, their weighted sum.
        """
        return self._terms(stylized, *self._features(stylized, content))

    def by_image(self, stylized: Tensor, content: Tensor) -> dict[str, Tensor]:
        """The terms as in a call, one picture after the other; only `total` has a gradient, taken at once.

        So the features of one picture at a time stand in memory, and in the cache; of small pictures those of several.
        Every term is a mean over pictures: the numbers are the same but for rounding.
        """
        names: list[str] = []
        total, others = _MeanOverImages.apply(stylized, content, self, names)
        return dict(zip(names, others.unbind(), strict=True)) | {"total": total}

    def prepare(self) -> None:
        """Make what the convolutions keep of frozen weights now, not between the maps of a step.

        There it would lie in the midst of what is freed after it, and leave the memory in pieces.
        """
        side_px = least_side_px(self.config)
        nothing = self.vgg.mean.new_zeros(1, 3, side_px, side_px)
        self.by_image(nothing, nothing)

    def towards(self, content: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
        """The call with its photographs fixed: their features are computed once."""
        with torch.no_grad():
            targets = self.vgg(content, self.config.content_layers)
        return lambda stylized: self._terms(stylized, self.vgg(stylized, self.config.taps()), targets)

    def measure(self, stylized: Tensor, content: Tensor) -> dict[str, Tensor]:
        """The terms as in a call, and `content_correlation`, a measure of the content that is kept.

        It is the correlation of the features at the content layers, stylized against photograph: 1 where all structure
        is kept, whatever its contrast, 0 where none is.
        """
        features, targets = self._features(stylized, content)
        correlations = [correlation(features[tap], targets[tap]) for tap in self.config.content_layers]
        return self._terms(stylized, features, targets) | {"content_correlation": torch.stack(correlations).mean()}

    def _features(self, stylized: Tensor, content: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features of the stylized pictures at all layers, and of the photographs at the content layers."""
        with torch.no_grad():  # before the other, whose maps have to be kept
            targets = self.vgg(content, self.config.content_layers)
        return self.vgg(stylized, self.config.taps()), targets

    def _terms(
        self, stylized: Tensor, features: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        config = self.config
        terms = {f"content/{tap}": self._content(tap, features[tap], targets[tap]) for tap in config.content_layers}
        terms |= {f"style/{tap}": self._style(tap, features[tap]) for tap in config.style_layers}
        terms["content"] = self._combine(terms, "content", config.content_layers)
        terms["style"] = self._combine(terms, "style", config.style_layers)
        terms["tv"] = total_variation(stylized, squared=config.scale == "raw")
        terms["total"] = (
            config.content_weight * terms["content"]
            + config.style_weight * terms["style"]
            + config.tv_weight * terms["tv"]
        )
        return terms

    def _style_targets(self, style: Tensor) -> dict[str, Tensor]:
        """What a style image is remembered by: Gram matrices, and its features' mean square at the content layers."""
        with torch.no_grad():
            features = self.vgg(style[None], self.config.taps())
        grams = {f"gram_{tap}": gram_matrix(features[tap])[0] for tap in self.config.style_layers}
        return grams | {f"energy_{tap}": features[tap].float().square().mean() for tap in self.config.content_layers}

    def _content(self, tap: str, features: Tensor, target: Tensor) -> Tensor:
        if self.config.scale == "raw":
            return squared_error(features.float(), target.float())
        target = target.float()
        energy = target.square().flatten(1).mean(1) + self.get_buffer(f"energy_{tap}")
        return squared_error(features.float(), target, energy)

    def _style(self, tap: str, features: Tensor) -> Tensor:
        gram = gram_matrix(features)
        if self.config.scale == "raw":
            return squared_error(gram, self.get_buffer(f"gram_{tap}").expand_as(gram))
        target = self.get_buffer(f"balanced_gram_{tap}")
        return squared_error(self.get_buffer(f"balance_{tap}") * gram, target.expand_as(gram), target.square().mean())

    def _combine(self, terms: Mapping[str, Tensor], kind: str, layers: Mapping[str, float]) -> Tensor:
        total = torch.stack([weight * terms[f"{kind}/{tap}"] for tap, weight in layers.items()]).sum()
        return total / sum(layers.values()) if self.config.scale == "relative" else total


class _MeanOverImages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stylized: Tensor, content: Tensor, loss: PerceptualLoss, names: list[str]
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(stylized)
        measured: list[Tensor] = []
        together = max(1, PIXELS_TOGETHER // (stylized.shape[2] * stylized.shape[3]))
        for first in range(0, len(stylized), together):
            some = slice(first, first + together)
            with torch.enable_grad():
                leaf = stylized[some].detach().requires_grad_()
                terms = loss(leaf, content[some])
                (of_images,) = torch.autograd.grad(terms["total"], leaf)
            share = len(leaf) / len(stylized)
            torch.mul(of_images, share, out=gradient[some])
            names[:] = terms
            measured.append(share * torch.stack([term.detach() for term in terms.values()]))
        ctx.save_for_backward(gradient)
        mean = torch.stack(measured).sum(0)
        ctx.mark_non_differentiable(mean)
        return mean[names.index("total")].clone(), mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * gradients[0], None, None, None


def channel_balance(gram: Tensor, balance: float) -> Tensor:
    """Factors `(g_i g_j)^(−balance/2)` for the entries of a Gram matrix, g its diagonal over the diagonal's mean.

    Channels below a thousandth of the mean count as that: what is not in the style is not to be blown up.

    >>> gram = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    >>> (gram * channel_balance(gram, 1.0)).tolist()
    [[2.5, 1.25], [1.25, 2.5]]
    """
    energy = gram.diagonal()
    factor = (energy / energy.mean().clamp_min(1e-12)).clamp_min(1e-3) ** (-balance / 2)
    return torch.outer(factor, factor)


def squared_error(value: Tensor, target: Tensor, energy: Tensor | None = None) -> Tensor:
    """The mean squared difference, image by image, over an energy (a mean square) if one is given, then averaged.

    >>> a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    >>> float(squared_error(a, b)), float(squared_error(a, b, energy=torch.tensor(8.0)))
    (2.0, 0.25)
    """
    error = (value - target).square().flatten(1).mean(1)
    if energy is not None:
        error = error / energy.clamp_min(1e-12)
    return error.mean()


def correlation(value: Tensor, target: Tensor) -> Tensor:
    """Correlation of feature maps `(N, C, H, W)`, each channel centred, image by image, then averaged.

    >>> maps = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
    >>> round(float(correlation(3 * maps + 7, maps)), 6), round(float(correlation(-maps, maps)), 6)
    (1.0, -1.0)
    """
    a, b = (maps.float() - maps.float().mean((2, 3), keepdim=True) for maps in (value, target))
    product = (a * b).flatten(1).sum(1)
    norms = a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1)
    return torch.mean(product / norms.clamp_min(1e-12))


def total_variation(image: Tensor, squared: bool = False) -> Tensor:
    """Mean absolute (or squared) difference of neighbouring pixels, down plus across.

    >>> float(total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])))
    1.0
    """
    down, across = image.diff(dim=-2), image.diff(dim=-1)
    if squared:
        return down.square().mean() + across.square().mean()
    return down.abs().mean() + across.abs().mean()


def least_side_px(config: LossConfig) -> int:
    """Height and width from which on a picture leaves at least 4 values at the deepest layer, and is at least 16 px.

    >>> least_side_px(LossConfig(content_layers={"relu3_1": 1.0}, style_layers={"relu4_1": 1.0}))
    32
    """
    poolings = max(int(tap[4]) for tap in config.taps()) - 1
    return max(16, 4 << poolings)


def check_style_size(height: int, width: int, config: LossConfig, name: str) -> None:
    """Refuse a style image that shrinks to nothing on its way to the deepest layer.

    Raises:
        StylizeError: It is smaller than 16 px in a direction, or than 4 values at the deepest layer.
    """
    least = least_side_px(config)
    if min(height, width) < least:
        raise StylizeError(
            f"{name}: got a style image of {width}×{height} px, must be at least {least} px in each direction"
        )
