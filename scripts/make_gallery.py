"""Lay out the README's picture: photographs above, painted by the built-in styles below.

    python scripts/make_gallery.py [OUTPUT]

The photographs are the samples of scikit-image and scikit-learn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from stylize.images import Picture, contact_sheet, read_rgb, to_tensor, write_picture
from stylize.inference.models import built_in_models
from stylize.inference.stylizer import Stylizer
from stylize.model_file import load_model
from stylize.training.data import sample_photographs

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = ("chelsea", "china", "astronaut", "coffee")
PAINTED_PX = 400
TILE_PX = 224


def main(output: Path) -> None:
    """Paint every photograph in every built-in style, and write the sheet."""
    photographs = [square(path, PAINTED_PX) for path in chosen_photographs()]
    rows = [[torch.ones(3, TILE_PX, TILE_PX), *(shrink(photograph) for photograph in photographs)]]
    for name, path in built_in_models().items():
        stylizer = Stylizer(load_model(path)[0], torch.device("cpu"))
        painted = [shrink(stylizer(Picture(photograph)).rgb) for photograph in photographs]
        rows.append([shrink(square(ROOT / "configs" / "styles" / f"{name}.jpg", PAINTED_PX)), *painted])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_picture(output, Picture(contact_sheet(rows)), quality=85)
    print(f"{output} ({output.stat().st_size / 1024:.0f} kB)")


def chosen_photographs() -> list[Path]:
    """The sample photographs that the sheet shows, in its order."""
    by_name = {path.stem: path for path in sample_photographs()}
    return [by_name[name] for name in PHOTOGRAPHS]


def square(path: Path, side_px: int) -> torch.Tensor:
    """The middle square of a picture, `(3, side, side)`."""
    image = to_tensor(read_rgb(path, side_px))
    top, left = ((length - side_px) // 2 for length in image.shape[-2:])
    return image[:, top : top + side_px, left : left + side_px]


def shrink(image: torch.Tensor) -> torch.Tensor:
    """A picture at the size of a tile."""
    size = (TILE_PX, TILE_PX)
    return torch.nn.functional.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "gallery.jpg")
