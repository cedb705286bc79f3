"""All measures of a painting at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from stylize.losses.vgg import TAPS, VGG19
from stylize.measures.distributions import StyleDistribution
from stylize.measures.flats import flats_score, texture_variance
from stylize.measures.frame import frame_score
from stylize.measures.grid import PERIODS_PX, grid_scores
from stylize.measures.structure import feature_structure_distance, structural_similarity

# What each name measures, and what it is in a good painting; the order of tables.
MEASURES: Mapping[str, str] = {
    **{f"grid_{px}px": f"woven grid of {px} px, about 1" for px in PERIODS_PX},
    "frame": "change by the edge, about 1",
    "flats": "texture of even areas, about 1",
    "wasserstein": "distance of features from the style's, low",
    "ssim": "structural similarity to the photograph, high",
    "cfsd": "distance of self-similarities from the photograph's, low",
}
STRUCTURE_TAP = "relu3_1"


class PaintingMeasures:
    """Measures paintings in one style by what no training minimizes.

    Args:
        vgg: The network whose features are compared.
        trained: The layers of the style term; the features of others are compared with the style's.
        styles: The style pictures, `(3, H, W)` in [0, 1] each, in the size that the network has learned.
    """

    def __init__(self, vgg: VGG19, trained: Sequence[str], styles: Sequence[Tensor]) -> None:
        self._vgg = vgg
        self._taps = untrained_taps(len(vgg.features), trained)
        reached = [tap for tap, place in TAPS.items() if place < len(vgg.features)]
        self._structure_tap = STRUCTURE_TAP if STRUCTURE_TAP in reached else reached[-1]
        with torch.no_grad():
            found = [vgg(style[None], self._taps) for style in styles]
        self._distributions = {tap: StyleDistribution([maps[tap] for maps in found]) for tap in self._taps}
        self._texture_variance = fmean(texture_variance(style) for style in styles)

    @torch.no_grad()
    def measure(
        self, painted: Tensor, photograph: Tensor, paint: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """Return the measures of a painting by name, but for those that a picture of its size or kind does not have.

        Args:
            painted: `(3, H, W)` in [0, 1], on the device of the network.
            photograph: What it was painted from, likewise.
            paint: What has painted it, `(1, 3, H, W)` in [0, 1] to the same shape; None: its frame is not measured.
        """
        features = self._vgg(painted[None], {*self._taps, self._structure_tap})
        photographs = self._vgg(photograph[None], (self._structure_tap,))
        distances = [distribution.distance(features[tap]) for tap, distribution in self._distributions.items()]
        found = {
            **_grids(painted),
            "frame": None if paint is None else frame_score(paint, photograph, painted),
            "flats": flats_score(painted, photograph, self._texture_variance),
            "wasserstein": fmean(distances) if distances else None,
            "ssim": structural_similarity(painted[None], photograph[None]),
            "cfsd": feature_structure_distance(features[self._structure_tap], photographs[self._structure_tap]),
        }
        return {name: value for name, value in found.items() if value is not None}


def untrained_taps(depth: int, trained: Sequence[str]) -> list[str]:
    """Return the first layer of each block of VGG-19 that the style term does not read.

    Args:
        depth: Number of convolutions that the network has.
        trained: The layers of the style term.

    >>> untrained_taps(5, ["relu1_1", "relu2_1", "relu3_1"])
    ['relu1_2', 'relu2_2']
    """
    found: dict[str, str] = {}
    for tap, place in TAPS.items():
        if place < depth and tap not in trained:
            found.setdefault(tap[: len("relu1")], tap)
    return list(found.values())


def means_of(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each measure over the paintings that have it.

    >>> means_of([{"ssim": 0.5, "flats": 1.0}, {"ssim": 0.25}])
    {'flats': 1.0, 'ssim': 0.375}
    """
    return {name: fmean(values) for name, values in by_measure(measured).items()}


def by_measure(measured: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the values of each measure that any painting has, in the order of `MEASURES`."""
    values = {name: [found[name] for found in measured if name in found] for name in MEASURES}
    return {name: numbers for name, numbers in values.items() if numbers}


def _grids(picture: Tensor) -> dict[str, float]:
    return {f"grid_{px}px": score for px, score in grid_scores(picture).items()}
