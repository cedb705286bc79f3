"""Time functions on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from benchmarks.counts import product_flop
from benchmarks.measuring import Spread, spread

from gpu_checks.setting import Setting

LEAST_S = 0.02  # of a measurement: shorter functions are called several times in it
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


def seconds_of(setting: Setting, function: Callable[[], object], repeats: int = 7, warmup: int = 2) -> Spread:
    """Return the seconds of a call, the device's work included: median and range of some measurements."""
    for _ in range(warmup):
        function()
    once = _timed(setting, function, 1)
    calls = max(1, round(LEAST_S / once)) if once > 0 else 1
    return spread([_timed(setting, function, calls) for _ in range(repeats)])


def _timed(setting: Setting, function: Callable[[], object], calls: int) -> float:
    setting.synchronize()
    start_s = time.perf_counter()
    for _ in range(calls):
        function()
    setting.synchronize()
    return (time.perf_counter() - start_s) / calls


def product_rate(setting: Setting, kind: str) -> float:
    """Return FLOP/s of a large product of matrices in a type, the best of some."""
    side = setting.sized(8192 if setting.on_cuda else 2048, 128)
    a, b, c = (torch.randn(side, side, device=setting.device, dtype=DTYPES[kind]) for _ in range(3))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        return product_flop(side) / seconds_of(setting, partial(torch.mm, a, b, out=c), 5).least
    finally:
        torch.set_float32_matmul_precision(before)


def copy_rate(setting: Setting) -> float:
    """Return the bytes per second that a large copy reads and writes, the best of some."""
    size = setting.sized(2**30 if setting.on_cuda else 2**28, 2**20)
    source = torch.ones(size // 4, device=setting.device)
    target = torch.empty_like(source)
    return 2 * size / seconds_of(setting, partial(target.copy_, source), 5).least


def milliseconds(seconds: Spread) -> str:
    """Return a duration as text.

    >>> milliseconds(spread([0.001, 0.002, 0.004]))
    '2.00 (1.00..4.00)'
    """
    return str(Spread(*(1e3 * value for value in seconds)))
