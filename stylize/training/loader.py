"""Photographs → seeded, resumable batches of crops.

The sample at position p of the endless stream depends only on the seed, the files and p. So the position is the only
state to save, and any number of workers gives the same batches.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stylize.errors import StylizeError
from stylize.pictures.reading import read_rgb
from stylize.system import distributed
from stylize.training.cache import PhotographCache
from stylize.training.contrast import pixels_have_contrast
from stylize.training.photographs import LISTED_FILES, ContentConfig
from stylize.training.workers import loaded, never

logger = logging.getLogger("stylize")
UNREADABLE_SHARE = 0.05
DRAWS = 8  # of a crop from a photograph, until one has contrast; then another photograph is taken


class CropDataset(Dataset[tuple[Tensor | None, list[str]]]):
    """Square crops by their position in the endless stream.

    An item is the crop, uint8 `(3, crop, crop)`, and messages about files that could not be read. Each of those is
    replaced by another file, also determined by the position; so is a file whose crops are even. After 20 such files
    the crop is an even one, or None instead of an error, since the message of an error raised in a worker would contain
    the worker's traceback.

    Args:
        files: The photographs.
        config: Sizes of the crops, and the cache folder.
        seed: Seed of the order and the crops.
        held_out: Held-out photographs of the same folder. A run with another seed trains on them, so the cache
            includes them.
    """

    def __init__(self, files: Sequence[Path], config: ContentConfig, seed: int, held_out: Sequence[Path] = ()) -> None:
        self.files = list(files)
        self.config = config
        self.seed = seed
        self.cache = None
        if config.cache is not None:
            self.cache = PhotographCache(
                Path(config.cache), [*files, *held_out], config.resize, limited=config.limit is not None
            )

    def __getitem__(self, position: int) -> tuple[Tensor | None, list[str]]:
        draw = random.Random(f"crop {self.seed} {position}")
        epoch, place = divmod(position, len(self.files))
        index = epoch_order(self.seed, epoch, len(self.files))[place]
        unreadable: list[str] = []
        even: NDArray[np.uint8] | None = None
        for _ in range(LISTED_FILES):
            try:
                crop = self._crop(self.files[index], draw)
            except StylizeError as error:
                unreadable.append(str(error))
            else:
                if pixels_have_contrast(crop):
                    return _to_tensor(crop), unreadable
                even = crop
            index = draw.randrange(len(self.files))
        return None if even is None else _to_tensor(even), unreadable  # the trainer bounds what it contributes

    def fingerprint(self) -> str:
        """Return a hash of the file names: with other files, equal positions are different crops."""
        names = "\0".join(file.name for file in self.files)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()

    def _crop(self, file: Path, draw: random.Random) -> NDArray[np.uint8]:
        """Return a crop of a photograph, `(crop, crop, 3)`: the first drawn that has contrast, if one of a few has."""
        pixels = self._pixels(file)
        side = self.config.crop
        height, width, _ = pixels.shape
        for _ in range(DRAWS):
            left, top = (draw.randint(0, length - side) for length in (width, height))
            crop = pixels[top : top + side, left : left + side]
            if pixels_have_contrast(crop):
                break
        if draw.random() < 0.5:
            crop = crop[:, ::-1]
        return crop

    def _pixels(self, file: Path) -> NDArray[np.uint8]:
        """Return a decoded and resized photograph, `(H, W, 3)`."""
        if self.cache is not None:
            return self.cache.read(file)
        return np.asarray(read_rgb(file, self.config.resize))


def _to_tensor(crop: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(crop.transpose(2, 0, 1).copy())


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> Sequence[int]:
    """Return the order of the files in an epoch."""
    return random.Random(f"epoch {seed} {epoch}").sample(range(count), count)


def unreadable_report(messages: Sequence[str], count: int) -> str:
    """Return the message of a run that stops because files cannot be read.

    >>> unreadable_report(["a.jpg: no such file"], 10)
    '1 of 10 photographs cannot be read: a.jpg: no such file'
    """
    distinct = sorted(set(messages))
    more = f"; and {len(distinct) - LISTED_FILES} more" if len(distinct) > LISTED_FILES else ""
    listed = "; ".join(distinct[:LISTED_FILES])
    return f"{len(distinct)} of {count} photographs cannot be read: {listed}{more}"


@dataclass(frozen=True)
class _Batch:
    """The work of decoding processes: the crops of a step `(N, 3, crop, crop)`, or None, and messages about files.

    With several processes, only the share of this one.
    """

    dataset: CropDataset
    size: int
    rank: int
    processes: int

    def __call__(self, step: int) -> tuple[NDArray[np.uint8] | None, list[str]]:
        part = self.size // self.processes
        first = step * self.size + self.rank * part
        items = [self.dataset[position] for position in range(first, first + part)]
        crops = [crop.numpy() for crop, _ in items if crop is not None]
        messages = [message for _, some in items for message in some]
        # numpy copies in this thread; torch would divide a megabyte among its threads and wait for them
        return np.stack(crops) if len(crops) == len(items) else None, messages


class Batches:
    """Batches of crops from any step on.

    Args:
        dataset: The crops.
        batch_size: Number of crops in a batch, over all processes.
        workers: Number of decoding processes; 0: decode in this one.
        pin_memory: Whether batches are in pinned memory, for transfer to a GPU.
        building_workers: Number of processes that decode for the cache before training, where `workers` is 0.

    Attributes:
        workers: Number of decoding processes.
        unreadable: Messages about the files that could not be read so far.
        stops: Asked while no batch comes: whether to wait no longer.
        start: Start method of the decoding processes; empty: Python's default.
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
        self.workers = workers
        self.pin_memory = pin_memory
        self.unreadable: set[str] = set()
        self.stops: Callable[[], bool] = never
        self.start = ""
        self._prepared = False

    def prepare(self) -> None:
        """Build the cache of decoded photographs if one is configured; otherwise `from_step` does it.

        Raises:
            StylizeError: The cache cannot be written, or the disk is too small.
        """
        if self.dataset.cache is not None and not self._prepared:
            self.dataset.cache.prepare(self.workers or self.building_workers)
        self._prepared = True

    def from_step(self, first_step: int, last_step: int) -> Iterator[Tensor]:
        """Yield the batches of the steps `first_step` to `last_step` − 1: uint8 `(N, 3, crop, crop)`.

        With several processes, only the share of this one. It ends early if `stops` says so while no batch comes.

        Raises:
            StylizeError: More than 5 % of the files, or all that were tried, cannot be read; the message lists them.
        """
        self.prepare()

        batch = _Batch(self.dataset, self.batch_size, distributed.rank(), distributed.count())
        results = loaded(batch, first_step, last_step, "step", self.workers, self.stops, self.start)
        for crops, messages in results:
            self._report(messages)
            if crops is None:
                raise StylizeError(unreadable_report(messages, len(self.dataset.files)))
            tensor = torch.from_numpy(crops)
            yield tensor.pin_memory() if self.pin_memory else tensor

    def _report(self, messages: list[str]) -> None:
        for message in sorted(set(messages) - self.unreadable):
            logger.warning("skipped: %s", message)
            self.unreadable.add(message)
        count = len(self.dataset.files)
        if len(self.unreadable) > UNREADABLE_SHARE * count:
            raise StylizeError(unreadable_report(sorted(self.unreadable), count))
