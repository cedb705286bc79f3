"""`stylize study`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from stylize.cli.options import PATH, device_option, jobs_option, overrides_option, pictures_option, verbose_option
from stylize.errors import pick
from stylize.system.memory import keep_freed_memory


@click.command()
@click.argument("name", required=False)
@click.option(
    "--config",
    "config_path",
    type=PATH,
    metavar="FILE",
    help="YAML file of a run.",
)
@overrides_option
@click.option(
    "--output",
    type=PATH,
    default=Path("studies"),
    show_default=True,
    metavar="DIR",
    help="Folder of studies, their runs and photographs; equal runs are shared.",
)
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Number of seeds per setting.")
@click.option("--quick", is_flag=True, help="Small version, in minutes on two cores.")
@jobs_option
@pictures_option
@click.option(
    "--iterations",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="L-BFGS iterations per photograph of the reference; 0: skip.",
)
@click.option(
    "--restyle", metavar="MODEL", help="Model that restyles photographs in the contrast study; default: a built-in one."
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="VGG",
    default=("compact", "random"),
    show_default=True,
    help="Loss network to compare with loss.vgg in the loss-networks study; repeatable.",
)
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
    networks: tuple[str, ...],
    device: str,
) -> None:
    """Run one of the papers' comparisons; without NAME, list them.

    A stopped study continues when it is started again.
    """
    from stylize.studies.comparisons import STUDIES

    if name is None:
        width = max(map(len, STUDIES))
        for kind in STUDIES.values():
            click.echo(f"{kind.name:{width}}  {kind.title}")
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
    request = Request(config, output.resolve(), seeds, device, jobs, pictures, iterations, restyle, networks, command)
    click.echo(conduct(chosen, request))
