"""The training loop. It gets objects that are already built."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from stylize.errors import StylizeError
from stylize.generators import Generator
from stylize.losses.perceptual import PerceptualLoss
from stylize.measures.painting import PaintingMeasures
from stylize.system import distributed
from stylize.system.compute import Compute
from stylize.system.devices import CPU, is_out_of_memory
from stylize.system.memory import return_freed_memory
from stylize.training.bounds import IMAGE_NORM, GradientBounds
from stylize.training.checkpoint import checkpoint_path, newest_checkpoint, save_checkpoint
from stylize.training.held_out import HeldOut, one_hot, values_of
from stylize.training.loader import Batches
from stylize.training.monitor import Monitor
from stylize.training.optimizers import OptimizerName, build_optimizer
from stylize.training.prefetch import prefetched
from stylize.training.rollback import Rollback
from stylize.training.schedule import ScheduleConfig, rate_factor
from stylize.training.shifts import AGAIN, Shifts, compared_places, difference, moved
from stylize.training.styles import StyleOrder
from stylize.training.updates import (
    SKIPS_THAT_HALVE_THE_RATE,
    SKIPS_THAT_STOP,
    LateUpdates,
    step_counts,
    why_not_finite,
)

logger = logging.getLogger("stylize")

STOP = "stop"  # in how many processes a signal came, as a share; exchanged with the terms


class TrainConfig(BaseModel):
    """Length and settings of a training."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    steps: int = Field(40_000, ge=1, description="optimizer steps")
    batch_size: int = Field(4, ge=1, description="photographs per step")
    optimizer: OptimizerName = Field(
        "muon", description="muon (for kernels of convolutions; Adam for all else) or adam"
    )
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="learning rate")
    norm_rate: float = Field(
        16.0, gt=0, allow_inf_nan=False, description="factor of the learning rate of the norms' γ and β"
    )
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="the learning rate over the run")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="floating-point precision of the networks")
    deterministic: bool = Field(
        False, description="whether CUDA computes the same bits at every run, which is slower; a CPU always does"
    )
    compile: Literal["auto", "always", "graphs", "never"] = Field(
        "auto", description="whether to use torch.compile for the step; graphs: and replay it as CUDA graphs"
    )
    checkpoint_every: int = Field(1000, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(3, ge=1, description="number of newest checkpoints to keep")
    validate_every: int = Field(500, ge=1, description="steps between two validations")
    stop_after: int | None = Field(
        None, ge=1, description="stop after that many validations without improvement; null: never"
    )
    clip: float | None = Field(
        4.0,
        ge=1,
        allow_inf_nan=False,
        description="scale the gradient of an image, and of a step, down to this multiple of its running median; "
        "null: never",
    )
    start: str = Field(
        "learned",
        description="what it begins with: learned (the package's start, where one fits), none (random), or a model",
    )
    shift_weight: float = Field(
        20.0,
        ge=0,
        allow_inf_nan=False,
        description="factor of the difference between a crop painted and the same crop, moved, painted; "
        "0, and where noise makes each painting another: none",
    )
    only: Literal["all", "norms"] = Field(
        "all", description="what is trained: all weights, or the norms' γ and β of the new styles"
    )
    keep_styles: bool = Field(True, description="with only: norms: whether the model keeps the styles of its start")
    log_every: int = Field(10, ge=1, description="steps between two records of the losses")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_float16(cls, precision: object) -> object:
        if precision in ("fp16", "float16"):
            raise ValueError(f"got '{precision}', must be auto, fp32 or bf16: float16 needs scaled losses in training")
        return precision


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
        skipped_in_a_row: Number of steps skipped since the last one with a finite loss, as far as the host has heard.
        rate_factor: Factor of the learning rate; halved when too many steps in a row are skipped.
        validation: Held-out losses of the best step, by term; means over the styles.
        by_style: Those of each style, by its name; empty if there is only one.
    """

    step: int = 0
    best_total: float = math.inf
    best_step: int = 0
    validations_without_better: int = 0
    skipped_in_a_row: int = 0
    rate_factor: float = 1.0
    validation: dict[str, float] = field(default_factory=dict)
    by_style: dict[str, dict[str, float]] = field(default_factory=dict)


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
        styles: The names of the styles with their shares of the crops; None: there is one style.
        kept_styles: Number of styles that the generator has before these, and that are not trained.
        save_best: Called with the progress when the held-out loss is the lowest so far, to write the model.
        measures: What measures the held-out paintings of each style beside the loss; None: nothing does.
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
        styles: Mapping[str, float] | None = None,
        kept_styles: int = 0,
        measures: Sequence[PaintingMeasures] | None = None,
    ) -> None:
        self.generator = compute.place(generator)
        generator.maps = None if compute.dtype == torch.float32 else compute.dtype
        self.loss = compute.place(loss)
        loss.hold_in(compute.dtype)
        self.batches = batches
        styles = styles or {"": 1.0}
        several = kept_styles + len(styles) > 1
        self.order = StyleOrder(list(styles.values()), batches.batch_size, kept_styles) if several else None
        self.held_out = HeldOut(validation, tuple(styles), self.generator, self.loss, compute, kept_styles, measures)
        self.config = config
        self.compute = compute
        self.run_dir = run_dir
        self.save_best = save_best
        self.progress = Progress()
        self.saved_step: int | None = None
        self.stop_requested = False
        self.optimizer = build_optimizer(
            config.optimizer,
            generator,
            config.learning_rate,
            fused=compute.has_fused_optimizers,
            norm_rate=config.norm_rate,
        )
        self.rollback = Rollback(generator, self.optimizer)
        self.bounds = GradientBounds(config.clip, compute.device)
        self._late = LateUpdates(self.optimizer, self.rollback, compute.device) if compute.checks_late else None
        self._unread: list[dict[str, Tensor]] = []  # the values of steps that the host has not read yet
        self._stop_votes: Tensor | None = None
        self._stop_heard = False
        self.shifts = Shifts(0.0 if generator.draws_noise else config.shift_weight, seed)
        self._network = distributed.wrap_ddp(generator)
        self._terms = compute.compile(self._forward)
        self._compiled_steps_on_trial = compute.steps_that_compile
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
            Interrupted: `stop_requested` was set in a process; the step was finished and a checkpoint written.
            StylizeError: Ten losses in a row were not finite, or too many files cannot be read.
        """
        self.generator.train()
        # Several processes stop together: one that leaves alone makes the others fail.
        self.batches.stops = lambda: self.stop_requested and distributed.count() == 1
        batches = self.batches.from_step(self.progress.step, self.config.steps)
        for batch in monitor.timed(prefetched(batches, self.compute)):
            self._step_or_skip(batch, monitor)
            if self._is_due(self.config.validate_every):
                self.validate(monitor)
            stop = self._stops()
            if self._is_due(self.config.checkpoint_every) or stop:
                self._account_for(self._read(), monitor)  # a signal may have come after the step
                self._save_if_possible(monitor)
            if on_progress is not None:
                on_progress(replace(self.progress))
            if self._is_stale():
                monitor.tell(f"stopped early: no better held-out loss since step {self.progress.best_step}")
                break
            if stop and self.progress.step < self.config.steps:
                raise Interrupted
        else:
            if self.progress.step < self.config.steps:  # a signal came while no photographs did
                self._account_for(self._read(), monitor)
                self._save_if_possible(monitor)
                raise Interrupted
        return self.progress

    def step(self, batch: Tensor) -> dict[str, Tensor]:
        """Make an optimizer step on a batch of crops, uint8 `(N, 3, H, W)`, or on the share of this process.

        Returns:
            `()` each: the loss terms, the learning rate, the gradient's norm before it was clipped and its running
            median, the number of steps clipped and that of images bounded so far.

        Raises:
            NotFinite: A term, or the gradient, is not finite or enormous; no weight was updated. Where the
                device checks by itself (`Compute.checks_late`) there is no error.
        """
        self.compute.begin_step()
        again = self.shifts.again(len(batch))
        self.bounds.begin_step(len(batch) + again)
        self.optimizer.zero_grad(set_to_none=True)
        rate = self._set_learning_rate()
        with self.compute.context():
            crops, places = self._with_moved(self.compute.photographs(batch), again)
            own_terms = self._terms_and_gradients(crops, self._styles_of_step(again), places)
        terms = self._averaged({**own_terms, **self.bounds.of_batch()})
        terms, counts = self._clipped(terms, len(crops) * distributed.count())
        if self._late is not None:
            rate_used = self._late.update(counts, rate)
        else:
            rate_used = torch.tensor(rate * self.progress.rate_factor)
            self._check_counts(terms, counts)
            self.rollback.keep()
            self.optimizer.step()
        self.generator.project_()
        return {**terms, "learning_rate": rate_used}

    def _with_moved(self, content: Tensor, again: int) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Return the crops of this step and behind them some again, moved; and where both show the same."""
        if not again:
            return content, None
        size = content.shape[-2:]
        move = self.shifts.of_step(self.progress.step)
        return torch.cat([content, moved(content[AGAIN], move)]), compared_places(move, size, content.device)

    def _styles_of_step(self, again: int) -> Tensor | None:
        """Choose the styles of this step's crops, and behind them those of the crops that are painted again.

        Returns:
            Their numbers, `(N,)`, or None if there is one style.
        """
        if self.order is None:
            return None
        styles = self.order.of_step(self.progress.step).to(self.compute.device)
        styles = torch.cat([styles, styles[AGAIN]]) if again else styles
        self.generator.paint_in(one_hot(styles + self.order.kept, self.order.kept + self.order.count))
        return styles

    def _clipped(self, terms: dict[str, Tensor], images: int) -> tuple[dict[str, Tensor], Tensor]:
        """Clip the gradients of a batch of so many images; return its terms, and whether the step counts, bool `()`."""
        bounds = self.bounds
        gradients = [p.grad for p in self.generator.parameters() if p.grad is not None]
        norm, usual = torch.nn.utils.get_total_norm(gradients), bounds.usual().step
        counts = step_counts(terms["total"], norm, usual)
        factor = bounds.clip_(gradients, norm, always=self._late is not None)
        bounds.record_(terms, norm, factor, images, counts)
        told = {"bounded_images": bounds.bounded_images.clone(), "clipped_steps": bounds.clipped_steps.clone()}
        losses = {name: term for name, term in terms.items() if name not in (IMAGE_NORM, *told)}
        return {**losses, "gradient_norm": norm, "gradient_median": usual, **told}, counts

    def _set_learning_rate(self) -> float:
        """Set the optimizer's learning rate; return that of the schedule, which skipped steps may have halved."""
        factor = rate_factor(self.progress.step, self.config.steps, self.config.schedule)
        rate = self.config.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.progress.rate_factor * group["factor"]
        return rate

    def _forward(self, crops: Tensor, styles: Tensor | None, places: tuple[Tensor, ...] | None) -> dict[str, Tensor]:
        painted = self.bounds.of_images(self._network(self.compute.network_input(crops)), crops)
        if places is None:
            return self._losses(painted, crops, styles)
        count = self.shifts.images(len(crops))
        terms = self._losses(painted[:count], crops[:count], None if styles is None else styles[:count])
        shift = difference(painted[:count][AGAIN], painted[count:], places)
        return {**terms, "shift": shift.detach(), "total": terms["total"] + self.shifts.weight * shift}

    def _losses(self, stylized: Tensor, content: Tensor, styles: Tensor | None) -> dict[str, Tensor]:
        if self.compute.image_by_image:
            return self.loss.by_image(stylized, content, styles)
        terms: dict[str, Tensor] = self.loss(stylized, content, styles)
        return terms

    def _terms_and_gradients(
        self, crops: Tensor, styles: Tensor | None = None, places: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """Return the terms of the share of this process, and compute the gradients of their total.

        If one of the first steps fails because it is compiled, it is made again without.
        """
        if not self._compiled_steps_on_trial:
            return self._with_gradients(self._terms, crops, styles, places)
        is_first = self._compiled_steps_on_trial == self.compute.steps_that_compile
        self._compiled_steps_on_trial -= 1
        start_s, before = time.monotonic(), self._drawn_and_running()
        try:
            terms = self._with_gradients(self._terms, crops, styles, places)
        except Exception as error:  # compilers raise anything
            if isinstance(error, StylizeError) or any(map(is_out_of_memory, _with_causes(error))):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logger.warning("train.compile: a first step failed (%s); the run goes on without compilation", reason)
        else:
            if is_first:
                logger.info("train.compile: the first step, which compiles, took %.1f s", time.monotonic() - start_s)
            return terms
        self._compiled_steps_on_trial = 0
        self._restore_drawn_and_running(before)
        self._terms = self._forward
        self.optimizer.zero_grad(set_to_none=True)
        return self._with_gradients(self._terms, crops, styles, places)

    @staticmethod
    def _with_gradients(function: Callable[..., dict[str, Tensor]], *crops: Any) -> dict[str, Tensor]:
        terms = function(*crops)
        torch.autograd.backward(terms["total"])
        return terms

    def _drawn_and_running(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What a forward pass changes: the random generators, and the norms' running statistics."""
        return (
            torch.get_rng_state(),
            self.compute.random_states(),
            [buffer.clone() for buffer in self.generator.buffers()],
        )

    @torch.no_grad()
    def _restore_drawn_and_running(self, before: tuple[Tensor, list[Tensor], list[Tensor]]) -> None:
        random, random_on_device, buffers = before
        torch.set_rng_state(random)
        self.compute.set_random_states(random_on_device)
        for buffer, value in zip(self.generator.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def _averaged(self, own_terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms' means over all processes; where there are several, ask all whether a signal came."""
        if distributed.count() > 1:
            vote = own_terms["total"].detach().new_full((), float(self.stop_requested))
            averaged = distributed.average_terms({**own_terms, STOP: vote})
            self._stop_votes = averaged.pop(STOP)
            return averaged
        terms = distributed.average_terms(own_terms)
        if self.compute.graphs:  # the next replay overwrites what a graph returned
            return dict(zip(terms, torch.stack(list(terms.values())).unbind(), strict=True))
        return terms

    def _check_counts(self, terms: Mapping[str, Tensor], counts: Tensor) -> None:
        """Raise NotFinite if a step does not count, and hear whether a signal came to another process.

        The host waits for the device once a step, for a single copy: an update with such a gradient must not happen.
        """
        if self._stop_votes is not None:
            self._stop_heard = self._stop_heard or self._stop_votes.item() > 0
        if not counts.item():
            raise NotFinite(why_not_finite(values_of(terms, self.compute.device)))

    def _step_or_skip(self, batch: Tensor, monitor: Monitor) -> None:
        """Make and record a step; if the loss is not finite, roll back and skip the batch."""
        if self._late is not None:
            self._step_unread(batch, monitor)
            return
        try:
            terms = self.step(batch)
        except NotFinite as error:
            self.rollback.restore_()
            self.progress.step += 1
            monitor.advance()
            self._skip(self.progress.step, str(error), monitor)
            return
        self.progress.skipped_in_a_row = 0
        self.progress.step += 1
        monitor.advance()
        if self._is_due(self.config.log_every):
            monitor.log_step(self.progress.step, values_of(terms, self.compute.device))

    def _step_unread(self, batch: Tensor, monitor: Monitor) -> None:
        """Make a step, and read its values and those before it only when they are needed."""
        terms = self.step(batch)
        votes = {} if self._stop_votes is None else {STOP: self._stop_votes}
        self._unread.append({**terms, **votes})
        self.progress.step += 1
        config = self.config
        needed = any(map(self._is_due, (config.log_every, config.validate_every, config.checkpoint_every)))
        if not needed and not self._stops():
            monitor.advance()
            return
        steps = self._read()
        monitor.advance()
        self._account_for(steps, monitor)

    def _read(self) -> list[dict[str, float]]:
        """Return the values of all steps that were not read. The host waits for the device once."""
        if not self._unread:
            return []
        rows = torch.stack([torch.stack(list(values.values())) for values in self._unread]).tolist()
        read = [dict(zip(values, row, strict=True)) for values, row in zip(self._unread, rows, strict=True)]
        self._unread.clear()
        return read

    def _account_for(self, steps: list[dict[str, float]], monitor: Monitor) -> None:
        """Record the newest steps, whose values have come; the device has skipped those that are not finite itself."""
        for step, values in enumerate(steps, self.progress.step - len(steps) + 1):
            self._stop_heard = self._stop_heard or values.pop(STOP, 0.0) > 0
            reason = why_not_finite(values)
            if reason is not None:
                self._skip(step, reason, monitor)
                continue
            self.progress.skipped_in_a_row = 0
            if step % self.config.log_every == 0 or step == self.config.steps:
                monitor.log_step(step, values)

    def _skip(self, step: int, reason: str, monitor: Monitor) -> None:
        """Record a skipped step; halve the learning rate after the third in a row, stop after the tenth."""
        progress = self.progress
        progress.skipped_in_a_row += 1
        count = progress.skipped_in_a_row
        halved = ""
        if count == SKIPS_THAT_HALVE_THE_RATE:
            progress.rate_factor /= 2
            halved = "; the learning rate is halved from here on"
        monitor.log_skipped(
            step,
            f"step {step}: {reason}: back to the last good state, batch skipped ({count} in a row){halved}",
            {"in_a_row": count, "rate_factor": progress.rate_factor},
        )
        if count == SKIPS_THAT_STOP:
            raise StylizeError(
                f"stopped at step {step}: {count} steps in a row were not finite, last: {reason}; "
                "start anew with a lower train.learning_rate or loss.style_weight"
            )

    @torch.no_grad()
    def validate(self, monitor: Monitor) -> None:
        """Measure the held-out photographs with the generator in `eval()`; save the model if it is the best."""
        if not self.held_out.photographs:
            with monitor.surviving("the model"):
                self.save_best(self.progress)
            return
        found = self.held_out.measure()
        with monitor.surviving("the model", ", and this validation does not count as the best"):
            self._record(found.terms, found.by_style)
        vars(self.progress).update(distributed.broadcast(vars(self.progress)))  # only the first writes, and may fail
        monitor.log_validation(self.progress.step, found, self.held_out.photographs)
        for name, norm in self.generator.norms().items():
            for kind, values in norm.histograms().items():
                monitor.log_histogram(self.progress.step, f"weights/{kind} {name}", values)  # sorted after the losses

    def _record(self, terms: dict[str, float], by_style: dict[str, dict[str, float]]) -> None:
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
            by_style=by_style,
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
            "bounds": self.bounds.state_dict(),
            "random": torch.get_rng_state(),
            "random_of_device": self.compute.random_states(),
            "device": self.compute.kind,
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
        if "bounds" in state:  # older versions had none
            self.bounds.load_state_dict(state["bounds"])
        self.progress = Progress(**state["progress"])
        self.saved_step = self.progress.step
        torch.set_rng_state(state["random"].cpu())
        self._load_random_states(state)
        if self._late is not None:
            self._late.resume(self.progress.skipped_in_a_row, self.progress.rate_factor)

    def _load_random_states(self, state: Mapping[str, Any]) -> None:
        states = state["random_cuda"] if "random_cuda" in state else state["random_of_device"]  # as older versions did
        kind = state.get("device", "cuda" if states else "cpu")
        if kind == self.compute.kind:
            self.compute.set_random_states(states)
        else:
            logger.warning(
                "--resume: the run so far was on %s, this is %s: its rounding and noise differ from here on",
                kind,
                self.compute.kind,
            )

    def _stops(self) -> bool:
        """Whether to stop after this step: several processes stop at the one in which all have heard of it."""
        return self.stop_requested if distributed.count() == 1 else self._stop_heard

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.config.steps

    def _is_stale(self) -> bool:
        patience = self.config.stop_after
        return patience is not None and self.progress.validations_without_better >= patience


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those from which it was raised: compilers wrap what they meet."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
