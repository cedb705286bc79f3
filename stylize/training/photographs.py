"""The photographs of a training: files to train on and files held out."""

from __future__ import annotations

import importlib.util
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from stylize.errors import StylizeError
from stylize.pictures.find import search_folder
from stylize.pictures.formats import listed_suffixes
from stylize.pictures.picture import to_tensor
from stylize.pictures.reading import open_picture, read_rgb
from stylize.training.contrast import pixels_have_contrast

logger = logging.getLogger("stylize")
SAMPLES = "samples"

SAMPLE_FILES = {
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/motorcycle_left.png",
        "data/rocket.jpg",
        "data/hubble_deep_field.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}

LISTED_FILES = 20


class ContentConfig(BaseModel):
    """The photographs to train on."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str = Field(
        description="a folder of photographs, searched recursively, or 'samples' (of scikit-image, scikit-learn)"
    )
    validation: Annotated[int, Field(ge=0)] | str = Field(
        16, description="number of photographs held out, or a folder of others"
    )
    resize: int = Field(288, ge=16, le=8192, description="shorter side, px, before the crop")
    crop: int = Field(256, ge=16, le=8192, description="side of the square crop, px")
    limit: int | None = Field(None, ge=1, description="use only that many photographs, drawn by the seed")
    workers: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = Field(
        "auto", description="number of decoding processes; 0: the training process decodes"
    )
    cache: str | None = Field(
        None, description="a folder for the decoded and resized photographs, to decode each once; null: none"
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> ContentConfig:
        if self.crop > self.resize:
            raise ValueError(
                f"got a crop of {self.crop}, must be at most resize ({self.resize}): "
                "it would be larger than every photograph"
            )
        return self


class Photographs(NamedTuple):
    """Files to train on, and held-out files."""

    training: list[Path]
    validation: list[Path]


def find_photographs(config: ContentConfig, seed: int) -> Photographs:
    """Return the files that a run uses; held-out files, and those within a limit, are drawn by the seed.

    Raises:
        StylizeError: The folder is missing or empty, or nothing is left to train on.
    """
    files = sample_photographs() if config.path == SAMPLES else _folder(config.path, "content.path")
    if isinstance(config.validation, str):
        held_out = _folder(config.validation, "content.validation")
        training = sorted(set(files) - set(held_out))
    else:
        shuffled = random.Random(f"validation {seed}").sample(files, len(files))
        count = _held_out_count(config.validation, len(files))
        held_out, training = shuffled[:count], sorted(shuffled[count:])
    if not training:
        raise StylizeError(
            f"content.validation: got {config.validation}, must leave photographs to train on: "
            f"{config.path} holds {len(files)}"
        )
    return Photographs(_drawn(training, config.limit, seed), held_out)


def _held_out_count(wanted: int, count: int) -> int:
    """Return how many of `count` photographs to hold out: a quarter where so many as are wanted would leave none."""
    if wanted < count or count == 1:
        return wanted
    fewer = max(1, count // 4)
    logger.warning("content.validation: got %d, but there are %d photographs: %d are held out", wanted, count, fewer)
    return fewer


def _drawn(files: list[Path], limit: int | None, seed: int) -> list[Path]:
    """Return at most `limit` files, drawn by the seed: a smaller limit draws a subset of a larger one's."""
    if limit is None:
        return files
    return sorted(random.Random(f"limit {seed}").sample(files, len(files))[:limit])


def sample_photographs() -> list[Path]:
    """Return the colour photographs that scikit-image and scikit-learn install.

    Raises:
        StylizeError: Neither is installed.
    """
    found: list[Path] = []
    for package, names in SAMPLE_FILES.items():
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        found += [path for name in names for path in [Path(folders[0], name)] if path.is_file()] if folders else []
    if not found:
        raise StylizeError(
            "content.path: got 'samples', but their packages are not installed: pip install 'stylize[demo]', "
            "or give a folder of photographs"
        )
    return found


def _folder(path: str, key: str) -> list[Path]:
    folder = Path(path)
    if not folder.is_dir():
        raise StylizeError(f"{key}: got '{path}', must be a folder of photographs that exists")
    search = search_folder(folder, distinct=True)
    for line in search.told():
        logger.info("%s: %s", key, line)
    if not search.images:
        but = " but painted ones" if search.painted else ""
        raise StylizeError(f"{key}: {path} holds no image files{but} ({listed_suffixes()})")
    return search.images


def validation_images(files: Sequence[Path], side_px: int) -> list[Tensor]:
    """Return the held-out photographs, float32 `(3, side, side)`: resized to the shorter side, cropped in the centre.

    A file that cannot be read is skipped and logged.
    """
    images = []
    for file in files:
        try:
            image = read_rgb(file, side_px)
        except StylizeError as error:
            logger.warning("skipped: %s", error)
            continue
        left, top = ((length - side_px) // 2 for length in image.size)
        images.append(to_tensor(image.crop((left, top, left + side_px, top + side_px))))
    return images


class FolderReport(NamedTuple):
    """Report on the photographs of a folder, read as in a run.

    Attributes:
        files: Number of image files.
        sizes: Width and height of every readable photograph, px.
        unreadable: Messages about the others.
        small: Number of photographs that a run would enlarge.
        even: Photographs without contrast, from which nothing can be learned.
    """

    files: int
    sizes: list[tuple[int, int]]
    unreadable: list[str]
    small: int
    even: list[Path]


def check_folder(
    files: Sequence[Path], resize_px: int, progress: Callable[[Sequence[Path]], Iterable[Path]]
) -> FolderReport:
    """Decode every file as a run does.

    Args:
        files: The files.
        resize_px: The shorter side to which a run resizes; smaller photographs are counted.
        progress: Wraps the files, to show the progress.
    """
    sizes, unreadable, small, even = [], [], 0, []
    for file in progress(files):
        try:
            with open_picture(file) as picture:
                size = picture.header.size
                pixels = picture.read_scaled(resize_px)
            sizes.append(size)
            small += min(size) < resize_px
            even += [] if pixels_have_contrast(pixels) else [file]
        except StylizeError as error:
            unreadable.append(str(error))
    return FolderReport(len(files), sizes, unreadable, small, even)
