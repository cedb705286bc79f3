"""Johnson's residual generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from stylize.generators.base import Generator, NetworkConfig, PaddedConv2d, RowConvolution, Stage
from stylize.norms import build_norm
from stylize.ops import Upsampling

Convolution = Callable[..., RowConvolution]


class JohnsonGenerator(Generator):
    """Two strided convolutions down, five residual blocks at a quarter of the size, two resize-convolutions up.

    c9-W, d-2W, d-4W, five residual blocks of 4W, u-2W, u-W, c9-3 with W = `config.width`; a norm after every
    convolution but the last; sigmoid output. Width 32 with instance normalization has 1,679,235 parameters.

    Source: Johnson et al. 2016, arXiv:1603.08155, and its supplement.
    Differs: reflection padding at every convolution, and resize-convolutions in place of transposed ones (as in
        Dumoulin et al. 2017, arXiv:1610.07629, but bilinear): no border frame, no checkerboard. Sigmoid in place of
        a scaled tanh: the range is [0, 1].

    Args:
        config: Settings of the network.
        convolution: Class of the 3×3 convolutions, called like `PaddedConv2d`.
    """

    def __init__(self, config: NetworkConfig, convolution: Convolution = PaddedConv2d) -> None:
        super().__init__()
        width = config.width
        self.encode = nn.ModuleList(
            [
                ConvNormReLU(3, width, 9, config),
                ConvNormReLU(width, 2 * width, 3, config, convolution, stride=2),
                ConvNormReLU(2 * width, 4 * width, 3, config, convolution, stride=2),
            ]
        )
        self.blocks = nn.Sequential(*(ResidualBlock(4 * width, config, convolution) for _ in range(5)))
        self.decode = nn.ModuleList(
            [
                ConvNormReLU(4 * width, 2 * width, 3, config, convolution),
                ConvNormReLU(2 * width, width, 3, config, convolution),
            ]
        )
        self.to_rgb = PaddedConv2d(width, 3, 9, config)

    def stages(self, height: int, width: int) -> list[Stage] | None:
        full = (height, width)
        half = halved(full)
        return [
            *self._down(full, half),
            *self._up(half, full, "bilinear"),
            Stage(self.to_rgb, full, activation=torch.sigmoid),
        ]

    def _down(self, full: tuple[int, int], half: tuple[int, int]) -> list[Stage]:
        """Return the stages from the image to the end of the residual blocks."""
        quarter = halved(half)
        layers = cast("list[ConvNormReLU]", list(self.encode))
        stages = [layer.stage(size) for layer, size in zip(layers, (full, half, quarter), strict=True)]
        for block in cast("list[ResidualBlock]", list(self.blocks)):
            stages += block.stages(quarter, residual_of=len(stages) - 1)
        return stages

    def _up(self, half: tuple[int, int], full: tuple[int, int], upsampling: Upsampling) -> list[Stage]:
        layers = cast("list[ConvNormReLU]", list(self.decode))
        return [layer.stage(size, upsampling) for layer, size in zip(layers, (half, full), strict=True)]


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width after a convolution of stride 2.

    >>> halved((5, 4))
    (3, 2)
    """
    height, width = size
    return -(-height // 2), -(-width // 2)


class ConvNormReLU(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_px: int,
        config: NetworkConfig,
        convolution: Convolution = PaddedConv2d,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv: RowConvolution = convolution(in_channels, out_channels, kernel_px, config, stride=stride)
        self.norm = build_norm(config.norm, out_channels)

    def stage(self, size: tuple[int, int], upsampling: Upsampling | None = None) -> Stage:
        """Return this layer as a stage whose result has this height and width."""
        return Stage(self.conv, size, self.norm, relu=True, upsampling=upsampling)


class ResidualBlock(nn.Module):
    """Two convolutions with norms and a residual connection; no ReLU after the sum.

    Source: Gross & Wilber 2016, Training and investigating residual nets, as Johnson et al. use it.
    """

    def __init__(self, channels: int, config: NetworkConfig, convolution: Convolution = PaddedConv2d) -> None:
        super().__init__()
        self.first = ConvNormReLU(channels, channels, 3, config, convolution)
        self.conv: RowConvolution = convolution(channels, channels, 3, config)
        self.norm = build_norm(config.norm, channels)

    def stages(self, size: tuple[int, int], residual_of: int) -> list[Stage]:
        """Return this block as stages for the result of stage `residual_of`, of this height and width."""
        return [self.first.stage(size), Stage(self.conv, size, self.norm, residual_of=residual_of)]
