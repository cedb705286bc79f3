"""The functions of the program interface, which `stylize` exports."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylize.models.find import built_in_models, find_model

if TYPE_CHECKING:
    import torch

    from stylize.config import RunConfig
    from stylize.inference.model import Model, Precision
    from stylize.run import Progress, RunResult


def styles() -> list[str]:
    """Return the names of the built-in styles.

    >>> "stained_glass" in styles()
    True
    """
    return list(built_in_models())


def load(model: str | os.PathLike[str], *, device: str | torch.device = "auto", precision: Precision = "auto") -> Model:
    """Load a trained model.

    Args:
        model: Path of a model file or a run folder, or the name of a built-in style.
        device: `auto` (CUDA, else MPS, else CPU), or a device of PyTorch, such as `cpu` or `cuda:1`.
        precision: Floating-point precision of the network; `auto`: bf16, or else fp16, where the device has
            matrix units for it, and fp32 where it has none.

    Returns:
        The model, ready to paint.

    Raises:
        StylizeError: There is no such model, its file is damaged, or PyTorch does not find the device.

    >>> load("stained_glass", device="cpu", precision="fp32")
    <stylize.Model 'stained_glass': johnson, instance norm, width 16, on cpu in fp32>
    """
    from stylize.inference.model import Model, choose_compute
    from stylize.models.file import load_model

    compute = choose_compute(device, precision)
    found = find_model(os.fspath(model), place="model")
    generator, card = load_model(found.path, found.style)
    return Model(generator, card, compute)


def train(
    config: str | os.PathLike[str] | Mapping[str, Any] | RunConfig,
    folder: str | os.PathLike[str] | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    quiet: bool = False,
) -> RunResult:
    """Train a model, as `stylize train` does.

    Args:
        config: Path of a YAML file; or the same as nested dicts, with paths relative to the current folder; or a
            checked configuration.
        folder: The run folder; None: `runs/<name>`.
        overrides: `key.subkey=value` strings that replace values of the configuration.
        device: `auto`, `cpu`, `cuda` or `mps`.
        resume: Continue from the newest checkpoint of the folder.
        overwrite: Replace the run in the folder.
        on_progress: Called after every step with the progress so far.
        quiet: Show no progress bar, and log warnings only.

    Returns:
        The run folder, the path of the model file, the final progress and the speed.

    Raises:
        StylizeError: The configuration, the folder or a file is unfit, or the run diverged.
    """
    from stylize.run import train as train_in_folder

    checked = _checked_config(config, overrides)
    return train_in_folder(
        checked,
        Path("runs") / checked.name if folder is None else Path(folder),
        device=device,
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
        quiet=quiet,
    )


def _checked_config(
    config: str | os.PathLike[str] | Mapping[str, Any] | RunConfig, overrides: Sequence[str]
) -> RunConfig:
    from stylize.config import RunConfig, config_from_tree, load_config

    if isinstance(config, str | os.PathLike):
        return load_config(Path(config), overrides)
    if isinstance(config, RunConfig):
        return config_from_tree(config.model_dump(mode="json"), overrides)
    if isinstance(config, Mapping):
        return config_from_tree(config, overrides)
    raise TypeError(f"config: got {type(config).__name__}, must be a path, a dict or a RunConfig")
