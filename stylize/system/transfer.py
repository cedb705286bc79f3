"""Copies to a CUDA device while it computes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Copy(NamedTuple):
    """A tensor on its way to the device.

    Attributes:
        tensor: The tensor on the device.
        done: Occurs on the device when the copy is complete.
    """

    tensor: Tensor
    done: torch.cuda.Event

    def received(self) -> Tensor:
        """The tensor, for use in the current stream: the device waits for the copy, the host does not."""
        current = torch.cuda.current_stream(self.tensor.device)
        current.wait_event(self.done)
        self.tensor.record_stream(current)  # its memory must not be reused while this stream computes with it
        return self.tensor


class BackgroundCopies:
    """Copies from pinned memory in a stream of their own.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, tensor: Tensor) -> Copy:
        """Start to copy a tensor; the host does not wait."""
        with torch.cuda.stream(self._stream):
            return Copy(tensor.to(self._stream.device, non_blocking=True), self._stream.record_event())
