"""`stylize study`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from stylize.cli.options import device_option, overrides_option, verbose_option
from stylize.errors import pick
from stylize.system.memory import keep_freed_memory


@click.command()
@click.argument("name", required=False)
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A run's YAML file.")
@overrides_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("studies"),
    show_default=True,
    metavar="DIR",
    help="Where studies, their run folders and photographs are; equal trainings are shared.",
)
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="How many, each setting.")
@click.option("--quick", is_flag=True, help="A small version, in minutes on two cores.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Trainings at a time; they share the cores.",
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Photographs for the sheets; default: four of those held out.",
)
@click.option(
    "--iterations",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Of the optimization that networks are shown beside; 0: none.",
)
@click.option("--restyle", metavar="MODEL", help="What normalizes photographs' style; default: a built-in model.")
@device_option
@verbose_option
def study(
    name: str | None,
    config_path: Path | None,
    overrides: tuple[str, ...],
    output: Path,
    seeds: int,
    quick: bool,
    jobs: int,
    pictures: Path | None,
    iterations: int,
    restyle: str | None,
    device: str,
) -> None:
    """Make one of the papers' comparisons; without NAME: list them.

    Stopped studies go on where they were when they are asked for again.
    """
    from stylize.studies.comparisons import STUDIES

    if name is None:
        for kind in STUDIES.values():
            click.echo(f"{kind.name:12} {kind.title}")
        return
    chosen = pick(STUDIES, name, "study")
    if config_path is None:
        raise click.UsageError("--config: must name a run's YAML file")
    from stylize.config import load_config
    from stylize.studies.conduct import QUICK_ITERATIONS, QUICK_SEEDS, Request, conduct, quickened

    keep_freed_memory()
    config = load_config(config_path, overrides)
    if quick:
        config, seeds, iterations = quickened(config), min(seeds, QUICK_SEEDS), min(iterations, QUICK_ITERATIONS)
    command = shlex.join(["stylize", *sys.argv[1:]])
    request = Request(config, output.resolve(), seeds, device, jobs, pictures, iterations, restyle, command)
    click.echo(conduct(chosen, request))
