"""Contact sheets: several pictures in one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

CAPTION_PX = 14


def contact_sheet(rows: Iterable[Iterable[Tensor]], gap_px: int = 4) -> Tensor:
    """Lay out images `(3, H, W)` in rows on white; a row is as high as its highest image."""
    strips = [_row(list(row), gap_px) for row in rows]
    width = max(strip.shape[-1] for strip in strips)
    padded = [F.pad(strip, (0, width - strip.shape[-1], 0, gap_px), value=1.0) for strip in strips]
    return torch.cat(padded, dim=1)[:, :-gap_px]


def _row(images: list[Tensor], gap_px: int) -> Tensor:
    height = max(image.shape[-2] for image in images)
    padded = [F.pad(image, (0, gap_px, 0, height - image.shape[-2]), value=1.0) for image in images]
    return torch.cat(padded, dim=2)[:, :, :-gap_px]


def captioned(image: Tensor, caption: str) -> Tensor:
    """Return an image `(3, H, W)` with a line of text below it, as wide as the image has room for."""
    width = image.shape[-1]
    font = ImageFont.load_default(CAPTION_PX)
    while caption and font.getlength(caption) > width:
        caption = caption[:-1]
    line = Image.new("L", (width, CAPTION_PX * 3 // 2), 255)
    ImageDraw.Draw(line).text((2, 1), caption, fill=0, font=font)
    gray = torch.from_numpy(np.array(line)).to(image.dtype) / 255
    return torch.cat([image, gray.expand(3, -1, -1)], dim=1)
