"""Pixels between the host and a device: they travel as the integers of files and become floats where they arrive.

16 bits travel as int16, for not every device has uint16.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from stylize.system.devices import has_own_memory, pins_memory

logger = logging.getLogger("stylize")

# Larger ones stay in pageable memory: torch keeps what it pinned, and the system cannot use it for others.
PINNED_BYTES = 2**28


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the host in pinned memory, where the device copies faster from there; else the tensor itself."""
    if not pins_memory(device) or values.is_pinned():
        return values
    room = _pinned_room(values.shape, values.dtype)
    return values if room is None else room.copy_(values)


def _pinned_room(shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """Return uninitialized pinned memory; None where it would be too much, or the system gives none."""
    if math.prod(shape) * dtype.itemsize > PINNED_BYTES:
        return None
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        _tell_without_pinning(str(error).strip().partition("\n")[0])
        return None


@lru_cache(1)
def _tell_without_pinning(reason: str) -> None:
    logger.warning("no memory can be pinned (%s): copies to and from the device take longer", reason)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy values to a device; the host waits for the copy only where memory is not pinned.

    Returns:
        The values on the device; the tensor itself where it is there already.
    """
    if not has_own_memory(device) or has_own_memory(values.device):
        return values.to(device)
    source = pinned(values, device)
    # From other memory a copy that nobody waits for might read what comes there next.
    return source.to(device, non_blocking=pins_memory(device) and source.is_pinned())


def levels_to_device(levels: Tensor, device: torch.device) -> Tensor:
    """Copy the levels of a file to a device.

    Args:
        levels: uint8 or uint16, on the host.

    Returns:
        The same numbers: on a CPU the tensor itself; elsewhere uint8, or int32 in place of uint16.
    """
    if levels.dtype == torch.uint8 or not has_own_memory(device):
        return to_device(levels, device)
    return unsigned(to_device(levels.view(torch.int16), device))


def levels_to_host(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert whole numbers in float32, on any device, to the levels of a file on the host.

    Args:
        levels: Within the range of the type.
        dtype: uint8 or uint16.

    Returns:
        The same shape; contiguous, if they were not on the host already. They are there when this returns.
    """
    if not has_own_memory(levels.device):
        return levels.to(dtype)
    narrow = levels.to(torch.uint8) if dtype == torch.uint8 else signed(levels.to(torch.int32))
    narrow = narrow.contiguous()
    host = _pinned_room(narrow.shape, narrow.dtype) if pins_memory(levels.device) else None
    if host is None:
        host = torch.empty(narrow.shape, dtype=narrow.dtype)
    return host.copy_(narrow).view(dtype)


def signed(levels: Tensor) -> Tensor:
    """Return the int16 with the bits of the same uint16.

    Args:
        levels: int32, 0 to 65535.

    >>> signed(torch.tensor([0, 32767, 32768, 65535], dtype=torch.int32)).tolist()
    [0, 32767, -32768, -1]
    """
    return (levels - 2 * (levels & 0x8000)).to(torch.int16)


def unsigned(bits: Tensor) -> Tensor:
    """Return the numbers, int32, that the bits of int16 mean in uint16.

    >>> unsigned(torch.tensor([0, 32767, -32768, -1], dtype=torch.int16)).tolist()
    [0, 32767, 32768, 65535]
    """
    return bits.to(torch.int32).bitwise_and_(0xFFFF)
