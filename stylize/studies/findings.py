"""Findings of a study as data: tables, plots, histograms, sheets of pictures. `report` writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import numpy as np
from torch import Tensor

from stylize.evaluation.statistics import Table, csv_text


@dataclass(frozen=True)
class Line:
    """A curve over `x`: mean and range over seeds.

    Attributes:
        label: Name in the legend.
        x: Positions.
        middle: Mean at each.
        low: Minimum over the seeds.
        high: Maximum over the seeds.
    """

    label: str
    x: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Plot:
    """Curves in one pair of axes.

    Attributes:
        title: Title of the plot.
        x_label: Label with the unit.
        y_label: Label with the unit.
        lines: The curves.
        y_scale: linear or log.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    y_scale: str = "linear"

    def to_csv(self) -> str:
        """Return all points of all curves."""
        rows = [
            (line.label, *point)
            for line in self.lines
            for point in zip(line.x, line.middle, line.low, line.high, strict=True)
        ]
        return csv_text(("line", "x", "mean", "min", "max"), rows)


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins of [0, 1].

    Attributes:
        title: Title of the histogram.
        x_label: Label with the unit.
        values: Values by group.
        bins: Number of bins.
    """

    title: str
    x_label: str
    values: Mapping[str, Sequence[float]]
    bins: int = 20

    def counts(self, group: str) -> list[int]:
        """Return the number of a group's values in each bin."""
        return [int(count) for count in np.histogram(self.values[group], self.bins, (0.0, 1.0))[0]]

    def to_csv(self) -> str:
        """Return the counts by group and bin."""
        width = 1 / self.bins
        rows = [
            (group, round(i * width, 6), round((i + 1) * width, 6), count)
            for group in self.values
            for i, count in enumerate(self.counts(group))
        ]
        return csv_text(("group", "from", "to", "count"), rows)


@dataclass(frozen=True)
class Sheet:
    """Pictures in rows and columns.

    Attributes:
        title: Title of the sheet.
        columns: Column heads.
        pictures: Row by row, `(3, H, W)` in [0, 1].
        rows: Row names; empty for none.
    """

    title: str
    columns: tuple[str, ...]
    pictures: Sequence[Sequence[Tensor]]
    rows: tuple[str, ...] = ()


Finding: TypeAlias = Table | Plot | Histogram | Sheet


def slug(title: str) -> str:
    """Return a title as a file name.

    >>> slug("Style loss (held out), by step")
    'style-loss-held-out-by-step'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def line_of_seeds(label: str, x: Sequence[float], seeds: Iterable[Sequence[float]]) -> Line:
    """Return a curve from one list of values per seed, all at the same positions.

    >>> line_of_seeds("a", [1, 2], [[1.0, 5.0], [3.0, 5.0]]).middle
    [2.0, 5.0]
    """
    values = list(zip(*seeds, strict=True))
    return Line(label, x, [fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values])
