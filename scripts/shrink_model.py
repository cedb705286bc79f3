"""Store a model's weights in 8 bits, at a quarter of the size, for models in the package.

python scripts/shrink_model.py runs/NAME/model.safetensors stylize/models/builtin/NAME.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from stylize.models.file import encode_model, load_model
from stylize.system.files import write_atomically


def main(source: Path, target: Path) -> None:
    """Write `source` to `target` with weights in 8 bits."""
    generator, card = load_model(source)
    write_atomically(target, encode_model(generator, card, torch.int8))
    print(f"{target} ({target.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
