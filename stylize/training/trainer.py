"""The training loop. It gets objects that are already built."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from stylize.errors import StylizeError
from stylize.generators import Generator
from stylize.losses.perceptual import PerceptualLoss
from stylize.system import distributed
from stylize.system.compute import Compute
from stylize.system.devices import CPU
from stylize.system.memory import return_freed_memory
from stylize.training.checkpoint import checkpoint_path, newest_checkpoint, save_checkpoint
from stylize.training.loader import Batches
from stylize.training.monitor import Monitor
from stylize.training.prefetch import prefetched
from stylize.training.rollback import Rollback
from stylize.training.schedule import ScheduleConfig, rate_factor

logger = logging.getLogger("stylize")

SKIPS_THAT_HALVE_THE_RATE = 3
SKIPS_THAT_STOP = 10


class TrainConfig(BaseModel):
    """Length and settings of a training."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    steps: int = Field(40_000, ge=1, description="optimizer steps")
    batch_size: int = Field(4, ge=1, description="photographs per step")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="learning rate of Adam")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="the learning rate over the run")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="floating-point precision of the networks")
    compile: Literal["auto", "always", "never"] = Field("auto", description="whether to use torch.compile for the step")
    checkpoint_every: int = Field(1000, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="number of newest checkpoints to keep")
    validate_every: int = Field(500, ge=1, description="steps between two validations")
    stop_after: int | None = Field(
        None, ge=1, description="stop after that many validations without improvement; null: never"
    )
    log_every: int = Field(10, ge=1, description="steps between two records of the losses")


class Interrupted(Exception):
    """The run was asked to stop; its state is saved unless it could not be written."""


class NotFinite(Exception):
    """A loss or gradient is not finite; the message names the terms. Nothing was updated."""


@dataclass
class Progress:
    """State of a run apart from weights and optimizer; part of every checkpoint.

    Attributes:
        step: Number of steps done.
        best_total: Lowest held-out loss so far.
        best_step: Step of the lowest held-out loss.
        validations_without_better: Number of validations since then.
        skipped_in_a_row: Number of steps skipped since the last one with a finite loss.
        rate_factor: Factor of the learning rate; halved when too many steps in a row are skipped.
        validation: Held-out losses of the best step, by term.
    """

    step: int = 0
    best_total: float = math.inf
    best_step: int = 0
    validations_without_better: int = 0
    skipped_in_a_row: int = 0
    rate_factor: float = 1.0
    validation: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains a generator against a loss.

    Args:
        generator: The network; it is moved to the device.
        loss: The loss; it is moved to the device.
        batches: The training crops.
        validation: Held-out photographs, `(3, H, W)` in [0, 1], all of one size.
        config: How to train.
        compute: Device, precision and compilation.
        seed: Seed of torch's random generators.
        run_dir: The run folder, for checkpoints.
        save_best: Called with the progress when the held-out loss is the lowest so far, to write the model.
    """

    def __init__(
        self,
        generator: Generator,
        loss: PerceptualLoss,
        batches: Batches,
        validation: Sequence[Tensor],
        config: TrainConfig,
        *,
        compute: Compute,
        seed: int,
        run_dir: Path,
        save_best: Callable[[Progress], None],
    ) -> None:
        self.generator = compute.place(generator)
        generator.maps = None if compute.dtype == torch.float32 else compute.dtype
        self.loss = compute.place(loss)
        loss.hold_in(compute.dtype)
        self.batches = batches
        self.validation = list(validation)
        self.config = config
        self.compute = compute
        self.run_dir = run_dir
        self.save_best = save_best
        self.progress = Progress()
        self.saved_step: int | None = None
        self.stop_requested = False
        self.optimizer = _build_optimizer(generator, config, compute)
        self.rollback = Rollback(generator, self.optimizer)
        self._network = distributed.wrap_ddp(generator)
        self._terms = compute.compile(self._forward)
        self._compilation_is_ahead = compute.compiled
        if compute.image_by_image:
            loss.prepare()
            return_freed_memory()
        torch.manual_seed(seed)

    def fit(self, monitor: Monitor, on_progress: Callable[[Progress], None] | None = None) -> Progress:
        """Train from the current step to the last one.

        Args:
            monitor: Records the run.
            on_progress: Called with a copy of the progress after every step, its validation and its checkpoint.

        Raises:
            Interrupted: `stop_requested` was set; the step was finished and a checkpoint written.
            StylizeError: Ten losses in a row were not finite, or too many files cannot be read.
        """
        self.generator.train()
        batches = self.batches.from_step(self.progress.step, self.config.steps)
        for batch in monitor.timed(prefetched(batches, self.compute)):
            self._step_or_skip(batch, monitor)
            if self._is_due(self.config.validate_every):
                self.validate(monitor)
            stop = distributed.any_rank(self.stop_requested)
            if self._is_due(self.config.checkpoint_every) or stop:
                self._save_if_possible(monitor)
            if on_progress is not None:
                on_progress(replace(self.progress))
            if self._is_stale():
                monitor.tell(f"stopped early: no better held-out loss since step {self.progress.best_step}")
                break
            if stop and self.progress.step < self.config.steps:
                raise Interrupted
        return self.progress

    def step(self, batch: Tensor) -> dict[str, Tensor]:
        """Make an optimizer step on a batch of crops, uint8 `(N, 3, H, W)`, or on the share of this process.

        Returns:
            The loss terms, the gradient norm and the learning rate.

        Raises:
            NotFinite: A term, or the gradient, is not finite; no weight was updated.
        """
        rate = self._set_learning_rate()
        own_terms = self._terms(self._to_device(batch))
        terms = distributed.average_terms(own_terms)
        norm = self._backward(own_terms["total"])
        _check_finite(terms, norm)
        self.rollback.keep()
        self.optimizer.step()
        self.generator.project_()
        return {**terms, "gradient_norm": norm, "learning_rate": torch.tensor(rate)}

    def _set_learning_rate(self) -> float:
        factor = rate_factor(self.progress.step, self.config.steps, self.config.schedule)
        rate = self.config.learning_rate * factor * self.progress.rate_factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def _forward(self, content: Tensor) -> dict[str, Tensor]:
        with self.compute.context():
            stylized = self._network(self.compute.network_input(content))
            if self.compute.image_by_image:
                return self.loss.by_image(stylized, content)
            terms: dict[str, Tensor] = self.loss(stylized, content)
        return terms

    def _backward(self, total: Tensor) -> Tensor:
        """Compute the gradients and return their norm."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.compute.context():
            torch.autograd.backward(total)
        return torch.nn.utils.clip_grad_norm_(self.generator.parameters(), math.inf)

    def _step_or_skip(self, batch: Tensor, monitor: Monitor) -> None:
        """Make and record a step; if the loss is not finite, roll back and skip the batch."""
        start_s = time.monotonic()
        try:
            terms = self.step(batch)
        except NotFinite as error:
            self._skip(str(error), monitor)
            return
        if self._compilation_is_ahead:
            self._compilation_is_ahead = False
            logger.info("train.compile: the first step, which compiles, took %.1f s", time.monotonic() - start_s)
        self.progress.skipped_in_a_row = 0
        self.progress.step += 1
        monitor.advance()
        if self._is_due(self.config.log_every):
            monitor.log_step(self.progress.step, self._values(terms))

    def _values(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the terms as numbers. The host waits for the device once: all are copied together."""
        values = torch.stack([term.detach().float().to(self.compute.device) for term in terms.values()])
        return dict(zip(terms, values.tolist(), strict=True))

    def _skip(self, reason: str, monitor: Monitor) -> None:
        self.rollback.restore_()
        progress = self.progress
        progress.step += 1
        progress.skipped_in_a_row += 1
        count = progress.skipped_in_a_row
        halved = ""
        if count == SKIPS_THAT_HALVE_THE_RATE:
            progress.rate_factor /= 2
            halved = "; the learning rate is halved from here on"
        monitor.advance()
        monitor.log_skipped(
            progress.step,
            f"step {progress.step}: {reason}: back to the last good state, batch skipped ({count} in a row){halved}",
            {"in_a_row": count, "rate_factor": progress.rate_factor},
        )
        if count == SKIPS_THAT_STOP:
            raise StylizeError(
                f"stopped at step {progress.step}: {count} steps in a row were not finite, last: {reason}; "
                "start anew with a lower train.learning_rate or loss.style_weight"
            )

    @torch.no_grad()
    def validate(self, monitor: Monitor) -> None:
        """Measure the held-out photographs with the generator in `eval()`; save the model if it is the best."""
        if not self.validation:
            with monitor.surviving("the model"):
                self.save_best(self.progress)
            return
        stylized, terms = self._measure_all()
        with monitor.surviving("the model", ", and this validation does not count as the best"):
            self._record(terms)
        vars(self.progress).update(distributed.broadcast(vars(self.progress)))  # only the first writes, and may fail
        monitor.log_validation(self.progress.step, terms, self.validation, stylized)
        for name, norm in self.generator.norms().items():
            for kind, values in norm.histograms().items():
                monitor.log_histogram(self.progress.step, f"{kind}/{name}", values)

    def _measure_all(self) -> tuple[list[Tensor], dict[str, float]]:
        """Return the stylized held-out photographs, on the CPU, and the means of their terms."""
        self.generator.eval()
        own = [self._measure(image) for image in distributed.share(self.validation)]
        measured = distributed.gather_interleaved(own)
        self.generator.train()
        means = {"style_of_photographs": self.style_of_photographs}
        for _, terms in measured:
            for name, term in terms.items():
                means[name] = means.get(name, 0.0) + term / len(self.validation)
        return [image for image, _ in measured], means

    def _measure(self, photograph: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return a stylized held-out photograph, on the CPU, and its terms. The host waits for the device."""
        content = self._to_device(photograph[None])
        with self.compute.context():
            stylized = self.generator(self.compute.network_input(content))
            terms = self.loss.measure(stylized, content)
        return stylized[0].cpu(), {name: term.item() for name, term in terms.items()}

    @cached_property
    def style_of_photographs(self) -> float:
        """The style term of the unstylized held-out photographs, for comparison. The host waits for the device."""
        with torch.no_grad(), self.compute.context():
            contents = [self._to_device(image[None]) for image in distributed.share(self.validation)]
            own = [float(self.loss(content, content)["style"]) for content in contents]
        return fmean(distributed.gather_interleaved(own))

    def _record(self, terms: dict[str, float]) -> None:
        """Update the progress after a validation; save the model if it is the best.

        Raises:
            StylizeError: It is the best, but the model cannot be written. The progress stays as it was, so that it and
                the model file agree on the best step.
        """
        progress = self.progress
        if not terms["total"] < progress.best_total:
            progress.validations_without_better += 1
            return
        better = replace(
            progress,
            best_total=terms["total"],
            best_step=progress.step,
            validations_without_better=0,
            validation=terms,
        )
        self.save_best(better)
        vars(progress).update(vars(better))  # in place: other objects have a reference to it

    def _save_if_possible(self, monitor: Monitor) -> None:
        monitor.sync()
        older = "without a checkpoint" if self.saved_step is None else f"with the checkpoint of step {self.saved_step}"
        with monitor.surviving("the checkpoint", f" {older}"):
            self.save()

    def save(self) -> Path:
        """Write a checkpoint of the full state, in the first process only. The host waits for the device.

        Raises:
            StylizeError: It cannot be written; older checkpoints stay.
        """
        path = checkpoint_path(self.run_dir / "checkpoints", self.progress.step)
        if not distributed.is_first():
            return path
        state = {
            "progress": vars(self.progress),
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "last_good": self.rollback.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": self.compute.random_states(),
            "photographs": self.batches.dataset.fingerprint(),
        }
        save_checkpoint(path.parent, self.progress.step, state, self.config.keep_checkpoints)
        self.saved_step = self.progress.step
        return path

    def resume(self) -> None:
        """Load the newest intact checkpoint of the run; the first process reads it for all.

        Raises:
            StylizeError: There is none, or it is of another network.
        """
        found = newest_checkpoint(self.run_dir / "checkpoints", CPU) if distributed.is_first() else None
        found = distributed.broadcast(found)
        if found is None:
            raise StylizeError(f"{self.run_dir}: nothing to resume: no checkpoint was written yet")
        path, state = found
        try:
            self._load_state(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StylizeError(f"{path}: does not fit this run: it is of another network, or damaged") from error
        if state.get("photographs") != self.batches.dataset.fingerprint():
            logger.warning("content.path: the photographs are not those of the run so far: other batches follow")

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rollback.load_state_dict(state["last_good"])
        self.progress = Progress(**state["progress"])
        self.saved_step = self.progress.step
        torch.set_rng_state(state["random"].cpu())
        self.compute.set_random_states(state["random_cuda"])

    def _to_device(self, images: Tensor) -> Tensor:
        images = images.to(self.compute.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return images.contiguous(memory_format=self.compute.memory_format)

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.config.steps

    def _is_stale(self) -> bool:
        patience = self.config.stop_after
        return patience is not None and self.progress.validations_without_better >= patience


def _build_optimizer(generator: Generator, config: TrainConfig, compute: Compute) -> torch.optim.Optimizer:
    groups = [{"params": group.parameters, "factor": group.learning_rate_factor} for group in generator.param_groups()]
    return torch.optim.Adam(groups, lr=config.learning_rate, fused=compute.has_fused_optimizers)


def _check_finite(terms: Mapping[str, Tensor], gradient_norm: Tensor) -> None:
    """Raise NotFinite if a loss or a gradient is not finite.

    The host waits for the device once a step, for a single number: an update with such a gradient must not happen.
    """
    if torch.stack([terms["total"].detach(), gradient_norm]).isfinite().all().item():
        return
    guilty = [name for name, term in terms.items() if not math.isfinite(term.item())]
    named = ", ".join(name for name in guilty if name != "total") or ("total" if guilty else "its gradient")
    raise NotFinite(f"the loss is not finite ({named})")
