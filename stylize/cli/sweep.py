"""`stylize sweep`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from stylize.cli.options import PATH, device_option, jobs_option, overrides_option, pictures_option, verbose_option
from stylize.system.memory import keep_freed_memory

STEPS = 150


@click.command()
@click.option("--config", "config_path", type=PATH, required=True, metavar="FILE", help="YAML file of a run.")
@overrides_option
@click.option(
    "--vary",
    "variations",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE,...",
    help="A config key and the values that it takes; repeated: all combinations.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=STEPS,
    show_default=True,
    help="Optimizer steps of each training.",
)
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Number of seeds per setting.")
@click.option(
    "--output",
    type=PATH,
    default=Path("sweeps"),
    show_default=True,
    metavar="DIR",
    help="Folder of sweeps, their runs and photographs; equal runs are shared.",
)
@click.option("--name", metavar="NAME", help="Folder of this sweep in it. Default: the name of the config.")
@jobs_option
@pictures_option
@device_option
@verbose_option
def sweep(
    config_path: Path,
    overrides: tuple[str, ...],
    variations: tuple[str, ...],
    steps: int,
    seeds: int,
    output: Path,
    name: str | None,
    jobs: int,
    pictures: Path | None,
    device: str,
) -> None:
    """Train briefly with several values of config keys, and show the pictures and figures side by side.

    A stopped sweep continues when it is started again.
    """
    from stylize.config import load_config
    from stylize.studies.conduct import Request, conduct
    from stylize.studies.sweep import cells_of, read_variation, shortened
    from stylize.studies.sweep import sweep as study_of

    keep_freed_memory()
    whole = load_config(config_path, overrides)
    study = study_of(name or whole.name, whole, cells_of([read_variation(text) for text in variations]))
    command = shlex.join(["stylize", *sys.argv[1:]])
    config = shortened(whole, steps)
    request = Request(config, output.resolve(), seeds, device, jobs, pictures, iterations=0, command=command)
    click.echo(conduct(study, request))
