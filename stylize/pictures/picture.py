"""A picture as float tensors, and its conversion from and to 8-bit images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue; ITU-R BT.601


def luminance(images: Tensor) -> Tensor:
    """Return the luma of BT.601, `(N, 3, H, W)` → `(N, 1, H, W)`, in the same range.

    >>> round(float(luminance(Tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))), 4)
    0.299
    """
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


@dataclass(frozen=True)
class Picture:
    """An image and its transparency.

    Attributes:
        rgb: `(3, H, W)`, float32 in [0, 1], sRGB.
        alpha: `(1, H, W)`, float32 in [0, 1], or None if the picture is opaque.
    """

    rgb: Tensor
    alpha: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.rgb.shape[-1], self.rgb.shape[-2]


def limited_size(size: tuple[int, int], max_size_px: int | None) -> tuple[int, int]:
    """Return width and height of a picture whose longer side must not exceed the limit.

    >>> limited_size((90, 60), 45), limited_size((30, 20), 45), limited_size((30, 20), None)
    ((45, 30), (30, 20), (30, 20))
    """
    if max_size_px is None or max(size) <= max_size_px:
        return size
    return scaled_size(size, max_size_px / max(size))


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return width and height times a factor, each at least 1 px.

    >>> scaled_size((100, 3), 0.1), scaled_size((10, 15), 2)
    ((10, 1), (20, 30))
    """
    width, height = (max(1, round(side * factor)) for side in size)
    return width, height


def to_tensor(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    """Convert an 8-bit image to float32 `(C, H, W)` in [0, 1]."""
    return to_bytes(image).float().div_(255)


def to_bytes(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    """Convert an 8-bit image to uint8 `(C, H, W)`."""
    array = np.array(image, dtype=np.uint8)
    if array.ndim == 2:
        array = array[:, :, None]
    return torch.from_numpy(array).permute(2, 0, 1)


def to_image(tensor: Tensor) -> Image.Image:
    """Convert float `(3 or 1, H, W)` in [0, 1] to an 8-bit image, rounded to the nearest level."""
    array = (tensor.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
