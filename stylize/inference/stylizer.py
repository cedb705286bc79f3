"""A model and a picture → the painted picture."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.generators import Generator
from stylize.images import Picture

# Luma and chroma of ITU-R BT.601, full range, as JPEG uses them.
RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Paint(NamedTuple):
    """How to paint.

    Attributes:
        strength: 0 gives the photograph, 1 the painted picture; between, a mixture of the two.
        keep_colors: Take the luminance from the painted picture and the colour from the photograph.
        max_size_px: Shrink larger pictures to this longer side first.
    """

    strength: float = 1.0
    keep_colors: bool = False
    max_size_px: int | None = None


class Stylizer:
    """Paints pictures with a generator.

    Args:
        generator: The network; it is put on the device, in `eval()`.
        device: Where to compute.
        precision: `fp32`, or `bf16` for autocast.
    """

    def __init__(self, generator: Generator, device: torch.device, precision: str = "fp32") -> None:
        self.generator = generator.to(device).eval()
        self.device = device
        self.precision = precision

    @torch.inference_mode()
    def __call__(self, picture: Picture, paint: Paint = Paint()) -> Picture:  # noqa: B008  # immutable
        """Paint one picture; size and transparency stay, but for `max_size_px`.

        Raises:
            StylizeError: The picture is smaller than the generator can take.
        """
        picture = limit_size(picture, paint.max_size_px)
        photograph = picture.rgb.to(self.device)[None]
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16)
        with autocast if self.precision == "bf16" else nullcontext():
            painted = self.generator(photograph).float()
        if paint.keep_colors:
            painted = with_colors_of(photograph, painted)
        if paint.strength != 1:
            painted = torch.lerp(photograph, painted, paint.strength)
        return Picture(painted[0].clamp(0, 1).cpu(), picture.alpha)


def limit_size(picture: Picture, max_size_px: int | None) -> Picture:
    """Shrink a picture whose longer side exceeds the limit, antialiased."""
    if max_size_px is None or max(picture.size) <= max_size_px:
        return picture
    factor = max_size_px / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)

    def shrink(image: Tensor) -> Tensor:
        resized = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)
        return resized[0].clamp(0, 1)

    return Picture(shrink(picture.rgb), None if picture.alpha is None else shrink(picture.alpha))


def with_colors_of(photograph: Tensor, painted: Tensor) -> Tensor:
    """The luminance of `painted` with the colour of `photograph`, both `(N, 3, H, W)`, clipped to [0, 1]."""
    matrix = painted.new_tensor(RGB_TO_YCC)
    luma = torch.einsum("c,nchw->nhw", matrix[0], painted)
    chroma = torch.einsum("kc,nchw->nkhw", matrix[1:], photograph)
    mixed = torch.cat([luma[:, None], chroma], dim=1)
    return torch.einsum("ck,nkhw->nchw", torch.linalg.inv(matrix), mixed).clamp(0, 1)
