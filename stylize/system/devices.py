"""Devices by name, and the precision and memory layout that suit each."""

from __future__ import annotations

import os

import torch

from stylize.errors import StylizeError
from stylize.system.memory import available_bytes, own_bytes

CPU = torch.device("cpu")
VARIABLE = "STYLIZE_DEVICE"


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


def choose_precision(name: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto`: bf16 on GPUs that multiply it in hardware.

    On a CPU fp32 is exact, needs no compiler, and with the convolutions of `stylize.ops` is the faster of the two even
    where AVX-512 multiplies bf16 (`scripts/benchmark.py`).
    """
    if name != "auto":
        return name
    return "bf16" if device.type != "cpu" and multiplies_bf16(device) else "fp32"


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
