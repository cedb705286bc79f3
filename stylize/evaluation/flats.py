"""How much texture a painting has where the photograph is even, beside that of the style picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stylize.pictures.picture import LUMA

WINDOW_PX = 16
EVEN = 0.02  # of the range of luma: standard deviation in a window below which a photograph is even, as in a clear sky


def flats_score(painted: Sequence[Tensor], photographs: Sequence[Tensor], style: Tensor) -> float | None:
    """Return the texture of a painting's even areas over that of the style picture: 1 if alike, 0 if there is none.

    Texture is the variance of luma in a window of 16×16 px. Even are the windows in which the photograph's luma has a
    standard deviation below 0.02; the score is the root of their mean variance in the painting over the median variance
    of the style picture's windows. It sees how strong texture is, not whether it resembles the style's: a grid or noise
    counts, too.

    Args:
        painted: `(3, H, W)` in [0, 1] each.
        photographs: What they were painted from, of the same sizes.
        style: The style picture, `(3, H, W)` in [0, 1], in the size that the network has learned.

    Returns:
        None if no window of the photographs is even.

    >>> even, style = torch.full((3, 32, 32), 0.5), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> flats_score([even], [even], style), flats_score([style[:, :32, :32]], [even], style) > 0.9
    (0.0, True)
    """
    found = []
    for picture, photograph in zip(painted, photographs, strict=True):
        is_even = _variances(photograph) < EVEN**2
        found.append(_variances(picture)[is_even])
    variances = torch.cat(found)
    if not len(variances):
        return None
    return (variances.mean() / _variances(style).median().clamp_min(1e-12)).sqrt().item()


def _variances(picture: Tensor) -> Tensor:
    """The variance of luma in each window, `(windows,)`."""
    luma = (picture.double().cpu() * torch.tensor(LUMA, dtype=torch.float64)[:, None, None]).sum(0)[None, None]
    windows = functional.unfold(luma, WINDOW_PX, stride=WINDOW_PX // 2)
    return windows[0].var(0, correction=0)
