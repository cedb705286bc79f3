"""Measure a generator on the held-out photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from stylize.generators import Generator
from stylize.losses.perceptual import PerceptualLoss
from stylize.measures.painting import PaintingMeasures, means_of
from stylize.system import distributed
from stylize.system.compute import Compute

STYLE_OF_PHOTOGRAPHS = "style_of_photographs"


class Measured(NamedTuple):
    """The held-out photographs, painted and measured.

    Attributes:
        painted: For each style the painted photographs, `(3, H, W)` each, on the CPU.
        terms: Means of the terms over photographs and styles.
        by_style: The means of each style by its name; empty if there is only one.
        measures: Means of the measures that are not trained on, over photographs and styles.
        measures_by_style: The means of each style by its name; empty if there is only one.
    """

    painted: list[list[Tensor]]
    terms: dict[str, float]
    by_style: dict[str, dict[str, float]]
    measures: dict[str, float]
    measures_by_style: dict[str, dict[str, float]]


class HeldOut:
    """Held-out photographs, which every process of a training measures a share of.

    Args:
        photographs: `(3, H, W)` in [0, 1], all of one size.
        styles: Names of the styles.
        generator: The network.
        loss: The loss.
        compute: Device and precision.
        kept: Number of styles that the network has before these, and that are not measured.
        measures: What measures the paintings of each style beside the loss; None: nothing does.
    """

    def __init__(
        self,
        photographs: Sequence[Tensor],
        styles: Sequence[str],
        generator: Generator,
        loss: PerceptualLoss,
        compute: Compute,
        kept: int = 0,
        measures: Sequence[PaintingMeasures] | None = None,
    ) -> None:
        self.photographs = list(photographs)
        self.styles = tuple(styles)
        self.generator = generator
        self.loss = loss
        self.compute = compute
        self.kept = kept
        self.measures = measures

    @torch.no_grad()
    def measure(self) -> Measured:
        """Paint every photograph in every style with the generator in `eval()`, and measure. The host waits."""
        self.generator.eval()
        painted, by_style, measures = [], {}, {}
        for number, name in enumerate(self.styles):
            own = [self._measured(image, number) for image in distributed.share(self.photographs)]
            found = distributed.gather_interleaved(own)
            painted.append([image for image, _, _ in found])
            terms = _means([terms for _, terms, _ in found])
            by_style[name] = {STYLE_OF_PHOTOGRAPHS: self.style_of_photographs[number], **terms}
            measures[name] = means_of([values for _, _, values in found])
        self.generator.train()
        several = len(self.styles) > 1
        return Measured(
            painted,
            _means(list(by_style.values())),
            by_style if several else {},
            means_of(list(measures.values())),
            measures if several else {},
        )

    def _measured(self, photograph: Tensor, style: int) -> tuple[Tensor, dict[str, float], dict[str, float]]:
        content, styles = self.compute.photographs(photograph[None]), self._chosen(style)
        self.generator.paint_in(one_hot(styles + self.kept, self.kept + len(self.styles)))
        with self.compute.context():
            stylized = self._paint(content)
            terms = values_of(self.loss.measure(stylized, content, styles), self.compute.device)
            measures = {}
            if self.measures is not None:
                measures = self.measures[style].measure(stylized[0], content[0], self._paint)
        return stylized[0].cpu(), terms, measures

    def _paint(self, content: Tensor) -> Tensor:
        painted: Tensor = self.generator(self.compute.network_input(content))
        return painted

    def _chosen(self, style: int) -> Tensor:
        return torch.tensor([style], device=self.compute.device)

    @cached_property
    def style_of_photographs(self) -> list[float]:
        """The style term of the unstylized photographs for every style, for comparison. The host waits."""
        found = []
        with torch.no_grad(), self.compute.context():
            contents = [self.compute.photographs(image[None]) for image in distributed.share(self.photographs)]
            for number in range(len(self.styles)):
                own = [float(self.loss(c, c, self._chosen(number))["style"]) for c in contents]
                found.append(fmean(distributed.gather_interleaved(own)))
        return found


def one_hot(styles: Tensor, count: int) -> Tensor | None:
    """Return the shares of the styles for images that have one each, `(N, S)`; None if there is only one style."""
    return None if count == 1 else torch.nn.functional.one_hot(styles, count).float()


def values_of(terms: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
    """Return scalars as numbers. The host waits for the device once: all are copied together."""
    values = torch.stack([term.detach().float().to(device) for term in terms.values()])
    return dict(zip(terms, values.tolist(), strict=True))


def _means(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for terms in measured:
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + term / len(measured)
    return sums
