"""The functions of the program interface, which `stylize` exports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stylize.models.find import built_in_models, find_model

if TYPE_CHECKING:
    import torch

    from stylize.inference.model import Model, Precision


def styles() -> list[str]:
    """Return the names of the built-in styles.

    >>> styles()
    ['stained_glass', 'swirling_strokes']
    """
    return list(built_in_models())


def load(model: str | os.PathLike[str], *, device: str | torch.device = "auto", precision: Precision = "auto") -> Model:
    """Load a trained model.

    Args:
        model: Path of a model file or a run folder, or the name of a built-in style.
        device: `auto` (CUDA, else MPS, else CPU), or a device of PyTorch, such as `cpu` or `cuda:1`.
        precision: Floating-point precision of the network; `auto`: bf16 on GPUs that multiply it in hardware.

    Returns:
        The model, ready to paint.

    Raises:
        StylizeError: There is no such model, its file is damaged, or PyTorch does not find the device.

    >>> load("stained_glass", device="cpu")
    <stylize.Model 'stained_glass': johnson, instance norm, width 16, on cpu in fp32>
    """
    from stylize.inference.model import Model, choose_compute
    from stylize.models.file import load_model

    compute = choose_compute(device, precision)
    generator, card = load_model(find_model(os.fspath(model), place="model").path)
    return Model(generator, card, compute)
