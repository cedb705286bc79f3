"""Contact sheets: several pictures in one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


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
