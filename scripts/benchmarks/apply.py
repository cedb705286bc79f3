"""Painting one square image, and painting by size.

`one image` is the wait for a single picture: the first call of a new process that has imported everything and loaded
the model. `many images` is the steady state.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import click
from benchmarks import remote
from benchmarks.compare import Pair, choices_note, compare, table
from benchmarks.counts import painting_flop
from benchmarks.floor import Floor
from benchmarks.measuring import Memory, free_bytes, number, spread
from benchmarks.report import Finding, Table, gib, share
from benchmarks.settings import Named, Settings, make_images
from benchmarks.workloads import (
    ENVIRONMENT,
    PlainApply,
    Round,
    StripsApply,
    StylizeApply,
    Workload,
    WorkloadPlayer,
)
from torch import Tensor

from stylize.inference.options import PaintOptions
from stylize.inference.stylizer import Stylizer
from stylize.models.file import load_model
from stylize.models.find import BuiltIn, built_in_models
from stylize.pictures.picture import Picture
from stylize.pictures.reading import read_picture
from stylize.system.compute import Compute
from stylize.training.photographs import ContentConfig, find_photographs

HEADING = "apply"
MOST_PICTURES = 32  # number of photographs of a folder that precisions are compared on
# Mean differences from float32 that are allowed, of all pictures and of the one that differs most.
MOST_LEVELS, MOST_LEVELS_OF_A_PICTURE = 0.6, 1.5
SIZES_PX = (256, 512, 1024, 2048, 4096)
# The ways to paint an image of any size, by name.
WAYS: Mapping[str, Callable[[Settings], Workload]] = {
    "whole": StylizeApply,
    "in strips": partial(StripsApply, on_disk=False),
    "in strips, maps on disk": partial(StripsApply, on_disk=True),
}
SIZES_HEADER = (
    "size",
    "way",
    "precision",
    "s (median, min..max)",
    "images/s",
    "MP/s",
    "share of the floor",
    "peak GiB",
    "above what was held before GiB",
)


def run(settings: Settings, floor: Floor) -> Finding:
    """Time painting at `settings.size` on both sides."""
    flop = painting_flop(1, settings.size)
    comparisons = [
        compare(
            Pair(
                name,
                {"plain": PlainApply, "stylize": StylizeApply},
                1,
                settings.size,
                flop,
                first_call=first_call,
                variables={"stylize": ENVIRONMENT},
            ),
            replace(settings, precision=precision),
            floor,
        )
        for name, first_call in (("one image", True), ("many images", False))
        for precision in settings.precisions()
    ]
    levels = [
        roughness(style, model, precision, settings)
        for style, model in built_in_models().items()
        for precision in settings.precisions()
        if precision != "fp32"
    ]
    return Finding(
        [
            f"{HEADING}: 1 × {settings.size}², {flop / 1e9:.4g} GFLOP",
            *choices_note(comparisons),
            *(str(roughness) for roughness in levels),
        ],
        [table(HEADING, comparisons)],
        {
            "flop": flop,
            "rows": [comparison.numbers() for comparison in comparisons],
            "levels": [roughness._asdict() for roughness in levels],
        },
    )


class Roughness(NamedTuple):
    """Difference between a precision and float32 in the pictures of a trained model, in rounded grey levels of 255.

    Attributes:
        style: Style of the model.
        precision: The precision.
        pictures: Number of pictures.
        mean: Mean difference over all values of all pictures.
        worst_mean: Mean difference of the picture that differs most.
        most: Maximum difference of any value.
    """

    style: str
    precision: str
    pictures: int
    mean: float
    worst_mean: float
    most: float

    def __str__(self) -> str:
        return (
            f"{self.style}, {self.precision}: {self.pictures} pictures differ from those in fp32 by "
            f"{number(self.mean)} grey levels in the mean, the worst by {number(self.worst_mean)}; "
            f"a value by {self.most:.0f} at most"
        )


def roughness(style: str, model: BuiltIn, precision: str, settings: Settings) -> Roughness:
    """Paint `settings.photos`, or a generated image, in float32 and in the precision.

    Raises:
        click.ClickException: The pictures, or one of them, differ by more than is allowed.
    """
    device = settings.torch_device()
    exact, rough = (Stylizer(load_model(*model)[0], Compute(device, kind)) for kind in ("fp32", precision))
    found = [_levels_apart(exact, rough, picture, settings.size) for picture in _pictures(settings)]
    of_pictures = [float(apart.mean()) for apart in found]
    values = sum(apart.numel() for apart in found)
    mean = sum(float(apart.sum()) for apart in found) / values
    most = max(float(apart.max()) for apart in found)
    for what, levels, limit in (
        ("pictures differ", mean, MOST_LEVELS),
        ("a picture differs", max(of_pictures), MOST_LEVELS_OF_A_PICTURE),
    ):
        if not levels <= limit:
            raise click.ClickException(
                f"apply, {style}: in {precision} {what} by {number(levels)} grey levels in the mean, "
                f"must be at most {limit}"
            )
    return Roughness(style, precision, len(found), mean, max(of_pictures), most)


def _levels_apart(exact: Stylizer, rough: Stylizer, picture: Picture, side_px: int) -> Tensor:
    paint = PaintOptions(max_size_px=side_px)
    first, second = ((stylizer(picture, paint).rgb.double() * 255).round() for stylizer in (exact, rough))
    return (first - second).abs()


def _pictures(settings: Settings) -> Iterator[Picture]:
    if settings.photos is None:
        yield Picture(make_images(1, settings.size, settings.seed + 3)[0])
        return
    files = find_photographs(ContentConfig(path=str(settings.photos), validation=0), settings.seed).training
    for file in files[:MOST_PICTURES]:
        yield read_picture(file)


@dataclass(frozen=True)
class Painted:
    """One size, painted in one way.

    Attributes:
        side_px: Side of the image.
        way: A name of `WAYS`.
        precision: Precision of stylize.
        seconds: Median over the repeats of each round.
        memory: Memory of the process.
        floor_share: Share of the product's rate.
    """

    side_px: int
    way: str
    precision: Named
    seconds: list[float]
    memory: Memory
    floor_share: float

    def cells(self) -> tuple[str, ...]:
        """Return a row of the table."""
        median = statistics.median(self.seconds)
        return (
            f"{self.side_px}²",
            self.way,
            self.precision,
            str(spread(self.seconds)),
            number(1 / median),
            number(self.side_px**2 / 1e6 / median),
            share(self.floor_share),
            gib(self.memory.peak_bytes),
            gib(self.memory.growth_bytes),
        )

    def numbers(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        return {**vars(self), "memory": self.memory._asdict()}


def run_sizes(settings: Settings, floor: Floor) -> Finding:
    """Time painting by size, each size in its own process."""
    rows: list[Painted] = []
    notes: list[str] = []
    for way in WAYS:
        for precision in settings.precisions():
            painted, skipped = _paint_by_size(way, replace(settings, precision=precision), precision, floor)
            rows, notes = rows + painted, notes + skipped
    numbers = {"rows": [row.numbers() for row in rows], "skipped": notes}
    return Finding(notes, [Table(SIZES_HEADER, [row.cells() for row in rows])], numbers)


def _paint_by_size(way: str, settings: Settings, precision: Named, floor: Floor) -> tuple[list[Painted], list[str]]:
    painted: list[Painted] = []
    skipped: list[str] = []
    for side_px in SIZES_PX:
        expected, free = expected_bytes(painted, side_px), free_bytes(settings.torch_device())
        if expected is not None and free is not None and expected > free:
            needed = f"would need about {gib(expected)} GiB, and {gib(free)} GiB are free"
            skipped.append(f"skipped {side_px}², {way}, {precision}: {needed}")
            continue
        name = f"sizes, {side_px}², {way}, {precision}"
        click.echo(name, err=True)
        make = partial(WorkloadPlayer, WAYS[way])
        with remote.Remote(name, make, replace(settings, size=side_px), ENVIRONMENT) as player:
            turns: list[Round] = [player.call("play", settings.steps) for _ in range(settings.rounds)]
        seconds = [statistics.median(turn.seconds) for turn in turns]
        reached = floor.compute_share(painting_flop(1, side_px), statistics.median(seconds), precision)
        painted.append(Painted(side_px, way, precision, seconds, turns[-1].memory, reached))
    return painted, skipped


def expected_bytes(painted: Sequence[Painted], side_px: int) -> int | None:
    """Estimate the memory of painting from the largest size so far; its growth is proportional to the pixels.

    Returns:
        The estimate, or None if nothing was painted yet or its memory is unknown.
    """
    if not painted:
        return None
    peak, growth = painted[-1].memory
    if peak is None or growth is None:
        return None
    return peak - growth + round(growth * side_px**2 / painted[-1].side_px ** 2)
