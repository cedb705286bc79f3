"""Compile functions for the processor at hand, and keep the machine code for the next process.

The cache folder is named by the content of this package's files and by the versions of numba and llvmlite: a change of
any of them compiles everything anew. numba by itself only looks at the file of the function that is called, and would
reuse machine code with stale kernels inlined.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import llvmlite
import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt

logger = logging.getLogger("stylize")

Values = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

settings: Any = numba.config

SECONDS_KEPT = 30 * 24 * 3600  # after its last use, of code that other versions of these files compiled


class RegisterBlock(NamedTuple):
    """The part of a matrix product that is held in registers.

    Attributes:
        rows: Rows, at most.
        vectors: Vectors in a row.
        lanes: float32 values in a vector.
    """

    rows: int
    vectors: int
    lanes: int


def block_for(machine: str, features: dict[str, bool]) -> RegisterBlock:
    """Return the block that fills all but two or three of a processor's vector registers.

    >>> block_for("x86_64", {"avx512f": True, "avx2": True}), block_for("x86_64", {"avx2": True})
    (RegisterBlock(rows=14, vectors=2, lanes=16), RegisterBlock(rows=6, vectors=2, lanes=8))
    """
    if features.get("avx512f"):
        return RegisterBlock(14, 2, 16)
    if features.get("avx2") and features.get("fma", True):
        return RegisterBlock(6, 2, 8)
    return RegisterBlock(6, 2, 4) if machine in ("x86_64", "AMD64") else RegisterBlock(6, 4, 4)


BLOCK = block_for(platform.machine(), dict(llvmlite.binding.get_host_cpu_features()))
LANES = BLOCK.lanes
PANEL = BLOCK.vectors * BLOCK.lanes  # columns of a panel of the right factor of a matrix product


def compiled(function: Function) -> Function:
    """Compile a function for the types of its first call; it releases the GIL.

    The machine code is kept on disk where there is a folder that can be written to.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}}
    folder = cache_folder()
    if folder is not None:
        with suppress(RuntimeError), _numba_cache(folder):  # numba finds no folder for its files
            return cast(Function, numba.njit(cache=True, **options)(function))
    return cast(Function, numba.njit(**options)(function))


@contextmanager
def _numba_cache(folder: Path) -> Iterator[None]:
    """Let numba keep what is decorated within the block in `folder`; other users of numba keep their own."""
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        settings.CACHE_DIR = before


@lru_cache(1)
def cache_folder() -> Path | None:
    """Return the folder for the machine code of these very kernels; None if it cannot be written to."""
    parent = _cache_parent()
    folder = parent / source_digest(Path(__file__).parent)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(folder)
    except OSError as error:
        logger.debug("%s: cannot be written to (%s); kernels are compiled in every process", folder, error.strerror)
        return None
    _remove_unused(parent)
    return folder


def _cache_parent() -> Path:
    if settings.CACHE_DIR:  # set by the user as NUMBA_CACHE_DIR
        return Path(settings.CACHE_DIR, "stylize")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "stylize", "kernels")


def source_digest(folder: Path) -> str:
    """Return a digest of all that machine code is compiled from: the source files, and the compiler's version."""
    digest = hashlib.sha256(f"numba {numba.__version__} llvmlite {llvmlite.__version__}".encode())
    for file in sorted(folder.glob("*.py")):
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _remove_unused(parent: Path) -> None:
    with suppress(OSError):
        for folder in parent.iterdir():
            if time.time() - folder.stat().st_mtime > SECONDS_KEPT:
                shutil.rmtree(folder, ignore_errors=True)
