"""`stylize import`."""

from __future__ import annotations

from pathlib import Path

import click

from stylize.errors import StylizeError
from stylize.system.files import write_atomically


@click.command("import")
@click.argument("old", type=click.Path(path_type=Path), metavar="OLD.pth")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="PATH", help="The model file.")
@click.option("--style", metavar="NAME", help="The style's name; default: the name of OLD.pth.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
def import_model(old: Path, output: Path, style: str | None, overwrite: bool) -> None:
    """Make a model file of a state dict of PyTorch's fast_neural_style example."""
    if output.suffix != ".safetensors":
        raise StylizeError(f"-o: got '{output}', must end in .safetensors")
    if output.exists() and not overwrite:
        raise StylizeError(f"{output}: is there already: replace it with --overwrite, or choose another -o")
    from stylize.models.importing import import_model as encoded

    write_atomically(output, encoded(old, style if style is not None else old.stem))
    click.echo(f"model: {output}")
