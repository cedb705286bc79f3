"""How far the features of painted pictures are from the style's, as distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

DIRECTIONS, QUANTILES = 128, 256


def sliced_wasserstein(features: Tensor, style: Tensor) -> float:
    """Return the sliced Wasserstein distance of two sets of feature vectors, relative to the style's spread.

    The vectors are projected on 128 random directions, the same at every call. Along each the squared 2-Wasserstein
    distance of the two distributions is the mean squared difference of their quantiles (256 of each). The sum over
    directions is divided by that of the style's variances; the root is returned. 0: the same distribution along every
    direction; 1: about as far away as the mean of the style's features. Gram matrices see means of products alone; this
    sees the whole distribution, but neither places nor neighbours.

    Args:
        features: `(N, C, H, W)`.
        style: `(1, C, H', W')`.

    Source: Rabin et al. 2011; Heitz et al. 2021, arXiv:2006.07229.

    >>> x = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> sliced_wasserstein(x, x), sliced_wasserstein(x.flip(2), x), round(sliced_wasserstein(x + 1, x), 1) > 3
    (0.0, 0.0, True)
    """
    channels = features.shape[1]
    directions = torch.randn(DIRECTIONS, channels, generator=torch.Generator().manual_seed(0))
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(features.device)
    theirs, ours = (directions @ x.float().transpose(0, 1).flatten(1) for x in (style, features))
    at = (torch.arange(QUANTILES, device=features.device) + 0.5) / QUANTILES
    difference = _quantiles(ours, at) - _quantiles(theirs, at)
    spread = theirs.var(1, correction=0).mean().clamp_min(1e-12)
    return float((difference.square().mean() / spread).sqrt())


def _quantiles(values: Tensor, at: Tensor) -> Tensor:
    """Quantiles of each row, interpolated linearly; torch.quantile takes at most 16 million values."""
    ordered = values.sort(dim=1).values
    places = at * (values.shape[1] - 1)
    low = places.floor().long()
    high = (low + 1).clamp_max(values.shape[1] - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], places - low)


def untrained_layers(trained: Sequence[str], reached: Mapping[str, Tensor]) -> list[str]:
    """The layers among those reached that no term of a loss reads."""
    return [layer for layer in reached if layer not in trained]
