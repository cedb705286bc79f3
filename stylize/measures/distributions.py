"""How far the features of a painting are from the style's, as distributions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DIRECTIONS, QUANTILES = 64, 256
MOST_POSITIONS = 4096  # of a layer: all are sorted along every direction


class StyleDistribution:
    """The distribution of a style's features at one layer.

    Args:
        features: Feature maps of the style pictures, `(1, C, H, W)` each.
    """

    def __init__(self, features: Sequence[Tensor]) -> None:
        channels = features[0].shape[1]
        directions = torch.randn(DIRECTIONS, channels, generator=torch.Generator().manual_seed(0))
        self._directions = directions / directions.norm(dim=1, keepdim=True)
        of_style = torch.cat([self._along_directions(x) for x in features], 1)
        self._quantiles = _quantiles(of_style)
        self._variance = of_style.var(1, correction=0).mean().clamp_min(1e-12)

    def distance(self, features: Tensor) -> float:
        """Return the sliced Wasserstein distance of a painting's features, relative to the style's spread.

        The vectors are projected on 64 random directions, always the same. Along each the squared 2-Wasserstein
        distance of the two distributions is the mean squared difference of their quantiles (256 of each). The mean over
        directions is divided by that of the style's variances; the root is returned. 0: the same distribution along
        every direction; 1: about as far away as the mean of the style's features. Gram matrices see means of products
        alone; this sees the whole distribution, but neither places nor neighbours.

        Args:
            features: Feature maps of the painting, `(1, C, H, W)`.

        Source: Rabin et al. 2011; Heitz et al. 2021, arXiv:2006.07229.

        >>> x = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> style = StyleDistribution([x])
        >>> style.distance(x), style.distance(x.flip(2)), style.distance(x + 1) > 3
        (0.0, 0.0, True)
        """
        difference = _quantiles(self._along_directions(features)) - self._quantiles
        return float((difference.square().mean() / self._variance).sqrt())

    def _along_directions(self, features: Tensor) -> Tensor:
        """Projections of the feature vectors, of evenly chosen places if there are many, `(directions, positions)`."""
        _, channels, height, width = features.shape
        step = max(1, round((height * width / MOST_POSITIONS) ** 0.5))
        vectors = features[0, :, ::step, ::step].float().cpu().reshape(channels, -1)
        projections: Tensor = self._directions @ vectors
        return projections


def _quantiles(values: Tensor) -> Tensor:
    """The quantiles of each row, interpolated linearly."""
    ordered = values.sort(dim=1).values
    places = (torch.arange(QUANTILES) + 0.5) / QUANTILES * (values.shape[1] - 1)
    low = places.floor().long()
    high = (low + 1).clamp_max(values.shape[1] - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], places - low)
