"""`stylize train`."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stylize.cli.options import device_option, overrides_option, verbose_option

if TYPE_CHECKING:
    from stylize.run import RunResult

logger = logging.getLogger("stylize")


@click.command()
@click.option(
    "--config", "config_path", type=click.Path(readable=False, path_type=Path), required=True, help="Config of the run."
)
@overrides_option
@click.option(
    "--output",
    type=click.Path(readable=False, path_type=Path),
    metavar="RUN_DIR",
    help="Run folder. Default: runs/<name>.",
)
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint of the run folder.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the run folder.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the resolved config and stop.")
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
    from stylize import run
    from stylize.config import load_config
    from stylize.system import distributed

    config = load_config(config_path, overrides)
    folder = output or Path("runs") / config.name
    with distributed.joined(device):
        if dry_run:
            run.check(config, folder, device=device, resume=resume, overwrite=overwrite)
            if distributed.is_first():
                click.echo(config.to_yaml(), nl=False)
            return
        result = run.train(config, folder, device=device, resume=resume, overwrite=overwrite, stop_on_signals=True)
        if distributed.is_first():
            _print_how_to_continue(result) if result.interrupted else _print_what_next(result)
    if result.interrupted:
        sys.exit(130)


def _print_how_to_continue(result: RunResult) -> None:
    step = result.progress.step
    if result.saved_step is None:
        logger.info("stopped after step %d; no checkpoint could be written", step)
        return
    behind = "" if result.saved_step == step else f", saved at step {result.saved_step}"
    logger.info(
        "stopped after step %d%s; go on with: stylize train --config %s --output %s --resume",
        step, behind, quoted(result.folder / "config.yaml"), quoted(result.folder),
    )  # fmt: skip


def _print_what_next(result: RunResult) -> None:
    click.echo(f"model: {result.model}")
    click.echo(f"paint with it: stylize apply PHOTO --model {quoted(result.folder)}")
    click.echo(f"watch it: tensorboard --logdir {quoted(result.folder)}")


def quoted(path: Path) -> str:
    """A path quoted for a shell."""
    return shlex.quote(str(path))
