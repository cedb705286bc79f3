"""The photographs of a study: parted once, so that all its runs train on the same and are measured by the same."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from stylize.config import RunConfig
from stylize.errors import StylizeError
from stylize.pictures.find import find_images
from stylize.pictures.picture import Picture, to_tensor
from stylize.pictures.reading import read_rgb
from stylize.pictures.writing import write_picture
from stylize.training.photographs import find_photographs, validation_images

QUALITY = 95


class Parted(NamedTuple):
    """Two folders of photographs, none in both."""

    training: Path
    held_out: Path

    def changes(self) -> dict[str, object]:
        """The keys of a config by which a run trains on the one and is measured by the other."""
        return {"content.path": str(self.training), "content.validation": str(self.held_out), "content.limit": None}


def part(config: RunConfig, folder: Path) -> Parted:
    """Lay the photographs of a config into two folders below `folder`, as links where the system has them.

    Raises:
        StylizeError: There are none, none is held out, or they cannot be laid there.
    """
    found = find_photographs(config.content, config.seed)
    if not found.validation:
        raise StylizeError("content.validation: got 0, must be at least 1: a study measures held-out photographs")
    key = [str(path) for path in (*found.training, "|", *found.validation)]
    place = folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
    return Parted(linked(found.training, place / "training"), linked(found.validation, place / "held-out"))


def drawn(parted: Parted, count: int, seed: int) -> Parted:
    """The same with that many of the photographs to train on, drawn by the seed."""
    files = find_images(parted.training)
    chosen = random.Random(f"subset {seed}").sample(files, min(count, len(files)))
    return Parted(linked(sorted(chosen), parted.training.parent / f"training-{count}-seed-{seed}"), parted.held_out)


def changed(parted: Parted, name: str, shorter_side_px: int, change: Callable[[Image.Image], Image.Image]) -> Parted:
    """The same photographs, resized and changed; files that cannot be read are left out."""

    def fill(source: Path) -> Callable[[Path], None]:
        def write(target: Path) -> None:
            for file in tqdm(find_images(source), unit="photograph", desc=name, disable=not sys.stderr.isatty()):
                with suppress(StylizeError):
                    picture = to_tensor(change(read_rgb(file, shorter_side_px)))
                    write_picture(target / f"{file.stem}.jpg", Picture(picture), quality=QUALITY)

        return write

    training, held_out = (_made(folder.parent / f"{folder.name}-{name}", fill(folder)) for folder in parted)
    return Parted(training, held_out)


def held_out_squares(parted: Parted, side_px: int) -> list[Tensor]:
    """The held-out photographs as validation takes them: centred squares, `(3, side, side)` in [0, 1]."""
    return validation_images(find_images(parted.held_out), side_px)


def linked(files: Sequence[Path], folder: Path) -> Path:
    """A folder in which these files stand under numbered names."""

    def write(target: Path) -> None:
        for i, file in enumerate(files):
            _link(file, target / f"{i:05d}-{file.name}")

    return _made(folder, write)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except (OSError, NotImplementedError):  # Windows asks for a right; some file systems have no links
        shutil.copyfile(source, target)


def _made(folder: Path, fill: Callable[[Path], None]) -> Path:
    """A folder that is there whole, or not at all."""
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            begun = Path(temporary, "new")
            begun.mkdir()
            fill(begun)
            begun.replace(folder)
    except OSError as error:
        raise StylizeError(f"{folder}: cannot be written ({error.strerror})") from error
    return folder
