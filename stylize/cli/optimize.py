"""`stylize optimize`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stylize.cli.objective import check_style_is_named, objective_of
from stylize.cli.options import PATH, device_option, overrides_option, verbose_option
from stylize.errors import StylizeError
from stylize.system.memory import keep_freed_memory
from stylize.system.places import check_replaceable, make_parent

if TYPE_CHECKING:
    from stylize.optimization.gatys import Iterate
    from stylize.training.tensorboard import EventFile

logger = logging.getLogger("stylize")


@click.command()
@click.argument("content", type=PATH)
@click.option(
    "--style",
    type=PATH,
    metavar="IMAGE",
    help="Style image; default: that of --config.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    metavar="OUT",
    help="Picture to write.",
)
@click.option(
    "--config",
    "config_path",
    type=PATH,
    metavar="FILE",
    help="YAML file of a run whose loss and style size to use; default: the default loss.",
)
@overrides_option
@click.option(
    "--size", type=click.IntRange(32), default=512, show_default=True, metavar="PX", help="Longer side of the picture."
)
@click.option(
    "--iterations",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Total iterations over all pyramid levels.",
)
@click.option(
    "--method",
    type=click.Choice(["lbfgs", "adam"]),
    default="lbfgs",
    show_default=True,
    help="Optimizer.",
)
@click.option(
    "--start",
    type=click.Choice(["content", "noise"]),
    default="content",
    show_default=True,
    help="Start of the picture: the photograph, or noise.",
)
@click.option(
    "--levels",
    type=click.IntRange(1, 6),
    default=1,
    show_default=True,
    help="Pyramid levels, coarse to fine.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of the noise.")
@click.option(
    "--log",
    type=PATH,
    metavar="DIR",
    help="Write losses and pictures for TensorBoard to this folder.",
)
@click.option(
    "--log-every",
    type=click.IntRange(1),
    default=25,
    show_default=True,
    help="Iterations between two pictures in the log.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
@device_option
@verbose_option
def optimize(
    content: Path,
    style: Path | None,
    output: Path,
    config_path: Path | None,
    overrides: tuple[str, ...],
    size: int,
    iterations: int,
    method: str,
    start: str,
    levels: int,
    seed: int,
    log: Path | None,
    log_every: int,
    overwrite: bool,
    device: str,
) -> None:
    """Stylize one picture by optimizing its pixels: the slow reference (Gatys et al.)."""
    check_style_is_named(style, config_path)
    check_replaceable(output, overwrite)
    from stylize.build import build_objective
    from stylize.losses.summary import headline_terms
    from stylize.losses.terms import TOTAL
    from stylize.optimization.gatys import OptimizationConfig
    from stylize.optimization.gatys import optimize as optimized
    from stylize.pictures.formats import format_of
    from stylize.pictures.picture import Picture, limited_size, to_tensor
    from stylize.pictures.raster import raster_of
    from stylize.pictures.reading import open_picture
    from stylize.pictures.writing import write_raster
    from stylize.system.devices import choose_device

    format_of(output)
    make_parent(output)
    keep_freed_memory()
    objective = objective_of(config_path, style, overrides)
    optimization = OptimizationConfig.model_validate(
        {"iterations": iterations, "method": method, "start": start, "levels": levels, "seed": seed}
    )
    with open_picture(content) as opened:
        photograph = to_tensor(opened.read_rgb(limited_size(opened.header.size, size)))
        with opened.read(max_size_px=size) as raster:
            alpha, metadata = raster.picture().alpha, raster.metadata
    target = choose_device(device)
    loss, weights = build_objective(objective)
    logger.info("VGG-19 weights: %s; %d×%d px", weights, *photograph.shape[:0:-1])
    iterates = optimized(loss.to(target), photograph[None].to(target), optimization)
    for iterate in _shown(iterates, iterations, log, log_every):
        last = iterate
    terms = ", ".join(f"{name} {last.terms[name]:.4f}" for name in (TOTAL, *headline_terms()))
    logger.info("after %d iterations: %s", last.iteration, terms)
    with raster_of([Picture(last.picture[0].cpu(), alpha)], metadata) as result:
        write_raster(output, result)
    click.echo(output)


def _shown(iterates: Iterator[Iterate], iterations: int, log: Path | None, log_every: int) -> Iterator[Iterate]:
    """Yield the iterates, and show them in a bar and in TensorBoard."""
    from tqdm import tqdm

    from stylize.losses.summary import progress_text

    with ExitStack() as stack:
        events = None if log is None else stack.enter_context(closing(_events(log)))
        bar = stack.enter_context(tqdm(total=iterations, unit="iteration", disable=not sys.stderr.isatty()))
        for iterate in iterates:
            bar.update(iterate.iteration - bar.n)
            bar.set_postfix_str(progress_text(iterate.terms))
            if events is not None:
                _record(events, iterate, picture=iterate.iteration % log_every == 0 or iterate.iteration == iterations)
            yield iterate


def _events(log: Path) -> EventFile:
    from stylize.training.tensorboard import EventFile

    make_parent(log / "events")
    try:
        return EventFile(log)
    except OSError as error:
        raise StylizeError(f"{log}: cannot be written to ({error.strerror})") from error


def _record(events: EventFile, iterate: Iterate, *, picture: bool) -> None:
    for name, value in iterate.terms.items():
        events.scalar(f"optimization/{name}", value, iterate.iteration)
    if picture:
        events.image("optimization/picture", iterate.picture[0].cpu(), iterate.iteration)
    with suppress(OSError):  # a full disk: the records wait
        events.flush()
