"""How much memory there is, and whether the process keeps what it frees.

On Linux most of the cost of a large allocation is page faults: the C library takes every tensor of more than 32 MiB
from the system and returns it as soon as it is freed; the next one comes as pages of 4 KiB that the system first finds
and clears, one by one.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil

# Parameters of malloc.h and their values.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
KEPT_BYTES = 2**31 - 1


# Limit and use of the process's own control group, as a container shows them.
CONTROL_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors for the next ones; pays where every step needs the same.

    Does nothing where the C library is not GNU's.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is not None and hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def return_freed_memory() -> None:
    """Return the memory of freed small objects to the system; pays after loading or compiling.

    Does nothing where the C library is not GNU's.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def available_bytes() -> int:
    """Bytes that the process can allocate without swapping: of the machine, or of its container if that has fewer."""
    return min(psutil.virtual_memory().available, *_left_in_containers())


def own_bytes() -> int:
    """Resident bytes of the process."""
    return int(psutil.Process().memory_info().rss)


def _left_in_containers() -> list[int]:
    """Bytes that the limits of control groups leave; caches that the system would drop count as used."""
    left = [sys.maxsize]
    for folder, limit, taken in CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # not there, or "max"
            left.append(int(Path(folder, limit).read_text()) - int(Path(folder, taken).read_text()))
    return left
