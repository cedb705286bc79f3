"""Where the time of a training step and of a picture goes: kernels, launches, waits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from benchmarks.counts import painting_flop, training_flop
from benchmarks.measuring import number
from torch.profiler import ProfilerActivity, profile

from gpu_checks.results import Check, Found, Skipped
from gpu_checks.setting import (
    SMALL_LOSS,
    Setting,
    Task,
    build_trainer,
    make_crops,
    make_picture,
    make_stylizer,
    small_compiler,
)
from gpu_checks.speed import UHD, Size
from gpu_checks.timing import product_rate
from stylize.errors import StylizeError
from stylize.inference.painter import Shape
from stylize.inference.stylizer import Stylizer

TOTALS = "where the time goes"
HEAVIEST = 10
CALLS = 3
LONGEST_NAME = 70
# Kernels whose operations are those that are counted; Triton's names tell all that is fused into a kernel, and
# convolutions are not, but for its templates.
MULTIPLIES = re.compile(
    r"^(?!triton_(?!tem))(?!.*(nchwToNhwc|nhwcToNchw)).*"
    r"(gemm|gemv|conv|cutlass|xmma|nvjet|wgrad|dgrad|fprop|winograd|aten::(mm|bmm|addmm)|triton_tem)",
    re.IGNORECASE,
)
LAUNCHES = re.compile(r"^cu(da)?(LaunchKernel|GraphLaunch)")
WAITS = re.compile(r"^cuda(Stream|Event)Synchronize")
ANNOTATIONS = re.compile(r"Torch-Compiled Region|TorchDynamo|CompiledFunction|ProfilerStep")


class Kernel(NamedTuple):
    """A kernel, or an operation of the CPU.

    Attributes:
        name: Its name.
        calls: Number of its calls.
        seconds: Its time, all calls together.
    """

    name: str
    calls: int
    seconds: float


class Profile(NamedTuple):
    """A function's kernels.

    Attributes:
        kernels: The kernels, the heaviest first, of one call of the function.
        seconds: Time of a call without the profiler.
        launches: Number of kernels, or graphs, that the host launches.
        waits: Number of times that the host waits for the device.
    """

    kernels: list[Kernel]
    seconds: float
    launches: float
    waits: float


def checks(setting: Setting) -> Iterator[Check]:
    """Yield the section's checks."""
    peak = product_rate(setting, setting.fast_precision)
    wanted = setting.sized((True, False), (False,))
    for compiled in wanted:
        what = "the compiled step" if compiled else "the eager step"
        measure = partial(profile_step, setting, "always" if compiled else "never")
        yield Check(f"profile of {what}", partial(profile_row, what, measure, peak), TOTALS, 40.0 * compiled)
    for compiled in wanted:
        what = f"{'compiled' if compiled else 'eager'} painting of {_size(setting).name}"
        measure = partial(profile_painting, setting, compiled)
        yield Check(f"profile of {what}", partial(profile_row, what, measure, peak), TOTALS, 30.0 * compiled)


def _size(setting: Setting) -> Size:
    return setting.sized(UHD, Size("48×32", 32, 48))


def profile_step(setting: Setting, mode: str) -> tuple[Profile, int]:
    """Return the profile of a training step with 16 crops, and its counted operations.

    Raises:
        Skipped: It cannot be compiled here.
    """
    task = Task(batch=16, precision=setting.fast_precision, compile=mode)
    if setting.miniature:
        task = replace(task, batch=2, width=4, crop_px=32, loss=SMALL_LOSS)
    torch._dynamo.reset()
    with small_compiler(setting):
        try:
            trainer = build_trainer(task, setting.device)
        except StylizeError as error:
            raise Skipped(str(error)) from error
        trainer.generator.train()
        crops = make_crops(task, task.batch).to(setting.device)
        return profiled(setting, partial(trainer.step, crops)), training_flop(task.batch, task.crop_px)


def profile_painting(setting: Setting, compiled: bool) -> tuple[Profile, int]:
    """Return the profile of painting a picture of 3840×2160, and its counted operations."""
    size = _size(setting)
    width = setting.sized(32, 8)
    shapes = {Shape(1, size.width, size.height)} if compiled else set()
    torch._dynamo.reset()
    with small_compiler(setting), torch.inference_mode():
        made = make_stylizer(setting, setting.fast_precision, width)
        stylizer = Stylizer(made.generator, replace(made.compute, tuned=True), shapes)
        picture = make_picture(size.height, size.width).to(setting.device)
        found = profiled(setting, partial(stylizer.painter.paint, picture))
    return found, painting_flop(1, size.height, size.width, width)


def profiled(setting: Setting, function: Callable[[], object]) -> Profile:
    """Return a function's kernels, those of one call."""
    for _ in range(setting.sized(4, 1)):
        function()
    setting.synchronize()
    start_s = time.perf_counter()
    for _ in range(CALLS):
        function()
    setting.synchronize()
    seconds = (time.perf_counter() - start_s) / CALLS
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_cuda else [])]
    with profile(activities=activities) as recorded:
        for _ in range(CALLS):
            function()
        setting.synchronize()
    averages = list(recorded.key_averages())
    kernels = [k for k in (_kernel(event, setting.on_cuda) for event in averages) if k is not None and k.seconds > 0]
    return Profile(
        sorted(kernels, key=lambda kernel: kernel.seconds, reverse=True),
        seconds,
        _calls(averages, LAUNCHES),
        _calls(averages, WAITS),
    )


def _kernel(event: Any, on_cuda: bool) -> Kernel | None:
    if ANNOTATIONS.search(event.key) or getattr(event, "is_user_annotation", False):
        return None
    if not on_cuda:
        return Kernel(event.key, event.count // CALLS or 1, event.self_cpu_time_total / 1e6 / CALLS)
    if event.device_type.name != "CUDA":
        return None
    return Kernel(event.key, event.count // CALLS or 1, event.self_device_time_total / 1e6 / CALLS)


def _calls(averages: list[Any], names: re.Pattern[str]) -> float:
    return float(sum(event.count for event in averages if names.search(event.key))) / CALLS


def profile_row(what: str, measure: Callable[[], tuple[Profile, int]], peak: float) -> Found:
    """Return the totals of a profile as a row, and its heaviest kernels as a table.

    Raises:
        Skipped: The profiler saw no kernels.
    """
    found, flop = measure()
    if not found.kernels:
        raise Skipped("the profiler saw no kernels")
    busy = sum(kernel.seconds for kernel in found.kernels)
    multiplying = sum(kernel.seconds for kernel in found.kernels if MULTIPLIES.search(kernel.name))
    share = flop / multiplying / peak if multiplying else None
    row = {
        "what": what,
        "ms": number(1e3 * found.seconds),
        "ms of kernels": number(1e3 * busy),
        "of convolutions and products": f"{100 * multiplying / busy:.0f} %",
        "their share of the product's rate": "unknown" if share is None else f"{100 * share:.0f} %",
        "kernels": str(sum(kernel.calls for kernel in found.kernels)),
        "launches": f"{found.launches:.0f}",
        "waits of the host": f"{found.waits:.1f}",
    }
    kernels = [kernel._asdict() for kernel in found.kernels]
    numbers = {"seconds": found.seconds, "kernels": kernels, "launches": found.launches, "waits": found.waits}
    rows = [_kernel_row(kernel, busy) for kernel in found.kernels[:HEAVIEST]]
    return Found(row, numbers, tables={f"the heaviest kernels of {what}": rows})


def _kernel_row(kernel: Kernel, busy: float) -> dict[str, str]:
    return {
        "kernel": kernel.name if len(kernel.name) <= LONGEST_NAME else f"{kernel.name[:LONGEST_NAME]}…",
        "calls": str(kernel.calls),
        "ms": number(1e3 * kernel.seconds),
        "share of the time": f"{100 * kernel.seconds / busy:.1f} %",
    }
