"""Where output files go."""

from __future__ import annotations

import os
from pathlib import Path

from stylize.errors import StylizeError


def check_replaceable(target: Path, overwrite: bool) -> None:
    """Check that a file may be written.

    Raises:
        StylizeError: It exists and must not be replaced.
    """
    if target.exists() and not overwrite:
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


def temporary_folder(target: Path) -> Path:
    """The folder for temporary files of large pictures: `TMPDIR` if set, else the nearest existing one above a file."""
    if "TMPDIR" in os.environ:
        return Path(os.environ["TMPDIR"])
    return next(folder for folder in target.absolute().parents if folder.is_dir())
