"""Run sections, each in a process of its own and with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gpu_checks.results import MESSAGE_LINES, Result, append_result, begun_check, read_results

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"
TAIL_LINES = 25
DEVICE_LOST = 75  # exit status of a process whose checks are not all made


class Section(NamedTuple):
    """A section of the check.

    Attributes:
        name: Its name.
        module: The module with its `checks(setting)`.
        share: Its part of the time, relative to those of the others.
        about: What it checks, as a sentence.
    """

    name: str
    module: str
    share: float
    about: str


@dataclass(frozen=True)
class Options:
    """Options of the check.

    Attributes:
        device: `cuda` or `cpu`.
        miniature: Whether everything is small.
        folder: Folder of the report.
        minutes: Time for everything.
    """

    device: str
    miniature: bool
    folder: Path
    minutes: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of a section.

    Attributes:
        section: The section.
        seconds: Duration.
        results: Results of its checks, as far as it told them.
        trouble: Why its process did not end by itself; empty if it did.
        tail: The last lines that it printed.
    """

    section: Section
    seconds: float
    results: Sequence[Result] = ()
    trouble: str = ""
    tail: Sequence[str] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Return the number of checks with this status."""
        return sum(result.status == status for result in self.results)

    @property
    def word(self) -> str:
        """`passed`, `FAILED`, or `skipped` where no check was made."""
        if self.trouble or self.count("failed"):
            return "FAILED"
        return "passed" if self.count("passed") else "skipped"


def run_sections(
    sections: Sequence[Section], options: Options, on_outcome: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Run sections one after the other; time that one does not use is the others'.

    Args:
        sections: The sections.
        options: Options of the check.
        on_outcome: Called after every section with all outcomes so far.
    """
    end_s = time.monotonic() + 60 * options.minutes
    outcomes: list[Outcome] = []
    for i, section in enumerate(sections):
        left_s = max(0.0, end_s - time.monotonic())
        limit_s = left_s * section.share / sum(later.share for later in sections[i:])
        print(f"{section.name}, at most {limit_s:.0f} s", file=sys.stderr, flush=True)
        outcomes.append(run_section(section, options, limit_s))
        on_outcome(outcomes)
    return outcomes


def run_section(section: Section, options: Options, limit_s: float) -> Outcome:
    """Run a section; a process that is not finished at its limit is killed with all that it started.

    Where a check ends its process, or loses the device, another process goes on with the next check.
    """
    events, log = (options.folder / f"{section.name}.{suffix}" for suffix in ("jsonl", "log"))
    events.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    start_s = time.monotonic()
    while True:
        status = _run_process(section, options, events, log, limit_s - (time.monotonic() - start_s))
        tail = log.read_text("utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        guilty = begun_check(events)
        if status == DEVICE_LOST and guilty is None:
            continue
        if status in (0, None) or guilty is None:
            break
        message = "\n".join([_reason(status), *tail[-MESSAGE_LINES:]])
        append_result(events, Result(guilty.name, "failed", 0.0, message, guilty.table))
    trouble = "" if status == 0 else _reason(status)
    if status is None:
        during = "" if guilty is None else f" during: {guilty.name}"
        trouble = f"killed at its limit of {limit_s:.0f} s{during}"
    return Outcome(section, time.monotonic() - start_s, read_results(events), trouble, tail)


def _run_process(section: Section, options: Options, events: Path, log: Path, limit_s: float) -> int | None:
    """Run a process of a section and return its exit status; None: it was killed at its limit."""
    command = [sys.executable, str(SCRIPT), f"--device={options.device}", f"--output={options.folder}"]
    command += [f"--module={section.module}", f"--events={events}", f"--seconds={limit_s}"]
    command += ["--miniature"] if options.miniature else []
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(max(0.0, limit_s))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):  # compilers that it started, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _reason(status: int | None) -> str:
    """Return why a process ended.

    >>> _reason(3), _reason(-11)
    ('its process ended with status 3', 'its process was ended by SIGSEGV')
    """
    if status is None or status >= 0:
        return f"its process ended with status {status}"
    return f"its process was ended by {signal.Signals(-status).name}"
