"""Store a model's weights in 16 bits, half of the size, or in 8, a quarter, for models in the package.

python scripts/shrink_model.py [--bits 8] runs/NAME/model.safetensors stylize/models/builtin/NAME.safetensors
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from stylize.models.file import encode_model, load_model
from stylize.system.files import write_atomically

TYPES = {"16": torch.float16, "8": torch.int8}


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--bits", type=click.Choice(list(TYPES)), default="16", show_default=True, help="Bits of a weight.")
def main(source: Path, target: Path, bits: str) -> None:
    """Write SOURCE to TARGET with smaller weights."""
    generator, card = load_model(source)
    write_atomically(target, encode_model(generator, card, TYPES[bits]))
    click.echo(f"{target} ({target.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
