"""Make a sheet for `stylize apply --stroke-scale`: a photograph painted at several scales, with details below.

    python scripts/make_stroke_scales.py    # for the README

The photograph is a sample of scikit-image.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.inference.options import PaintOptions
from stylize.inference.stylizer import Stylizer, shrink
from stylize.models.file import load_model
from stylize.models.find import find_model
from stylize.pictures.picture import Picture
from stylize.pictures.reading import read_picture
from stylize.pictures.sheets import contact_sheet
from stylize.pictures.writing import write_picture
from stylize.system.compute import Compute
from stylize.training.photographs import sample_photographs

ROOT = Path(__file__).parent.parent
SCALES = (1, 2, 4)
TILE_PX = 240
DETAIL_PX = 120  # shown at twice its size


@click.command()
@click.option("--model", default="stained_glass", show_default=True)
@click.option("--photograph", default="coffee", show_default=True, help="A sample of scikit-image.")
@click.option("--detail", type=(int, int), default=(360, 90), show_default=True, help="Left and top of the detail, px.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "docs" / "images" / "stroke-scale.jpg")
@click.option("--quality", type=click.IntRange(1, 100), default=72, show_default=True)
def main(model: str, photograph: str, detail: tuple[int, int], output: Path, quality: int) -> None:
    """Paint the photograph at every scale, and write the sheet."""
    picture = read_picture({path.stem: path for path in sample_photographs()}[photograph])
    found = find_model(model)
    stylizer = Stylizer(load_model(found.path, found.style)[0], Compute(torch.device("cpu")))
    images = [picture.rgb, *(stylizer(picture, PaintOptions(stroke_scale=scale)).rgb for scale in SCALES)]
    rows = [[tile(image) for image in images], [enlarged_detail(image, *detail) for image in images]]
    write_picture(output, Picture(contact_sheet(rows)), quality=quality)
    click.echo(f"{output} ({output.stat().st_size / 1024:.0f} kB)")


def tile(image: Tensor) -> Tensor:
    """Return the whole picture, reduced."""
    height, width = image.shape[-2:]
    return shrink(image[None], (TILE_PX, round(height * TILE_PX / width)))[0]


def enlarged_detail(image: Tensor, left: int, top: int) -> Tensor:
    """Return a square of the picture with its pixels doubled."""
    square = image[None, :, top : top + DETAIL_PX, left : left + DETAIL_PX]
    return F.interpolate(square, scale_factor=TILE_PX / DETAIL_PX, mode="nearest")[0]


if __name__ == "__main__":
    main()
