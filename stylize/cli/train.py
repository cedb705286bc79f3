"""`stylize train`."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stylize.cli.options import PATH, FiniteRange, device_option, overrides_option, verbose_option

if TYPE_CHECKING:
    from stylize.run import RunResult

logger = logging.getLogger("stylize")
MINUTES = 2.0


@click.command()
@click.argument("more", nargs=-1, type=PATH, metavar="[PICTURE...]")
@click.option("--config", "config_path", type=PATH, help="Config of the run.")
@click.option(
    "--style",
    "pictures",
    type=PATH,
    multiple=True,
    metavar="PICTURE...",
    help="Without a config: the style picture; several pictures are several styles in one model.",
)
@click.option(
    "--content",
    type=PATH,
    metavar="FOLDER",
    help="With --style: the photographs to train on. Default: the samples.",
)
@click.option("--name", metavar="NAME", help="With --style: name of the run. Default: that of the picture.")
@click.option(
    "--minutes",
    type=FiniteRange(0, min_open=True),
    metavar="M",
    help="With --style: how long the training may take, beside loading. Default: 2.",
)
@overrides_option
@click.option(
    "--output",
    type=PATH,
    metavar="RUN_DIR",
    help="Run folder. Default: runs/<name>.",
)
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint of the run folder.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the run folder.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the resolved config and stop.")
@device_option
@verbose_option
def train(
    more: tuple[Path, ...],
    config_path: Path | None,
    pictures: tuple[Path, ...],
    content: Path | None,
    name: str | None,
    minutes: float | None,
    overrides: tuple[str, ...],
    output: Path | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    device: str,
) -> None:
    """Train a model for a style: with --config, or from --style PICTURE alone, with settings that suit the machine."""
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if (config_path is None) == (not pictures):
        raise click.UsageError("must have either --config or --style")
    if config_path is not None and (more or content or name or minutes):
        raise click.UsageError("PICTURE, --content, --name and --minutes go with --style, not with --config")
    if pictures and resume:
        raise click.UsageError("--resume takes the config of the run folder: --config RUN_DIR/config.yaml")
    from stylize import run
    from stylize.config import config_from_tree, load_config
    from stylize.system import distributed

    with distributed.joined(device):
        if config_path is None:
            from stylize.suggest import suggested_config

            config = suggested_config([*pictures, *more], content, name, minutes or MINUTES, device)
            config = config_from_tree(config.model_dump(mode="json"), overrides)
        else:
            config = load_config(config_path, overrides)
        folder = output or Path("runs") / config.name
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
