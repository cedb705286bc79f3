"""Time stylize against the same mathematics written plainly, and against what the machine can do.

Subjects, chosen by name; without any: `step apply`, and `all`: every one.

* ``floor``: a large product of matrices and a large copy. It is measured with every subject: they tell their share.
* ``step``: one optimizer step, by norm and precision.
* ``norms``: the normalization layers, forward and backward.
* ``data``: photographs to batches, beside what the training step consumes; decoding.
* ``apply``: painting one square image, the first of a process and one of many.
* ``sizes``: painting by size, with the memory that it takes.
* ``folder``: many small pictures from files to files, beside the bare network on tensors.

``stylize`` runs a real `Trainer` and a real `Stylizer`, with the memory format and compilation that they choose.
``plain`` is eager float32 of ordinary `torch.nn` modules in the contiguous layout, as the widely copied scripts write
it, with the same weights: the first repeat of each side must give the same loss, gradient norm and picture. VGG-19's
weights are random and seeded; they do not change the time. Every side has a process of its own, so that its peak
memory can be told; the sides take turns::

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


def chosen_subjects(names: Sequence[str]) -> list[str]:
    """The subjects beside the floor, in the order of the table.

    >>> chosen_subjects(())
    ['step', 'apply']
    >>> chosen_subjects(("sizes", "floor", "norms"))
    ['norms', 'sizes']
    """
    wanted = SUBJECTS if ALL in names else names or DEFAULT
    return [name for name in SUBJECTS if name in wanted]


def _multiple_of_4(context: click.Context, parameter: click.Parameter, value: int) -> int:
    if value % 4:  # the plain generator does not crop what it enlarges
        raise click.BadParameter(f"got {value}, must be a multiple of 4")
    return value


side_px = click.IntRange(32)


@click.command()
@click.argument("subjects", nargs=-1, type=click.Choice([FLOOR, *SUBJECTS, ALL]))
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns of each side.")
@click.option("--steps", type=click.IntRange(1), default=3, show_default=True, help="Timed repeats in a turn.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Crops in a training step.")
@click.option("--crop", type=side_px, callback=_multiple_of_4, default=256, show_default=True, help="Their side, px.")
@click.option(
    "--size", type=side_px, callback=_multiple_of_4, default=1024, show_default=True, help="Side to paint, px."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of torch on the CPU; default: torch's own choice.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Of stylize; plain is always fp32. auto: fp32, and bf16 where the hardware multiplies it.",
)
@click.option(
    "--compile",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Of stylize's training step.",
)
@click.option(
    "--norm",
    "norms",
    type=click.Choice(list(NORMS)),
    multiple=True,
    default=("instance", *(name for name in NORMS if name != "instance")),
    help="Of stylize's training step; may be given several times. Default: all.",
)
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Photographs for the data path, and to compare precisions by; default: generated ones.",
)
@click.option(
    "--pictures", type=click.IntRange(1), default=500, show_default=True, help="In the folder that is painted."
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers there.")
def main(
    subjects: Sequence[Literal["floor", "step", "norms", "data", "apply", "sizes", "folder", "all"]],
    json_file: Path | None,
    **options: Any,
) -> None:
    """Time stylize against the same mathematics written plainly, and against what the machine can do.

    Without subjects: step apply.
    """
    try:
        run(subjects, Settings(**options), json_file)
    except StylizeError as error:
        raise click.ClickException(str(error)) from error


def run(subjects: Sequence[str], settings: Settings, json_file: Path | None) -> None:
    """Measure, and print and write each finding as soon as it is there."""
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
