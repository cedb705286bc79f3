"""A sheet of one photograph in all styles of a model, and in blends of two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stylize.generators import Generator
from stylize.inference.options import PaintOptions
from stylize.inference.stylizer import Stylizer
from stylize.models.blends import Blend, blend_of
from stylize.pictures.picture import Picture
from stylize.pictures.sheets import captioned, contact_sheet
from stylize.system.compute import Compute

CELL_PX = 400  # longer side of a picture on the sheet, unless --max-size says something else
BLENDS = 5
GAP_PX = 6


def style_sheet(
    photograph: Picture,
    generator: Generator,
    styles: Sequence[str],
    pair: tuple[str, str],
    options: PaintOptions,
    compute: Compute,
) -> Tensor:
    """Return the sheet, `(3, H, W)` in [0, 1] on the CPU: the photograph and every style, and below a row of blends.

    Args:
        photograph: The photograph; it is shrunk as the options say.
        generator: A network with several styles.
        styles: Their names.
        pair: The two styles between which the row blends.
        options: How to paint.
        compute: Device and precision.
    """

    def cell(blend: Blend, caption: str) -> Tensor:
        painted = Stylizer(generator.blended(blend.shares), compute)(photograph, options)
        return captioned(painted.rgb.float().cpu(), caption)

    cells = [captioned(photograph.rgb.float().cpu(), "photograph")]
    cells += [cell(blend_of(name, styles), name) for name in styles]
    columns = max(BLENDS, math.ceil(math.sqrt(len(cells))))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    if len(styles) > 1:
        rows.append([cell(blend, text) for blend, text in _between(pair, styles)])
    return contact_sheet(rows, GAP_PX).clamp(0, 1)


def _between(pair: tuple[str, str], styles: Sequence[str]) -> list[tuple[Blend, str]]:
    first, second = pair
    blends = []
    for share in torch.linspace(0, 1, BLENDS).tolist():
        weights = {name: weight for name, weight in ((first, 1 - share), (second, share)) if weight > 0}
        blends.append((blend_of(weights, styles), f"{100 * (1 - share):.0f} % {first}, {100 * share:.0f} % {second}"))
    return blends
