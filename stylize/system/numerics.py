"""How exactly CUDA's libraries compute: process-wide switches of torch, set for a block and put back after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

import torch

# cuBLAS is deterministic only with this workspace, and reads the variable when it is first used.
CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class Numerics(NamedTuple):
    """Wishes of a computation.

    Attributes:
        tf32: Whether float32 products may be rounded to TensorFloat-32 (10 bits of mantissa).
        deterministic: Whether equal inputs must give equal results, bit for bit.
        tuned: Whether cuDNN may try its algorithms and take the fastest; pays where shapes repeat.
    """

    tf32: bool = False
    deterministic: bool = False
    tuned: bool = False


class _State(NamedTuple):
    """What torch's switches say."""

    convolution_tf32: bool
    product_tf32: bool
    deterministic: bool
    cudnn_deterministic: bool
    cudnn_benchmark: bool
    fills_memory: bool

    def restore(self) -> None:
        # The older of torch's two interfaces: inductor asks by it, and torch refuses a mixture.
        torch.backends.cudnn.allow_tf32 = self.convolution_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.product_tf32
        torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.deterministic = self.cudnn_deterministic
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.utils.deterministic.fill_uninitialized_memory = self.fills_memory  # type: ignore[attr-defined]


class _Switches:
    """The wishes of all open blocks, in all threads; the strictest of them holds."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: list[Numerics] = []
        self._before: _State | None = None

    def enter(self, wish: Numerics) -> None:
        with self._lock:
            if self._before is None:
                self._before = _present()
            self._open.append(wish)
            _set(_strictest(self._open))

    def leave(self, wish: Numerics) -> None:
        with self._lock:
            self._open.remove(wish)
            if self._open:
                _set(_strictest(self._open))
            elif self._before is not None:
                self._before.restore()
                self._before = None


_switches = _Switches()


@contextmanager
def numerics(wish: Numerics) -> Iterator[None]:
    """Compute like this within the block, on CUDA; where blocks of several threads overlap, the strictest wish holds.

    >>> with numerics(Numerics(tf32=False)):
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    _switches.enter(wish)
    try:
        yield
    finally:
        _switches.leave(wish)


def prepare_determinism() -> None:
    """Ask cuBLAS for deterministic sums; call it before the first computation on CUDA. A set variable stays."""
    os.environ.setdefault(*CUBLAS_WORKSPACE)


def _strictest(wishes: list[Numerics]) -> Numerics:
    deterministic = any(wish.deterministic for wish in wishes)
    return Numerics(
        all(wish.tf32 for wish in wishes), deterministic, all(wish.tuned for wish in wishes) and not deterministic
    )


def _present() -> _State:
    return _State(
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


def _set(wish: Numerics) -> None:
    _State(wish.tf32, wish.tf32, wish.deterministic, wish.deterministic, wish.tuned, False).restore()
