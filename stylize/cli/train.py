"""`stylize train`."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from stylize.cli.options import device_option, overrides_option, verbose_option
from stylize.errors import StylizeError
from stylize.system.files import LOCK_NAME, FolderLock, remove_leftovers, write_atomically
from stylize.system.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

    from stylize.build import Run
    from stylize.config import RunConfig
    from stylize.training.trainer import Progress, Trainer

logger = logging.getLogger("stylize")

RUN_FILES = ("config.yaml", "model.safetensors", "metrics.jsonl", "checkpoints", "samples")
WAITING_SHARE = 0.05
# Keys that may differ when a run is resumed: they do not change what was computed so far.
RESUMABLE_KEYS = frozenset(
    f"train.{key}"
    for key in ("steps", "checkpoint_every", "keep_checkpoints", "validate_every", "stop_after", "log_every", "compile")
) | {"content.workers", "content.cache"}


@click.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), required=True, help="The run's YAML file.")
@overrides_option
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="RUN_DIR", help="The run folder; default runs/<name>."
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of the run folder.")
@click.option("--overwrite", is_flag=True, help="Replace the run folder's earlier run.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the resolved config, and stop.")
@device_option
@verbose_option
def train(
    config_path: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    device: str,
) -> None:
    """Train a model for a style."""
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    from stylize.config import load_config

    config = load_config(config_path, overrides)
    run_dir = output or Path("runs") / config.name
    from stylize.system import distributed

    keep_freed_memory()
    with distributed.joined(device) as own_device:
        if not distributed.is_first():
            logger.setLevel(logging.WARNING)  # what all would say, the first says
        if distributed.restarted():
            resume, overwrite = distributed.first_says(_where_it_was(run_dir))
        _train(config, run_dir, own_device, resume, overwrite, dry_run)


def _where_it_was(run_dir: Path) -> tuple[bool, bool]:
    """Whether to resume, and whether to overwrite, when torchrun starts the processes of a run anew."""
    begun = (run_dir / "config.yaml").exists()
    saved = any((run_dir / "checkpoints").glob("*.pt"))
    return begun and saved, begun and not saved


def _train(
    config: RunConfig, run_dir: Path, device: torch.device, resume: bool, overwrite: bool, dry_run: bool
) -> None:
    from stylize.build import build_run
    from stylize.system import distributed

    if distributed.is_first():
        _check_run_dir(run_dir, config, resume, overwrite)
    run = build_run(config, device, run_dir)
    _describe(run)
    if dry_run:
        if distributed.is_first():
            click.echo(config.to_yaml(), nl=False)
        return
    with _run_folder(run_dir, config, resume, overwrite):
        if resume:
            run.trainer.resume()
            logger.info("resuming at step %d", run.trainer.progress.step)
        run.trainer.batches.prepare()
        _fit(run, run_dir)


@contextmanager
def _run_folder(run_dir: Path, config: RunConfig, resume: bool, overwrite: bool) -> Iterator[None]:
    """Within the block the run's folder is there and held by the first process; the others wait for it."""
    from stylize.system import distributed

    with ExitStack() as stack:
        if distributed.is_first():
            _make_folder(run_dir)
            stack.enter_context(FolderLock(run_dir))
            _check_run_dir(run_dir, config, resume, overwrite)  # another run may have begun while this one was built
            _prepare(run_dir, config, overwrite)
        distributed.first_says(None)
        yield


def _check_run_dir(run_dir: Path, config: RunConfig, resume: bool, overwrite: bool) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise StylizeError(f"{run_dir}: is a file, must be a run folder")
    parent = next(folder for folder in run_dir.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = "cannot be written to" if parent.is_dir() else "is a file"
        raise StylizeError(f"{run_dir}: cannot be created: {parent} {reason}")
    started = (run_dir / "config.yaml").exists()
    if resume:
        if not started:
            raise StylizeError(f"{run_dir}: nothing to resume: there is no run")
        _check_same_run(run_dir / "config.yaml", config)
    elif (
        run_dir.is_dir()
        and any(p.name != LOCK_NAME and p.suffix != ".part" for p in run_dir.iterdir())
        and not (overwrite and started)
    ):
        remedy = "go on with --resume, replace it with --overwrite, or" if started else "is no run folder;"
        raise StylizeError(f"{run_dir}: is there already: {remedy} choose another --output")


def _check_same_run(path: Path, config: RunConfig) -> None:
    """Refuse to resume with settings under which the run so far would have been another."""
    from stylize.config import load_config

    before, now = (_flat(c.model_dump(mode="json")) for c in (load_config(path), config))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in RESUMABLE_KEYS:
            raise StylizeError(
                f"--resume: {key} was {before.get(key)!r} and is now {now.get(key)!r}, must be as before; "
                "start a new run with --output"
            )


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _make_folder(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StylizeError(f"{run_dir}: cannot be created ({error.strerror})") from error


def _prepare(run_dir: Path, config: RunConfig, overwrite: bool) -> None:
    if overwrite and run_dir.is_dir():
        # config.yaml last: without it, what a kill leaves here could not be overwritten any more
        for path in [*run_dir.glob("events.out.tfevents.*"), *(run_dir / name for name in reversed(RUN_FILES))]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    remove_leftovers(run_dir)
    write_atomically(run_dir / "config.yaml", config.to_yaml().encode())


def _describe(run: Run) -> None:
    from stylize.system import distributed

    generator, photographs = run.trainer.generator, run.photographs
    count = sum(p.numel() for p in generator.parameters())
    config = run.config.generator
    logger.info(
        "%s generator, %s norm, width %d: %s parameters; VGG-19 weights: %s; device: %s",
        config.name, config.norm, config.width, f"{count:,}", run.vgg_weights, run.trainer.device,
    )  # fmt: skip
    logger.info("%d photographs to train on, %d held out", len(photographs.training), len(photographs.validation))
    if distributed.count() > 1:
        part = run.config.train.batch_size // distributed.count()
        logger.info("%d processes, %d photographs each a step", distributed.count(), part)
    if photographs.validation and not run.trainer.validation:
        raise StylizeError("content.validation: none of the held-out photographs can be read")


def _fit(run: Run, run_dir: Path) -> None:
    from stylize.system import distributed
    from stylize.training.monitor import Monitor, SilentMonitor
    from stylize.training.trainer import Interrupted

    config, progress = run.config, run.trainer.progress
    start_s, first_step = time.monotonic(), progress.step
    batch_size = config.train.batch_size
    with (
        Monitor(run_dir, steps=config.train.steps, first_step=first_step, images_per_step=batch_size)
        if distributed.is_first()
        else SilentMonitor()
    ) as monitor:
        monitor.log_start(config.to_yaml(), run.styles)
        try:
            with _stop_on_signals(run.trainer):
                run.trainer.fit(monitor)
        except Interrupted:
            _tell_how_to_go_on(run.trainer, run_dir)
            sys.exit(130)
        monitor.log_hyperparameters(_hyperparameters(config), progress.validation)
    if distributed.is_first():
        _tell_waiting(monitor.data_wait_share, run)
        _report(run.trainer.progress, run_dir, time.monotonic() - start_s, first_step, batch_size)


def _tell_how_to_go_on(trainer: Trainer, run_dir: Path) -> None:
    step, saved_step = trainer.progress.step, trainer.saved_step
    if saved_step is None:
        logger.info("stopped after step %d; no checkpoint could be written", step)
        return
    behind = "" if saved_step == step else f", saved at step {saved_step}"
    logger.info(
        "stopped after step %d%s; go on with: stylize train --config %s --output %s --resume",
        step, behind, quoted(run_dir / "config.yaml"), quoted(run_dir),
    )  # fmt: skip


def quoted(path: Path) -> str:
    """A path as it has to be typed in a shell."""
    return shlex.quote(str(path))


def _hyperparameters(config: RunConfig) -> dict[str, object]:
    flat = _flat(config.model_dump(mode="json"))
    return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flat.items()}


def _tell_waiting(share: float, run: Run) -> None:
    """How long the network waited for photographs, and what to do about it."""
    cached = "" if run.config.content.cache else ", or decode every photograph once: content.cache=FOLDER"
    remedy = f": raise content.workers (now {run.trainer.batches.workers}){cached}" if share > WAITING_SHARE else ""
    logger.info("%.1f %% of the steps' time went into waiting for photographs%s", 100 * share, remedy)


def _report(progress: Progress, run_dir: Path, seconds: float, first_step: int, batch_size: int) -> None:
    rate = (progress.step - first_step) * batch_size / max(seconds, 1e-9)
    logger.info("%d steps in %.0f s, %.2f images/s", progress.step - first_step, seconds, rate)
    if not (run_dir / "model.safetensors").exists():
        raise StylizeError(f"{run_dir}: no model could be written; make room, and train some more with --resume")
    if progress.validation:
        from stylize.losses.summary import held_out_text

        logger.info("best at step %d: held-out %s", progress.best_step, held_out_text(progress.validation))
    click.echo(f"model: {run_dir / 'model.safetensors'}")
    click.echo(f"paint with it: stylize apply PHOTO --model {quoted(run_dir)}")
    click.echo(f"watch it: tensorboard --logdir {quoted(run_dir)}")


@contextmanager
def _stop_on_signals(trainer: Trainer) -> Iterator[None]:
    """On SIGINT and SIGTERM finish the step, write a checkpoint and stop; a second signal stops at once."""

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
