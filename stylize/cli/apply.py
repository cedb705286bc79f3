"""`stylize apply`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylize.cli.options import PATH, FiniteRange, device_option, verbose_option
from stylize.errors import StylizeError, listed, reason_of, shown
from stylize.system.places import temporary_folder

if TYPE_CHECKING:
    from tqdm import tqdm

    from stylize.generators import Generator
    from stylize.inference.file_painter import FileOptions
    from stylize.inference.jobs import Job
    from stylize.inference.stylizer import Stylizer
    from stylize.system.compute import Compute

logger = logging.getLogger("stylize")
SLASHES = ("/", os.sep)


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=PATH, metavar="INPUT...")
@click.option(
    "--model",
    metavar="FILE|RUN_DIR|NAME",
    help="Model file, run folder or built-in style. Default: the newest model under runs/, else a built-in style.",
)
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="Output file, or output folder: for several pictures, or where PATH ends with a slash. "
    "Default: <image>.<style>.<suffix> beside the input.",
)
@click.option(
    "--style",
    metavar="NAME|BLEND",
    help="Of a model with several styles: the name of one, or a blend such as 'wave:0.6,mosaic:0.4'.",
)
@click.option(
    "--sheet",
    is_flag=True,
    help="Paint one sheet of each picture, <image>.sheet.<suffix>: all styles of the model, and a row of blends "
    "between two of them, which --style names ('wave:1,mosaic:1'; default: the first two).",
)
@click.option(
    "--strength",
    type=FiniteRange(0, 1),
    default=1.0,
    show_default=True,
    help="Mixture of photograph (0) and stylized picture (1).",
)
@click.option("--keep-colors", is_flag=True, help="Keep the colors of the photograph; only its luminance is painted.")
@click.option("--max-size", type=click.IntRange(16), metavar="PX", help="Shrink larger pictures to this longer side.")
@click.option(
    "--max-memory",
    type=FiniteRange(0, min_open=True),
    metavar="GIB",
    help="Memory budget of the whole process on the compute device; larger pictures are painted in strips. "
    "Default: half of the free memory.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    metavar="N",
    help="Accept images of up to N pixels (default 179 million; guards against decompression bombs).",
)
@click.option(
    "--stroke-scale",
    type=FiniteRange(1, 8),
    default=1.0,
    show_default=True,
    metavar="F",
    help="Paint strokes F times as large; edges stay as sharp as in the photograph.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Floating-point precision of the network; auto: bf16 or fp16 where the device has matrix units for it.",
)
@click.option(
    "--compile",
    "compilation",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="torch.compile for frequent image sizes; auto: where it pays off.",
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="Encoder quality for JPEG, WebP and AVIF.",
)
@click.option(
    "--background",
    metavar="COLOR",
    help="Lay transparency on this color (white, '#rrggbb') before painting. Default: it is kept; where the output's "
    "format has none, white.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of the noise of a texture network: another seed, another picture. Default: that of the model.",
)
@click.option(
    "--refine",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Refine each painting by N iterations of L-BFGS on its pixels against the model's style: slow, and finer.",
)
@click.option(
    "--refine-vgg",
    default="compact",
    show_default=True,
    metavar="VGG",
    help="Loss network of --refine: compact, imagenet or a file; see loss.vgg of a config.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing output files.")
@click.option("--recursive", is_flag=True, help="Also search the subfolders of input folders.")
@device_option
@verbose_option
def apply(
    inputs: tuple[Path, ...],
    model: str | None,
    output: str | None,
    style: str | None,
    sheet: bool,
    strength: float,
    keep_colors: bool,
    max_size: int | None,
    max_memory: float | None,
    max_pixels: int | None,
    stroke_scale: float,
    precision: str,
    compilation: str,
    quality: int,
    background: str | None,
    seed: int | None,
    refine: int,
    refine_vgg: str,
    overwrite: bool,
    recursive: bool,
    device: str,
) -> None:
    """Paint photographs with a trained model.

    INPUT is an image file or a folder of images. An animation is painted frame by frame.
    """
    from stylize.inference.compilation import choose_shapes
    from stylize.inference.file_painter import FileOptions
    from stylize.inference.jobs import photograph_sizes, plan_jobs, training_crop_px
    from stylize.inference.options import PaintOptions, color_of
    from stylize.inference.plans import find_budget
    from stylize.inference.style_sheet import CELL_PX
    from stylize.inference.stylizer import Stylizer
    from stylize.models.blends import blend_of
    from stylize.models.file import load_model
    from stylize.models.find import find_model
    from stylize.system.compiler import keep_compiled_code
    from stylize.system.compute import Compute

    _refuse_streams(inputs, output)
    color = None if background is None else color_of("--background", background)
    found = find_model(model)
    generator, card = load_model(found.path, None if sheet or style else found.style)
    pair = _pair(style, card.all_styles) if sheet else None
    if sheet and refine:
        raise click.UsageError("--sheet and --refine exclude each other")
    blend = None if sheet else blend_of(style, card.all_styles, "--style")
    label = "sheet" if blend is None else blend.label
    logger.info("model: %s, style %s, %s", found.path, card.style if blend is None else label, found.reason)
    if seed is not None:
        generator.seed_noise(seed)
    place = None if output is None else Path(output)
    jobs = plan_jobs(inputs, place, label, recursive, into_folder=output is not None and output.endswith(SLASHES))
    compute = Compute.choose(device, precision)
    stylizer = None
    if blend is not None:
        shapes = choose_shapes(compilation, compute, photograph_sizes(jobs, max_size), stroke_scale)
        if shapes:
            keep_compiled_code()
        refiner = None
        if refine:
            from stylize.refining import refiner_of

            refiner = refiner_of(card, blend, refine, refine_vgg, compute.device)
        stylizer = Stylizer(generator.blended(blend.shares), compute, shapes, refiner)
    options = FileOptions(  # the budget is what is left beside the network and its kernels
        budget=find_budget(compute.device, temporary_folder(jobs[0].target), max_memory),
        paint=PaintOptions(strength, keep_colors, max_size or (CELL_PX if sheet else None), stroke_scale),
        max_pixels=max_pixels,
        quality=quality,
        overwrite=overwrite,
        crop_px=training_crop_px(card.config),
        style=label,
        background=color,
    )
    if stylizer is not None:
        _paint(jobs, stylizer, options)
    elif pair is not None:
        _paint_sheets(jobs, generator, card.all_styles, pair, compute, options)


def _paint_sheets(
    jobs: Sequence[Job],
    generator: Generator,
    styles: Sequence[str],
    pair: tuple[str, str],
    compute: Compute,
    options: FileOptions,
) -> None:
    """Write a sheet of all styles for each picture; failures are reported at the end.

    Raises:
        StylizeError: A picture cannot be read, or a sheet cannot be written.
    """
    from stylize.inference.style_sheet import style_sheet
    from stylize.pictures.picture import Picture
    from stylize.pictures.raster import Metadata, raster_of
    from stylize.pictures.reading import read_raster
    from stylize.pictures.writing import write_raster
    from stylize.system.places import check_replaceable

    failures: list[str] = []
    for source, target in ((job.source, job.target) for job in jobs):
        try:
            check_replaceable(target, options.overwrite)
            with read_raster(source, max_size_px=options.paint.max_size_px, max_pixels=options.max_pixels) as raster:
                photograph = raster.picture()
            sheet = style_sheet(photograph, generator, styles, pair, options.paint, compute)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_raster(target, raster_of([Picture(sheet)], Metadata()), quality=options.quality, style=options.style)
            click.echo(shown(target))
        except (StylizeError, OSError) as error:
            failures.append(str(error) if isinstance(error, StylizeError) else f"{target}: {reason_of(error)}")
    _raise_failures(failures, len(jobs))


def _pair(style: str | None, styles: Sequence[str]) -> tuple[str, str]:
    """The two styles between which a sheet blends.

    Raises:
        StylizeError: The model has one style, or others than two are named.
    """
    from stylize.models.blends import blend_of

    if len(styles) == 1:
        raise StylizeError(f"--sheet: this model has one style, '{styles[0]}', must have several")
    if style is None:
        return styles[0], styles[1]
    shares = blend_of(style, styles, "--style").shares
    named = [name for name, share in zip(styles, shares, strict=True) if share]
    if len(named) != 2:
        raise StylizeError(f"--style: got {len(named)} styles with --sheet, must be the two to blend: 'a:1,b:1'")
    return named[0], named[1]


def _refuse_streams(inputs: Sequence[Path], output: str | None) -> None:
    """Refuse "-": a picture is read more than once, and written as a whole or not at all."""
    if Path("-") in inputs and not Path("-").exists():
        raise StylizeError("-: standard input is not read, must be a file or a folder")
    if output == "-":
        raise StylizeError("-o: got '-', but standard output is not written to, must be a file or a folder")


def _paint(jobs: Sequence[Job], stylizer: Stylizer, options: FileOptions) -> None:
    """Paint all pictures and print the written files; failures are reported at the end.

    Raises:
        StylizeError: At least one picture failed.
    """
    from tqdm import tqdm

    from stylize.inference.jobs import paint_files

    failures: list[str] = []
    with Progress(len(jobs)) as progress:
        for item in paint_files(jobs, stylizer, options, progress.add):
            if item.error is None:
                tqdm.write(shown(item.target), file=sys.stdout)
            else:
                failures.append(str(item.error))
            progress.next()
    _raise_failures(failures, len(jobs))


def _raise_failures(failures: Sequence[str], count: int) -> None:
    if count == 1 and failures:
        raise StylizeError(failures[0])
    if failures:
        raise StylizeError(f"{len(failures)} of {count} pictures failed: {listed(failures)}")


class Progress:
    """A progress bar over all pictures; a single picture gets one only if it is painted in strips.

    Args:
        pictures: Number of pictures.
    """

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self._done = 0
        self._bar: tqdm[Any] | None = None
        if pictures > 1:
            self._show()

    def add(self, share: float) -> None:
        """Advance by a share of a picture."""
        if self._bar is None:
            self._show()
        if self._bar is not None:
            self._bar.update(min(share, self._done + 1 - self._bar.n))

    def next(self) -> None:
        """Advance to the next picture: one is done or has failed."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)

    def _show(self) -> None:
        from tqdm import tqdm

        shape = "{l_bar}{bar}| {n:.2f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
        self._bar = tqdm(
            total=self.pictures, unit="image", bar_format=shape, disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
