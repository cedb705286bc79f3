"""Where to compute, and in which precision and memory layout."""

from __future__ import annotations

import torch

from stylize.errors import StylizeError


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto`: CUDA, else MPS, else CPU.

    Raises:
        StylizeError: The device is not there.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present[name]:
        usable = ", ".join(f"'{kind}'" for kind, there in present.items() if there)
        raise StylizeError(f"--device: got '{name}', which torch does not find here; usable: {usable}")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto`: bf16 where the device multiplies it in hardware."""
    if name != "auto":
        return name
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks)
    return False


def choose_memory_format(device: torch.device) -> torch.memory_format:
    """Channels-last where the convolutions of the device prefer it."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last
