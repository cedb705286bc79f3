"""Time the data path: photographs to batches of crops, and decoding of one photograph to the needed resolution.

Batches are produced as fast as the workers can; the consumption of the training step is measured in the same run, in
turns with them. At a ratio of 1 or more the training does not wait for photographs, if the workers have cores of their
own.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from benchmarks import remote
from benchmarks.compare import check_differences
from benchmarks.floor import Floor
from benchmarks.measuring import ratios, spread
from benchmarks.report import Finding, Table
from benchmarks.settings import Settings, make_images
from benchmarks.workloads import ENVIRONMENT, Round, StylizeTraining, WorkloadPlayer
from PIL import Image

from stylize.pictures.picture import to_image
from stylize.pictures.reading import read_rgb
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import ContentConfig, find_photographs

WORKERS = (0, 1, 2, 4)
RESIZE_PX = 288
LARGE_PX, LARGE_COUNT = (4000, 3000), 4
SMALL_PX, SMALL_COUNT = (640, 480), 12
QUALITY = 90
GRAIN = 6  # levels; like sensor noise, it makes a JPEG as large as a photograph's
PASSES = 4  # passes over the files in a turn
MOST_IMAGES = 256  # photographs of a folder in a turn
DECODED_DIFFERENCE = 0.03  # mean over pixels, relative to the range; above it the pictures differ

LOADING_HEADER = ("workers", "images/s (median, min..max)", "times what the training step consumes")
DECODING_HEADER = ("decoding of 12-megapixel JPEGs", "images/s (median, min..max)", "times as fast as in full")


def write_photographs(folder: Path, seed: int) -> list[Path]:
    """Write JPEGs with the spectrum of photographs; the large ones come first."""
    sizes = [LARGE_PX] * LARGE_COUNT + [SMALL_PX] * SMALL_COUNT
    paths = [folder / f"{number:02}-{width}x{height}.jpg" for number, (width, height) in enumerate(sizes)]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        write_photograph(path, size, seed + number)
    return paths


def write_photograph(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write a JPEG of this width and height with the spectrum of a photograph."""
    scene = to_image(make_images(1, 512, seed)[0]).resize(size, Image.Resampling.BICUBIC)
    levels = np.random.default_rng(seed).normal(np.asarray(scene), GRAIN)
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)


def read_in_full(path: Path, shorter_side_px: int) -> Image.Image:
    """Read a photograph as the copied scripts do: decode every pixel, then shrink."""
    image = Image.open(path).convert("RGB")
    factor = shorter_side_px / min(image.size)
    width, height = (round(side * factor) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def content_config(settings: Settings) -> ContentConfig:
    """Return the config for the crops of the training step, from photographs an eighth larger."""
    return ContentConfig(path=str(settings.photos), validation=0, resize=settings.crop * 9 // 8, crop=settings.crop)


class Decoded(NamedTuple):
    """Seconds for decoding the same files."""

    scaled: float
    in_full: float


class DataPlayer:
    """Times loading and decoding."""

    def __init__(self, large: Sequence[Path], settings: Settings) -> None:
        self.large = list(large)
        self.batch = settings.batch
        config = content_config(settings)
        files = find_photographs(config, settings.seed).training
        self.dataset = CropDataset(files, config, settings.seed)
        self.batches = batches_in_a_turn(len(files), self.batch)

    def load(self, workers: int) -> float:
        """Return images per second while all workers are busy, without start and end."""
        before, behind = 1 + workers, 2 * workers
        with _more_workers_than_cores():
            batches = Batches(self.dataset, self.batch, workers).from_step(0, before + self.batches + behind)
            for _ in itertools.islice(batches, before):
                pass
            start = time.perf_counter()
            count = sum(len(crops) for crops in itertools.islice(batches, self.batches))
            seconds = time.perf_counter() - start
            for _ in batches:  # a spawned worker that ends while it sends a batch may abort in C++ with a message
                pass
        return count / seconds

    def decode(self) -> Decoded:
        """Time both ways of decoding on the large files, in turns."""
        sums = [0.0, 0.0]
        for path in self.large:
            for i, read in enumerate((read_rgb, read_in_full)):
                start = time.perf_counter()
                read(path, RESIZE_PX)
                sums[i] += time.perf_counter() - start
        return Decoded(*sums)

    def difference(self) -> float:
        """Return the mean difference of both ways over all pixels, relative to the range, of the worst file."""
        pairs = [[np.asarray(read(path, RESIZE_PX), float) for read in (read_rgb, read_in_full)] for path in self.large]
        return float(np.max([np.abs(a - b).mean() / 255 for a, b in pairs]))


def batches_in_a_turn(files: int, batch: int) -> int:
    """Return the number of batches that reads every file a few times, up to a limit.

    >>> batches_in_a_turn(16, 4), batches_in_a_turn(100_000, 4)
    (16, 64)
    """
    return math.ceil(min(PASSES * files, MOST_IMAGES) / batch)


def numbers_of_workers() -> list[int]:
    """Return the numbers of workers to try, at most twice the cores."""
    return [workers for workers in WORKERS if workers <= 2 * (os.cpu_count() or 1)]


@contextmanager
def _more_workers_than_cores() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # wanted: to see what it is worth
        yield


def run(settings: Settings, floor: Floor) -> Finding:
    """Time loading compared with the training step, and decoding.

    Raises:
        click.ClickException: The two ways of decoding give different pictures.
    """
    precision = settings.precisions()[-1]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        large = write_photographs(Path(folder), settings.seed)[:LARGE_COUNT]
        given = replace(settings, photos=settings.photos or Path(folder), precision=precision)
        step = stack.enter_context(
            remote.Remote("data, training step", partial(WorkloadPlayer, StylizeTraining), given, ENVIRONMENT)
        )
        data = stack.enter_context(remote.Remote("data", partial(DataPlayer, large), given))
        difference: float = data.call("difference")
        check_differences("decoding", {"picture": difference}, DECODED_DIFFERENCE)
        consumed: list[float] = []
        loaded: dict[int, list[float]] = {workers: [] for workers in numbers_of_workers()}
        decoded: list[Decoded] = []
        for done in range(settings.rounds):
            click.echo(f"data: round {done + 1} of {settings.rounds}", err=True)
            turn: Round = step.call("play", settings.steps)
            consumed.append(settings.batch / statistics.median(turn.seconds))
            for workers, rates in loaded.items():
                rates.append(data.call("load", workers))
            decoded.append(data.call("decode"))
    photographs = str(settings.photos or f"generated, {LARGE_COUNT} of 12 megapixels and {SMALL_COUNT} of 640×480")
    return Finding(
        [
            f"photographs: {photographs}; crops of {settings.crop}², shorter side {settings.crop * 9 // 8} px",
            f"the training step, {precision}, consumes {spread(consumed)} images/s",
            f"decoding to a shorter side of {RESIZE_PX} px: pictures differ by {difference:.1g} of 1 in the mean",
        ],
        [_loading_table(loaded, consumed), _decoding_table(decoded)],
        {
            "photographs": photographs,
            "consumed_images_per_second": consumed,
            "loaded_images_per_second": loaded,
            "decoding_seconds": [seconds._asdict() for seconds in decoded],
            "decoded_files": LARGE_COUNT,
            "decoded_difference": difference,
        },
    )


def _loading_table(loaded: dict[int, list[float]], consumed: list[float]) -> Table:
    rows = [(str(n), str(spread(rates)), str(spread(ratios(rates, consumed)))) for n, rates in loaded.items()]
    return Table(LOADING_HEADER, rows)


def _decoding_table(decoded: Sequence[Decoded]) -> Table:
    rates = [[LARGE_COUNT / seconds for seconds in of_rounds] for of_rounds in zip(*decoded, strict=True)]
    gains = str(spread([seconds.in_full / seconds.scaled for seconds in decoded]))
    rows = [
        ("stylize: at the scale that is needed", str(spread(rates[0])), gains),
        ("in full", str(spread(rates[1])), "1"),
    ]
    return Table(DECODING_HEADER, rows)
