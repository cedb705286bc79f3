"""A folder of photographs → seeded, resumable batches of crops.

The sample at position p of the endless stream depends on the seed, the files and p alone: no state has to be saved
but the position, and any number of workers gives the same batches.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stylize import processes
from stylize.errors import StylizeError
from stylize.images import find_images, image_size, read_rgb, to_tensor
from stylize.training.cache import PhotographCache
from stylize.training.workers import loaded, options_of

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
UNREADABLE_SHARE = 0.05
LISTED_FILES = 20


class ContentConfig(BaseModel):
    """The photographs to train on."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str = Field(
        description="a folder of photographs, searched recursively, or 'samples' (of scikit-image, scikit-learn)"
    )
    validation: Annotated[int, Field(ge=0)] | str = Field(
        16, description="how many photographs are held out, or a folder of others"
    )
    resize: int = Field(288, ge=16, le=8192, description="shorter side, px, before the crop")
    crop: int = Field(256, ge=16, le=8192, description="side of the square crop, px")
    limit: int | None = Field(None, ge=1, description="use only that many photographs")
    workers: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = Field(
        "auto", description="processes that decode; 0: the training process itself"
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
    """Files to train on and files held out."""

    training: list[Path]
    validation: list[Path]


def find_photographs(config: ContentConfig, seed: int) -> Photographs:
    """The files that a run uses; the held-out ones are drawn by the seed.

    Raises:
        StylizeError: The folder is missing or empty, or nothing is left to train on.
    """
    files = sample_photographs() if config.path == SAMPLES else _folder(config.path, "content.path")
    if isinstance(config.validation, str):
        held_out = _folder(config.validation, "content.validation")
        training = sorted(set(files) - set(held_out))
    else:
        shuffled = random.Random(f"validation {seed}").sample(files, len(files))
        held_out, training = shuffled[: config.validation], sorted(shuffled[config.validation :])
    if not training:
        raise StylizeError(
            f"content.validation: got {config.validation}, must leave photographs to train on: "
            f"{config.path} holds {len(files)}"
        )
    return Photographs(training[: config.limit], held_out)


def sample_photographs() -> list[Path]:
    """The colour photographs that scikit-image and scikit-learn install.

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
    files = find_images(folder)
    if not files:
        raise StylizeError(f"{key}: {path} holds no image files (jpg, png, webp, tiff, gif, bmp)")
    return files


class CropDataset(Dataset[tuple[Tensor | None, list[str]]]):
    """Square crops by position in the endless stream.

    An item is the crop, uint8 `(3, crop, crop)`, and the messages of files that could not be read; in their place
    comes another file, also determined by the position. After 20 such files there is no crop: an error raised in a
    worker would arrive with the worker's traceback in its message.

    Args:
        files: The photographs.
        config: How to crop them, and where decoded ones are kept.
        seed: Of the order and the crops.
        held_out: Others of the same folder, on which a run with another seed would train: a cache holds them, too.
    """

    def __init__(self, files: Sequence[Path], config: ContentConfig, seed: int, held_out: Sequence[Path] = ()) -> None:
        self.files = list(files)
        self.config = config
        self.seed = seed
        self.cache = None
        if config.cache is not None:
            self.cache = PhotographCache(Path(config.cache), [*files, *held_out], config.resize, config.limit)

    def __getitem__(self, position: int) -> tuple[Tensor | None, list[str]]:
        draw = random.Random(f"crop {self.seed} {position}")
        epoch, place = divmod(position, len(self.files))
        index = epoch_order(self.seed, epoch, len(self.files))[place]
        unreadable: list[str] = []
        for _ in range(LISTED_FILES):
            try:
                return self._crop(self.files[index], draw), unreadable
            except StylizeError as error:
                unreadable.append(str(error))
                index = draw.randrange(len(self.files))
        return None, unreadable

    def fingerprint(self) -> str:
        """A word for the files by name: with others the positions mean other crops."""
        names = "\0".join(file.name for file in self.files)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()

    def _crop(self, file: Path, draw: random.Random) -> Tensor:
        pixels = self._pixels(file)
        side = self.config.crop
        height, width, _ = pixels.shape
        left, top = (draw.randint(0, length - side) for length in (width, height))
        crop = pixels[top : top + side, left : left + side]
        if draw.random() < 0.5:
            crop = crop[:, ::-1]
        return torch.from_numpy(crop.transpose(2, 0, 1).copy())

    def _pixels(self, file: Path) -> NDArray[np.uint8]:
        """A photograph decoded and resized, `(H, W, 3)`."""
        if self.cache is not None:
            return self.cache.read(file)
        return np.asarray(read_rgb(file, self.config.resize))


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> Sequence[int]:
    """The order of the files in one pass."""
    return random.Random(f"epoch {seed} {epoch}").sample(range(count), count)


def unreadable_report(messages: Sequence[str], count: int) -> str:
    """The message that stops a run for its bad files.

    >>> unreadable_report(["a.jpg: no such file"], 10)
    '1 of 10 photographs cannot be read: a.jpg: no such file'
    """
    distinct = sorted(set(messages))
    more = f"; and {len(distinct) - LISTED_FILES} more" if len(distinct) > LISTED_FILES else ""
    listed = "; ".join(distinct[:LISTED_FILES])
    return f"{len(distinct)} of {count} photographs cannot be read: {listed}{more}"


class _Positions(torch.utils.data.Sampler[list[int]]):
    """Positions of the batches from one step to another; of several processes, this one's equal part of each."""

    def __init__(self, first_step: int, last_step: int, batch_size: int) -> None:
        self.steps = range(first_step, last_step)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        part = self.batch_size // processes.count()
        for step in self.steps:
            first = step * self.batch_size + processes.rank() * part
            yield list(range(first, first + part))

    def __len__(self) -> int:
        return len(self.steps)


def _collate(items: list[tuple[Tensor | None, list[str]]]) -> tuple[Tensor | None, list[str]]:
    crops = [crop for crop, _ in items if crop is not None]
    messages = [message for _, some in items for message in some]
    if len(crops) < len(items):
        return None, messages
    # numpy's stack runs in this thread; torch's would divide the copy of a megabyte among threads, and wait for them
    return torch.from_numpy(np.stack([crop.numpy() for crop in crops])), messages


class Batches:
    """Batches of crops from any step on.

    Args:
        dataset: The crops.
        batch_size: Crops a batch, of all processes together.
        workers: Processes that decode; 0: this one.
        pin_memory: For transfer to a GPU.
        building_workers: Processes that decode for the cache before the training, where `workers` is 0.

    Attributes:
        unreadable: Messages of the files that could not be read so far.
    """

    def __init__(
        self,
        dataset: CropDataset,
        batch_size: int,
        workers: int = 0,
        pin_memory: bool = False,
        building_workers: int = 0,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.building_workers = building_workers
        self.options: dict[str, Any] = {**options_of(workers), "pin_memory": pin_memory}
        self.unreadable: set[str] = set()
        self._prepared = False

    @property
    def workers(self) -> int:
        """Processes that decode."""
        return int(self.options["num_workers"])

    def prepare(self) -> None:
        """Build the cache of decoded photographs, if there shall be one and it is not there; else `from_step` does.

        Raises:
            StylizeError: It cannot be written, or the disk has not the room.
        """
        if self.dataset.cache is not None and not self._prepared:
            self.dataset.cache.prepare(self.workers or self.building_workers)
        self._prepared = True

    def from_step(self, first_step: int, last_step: int) -> Iterator[Tensor]:
        """Batches `(N, 3, crop, crop)`, uint8, of the steps `first_step` to `last_step` − 1.

        Of several processes each gets its equal part.

        Raises:
            StylizeError: More than 5 % of the files, or all that were tried, cannot be read; the message lists them.
        """
        self.prepare()

        def loader_from(step: int) -> DataLoader[Any]:
            positions = _Positions(step, last_step, self.batch_size)
            return DataLoader(self.dataset, batch_sampler=positions, collate_fn=_collate, **self.options)

        for crops, messages in loaded(loader_from, first_step, last_step, "step"):
            self._report(messages)
            if crops is None:
                raise StylizeError(unreadable_report(messages, len(self.dataset.files)))
            yield crops

    def _report(self, messages: list[str]) -> None:
        for message in sorted(set(messages) - self.unreadable):
            logger.warning("skipped: %s", message)
            self.unreadable.add(message)
        count = len(self.dataset.files)
        if len(self.unreadable) > UNREADABLE_SHARE * count:
            raise StylizeError(unreadable_report(sorted(self.unreadable), count))


def validation_images(files: Sequence[Path], side_px: int) -> list[Tensor]:
    """The held-out photographs, float32 `(3, side, side)`: resized by the shorter side, cropped in the middle.

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
    """What a folder of photographs offers to a run."""

    files: int
    sizes: list[tuple[int, int]]
    unreadable: list[str]
    small: int


def check_folder(
    files: Sequence[Path], resize_px: int, progress: Callable[[Sequence[Path]], Iterable[Path]]
) -> FolderReport:
    """Decode every file as a run would.

    Args:
        files: The files.
        resize_px: The shorter side to which a run resizes; smaller photographs are enlarged, and counted.
        progress: Wraps the files, to show how far it is.
    """
    sizes, unreadable, small = [], [], 0
    for file in progress(files):
        try:
            read_rgb(file, resize_px)
            sizes.append(image_size(file))
            small += min(sizes[-1]) < resize_px
        except StylizeError as error:
            unreadable.append(str(error))
    return FolderReport(len(files), sizes, unreadable, small)
