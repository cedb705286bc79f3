"""Whether a run may be resumed: by its settings, and by what its files hold, wherever they are now."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stylize.config import RunConfig, is_vgg_keyword, load_config
from stylize.errors import StylizeError
from stylize.system.files import write_atomically

logger = logging.getLogger("stylize")

INPUTS_NAME = "inputs.json"
KEPT_STYLES = "train.start"  # the names of the styles that a run keeps from its start, which is not looked at again
HASHED_BYTES = 2**20  # of a file of weights, which has half a gigabyte
# Keys that may differ when a run is resumed: they do not change what was computed so far.
RESUMABLE_KEYS = frozenset(
    f"train.{key}"
    for key in (
        "steps",
        "checkpoint_every",
        "keep_checkpoints",
        "validate_every",
        "stop_after",
        "log_every",
        "compile",
        "deterministic",
        "start",
    )
) | {"content.workers", "content.cache"}
# What was done before there were these keys, and with which values a run of such a version goes on.
BEFORE: Mapping[str, Any] = {
    "generator.margin": 0,
    "loss.style_energy": "style",
    "train.norm_rate": 1.0,
    "train.optimizer": "adam",
    "train.shift_weight": 0.0,
}
# Keys that hold paths: files may have moved. What they hold must be as before.
MOVABLE_KEYS = ("content.path", "content.validation", "style.image", "style.images", "styles", "loss.vgg")


class Moved(NamedTuple):
    """A key whose path is another than before."""

    key: str
    before: Any
    now: Any

    def refusal(self, but: str) -> StylizeError:
        return StylizeError(
            f"--resume: {self.key} was {self.before!r} and is now {self.now!r}, {but}; start a new run with --output"
        )


def as_begun(config: RunConfig, folder: Path) -> RunConfig:
    """Return a config as the run in this folder has it, at keys of `BEFORE` that it does not name.

    Raises:
        StylizeError: The run's config cannot be read.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return config
    values = _config_of_run(path).flat()
    return _where_unnamed(config, {key: values[key] for key in BEFORE})


def _config_of_run(path: Path) -> RunConfig:
    """The config of a run; what versions without a key did is put in its place."""
    return _where_unnamed(load_config(path), BEFORE)


def _where_unnamed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    for key, value in values.items():
        part, name = key.split(".")
        if name not in getattr(config, part).model_fields_set:
            config = config.model_copy(update={part: getattr(config, part).model_copy(update={name: value})})
    return config


def moved_since(path: Path, config: RunConfig) -> list[Moved]:
    """Return the paths that differ from those of a run's config file.

    Raises:
        StylizeError: Under these settings the run so far would have been another.
    """
    before, now = _config_of_run(path).flat(), config.flat()
    moved = []
    for key in sorted(before.keys() | now.keys()):
        pair = Moved(key, before.get(key), now.get(key))
        if pair.before == pair.now or key in RESUMABLE_KEYS:
            continue
        if key not in MOVABLE_KEYS or not _is_a_move(pair):
            raise pair.refusal("must be as before")
        moved.append(pair)
    return moved


def _is_a_move(pair: Moved) -> bool:
    """Whether both values are paths, and nothing but the paths differs."""
    if pair.key in ("style.images", "styles"):
        return bool(_without_paths(pair.before) == _without_paths(pair.now))
    if not isinstance(pair.before, str) or not isinstance(pair.now, str):
        return False
    if pair.key == "loss.vgg":
        return not any(is_vgg_keyword(source) for name in (pair.before, pair.now) for source in name.split("-or-"))
    return True


def _without_paths(tree: Any) -> Any:
    """A copy of nested dicts and lists with empty paths."""
    if isinstance(tree, list):
        return [_without_paths(inner) for inner in tree]
    if isinstance(tree, dict):
        return {
            key: "" if key in ("path", "image") and isinstance(inner, str) else _without_paths(inner)
            for key, inner in tree.items()
        }
    return tree


def inputs_of(config: RunConfig, training: Sequence[Path], held_out: Sequence[Path]) -> dict[str, str]:
    """Return a hash of what each key's files hold; of photographs, of their relative names and sizes."""
    apart = isinstance(config.content.validation, str)
    inputs = {"content.path": _hash_of_folder(training if apart else [*training, *held_out])}
    if apart:
        inputs["content.validation"] = _hash_of_folder(held_out)
    images = [image for style in config.all_styles() for image in style.all_images()]
    hashes = "".join(_hash_of_file(Path(image.path)) for image in images)
    inputs[_key_of_styles(config)] = hashlib.sha256(hashes.encode()).hexdigest()
    if Path(config.loss.vgg).is_file():
        inputs["loss.vgg"] = _hash_of_file(Path(config.loss.vgg), HASHED_BYTES)
    return inputs


def _key_of_styles(config: RunConfig) -> str:
    if config.style is None:
        return "styles"
    return "style.images" if config.style.images else "style.image"


def _hash_of_folder(files: Sequence[Path]) -> str:
    common = os.path.commonpath([file.parent for file in files]) if files else ""
    content = hashlib.sha256()
    for file in files:
        try:
            size = file.stat().st_size
        except OSError:
            size = -1
        content.update(os.fsencode(f"{os.path.relpath(file, common)}\0{size}\0"))
    return content.hexdigest()


def _hash_of_file(path: Path, count: int = -1) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.sha256(b"%d " % path.stat().st_size + file.read(count)).hexdigest()
    except OSError as error:
        raise StylizeError(f"{path}: cannot be read ({error.strerror})") from error


def check_inputs(folder: Path, inputs: dict[str, str], moved: Sequence[Moved]) -> None:
    """Compare what the files hold with what they held when the run in this folder began.

    Where a path stayed and its files changed this is logged. Runs of older versions have no such record: there, moved
    photographs are compared by the checkpoint, by their names.

    Raises:
        StylizeError: A path is another than before, and so is what it holds.
    """
    before = _recorded(folder)
    for pair in moved:
        if pair.key in before and before[pair.key] != inputs.get(pair.key):
            raise pair.refusal("which holds something else, must hold the same")
        if pair.key not in before and not pair.key.startswith("content."):
            raise pair.refusal("and the run has no record of what it held, must be as before")
    for key in sorted((before.keys() & inputs.keys()) - {pair.key for pair in moved}):
        if before[key] != inputs[key]:
            logger.warning("%s: its files have changed since the run began: it goes on with the new ones", key)


def kept_styles(folder: Path) -> tuple[str, ...]:
    """Return the names of the styles that a run keeps from its start."""
    return tuple(map(str, json.loads(_recorded(folder).get(KEPT_STYLES, "[]"))))


def record_inputs(folder: Path, inputs: dict[str, str]) -> None:
    """Write what the files hold into the run folder.

    Raises:
        StylizeError: It cannot be written.
    """
    write_atomically(folder / INPUTS_NAME, json.dumps(inputs, indent=1).encode())


def _recorded(folder: Path) -> dict[str, str]:
    try:
        recorded = json.loads((folder / INPUTS_NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in recorded.items()} if isinstance(recorded, dict) else {}
