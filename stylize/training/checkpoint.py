"""The full training state on disk, written atomically, loaded without running code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stylize.errors import StylizeError

NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of a step.

    >>> checkpoint_path(Path("checkpoints"), 1000).name
    'step-00001000.pt'
    """
    return folder / f"step-{step:08d}.pt"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write the state of a step, whole or not at all, and remove all but the newest `keep` checkpoints.

    Raises:
        StylizeError: The folder cannot be written to; older checkpoints stay.
    """
    path = checkpoint_path(folder, step)
    temporary = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StylizeError(f"{path}: the checkpoint cannot be written ({reason})") from error
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(path for path in found if NAME.fullmatch(path.name))


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted.

    Raises:
        StylizeError: It is damaged.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file makes the reader raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StylizeError(f"{path}: the checkpoint is damaged ({reason})") from error
    if not isinstance(state, dict):
        raise StylizeError(f"{path}: no checkpoint: must hold a dict")
    return state
