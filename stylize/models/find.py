"""Find the model that a user asks for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from stylize.errors import StylizeError, nearest

BUILT_IN = Path(__file__).parent / "builtin"
RUNS = Path("runs")
MODEL_NAME = "model.safetensors"


class FoundModel(NamedTuple):
    """A model file, and the reason for the choice, for the log."""

    path: Path
    reason: str


def built_in_models() -> dict[str, Path]:
    """Return the model files in the package, by name of the style."""
    return {path.stem: path for path in sorted(BUILT_IN.glob("*.safetensors"))}


def find_model(name: str | None, runs: Path = RUNS, place: str = "--model") -> FoundModel:
    """Find a model by the path of its file, its run folder, or the name of a built-in style.

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
    if path.is_dir():
        if not (path / MODEL_NAME).is_file():
            raise StylizeError(
                f"{place}: {path} holds no {MODEL_NAME}: no training has got as far as its first validation"
            )
        return FoundModel(path / MODEL_NAME, "the best model of that run")
    if path.exists():
        return FoundModel(path, "the file given")
    if name in built_in:
        return FoundModel(built_in[name], "built in")
    listed = ", ".join(f"'{style}'" for style in built_in)
    kinds = (
        f"a model file, a run folder, or a built-in style ({listed})." if built_in else "a model file or a run folder"
    )
    raise StylizeError(f"{place}: got '{name}', must be {kinds}{nearest(name, built_in)}")


def _newest(runs: Path) -> FoundModel | None:
    models = sorted(runs.glob(f"*/{MODEL_NAME}"), key=lambda path: path.stat().st_mtime)
    return FoundModel(models[-1], f"the newest under {runs}/") if models else None


def _first_of(built_in: dict[str, Path]) -> FoundModel:
    if not built_in:
        raise StylizeError("--model: no model under runs/ and none built in; train one, or give a file")
    name, path = next(iter(built_in.items()))
    return FoundModel(path, f"built in ({name}), as there is none under runs/")
