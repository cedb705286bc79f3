"""Where to compute, and in which precision and memory layout."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from stylize.errors import StylizeError

logger = logging.getLogger("stylize")

OLDEST_OF_TRITON = (7, 0)  # compute capability


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


def has_compiler(device: torch.device) -> bool:
    """Whether `torch.compile` finds what it needs: Python's headers and a compiler, on CUDA Triton and a GPU for it.

    Triton compiles its kernels itself, but what launches them is C.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None or not _suits_triton(device):
            return False
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++", "cl"]
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return headers and any(shutil.which(name) for name in names)


def _suits_triton(device: torch.device) -> bool:
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= OLDEST_OF_TRITON


def check_compiler(device: torch.device, place: str) -> None:
    """See that compilation is possible where it was asked for.

    Args:
        device: Where to compute.
        place: Where it was asked for, for the message (`train.compile`, `--compile`).

    Raises:
        StylizeError: It is not.
    """
    if not has_compiler(device):
        raise StylizeError(f"{place}: got 'always', but no compiler for {device.type} is found")


def why_not_compile(device: torch.device, precision: str) -> str | None:
    """Why compiled networks would not pay, however much they have to do; None where they may.

    On a CPU in float32 the eager networks have convolutions of their own (`stylize.ops.convolution`), which a compiler
    switches off.
    """
    if device.type not in ("cpu", "cuda"):
        return f"it pays on cuda and cpu, not on {device.type}"
    if device.type == "cpu" and precision == "fp32":
        return "in fp32 on cpu too little is gained over the eager convolutions"
    if device.type == "cpu" and not multiplies_bf16(device):
        return "this cpu does not multiply bf16 in hardware"
    return None if has_compiler(device) else f"no compiler for {device.type} is found"


def keep_compiled_code() -> None:
    """Let `torch.compile` keep what it compiles for the next run, in the user's own cache folder.

    torch's default is a folder of guessable name among the temporary files: gone after a restart, and code that is run
    should not come from where others may write. torch reads the variable when it compiles, and keeps Triton's kernels
    below the same folder. Who has set it already is left to it.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "stylize", "compiled")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("%s: cannot be created (%s); compiled code is not kept there", folder, error.strerror)
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
