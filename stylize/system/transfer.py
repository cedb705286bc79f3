"""Copies to a CUDA device while it computes, and the time in which a device waits for them."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

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


class Waits(Protocol):
    """Times how long computations wait for their data."""

    def begin(self) -> None:
        """Begin to wait."""

    def end(self) -> None:
        """End the waiting."""

    def taken_s(self) -> float:
        """The seconds waited since the last call. Call it when the device has finished what was started before."""


class HostWaits:
    """The time in which the host waits: where it computes itself, or waits for the device at every step."""

    def __init__(self) -> None:
        self._begun_s = self._waited_s = 0.0

    def begin(self) -> None:
        self._begun_s = time.perf_counter()

    def end(self) -> None:
        self._waited_s += time.perf_counter() - self._begun_s

    def taken_s(self) -> float:
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s


class DeviceWaits:
    """The time in which a CUDA device has nothing to do.

    The host runs ahead of it: while the host waits for data, the device may still have work.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: torch.cuda.Event | None = None
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        self._begun = self._event()

    def end(self) -> None:
        if self._begun is not None:
            self._pairs.append((self._begun, self._event()))
            self._begun = None

    def taken_s(self) -> float:
        over = [pair for pair in self._pairs if pair[1].query()]  # type: ignore[no-untyped-call]
        self._pairs = self._pairs[len(over) :]
        return float(sum(begun.elapsed_time(ended) for begun, ended in over)) / 1000

    def _event(self) -> torch.cuda.Event:
        """An event after all that was started in the current stream so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event
