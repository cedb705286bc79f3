"""What a convolution does around its kernel: upsample, pad, stride; and which rows need which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

Border = Literal["reflect", "replicate", "constant"]
Upsampling = Literal["bilinear", "nearest"]


class Geometry(NamedTuple):
    """How a convolution treats its maps.

    Attributes:
        kernel_px: Side of the kernel, odd.
        stride: 1 or 2.
        border: Padding mode, `kernel_px // 2` px wide; see `torch.nn.functional.pad`.
        size: Height and width to which the maps are upsampled first (see `upsample_to`), or None.
        upsampling: Filter of the upsampling.
    """

    kernel_px: int
    stride: int
    border: Border
    size: tuple[int, int] | None = None
    upsampling: Upsampling = "bilinear"

    @property
    def border_px(self) -> int:
        """Width of the padding."""
        return self.kernel_px // 2

    def upsampled(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return height and width of maps `(H, W, …)` after upsampling."""
        return self.size if self.size is not None else (shape[0], shape[1])

    def result_size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the result for maps `(H, W, …)`."""
        height, width = self.upsampled(shape)
        return (height - 1) // self.stride + 1, (width - 1) // self.stride + 1

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the rows of the upsampled image, or beyond its edges, that result rows `first` to `last` − 1 see."""
        return first * self.stride - self.border_px, (last - 1) * self.stride + self.border_px + 1

    def upsampled_rows(self, first: int, last: int, height: int) -> tuple[int, int]:
        """Return `span` with the padding traced back to rows inside the upsampled image, of this height."""
        start, end = self.span(first, last)
        outer = [self.inside(row, height) for row in (*range(start, 0), *range(height, end))]
        return min(max(start, 0), *outer, height), 1 + max(min(end, height) - 1, *outer, 0)

    def needed_rows(self, first: int, last: int, height: int) -> tuple[int, int]:
        """Return the rows of an image of this height that result rows `first` to `last` − 1 need.

        >>> Geometry(3, 1, "reflect").needed_rows(4, 6, 9), Geometry(3, 2, "reflect").needed_rows(0, 2, 9)
        ((3, 7), (0, 4))
        >>> Geometry(3, 1, "reflect", size=(18, 18)).needed_rows(4, 6, 9)
        (0, 5)
        """
        if self.size is None:
            return self.upsampled_rows(first, last, height)
        low, high = self.upsampled_rows(first, last, self.size[0])
        return source_rows(low, high, height) if self.size[0] > height else (low, high)

    def inside(self, position: int, length: int) -> int:
        """Return the position in `0 … length − 1` whose value pads a position beyond them."""
        if self.border == "reflect":
            return abs(length - 1 - abs(length - 1 - position))
        return min(max(position, 0), length - 1)


class Window(NamedTuple):
    """Some rows of an image.

    Attributes:
        values: `(rows, W, C)`.
        first: Row of the image with which they begin.
        height: Number of rows of the image.
    """

    values: Tensor
    first: int
    height: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the image, `(H, W, C)`."""
        return self.height, self.values.shape[1], self.values.shape[2]

    def rows(self, first: int, last: int) -> Tensor:
        """Return rows `first` to `last` − 1 of the image, which the window must hold: `(rows, W, C)`."""
        return self.values[first - self.first : last - self.first]


def whole(image: Tensor) -> Window:
    """Return all rows of an image `(H, W, C)`."""
    return Window(image, 0, len(image))


def source_rows(low: int, high: int, height: int) -> tuple[int, int]:
    """Return the rows of an image of this height that rows `low` to `high` − 1 of the doubled one are made of."""
    return max(0, low // 2 - 1), min(height, (high - 1) // 2 + 2)


def scale_factors(shape: Sequence[int], size: tuple[int, int]) -> tuple[float, float]:
    """Return 2 for each side that grows to reach `size`, else 1."""
    height, width = (2.0 if side < target else 1.0 for side, target in zip(shape[:2], size, strict=True))
    return height, width
