"""Options that several commands share."""

from __future__ import annotations

import logging

import click


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
