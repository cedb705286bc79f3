"""Paint files and folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylize.errors import StylizeError
from stylize.inference.file_painter import FileOptions, FilePainter, OnProgress
from stylize.inference.pipeline import WorkItem, process
from stylize.inference.stylizer import Stylizer
from stylize.pictures.find import find_images
from stylize.pictures.picture import limited_size
from stylize.pictures.reading import read_header
from stylize.system.files import remove_abandoned


@dataclass(frozen=True)
class Job:
    """One picture to paint: the file of the photograph, and the file of the stylized picture."""

    source: Path
    target: Path


def plan_jobs(inputs: Sequence[Path], output: Path | None, style: str, recursive: bool) -> list[Job]:
    """Find the photographs and choose the file of each stylized picture.

    Args:
        inputs: Files and folders.
        output: A file, or a folder for several pictures; None: `<image>.<style>.<suffix>` beside each photograph.
        style: Name of the style.
        recursive: Whether to search the folders below the given ones.

    Raises:
        StylizeError: A folder holds no images, or the output cannot hold the pictures. Missing files are not noticed.
    """
    photographs = [found for path in inputs for found in _find(path, style, recursive)]
    if output is None:
        return [Job(p.file, default_target(p.file, style)) for p in photographs]
    many = len(photographs) > 1 or any(path.is_dir() for path in inputs)
    if not many and not output.is_dir() and output.suffix:
        return [Job(photographs[0].file, output)]
    if output.is_file():
        raise StylizeError(f"-o: {output} is a file, must be a folder for several pictures")
    jobs = [Job(p.file, output / p.relative) for p in photographs]
    _check_distinct(jobs)
    return jobs


@dataclass(frozen=True)
class _Found:
    file: Path
    relative: Path  # to the folder that was given


def _find(path: Path, style: str, recursive: bool) -> list[_Found]:
    if not path.is_dir():
        return [_Found(path, Path(path.name))]
    files = [file for file in find_images(path, recursive=recursive) if not _is_painted(file, style)]
    if not files:
        hint = "" if recursive else "; --recursive searches the folders below it"
        raise StylizeError(f"{path}: holds no images{hint}")
    return [_Found(file, file.relative_to(path)) for file in files]


def default_target(source: Path, style: str) -> Path:
    """The file of the stylized picture if nobody asks for another one.

    >>> default_target(Path("a/b.jpg"), "dots").as_posix()
    'a/b.dots.jpg'
    """
    return source.with_name(f"{source.stem}.{style}{source.suffix}")


def _is_painted(file: Path, style: str) -> bool:
    """Whether a file is an earlier output of this style beside its photograph."""
    photograph = file.with_name(file.stem.removesuffix(f".{style}") + file.suffix)
    return photograph != file and photograph.exists()


def _check_distinct(jobs: Sequence[Job]) -> None:
    sources: dict[Path, Path] = {}
    for job in jobs:
        if job.target in sources:
            raise StylizeError(f"-o: {sources[job.target]} and {job.source} would both become {job.target}")
        sources[job.target] = job.source


def photograph_sizes(jobs: Iterable[Job], max_size_px: int | None) -> Iterator[tuple[int, int]]:
    """Width and height in px of every photograph, limited, by the headers of the files; unreadable ones are skipped."""
    for job in jobs:
        with suppress(StylizeError):  # painting meets it again and reports it
            yield limited_size(read_header(job.source).size, max_size_px)


def training_crop_px(config: Mapping[str, Any]) -> int | None:
    """Side of the training crops in px, from a training configuration; None if it is not given.

    >>> training_crop_px({"content": {"crop": 256}}), training_crop_px({})
    (256, None)
    """
    content = config.get("content")
    crop_px = content.get("crop") if isinstance(content, dict) else None
    return crop_px if isinstance(crop_px, int) and crop_px > 0 else None


def paint_files(
    jobs: Sequence[Job], stylizer: Stylizer, options: FileOptions, on_progress: OnProgress = lambda share: None
) -> Iterator[WorkItem]:
    """Paint files; one that fails does not stop the others.

    Args:
        jobs: What to paint.
        stylizer: Paints.
        options: How to read, paint and write.
        on_progress: Called with each share of a picture that was painted in strips; the shares add up to 1.

    Returns:
        The work items in the order of the jobs, each as soon as it is written or has failed, with `error` set.
    """
    for folder in {job.target.parent for job in jobs}:
        remove_abandoned(folder)
    painter = FilePainter(stylizer, options, on_progress)
    items = [WorkItem(job.source, job.target) for job in jobs]
    if len(items) == 1:  # without threads: nothing is left to do beside it
        painter.paint([painter.read(items[0])])
        painter.write(items[0])
        yield items[0]
        return
    yield from process(items, painter, stylizer.compute)
    painter.teller.finish()
