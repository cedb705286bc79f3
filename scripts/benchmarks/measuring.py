"""Measure time and memory of this process, and describe its environment."""

from __future__ import annotations

import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
MEMORY = Path("/proc/meminfo")
CPU_INFO = Path("/proc/cpuinfo")
# Names by the system's flags, those of x86 before those of ARM.
CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_tile": "AMX tiles",
    "amx_bf16": "AMX BF16",
    "asimd": "Neon",
    "sve": "SVE",
    "bf16": "BF16",
}


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes, including the device's work."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def number(value: float) -> str:
    """Return a value with three digits and without an exponent.

    >>> number(0.12345), number(12.345), number(12345.6)
    ('0.123', '12.3', '12346')
    """
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


class Spread(NamedTuple):
    """Median and range of values over rounds."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.least)}..{number(self.greatest)})"


def spread(values: Sequence[float]) -> Spread:
    """Return median and range.

    >>> str(spread([3.0, 1.0, 2.5]))
    '2.50 (1.00..3.00)'
    """
    return Spread(statistics.median(values), min(values), max(values))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratios by round.

    >>> ratios([4.0, 6.0], [2.0, 2.0])
    [2.0, 3.0]
    """
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


class Memory(NamedTuple):
    """Memory of a process; None if the system does not report it.

    Attributes:
        peak_bytes: Peak at any time: of torch's tensors on CUDA, otherwise of the whole process.
        growth_bytes: Peak since the first call minus the memory right before it, which excludes libraries and the
            creation of inputs.
    """

    peak_bytes: int | None
    growth_bytes: int | None


class MemoryGauge:
    """Measures memory from now on; create it right before the first call."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_before = peak_bytes(device)
        self.held = held_bytes(device)
        self.peak_was_reset = reset_peak_(device)

    def read(self) -> Memory:
        """Return the memory used until now."""
        peak = peak_bytes(self.device)
        if peak is None or self.peak_before is None:
            return Memory(None, None)
        told = self.held is not None and (self.peak_was_reset or peak > self.peak_before)
        return Memory(max(peak, self.peak_before), peak - self.held if told and self.held is not None else None)


def peak_bytes(device: torch.device) -> int | None:
    """Return the peak memory since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # `getrusage` is the last resort: it includes the peak of the parent process.
    peak = read_kib(STATUS, "VmHWM")
    if peak is not None or sys.platform == "win32":
        return peak
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held_bytes(device: torch.device) -> int | None:
    """Return the memory in use now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else read_kib(STATUS, "VmRSS")


def reset_peak_(device: torch.device) -> bool:
    """Reset the peak; return whether this was possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text("5")
    except OSError:  # not Linux, or not permitted
        return False
    return True


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is still available."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else read_kib(MEMORY, "MemAvailable")


def read_kib(file: Path, key: str) -> int | None:
    """Return the value of a `/proc` line such as `VmHWM:  1024 kB`, in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", file.read_text(), re.MULTILINE) if file.is_file() else None
    return int(found[1]) * 1024 if found else None


def environment(device: torch.device) -> dict[str, str]:
    """Return versions and hardware of the measurement."""
    return {
        "torch": torch.__version__,
        "CPU": cpu_model(),
        "threads": str(torch.get_num_threads()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "CPU features": ", ".join(cpu_features()) or "unknown",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def cpu_model() -> str:
    """Return the name of the processor."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Return those of the processor's features that decide how fast it multiplies; none where they are unknown."""
    flags = (_cpu_line("flags") or _cpu_line("Features")).split()
    return [name for flag, name in CPU_FEATURES.items() if flag in flags]


def _cpu_line(key: str) -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")
