"""By which losses a command works: those of a run's config, or the default ones for a style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stylize.config import RunConfig


def check_style_is_named(style: Path | None, config_path: Path | None) -> None:
    """See that there is a style.

    Raises:
        click.UsageError: Neither option names it.
    """
    if style is None and config_path is None:
        raise click.UsageError("--style or --config: one must name the style")


def config_of_losses(config_path: Path | None, style: Path | None, overrides: Sequence[str]) -> RunConfig:
    """What `--config`, `--style` and `--set` say together.

    Raises:
        StylizeError: As `load_config`.
    """
    from stylize.config import load_config, loss_config

    if config_path is None:
        assert style is not None
        return loss_config(style, overrides)
    chosen = [] if style is None else [f"style.image={style.resolve()}"]
    return load_config(config_path, [*chosen, *overrides])
