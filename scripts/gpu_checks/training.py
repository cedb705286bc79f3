"""A short training on the device and the same on the CPU; resumed; with a damaged batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpu_checks.results import Check, Found, require
from gpu_checks.setting import SMALL_LOSS, CropsInMemory, Setting, Task, build_trainer, make_crops
from stylize import ops
from stylize.system.devices import CPU
from stylize.system.numerics import prepare_determinism
from stylize.training.monitor import Monitor
from stylize.training.trainer import Interrupted, Trainer

LOSSES, RESUMED, DAMAGED = "held-out losses, the device's beside the CPU's", "resumed trainings", "a damaged batch"
COMPARED = ("total", "style", "content")
# Relative, of the total; single terms may differ by so many times as much. The rate is low enough that trainings with
# different rounding stay together.
LEARNING_RATE = 3e-4
APART = {"fp32": 0.05, "bf16": 0.10}
TERMS_APART = 3.0
RESUMED_APART = 0.03  # where the same bits are not promised


class Trained(NamedTuple):
    """A training that has ended.

    Attributes:
        held_out: Held-out losses after the last step.
        weights: The generator's parameters and buffers, on the CPU.
        skipped: Number of steps that were skipped.
        steps: Number of steps done.
    """

    held_out: dict[str, float]
    weights: dict[str, Tensor]
    skipped: int
    steps: int


class Records(Monitor):
    """A monitor that writes nothing, and keeps the last held-out losses and the number of skipped steps."""

    def __init__(self, folder: Path, steps: int, first_step: int) -> None:
        super().__init__(folder, steps=steps, first_step=first_step, bar="hidden", silent=True)
        self.held_out: dict[str, float] = {}
        self.skipped = 0

    def log_validation(self, step: int, found: Any, *pictures: Any) -> None:
        self.held_out = dict(found.terms)

    def log_skipped(self, *told: Any) -> None:
        self.skipped += 1


def checks(setting: Setting) -> Iterator[Check]:
    """Yield the section's checks."""
    prepare_determinism()
    for precision in dict.fromkeys(("fp32", setting.fast_precision)):
        yield Check(f"losses, {precision}", partial(losses, setting, precision), LOSSES)
    for deterministic in (True, False):
        name = "deterministic" if deterministic else "not deterministic"
        yield Check(f"resumed, {name}", partial(resumed, setting, deterministic), RESUMED)
    yield Check("a batch of NaN", partial(damaged, setting), DAMAGED)


def task_of(setting: Setting, precision: str = "fp32", deterministic: bool = False, steps: int | None = None) -> Task:
    """Return the training of this section."""
    return Task(
        width=setting.sized(16, 4),
        crop_px=setting.sized(64, 32),
        batch=setting.sized(4, 2),
        steps=steps or setting.sized(300, 6),
        precision=precision,
        learning_rate=LEARNING_RATE,
        loss=SMALL_LOSS,
        deterministic=deterministic,
    )


def make_trainer(task: Task, device: torch.device, folder: Path, damaged_step: int | None = None) -> Trainer:
    """Return a trainer with batches in memory and held-out pictures."""
    crops = CropsInMemory(make_crops(task, 32), task.batch, device.type == "cuda", damaged_step)
    return build_trainer(task, device, folder, crops, validation=4)


def train(trainer: Trainer, stop_at: int | None = None) -> Trained:
    """Train to the last step, or stop at another one as a signal does."""
    steps, first_step = trainer.config.steps, trainer.progress.step

    def stop(progress: Any) -> None:
        trainer.stop_requested = stop_at is not None and progress.step + 1 >= stop_at

    records = Records(trainer.run_dir, steps, first_step)
    with records, suppress(Interrupted):
        trainer.fit(records, stop)
    weights = {name: value.detach().cpu().clone() for name, value in trainer.generator.state_dict().items()}
    return Trained(records.held_out, weights, records.skipped, trainer.progress.step)


def losses(setting: Setting, precision: str) -> Found:
    """Compare the held-out losses with those of a training in float32 on the CPU, of plain PyTorch if that is checked.

    Raises:
        Failed: They differ by more than rounding explains.
    """
    theirs = trained_on_cpu(setting)
    with setting.scratch() as folder:
        mine = train(make_trainer(task_of(setting, precision), setting.device, folder))
    apart = {name: mine.held_out[name] / theirs.held_out[name] - 1 for name in COMPARED}
    row = {"training": f"{mine.steps} steps, {precision}"}
    row |= {n: f"{mine.held_out[n]:.4g} / {theirs.held_out[n]:.4g} ({100 * apart[n]:+.2g} %)" for n in COMPARED}
    found = Found(row, {"device": mine.held_out, "cpu": theirs.held_out, "apart": apart})
    for name, difference in apart.items():
        allowed = APART[precision] * (1 if name == "total" else TERMS_APART)
        told = f"{name} differs by {100 * difference:+.2g} %, must be within {100 * allowed:g} %"
        require(abs(difference) <= allowed, told, found)
    return found


@cache
def trained_on_cpu(setting: Setting) -> Trained:
    """Return the training in float32 on the CPU, of plain PyTorch if the CPU is what is checked."""
    with setting.scratch() as folder, nullcontext() if setting.on_cuda else ops.reference():
        return train(make_trainer(task_of(setting), CPU, folder))


def resumed(setting: Setting, deterministic: bool) -> Found:
    """Stop a training in the middle, resume it from its checkpoint, and compare it with one that was not stopped.

    Raises:
        Failed: They differ: in a bit where the same bits are promised, or else by more than rounding explains.
    """
    task = task_of(setting, "fp32", deterministic, steps=setting.sized(60, 4))
    with setting.scratch() as folder:
        whole = train(make_trainer(task, setting.device, folder / "whole"))
        half = train(make_trainer(task, setting.device, folder / "half"), stop_at=task.steps // 2)
        again = make_trainer(task, setting.device, folder / "half")
        again.resume()
        first_step = again.progress.step
        rest = train(again)
    differing = [name for name, value in whole.weights.items() if not torch.equal(value, rest.weights[name])]
    apart = rest.held_out["total"] / whole.held_out["total"] - 1
    row = {
        "training": f"{task.steps} steps, resumed at {first_step}",
        "deterministic": "yes" if deterministic else "no",
        "differing tensors": f"{len(differing)} of {len(whole.weights)}",
        "held-out loss": f"{100 * apart:+.2g} %",
    }
    found = Found(row, {"differing": differing, "apart": apart, "first_step": first_step})
    require(half.steps == first_step < task.steps, f"stopped at step {half.steps}, resumed at {first_step}", found)
    require(abs(apart) <= RESUMED_APART, f"the held-out loss differs by {100 * apart:+.2g} %", found)
    if deterministic or not setting.on_cuda:
        require(not differing, f"not the same bits: {', '.join(differing[:3])}", found)
    return found


def damaged(setting: Setting) -> Found:
    """Check that a batch full of NaN is skipped, and that the training goes on.

    Raises:
        Failed: It was not, or weights are not finite.
    """
    task = task_of(setting, setting.fast_precision, steps=setting.sized(20, 4))
    with setting.scratch() as folder:
        trained = train(make_trainer(task, setting.device, folder, damaged_step=task.steps // 2))
    broken = [name for name, value in trained.weights.items() if not value.isfinite().all()]
    row = {"steps": str(trained.steps), "skipped": str(trained.skipped)}
    found = Found(row | {"held-out loss": f"{trained.held_out['total']:.4g}"}, {"skipped": trained.skipped})
    require(not broken, f"not finite afterwards: {', '.join(broken[:3])}", found)
    require(trained.skipped == 1, f"{trained.skipped} steps were skipped, must be 1", found)
    require(trained.steps == task.steps, f"ended after {trained.steps} of {task.steps} steps", found)
    return found
