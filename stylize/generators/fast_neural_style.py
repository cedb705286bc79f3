"""The network of PyTorch's fast_neural_style example, for models trained with it."""

from __future__ import annotations

import torch
from torch import Tensor

from stylize.generators.base import Stage
from stylize.generators.johnson import JohnsonGenerator, halved


class FastNeuralStyle(JohnsonGenerator):
    """Johnson's generator with nearest-neighbour upsampling and without a final activation.

    `stylize import` creates models of this class. The example's range of 0 to 255 is folded into the first and the last
    convolution. Values beyond the range are clipped, as the example does when it saves a picture. Clipped values have
    no gradient: use `johnson` for training.

    Source: pytorch/examples, fast_neural_style, `TransformerNet`.
    Differs: the output has the size of the input; the example's is enlarged to multiples of 4, and its last rows and
        columns are cut off.
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
