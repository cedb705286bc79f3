"""The training loop, on objects that are already built."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from stylize.system.devices import (
    check_compiler,
    choose_memory_format,
    choose_precision,
    keep_compiled_code,
    why_not_compile,
)
from stylize.system.memory import return_freed_memory
from stylize.training.checkpoint import checkpoint_path, newest_checkpoint, save_checkpoint
from stylize.training.loader import Batches
from stylize.training.monitor import Monitor
from stylize.training.prefetch import prefetched
from stylize.training.rollback import LastGood

logger = logging.getLogger("stylize")

CPU = torch.device("cpu")
COMPILE_PAYS_FROM_STEPS = 2000
SKIPS_THAT_HALVE_THE_RATE = 3
SKIPS_THAT_STOP = 10


class ScheduleConfig(BaseModel):
    """The learning rate over the run."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Literal["constant", "cosine", "step"] = Field("cosine", description="its course after the warm-up")
    warmup_steps: int = Field(100, ge=0, description="steps of linear rise to the full rate")
    final_factor: float = Field(0.01, ge=0, le=1, description="cosine: share of the rate at the end")
    step_every: int = Field(2000, ge=1, description="step: steps between two drops")
    step_factor: float = Field(0.8, gt=0, le=1, description="step: factor of a drop")


class TrainConfig(BaseModel):
    """How long and how to train."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    steps: int = Field(40_000, ge=1, description="optimizer steps")
    batch_size: int = Field(4, ge=1, description="photographs a step")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="of Adam")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="the learning rate over the run")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of the networks' arithmetic")
    compile: Literal["auto", "always", "never"] = Field("auto", description="torch.compile of the step")
    checkpoint_every: int = Field(1000, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="how many of the newest are kept")
    validate_every: int = Field(500, ge=1, description="steps between two validations")
    stop_after: int | None = Field(
        None, ge=1, description="stop after that many validations without a better one; null: never"
    )
    log_every: int = Field(10, ge=1, description="steps between two records of the losses")


class Interrupted(Exception):
    """The run was asked to stop; its state is saved, if it could be."""


class NotFinite(Exception):
    """A loss or gradient is not finite; the message names the terms. Nothing was updated."""


@dataclass
class Progress:
    """Where a run stands; part of every checkpoint."""

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
        generator: The network, on its device.
        loss: The loss, on the same device.
        batches: The training crops.
        validation: Held-out photographs, `(3, H, W)` in [0, 1], all of one size.
        config: How to train.
        seed: For torch's random generators.
        run_dir: Where checkpoints go.
        save_best: Is called with the progress when the held-out loss is the lowest so far, to write the model.
    """

    def __init__(
        self,
        generator: Generator,
        loss: PerceptualLoss,
        batches: Batches,
        validation: Sequence[Tensor],
        config: TrainConfig,
        *,
        seed: int,
        run_dir: Path,
        save_best: Callable[[Progress], None],
    ) -> None:
        self.generator = generator
        self.loss = loss
        self.batches = batches
        self.validation = list(validation)
        self.config = config
        self.run_dir = run_dir
        self.save_best = save_best
        self.progress = Progress()
        self.stop_requested = False
        self.device = next(generator.parameters()).device
        self.precision = choose_precision(config.precision, self.device)
        if config.precision == "auto":
            logger.info("train.precision: auto on %s is %s", self.device.type, self.precision)
        self.optimizer = torch.optim.Adam(
            [{"params": group.parameters, "factor": group.learning_rate_factor} for group in generator.param_groups()],
            lr=config.learning_rate,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.memory_format = choose_memory_format(self.device)
        generator.to(memory_format=self.memory_format)
        loss.to(memory_format=self.memory_format)
        self.compiled = choose_compile(config.compile, self.device, config.steps, self.precision)
        if self.compiled:
            keep_compiled_code()
        self._told_compilation = not self.compiled
        self._network = distributed.synchronized(generator)
        self._image_by_image = self.device.type == "cpu" and self.precision == "fp32" and not self.compiled
        if self._image_by_image:
            loss.prepare()
            return_freed_memory()
        self._terms = torch.compile(self._forward) if self.compiled else self._forward
        self.last_good = LastGood(generator, self.optimizer)
        self.saved_step: int | None = None
        torch.manual_seed(seed)

    def fit(self, monitor: Monitor, on_progress: Callable[[Progress], None] | None = None) -> Progress:
        """Train from where the progress stands to the last step.

        Args:
            monitor: Records the run.
            on_progress: Called with a copy of the progress after every step, its validation and checkpoint included.

        Raises:
            Interrupted: `stop_requested` was set; the step was finished and a checkpoint written.
            StylizeError: Ten losses in a row were not finite, or too many files cannot be read.
        """
        self.generator.train()
        batches = self.batches.from_step(self.progress.step, self.config.steps)
        for batch in monitor.timed(prefetched(batches, self.device)):
            self._advance(batch, monitor)
            if self._due(self.config.validate_every):
                self.validate(monitor)
            stop = distributed.any_says(self.stop_requested)
            if self._due(self.config.checkpoint_every) or stop:
                self._save_if_possible(monitor)
            if on_progress is not None:
                on_progress(replace(self.progress))
            if self._gone_stale():
                monitor.tell(f"stopped early: no better held-out loss since step {self.progress.best_step}")
                break
            if stop and self.progress.step < self.config.steps:
                raise Interrupted
        return self.progress

    def _advance(self, batch: Tensor, monitor: Monitor) -> None:
        """One step, recorded; or, where the loss is not finite, back to the last good state without this batch."""
        start_s = time.monotonic()
        try:
            terms = self.step(batch)
        except NotFinite as error:
            self._skip(str(error), monitor)
            return
        if not self._told_compilation:
            self._told_compilation = True
            logger.info("train.compile: the first step, which compiles, took %.1f s", time.monotonic() - start_s)
        self.progress.skipped_in_a_row = 0
        self.progress.step += 1
        monitor.advance()
        if self._due(self.config.log_every):
            values = torch.stack(
                [term.detach().float().to(self.device) for term in terms.values()]
            ).tolist()  # in one transfer
            monitor.log_step(self.progress.step, dict(zip(terms, values, strict=True)))

    def _skip(self, reason: str, monitor: Monitor) -> None:
        self.last_good.restore_()
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

    def _save_if_possible(self, monitor: Monitor) -> None:
        monitor.sync()
        older = "without a checkpoint" if self.saved_step is None else f"with the checkpoint of step {self.saved_step}"
        with monitor.surviving("the checkpoint", f" {older}"):
            self.save()

    def step(self, batch: Tensor) -> dict[str, Tensor]:
        """One optimizer step on a batch of crops, uint8 `(N, 3, H, W)`; of several processes, on this one's part.

        Returns:
            The loss terms, the gradient norm and the learning rate.

        Raises:
            NotFinite: A term, or the gradient, is not finite; no weight was updated.
        """
        rate = self.config.learning_rate * rate_factor(self.progress.step, self.config) * self.progress.rate_factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        own_terms = self._terms(self._to_device(batch))
        terms = distributed.average_terms(own_terms)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(own_terms["total"])
        norm = torch.nn.utils.clip_grad_norm_(self.generator.parameters(), math.inf)
        _check_finite(terms, norm)
        self.last_good.keep()
        self.optimizer.step()
        self.generator.project_()
        return {**terms, "gradient_norm": norm, "learning_rate": torch.tensor(rate)}

    @torch.no_grad()
    def validate(self, monitor: Monitor) -> None:
        """Measure the held-out photographs with the generator in `eval()`, keep the best model."""
        if not self.validation:
            with monitor.surviving("the model"):
                self.save_best(self.progress)
            return
        self.generator.eval()
        measured = distributed.gather_shared([self._measure(image) for image in distributed.share(self.validation)])
        self.generator.train()
        stylized = [image for image, _ in measured]
        sums = {"style_of_photographs": self.style_of_photographs}
        for _, terms in measured:
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term / len(self.validation)
        with monitor.surviving("the model", ", and this validation does not count as the best"):
            self._record(sums)
        vars(self.progress).update(distributed.first_says(vars(self.progress)))  # only the first writes, and may fail
        monitor.log_validation(self.progress.step, sums, self.validation, stylized)
        for name, norm in self.generator.norms().items():
            for kind, values in norm.histograms().items():
                monitor.log_histogram(self.progress.step, f"{kind}/{name}", values)

    def _measure(self, photograph: Tensor) -> tuple[Tensor, dict[str, float]]:
        """A held-out photograph stylized, on the CPU, and its terms."""
        content = self._to_device(photograph[None])
        with self._autocast():
            painted = self.generator(content)
            terms = self.loss.measure(painted, content)
        return painted[0].float().cpu(), {name: term.item() for name, term in terms.items()}

    @cached_property
    def style_of_photographs(self) -> float:
        """The style term of the held-out photographs as they are: from where a model has to come down."""
        with torch.no_grad(), self._autocast():
            contents = [self._to_device(image[None]) for image in distributed.share(self.validation)]
            own = [float(self.loss(content, content)["style"]) for content in contents]
        return fmean(distributed.gather_shared(own))

    def save(self) -> Path:
        """Write a checkpoint of the whole state; the first process does.

        Raises:
            StylizeError: It cannot be written; older ones stay.
        """
        path = checkpoint_path(self.run_dir / "checkpoints", self.progress.step)
        if not distributed.is_first():
            return path
        state = {
            "progress": vars(self.progress),
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "last_good": self.last_good.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "photographs": self.batches.dataset.fingerprint(),
        }
        save_checkpoint(path.parent, self.progress.step, state, self.config.keep_checkpoints)
        self.saved_step = self.progress.step
        return path

    def resume(self) -> None:
        """Take up the newest checkpoint of the run that is whole; the first process reads it for all.

        Raises:
            StylizeError: There is none, or it is of another network.
        """
        found = newest_checkpoint(self.run_dir / "checkpoints", CPU) if distributed.is_first() else None
        found = distributed.first_says(found)
        if found is None:
            raise StylizeError(f"{self.run_dir}: nothing to resume: no checkpoint was written yet")
        path, state = found
        try:
            self._take_up(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StylizeError(f"{path}: does not fit this run: it is of another network, or damaged") from error
        if state.get("photographs") != self.batches.dataset.fingerprint():
            logger.warning("content.path: the photographs are not those of the run so far: other batches follow")

    def _take_up(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.last_good.load_state_dict(state["last_good"])
        self.progress = Progress(**state["progress"])
        self.saved_step = self.progress.step
        torch.set_rng_state(state["random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all([s.cpu() for s in state["random_cuda"]])

    def _forward(self, content: Tensor) -> dict[str, Tensor]:
        with self._autocast():
            stylized = self._network(content)
            if self._image_by_image:
                return self.loss.by_image(stylized, content)
            terms: dict[str, Tensor] = self.loss(stylized, content)
        return terms

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _to_device(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return images.contiguous(memory_format=self.memory_format)

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.config.steps

    def _record(self, terms: dict[str, float]) -> None:
        """Take a validation into account.

        Raises:
            StylizeError: It is the best, but the model cannot be written: then it is as if it had not been, so that
                the model file and the progress tell of the same step.
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
        vars(progress).update(vars(better))  # in place: others hold it

    def _gone_stale(self) -> bool:
        patience = self.config.stop_after
        return patience is not None and self.progress.validations_without_better >= patience


def _check_finite(terms: Mapping[str, Tensor], gradient_norm: Tensor) -> None:
    """Refuse a loss or a gradient that is not finite; the device is asked once."""
    if torch.stack([terms["total"].detach(), gradient_norm]).isfinite().all().item():
        return
    guilty = [name for name, term in terms.items() if not math.isfinite(term.item())]
    named = ", ".join(name for name in guilty if name != "total") or ("total" if guilty else "its gradient")
    raise NotFinite(f"the loss is not finite ({named})")


def rate_factor(step: int, config: TrainConfig) -> float:
    """The factor of the learning rate at a step, counted from 0.

    >>> schedule = ScheduleConfig(name="step", warmup_steps=2, step_every=10, step_factor=0.5)
    >>> config = TrainConfig(steps=100, schedule=schedule)
    >>> [rate_factor(step, config) for step in (0, 1, 2, 9, 10, 25)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.25]
    """
    schedule = config.schedule
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.name == "cosine":
        share = step / max(config.steps - 1, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        return warmup * (schedule.final_factor + (1 - schedule.final_factor) * cosine)
    if schedule.name == "step":
        return warmup * schedule.step_factor ** (step // schedule.step_every)
    return warmup


def choose_compile(name: str, device: torch.device, steps: int, precision: str = "fp32") -> bool:
    """Whether to compile the step; `auto`: where that is faster and the run is long, which is told with the reason.

    Raises:
        StylizeError: `always`, but no compiler is found.
    """
    if name == "always":
        check_compiler(device, "train.compile")
    if name != "auto":
        return name == "always"
    obstacle = why_not_compile(device, precision)
    if obstacle is None and steps < COMPILE_PAYS_FROM_STEPS:
        obstacle = f"{steps} steps on {device.type}, fewer than the {COMPILE_PAYS_FROM_STEPS} that repay it"
    if obstacle is not None:
        logger.info("train.compile: auto is off: %s", obstacle)
        return False
    reason = f"{device.type}, a compiler is found, {steps} steps, at least the {COMPILE_PAYS_FROM_STEPS} that repay it"
    logger.info("train.compile: auto is on: %s", reason)
    return True
