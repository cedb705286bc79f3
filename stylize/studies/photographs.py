"""The photographs of a study: split once, so that all runs use the same training and held-out photographs."""

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


class Split(NamedTuple):
    """Two folders of photographs without a photograph in common."""

    training: Path
    held_out: Path

    def changes(self) -> dict[str, object]:
        """Return the config keys that make a run train on the first folder and validate on the second."""
        return {"content.path": str(self.training), "content.validation": str(self.held_out), "content.limit": None}


def split(config: RunConfig, folder: Path) -> Split:
    """Split the photographs of a config into two folders below `folder`, as links if the system has them.

    Raises:
        StylizeError: There are no photographs, none is held out, or the folders cannot be written.
    """
    found = find_photographs(config.content, config.seed)
    if not found.validation:
        raise StylizeError("content.validation: got 0, must be at least 1: a study measures held-out photographs")
    key = [str(path) for path in (*found.training, "|", *found.validation)]
    place = folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
    return Split(linked(found.training, place / "training"), linked(found.validation, place / "held-out"))


def subset(whole: Split, count: int, seed: int) -> Split:
    """Return the split with `count` of its training photographs, drawn by the seed."""
    files = find_images(whole.training)
    chosen = random.Random(f"subset {seed}").sample(files, min(count, len(files)))
    return Split(linked(sorted(chosen), whole.training.parent / f"training-{count}-seed-{seed}"), whole.held_out)


def transformed(
    whole: Split, name: str, shorter_side_px: int, transform: Callable[[Image.Image], Image.Image]
) -> Split:
    """Return the same photographs resized and transformed; files that cannot be read are left out."""

    def fill(source: Path) -> Callable[[Path], None]:
        def write(target: Path) -> None:
            for file in tqdm(find_images(source), unit="photograph", desc=name, disable=not sys.stderr.isatty()):
                with suppress(StylizeError):
                    picture = to_tensor(transform(read_rgb(file, shorter_side_px)))
                    write_picture(target / f"{file.stem}.jpg", Picture(picture), quality=QUALITY)

        return write

    training, held_out = (_filled(folder.parent / f"{folder.name}-{name}", fill(folder)) for folder in whole)
    return Split(training, held_out)


def held_out_squares(photographs: Split, side_px: int) -> list[Tensor]:
    """Return the held-out photographs as validation crops them: centred squares, `(3, side, side)` in [0, 1]."""
    return validation_images(find_images(photographs.held_out), side_px)


def linked(files: Sequence[Path], folder: Path) -> Path:
    """Return a folder that holds these files under numbered names."""

    def write(target: Path) -> None:
        for i, file in enumerate(files):
            _link(file, target / f"{i:05d}-{file.name}")

    return _filled(folder, write)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except (OSError, NotImplementedError):  # Windows needs a privilege for links; some file systems have none
        shutil.copyfile(source, target)


def _filled(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return a folder that `fill` wrote; it appears only when it is complete."""
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            fill(new)
            new.replace(folder)
    except OSError as error:
        raise StylizeError(f"{folder}: cannot be written ({error.strerror})") from error
    return folder
