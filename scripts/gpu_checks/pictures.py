"""Files of generated photographs, and painting from files to files. Needs pyvips."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from gpu_checks.setting import make_picture
from stylize.inference.file_painter import FileOptions
from stylize.inference.jobs import Job, paint_files
from stylize.inference.plans import find_budget
from stylize.inference.stylizer import Stylizer
from stylize.pictures.picture import to_image
from stylize.pictures.reading import read_picture

QUALITY = 90
GRAIN = 6  # levels; like sensor noise, it makes a JPEG as large as a photograph's
MOST_PIXELS = 2**28


def write_photograph(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """Write a JPEG with the spectrum of a photograph; large ones repeat themselves."""
    side = min(1024, max(height, width))
    levels = np.random.default_rng(seed).normal(np.asarray(to_image(make_picture(side, side, seed)[0])), GRAIN)
    tile = levels.clip(0, 255).astype(np.uint8)
    repeated = np.tile(tile, (-(-height // side), -(-width // side), 1))[:height, :width]
    Image.fromarray(repeated).save(path, quality=QUALITY)
    return path


def read_rgb(path: Path) -> Tensor:
    """Return a picture `(3, H, W)` in [0, 1]."""
    return read_picture(path).rgb


def paint_to_files(stylizer: Stylizer, sources: Sequence[Path], targets: Sequence[Path]) -> float:
    """Paint files, as `stylize apply` does, and return the seconds.

    Raises:
        StylizeError: One could not be painted.
    """
    options = FileOptions(find_budget(stylizer.device, targets[0].parent), max_pixels=MOST_PIXELS, overwrite=True)
    start_s = time.perf_counter()
    for item in paint_files([Job(*files) for files in zip(sources, targets, strict=True)], stylizer, options):
        if item.error is not None:
            raise item.error
    return time.perf_counter() - start_s
