"""The network of PyTorch's well-known example, for models that were trained with it."""

from __future__ import annotations

import torch
from torch import Tensor

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

    def stages(self, height: int, width: int) -> list[Stage] | None:
        half = halved((height, width))
        rows, columns = halved(half)
        full = (4 * rows, 4 * columns)
        up = self._up((2 * rows, 2 * columns), full, "nearest")
        return [*self._down((height, width), half), *up, Stage(self.to_rgb, full, activation=clip)]


def clip(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Clip to [0, 1]."""
    return torch.clamp(x, 0, 1, out=out)
