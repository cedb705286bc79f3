"""Train fast feed-forward style-transfer models, and paint photographs with them.

>>> import numpy as np
>>> import stylize
>>> "stained_glass" in stylize.styles()
True
>>> model = stylize.load("stained_glass", device="cpu")
>>> photograph = np.full((48, 64, 3), 128, np.uint8)
>>> model(photograph).shape
(48, 64, 3)

Importing the package is cheap: PyTorch is imported when a model is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stylize.errors import StylizeError
from stylize.version import __version__

if TYPE_CHECKING:  # type checkers see no `__getattr__`, under which every name would be known
    from stylize.inference.model import Model
    from stylize.interface import load, styles, train
else:
    _MODULES = {
        "Model": "stylize.inference.model",
        "load": "stylize.interface",
        "styles": "stylize.interface",
        "train": "stylize.interface",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module 'stylize' has no attribute '{name}'")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = ["Model", "StylizeError", "__version__", "load", "styles", "train"]
