"""Write findings as Markdown tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.settings import Settings

from stylize.system.files import write_atomically


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: Name of each column.
        rows: Cells of each row.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return "\n".join([header_lines(self.header), *map(_line, self.rows)])


@dataclass(frozen=True)
class Finding:
    """The results of a subject.

    Attributes:
        notes: Lines to print above the tables.
        tables: Tables to print.
        numbers: The numbers for JSON, with every round.
    """

    notes: Sequence[str]
    tables: Sequence[Table]
    numbers: Any = field(repr=False)

    def __str__(self) -> str:
        return "\n\n".join([*filter(None, ["\n".join(self.notes)]), *map(str, self.tables)])


def header_lines(header: Sequence[str]) -> str:
    """Return the head of a Markdown table.

    >>> print(header_lines(["a", "b"]))
    | a | b |
    |---|---|
    """
    return _line(header) + "\n|" + "---|" * len(header)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def share(value: float | None) -> str:
    """Return a share as text.

    >>> share(0.256), share(None)
    ('26 %', 'unknown')
    """
    return "unknown" if value is None else f"{100 * value:.0f} %"


def gib(size_bytes: int | None) -> str:
    """Return a size in GiB as text.

    >>> gib(3 * 2**29), gib(None)
    ('1.50', 'unknown')
    """
    return "unknown" if size_bytes is None else f"{size_bytes / 2**30:.2f}"


def place(environment: Mapping[str, str]) -> str:
    """Return an environment as a line of text."""
    told = environment
    return (
        f"torch {told['torch']}, {told['CPU']} ({told['CPU features']}), {told['threads']} threads, "
        f"{told['CPU capability']}, device {told['device']}"
    )


def write_json(path: Path, settings: Settings, environment: Mapping[str, str], findings: Mapping[str, Finding]) -> None:
    """Write all numbers so far, atomically."""
    report = {
        "settings": asdict(settings) | {"photos": settings.photos and str(settings.photos)},
        "environment": environment,
        "subjects": {name: finding.numbers for name, finding in findings.items()},
    }
    write_atomically(path, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
