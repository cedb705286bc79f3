"""Find the model that a user asks for."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from stylize.errors import StylizeError, nearest
from stylize.system.places import is_file

BUILT_IN = Path(__file__).parent / "builtin"
STARTS = Path(__file__).parent / "starts"
RUNS = Path("runs")
MODEL_NAME = "model.safetensors"


class FoundModel(NamedTuple):
    """A model that was found.

    Attributes:
        path: Its file.
        reason: The reason for the choice, for the log.
        style: The style that is meant, where the file has several and one was asked for by its name.
    """

    path: Path
    reason: str
    style: str | None = None


class BuiltIn(NamedTuple):
    """A built-in style: the model file in the package, and the style's name in it if it has several."""

    path: Path
    style: str | None = None


def built_in_models() -> dict[str, BuiltIn]:
    """Return the built-in styles by name."""
    found = {}
    for path in sorted(BUILT_IN.glob("*.safetensors")):
        names = _styles_in(path)
        found.update({name: BuiltIn(path, name) for name in names} if names else {path.stem: BuiltIn(path)})
    return found


def _styles_in(path: Path) -> list[str]:
    """The names of the styles in a file of several, without loading torch."""
    with safe_open(path, framework="numpy") as file:
        names: list[str] = json.loads((file.metadata() or {}).get("styles", "[]"))
    return names


def learned_start(generator: str, width: int) -> Path | None:
    """Return the file of the start in the package for a network with instance norm, or None if there is none."""
    path = STARTS / f"{generator}-{width}.safetensors"
    return path if path.is_file() else None


def find_model(name: str | None, runs: Path = RUNS, place: str = "--model") -> FoundModel:
    """Find a model by the path of its file, its run folder, or the name of a built-in style.

    A bare name is that of the built-in style even if there is a folder or file of that name beside, unless that is a
    run folder with a model; a path such as `./name` is never a built-in style.

    Args:
        name: Path or name; None: the newest model under `runs`, else the first built-in style.
        runs: Parent folder of the run folders.
        place: The option or argument that the name came from, for messages.

    Raises:
        StylizeError: There is no such model.
    """
    built_in = built_in_models()
    if name is None:
        return _newest(runs) or _first_of(built_in)
    path = Path(name)
    is_run = is_file(path / MODEL_NAME)
    if name in built_in and not is_run:
        kind = "folder" if path.is_dir() else "file"
        reason = f"built in; the {kind} is ./{name}" if path.exists() else "built in"
        return FoundModel(built_in[name].path, reason, built_in[name].style)
    if is_run:
        beside = f", not the built-in style {name}" if name in built_in else ""
        return FoundModel(path / MODEL_NAME, f"the best model of that run{beside}")
    if path.is_dir():
        raise StylizeError(f"{place}: {path} holds no {MODEL_NAME}: no training has got as far as its first validation")
    if path.exists():
        return FoundModel(path, "the file given")
    listed = ", ".join(f"'{style}'" for style in built_in)
    kinds = (
        f"a model file, a run folder, or a built-in style ({listed})." if built_in else "a model file or a run folder"
    )
    raise StylizeError(f"{place}: got '{name}', must be {kinds}{nearest(name, built_in)}")


def _newest(runs: Path) -> FoundModel | None:
    """The newest model; files of that name that are none of stylize's, or cannot be read, are passed over."""
    from stylize.models.file import read_card  # loads torch

    times: dict[Path, float] = {}
    with suppress(OSError):
        for path in runs.glob(f"*/{MODEL_NAME}"):
            with suppress(OSError):
                times[path] = path.stat().st_mtime
    passed_over = []
    for path in sorted(times, key=lambda path: times[path], reverse=True):
        try:
            read_card(path)
        except (OSError, StylizeError):
            passed_over.append(str(path))
            continue
        beside = f" that can be read; passed over: {', '.join(passed_over)}" if passed_over else ""
        return FoundModel(path, f"the newest under {runs}/{beside}")
    return None


def _first_of(built_in: dict[str, BuiltIn]) -> FoundModel:
    if not built_in:
        raise StylizeError("--model: no model under runs/ and none built in; train one, or give a file")
    name, (path, style) = next(iter(built_in.items()))
    return FoundModel(path, f"built in ({name}), as there is none under runs/", style)
