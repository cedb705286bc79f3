"""Tables and JSON."""

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
    """Numbers in columns.

    Attributes:
        header: A word for each column.
        rows: A cell for each column.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return "\n".join([header_lines(self.header), *map(_line, self.rows)])


@dataclass(frozen=True)
class Finding:
    """What was found for a subject.

    Attributes:
        notes: What is to be known beside the tables, a line each.
        tables: For people.
        numbers: The same for programs, and every round.
    """

    notes: Sequence[str]
    tables: Sequence[Table]
    numbers: Any = field(repr=False)

    def __str__(self) -> str:
        return "\n\n".join([*filter(None, ["\n".join(self.notes)]), *map(str, self.tables)])


def header_lines(header: Sequence[str]) -> str:
    """The head of a Markdown table.

    >>> print(header_lines(["a", "b"]))
    | a | b |
    |---|---|
    """
    return _line(header) + "\n|" + "---|" * len(header)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def share(value: float | None) -> str:
    """A share of what the machine can do.

    >>> share(0.256), share(None)
    ('26 %', 'unknown')
    """
    return "unknown" if value is None else f"{100 * value:.0f} %"


def gib(size_bytes: int | None) -> str:
    """A size in memory.

    >>> gib(3 * 2**29), gib(None)
    ('1.50', 'unknown')
    """
    return "unknown" if size_bytes is None else f"{size_bytes / 2**30:.2f}"


def place(environment: Mapping[str, str]) -> str:
    """Where the numbers hold, in a line."""
    told = environment
    return (
        f"torch {told['torch']}, {told['CPU']}, {told['threads']} threads, {told['CPU capability']}, "
        f"device {told['device']}"
    )


def write_json(path: Path, settings: Settings, environment: Mapping[str, str], findings: Mapping[str, Finding]) -> None:
    """All numbers so far; the file is whole at any time."""
    report = {
        "settings": asdict(settings) | {"photos": settings.photos and str(settings.photos)},
        "environment": environment,
        "subjects": {name: finding.numbers for name, finding in findings.items()},
    }
    write_atomically(path, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
