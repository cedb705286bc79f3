"""Where output files go."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

from stylize.errors import StylizeError, reason_of

logger = logging.getLogger("stylize")


@lru_cache(maxsize=8)
def _tell_once(message: str) -> None:
    logger.warning("%s", message)


def check_replaceable(target: Path, overwrite: bool) -> None:
    """Check that a file may be written.

    Raises:
        StylizeError: It exists and must not be replaced, or it cannot be looked at.
    """
    try:
        exists = target.exists()
    except OSError as error:
        raise StylizeError(f"{target}: cannot be written ({reason_of(error)})") from error
    if exists and not overwrite:
        raise StylizeError(f"{target}: is there already; --overwrite replaces it")


def make_parent(target: Path) -> None:
    """Create the folder of a file, if it does not exist.

    Raises:
        StylizeError: It cannot be created or written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StylizeError(f"{target.parent}: is a file, must be a folder") from error
    except OSError as error:
        raise StylizeError(f"{target.parent}: cannot be created ({error.strerror})") from error
    if not os.access(target.parent, os.W_OK):
        raise StylizeError(f"{target.parent}: cannot be written to")


def is_folder(path: Path) -> bool:
    """Return whether there is a folder at this place; not if it cannot be looked at."""
    return os.path.isdir(path)  # noqa: PTH112  `Path.is_dir` raises errors for names too long and closed folders


def is_file(path: Path) -> bool:
    """Return whether there is a file at this place; not if it cannot be looked at."""
    return os.path.isfile(path)  # noqa: PTH113  likewise


def expanded(path: str) -> Path:
    """A path with `~` and `~user` replaced by the home folder.

    Raises:
        StylizeError: There is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise StylizeError(f"{path}: no home folder is known for it; write the whole path") from error


def temporary_folder(target: Path) -> Path:
    """The folder for temporary files of large pictures: `TMPDIR` if it can be used, else the nearest above a file."""
    if "TMPDIR" in os.environ:
        named = Path(os.environ["TMPDIR"])
        if is_folder(named) and os.access(named, os.W_OK | os.X_OK):
            return named
        _tell_once(f"TMPDIR: {named} is no folder that can be written to; temporary files go beside the outputs")
    return next(folder for folder in target.absolute().parents if is_folder(folder))
