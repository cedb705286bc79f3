"""`stylize check-data`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from stylize.cli.options import PATH
from stylize.errors import StylizeError


@click.command(name="check-data")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option(
    "--resize",
    type=click.IntRange(16),
    default=288,
    show_default=True,
    metavar="PX",
    help="Shorter side to which the training resizes photographs (content.resize).",
)
def check_data(folder: Path, resize: int) -> None:
    """Check a folder of photographs: decode every file as a training would."""
    from tqdm import tqdm

    from stylize.pictures.find import search_folder
    from stylize.pictures.formats import listed_suffixes
    from stylize.training.loader import UNREADABLE_SHARE
    from stylize.training.photographs import check_folder

    if not folder.is_dir():
        raise StylizeError(f"{folder}: must be a folder of photographs that exists")
    search = search_folder(folder, distinct=True)
    for line in search.told():
        click.echo(line)
    if not search.images:
        but = " but painted ones" if search.painted else ""
        raise StylizeError(f"{folder}: holds no image files{but} ({listed_suffixes()})")
    report = check_folder(search.images, resize, partial(tqdm, unit="image", disable=not sys.stderr.isatty()))
    click.echo(f"{report.files} image files, {len(report.unreadable)} unreadable")
    if report.sizes:
        shorter = sorted(min(size) for size in report.sizes)
        click.echo(f"shorter sides: {shorter[0]} to {shorter[-1]} px, median {shorter[len(shorter) // 2]} px")
        click.echo(f"{report.small} would be enlarged to {resize} px")
    for path in report.even:
        click.echo(f"even, of one colour, so nothing can be learned from it: {path}")
    for message in report.unreadable:
        click.echo(f"unreadable: {message}")
    if not report.sizes or len(report.unreadable) > UNREADABLE_SHARE * report.files:
        raise StylizeError(
            f"{folder}: a run would stop: {len(report.unreadable)} of {report.files} files are unreadable "
            f"(at most {UNREADABLE_SHARE:.0%})"
        )
    click.echo(f"a run would use {len(report.sizes)} photographs")
