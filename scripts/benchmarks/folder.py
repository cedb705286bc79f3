"""Time painting a folder of small pictures from files to files, compared with the bare network on tensors.

Both run in one process with the same weights, in turns of a few pictures each, so that other load affects both equally.
The bare network's inputs are decoded and on the device, and its results are discarded: the difference to 100 % is the
cost of reading, writing and everything else.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from benchmarks import remote
from benchmarks.compare import check_differences
from benchmarks.data import DECODED_DIFFERENCE, write_photograph
from benchmarks.floor import Floor
from benchmarks.measuring import ratios, spread, timed
from benchmarks.report import Finding, Table
from benchmarks.settings import Settings, make_generator
from benchmarks.workloads import ENVIRONMENT
from torch import Tensor

from stylize.inference.file_painter import FileOptions
from stylize.inference.jobs import Job, paint_files
from stylize.inference.plans import find_budget
from stylize.inference.stylizer import Stylizer
from stylize.pictures.reading import read_picture
from stylize.system.compute import Compute
from stylize.system.devices import choose_precision

WIDTHS = (16, 32)  # of the built-in models and of the default config
SIDE_PX = 256
TURN = 50  # pictures in a turn of a side
JPEG_QUALITY = 95  # the default of `stylize apply`
DISTINCT = 50  # the weights do not affect the time
HEADER = ("folder", "bare network, images/s", "files to files, images/s", "share of the bare network's rate")


class Seconds(NamedTuple):
    """Seconds for the same pictures."""

    bare: float
    files: float


class FolderPlayer:
    """Times both ways of painting.

    Args:
        width: Width of the generator.
        photographs: Files of the photographs.
        output: Folder for the painted pictures.
        settings: Device, precision and seed.
    """

    def __init__(self, width: int, photographs: Sequence[Path], output: Path, settings: Settings) -> None:
        self.device = settings.torch_device()
        precision = choose_precision(settings.precision, self.device)
        compute = Compute(self.device, precision)
        self.stylizer = Stylizer(make_generator(settings.seed, width=width), compute)
        self.jobs = [Job(path, output / path.name) for path in photographs]
        self.together = compute.pictures_together((SIDE_PX, SIDE_PX))
        budget = find_budget(self.device, output.parent)
        self.options = FileOptions(budget, quality=JPEG_QUALITY, overwrite=True)

    def difference(self) -> float:
        """Paint a few pictures in both ways, as a warm-up; return their mean difference, relative to the range."""
        jobs = self.jobs[: self.together]
        painted = self._by_network(self._read([job.source for job in jobs])).cpu()
        self._by_files(jobs)
        return float((painted - self._read([job.target for job in jobs]).cpu()).abs().mean())

    def play(self) -> Seconds:
        """Time all pictures in both ways, in turns."""
        bare = files = 0.0
        for first in range(0, len(self.jobs), TURN):
            jobs = self.jobs[first : first + TURN]
            sources = [job.source for job in jobs]
            batches = [self._read(sources[i : i + self.together]) for i in range(0, len(sources), self.together)]
            bare += timed(partial(self._by_network_all, batches), self.device)
            files += timed(partial(self._by_files, jobs), self.device)
        return Seconds(bare, files)

    def _read(self, paths: Sequence[Path]) -> Tensor:
        pictures = torch.stack([read_picture(path).rgb for path in paths]).to(self.device)
        return pictures.contiguous(memory_format=self.stylizer.compute.memory_format)

    def _by_network_all(self, batches: Sequence[Tensor]) -> None:
        for batch in batches:
            self._by_network(batch)

    @torch.inference_mode()
    def _by_network(self, batch: Tensor) -> Tensor:
        with self.stylizer.context():
            painted: Tensor = self.stylizer.generator(batch)
        return painted

    def _by_files(self, jobs: Sequence[Job]) -> None:
        for item in paint_files(jobs, self.stylizer, self.options):
            if item.error is not None:
                raise item.error


@dataclass(frozen=True)
class Painted:
    """Measurements of a folder that was painted several times.

    Attributes:
        name: Width and precision of the generator.
        pictures: Number of pictures in the folder.
        seconds: Seconds of each round.
        difference: Mean difference of the pictures of both ways.
    """

    name: str
    pictures: int
    seconds: list[Seconds]
    difference: float

    def cells(self) -> tuple[str, ...]:
        """Return a row of the table."""
        bare, files = ([self.pictures / s for s in seconds] for seconds in zip(*self.seconds, strict=True))
        shares = spread([100 * share for share in ratios(files, bare)])
        return self.name, str(spread(bare)), str(spread(files)), f"{shares} %"

    def numbers(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        return {**vars(self), "seconds": [seconds._asdict() for seconds in self.seconds]}


def run(settings: Settings, floor: Floor) -> Finding:
    """Paint a folder with generators of every width, in every precision.

    Raises:
        click.ClickException: The two ways paint different pictures.
    """
    with tempfile.TemporaryDirectory() as folder:
        photographs = write_folder(Path(folder), settings)
        rows = [
            _paint_folder(width, photographs, Path(folder) / "painted", replace(settings, precision=precision))
            for width in WIDTHS
            for precision in settings.precisions()
        ]
    return Finding(
        [f"folder: {settings.pictures} JPEGs of {SIDE_PX}²"],
        [Table(HEADER, [row.cells() for row in rows])],
        {"rows": [row.numbers() for row in rows]},
    )


def write_folder(folder: Path, settings: Settings) -> list[Path]:
    """Write the photographs, repeated up to the number of pictures."""
    paths = [folder / f"{number:06}.jpg" for number in range(settings.pictures)]
    for number, path in enumerate(paths):
        if number < DISTINCT:
            write_photograph(path, (SIDE_PX, SIDE_PX), settings.seed + number)
        else:
            shutil.copyfile(paths[number % DISTINCT], path)
    return paths


def _paint_folder(width: int, photographs: Sequence[Path], output: Path, settings: Settings) -> Painted:
    name = f"width {width}, {settings.precision}"
    make = partial(FolderPlayer, width, photographs, output)
    with remote.Remote(f"folder, {name}", make, settings, ENVIRONMENT) as player:
        difference: float = player.call("difference")
        check_differences(f"folder, {name}", {"picture": difference}, DECODED_DIFFERENCE)
        seconds: list[Seconds] = []
        for done in range(settings.rounds):
            click.echo(f"folder, {name}: round {done + 1} of {settings.rounds}", err=True)
            seconds.append(player.call("play"))
    return Painted(name, len(photographs), seconds, difference)
