"""Devices by name, and the precision and memory layout that suit each."""

from __future__ import annotations

import os

import torch

from stylize.errors import StylizeError, pick
from stylize.system.memory import available_bytes, own_bytes

CPU = torch.device("cpu")
VARIABLE = "STYLIZE_DEVICE"
PRECISION_VARIABLE = "STYLIZE_PRECISION"
TRAINING_PRECISIONS = ("fp32", "bf16")
PRECISIONS = (*TRAINING_PRECISIONS, "fp16")
OLDEST_WITH_FP16_UNITS = (7, 0)  # compute capability
INDEXABLE_VALUES = 2**31 - 1  # padding and resizing count in 32 bits on GPUs
# What torch says where it raises no `OutOfMemoryError`: MPS, and the libraries of CUDA.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")


def choose_device(name: str) -> torch.device:
    """Return the device of that name; `auto`: that of the variable `STYLIZE_DEVICE`, else CUDA, else MPS, else CPU.

    Raises:
        StylizeError: torch does not find the device.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    place = "--device"
    if name == "auto" and VARIABLE in os.environ:
        name, place = os.environ[VARIABLE], VARIABLE
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present.get(name, False):
        usable = ", ".join(f"'{kind}'" for kind, there in present.items() if there)
        raise StylizeError(f"{place}: got '{name}', which torch does not find here; usable: {usable}")
    return torch.device(name)


def choose_precision(name: str, device: torch.device, *, inference: bool = False) -> str:
    """Return `fp32`, `bf16` or `fp16`: the name itself, or what `auto` means.

    `auto` is that of the variable `STYLIZE_PRECISION`, if it is set. Else it is bf16 where the device has matrix units
    for it; fp16 for inference on GPUs that only have those for fp16; and fp32. Without matrix units a CPU is faster in
    fp32, by the convolutions of `stylize.ops`, even where AVX-512 multiplies bf16 (`scripts/benchmark.py`).

    Args:
        name: `auto`, `fp32`, `bf16` or `fp16`.
        device: The device.
        inference: Whether nothing is trained: float16 would need gradients to be scaled.

    Raises:
        StylizeError: The variable holds another name.
    """
    if name != "auto":
        return name
    wish = os.environ.get(PRECISION_VARIABLE, "auto")
    if wish != "auto":
        allowed = PRECISIONS if inference else TRAINING_PRECISIONS
        return pick({name: name for name in allowed}, wish, PRECISION_VARIABLE)
    if has_bf16_matrix_units(device):
        return "bf16"
    return "fp16" if inference and has_fp16_matrix_units(device) else "fp32"


def has_bf16_matrix_units(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bf16 several times as fast as those of float32."""
    if device.type == "cuda":
        return multiplies_bf16(device)
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def has_fp16_matrix_units(device: torch.device) -> bool:
    """Whether the device multiplies matrices of fp16 several times as fast as those of float32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= OLDEST_WITH_FP16_UNITS


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks)
    return False


def choose_memory_format(device: torch.device) -> torch.memory_format:
    """Channels-last where the convolutions of the device prefer it."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def free_and_own_bytes(device: torch.device) -> tuple[int, int]:
    """Return the free bytes of a device's memory, and those that this process has."""
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device)
        return torch.cuda.mem_get_info(device)[0] + own - torch.cuda.memory_allocated(device), own
    if device.type == "mps":
        own = torch.mps.driver_allocated_memory()
        return torch.mps.recommended_max_memory() - own, own
    return available_bytes(), own_bytes()


def has_own_memory(device: torch.device) -> bool:
    """Whether the device has memory beside the host's."""
    return device.type != "cpu"


def pins_memory(device: torch.device) -> bool:
    """Whether the device copies from and to pinned memory of the host faster than elsewhere."""
    return device.type == "cuda"


def indexable_values(device: torch.device) -> int | None:
    """The most values that a tensor may have for all operations of the device; None: as many as the memory holds."""
    return INDEXABLE_VALUES if has_own_memory(device) else None


def has_antialiased_resizing(device: torch.device) -> bool:
    """Whether the device resizes with antialiased bicubic interpolation."""
    return device.type != "mps"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device is exhausted.

    >>> is_out_of_memory(RuntimeError("MPS backend out of memory (…)")), is_out_of_memory(RuntimeError("no header"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
