"""Johnson's generator with separable convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from stylize.generators.base import NetworkConfig, PaddedConv2d
from stylize.generators.johnson import JohnsonGenerator
from stylize.ops import Geometry, Window, strip_rows


class JohnsonLiteGenerator(JohnsonGenerator):
    """`JohnsonGenerator` with every 3×3 convolution in two: 3×3 within each channel, then 1×1 across them.

    At width 32 it has 33 thousand multiplications per pixel instead of 154, half of them in the first and last layer.

    Source: Howard et al. 2017, arXiv:1704.04861, section 3.1.
    Differs: no norm and no ReLU between the two.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config, SeparableConv2d)


class SeparableConv2d(nn.Module):
    """A convolution that keeps the size, or divides it by the stride, in two steps; see `PaddedConv2d`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_px: int, config: NetworkConfig, *, stride: int = 1
    ) -> None:
        super().__init__()
        self.depthwise = PaddedConv2d(in_channels, in_channels, kernel_px, config, stride=stride, depthwise=True)
        self.pointwise = Pointwise(in_channels, out_channels, 1)
        self.geometry = self.depthwise.geometry
        self.out_channels = out_channels

    def forward(self, x: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Convolve `x`; see `PaddedConv2d.forward`."""
        convolved: Tensor = self.pointwise(self.depthwise(x, geometry))
        return convolved

    def rows(self, window: Window, rows: tuple[int, int], geometry: Geometry, out: Tensor | None = None) -> Tensor:
        """Compute some rows of the result; see `PaddedConv2d.rows`."""
        if out is None:
            convolved: Tensor = self.pointwise(self.depthwise.rows(window, rows, geometry))
            return convolved
        first, last = rows
        step = strip_rows(window.shape, geometry, self.out_channels)
        for start in range(first, last, step):  # the maps between the two are larger than the result
            strip = self.rows(window, (start, min(start + step, last)), geometry)
            out[start - first : start - first + step] = strip[0].permute(1, 2, 0)
        return out[None].permute(0, 3, 1, 2)

    @property
    def multiplications(self) -> int:
        """Multiplications for each pixel of the result."""
        return self.depthwise.weight.numel() + self.pointwise.weight.numel()


class Pointwise(nn.Conv2d):
    """A convolution of one pixel; its weights are cast to the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x`, `(N, C, H, W)`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.conv2d(x, self.weight.to(x.dtype), bias)
