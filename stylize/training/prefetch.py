"""Batches that are on the device before they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.system.compute import Compute

T = TypeVar("T")


def prefetched(batches: Iterator[Tensor], compute: Compute) -> Iterator[Tensor]:
    """Batches on their device; where it can, the next one is copied while the network computes on this one."""
    if not compute.copies_in_background:
        return batches
    stream = torch.cuda.Stream(compute.device)  # type: ignore[no-untyped-call]
    return (_received(*copy) for copy in one_ahead(_sent(batch, stream) for batch in batches))


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next of which is always there already.

    An error of the next one is raised in its turn: the work on this one comes first.

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
