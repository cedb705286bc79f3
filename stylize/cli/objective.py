"""The loss of a command: that of a run's config, or the default one for a style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stylize.config import ObjectiveConfig


def check_style_is_named(style: Path | None, config_path: Path | None) -> None:
    """Check that an option names the style.

    Raises:
        click.UsageError: Neither does.
    """
    if style is None and config_path is None:
        raise click.UsageError("--style or --config: one must name the style")


def objective_of(config_path: Path | None, style: Path | None, overrides: Sequence[str]) -> ObjectiveConfig:
    """Return the style and loss that `--config`, `--style` and `--set` describe.

    Raises:
        StylizeError: As `load_config`.
    """
    from stylize.config import load_config, objective_config

    if config_path is None:
        assert style is not None
        return objective_config(style, overrides)
    chosen = [] if style is None else [f"style.image={style.resolve()}"]
    return load_config(config_path, [*chosen, *overrides]).objective()
