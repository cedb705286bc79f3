"""The network of PyTorch's well-known example, for models that were trained with it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.generators.base import Stage
from stylize.generators.johnson import JohnsonGenerator, halved


class FastNeuralStyle(JohnsonGenerator):
    """Johnson's generator with nearest-neighbour enlargement and without an activation at its end.

    `stylize import` makes models of it. The values from 0 to 255 with which the example works are folded into the
    first and the last convolution; what goes beyond the range is clipped, as the example does when it saves. Clipped
    values give no gradient: to train, take `johnson`.

    Source: pytorch/examples, fast_neural_style, `TransformerNet`.
    Differs: a picture keeps its size; the example's is enlarged to multiples of 4, and its last rows and columns go.
    """

    def paint(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        for layer in self.encode:
            x = layer(x)
        x = self.blocks(x)
        for layer in self.decode:
            x = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return torch.clamp(self.to_rgb(x)[..., :height, :width], 0, 1)

    def stages(self, height: int, width: int) -> list[Stage] | None:
        half = halved((height, width))
        rows, columns = halved(half)
        full = (4 * rows, 4 * columns)
        up = self._up((2 * rows, 2 * columns), full, "nearest")
        return [*self._down((height, width), half), *up, Stage(self.to_rgb, full, activation=clamp_)]


def clamp_(x: Tensor) -> Tensor:
    """Clip to [0, 1]."""
    return x.clamp_(0, 1)
