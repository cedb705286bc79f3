"""Larger strokes: a picture is painted small and enlarged with the detail of the photograph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.errors import StylizeError
from stylize.generators import MIN_SIZE_PX
from stylize.pictures.picture import LUMA
from stylize.system.levels import to_device

LARGEST_SCALE = 8
USUAL_CROPS = 3  # pictures of up to this many times the training crop have strokes like the samples of the training

# Variance of the guide below which its texture is taken as grain.
REGULARIZATION = 3e-4
PAINTED_VARIANCE = 1e-4
# B-splines blur. Contrast within the range of nearby values brings the edges back.
STEEPNESS = 2.5
MARGIN_PX = 7  # 2 for the splines, the rest for the consecutive filters of 3×3 px
STRIP_PIXELS = 1 << 18  # values of this many pixels stay in the cache of a CPU
DEVICE_STRIP_PIXELS = 1 << 20  # and these keep a GPU busy


def shrunk_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height at which to paint a picture so that its strokes are `scale` times as large.

    The size of a picture that is too small at any scale is returned unchanged; the generator refuses it.

    >>> shrunk_size((90, 60), 2), shrunk_size((90, 60), 1)
    ((45, 30), (90, 60))

    Raises:
        StylizeError: The picture would be too small for the generator.
    """
    width, height = (max(1, round(side / scale)) for side in size)
    if min(size) < MIN_SIZE_PX:
        return size
    if min(width, height) >= MIN_SIZE_PX:
        return width, height
    raise StylizeError(
        f"got a stroke scale of {scale:g} for an image of {size[0]}×{size[1]} px, must be at most "
        f"{largest_scale(size):g}: at 1/{scale:g} it must have at least {MIN_SIZE_PX} px in each direction"
    )


def largest_scale(size: tuple[int, int]) -> float:
    """The largest stroke scale for a picture of this width and height, to hundredths.

    >>> largest_scale((100, 70)), largest_scale((4000, 3000))
    (4.37, 8)
    """
    return min(LARGEST_SCALE, math.floor(100 * min(size) / MIN_SIZE_PX) / 100)


def advised_scale(size: tuple[int, int], crop_px: int, scale: float) -> int | None:
    """The smallest integer stroke scale at which a picture is painted about as large as the training crops.

    Args:
        size: Width and height in px.
        crop_px: Side of the training crops.
        scale: The stroke scale that was asked for.

    Returns:
        A larger scale than `scale`; None if `scale` is large enough or no larger one is possible.

    >>> advised_scale((4000, 3000), 256, 1), advised_scale((4000, 3000), 256, 5.5), advised_scale((9000, 50), 256, 1)
    (6, None, 3)
    """
    needed = max(size) / (USUAL_CROPS * crop_px)
    advised = min(math.ceil(needed), math.floor(largest_scale(size)))
    return advised if needed > scale and advised > scale else None


def enlarged(photographs: Tensor, painted: Tensor, full_photographs: Tensor, pixels: int) -> Tensor:
    """Enlarge stylized small photographs.

    Args:
        photographs: The small photographs, `(N, 3, h, w)`.
        painted: The stylized ones, of the same shape.
        full_photographs: The photographs at the size to enlarge to, `(N, 3, H, W)`.
        pixels: How many pixels to compute at a time, about.

    Returns:
        `(N, 3, H, W)`.
    """
    size = full_photographs.shape[-1], full_photographs.shape[-2]
    images = zip(photographs, painted, full_photographs, strict=True)
    return torch.stack([Enlargement(small, paint, size).whole(full, pixels) for small, paint, full in images])


class Band(NamedTuple):
    """Rows of a picture: the first one, and the height of the whole picture."""

    first: int
    height: int


class Enlargement:
    """Enlarges a small stylized picture to the size of its photograph, row by row.

    The stylized picture is enlarged with cubic B-splines. Then detail is added: the difference between the photograph
    and the enlarged small photograph, multiplied by how far the stylized picture follows the photograph within 3×3 px
    (the coefficients of a guided filter, times the square of the share of the stylized picture's variance that they
    explain). So edges lie where they lie in the photograph, and detail that the stylized picture ignores is not pasted
    on. Finally contrast is raised within the range of the nearby values of the small stylized picture: strokes without
    a counterpart in the photograph become sharp, too, and there are no halos.

    Args:
        photograph: The small photograph, `(3, h, w)` in [0, 1].
        painted: The small stylized picture, of the same shape.
        size: Width and height in px to enlarge to.
        band: Which rows of the small pictures these are, if not all; else None. `rows` can then compute only rows whose
            small rows are among them, with `MARGIN_PX` to spare.

    Source:
        He & Sun 2015, "Fast Guided Filter" (arXiv:1505.00996).
    Differs:
        The output of that filter is what its guide explains, in which strokes are lost; here the detail of the guide is
        filtered and added to the strokes.
    """

    def __init__(self, photograph: Tensor, painted: Tensor, size: tuple[int, int], band: Band | None = None) -> None:
        guide = _luma(photograph)
        self.size = size
        self.band = band or Band(0, photograph.shape[-2])
        self.smooth = torch.cat([painted, guide])
        self.linear = torch.cat([*_range(painted), _box(_gain(guide, painted))])
        self.columns = _both_taps(size[0], photograph.shape[-1], 0, size[0], painted.device)

    def whole(self, photograph: Tensor, pixels: int = STRIP_PIXELS) -> Tensor:
        """Enlarge the whole picture, so many pixels at a time: `(3, H, W)` → the same shape."""
        width, height = self.size
        painted = torch.empty_like(photograph, memory_format=torch.contiguous_format)
        step = max(1, pixels // width)
        for first in range(0, height, step):
            last = min(first + step, height)
            painted[:, first:last] = self.rows(photograph[:, first:last], first, last)
        return painted

    def rows(self, photograph: Tensor, first: int, last: int) -> Tensor:
        """Compute rows of the enlarged picture; bit for bit the same however they are divided into strips.

        Args:
            photograph: Rows `first` to `last` − 1 of the full photograph, `(3, last - first, W)`.
            first: The first row.
            last: The row after the last one.

        Returns:
            `(3, last - first, W)` in [0, 1].
        """
        device = self.smooth.device
        rows = _both_taps(self.size[1], self.band.height, first, last, device, self.band.first)
        smooth = _interpolated(self.smooth, rows.smooth, self.columns.smooth)
        linear = _interpolated(self.linear, rows.linear, self.columns.linear)
        painted, guide = smooth[:3], smooth[3:]
        low, high, gain = linear[:3], linear[3:6], linear[6:]
        painted += gain.mul_(_luma(photograph) - guide)
        middle = (low + high).mul_(0.5)
        painted.sub_(middle).mul_(STEEPNESS).add_(middle)
        return torch.minimum(torch.maximum(painted, low), high).clamp_(0, 1)


def small_rows(first: int, last: int, height: int, small_height: int) -> tuple[int, int]:
    """The range of rows of a small picture that rows `first` to `last` − 1 of the full one depend on, filters included.

    >>> small_rows(100, 200, 1000, 500), small_rows(0, 10, 1000, 500)
    ((42, 107), (0, 12))
    """
    scale = small_height / height
    low, high = math.floor((first + 0.5) * scale - 0.5), math.floor((last - 0.5) * scale - 0.5)
    return max(0, low - MARGIN_PX), min(small_height, high + MARGIN_PX + 1)


class _Taps(NamedTuple):
    """The small pixels that full pixels are sums of.

    Attributes:
        indices: A list of indices.
        weights: A list of weights.
        first: The least index.
        last: The greatest index, plus one.
    """

    indices: Sequence[Tensor]
    weights: Sequence[Tensor]
    first: int
    last: int


class _BothTaps(NamedTuple):
    smooth: _Taps
    linear: _Taps


def _both_taps(
    length: int, small_length: int, first: int, last: int, device: torch.device, origin: int = 0
) -> _BothTaps:
    """Taps of the pixels `first` to `last` − 1 of `length`; indices count from `origin`."""
    positions = (torch.arange(first, last, dtype=torch.float64) + 0.5) * (small_length / length) - 0.5
    base, t = positions.floor().long(), positions - positions.floor()
    smooth = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]

    def taps(offset: int, weights: list[Tensor]) -> _Taps:
        indices = torch.stack([(base + offset + i).clamp(0, small_length - 1) - origin for i in range(len(weights))])
        low, high = int(indices[0, 0]), int(indices[-1, -1]) + 1  # here, where nobody waits for the device
        on_device = to_device(indices, device), to_device(torch.stack(weights).float(), device)
        return _Taps(on_device[0].unbind(), on_device[1].unbind(), low, high)

    return _BothTaps(taps(-1, [weight / 6 for weight in smooth]), taps(0, [1 - t, t]))


def _interpolated(maps: Tensor, rows: _Taps, columns: _Taps) -> Tensor:
    """Interpolate small maps `(C, h, w)` at full size.

    First within rows, which goes pixel by pixel and of which there are few; then across rows. Products and sums are
    separate operations, because these are rounded alike in tensors of any shape.
    """
    needed = maps[:, rows.first : rows.last]
    wide = _weighted_sum([needed.index_select(2, i) for i in columns.indices], columns.weights)
    return _weighted_sum(
        [wide.index_select(1, i - rows.first) for i in rows.indices], [weight[:, None] for weight in rows.weights]
    )


def _weighted_sum(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    total = values[0].mul_(weights[0])
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total += value.mul_(weight)
    return total


def _luma(image: Tensor) -> Tensor:
    """`(3, H, W)` → `(1, H, W)`."""
    red, green, blue = (image[c : c + 1] * weight for c, weight in enumerate(LUMA))
    return red + green + blue


def _gain(guide: Tensor, painted: Tensor) -> Tensor:
    """How far the stylized picture follows the guide within 3×3 px: slope times the squared share that it explains."""
    guide_mean, painted_mean = _box(guide), _box(painted)
    variance = _box(guide * guide) - guide_mean * guide_mean
    covariance = _box(guide * painted) - guide_mean * painted_mean
    painted_variance = (_box(painted * painted) - painted_mean * painted_mean).sum(0)
    slope = covariance / (variance.clamp(min=0) + REGULARIZATION)
    explained = (slope * covariance).sum(0) / (painted_variance.clamp(min=0) + PAINTED_VARIANCE)
    gain: Tensor = slope * explained.clamp(0, 1) ** 2
    return gain


def _range(painted: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum within 3×3 px."""
    bordered = _bordered(painted)
    return -F.max_pool2d(-bordered, 3, 1), F.max_pool2d(bordered, 3, 1)


def _box(maps: Tensor) -> Tensor:
    return F.avg_pool2d(_bordered(maps), 3, 1)


def _bordered(maps: Tensor) -> Tensor:
    return F.pad(maps, (1, 1, 1, 1), mode="replicate")
