"""What is installed. Parts of stylize import packages that only some checks use: stand-ins take their place."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from unittest.mock import MagicMock

# The package's name by that of its module.
REQUIRED: Mapping[str, str] = {
    "torch": "torch",
    "numpy": "numpy",
    "PIL": "pillow",
    "psutil": "psutil",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
    "pydantic": "pydantic",
    "click": "click",
    "safetensors": "safetensors",
}
OPTIONAL = ("numba", "pyvips", "tensorboard")
# What stylize imports of a package, or of what torch builds on it.
STAND_INS: Mapping[str, tuple[str, ...]] = {
    "pyvips": ("pyvips",),
    "tensorboard": (
        "tensorboard",
        "tensorboard.compat",
        "tensorboard.compat.proto",
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.compat.proto.summary_pb2",
        "tensorboard.compat.tensorflow_stub",
        "tensorboard.compat.tensorflow_stub.pywrap_tensorflow",
        "tensorboard.plugins",
        "tensorboard.plugins.hparams",
        "tensorboard.plugins.hparams.plugin_data_pb2",
        "torch.utils.tensorboard",
        "torch.utils.tensorboard.summary",
    ),
}


def missing_packages() -> list[str]:
    """Return the required packages that are not installed."""
    return [package for module, package in REQUIRED.items() if importlib.util.find_spec(module) is None]


def missing_options() -> frozenset[str]:
    """Return the optional packages that cannot be imported, here or for lack of a library of the system."""
    return frozenset(name for name in OPTIONAL if not _imports(name))


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, OSError):
        return False
    return True


def put_stand_ins(missing: frozenset[str]) -> None:
    """Let modules that import missing packages be imported; what needs the packages themselves must not be called."""
    for package in missing & STAND_INS.keys():
        for module in STAND_INS[package]:
            sys.modules[module] = MagicMock(Error=type("Error", (Exception,), {}), concurrency_get=lambda: 1)
