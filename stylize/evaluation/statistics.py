"""Tables, and the spread and confidence interval of a mean."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeAlias

import numpy as np

Cell: TypeAlias = str | float | int
Row: TypeAlias = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table of text and numbers.

    Attributes:
        title: Title of the table.
        columns: Column heads.
        rows: One cell per column each.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Row]

    def to_csv(self) -> str:
        """Return the table as CSV with all digits."""
        return csv_text(self.columns, self.rows)


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation with four digits after the point; a single value alone.

    >>> spread([1.0, 2.0, 3.0]), spread([0.5])
    ('2.0000 ± 1.0000', '0.5000')
    """
    return f"{fmean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def confidence(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the mean by percentiles of a seeded bootstrap.

    >>> confidence([3.0, 3.0, 3.0])
    (3.0, 3.0)
    """
    drawn = np.random.default_rng(0).choice(np.asarray(values, float), (draws, len(values)))
    low, high = np.percentile(drawn.mean(1), (2.5, 97.5))
    return float(low), float(high)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return rows below a line of heads as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
