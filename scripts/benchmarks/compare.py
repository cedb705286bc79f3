"""Compare two sides that take turns and must give the same numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import click
import numpy as np
from benchmarks import remote
from benchmarks.floor import Floor
from benchmarks.measuring import Memory, number, ratios, spread
from benchmarks.report import Table, gib, share
from benchmarks.settings import Settings
from benchmarks.workloads import Round, Workload, WorkloadPlayer
from numpy.typing import NDArray

TOLERANCE = 1e-3
# bfloat16 has 8 bits of precision; on CUDA the plain float32 convolutions may be TF32, which has 11.
COARSE_TOLERANCE = 0.1

Side = Literal["plain", "stylize"]
SIDES: tuple[Side, Side] = ("plain", "stylize")

COLUMNS = (
    "plain s",
    "stylize s",
    "times as fast (median, min..max)",
    "images/s",
    "MP/s",
    "share of the floor, plain / stylize",
    "peak GiB, plain / stylize",
    "above what was held before GiB, plain / stylize",
    "largest difference",
)


@dataclass(frozen=True)
class Pair:
    """Two workloads to compare.

    Attributes:
        name: Name of the task.
        make: Creates the workload of each side.
        images: Number of images in a repeat.
        side_px: Side of each image.
        flop: Floating-point operations in a repeat.
        same: Whether both sides must give the same numbers.
        first_call: Whether to time the first call of new processes instead of many calls of one.
        variables: Environment variables of each side's process.
    """

    name: str
    make: Mapping[Side, Callable[[Settings], Workload]]
    images: int
    side_px: int
    flop: int
    same: bool = True
    first_call: bool = False
    variables: Mapping[Side, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Measurements of a pair.

    Attributes:
        name: Name of the pair, with stylize's precision.
        environment: Environment of each side.
        seconds: Median over the repeats of each round, by side.
        memory: Memory of each side.
        differences: Differences of the sides' first results, by name, relative to the plain side's largest value.
        images: Number of images in a repeat.
        megapixels: Megapixels of all images of a repeat.
        floor_share: Share of the floor, by side.
    """

    name: str
    environment: Mapping[Side, Mapping[str, str]]
    seconds: Mapping[Side, list[float]]
    memory: Mapping[Side, Memory]
    differences: Mapping[str, float]
    images: int
    megapixels: float
    floor_share: Mapping[Side, float]

    def images_per_second(self) -> float:
        """Images per second of stylize."""
        return self.images / statistics.median(self.seconds["stylize"])

    def times_as_fast(self) -> list[float]:
        """Ratio of the plain side's time to stylize's, by round."""
        return ratios(self.seconds["plain"], self.seconds["stylize"])

    def cells(self) -> tuple[str, ...]:
        """Return a row of the table."""
        stylize = statistics.median(self.seconds["stylize"])
        peaks, growths = ([getattr(self.memory[side], name) for side in SIDES] for name in Memory._fields)
        return (
            self.name,
            *(number(statistics.median(self.seconds[side])) for side in SIDES),
            str(spread(self.times_as_fast())),
            number(self.images_per_second()),
            number(self.megapixels / stylize),
            " / ".join(share(self.floor_share[side]) for side in SIDES),
            " / ".join(map(gib, peaks)),
            " / ".join(map(gib, growths)),
            ", ".join(f"{name} {difference:.1g}" for name, difference in self.differences.items()) or "not compared",
        )

    def numbers(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        told = {"times_as_fast": self.times_as_fast(), "images_per_second": self.images_per_second()}
        return {**asdict(self), "memory": {side: m._asdict() for side, m in self.memory.items()}, **told}


def compare(pair: Pair, settings: Settings, floor: Floor) -> Comparison:
    """Run the sides of a pair in turns, stylize in the single precision of the settings.

    Raises:
        click.ClickException: The first results differ by more than the precision explains.
    """
    name = f"{pair.name}, {settings.precision}"
    played = _play_in_turns(name, pair, settings)
    first = {side: played[side][0] for side in SIDES}
    seconds = {side: [statistics.median(turn.seconds) for turn in played[side]] for side in SIDES}
    told = {side: turn.environment for side, turn in first.items()}
    return Comparison(
        name=name,
        environment=told,
        seconds=seconds,
        memory={side: _most([turn.memory for turn in played[side]]) for side in SIDES},
        differences=relative_differences(*(first[side].values for side in SIDES)) if pair.same else {},
        images=pair.images,
        megapixels=pair.images * pair.side_px**2 / 1e6,
        floor_share={
            side: floor.compute_share(pair.flop, statistics.median(seconds[side]), told[side]["precision"])
            for side in SIDES
        },
    )


def _play_in_turns(name: str, pair: Pair, settings: Settings) -> dict[Side, list[Round]]:
    played: dict[Side, list[Round]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        kept: dict[Side, remote.Remote] = {}
        if not pair.first_call:
            kept = {side: stack.enter_context(_start(name, side, pair, settings)) for side in SIDES}
        for turn in range(settings.rounds):
            for side in SIDES:
                click.echo(f"{name}, {side}: round {turn + 1} of {settings.rounds}", err=True)
                if pair.first_call:
                    with _start(name, side, pair, settings) as player:
                        played[side].append(player.call("play_first_call"))
                else:
                    played[side].append(kept[side].call("play", settings.steps))
            if turn == 0 and pair.same:
                check_same(name, *(played[side][0] for side in SIDES))
    return played


def _start(name: str, side: Side, pair: Pair, settings: Settings) -> remote.Remote:
    make = partial(WorkloadPlayer, pair.make[side])
    return remote.Remote(f"{name}, {side}", make, settings, pair.variables.get(side, {}))


def _most(memories: Sequence[Memory]) -> Memory:
    return Memory(*(max(sizes) if None not in sizes else None for sizes in zip(*memories, strict=True)))


def relative_differences(
    plain: Mapping[str, NDArray[np.float32]], stylize: Mapping[str, NDArray[np.float32]]
) -> dict[str, float]:
    """Return the largest difference of each value, relative to the plain side's largest magnitude."""
    return {k: float(np.abs(plain[k] - stylize[k]).max() / np.abs(plain[k]).max()) for k in plain}


def check_same(name: str, plain: Round, stylize: Round) -> None:
    """Refuse to compare different mathematics.

    Raises:
        click.ClickException: A difference is above the tolerance, or not a number.
    """
    exact = stylize.environment["precision"] == "fp32" and stylize.environment["device"] == "cpu"
    check_differences(
        name, relative_differences(plain.values, stylize.values), TOLERANCE if exact else COARSE_TOLERANCE
    )


def check_differences(name: str, differences: Mapping[str, float], tolerance: float) -> None:
    """Refuse to compare different mathematics.

    Raises:
        click.ClickException: A difference is above the tolerance, or not a number.
    """
    for value, difference in differences.items():
        if not difference <= tolerance:
            raise click.ClickException(
                f"{name}: the sides differ in the {value} by {difference:.2g}, must be at most {tolerance:g}"
            )


def choices_note(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what stylize chose, one line for each choice."""
    chosen: dict[str, list[str]] = {}
    for comparison in comparisons:
        told = comparison.environment["stylize"]
        choice = f"{told['precision']}, {told['memory format']}, compile {told['compile']}"
        chosen.setdefault(choice, []).append(comparison.name)
    return [f"stylize chose {choice}: {'; '.join(names)}" for choice, names in chosen.items()]


def table(heading: str, comparisons: Sequence[Comparison]) -> Table:
    """Return the numbers as a table."""
    return Table((heading, *COLUMNS), [comparison.cells() for comparison in comparisons])
