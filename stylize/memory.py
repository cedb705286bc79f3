"""How the process gets its memory: on Linux the most part of what a large tensor costs is the finding of its pages.

The C library takes every tensor of more than 32 MiB from the system, and returns it there as soon as it is freed; each
comes back as pages of 4 KiB that the system first has to find and clear, one by one.
"""

from __future__ import annotations

import ctypes
import os
import sys

# torch's own switch: from 2 MiB on, its tensors ask for pages of 2 MiB.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}

# Of malloc.h: what may be set, and how much.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors for the next ones: right where all steps need the same.

    Where the C library is not GNU's, nothing is done.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is not None and hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def use_large_pages() -> None:
    """Let torch ask for large pages: right where sizes vary, and memory is to be given back. Before torch is imported.

    Who has set the variable already is left to it. Where the system has no such pages, nothing changes.
    """
    for name, value in LARGE_PAGES.items():
        os.environ.setdefault(name, value)
