"""Where output goes."""

from __future__ import annotations

import os
from pathlib import Path

from stylize.errors import StylizeError


def check_replaceable(target: Path, overwrite: bool) -> None:
    """See that a file may be written.

    Raises:
        StylizeError: It is there, and is not to be replaced.
    """
    if target.exists() and not overwrite:
        raise StylizeError(f"{target}: is there already; --overwrite replaces it")


def make_parent(target: Path) -> None:
    """Make the folder of a file.

    Raises:
        StylizeError: It cannot be made or written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StylizeError(f"{target.parent}: is a file, must be a folder") from error
    except OSError as error:
        raise StylizeError(f"{target.parent}: cannot be created ({error.strerror})") from error
    if not os.access(target.parent, os.W_OK):
        raise StylizeError(f"{target.parent}: cannot be written to")
