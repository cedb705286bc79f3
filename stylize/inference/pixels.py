"""Images of other libraries ↔ batches of the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from stylize.errors import StylizeError
from stylize.pictures.decoders import alpha_of, to_rgb
from stylize.pictures.picture import to_bytes, to_image
from stylize.system.devices import CPU
from stylize.system.levels import levels_to_device

PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # modes of Pillow with premultiplied alpha, and the usual ones


class Pixels(NamedTuple):
    """The pixels of an image, and the way back to its kind.

    Attributes:
        rgb: `(N, 3, H, W)`, float32 in [0, 1].
        alpha: `(N, 1, H, W)`, float32 in [0, 1], or None.
        restore: Makes an image of the same kind from pixels and alpha of any size.
    """

    rgb: Tensor
    alpha: Tensor | None
    restore: Callable[[Tensor, Tensor | None], Any]


def pixels_of(image: object, device: torch.device = CPU) -> Pixels:
    """Return the pixels of an image.

    Args:
        image: A PIL image; a NumPy array `(H, W, 3)` of uint8; or a tensor `(N, 3, H, W)` or `(3, H, W)` of floating
            point in [0, 1].
        device: Where they are needed; a tensor stays where it is.

    Raises:
        TypeError: It is of another kind.
        StylizeError: Its shape, type or values are not as above.
    """
    if isinstance(image, Image.Image):
        return _of_pil(image, device)
    if isinstance(image, np.ndarray):
        return _of_array(image, device)
    if isinstance(image, Tensor):
        return _of_tensor(image)
    raise TypeError(f"image: got {type(image).__name__}, must be a PIL image, a NumPy array or a tensor")


def _of_pil(image: Image.Image, device: torch.device) -> Pixels:
    upright = ImageOps.exif_transpose(image)  # a copy, so the image of the caller stays as it is
    if upright.mode in PREMULTIPLIED:
        upright = upright.convert(PREMULTIPLIED[upright.mode])
    alpha = alpha_of(upright)
    upright.info.pop("transparency", None)  # Pillow would warn that it is lost
    rgb = _values(to_bytes(to_rgb(upright, Path("image"))), device)
    return Pixels(rgb, None if alpha is None else _values(to_bytes(alpha), device), _to_pil)


def _values(levels: Tensor, device: torch.device) -> Tensor:
    """Levels `(C, H, W)` as a batch of one image in [0, 1] on a device."""
    return levels_to_device(levels, device)[None].float().div_(255)


def _to_pil(rgb: Tensor, alpha: Tensor | None) -> Image.Image:
    image = to_image(rgb[0])
    if alpha is not None:
        image.putalpha(to_image(alpha[0]))
    return image


def _of_array(array: NDArray[Any], device: torch.device) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise StylizeError(
            f"image: got an array of {array.dtype} and shape {array.shape}, must be of uint8 and shape (H, W, 3)"
        )
    levels = torch.from_numpy(array.transpose(2, 0, 1).copy())
    return Pixels(_values(levels, device), None, _to_array)


def _to_array(rgb: Tensor, alpha: Tensor | None) -> NDArray[np.uint8]:
    return np.array(to_image(rgb[0]))


def _of_tensor(tensor: Tensor) -> Pixels:
    if not tensor.is_floating_point() or tensor.ndim not in (3, 4) or tensor.shape[-3] != 3 or not tensor.numel():
        raise StylizeError(
            f"image: got a tensor of {tensor.dtype} and shape {tuple(tensor.shape)}, must be of floating point and "
            "shape (3, H, W) or (N, 3, H, W)"
        )
    rgb = tensor.detach().float()
    least, most = torch.stack(rgb.aminmax()).tolist()
    if not (least >= 0 and most <= 1):  # written so that NaN fails
        raise StylizeError(f"image: got values from {least:g} to {most:g}, must be in [0, 1]")

    def to_tensor_like(painted: Tensor, alpha: Tensor | None) -> Tensor:
        same_kind = painted.to(tensor.device, tensor.dtype)
        return same_kind if tensor.ndim == 4 else same_kind[0]

    return Pixels(rgb if tensor.ndim == 4 else rgb[None], None, to_tensor_like)
