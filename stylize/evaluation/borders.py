"""Compare a picture's border with its centre."""

from __future__ import annotations

import math
from statistics import fmean

from torch import Tensor

from stylize.losses.perceptual import PerceptualLoss
from stylize.measures.frame import border_mask
from stylize.pictures.picture import luminance

BORDER_PX = 16


def border_scores(loss: PerceptualLoss, stylized: Tensor, content: Tensor) -> dict[str, float]:
    """Return the ratios of a picture's border to its centre: 1 if both are alike.

    `content` and `style` are the loss near the border over that in the centre, at the loss's layers: mean squared
    feature differences from the photograph, and `‖G − G*‖²/‖G*‖²` of the Gram matrices of either part. `brightness` is
    the border's mean luminance over the centre's, divided by the same ratio of the photograph.

    Args:
        loss: Network, layers and style.
        stylized: `(1, 3, H, W)` in [0, 1], larger than 32 px in both directions.
        content: The photograph, the same shape.
    """
    config = loss.config
    features, targets = loss.vgg(stylized, config.taps()), loss.vgg(content, config.content_layers)
    of_content = [
        _over_centre((features[tap].float() - targets[tap].float()).square(), stride_of(tap))
        for tap in config.content_layers
    ]
    of_style = [
        _style_error(features[tap], loss.style_gram(tap), True, stride_of(tap))
        / _style_error(features[tap], loss.style_gram(tap), False, stride_of(tap))
        for tap in config.style_layers
    ]
    brightness = _over_centre(luminance(stylized), 1) / _over_centre(luminance(content), 1)
    return {"content": fmean(of_content), "style": fmean(of_style), "brightness": brightness}


def stride_of(tap: str) -> int:
    """Return the px between two positions of a layer: VGG-19 halves the size before every block but the first.

    >>> stride_of("relu1_2"), stride_of("relu3_1")
    (1, 4)
    """
    return 1 << (int(tap[4]) - 1)


def _mask(maps: Tensor, stride_px: int) -> Tensor:
    return border_mask(maps.shape[-2], maps.shape[-1], math.ceil(BORDER_PX / stride_px)).to(maps.device)


def _over_centre(maps: Tensor, stride_px: int) -> float:
    border = _mask(maps, stride_px)
    return float(maps[..., border].mean() / maps[..., ~border].mean().clamp_min(1e-12))


def _style_error(features: Tensor, target: Tensor, at_border: bool, stride_px: int) -> float:
    border = _mask(features, stride_px)
    part = features[0][:, border if at_border else ~border].float()
    gram = part @ part.T / part.numel()
    return float((gram - target).square().sum() / target.square().sum())
