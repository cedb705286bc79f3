"""Equality under shifts: a crop that is moved by some px must be painted alike.

A generator that enlarges by 2 paints a pixel by its place in a period of some px, and one near the edge otherwise than
one inside; so it weaves a grid and draws a frame. Some crops of each step are painted once more, moved, and the two
paintings are compared where they show the same: one of them has its edge there, the other does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOST_PX = 19  # what a crop is moved by, at most; in small crops an eighth of their side
LEAST_PX = 9
EDGE_PX = 12  # of a painting's own edge that is not compared with
PERIOD_PX = 4  # of the generators' enlargement: moved by multiples of it they paint alike anyway


class Move(NamedTuple):
    """How far crops are moved, px: down and to the right if negative."""

    rows: int
    columns: int


class Shifts:
    """Compares crops with the same crops, moved.

    Args:
        weight: Factor of the difference in what is minimized; 0: nothing is painted again.
        seed: Of the moves.
    """

    def __init__(self, weight: float, seed: int) -> None:
        self.weight = weight
        self.seed = seed

    def again(self, images: int) -> int:
        """Return how many of a batch's images are painted again: the first half."""
        return -(-images // 2) if self.weight else 0

    @staticmethod
    def images(crops: int) -> int:
        """Return how many of so many crops come from the photographs; the others are these moved.

        >>> shifts = Shifts(1.0, seed=0)
        >>> [shifts.images(count + shifts.again(count)) for count in range(1, 8)]
        [1, 2, 3, 4, 5, 6, 7]
        """
        return 2 * crops // 3

    def of_step(self, step: int, size: Sequence[int]) -> Move:
        """Draw the move of a step for crops of this height and width: a function of seed and step."""
        draw = random.Random(f"shift {self.seed} {step}")
        return Move(*(draw.choice((-1, 1)) * draw.choice(distances(length)) for length in size))


def distances(side_px: int) -> list[int]:
    """Return by how many px crops of this side may be moved.

    >>> distances(192), distances(32), distances(16)
    ([9, 10, 11, 13, 14, 15, 17, 18, 19], [2, 3], [1, 2])
    """
    most = _most(side_px)
    return [px for px in range(min(LEAST_PX, most // 2), most + 1) if px % PERIOD_PX]


def _most(side_px: int) -> int:
    return max(1, min(MOST_PX, side_px // 8))


def moved(crops: Tensor, move: Move) -> Tensor:
    """Return crops `(N, C, H, W)` moved; what comes in at an edge is mirrored.

    >>> moved(torch.arange(5.0).view(1, 1, 1, 5), Move(0, 2)).flatten().tolist()
    [2.0, 3.0, 4.0, 3.0, 2.0]
    """
    for dim, px in zip((2, 3), move, strict=True):
        last = crops.shape[dim] - 1
        places = (torch.arange(last + 1, device=crops.device) + px).abs()
        crops = crops.index_select(dim, last - (last - places).abs())
    return crops


def compared_places(move: Move, size: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, ...]:
    """Return where two paintings show the same: rows and columns of the first, then of the moved one.

    The number of places does not depend on the move. They reach to the edge of the moved painting that lies inside the
    first, and stay away from that of the first.
    """
    places = []
    for px, length in zip(move, size, strict=True):
        most = _most(length)
        count = length - most - min(EDGE_PX, most)
        first_of_moved = 0 if px > 0 else length - count
        ours = torch.arange(count) + first_of_moved
        places += [ours + px, ours]
    rows, moved_rows, columns, moved_columns = places
    return tuple(numbers.to(device) for numbers in (rows, columns, moved_rows, moved_columns))


def difference(painted: Tensor, moved_painted: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Return the mean squared difference of paintings at `compared_places`, `()`.

    >>> crops = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> move = Move(2, -3)
    >>> float(difference(crops, moved(crops, move), compared_places(move, (32, 32))))
    0.0
    """
    rows, columns, moved_rows, moved_columns = places
    ours = painted.index_select(2, rows).index_select(3, columns)
    theirs = moved_painted.index_select(2, moved_rows).index_select(3, moved_columns)
    return (ours - theirs).float().square().mean()
