"""Image files in folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stylize.pictures.formats import SIGNATURE_BYTES, format_of_content, has_image_suffix
from stylize.pictures.mark import is_painted
from stylize.pictures.tiff_pages import is_raw_tiff

NAMED = 5  # files of a kind; the others are counted


@dataclass
class Search:
    """What was found in a folder.

    Attributes:
        folder: The folder.
        images: The image files, sorted.
        painted: Files that stylize has painted, which are not among the images.
        passed_over: Files that are no images.
        closed: Folders that cannot be read.
    """

    folder: Path
    images: list[Path] = field(default_factory=list)
    painted: list[Path] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)

    def told(self) -> Iterator[str]:
        """Yield a line about every kind of file that was left out."""
        if self.closed:
            yield f"{self.folder}: cannot read {_counted(self.closed, 'folder', self.folder)}"
        if self.painted:
            yield f"{self.folder}: left alone {_counted(self.painted, 'painted picture', self.folder)}"
        if self.passed_over:
            yield f"{self.folder}: passed over {_counted(self.passed_over, 'file', self.folder)}"


def find_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """Return every image file in a folder, painted ones as well; see `search_folder`."""
    search = search_folder(folder, recursive=recursive, with_painted=True)
    return search.images


def search_folder(
    folder: Path,
    *,
    recursive: bool = True,
    with_painted: bool = False,
    distinct: bool = False,
    without: Path | None = None,
) -> Search:
    """Search a folder for image files; hidden files and folders are skipped.

    A file is an image if its suffix says so, or else its first bytes. Links to folders are followed, but every folder
    is searched once.

    Args:
        folder: The folder.
        recursive: Whether to search the folders below it.
        with_painted: Whether files that stylize has painted count as images.
        distinct: Whether links to files that are found are left out.
        without: A folder below it that is left out.
    """
    search = Search(folder)
    for path in _files(search, recursive, without):
        if not _is_image(path):
            search.passed_over.append(path)
        elif not with_painted and is_painted(path):
            search.painted.append(path)
        else:
            search.images.append(path)
    for found in (search.images, search.painted, search.passed_over, search.closed):
        found.sort()
    if distinct:
        search.images = list(_distinct(search.images))
    return search


def _files(search: Search, recursive: bool, without: Path | None) -> Iterator[Path]:
    """Yield the files of a folder; links to folders come last, so that a file has its own name where it has one."""
    ahead, links = [search.folder], list[Path]()
    seen = set() if without is None else {_identity(without)}
    seen.discard(_identity(search.folder))
    while ahead or links:
        folder = ahead.pop() if ahead else links.pop(0)
        identity = _identity(folder)
        if identity in seen and identity is not None:
            continue
        seen.add(identity)
        try:
            with os.scandir(folder) as scanned:
                entries = sorted((entry for entry in scanned if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            search.closed.append(folder)
            continue
        for entry in entries:
            path = Path(folder, entry.name)
            if not _is_folder(path):
                yield path
            elif recursive:
                (links if _is_link(entry) else ahead).append(path)


def _is_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink()
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:  # a link to nothing, or in a circle
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_image(path: Path) -> bool:
    if has_image_suffix(path.name):
        return True
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its other end
            return False
        with path.open("rb") as file:
            head = file.read(SIGNATURE_BYTES)
    except OSError:
        return False
    image_format = format_of_content(head)
    return image_format is not None and not (image_format.name == "TIFF" and is_raw_tiff(path, head))


def _distinct(files: Sequence[Path]) -> Iterator[Path]:
    """Yield the files without links to others of them."""
    seen = {_identity(path) for path in files if not path.is_symlink()}
    for path in files:
        if not path.is_symlink():
            yield path
        elif (identity := _identity(path)) is None or identity not in seen:
            seen.add(identity)
            yield path


def _counted(paths: Sequence[Path], kind: str, folder: Path) -> str:
    named = list(_names(paths[:NAMED], folder))
    more = [f"and {len(paths) - NAMED:,} more"] if len(paths) > NAMED else []
    return f"{len(paths):,} {kind}{'s' * (len(paths) != 1)}: {', '.join([*named, *more])}"


def _names(paths: Iterable[Path], folder: Path) -> Iterator[str]:
    for path in paths:
        name = str(path.relative_to(folder)) if path != folder else "itself"
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
        yield shown if len(shown) <= 60 else f"{shown[:29]}…{shown[-30:]}"
