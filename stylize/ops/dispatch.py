"""The one place that decides between the compiled CPU kernels and plain PyTorch."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from stylize.system.compiler import has_compiler
from stylize.system.devices import choose_memory_format

logger = logging.getLogger("stylize")

MAP_TYPES = (torch.float32, torch.bfloat16)  # of the kernels of norms and pooling; convolutions have float32 alone
GPU_MAP_TYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIABLE = "STYLIZE_REFERENCE"

Result = TypeVar("Result")


class _Switch:
    """Counts the blocks of `reference` that are open, in all threads, and the calls that kernels served."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.references = int(os.environ.get(VARIABLE, "") not in ("", "0"))
        self.kernel_calls = 0
        self.gpu_failed = False


_switch = _Switch()


def cpu_kernels(*tensors: Tensor | None, types: Collection[torch.dtype] = (torch.float32,)) -> bool:
    """Return whether the compiled kernels serve these tensors: on a CPU, without autocast or `torch.compile`.

    Every operation of this package asks this, and adds what its own kernel needs of shapes and strides.

    Args:
        tensors: The operation's tensors; None is passed over.
        types: The types that the kernel has.
    """
    if torch.compiler.is_compiling() or _switch.references or torch.is_autocast_enabled("cpu"):
        return False
    served = all(t is None or (t.device.type == "cpu" and t.dtype in types) for t in tensors)
    return served and _has_numba()


def gpu_kernels(x: Tensor) -> bool:
    """Return whether the GPU's kernels serve `x`: floating point on CUDA with Triton, without gradient and compilation.

    With them `torch.compile` makes its own of plain PyTorch.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or _switch.references or _switch.gpu_failed:
        return False
    return x.device.type == "cuda" and x.dtype in GPU_MAP_TYPES and _has_triton(x.device)


def try_gpu_kernel(kernel: Callable[[], Result]) -> Result | None:
    """Call a kernel; if it cannot be compiled or started, say so once, and leave all further work to plain PyTorch.

    Returns:
        Its result; None: it failed.

    Raises:
        torch.OutOfMemoryError: The device has too little memory.
    """
    try:
        result = kernel()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton, of its compilers, or of the driver
        _switch.gpu_failed = True
        reason = str(error).strip().partition("\n")[0]
        logger.warning("the kernels for GPUs failed (%s): computing by plain PyTorch, which takes longer", reason)
        return None
    count_kernel_call()
    return result


def count_kernel_call() -> None:
    """Note that an operation is served by a kernel; see `kernel_calls`."""
    _switch.kernel_calls += 1


def kernel_calls() -> int:
    """Return how many operations compiled kernels have served in this process so far."""
    return _switch.kernel_calls


@contextmanager
def reference() -> Iterator[None]:
    """Compute by plain PyTorch alone within the block, in all threads of the process.

    The environment variable `STYLIZE_REFERENCE=1` does the same for a whole run.

    >>> with reference():
    ...     cpu_kernels(torch.zeros(1))
    False
    """
    with _switch.lock:
        _switch.references += 1
    try:
        yield
    finally:
        with _switch.lock:
            _switch.references -= 1


def is_reference() -> bool:
    """Return whether all kernels are turned off."""
    return _switch.references > 0


@lru_cache
def _has_triton(device: torch.device) -> bool:
    return has_compiler(device)


@lru_cache(1)
def _has_numba() -> bool:
    if importlib.util.find_spec("numba") is not None:
        return True
    logger.warning("numba is not installed: computing by plain PyTorch, which takes several times as long on a CPU")
    return False


def on_cpu(x: Tensor) -> bool:
    """Return whether a tensor is in the host's memory."""
    return x.device.type == "cpu"


def pools_to_any_size(x: Tensor) -> bool:
    """Return whether adaptive pooling on the device of `x` takes sizes that do not divide its height and width."""
    return x.device.type != "mps"


def preferred_layout(x: Tensor) -> torch.memory_format:
    """Return the memory layout that the convolutions of the device of `x` prefer."""
    return choose_memory_format(x.device)


def widened(x: Tensor) -> Tensor:
    """Return `x` with at least the precision of float32.

    >>> widened(torch.zeros(1, dtype=torch.bfloat16)).dtype, widened(torch.zeros(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def multiplies_into_float32(x: Tensor) -> bool:
    """Return whether torch multiplies matrices of the type of `x` into float32 results, by `out_dtype`."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    return half and x.device.type == "cuda" and hasattr(torch.ops.aten.bmm, "dtype")


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off on the device of `x`."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)  # it knows no autocast
