"""Train in a run folder: check it, lock it, start or resume, fit, and report."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

from stylize.build import Run, build_run
from stylize.config import RunConfig
from stylize.errors import StylizeError
from stylize.losses.summary import held_out_text
from stylize.resuming import (
    INPUTS_NAME,
    KEPT_STYLES,
    MOVABLE_KEYS,
    RESUMABLE_KEYS,
    as_begun,
    check_inputs,
    inputs_of,
    kept_styles,
    moved_since,
    record_inputs,
)
from stylize.system import distributed
from stylize.system.files import LOCK_NAME, FolderLock, remove_leftovers, write_atomically
from stylize.system.logs import only_warnings
from stylize.system.memory import keep_freed_memory
from stylize.training.monitor import Monitor
from stylize.training.trainer import Interrupted, Progress, Trainer

__all__ = ["Continuation", "Progress", "RunResult", "check", "continuation", "train"]

logger = logging.getLogger("stylize")

RUN_FILES = ("config.yaml", INPUTS_NAME, "model.safetensors", "metrics.jsonl", "checkpoints", "samples")
RECORDS_IN = {"checkpoints": ("*.pt", "*.pt.damaged"), "samples": ("step-*.jpg",)}
WAITING_SHARE = 0.05


@dataclass(frozen=True)
class RunResult:
    """A training that has ended.

    Attributes:
        folder: The run folder.
        model: The model file: the generator with the lowest held-out loss.
        progress: Step and losses at the end.
        first_step: Steps done before this call; 0 unless resumed.
        seconds: Duration of the steps, validations and checkpoints of this call.
        images_per_s: Photographs trained on per second, over `seconds`.
        data_wait_share: Share of the steps' time spent waiting for photographs, from 0 to 1.
        interrupted: Whether a signal stopped it before the last step.
        saved_step: Step of the newest checkpoint; None: no checkpoint could be written.
    """

    folder: Path
    model: Path
    progress: Progress
    first_step: int
    seconds: float
    images_per_s: float
    data_wait_share: float
    interrupted: bool
    saved_step: int | None


class Continuation(NamedTuple):
    """The arguments of `train` that continue a run in its folder."""

    resume: bool
    overwrite: bool


def train(
    config: RunConfig,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    quiet: bool = False,
    stop_on_signals: bool = False,
) -> RunResult:
    """Train a model in its run folder.

    It may be called in any thread, but only once at a time in a process: torch's random state is the process's. Started
    by torchrun, every process calls it with the same arguments.

    Args:
        config: The run; its paths absolute, as `load_config` makes them.
        folder: The run folder; it is created.
        device: `auto`, `cpu`, `cuda` or `mps`.
        resume: Continue from the newest checkpoint of the folder.
        overwrite: Replace the run in the folder.
        on_progress: Called after every step, its validation and checkpoint included, with a copy of the progress; by
            the first process only. An exception from it ends the training; `resume` continues at the last checkpoint.
        quiet: Show no progress bar, and log warnings only.
        stop_on_signals: On SIGINT and SIGTERM finish the step, write a checkpoint and return; on a second signal raise
            KeyboardInterrupt. Only in the main thread.

    Raises:
        StylizeError: The folder, the config or a file of it is unfit, the run diverged, or no model could be written.
    """
    keep_freed_memory()
    with distributed.joined(device) as own_device, only_warnings(quiet or not distributed.is_first()):
        if distributed.restarted():
            resume, overwrite = distributed.broadcast(continuation(folder))
        run = _built(config, folder, own_device, resume, overwrite)
        with _locked_folder(folder, run, resume, overwrite):
            if resume:
                run.trainer.resume()
                logger.info("resuming at step %d", run.trainer.progress.step)
            run.trainer.batches.prepare()
            result = _fit(run, folder, on_progress, quiet, stop_on_signals)
        if distributed.is_first() and not result.interrupted:
            _report(result, run)
        return result


def check(
    config: RunConfig, folder: Path, *, device: str = "auto", resume: bool = False, overwrite: bool = False
) -> None:
    """Check everything that `train` would, log what would be built, and write nothing.

    Raises:
        StylizeError: As `train`.
    """
    with distributed.joined(device) as own_device, only_warnings(not distributed.is_first()):
        _built(config, folder, own_device, resume, overwrite)


def continuation(folder: Path) -> Continuation:
    """How to continue in a folder: resume where there is a checkpoint, else start over."""
    started = (folder / "config.yaml").exists()
    saved = any((folder / "checkpoints").glob("*.pt"))
    return Continuation(resume=started and saved, overwrite=started and not saved)


def _built(config: RunConfig, folder: Path, device: torch.device, resume: bool, overwrite: bool) -> Run:
    if resume:
        config = as_begun(config, folder)
    if distributed.is_first():
        _check_folder(folder, config, resume, overwrite)
    run = build_run(config, device, folder, kept_styles(folder) if resume else None)
    if resume and distributed.is_first():
        check_inputs(folder, _inputs_of(run), moved_since(folder / "config.yaml", config))
    _describe(run)
    if run.photographs.validation and not run.trainer.held_out.photographs:
        raise StylizeError("content.validation: none of the held-out photographs can be read")
    return run


@contextmanager
def _locked_folder(folder: Path, run: Run, resume: bool, overwrite: bool) -> Iterator[None]:
    """Within the block the folder is prepared and locked by the first process; the others wait for it."""
    with ExitStack() as stack:
        if distributed.is_first():
            _make_folder(folder)
            stack.enter_context(FolderLock(folder))
            # another run may have begun while this one was built
            _check_folder(folder, run.config, resume, overwrite)
            _prepare(folder, run.config, overwrite)
            if not (resume and (folder / INPUTS_NAME).exists()):
                record_inputs(folder, _inputs_of(run))
        distributed.broadcast(None)
        yield


def _check_folder(folder: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    _check_links(folder)
    if folder.exists() and not folder.is_dir():
        raise StylizeError(f"{folder}: is a file, must be a run folder")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = "cannot be written to" if parent.is_dir() else "is a file"
        raise StylizeError(f"{folder}: cannot be created: {parent} {reason}")
    started = (folder / "config.yaml").exists()
    if resume:
        if not started:
            raise StylizeError(f"{folder}: nothing to resume: there is no run")
        moved_since(folder / "config.yaml", config)
    elif _holds_files(folder) and not (overwrite and started):
        remedy = "go on with --resume, replace it with --overwrite, or" if started else "is no run folder;"
        raise StylizeError(f"{folder}: is there already: {remedy} choose another --output")


def _holds_files(folder: Path) -> bool:
    """Whether there is more in a folder than what a killed process leaves."""
    return folder.is_dir() and any(p.name != LOCK_NAME and p.suffix != ".part" for p in folder.iterdir())


def _inputs_of(run: Run) -> dict[str, str]:
    inputs = inputs_of(run.config, run.photographs.training, run.photographs.validation)
    return {**inputs, KEPT_STYLES: json.dumps(run.kept_styles)} if run.kept_styles else inputs


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StylizeError(f"{folder}: cannot be created ({error.strerror})") from error


def _prepare(folder: Path, config: RunConfig, overwrite: bool) -> None:
    if overwrite:
        # config.yaml last: without it, what a kill leaves here could not be overwritten any more
        for path in [*folder.glob("events.out.tfevents.*"), *(folder / name for name in reversed(RUN_FILES))]:
            try:
                _remove(path)
            except OSError as error:
                raise StylizeError(f"{error.filename or path}: cannot be removed ({error.strerror})") from error
    remove_leftovers(folder)
    write_atomically(folder / "config.yaml", config.to_yaml().encode())


def _remove(path: Path) -> None:
    """Remove a file, or a folder of a run; a link to a folder and a mounted one stay, without the run's records.

    Raises:
        OSError: It cannot be removed.
    """
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif not (path.is_symlink() or path.is_mount()):
        shutil.rmtree(path)
    else:  # a place on another disk, which may hold other files, too
        for kind in RECORDS_IN.get(path.name, ()):
            for record in path.glob(kind):
                record.unlink()


def _check_links(folder: Path) -> None:
    """Refuse links that lead nowhere before a record or checkpoint is lost by them.

    Raises:
        StylizeError: The folder, or one within it, is such a link.
    """
    for path in (folder, *(folder / name for name in RECORDS_IN)):
        if path.is_symlink() and not path.is_dir():
            target = path.readlink()
            raise StylizeError(f"{path}: is a link to {target}, must lead to a folder; make that, or remove the link")


def _describe(run: Run) -> None:
    generator, photographs = run.trainer.generator, run.photographs
    count = sum(p.numel() for p in generator.parameters())
    config = run.config.generator
    logger.info(
        "%s generator, %s norm, width %d: %s parameters; VGG-19 weights: %s; device: %s",
        config.name, config.norm, config.width, f"{count:,}", run.vgg_weights, run.trainer.compute.device,
    )  # fmt: skip
    logger.info("%d photographs to train on, %d held out", len(photographs.training), len(photographs.validation))
    if distributed.count() > 1:
        part = run.config.train.batch_size // distributed.count()
        logger.info("%d processes, %d photographs each a step", distributed.count(), part)


def _fit(
    run: Run, folder: Path, on_progress: Callable[[Progress], None] | None, quiet: bool, stop_on_signals: bool
) -> RunResult:
    trainer, config = run.trainer, run.config
    start_s, first_step = time.monotonic(), trainer.progress.step
    with _monitor(folder, run, quiet) as monitor:
        monitor.log_start(config.to_yaml(), run.styles)
        interrupted = False
        try:
            with _stopping_on_signals(trainer, stop_on_signals):
                trainer.fit(monitor, on_progress if distributed.is_first() else None)
        except Interrupted:
            interrupted = True
        else:
            monitor.log_hyperparameters(_hyperparameters(config))
    seconds = time.monotonic() - start_s
    images = (trainer.progress.step - first_step) * config.train.batch_size
    return RunResult(
        folder=folder,
        model=folder / "model.safetensors",
        progress=replace(trainer.progress),
        first_step=first_step,
        seconds=seconds,
        images_per_s=images / max(seconds, 1e-9),
        data_wait_share=monitor.data_wait_share,
        interrupted=interrupted,
        saved_step=trainer.saved_step,
    )


def _monitor(folder: Path, run: Run, quiet: bool) -> Monitor:
    return Monitor(
        folder,
        steps=run.config.train.steps,
        first_step=run.trainer.progress.step,
        images_per_step=run.config.train.batch_size,
        bar="hidden" if quiet else "shown",
        silent=not distributed.is_first(),
        waits=run.trainer.compute.waits(),
        remedy=_waiting_remedy(run),
    )


@contextmanager
def _stopping_on_signals(trainer: Trainer, wanted: bool) -> Iterator[None]:
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True
        logger.info("finishing the step and writing a checkpoint (again to stop at once)")

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _hyperparameters(config: RunConfig) -> dict[str, object]:
    """The settings by which runs differ in what they compute: no paths, and nothing without a value."""
    dropped = RESUMABLE_KEYS | {*MOVABLE_KEYS, "name"}
    values = {key: value for key, value in config.flat().items() if key not in dropped and value not in (None, [])}
    values["train.steps"] = config.train.steps
    return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}


def _report(result: RunResult, run: Run) -> None:
    """Log the speed and the best validation; refuse to end without a model file."""
    _report_waiting(result.data_wait_share, run)
    progress = result.progress
    logger.info(
        "%d steps in %.0f s, %.2f images/s", progress.step - result.first_step, result.seconds, result.images_per_s
    )
    if not result.model.exists():
        raise StylizeError(f"{result.folder}: no model could be written; make room, and train some more with --resume")
    if progress.validation:
        logger.info("best at step %d: held-out %s", progress.best_step, held_out_text(progress.validation))


def _report_waiting(share: float, run: Run) -> None:
    """Log how long the network waited for photographs, and the remedy."""
    remedy = f": {_waiting_remedy(run)}" if share > WAITING_SHARE else ""
    logger.info("%.1f %% of the steps' time went into waiting for photographs%s", 100 * share, remedy)


def _waiting_remedy(run: Run) -> str:
    cached = "" if run.config.content.cache else ", or decode every photograph once: content.cache=FOLDER"
    return f"raise content.workers (now {run.trainer.batches.workers}){cached}"
