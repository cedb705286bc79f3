"""Checks, and how a section's process tells what they find: line by line, so that a killed one has told its part."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]
OUT_OF_TIME = "no time is left in this section"
MESSAGE_LINES = 6
BEGINS = "begins"
# Errors after which CUDA refuses all further work of the process.
LOST = re.compile(r"^(Accelerator|Runtime)Error: CUDA error")
SHARE_FOR_LAST_CHECK = 0.1  # of a section's time


@dataclass(frozen=True)
class Goal:
    """A figure that is aimed at.

    Attributes:
        name: What is measured.
        value: The measured figure.
        target: The figure aimed at.
        unit: Unit of both.
        at_least: Whether larger is better.
    """

    name: str
    value: float
    target: float
    unit: str
    at_least: bool = True

    @property
    def reached(self) -> bool:
        """Whether the figure is as good as the target."""
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass(frozen=True)
class Found:
    """What a check measured.

    Attributes:
        row: Cells of its row in the report's table, by column.
        numbers: The numbers for JSON.
        goals: Figures with their targets.
        tables: Rows of tables of its own, by title.
    """

    row: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    tables: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)


class Failed(Exception):
    """A check found a fault.

    Args:
        message: What is wrong.
        found: What was measured nevertheless.
    """

    def __init__(self, message: str, found: Found = Found()) -> None:  # immutable
        super().__init__(message)
        self.found = found


class Skipped(Exception):
    """A check cannot be made here; the message says why."""


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: What is checked.
        run: Returns what was measured; raises `Failed`, `Skipped`, or what went wrong.
        table: Title of the table that its row belongs to.
        needs_s: Seconds without which it is not begun.
    """

    name: str
    run: Callable[[], Found]
    table: str = ""
    needs_s: float = 0.0


@dataclass(frozen=True)
class Result:
    """The outcome of a check.

    Attributes:
        name: Name of the check.
        status: `passed`, `failed` or `skipped`.
        seconds: Duration.
        message: Why it failed or was skipped.
        table: See `Check`.
        found: What was measured.
    """

    name: str
    status: Status
    seconds: float
    message: str = ""
    table: str = ""
    found: Found = field(default_factory=Found)


def perform(check: Check) -> Result:
    """Make a check; errors of every kind are its result."""
    start_s = time.monotonic()

    def result(status: Status, message: str, found: Found) -> Result:
        return Result(check.name, status, time.monotonic() - start_s, message, check.table, found)

    try:
        return result("passed", "", check.run())
    except Failed as error:
        return result("failed", str(error), error.found)
    except Skipped as error:
        return result("skipped", str(error), Found())
    except Exception as error:  # any error of any library is a finding
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        print(f"{check.name}: {lines[0]}", file=sys.stderr, flush=True)
        return result("failed", "\n".join(lines[:MESSAGE_LINES]), Found())


def perform_all(checks: Iterable[Check], events: Path, seconds: float) -> bool:
    """Make checks one after the other and append their results to a file, as JSON lines, before each its name.

    Args:
        checks: The checks; of an earlier process the file may hold results of the first of them, which are passed over.
        events: The file.
        seconds: Time until the process is killed: checks that may not be finished by then are skipped.

    Returns:
        Whether all were made; False: the device is lost to this process, and another one must go on.
    """
    end_s = time.monotonic() + seconds
    for check in itertools.islice(checks, len(read_results(events)), None):
        late = end_s - time.monotonic() < max(check.needs_s, SHARE_FOR_LAST_CHECK * seconds)
        print(check.name, flush=True)
        _append(events, {BEGINS: check.name, "table": check.table})
        result = Result(check.name, "skipped", 0.0, OUT_OF_TIME, check.table) if late else perform(check)
        append_result(events, result)
        if LOST.search(result.message):
            return False
    return True


def append_result(events: Path, result: Result) -> None:
    """Append a result to a file."""
    _append(events, asdict(result))


def _append(events: Path, line: Mapping[str, Any]) -> None:
    with events.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_results(events: Path) -> list[Result]:
    """Return the results in a file."""
    return [_result(line) for line in _lines(events) if BEGINS not in line]


def begun_check(events: Path) -> Check | None:
    """Return the name and table of the check that was begun last, unless its result is known."""
    lines = _lines(events)
    if not lines or BEGINS not in lines[-1]:
        return None
    return Check(lines[-1][BEGINS], Found, lines[-1]["table"])


def _lines(events: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; a last one that was cut short is passed over."""
    lines = events.read_text("utf-8").splitlines(keepends=True) if events.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _result(told: dict[str, Any]) -> Result:
    found = told.pop("found")
    goals = tuple(Goal(**goal) for goal in found.pop("goals"))
    return Result(**told, found=Found(**found, goals=goals))


def require(condition: bool, message: str, found: Found = Found()) -> None:  # immutable
    """Fail with a message unless the condition holds.

    Raises:
        Failed: It does not.
    """
    if not condition:
        raise Failed(message, found)
