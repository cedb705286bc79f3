"""Copy batches to the device before they are requested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor

from stylize.errors import StylizeError
from stylize.system.compute import Compute
from stylize.system.transfer import BackgroundCopies

T = TypeVar("T")


def prefetched(batches: Iterator[Tensor], compute: Compute) -> Iterator[Tensor]:
    """Yield batches on their device; if it supports this, the next one is copied while the network computes."""
    if not compute.copies_in_background:
        return batches
    copies = BackgroundCopies(compute.device)
    return (copy.received() for copy in one_ahead(copies.start(batch) for batch in batches))


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, always fetching the next one ahead.

    An error of the next item is raised when its turn comes: the work on the current one is done first.

    >>> taken = []
    >>> ahead = one_ahead(taken.append(i) or i for i in range(3))
    >>> [(item, list(taken)) for item in ahead]
    [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]
    """
    ahead: list[T] = []
    try:
        for item in items:
            yield from ahead
            ahead = [item]
    except StylizeError:
        yield from ahead
        raise
    yield from ahead
