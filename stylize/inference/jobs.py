"""Paint files and folders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylize.errors import StylizeError
from stylize.inference.file_painter import FileOptions, FilePainter, OnProgress
from stylize.inference.pipeline import WorkItem, process
from stylize.inference.stylizer import Stylizer
from stylize.pictures.find import Search, search_folder
from stylize.pictures.formats import FORMATS, SIGNATURE_BYTES, format_of_content, has_image_suffix
from stylize.pictures.picture import limited_size
from stylize.pictures.reading import read_header
from stylize.system.files import remove_abandoned
from stylize.system.places import is_file, is_folder

logger = logging.getLogger("stylize")
WITHOUT_MARK = frozenset(suffix for row in FORMATS if row.name == "JXL" for suffix in row.suffixes)


@dataclass(frozen=True)
class Job:
    """One picture to paint: the file of the photograph, and the file of the stylized picture."""

    source: Path
    target: Path


def plan_jobs(
    inputs: Sequence[Path], output: Path | None, style: str, recursive: bool, *, into_folder: bool = False
) -> list[Job]:
    """Find the photographs and choose the file of each stylized picture.

    In folders, pictures that are painted already, and the output folder, are left alone; what is left out is logged.

    Args:
        inputs: Files and folders.
        output: A file, or a folder for several pictures; None: `<image>.<style>.<suffix>` beside each photograph.
        style: Name of the style.
        recursive: Whether to search the folders below the given ones.
        into_folder: Whether the output is a folder, whatever it is called.

    Raises:
        StylizeError: A folder holds no images, or the output cannot hold the pictures. Missing files are not noticed.
    """
    photographs = [found for path in inputs for found in _find(path, output, style, recursive)]
    if output is None:
        return [Job(p.file, default_target(p.file, style)) for p in photographs]
    many = into_folder or len(photographs) > 1 or any(map(is_folder, inputs))
    if not many and not is_folder(output) and output.suffix:
        return [Job(photographs[0].file, output)]
    if is_file(output):
        raise StylizeError(f"-o: {output} is a file, must be a folder for several pictures")
    jobs = [Job(p.file, _writable(output / p.relative, p.file)) for p in photographs]
    _check_distinct(jobs)
    return jobs


@dataclass(frozen=True)
class _Found:
    file: Path
    relative: Path  # to the folder that was given


def _find(path: Path, output: Path | None, style: str, recursive: bool) -> list[_Found]:
    if not is_folder(path):  # what cannot be looked at is reported when it is read
        return [_Found(path, Path(path.name))]
    search = search_folder(path, recursive=recursive, without=_below(path, output))
    by_name = [file for file in search.images if _is_painted(file, style)]
    search.painted = sorted([*search.painted, *by_name])
    files = [file for file in search.images if file not in set(by_name)]
    for line in search.told():
        logger.info("%s", line)
    if not files:
        raise StylizeError(f"{path}: {_nothing_found(search, recursive)}")
    return [_Found(file, file.relative_to(path)) for file in files]


def _nothing_found(search: Search, recursive: bool) -> str:
    hint = "" if recursive else "; --recursive searches the folders below it"
    if search.closed == [search.folder]:
        return "cannot be read"
    return f"holds no images{' but painted ones' if search.painted else ''}{hint}"


def _below(folder: Path, output: Path | None) -> Path | None:
    """The output if it is a folder below the given one."""
    if output is None or not is_folder(output) or output.samefile(folder):
        return None
    return output if folder.resolve() in output.resolve().parents else None


def default_target(source: Path, style: str) -> Path:
    """The file of the stylized picture if nobody asks for another one.

    >>> default_target(Path("a/b.jpg"), "dots").as_posix()
    'a/b.dots.jpg'
    """
    if not has_image_suffix(source.name):
        named = _writable(source, source)
        return named.with_name(f"{source.name}.{style}{named.suffix}") if named != source else _beside(source, style)
    return _beside(source, style)


def _beside(source: Path, style: str) -> Path:
    return source.with_name(f"{source.stem}.{style}{source.suffix}")


def _writable(target: Path, source: Path) -> Path:
    """The target with the usual suffix of the photograph's format, if no format has its own."""
    if has_image_suffix(target.name):
        return target
    try:
        with source.open("rb") as file:
            image_format = format_of_content(file.read(SIGNATURE_BYTES))
    except OSError:  # reading meets it again and reports it
        return target
    return target if image_format is None else target.with_name(target.name + image_format.suffixes[0])


def _is_painted(file: Path, style: str) -> bool:
    """Whether a file without a mark is an earlier output beside its photograph, by its name.

    That is `x.<style>.bmp` beside `x.bmp`; where the format cannot hold a mark, of any style.
    """
    stem = file.stem.removesuffix(f".{style}")
    if stem == file.stem and file.suffix.lower() in WITHOUT_MARK:
        stem = stem.rpartition(".")[0] or stem
    photograph = file.with_name(stem + file.suffix)
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
        with suppress(OSError):  # writing meets it again and reports it
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
