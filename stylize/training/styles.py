"""Which style each photograph of a training is painted in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stylize.system import distributed

GOLDEN = (math.sqrt(5) - 1) / 2


class StyleOrder:
    """The styles of all crops of a training, in order: a function of the step alone, so that it can be resumed.

    Crop k takes the style at the place `frac(k φ)` of the shares, laid end to end; φ is the golden ratio. So each style
    has its share of any run of crops, give or take two or three, and none comes at a fixed place of the batch.

    Args:
        shares: The share of each style in the crops, above 0, in any unit.
        batch_size: Number of crops in a step, over all processes.
        kept: Number of styles that the network has before these, and no crop takes.

    Source: Weyl 1916, on the uniform distribution of numbers modulo one.

    >>> StyleOrder([1, 1, 2], batch_size=8).of_step(0).tolist()
    [1, 2, 2, 0, 2, 1, 0, 2]
    """

    def __init__(self, shares: Sequence[float], batch_size: int, kept: int = 0) -> None:
        self.ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
        self.batch_size = batch_size
        self.kept = kept

    @property
    def count(self) -> int:
        """Number of styles."""
        return len(self.ends)

    def of_step(self, step: int) -> Tensor:
        """Return the numbers of the styles of a step's crops, `(N,)`, of the share of this process."""
        part = self.batch_size // distributed.count()
        first = step * self.batch_size + distributed.rank() * part
        places = (torch.arange(first, first + part, dtype=torch.float64) + 0.5) * GOLDEN % 1
        return torch.searchsorted(self.ends[:-1], places * self.ends[-1], right=True)
