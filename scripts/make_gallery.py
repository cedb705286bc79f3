"""Make a sheet of painted photographs: photographs at the top, then a row for each model with its style picture.

    python scripts/make_gallery.py                                    # the built-in styles, for the README
    python scripts/make_gallery.py -o norms.jpg runs/norm-batch runs/norm-instance

The photographs are the samples of scikit-image and scikit-learn.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import Tensor

from stylize.inference.stylizer import Stylizer
from stylize.models.file import load_model
from stylize.models.find import built_in_models, find_model
from stylize.pictures.picture import Picture, to_tensor
from stylize.pictures.reading import read_rgb
from stylize.pictures.sheets import contact_sheet
from stylize.pictures.writing import write_picture
from stylize.system.compute import Compute
from stylize.training.photographs import sample_photographs

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = ("chelsea", "china", "astronaut", "coffee")
PAINTED_PX = 400
TILE_PX = 168


@click.command()
@click.argument("models", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "docs" / "images" / "gallery.jpg")
@click.option("--quality", type=click.IntRange(1, 100), default=62, show_default=True)
def main(models: tuple[str, ...], output: Path, quality: int) -> None:
    """Paint every photograph with every model, and write the sheet."""
    photographs = [square(path, PAINTED_PX) for path in chosen_photographs()]
    rows = [[torch.ones(3, TILE_PX, TILE_PX), *(shrink(photograph) for photograph in photographs)]]
    rows += [painted_row(name, photographs) for name in models or built_in_models()]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_picture(output, Picture(contact_sheet(rows)), quality=quality)
    click.echo(f"{output} ({output.stat().st_size / 1024:.0f} kB)")


def painted_row(model: str, photographs: list[Tensor]) -> list[Tensor]:
    """Return the style picture and the photographs painted by the model."""
    found = find_model(model)
    generator, card = load_model(found.path, found.style)
    stylizer = Stylizer(generator, Compute(torch.device("cpu")))
    style = ROOT / "configs" / "styles" / Path(card.config["style"]["image"]).name
    painted = [stylizer(Picture(photograph)).rgb for photograph in photographs]
    return [shrink(image) for image in (square(style, PAINTED_PX), *painted)]


def chosen_photographs() -> list[Path]:
    """Return the sample photographs of the sheet, in order."""
    by_name = {path.stem: path for path in sample_photographs()}
    return [by_name[name] for name in PHOTOGRAPHS]


def square(path: Path, side_px: int) -> Tensor:
    """Return the centre square of a picture, `(3, side, side)`."""
    image = to_tensor(read_rgb(path, side_px))
    top, left = ((length - side_px) // 2 for length in image.shape[-2:])
    return image[:, top : top + side_px, left : left + side_px]


def shrink(image: Tensor) -> Tensor:
    """Return a picture at the size of a tile."""
    size = (TILE_PX, TILE_PX)
    return torch.nn.functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


if __name__ == "__main__":
    main()
