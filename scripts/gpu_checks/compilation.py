"""Compiled training steps: one graph, the losses of eager steps, the time of the first step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu_checks.results import Check, Failed, Found, Skipped, require
from gpu_checks.setting import (
    SMALL_LOSS,
    Setting,
    Task,
    build_trainer,
    heard_warnings,
    knows_graphs,
    make_crops,
    small_compiler,
)
from stylize.errors import StylizeError

TABLE = "compiled steps"
NORMS = ("instance", "batch_instance")
# Relative differences of the losses of the first steps.
APART = {"fp32": 0.01, "bf16": 0.05}
STEPS = 4
LEARNING_RATE = 3e-4


def checks(setting: Setting) -> Iterator[Check]:
    """Yield the section's checks."""
    for mode in ("always", "graphs"):
        for norm in NORMS:
            name = f"{norm}, train.compile: {mode}"
            yield Check(name, partial(compiled_step, setting, norm, mode), TABLE, setting.sized(30.0, 0.0))


def task_of(setting: Setting, norm: str, mode: str) -> Task:
    """Return a training; of full size it is one that the speed was measured with, whose code is compiled already."""
    if setting.miniature:
        return Task(norm, 4, 32, 2, precision="fp32", compile=mode, learning_rate=LEARNING_RATE, loss=SMALL_LOSS)
    return Task(norm, batch=16, precision=setting.fast_precision, compile=mode, learning_rate=LEARNING_RATE)


def compiled_step(setting: Setting, norm: str, mode: str) -> Found:
    """Compare compiled steps with eager ones.

    Raises:
        Failed: The losses differ by more than rounding explains, or the step is not one graph.
        Skipped: There is no compiler, or the trainer does not know the mode.
    """
    if mode == "graphs" and not knows_graphs():
        raise Skipped("train.compile does not know graphs")
    if mode == "graphs" and not setting.on_cuda:
        raise Skipped("graphs need CUDA")
    task = task_of(setting, norm, mode)
    crops = make_crops(task, task.batch).to(setting.device)
    eager, _ = losses(setting, task_of(setting, norm, "never"), crops)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    with small_compiler(setting), heard_warnings() as heard:
        try:
            compiled, first_s = losses(setting, task, crops)
        except StylizeError as error:
            raise Skipped(str(error)) from error
    graphs, breaks = counters["stats"]["unique_graphs"], dict(counters["graph_break"])
    apart = max(abs(c / e - 1) for c, e in zip(compiled, eager, strict=True))
    row = {
        "norm": norm,
        "train.compile": mode,
        "precision": task.precision,
        "first step": f"{first_s:.1f} s",
        "graphs": str(graphs),
        "losses, compiled": ", ".join(f"{loss:.4f}" for loss in compiled),
        "losses, eager": ", ".join(f"{loss:.4f}" for loss in eager),
    }
    found = Found(row, {"first_s": first_s, "graphs": graphs, "compiled": compiled, "eager": eager, "apart": apart})
    require(not heard, f"warned: {'; '.join(heard)}", found)
    if breaks:
        raise Failed(f"the step is not one graph: {first_line(breaks)}", found)
    require(graphs >= 1 or mode == "graphs", "nothing was compiled", found)
    allowed = APART[task.precision]
    require(apart <= allowed, f"the losses differ by {100 * apart:.2g} %, must be within {100 * allowed:g} %", found)
    return found


def losses(setting: Setting, task: Task, crops: Tensor) -> tuple[list[float], float]:
    """Return the losses of the first steps, and the seconds of the first one."""
    trainer = build_trainer(task, setting.device)
    trainer.generator.train()
    start_s = time.perf_counter()
    found = [float(trainer.step(crops)["total"])]
    first_s = time.perf_counter() - start_s
    found += [float(trainer.step(crops)["total"]) for _ in range(STEPS - 1)]
    return found, first_s


def first_line(reasons: dict[Any, int]) -> str:
    """Return the first line of the first of some reasons."""
    return str(next(iter(reasons))).strip().splitlines()[0]
