"""Large pieces of memory straight from the system, and tensors that lie in them.

The C library would keep large tensors in the same memory as all that is small. GNU's, before 2.38, asks for more than
a tensor needs in order to align it and gives the rest to others, so the next one of the same size no longer fits where
the last one was: strip by strip the process would grow to a multiple of what it uses.
"""

from __future__ import annotations

import math
import mmap
import weakref
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor

SMALL_BYTES = 2**20  # below, the system's pages would take longer than what is done with them
# Written by this process alone: only such memory can have large pages everywhere.
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def piece(size_bytes: int) -> mmap.mmap:
    """Memory of its own, from the beginning of a page of the system; of large pages where there are any."""
    taken = mmap.mmap(-1, size_bytes, **PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without
            taken.madvise(mmap.MADV_HUGEPAGE)
    return taken


def allocated(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of its own memory, of any values; the system has that back as soon as the tensor is gone."""
    size_bytes = _bytes(shape, dtype)
    if size_bytes < SMALL_BYTES:
        return torch.empty(shape, dtype=dtype)
    return _lying_in(memoryview(piece(size_bytes)), shape, dtype)


class Blocks:
    """Memory that large tensors have in turns: a tensor's is the next one's as soon as nothing refers to it.

    Right where similar ones are needed again and again, as for the strips of a picture.

    >>> blocks = Blocks()
    >>> first, second = (blocks.take((512, 1024), torch.float32) for _ in range(2))
    >>> places = first.data_ptr(), second.data_ptr()
    >>> places[0] == places[1]
    False
    >>> del first
    >>> blocks.take((500, 1024), torch.float32).data_ptr() == places[0]
    True
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._lock = Lock()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any values, on the processor."""
        size_bytes = _bytes(shape, dtype)
        if size_bytes < SMALL_BYTES:
            return torch.empty(shape, dtype=dtype)
        taken = self._fitting(size_bytes) or piece(size_bytes)
        view = memoryview(taken)
        weakref.finalize(view, self._free.append, taken).atexit = False  # tensors hold the view
        return _lying_in(view, shape, dtype)

    def _fitting(self, size_bytes: int) -> mmap.mmap | None:
        """The smallest free piece that suffices. If none does, the largest goes: a new one comes in its place."""
        with self._lock:
            self._free.sort(key=len)
            fitting = next((i for i, free in enumerate(self._free) if len(free) >= size_bytes), None)
            if fitting is not None:
                return self._free.pop(fitting)
            del self._free[-1:]
            return None

    def clear(self) -> None:
        """Give the system what nothing refers to."""
        with self._lock:
            self._free.clear()


BLOCKS = Blocks()  # the process's


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _lying_in(view: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(view, dtype=dtype, count=math.prod(shape)).view(shape)
