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

from stylize.cli.options import device_option, verbose_option
from stylize.cli.places import check_replaceable, make_parent
from stylize.errors import StylizeError

if TYPE_CHECKING:
    from tqdm import tqdm

    from stylize.inference.pipeline import Piece
    from stylize.inference.plans import Room
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
    "--max-memory",
    type=click.FloatRange(0, min_open=True),
    metavar="GIB",
    help="Of the device, for all; larger pictures are painted in strips. Default: half of what is free.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    metavar="N",
    help="Take files of so many pixels; default: 179 million, beyond which a file may be meant to do harm.",
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
@verbose_option
def apply(
    inputs: tuple[Path, ...],
    model: str | None,
    output: Path | None,
    strength: float,
    keep_colors: bool,
    max_size: int | None,
    max_memory: float | None,
    max_pixels: int | None,
    stroke_scale: float,
    precision: str,
    compilation: str,
    quality: int,
    overwrite: bool,
    recursive: bool,
    device: str,
) -> None:
    """Paint photographs with a trained model."""
    from stylize.inference.compilation import choose_shapes
    from stylize.inference.plans import find_room
    from stylize.inference.stylizer import Paint, Stylizer
    from stylize.models.file import load_model
    from stylize.models.find import find_model
    from stylize.system.devices import choose_device, choose_precision, keep_compiled_code

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
    room = find_room(target_device, temporary_folder(jobs[0].target), max_memory)
    settings = Settings(
        stylizer,
        Paint(strength, keep_colors, max_size, stroke_scale),
        room,
        max_pixels,
        quality,
        overwrite,
        StrokeHint(_crop_px(card.config), stroke_scale),
    )
    paint_all(jobs, settings)


class Settings(NamedTuple):
    """What all pictures of a command have in common."""

    stylizer: Stylizer
    paint: Paint
    room: Room
    max_pixels: int | None
    quality: int
    overwrite: bool
    hint: StrokeHint


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
    from stylize.pictures.find import find_images

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


def temporary_folder(target: Path) -> Path:
    """Where a large picture's temporary files go: where `TMPDIR` says, else beside the output, where there is room."""
    if "TMPDIR" in os.environ:
        return Path(os.environ["TMPDIR"])
    return next(folder for folder in target.absolute().parents if folder.is_dir())


def _sizes(jobs: Sequence[Job], max_size_px: int | None) -> Iterator[tuple[int, int]]:
    """Width and height of every picture, limited, by the files' headers; those without one fail later."""
    from stylize.pictures.picture import limited_size
    from stylize.pictures.reading import read_header

    for job in jobs:
        with suppress(StylizeError):
            yield limited_size(read_header(job.source).size, max_size_px)


def paint_all(jobs: Sequence[Job], settings: Settings) -> None:
    """Paint every picture; those that fail are told at the end, the others are done.

    Raises:
        StylizeError: At least one failed.
    """
    from tqdm import tqdm

    from stylize.inference.pipeline import Painting, painted_files
    from stylize.system.files import remove_abandoned

    failures: list[str] = []
    for folder in {job.target.parent for job in jobs}:
        remove_abandoned(folder)

    def read(job: Job) -> Piece:
        return _read(job, settings)

    def write(piece: Piece) -> None:
        _write_(piece, settings)

    with Progress(len(jobs)) as progress:
        painting = Painting(settings.stylizer, settings.paint, settings.room, progress.add)
        for piece in painted_files(jobs, read, write, _is_small, painting):
            if piece.error is None:
                tqdm.write(str(piece.target), file=sys.stdout)
            else:
                failures.append(str(piece.error))
            progress.next()
    if len(jobs) == 1 and failures:
        raise StylizeError(failures[0])
    if failures:
        raise StylizeError(f"{len(failures)} of {len(jobs)} pictures failed: {'; '.join(failures)}")


class Progress:
    """A bar over all pictures, which large ones move in between; a single picture has one only if it is large.

    Args:
        pictures: Their number.
    """

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self._done = 0
        self._bar: tqdm[Any] | None = None
        if pictures > 1:
            self._show()

    def add(self, share: float) -> None:
        """Move by a share of a picture."""
        if self._bar is None:
            self._show()
        if self._bar is not None:
            self._bar.update(min(share, self._done + 1 - self._bar.n))

    def next(self) -> None:
        """A picture is done, or failed."""
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


def _read(job: Job, settings: Settings) -> Piece:
    """The photograph of a job, in the size that is painted, if it can be read and its place be written to."""
    from stylize.inference.large import raster_place
    from stylize.inference.pipeline import Piece
    from stylize.inference.strokes import shrunk_size
    from stylize.pictures.formats import format_of
    from stylize.pictures.picture import limited_size
    from stylize.pictures.reading import read_header, read_raster

    piece = Piece(*job)
    paint, room, max_pixels = settings.paint, settings.room, settings.max_pixels
    try:
        check_replaceable(job.target, settings.overwrite)
        header = read_header(job.source)
        format_of(job.target)
        make_parent(job.target)
        size = limited_size(header.size, paint.max_size_px)
        piece.large = _is_large(job, size, settings)
        place = raster_place(header.bytes_of(size), room)
        piece.raster = read_raster(job.source, max_size_px=paint.max_size_px, max_pixels=max_pixels, folder=place)
        if piece.large and paint.stroke_scale != 1:
            side_px = max(shrunk_size(size, paint.stroke_scale))
            piece.small = read_raster(job.source, max_size_px=side_px, max_pixels=max_pixels, folder=place)
        settings.hint.consider(job.source, size)
    except StylizeError as error:
        piece.close()
        piece.error = error
    return piece


def _is_large(job: Job, size: tuple[int, int], settings: Settings) -> bool:
    """Whether a photograph of this width and height is too large to be painted as a whole."""
    from stylize.inference.large import fits_whole

    try:
        return not fits_whole(settings.stylizer, size, settings.paint, settings.room)
    except StylizeError as error:
        raise StylizeError(f"{job.source}: {error}") from error


def _is_small(job: Job) -> bool:
    """Whether the photograph may be in memory beside others, by its file's header; what has none is told when read."""
    from stylize.inference.pipeline import is_small_size
    from stylize.pictures.reading import read_header

    try:
        header = read_header(job.source)
    except StylizeError:
        return True
    return is_small_size(header.size, header.frames)


def _write_(piece: Piece, settings: Settings) -> None:
    """Write a painted picture, and forget it."""
    from stylize.pictures.writing import write_raster

    if piece.raster is None:
        return
    try:
        check_replaceable(piece.target, settings.overwrite)  # the same photograph may have been given twice
        write_raster(piece.target, piece.raster, quality=settings.quality)
    except StylizeError as error:
        piece.error = error
    finally:
        piece.close()
