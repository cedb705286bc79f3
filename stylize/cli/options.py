"""Options that several commands share."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import click

# A path that click does not try to read: what cannot be read is told in a line of our own, by every command alike.
PATH = click.Path(readable=False, path_type=Path)


class FiniteRange(click.FloatRange):
    """A number within a range; not-a-number, which compares with nothing, and infinity are refused."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        number = float(super().convert(value, parameter, context))
        if not math.isfinite(number):
            self.fail(f"{value} must be a finite number.", parameter, context)
        return number


def _show_details(context: click.Context, parameter: click.Parameter, chosen: bool) -> bool:
    if chosen:
        logging.getLogger("stylize").setLevel(logging.DEBUG)
    return chosen


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_show_details,
    help="Log decisions and their reasons.",
)
overrides_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key; may be repeated."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Compute device; auto: CUDA, else MPS, else CPU.",
)
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Number of trainings at a time; they share the cores.",
)
pictures_option = click.option(
    "--pictures",
    type=PATH,
    metavar="DIR",
    help="Folder of photographs to show; default: four of those held out.",
)
