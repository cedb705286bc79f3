"""How much memory there is, and how the process gets it.

On Linux the most part of what a large tensor costs is the finding of its pages.

The C library takes every tensor of more than 32 MiB from the system, and returns it there as soon as it is freed; each
comes back as pages of 4 KiB that the system first has to find and clear, one by one.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil

# Of malloc.h: what may be set, and how much.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
KEPT_BYTES = 2**31 - 1


# Limit and use of the process's own group, as a container shows them.
CONTROL_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors for the next ones: right where all steps need the same.

    Where the C library is not GNU's, nothing is done.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is not None and hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def return_freed_memory() -> None:
    """Give the system what the process has freed, where small things had it: after much was loaded or compiled.

    Where the C library is not GNU's, nothing is done.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def available_bytes() -> int:
    """Memory that the process can have without others being pushed out: of the machine, or of its container."""
    return min(psutil.virtual_memory().available, *_container_rooms())


def own_bytes() -> int:
    """Memory that the process has."""
    return int(psutil.Process().memory_info().rss)


def _container_rooms() -> list[int]:
    """What the limits of control groups leave; caches that the system would give up count as taken."""
    rooms = [sys.maxsize]
    for folder, limit, taken in CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # not there, or "max"
            rooms.append(int(Path(folder, limit).read_text()) - int(Path(folder, taken).read_text()))
    return rooms
