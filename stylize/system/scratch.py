"""Large tensors in memory mapped straight from the system, and a pool that reuses it.

The C library keeps large tensors among the small ones. GNU's, before 2.38, allocates more than a tensor needs in order
to align it, and gives the rest to others, so the next tensor of the same size no longer fits where the last one was:
strip by strip the process would grow to a multiple of what it uses.
"""

from __future__ import annotations

import math
import mmap
import weakref
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor

SMALL_BYTES = 2**20  # below, mapping pages would take longer than the work on them
# Only private memory can have large pages everywhere.
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def map_pages(size_bytes: int) -> mmap.mmap:
    """Map memory that begins with a page; of large pages where the system has them."""
    taken = mmap.mmap(-1, size_bytes, **PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without
            taken.madvise(mmap.MADV_HUGEPAGE)
    return taken


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized CPU tensor whose memory goes back to the system as soon as the tensor is freed."""
    size_bytes = _bytes(shape, dtype)
    if size_bytes < SMALL_BYTES:
        return torch.empty(shape, dtype=dtype)
    return _tensor_in(memoryview(map_pages(size_bytes)), shape, dtype)


class ScratchPool:
    """Pool of large buffers; a buffer is reused when its last tensor is freed. Safe in threads.

    Made for tensors of similar sizes that are needed again and again, as for the strips of a picture.

    >>> pool = ScratchPool()
    >>> first, second = (pool.take((512, 1024), torch.float32) for _ in range(2))
    >>> places = first.data_ptr(), second.data_ptr()
    >>> places[0] == places[1]
    False
    >>> del first
    >>> pool.take((500, 1024), torch.float32).data_ptr() == places[0]
    True
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._lock = Lock()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialized CPU tensor."""
        size_bytes = _bytes(shape, dtype)
        if size_bytes < SMALL_BYTES:
            return torch.empty(shape, dtype=dtype)
        taken = self._fitting(size_bytes) or map_pages(size_bytes)
        view = memoryview(taken)
        weakref.finalize(view, self._free.append, taken).atexit = False  # tensors hold the view
        return _tensor_in(view, shape, dtype)

    def _fitting(self, size_bytes: int) -> mmap.mmap | None:
        """The smallest free buffer that suffices. If none does, the largest is freed: a new one will take its place."""
        with self._lock:
            self._free.sort(key=len)
            fitting = next((i for i, free in enumerate(self._free) if len(free) >= size_bytes), None)
            if fitting is not None:
                return self._free.pop(fitting)
            del self._free[-1:]
            return None

    def clear(self) -> None:
        """Return all free buffers to the system."""
        with self._lock:
            self._free.clear()


SCRATCH = ScratchPool()  # of the process


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _tensor_in(view: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(view, dtype=dtype, count=math.prod(shape)).view(shape)
