"""`stylize import`."""

from __future__ import annotations

from pathlib import Path

import click

from stylize.cli.options import PATH
from stylize.errors import StylizeError
from stylize.system.files import write_atomically


@click.command("import")
@click.argument("old", type=PATH, metavar="OLD.pth")
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    metavar="PATH",
    help="Model file to write.",
)
@click.option("--style", metavar="NAME", help="Name of the style. Default: the name of OLD.pth.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
def import_model(old: Path, output: Path, style: str | None, overwrite: bool) -> None:
    """Convert a model of PyTorch's fast_neural_style example to a model file.

    OLD.pth is a state dict that the example saved, or a checkpoint of another program with one in it (.pth, .pt, .ckpt,
    .safetensors); it is read without running code.
    """
    if output.suffix != ".safetensors":
        raise StylizeError(f"-o: got '{output}', must end in .safetensors")
    if output.exists() and not overwrite:
        raise StylizeError(f"{output}: is there already: replace it with --overwrite, or choose another -o")
    from stylize.models.importing import import_model as encoded

    content = encoded(old, style if style is not None else old.stem)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StylizeError(f"-o: {output.parent}: cannot be created ({error.strerror})") from error
    write_atomically(output, content)
    click.echo(f"model: {output}")
