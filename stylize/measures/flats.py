"""How much texture a painting has where the photograph is even, beside that of the style picture."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from stylize.pictures.picture import luminance

WINDOW_PX = 16
EVEN = 0.02  # of the range of luma: standard deviation in a window below which a photograph is even, as in a clear sky


def flats_score(painted: Tensor, photograph: Tensor, style_variance: float) -> float | None:
    """Return the texture of a painting's even areas over that of the style picture: 1 if alike, 0 if there is none.

    Texture is the variance of luma in a window of 16×16 px. Even are the windows in which the photograph's luma has a
    standard deviation below 0.02; the score is the root of their mean variance in the painting over that of the style
    picture's windows. It sees how strong texture is, not whether it resembles the style's: a grid or noise counts, too.

    Args:
        painted: `(3, H, W)` in [0, 1].
        photograph: What it was painted from, the same shape.
        style_variance: `texture_variance` of the style picture in the size that the network has learned.

    Returns:
        None if no window of the photograph is even.

    >>> gray = Tensor([0.5]).expand(3, 32, 32)
    >>> flats_score(gray, gray, style_variance=0.01)
    0.0
    """
    variances = _variances(painted)[_variances(photograph) < EVEN**2]
    if not len(variances):
        return None
    return float((variances.mean() / max(style_variance, 1e-12)).sqrt())


def texture_variance(picture: Tensor) -> float:
    """Return the median variance of luma in windows of 16×16 px of a picture `(3, H, W)` in [0, 1]."""
    return float(_variances(picture).median())


def _variances(picture: Tensor) -> Tensor:
    """The variance of luma in each window, `(windows,)`."""
    brightness = luminance(picture[None].cpu().double())
    windows = functional.unfold(brightness, min(WINDOW_PX, *picture.shape[-2:]), stride=WINDOW_PX // 2)
    return windows[0].var(0, correction=0)
