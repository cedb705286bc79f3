"""The report: Markdown for readers who were not there, and JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gpu_checks.results import Goal, Result
from gpu_checks.running import Options, Outcome

MARKDOWN, JSON = "gpu_check.md", "gpu_check.json"


def write_report(outcomes: Sequence[Outcome], options: Options) -> str:
    """Write both files; return the Markdown."""
    text = report(outcomes, options)
    (options.folder / MARKDOWN).write_text(text, "utf-8")
    numbers = json.dumps(_numbers(outcomes, options), indent=2, ensure_ascii=False)
    (options.folder / JSON).write_text(numbers + "\n", "utf-8")
    return text


def report(outcomes: Sequence[Outcome], options: Options) -> str:
    """Return the report as Markdown: a summary, the goals, then every section."""
    size = ", in miniature: its times say nothing" if options.miniature else ""
    lines = [
        f"# Check of {_place(outcomes)}",
        "",
        f"`python scripts/gpu_check.py --device {options.device} --minutes {options.minutes:g}"
        f"{' --miniature' if options.miniature else ''}` on {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC{size}",
        "",
        *table(("section", "result", "passed", "failed", "skipped", "seconds"), map(_summary, outcomes)),
    ]
    goals = [goal for outcome in outcomes for result in outcome.results for goal in result.found.goals]
    if goals:
        lines += ["", "## Goals", "", *table(("goal", "measured", "aimed at", "result"), map(_goal_row, goals))]
    for outcome in outcomes:
        lines += ["", *_details(outcome)]
    return "\n".join(lines) + "\n"


def _place(outcomes: Sequence[Outcome]) -> str:
    for outcome in outcomes:
        for result in outcome.results:
            if "place" in result.found.numbers:
                return str(result.found.numbers["place"])
    return "a device"


def _summary(outcome: Outcome) -> list[str]:
    counts = [str(outcome.count(status)) for status in ("passed", "failed", "skipped")]
    word = f"{outcome.word} ({outcome.trouble})" if outcome.trouble else outcome.word
    return [outcome.section.name, word, *counts, f"{outcome.seconds:.1f}"]


def _goal_row(goal: Goal) -> list[str]:
    side = "≥" if goal.at_least else "≤"
    word = "reached" if goal.reached else "NOT reached"
    return [goal.name, f"{goal.value:.3g} {goal.unit}", f"{side} {goal.target:g} {goal.unit}", word]


def _details(outcome: Outcome) -> Iterator[str]:
    yield f"## {outcome.section.name}: {outcome.word}"
    yield ""
    yield outcome.section.about
    if outcome.trouble:
        yield from ("", f"The section did not end by itself: {outcome.trouble}. The last lines that it printed:", "")
        yield from ("```", *outcome.tail, "```")
    failed = [result for result in outcome.results if result.status == "failed"]
    if failed:
        yield from ("", "Failed:", "")
        for result in failed:
            first, *rest = result.message.splitlines() or [""]
            yield f"- **{result.name}**: {first}"
            yield from (f"  {line}" for line in rest)
    skipped: dict[str, list[str]] = {}
    for result in outcome.results:
        if result.status == "skipped":
            skipped.setdefault(result.message, []).append(result.name)
    if skipped:
        yield from ("", "Skipped:", "")
        yield from (f"- {'; '.join(names)}: {reason}" for reason, names in skipped.items())
    for title in dict.fromkeys(result.table for result in outcome.results if result.found.row):
        yield from _table_of(title, [result for result in outcome.results if result.table == title])
    for result in outcome.results:
        for title, rows in result.found.tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            yield from ("", f"### {title[0].upper()}{title[1:]}", "")
            yield from table(columns, ([row.get(column, "") for column in columns] for row in rows))


def _table_of(title: str, results: Sequence[Result]) -> Iterator[str]:
    rows = [result for result in results if result.found.row]
    columns = list(dict.fromkeys(column for result in rows for column in result.found.row))
    with_status = any(result.status == "failed" for result in rows)
    header = [*columns, *(["result"] if with_status else [])]
    yield ""
    if title:
        yield from (f"### {title[0].upper()}{title[1:]}", "")
    cells = (
        [*(result.found.row.get(c, "") for c in columns), *([result.status] if with_status else [])] for result in rows
    )
    yield from table(header, cells)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; bars within cells are escaped.

    >>> table(["a"], [["b|c"]])
    ['| a |', '|---|', '| b\\\\|c |']
    """
    return [_line(header), "|" + "---|" * len(header), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _numbers(outcomes: Sequence[Outcome], options: Options) -> Mapping[str, Any]:
    return {
        "options": {**asdict(options), "folder": str(options.folder)},
        "sections": {
            outcome.section.name: {
                "result": outcome.word,
                "trouble": outcome.trouble,
                "seconds": outcome.seconds,
                "tail": list(outcome.tail) if outcome.trouble else [],
                "checks": [
                    {**asdict(result), "found": {**asdict(result.found), "goals": list(map(_goal, result.found.goals))}}
                    for result in outcome.results
                ],
            }
            for outcome in outcomes
        },
    }


def _goal(goal: Goal) -> dict[str, Any]:
    return {**asdict(goal), "reached": goal.reached}


def failures(outcomes: Sequence[Outcome]) -> int:
    """Return the number of sections that failed."""
    return sum(outcome.word == "FAILED" for outcome in outcomes)


__all__ = ["JSON", "MARKDOWN", "failures", "report", "table", "write_report"]
