"""`stylize apply`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from stylize.cli.options import device_option
from stylize.errors import StylizeError
from stylize.memory import use_large_pages

if TYPE_CHECKING:
    from stylize.inference.batches import Piece
    from stylize.inference.stylizer import Paint, Stylizer

logger = logging.getLogger("stylize")


class Job(NamedTuple):
    """One picture to paint."""

    source: Path
    target: Path


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT...")
@click.option(
    "--model",
    metavar="FILE|RUN_DIR|NAME",
    help="A model file, a run folder, or a built-in style; default: the newest under runs/, else a built-in one.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A file, or a folder for several; default: <image>.<style>.<suffix> beside the input.",
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="0: the photograph, 1: the painted picture.",
)
@click.option("--keep-colors", is_flag=True, help="Luminance from the painted picture, colour from the photograph.")
@click.option(
    "--max-size", type=click.IntRange(16), metavar="PX", help="Shrink larger pictures to this longer side first."
)
@click.option(
    "--stroke-scale",
    type=click.FloatRange(1, 8),
    default=1.0,
    show_default=True,
    metavar="F",
    help="Paint strokes F times as large, with the photograph's edges.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Of the network's arithmetic.",
)
@click.option(
    "--compile",
    "compilation",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Compile the network for the sizes that come; auto: where they are many enough to repay it.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of JPEG, WebP and AVIF output."
)
@click.option("--overwrite", is_flag=True, help="Replace output files that are there already.")
@click.option("--recursive", is_flag=True, help="Search folders below the given ones, too.")
@device_option
def apply(
    inputs: tuple[Path, ...],
    model: str | None,
    output: Path | None,
    strength: float,
    keep_colors: bool,
    max_size: int | None,
    stroke_scale: float,
    precision: str,
    compilation: str,
    quality: int,
    overwrite: bool,
    recursive: bool,
    device: str,
) -> None:
    """Paint photographs with a trained model."""
    if len(inputs) > 1 or inputs[0].is_dir():  # the first large pages take long to find: many pictures repay it
        use_large_pages()
    from stylize.devices import choose_device, choose_precision, keep_compiled_code
    from stylize.inference.compilation import choose_shapes
    from stylize.inference.models import find_model
    from stylize.inference.stylizer import Paint, Stylizer
    from stylize.model_file import load_model

    found = find_model(model)
    generator, card = load_model(found.path)
    logger.info("model: %s, style %s, %s", found.path, card.style, found.reason)
    jobs = plan_jobs(inputs, output, card.style, recursive)
    target_device = choose_device(device)
    precision = choose_precision(precision, target_device)
    compiled = choose_shapes(compilation, target_device, precision, _sizes(jobs, max_size), stroke_scale)
    if compiled:
        keep_compiled_code()
    stylizer = Stylizer(generator, target_device, precision, compiled)
    hint = StrokeHint(_crop_px(card.config), stroke_scale)
    paint_all(stylizer, jobs, Paint(strength, keep_colors, max_size, stroke_scale), quality, overwrite, hint)


class StrokeHint:
    """Tells once that a picture is far larger than what its model was trained on.

    Args:
        crop_px: Of the training; None: unknown, and nothing is told.
        scale: The stroke scale that was asked for.
    """

    def __init__(self, crop_px: int | None, scale: float) -> None:
        self.crop_px = crop_px
        self.scale = scale

    def consider(self, source: Path, size: tuple[int, int]) -> None:
        """Tell it of this picture, of this width and height in px, if it is one, and the first."""
        from stylize.inference.strokes import advised_scale

        if self.crop_px is None:
            return
        advised = advised_scale(size, self.crop_px, self.scale)
        if advised is None:
            return
        side_px = max(size) / self.scale
        logger.info(
            "%s: %.0f px are %.0f times the %d px that the model was trained on; "
            "--stroke-scale %d paints larger strokes", source, side_px, side_px / self.crop_px, self.crop_px, advised,
        )  # fmt: skip
        self.crop_px = None


def _crop_px(config: Mapping[str, Any]) -> int | None:
    """Of the training, as the model file says; None where it does not."""
    content = config.get("content")
    crop_px = content.get("crop") if isinstance(content, dict) else None
    return crop_px if isinstance(crop_px, int) and crop_px > 0 else None


def plan_jobs(inputs: Sequence[Path], output: Path | None, style: str, recursive: bool) -> list[Job]:
    """What is to be painted, and where each picture goes.

    Raises:
        StylizeError: A folder without images, a missing file among several aside; the output cannot hold them.
    """
    from stylize.images import find_images

    sources: list[tuple[Path, Path]] = []  # a file, and its place below the folder that was given
    for path in inputs:
        if not path.is_dir():
            sources.append((path, Path(path.name)))
            continue
        files = [f for f in find_images(path, recursive=recursive) if not _is_painted(f, style)]
        if not files:
            hint = "" if recursive else "; --recursive searches the folders below it"
            raise StylizeError(f"{path}: holds no images{hint}")
        sources += [(file, file.relative_to(path)) for file in files]
    if output is None:
        return [Job(s, s.with_name(f"{s.stem}.{style}{s.suffix}")) for s, _ in sources]
    many = len(sources) > 1 or any(path.is_dir() for path in inputs)
    if not many and not output.is_dir() and output.suffix:
        return [Job(sources[0][0], output)]
    if output.is_file():
        raise StylizeError(f"-o: {output} is a file, must be a folder for several pictures")
    jobs = [Job(s, output / place) for s, place in sources]
    _check_distinct(jobs)
    return jobs


def _is_painted(file: Path, style: str) -> bool:
    """Whether a file is an earlier output of this style beside its photograph."""
    stem = file.stem
    return stem.endswith(f".{style}") and file.with_name(stem.removesuffix(f".{style}") + file.suffix).exists()


def _check_distinct(jobs: Sequence[Job]) -> None:
    seen: dict[Path, Path] = {}
    for job in jobs:
        if job.target in seen:
            raise StylizeError(f"-o: {seen[job.target]} and {job.source} would both become {job.target}")
        seen[job.target] = job.source


def _sizes(jobs: Sequence[Job], max_size_px: int | None) -> Iterator[tuple[int, int]]:
    """Width and height of every picture, limited, by the files' headers; those without one fail later."""
    from stylize.images import image_size
    from stylize.inference.stylizer import limited_size

    for job in jobs:
        with suppress(StylizeError):
            yield limited_size(image_size(job.source), max_size_px)


def paint_all(
    stylizer: Stylizer, jobs: Sequence[Job], paint: Paint, quality: int, overwrite: bool, hint: StrokeHint
) -> None:
    """Paint every picture; those that fail are told at the end, the others are done.

    Raises:
        StylizeError: At least one failed.
    """
    from tqdm import tqdm

    from stylize.inference.batches import painted_files

    failures: list[str] = []
    hidden = len(jobs) == 1 or not sys.stderr.isatty()

    def read(job: Job) -> Piece:
        return _read(job, paint, overwrite, hint)

    def write(piece: Piece) -> None:
        _write_(piece, quality, overwrite)

    with tqdm(total=len(jobs), unit="image", disable=hidden, dynamic_ncols=True) as bar:
        for piece in painted_files(jobs, read, write, _is_small, stylizer, paint):
            if piece.error is None:
                tqdm.write(str(piece.target), file=sys.stdout)
            else:
                failures.append(str(piece.error))
            bar.update()
    if len(jobs) == 1 and failures:
        raise StylizeError(failures[0])
    if failures:
        raise StylizeError(f"{len(failures)} of {len(jobs)} pictures failed: {'; '.join(failures)}")


def _read(job: Job, paint: Paint, overwrite: bool, hint: StrokeHint) -> Piece:
    """The photograph of a job, in the size that is painted, if it can be read and its place be written to."""
    from stylize.images import format_of, read_picture
    from stylize.inference.batches import Piece
    from stylize.inference.stylizer import limit_size

    piece = Piece(*job)
    try:
        _check_replaceable(job.target, overwrite)
        picture = read_picture(job.source)
        format_of(job.target)
        _make_parent(job.target)
        piece.picture = limit_size(picture, paint.max_size_px)
        hint.consider(job.source, piece.picture.size)
    except StylizeError as error:
        piece.error = error
    return piece


def _is_small(job: Job) -> bool:
    """Whether the photograph may be in memory beside others, by its file's header; what has none is told when read."""
    from stylize.images import image_size
    from stylize.inference.batches import is_small_size

    try:
        return is_small_size(image_size(job.source))
    except StylizeError:
        return True


def _write_(piece: Piece, quality: int, overwrite: bool) -> None:
    """Write a painted picture, and forget it."""
    from stylize.images import write_picture

    picture, piece.picture = piece.picture, None
    if picture is None:
        return
    try:
        _check_replaceable(piece.target, overwrite)  # the same photograph may have been given twice
        write_picture(piece.target, picture, quality=quality)
    except StylizeError as error:
        piece.error = error


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise StylizeError(f"{target}: is there already; --overwrite replaces it")


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StylizeError(f"{target.parent}: is a file, must be a folder") from error
    except OSError as error:
        raise StylizeError(f"{target.parent}: cannot be created ({error.strerror})") from error
    if not os.access(target.parent, os.W_OK):
        raise StylizeError(f"{target.parent}: cannot be written to")
