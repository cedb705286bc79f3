"""Batches that are on the device before they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from stylize.errors import StylizeError

T = TypeVar("T")


def prefetched(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Batches on their device; on CUDA the next one is copied, from pinned memory, beside the work on this one."""
    if device.type != "cuda":
        return batches
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return (_arrived(*copy) for copy in one_ahead(_departing(batch, stream) for batch in batches))


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next of which is always there already.

    What is wrong with the next one is raised in its turn: the work on this one comes first.

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


def _departing(batch: Tensor, stream: torch.cuda.Stream) -> tuple[Tensor, torch.cuda.Event]:
    with torch.cuda.stream(stream):
        return batch.to(stream.device, non_blocking=True), stream.record_event()


def _arrived(batch: Tensor, copied: torch.cuda.Event) -> Tensor:
    """A batch that may be used: its copy is waited for, and its memory not given away while it is in use."""
    current = torch.cuda.current_stream(batch.device)
    current.wait_event(copied)
    batch.record_stream(current)
    return batch
