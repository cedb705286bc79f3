"""What the machine is, and its peak rates."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
from benchmarks.measuring import cpu_features, cpu_model, number

from gpu_checks.results import Check, Found, Skipped
from gpu_checks.setting import Setting
from gpu_checks.timing import copy_rate, product_rate

TABLE, RATES = "the machine", "its rates"
GIB = 2**30


def checks(setting: Setting) -> Iterator[Check]:
    """Yield the section's checks."""
    yield Check("the device", partial(device, setting), TABLE)
    yield Check("the driver", partial(driver, setting), TABLE)
    yield Check("the host", partial(host, setting), TABLE)
    yield Check("software", partial(software, setting), TABLE)
    for kind in ("bf16", "fp16", *(["tf32"] if setting.on_cuda else []), "fp32"):
        yield Check(f"product of matrices, {kind}", partial(product, setting, kind), RATES)
    yield Check("copy", partial(copy, setting), RATES)


def device(setting: Setting) -> Found:
    """Tell the device's properties."""
    if not setting.on_cuda:
        return _told("device", cpu_model(), {"place": cpu_model()})
    found = torch.cuda.get_device_properties(setting.device)
    name = (
        f"{found.name}, {found.total_memory / GIB:.0f} GiB, capability {found.major}.{found.minor}, "
        f"{found.multi_processor_count} multiprocessors, {torch.cuda.device_count()} of them"
    )
    return _told("device", name, {"place": found.name, "bytes": found.total_memory})


def driver(setting: Setting) -> Found:
    """Tell what the driver tells."""
    if not setting.on_cuda:
        raise Skipped("there is no GPU")
    if shutil.which("nvidia-smi") is None:
        raise Skipped("nvidia-smi is not found")
    query = "driver_version,clocks.sm,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lines = told.stdout.strip().splitlines()
    if not lines:
        raise Skipped(f"nvidia-smi tells nothing ({told.stderr.strip()[:100]})")
    return _told(query.replace(",", ", "), lines[0])


def host(setting: Setting) -> Found:
    """Tell the processor."""
    told = f"{cpu_model()}, {os.cpu_count()} cores, {', '.join(cpu_features()) or 'no features known'}"
    return _told("processor", told, {"features": cpu_features()})


def software(setting: Setting) -> Found:
    """Tell versions."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if setting.on_cuda:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        versions |= {"CUDA": str(torch.version.cuda), "cuDNN": str(cudnn)}
    for name in ("torchvision", "triton", "numpy", "numba", "pyvips", "tensorboard", "pydantic"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return _told("software", ", ".join(f"{name} {told}" for name, told in versions.items()), {"versions": versions})


def product(setting: Setting, kind: str) -> Found:
    """Measure the rate of a product of matrices."""
    rate = product_rate(setting, kind)
    row = {"rate of": f"product of matrices, {kind}", "measured": f"{number(rate / 1e12)} TFLOP/s"}
    return Found(row, {"flops": rate})


def copy(setting: Setting) -> Found:
    """Measure the rate of a copy."""
    rate = copy_rate(setting)
    return Found({"rate of": "copy, read and written", "measured": f"{number(rate / 1e9)} GB/s"}, {"bytes": rate})


def _told(what: str, text: str, numbers: dict[str, object] | None = None) -> Found:
    return Found({"what": what, "is": text}, numbers or {})
