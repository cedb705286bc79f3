"""State dicts that other programs wrote: found within their files, without running code."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from stylize.errors import StylizeError

# Where checkpoints keep the weights, those that are averaged first.
PLACES = (
    "params_ema", "ema", "state_dict", "model_state_dict", "generator_state_dict", "model_state", "model", "generator",
    "netG", "network", "net", "params", "weights",
)  # fmt: skip
DEEPEST = 4


def read_state(path: Path, layers: Collection[str]) -> dict[str, Tensor]:
    """Read the weights of a network from a file of torch.save or safetensors.

    They may be within the dict of a checkpoint, and their names may have prefixes of wrappers, such as `module.`.

    Args:
        path: The file.
        layers: Names of the network's layers: a prefix is removed where one of them follows.

    Raises:
        StylizeError: It cannot be read safely, or holds no state dict.
    """
    loaded = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    state = state_within(loaded)
    if state is None:
        raise StylizeError(f"{path}: must hold a state dict: names with tensors")
    return without_prefix(state, layers)


def _load_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise StylizeError(f"{path}: cannot be read as safetensors ({_first_line(error)})") from error


def _load_torch(path: Path) -> object:
    if _is_torchscript(path):
        raise StylizeError(
            f"{path}: is a TorchScript archive, a program; must be a state dict: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader raise almost anything
        raise StylizeError(f"{path}: must be a state dict that torch.save wrote: weights, no code") from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # what zipfile raises for other files
        return False


def state_within(loaded: object, deepest: int = DEEPEST) -> dict[str, Tensor] | None:
    """The state dict within what a file holds: that itself, or in one of the places of checkpoints."""
    if not isinstance(loaded, Mapping) or not deepest:
        return None
    if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
        return {str(name): value for name, value in loaded.items()}
    for place in PLACES:
        found = state_within(loaded.get(place), deepest - 1)
        if found is not None:
            return found
    return None


def without_prefix(state: Mapping[str, Tensor], layers: Collection[str]) -> dict[str, Tensor]:
    """The weights of a network without what wrappers put before their names, such as `module.` or `_orig_mod.`.

    Weights without the prefix are those of others, such as a loss, and left out. Without any known layer all stay.

    >>> list(without_prefix({"module.conv.bias": torch.zeros(1), "step": torch.zeros(1)}, ["conv"]))
    ['conv.bias']
    """
    found = Counter(prefix for name in state for prefix in _prefixes(name, layers))
    prefix = min(found, key=lambda prefix: (prefix.count("."), -found[prefix]), default="")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _prefixes(name: str, layers: Collection[str]) -> list[str]:
    """What may be before the name of a layer in the name of a weight."""
    parts = name.split(".")
    starts = [i for i in range(len(parts) - 1) if ".".join(parts[i:-1]) in layers]
    return ["".join(f"{part}." for part in parts[:i]) for i in starts]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
