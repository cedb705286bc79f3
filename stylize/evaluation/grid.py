"""How strong a woven grid is in pictures: power at a few short periods over the power beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.pictures.picture import LUMA

WINDOW_PX, LEAST_PX = 64, 32
PERIODS_PX = (2, 4, 8)
BESIDE = (3, 4, 5)  # bins from that of the period: Hann's window spreads a line over one on either side


def grid_scores(pictures: Sequence[Tensor]) -> dict[int, float]:
    """Return the power at periods of 2, 4 and 8 px over the power beside each, averaged over both directions.

    The spectrum of luma along rows and columns is averaged over all windows of 64 px (Hann) of all pictures; smaller
    pictures have smaller windows, a multiple of 8 px. A generator that enlarges twice by 2 leaves a line at a period of
    4 px. Photographs have about 1. It is blind to grids that are turned, and to patterns that are no grid.

    Args:
        pictures: `(3, H, W)` in [0, 1], H and W at least 32.

    Raises:
        StylizeError: A picture is smaller.

    Source: the averaged modified periodogram, Welch 1967.

    >>> x = torch.arange(128.0)
    >>> lines = 0.5 + 0.1 * torch.cos(2 * torch.pi * x / 4).expand(3, 128, 128) + 0.01 * torch.rand(3, 128, 128)
    >>> found = grid_scores([lines])
    >>> found[4] > 100, 0.5 < found[8] < 2
    (True, True)
    """
    side_px = min(min(picture.shape[-2:]) for picture in pictures)
    if side_px < LEAST_PX:
        raise StylizeError(f"got a picture of {side_px} px, must be at least {LEAST_PX} px in each direction")
    window_px = min(WINDOW_PX, side_px // 8 * 8)
    power = torch.zeros(window_px // 2 + 1, dtype=torch.float64)
    for picture in pictures:
        luma = (picture.double().cpu() * torch.tensor(LUMA, dtype=torch.float64)[:, None, None]).sum(0)
        power += (_power(luma, window_px) + _power(luma.T, window_px)) / len(pictures)
    return {period: _ratio(power, window_px // period) for period in PERIODS_PX}


def _power(luma: Tensor, window_px: int) -> Tensor:
    """The mean power spectrum along the rows."""
    windows = luma.unfold(1, window_px, window_px // 2)
    windows = (windows - windows.mean(-1, keepdim=True)) * torch.hann_window(window_px, dtype=luma.dtype)
    spectrum: Tensor = torch.fft.rfft(windows)
    return spectrum.abs().square().mean((0, 1))


def _ratio(power: Tensor, bin_of_period: int) -> float:
    last = len(power) - 1
    beside = [place for away in BESIDE for place in (bin_of_period - away, bin_of_period + away) if 0 < place <= last]
    return float(power[bin_of_period] / power[beside].log().mean().exp().clamp_min(1e-30))
