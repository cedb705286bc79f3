"""How much of a photograph's structure a painting keeps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stylize.pictures.picture import luminance

SIGMA_PX, RADIUS_PX = 1.5, 5
K1, K2 = 0.01, 0.03
MOST_POSITIONS = 1024  # of a layer: a matrix of all pairs is made


def structural_similarity(a: Tensor, b: Tensor) -> float:
    """Return the mean structural similarity (SSIM) of the luma of two pictures: 1 if equal.

    Luminance, contrast and structure are compared in windows of 11 px with Gaussian weights (σ 1.5 px). It is blind to
    structure that is moved by some px, and takes other colours of the same brightness as equal; strong texture of the
    style lowers it though nothing of the photograph is lost.

    Args:
        a: `(N, 3, H, W)` in [0, 1], at least 11 px in each direction.
        b: Likewise.

    Source: Wang et al. 2004, with its constants.
    """
    x, y = luminance(a).double().cpu(), luminance(b).double().cpu()
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _blurred(x: Tensor) -> Tensor:
    places = torch.arange(-RADIUS_PX, RADIUS_PX + 1, dtype=x.dtype)
    weights = torch.exp(-(places**2) / (2 * SIGMA_PX**2))
    weights = weights / weights.sum()
    return functional.conv2d(functional.conv2d(x, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


def feature_structure_distance(features: Tensor, photograph: Tensor) -> float:
    """Return the content feature structural distance (CFSD): 0 if the same places of a picture resemble each other.

    Every place of a layer (of many, about 1,024 at even distances) is compared with every other by the inner product of
    their features, and the row of each turned into probabilities (softmax). The distance is the Kullback-Leibler
    divergence of the painting's rows from the photograph's, averaged over places. It sees which parts belong together,
    not where edges lie to the pixel. Features are first divided by their mean length, and products multiplied by √C, so
    that the layer's scale does not decide how sharp the softmax is.

    Args:
        features: `(1, C, H, W)` of the painting, usually relu3_1.
        photograph: The photograph's, the same shape.

    Source: Chung et al. 2024, arXiv:2312.09008, section 5.2.
    Differs: in the scale of the features.

    >>> x = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> feature_structure_distance(x, 3 * x) < 1e-6, feature_structure_distance(x.flip(3), x) > 1e-3
    (True, True)
    """
    ours, theirs = _log_similarities(features), _log_similarities(photograph)
    return float((theirs.exp() * (theirs - ours)).sum(1).mean())


def _log_similarities(features: Tensor) -> Tensor:
    _, channels, height, width = features.shape
    step = max(1, round((height * width / MOST_POSITIONS) ** 0.5))
    places = features[0, :, ::step, ::step].float().reshape(channels, -1).T
    places = places / places.norm(dim=1).mean().clamp_min(1e-12)
    similarities: Tensor = places @ places.T * channels**0.5
    return similarities.log_softmax(1)
