"""Change, equalize and compare the contrast of pictures."""

from __future__ import annotations

from PIL import Image, ImageOps
from torch import Tensor

from stylize.pictures.picture import luminance


def change_contrast(images: Tensor, factor: float) -> Tensor:
    """Move all values away from, or towards, the picture's mean luminance: `m + f (x − m)`, clipped to [0, 1].

    Args:
        images: `(N, 3, H, W)` in [0, 1].
        factor: 0 leaves gray, 1 the picture, more has more contrast.

    >>> image = Tensor([0.2, 0.6]).expand(1, 3, 1, 2)
    >>> [round(value, 3) for value in change_contrast(image, 0.5)[0, 0, 0].tolist()]
    [0.3, 0.5]
    """
    mean = luminance(images).mean((1, 2, 3), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def equalize_luminance(image: Image.Image) -> Image.Image:
    """Spread the luminance of an RGB picture evenly over its range; the chroma stays.

    Source: Huang & Belongie 2017, arXiv:1703.06868, section 3.1: histogram equalization on the luminance channel.
    """
    brightness, blue, red = image.convert("YCbCr").split()
    return Image.merge("YCbCr", (ImageOps.equalize(brightness), blue, red)).convert("RGB")


def rms_difference(a: Tensor, b: Tensor) -> float:
    """Return the root of the mean squared difference of two pictures of the same shape.

    >>> rms_difference(Tensor([0.0, 0.5]), Tensor([0.5, 0.0]))
    0.5
    """
    return float((a - b).cpu().double().square().mean().sqrt())  # MPS has no float64
