"""Time stylize against a plain implementation of the same mathematics, and against the machine's peak rates.

Subjects are given by name; the default is `step apply`, and `all` runs every one.

* ``floor``: a large matrix product and a large copy. Both are measured with every subject, which reports its share.
* ``step``: one optimizer step, by norm and precision.
* ``norms``: the normalization layers, forward and backward.
* ``data``: the loader's rate compared with that of the training step; decoding.
* ``apply``: painting one square image, the first of a process and one of many.
* ``sizes``: time and memory of painting, by size.
* ``folder``: many small pictures from files to files, compared with the bare network on tensors.

``stylize`` runs a real `Trainer` and a real `Stylizer`, with the memory format and compilation that they choose.
``plain`` runs ordinary `torch.nn` modules in eager float32 and the contiguous layout, as in the widely copied scripts,
with the same weights: the first repeat of each side must give the same loss, gradient norm and picture. VGG-19's
weights are random and seeded; they do not affect the time. Each side has its own process, so that its peak memory can
be measured; the sides take turns::

    python scripts/benchmark.py [SUBJECT ...] [--rounds 3] [--steps 3] [--device cuda] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click
from benchmarks import apply, data, folder, norms, step
from benchmarks.floor import Floor, finding, measure_floor
from benchmarks.report import Finding, place, write_json
from benchmarks.settings import Settings

from stylize.errors import StylizeError
from stylize.norms import NORMS

FLOOR = "floor"
SUBJECTS: Mapping[str, Callable[[Settings, Floor], Finding]] = {
    "step": step.run,
    "norms": norms.run,
    "data": data.run,
    "apply": apply.run,
    "sizes": apply.run_sizes,
    "folder": folder.run,
}
DEFAULT = ("step", "apply")
ALL = "all"
PAINTING = ("apply", "sizes", "folder")


def chosen_subjects(names: Sequence[str]) -> list[str]:
    """Return the subjects apart from the floor, in the order of the table.

    >>> chosen_subjects(())
    ['step', 'apply']
    >>> chosen_subjects(("sizes", "floor", "norms"))
    ['norms', 'sizes']
    """
    wanted = SUBJECTS if ALL in names else names or DEFAULT
    return [name for name in SUBJECTS if name in wanted]


def check_precision(precision: str, names: Sequence[str]) -> None:
    """Refuse to train in a precision that is for painting only.

    Raises:
        click.ClickException: A chosen subject is no painting.
    """
    others = [name for name in chosen_subjects(names) if name not in PAINTING]
    if precision == "fp16" and others:
        raise click.ClickException(f"--precision: got 'fp16' with {', '.join(others)}; it is for {', '.join(PAINTING)}")


def _multiple_of_4(context: click.Context, parameter: click.Parameter, value: int) -> int:
    if value % 4:  # the plain generator does not crop after upsampling
        raise click.BadParameter(f"got {value}, must be a multiple of 4")
    return value


side_px = click.IntRange(32)


@click.command()
@click.argument("subjects", nargs=-1, type=click.Choice([FLOOR, *SUBJECTS, ALL]))
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Number of turns of each side.")
@click.option(
    "--steps", type=click.IntRange(1), default=3, show_default=True, help="Number of timed repeats in a turn."
)
@click.option(
    "--batch", type=click.IntRange(1), default=4, show_default=True, help="Number of crops in a training step."
)
@click.option(
    "--crop", type=side_px, callback=_multiple_of_4, default=256, show_default=True, help="Side of a crop, px."
)
@click.option(
    "--size",
    type=side_px,
    callback=_multiple_of_4,
    default=1024,
    show_default=True,
    help="Side of the painted image, px.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Number of CPU threads; default: chosen by torch.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Precision of stylize, of both sides in norms; plain is otherwise fp32. auto: fp32, and bf16 if the hardware "
    "supports it. fp16 is for painting only.",
)
@click.option(
    "--compile",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Compilation of stylize's training step.",
)
@click.option(
    "--norm",
    "norms",
    type=click.Choice(list(NORMS)),
    multiple=True,
    default=("instance", *(name for name in NORMS if name != "instance")),
    help="Norm of stylize's training step; repeatable. Default: all.",
)
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Photographs for `data`, and for comparing precisions in `apply`; default: generated ones.",
)
@click.option(
    "--pictures",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Number of pictures in the folder that is painted.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="File for the numbers.")
def main(
    subjects: Sequence[Literal["floor", "step", "norms", "data", "apply", "sizes", "folder", "all"]],
    json_file: Path | None,
    **options: Any,
) -> None:
    """Time stylize against a plain implementation of the same mathematics, and against the machine's peak rates.

    Default subjects: step apply.
    """
    try:
        run(subjects, Settings(**options), json_file)
    except StylizeError as error:
        raise click.ClickException(str(error)) from error


def run(subjects: Sequence[str], settings: Settings, json_file: Path | None) -> None:
    """Measure the subjects; print and write each finding as soon as it is available.

    Raises:
        click.ClickException: A subject does not have the precision, or fails.
    """
    check_precision(settings.precision, subjects)
    floor = measure_floor(settings)
    findings = {FLOOR: finding(floor)}
    click.echo(f"{place(floor.environment)}\n\n{findings[FLOOR]}")
    for name in chosen_subjects(subjects):
        findings[name] = SUBJECTS[name](settings, floor)
        click.echo(f"\n{findings[name]}")
        if json_file is not None:
            write_json(json_file, settings, floor.environment, findings)
    if json_file is not None:
        write_json(json_file, settings, floor.environment, findings)


if __name__ == "__main__":
    main()
