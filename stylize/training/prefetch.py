"""Copy batches to the device before they are requested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.system.compute import Compute

T = TypeVar("T")


def prefetched(batches: Iterator[Tensor], compute: Compute) -> Iterator[Tensor]:
    """Yield batches on their device; if it supports this, the next one is copied while the network computes."""
    if not compute.copies_in_background:
        return batches
    stream = torch.cuda.Stream(compute.device)  # type: ignore[no-untyped-call]
    return (_received(*copy) for copy in one_ahead(_sent(batch, stream) for batch in batches))


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


def _sent(batch: Tensor, stream: torch.cuda.Stream) -> tuple[Tensor, torch.cuda.Event]:
    with torch.cuda.stream(stream):
        return batch.to(stream.device, non_blocking=True), stream.record_event()


def _received(batch: Tensor, copied: torch.cuda.Event) -> Tensor:
    """The batch, once the device has its copy; the host does not wait."""
    current = torch.cuda.current_stream(batch.device)
    current.wait_event(copied)
    batch.record_stream(current)  # its memory must not be reused while this stream computes with it
    return batch
