"""Which crops have contrast: an even one has nothing to learn from, and nothing to normalize."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LEAST_DEVIATION = 1.0  # grey levels of 255, of the values of a channel; those of a blank page as a JPEG have less
GRID_PX = 8  # between the pixels that are looked at first
PLAIN_DEVIATION = 8.0  # so much among these few leaves no doubt: if all others were even, it would be 1 among all


def has_contrast(images: Tensor) -> Tensor:
    """Return which images `(N, C, H, W)` in [0, 1] are not even: bool `(N,)`, on their device.

    >>> import torch
    >>> has_contrast(torch.stack([torch.zeros(3, 8, 8), torch.rand(3, 8, 8)])).tolist()
    [False, True]
    """
    return images.detach().float().std((2, 3), correction=0).amax(1) >= LEAST_DEVIATION / 255


def pixels_have_contrast(pixels: NDArray[np.uint8]) -> bool:
    """Return the same of one image, `(H, W, C)`, fast where it is not even.

    >>> pixels_have_contrast(np.full((64, 64, 3), 255, np.uint8))
    False
    """
    return _deviation(pixels[::GRID_PX, ::GRID_PX]) >= PLAIN_DEVIATION or _deviation(pixels) >= LEAST_DEVIATION


def _deviation(pixels: NDArray[Any]) -> float:
    """The largest standard deviation of a channel."""
    return float(pixels.reshape(-1, pixels.shape[2]).std(0, dtype=np.float32).max())
