"""The full training state on disk: written atomically, verified by checksum, loaded without running code.

A file starts with a line with the step and the SHA-256 of the rest, which `torch.save` writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stylize.errors import StylizeError
from stylize.system.files import write_atomically

logger = logging.getLogger("stylize")

NAME = re.compile(r"step-(\d{8})\.pt")
HEADER = re.compile(rb"stylize checkpoint 1, step (\d{1,12}), sha256 ([0-9a-f]{64})\n")
MAX_HEADER_BYTES = 128


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint.

    >>> checkpoint_path(Path("checkpoints"), 1000).name
    'step-00001000.pt'
    """
    return folder / f"step-{step:08d}.pt"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write the state of a step atomically, then remove all but the newest `keep` checkpoints.

    Raises:
        StylizeError: The folder cannot be written to; older checkpoints stay.
    """
    path = checkpoint_path(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StylizeError(f"{path}: cannot be written ({error.strerror})") from error
    write_atomically(path, encode_checkpoint(step, state))
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def encode_checkpoint(step: int, state: Mapping[str, Any]) -> bytes:
    """Return the bytes of a checkpoint file."""
    encoded = io.BytesIO()
    torch.save(dict(state), encoded)
    payload = encoded.getvalue()
    return b"stylize checkpoint 1, step %d, sha256 %s\n" % (step, _digest(step, payload)) + payload


def _digest(step: int, payload: bytes) -> bytes:
    return hashlib.sha256(b"%d\n" % step + payload).hexdigest().encode()


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first, by the step in the file, or in its name if the file is damaged."""
    found = folder.iterdir() if folder.is_dir() else iter(())
    steps = {path: _step(path) for path in found if path.suffix == ".pt" and path.is_file()}
    return sorted((path for path, step in steps.items() if step is not None), key=lambda path: (steps[path], path))


def _step(path: Path) -> int | None:
    with path.open("rb") as file:
        header = HEADER.match(file.read(MAX_HEADER_BYTES))
    if header is not None:
        return int(header[1])
    name = NAME.fullmatch(path.name)
    return int(name[1]) if name is not None else None


def newest_checkpoint(folder: Path, device: torch.device) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest intact checkpoint, or None if there are no checkpoints.

    Newer damaged ones are logged and renamed to end in `.damaged`. Otherwise they would count among those to keep, in
    place of intact ones.

    Raises:
        StylizeError: All are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            state = load_checkpoint(path, device)
        except StylizeError as error:
            logger.warning("%s; passed over", error)
            with contextlib.suppress(OSError):
                path.replace(path.with_name(f"{path.name}.damaged"))
            continue
        return path, state
    if found:
        raise StylizeError(f"{folder}: every checkpoint is damaged; start anew with --overwrite or another --output")
    return None


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint, which may contain tensors and plain values only.

    Raises:
        StylizeError: It is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StylizeError(f"{path}: the checkpoint cannot be read ({error.strerror})") from error
    header = HEADER.match(content)
    if header is None:
        raise StylizeError(f"{path}: the checkpoint is damaged (its first line is not that of a checkpoint)")
    payload = content[header.end() :]
    if _digest(int(header[1]), payload) != header[2]:
        raise StylizeError(f"{path}: the checkpoint is damaged (its content does not have its SHA-256)")
    try:
        state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except Exception as error:  # on a forged file torch.load may raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StylizeError(f"{path}: the checkpoint is damaged ({reason})") from error
    if not isinstance(state, dict):
        raise StylizeError(f"{path}: no checkpoint: must hold a dict")
    return state
