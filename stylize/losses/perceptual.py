"""The perceptual loss: the terms of `TERMS`, by name, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stylize.errors import StylizeError
from stylize.losses.terms import TERMS, TOTAL, Batch, LossConfig, StyleTerm, Term
from stylize.losses.vgg import VGG19

PIXELS_TOGETHER = 1 << 16  # small pictures are computed together up to this size, whose features are in memory at once


class PerceptualLoss(nn.Module):
    """The terms of stylized pictures, and their weighted sum.

    Args:
        vgg: The frozen VGG-19 or student, deep enough for the configured layers.
        config: Layers, weights, scale.
        styles: Style images, each `(3, H, W)` in [0, 1]; they may differ in size.
        style_image_weights: A weight for each; what the terms remember of the images of a style is averaged by it.
        style_of_image: The number of the style of each image, ascending from 0; None: they are one style. With several
            styles every call is told the style of each picture.

    Attributes:
        style_count: Number of styles.

    Source: Gatys et al. 2016, equations 1 to 7; Johnson et al. 2016, arXiv:1603.08155, equations 1 to 4.
    Differs: in how terms are scaled; see their classes.
    """

    def __init__(
        self,
        vgg: VGG19,
        config: LossConfig,
        styles: Sequence[Tensor],
        style_image_weights: Sequence[float] | None = None,
        style_of_image: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.vgg = vgg
        self.config = config
        self._taps, self._content_taps = config.taps(), config.content_taps()
        self._weights = {name: config.weight_of(name) for name in TERMS}
        self.terms = nn.ModuleDict({name: term(config) for name, term in TERMS.items()})
        weights = torch.tensor(style_image_weights or [1.0] * len(styles))
        numbers = torch.tensor(style_of_image or [0] * len(styles))
        self.style_count = int(numbers.max()) + 1
        self._remember_styles(styles, weights, numbers)

    def hold_in(self, dtype: torch.dtype) -> None:
        """Hold the frozen network, and its maps, in this type; what the terms remember of the styles stays float32."""
        self.vgg.hold_in(dtype)

    def _remember_styles(self, images: Sequence[Tensor], weights: Tensor, numbers: Tensor) -> None:
        of_images = [self._style_targets(image) for image in images]
        of_styles = []
        for style in range(self.style_count):
            members = [i for i, number in enumerate(numbers.tolist()) if number == style]
            of_styles.append(_mean([of_images[i] for i in members], weights[members] / weights[members].sum()))
        for name, first in of_styles[0].items():
            if self.style_count == 1:
                self._term(name).remember(first)
                continue
            stacked = {target: torch.stack([of_style[name][target] for of_style in of_styles]) for target in first}
            self._term(name).remember(stacked)

    @torch.no_grad()
    def _style_targets(self, style: Tensor) -> dict[str, dict[str, Tensor]]:
        features = self.vgg(style[None], self._taps)
        return {name: self._term(name).style_targets(features) for name in self.terms}

    def _term(self, name: str) -> Term:
        return cast(Term, self.terms[name])

    def style_gram(self, layer: str, style: int = 0) -> Tensor:
        """Return a style's Gram matrix at a layer of the style term, `(C, C)`, averaged over its images."""
        return cast(StyleTerm, self.terms["style"]).target_gram(layer, style)

    def forward(self, stylized: Tensor, content: Tensor, styles: Tensor | None = None) -> dict[str, Tensor]:
        """Return the terms of a batch of pictures.

        Args:
            stylized: `(N, 3, H, W)` in [0, 1].
            content: The photographs, the same shape.
            styles: The number of each picture's style, `(N,)`; needed if there are several styles, else unused.

        Returns:
            Scalars by name: every layer (`style/relu1_1`, `content/relu2_2`), the terms before their weights, and
            `total`, the weighted sum of what is minimized of each: the term itself, or another form of it.
        """
        return self._values(self._batch(stylized, content, styles))

    def by_image(self, stylized: Tensor, content: Tensor, styles: Tensor | None = None) -> dict[str, Tensor]:
        """Return the terms as a call does, one picture after the other; only `total` has a gradient.

        The gradient is computed here, picture by picture: so the features of one picture at a time are in memory, and
        in the cache; of small pictures those of several. Terms are means over pictures: the numbers differ by rounding.
        """
        gradient = torch.empty_like(stylized)
        parts: list[Tensor] = []
        together = max(1, PIXELS_TOGETHER // (stylized.shape[2] * stylized.shape[3]))
        for first in range(0, len(stylized), together):
            some = slice(first, first + together)
            of_styles = None if styles is None else styles[some]
            terms, of_some = self._with_gradient(stylized[some], content[some], of_styles)
            share = len(of_some) / len(stylized)
            torch.mul(of_some, share, out=gradient[some])
            parts.append(share * torch.stack(list(terms.values())))
        mean = dict(zip(terms, torch.stack(parts).sum(0).unbind(), strict=True))
        return mean | {TOTAL: with_known_gradient(mean[TOTAL], stylized, gradient)}

    @torch.enable_grad()
    def _with_gradient(
        self, stylized: Tensor, content: Tensor, styles: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms, without gradients, and the gradient of the total with respect to the stylized pictures."""
        leaf = stylized.detach().requires_grad_()
        terms = self(leaf, content, styles)
        (gradient,) = torch.autograd.grad(terms[TOTAL], leaf)
        return {name: term.detach() for name, term in terms.items()}, gradient

    def prepare(self) -> None:
        """Transform the frozen VGG weights now: allocated during the first step they would fragment the heap."""
        side_px = least_side_px(self.config)
        black = self.vgg.mean.new_zeros(1, 3, side_px, side_px)
        self.by_image(black, black, torch.zeros(1, dtype=torch.long, device=black.device))

    def towards(self, content: Tensor, styles: Tensor | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return the call with its photographs fixed: their features are computed once."""
        fixed, numbers = self._content_features(content), self._numbers(styles)
        return lambda stylized: self._values(Batch(stylized, content, self.vgg(stylized, self._taps), fixed, numbers))

    def measure(self, stylized: Tensor, content: Tensor, styles: Tensor | None = None) -> dict[str, Tensor]:
        """Return the terms as a call does, and the terms' measures, such as `content_correlation`."""
        batch = self._batch(stylized, content, styles)
        values = self._values(batch)
        for name in self.terms:
            values |= self._term(name).measure(batch)
        return values

    def _batch(self, stylized: Tensor, content: Tensor, styles: Tensor | None) -> Batch:
        content_features = self._content_features(content)  # first: the maps of the other have to be kept
        return Batch(stylized, content, self.vgg(stylized, self._taps), content_features, self._numbers(styles))

    def _numbers(self, styles: Tensor | None) -> Tensor | None:
        if self.style_count == 1:
            return None
        if styles is None:
            raise ValueError(f"styles: got None, must be the style of each picture, 0 to {self.style_count - 1}")
        return styles

    @torch.no_grad()
    def _content_features(self, content: Tensor) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.vgg(content, self._content_taps))

    def _values(self, batch: Batch) -> dict[str, Tensor]:
        found = {name: term(batch) for name, term in self.terms.items()}
        values = {f"{name}/{layer}": x for name, term in found.items() for layer, x in term.by_layer.items()}
        values |= {name: term.value for name, term in found.items()}
        first, *others = (self._weights[name] * term.in_total for name, term in found.items())
        return values | {TOTAL: sum(others, start=first)}


def _mean(of_images: Sequence[dict[str, dict[str, Tensor]]], shares: Tensor) -> dict[str, dict[str, Tensor]]:
    """The mean of what the terms are to remember of the images of a style."""
    return {
        name: {
            target: cast(Tensor, sum(share * of[name][target] for share, of in zip(shares, of_images, strict=True)))
            for target in first
        }
        for name, first in of_images[0].items()
    }


def with_known_gradient(value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """Return `value` as a function of `x` whose gradient is known already."""
    return cast(Tensor, _KnownGradient.apply(value, x, gradient))


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.saved_tensors[0] * gradients[0], None


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
