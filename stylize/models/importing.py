"""Import models of PyTorch's fast_neural_style example."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.generators import GeneratorConfig, build_generator
from stylize.models.file import ModelCard, check_style_name, encode_model, make_generator
from stylize.system.state_dicts import read_state

MAX_FILE_BYTES = 2**30
WHITE = 255
LAYERS = {  # the names of the example → the names here
    **{f"conv{i + 1}.conv2d": f"encode.{i}.conv" for i in range(3)},
    **{f"in{i + 1}": f"encode.{i}.norm" for i in range(3)},
    **{f"res{i + 1}.conv1.conv2d": f"blocks.{i}.first.conv" for i in range(5)},
    **{f"res{i + 1}.in1": f"blocks.{i}.first.norm" for i in range(5)},
    **{f"res{i + 1}.conv2.conv2d": f"blocks.{i}.conv" for i in range(5)},
    **{f"res{i + 1}.in2": f"blocks.{i}.norm" for i in range(5)},
    **{f"deconv{i + 1}.conv2d": f"decode.{i}.conv" for i in range(2)},
    **{f"in{i + 4}": f"decode.{i}.norm" for i in range(2)},
    "deconv3.conv2d": "to_rgb",
}
DROPPED = ("running_mean", "running_var", "num_batches_tracked")  # saved by old versions of PyTorch, used by none


def import_model(path: Path, style: str) -> bytes:
    """Convert a state dict of PyTorch's example, as it saved it or as other programs keep it; see `read_state`.

    Args:
        path: A file; only weights are read, so it cannot run code.
        style: Name of the style.

    Returns:
        The content of a model file.

    Raises:
        StylizeError: The file is missing, damaged, or of another network.
    """
    check_style_name(style)
    _check_size(path)
    state = _renamed(read_state(path, set(LAYERS)), path)
    config = _config_of(state, path)
    _scale_to_unit_range_(state)
    generator = make_generator(config, state)
    return encode_model(generator, ModelCard(config, style, vgg=f"unknown: imported from {path.name}"))


def _config_of(state: Mapping[str, Tensor], path: Path) -> GeneratorConfig:
    """The configuration of the generator that has these weights.

    Raises:
        StylizeError: No width fits.
    """
    first = state.get("encode.0.conv.weight")
    width = len(first) if first is not None and first.ndim == 4 else 0
    if not (4 <= width <= 512 and width % 4 == 0):
        raise _of_another_network(path, "conv1.conv2d.weight")
    config = GeneratorConfig(name="fast_neural_style", norm="instance", width=width, margin=0)
    with torch.device("meta"):
        expected = {name: value.shape for name, value in build_generator(config).state_dict().items()}
    for name in sorted(expected.keys() | state.keys()):
        if name not in state or state[name].shape != expected.get(name):
            raise _of_another_network(path, name)
    return config


def _scale_to_unit_range_(state: dict[str, Tensor]) -> None:
    """The example's images have values from 0 to 255, those here from 0 to 1."""
    state["encode.0.conv.weight"] = state["encode.0.conv.weight"] * WHITE
    for name in ("to_rgb.weight", "to_rgb.bias"):
        state[name] = state[name] / WHITE


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise StylizeError(f"{path}: {'is a folder, must be a .pth file' if path.is_dir() else 'no such file'}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise StylizeError(f"{path}: got {path.stat().st_size:,} bytes, must be at most {MAX_FILE_BYTES:,}")


def _renamed(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        layer, _, kind = str(name).rpartition(".")
        if kind in DROPPED:
            continue
        if layer not in LAYERS or not value.is_floating_point():
            raise _of_another_network(path, str(name))
        if not bool(value.isfinite().all()):
            raise StylizeError(f"{path}: not all values of '{name[:100]}' are finite: its training diverged")
        renamed[f"{LAYERS[layer]}.{kind}"] = value.float()
    return renamed


def _of_another_network(path: Path, name: str) -> StylizeError:
    theirs = {ours: theirs for theirs, ours in LAYERS.items()}
    layer, _, kind = name.rpartition(".")
    shown = f"{theirs.get(layer, layer)}.{kind}"[:100]
    return StylizeError(
        f"{path}: not of the network of PyTorch's fast_neural_style example: '{shown}' is missing, unknown or of "
        "another shape"
    )
