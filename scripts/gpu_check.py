"""Check a new GPU in minutes: that everything computes right on it, and how fast.

python scripts/gpu_check.py [--device cuda|cpu] [--minutes 8] [--miniature] [--output DIR] [--only SECTION ...]

Needs this checkout and stylize's run-time dependencies, no pytest, no network connection and no photographs. Every
section runs in a process of its own with its own time limit, so that one that fails, crashes or hangs does not hide the
others. The report is printed and written to DIR/gpu_check.md, all numbers to DIR/gpu_check.json, after every section
anew. Exits with 1 if a check failed; goals that are not reached are told only. `--device cpu --miniature` runs the same
code in less than a minute.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_checks import report  # noqa: E402  # needs the path
from gpu_checks.requirements import missing_options, missing_packages, put_stand_ins  # noqa: E402
from gpu_checks.results import perform_all  # noqa: E402
from gpu_checks.running import DEVICE_LOST, Options, Outcome, Section, run_sections  # noqa: E402

# In the order of their worth, should the machine be taken away. A line: name, module, part of the time.
SECTIONS = (
    Section("environment", "gpu_checks.environment", 4, "What the machine is, and its rates."),
    Section(
        "numerics",
        "gpu_checks.numerics",
        8,
        "Every operation against float64 on the CPU; errors are relative to the largest value.",
    ),
    Section(
        "networks",
        "gpu_checks.networks",
        12,
        "Every generator, norm and precision against float64 on the CPU. A picture's error is relative to its "
        "contrast, that of a gradient to its length.",
    ),
    Section(
        "speed",
        "gpu_checks.speed",
        34,
        "Training steps, painting, files and the loader. Shares are of the rate of a large product of matrices.",
    ),
    Section(
        "compile", "gpu_checks.compilation", 13, "Compiled training steps beside eager ones; they must be one graph."
    ),
    Section(
        "training", "gpu_checks.training", 10, "A training beside the same on the CPU, resumed, with a damaged batch."
    ),
    Section("memory", "gpu_checks.memory", 8, "Exhausted memory, pictures beyond 2³¹ values a map, estimates."),
    Section("profile", "gpu_checks.profiling", 11, "Where the time of a step and of a picture goes."),
)


SECONDS_TO_TELL = 1.0  # before a process that hangs is killed


def main(arguments: Sequence[str] | None = None, sections: Sequence[Section] = SECTIONS) -> int:
    """Run the sections, print and write the report; return the exit status."""
    options = _parser(sections).parse_args(arguments)
    lacking = missing_packages()
    if lacking:
        print(f"gpu_check: not installed: {', '.join(lacking)}", file=sys.stderr)
        return 2
    if options.device == "cuda" and not _finds_cuda():
        print("gpu_check: --device: got 'cuda', which torch does not find here", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    if options.module is not None:
        return run_module(options)
    chosen = [section for section in sections if options.only is None or section.name in options.only]
    given = Options(options.device, options.miniature, options.output.resolve(), options.minutes)

    def write(outcomes: list[Outcome]) -> None:
        report.write_report(outcomes, given)

    outcomes = run_sections(chosen, given, write)
    print(report.write_report(outcomes, given))
    return 1 if report.failures(outcomes) else 0


def run_module(options: argparse.Namespace) -> int:
    """Make the checks of one section in this process; return the exit status."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(0.5, options.seconds - SECONDS_TO_TELL))  # where it hangs
    missing = missing_options()
    put_stand_ins(missing)
    from gpu_checks.setting import Setting

    setting = Setting.prepare(options.device, options.miniature, options.output, missing)
    checks = importlib.import_module(options.module).checks(setting)
    return 0 if perform_all(checks, options.events, options.seconds) else DEVICE_LOST


def _finds_cuda() -> bool:
    import torch  # not before it is known to be installed

    return torch.cuda.is_available()


def _parser(sections: Sequence[Section]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device to check")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything; default: 8")
    parser.add_argument("--miniature", action="store_true", help="make everything small, to try the check itself")
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder of the report")
    parser.add_argument(
        "--only", nargs="+", choices=[section.name for section in sections], help="run only these sections"
    )
    for hidden, kind in (("--module", str), ("--events", Path), ("--seconds", float)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
