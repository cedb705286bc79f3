"""Equality under shifts: a crop that is moved by some px must be painted alike.

A generator that enlarges twice by 2 paints a pixel by its place in a period of 4 px, and so it weaves a grid over even
areas and fine textures. Some crops of each step are painted once more, moved by 1 to 3 px, and the two paintings are
compared where they show the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stylize.generators.base import mirrored_places

MOST_PX = 3  # what a crop is moved by, at most: moved by 4 it is painted alike anyway
AGAIN = slice(None, None, 2)  # the images of a batch that are painted again; its halves, in two processes, have as many
EDGE_PX = 12  # of a painting that is not compared: an edge is painted as such


class Move(NamedTuple):
    """How far crops are moved up and to the left, px."""

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
        """Return how many of a batch's images are painted again: those of `AGAIN`."""
        return -(-images // 2) if self.weight else 0

    @staticmethod
    def images(crops: int) -> int:
        """Return how many of so many crops come from the photographs; the others are these moved.

        >>> shifts = Shifts(1.0, seed=0)
        >>> [shifts.images(count + shifts.again(count)) for count in range(1, 8)]
        [1, 2, 3, 4, 5, 6, 7]
        """
        return 2 * crops // 3

    def of_step(self, step: int) -> Move:
        """Draw the move of a step: a function of seed and step."""
        draw = random.Random(f"shift {self.seed} {step}")
        return Move(draw.randint(1, MOST_PX), draw.randint(1, MOST_PX))


def moved(crops: Tensor, move: Move) -> Tensor:
    """Return crops `(N, C, H, W)` moved; what comes in at an edge is mirrored.

    >>> moved(torch.arange(5.0).expand(1, 1, 5, 5), Move(1, 2))[0, 0, 0].tolist()
    [2.0, 3.0, 4.0, 3.0, 2.0]
    """
    for dim, px in zip((2, 3), move, strict=True):
        length = crops.shape[dim]
        crops = crops.index_select(dim, mirrored_places(px, length + px, length, crops.device))
    return crops


def compared_places(move: Move, size: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, ...]:
    """Return where two paintings show the same, away from their edges: rows and columns of the first and of the moved.

    How many there are does not depend on the move.

    Args:
        move: How far the crop was moved.
        size: Height and width.
        device: Where the places are needed.
    """
    of_moved = [
        torch.arange(edge_px, length - MOST_PX - edge_px, device=device)
        for length, edge_px in ((length, min(EDGE_PX, length // 8)) for length in size)
    ]
    of_first = [places + px for places, px in zip(of_moved, move, strict=True)]
    return (*of_first, *of_moved)


def difference(painted: Tensor, moved_painted: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Return the mean squared difference of paintings at `compared_places`, `()`.

    >>> crops = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> move = Move(2, 3)
    >>> float(difference(crops, moved(crops, move), compared_places(move, (32, 32))))
    0.0
    """
    rows, columns, moved_rows, moved_columns = places
    ours = painted.index_select(2, rows).index_select(3, columns)
    theirs = moved_painted.index_select(2, moved_rows).index_select(3, moved_columns)
    return (ours - theirs).float().square().mean()
