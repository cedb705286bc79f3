"""Image files in folders."""

from __future__ import annotations

import os
from pathlib import Path

from stylize.pictures.formats import has_image_suffix


def find_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """Return every file in a folder that has the suffix of an image, sorted; hidden files and folders are skipped."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if recursive and not f.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".") and has_image_suffix(name)]
    return sorted(found)
