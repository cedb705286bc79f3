"""For which pictures it pays to compile the generator."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

import torch

from stylize.errors import StylizeError
from stylize.inference.strokes import shrunk_size
from stylize.inference.stylizer import Shape, pictures_together
from stylize.system.compiler import check_compiler, why_not_compile

logger = logging.getLogger("stylize")

# Compilation takes half a minute or more. A CPU with bf16 saves about 0.9 s a megapixel by it. For a GPU the number is
# an estimate, of some hundredths of a second saved.
PAYS_FROM_MEGAPIXELS = {"cpu": 50, "cuda": 2000}
MOST_SHAPES = 8  # torch.compile gives a network up that is recompiled more often


def choose_shapes(
    name: str, device: torch.device, precision: str, sizes: Iterable[tuple[int, int]], stroke_scale: float = 1
) -> frozenset[Shape]:
    """For which pictures to compile the generator; what was decided is told.

    Args:
        name: `always`: the eight sizes with the most pixels; `never`; `auto`: of those the ones that repay it.
        device: Where to compute.
        precision: `fp32` or `bf16`.
        sizes: Width and height of every picture; read only where compilation is possible.
        stroke_scale: The pictures are painted at this fraction of their size.

    Raises:
        StylizeError: `always`, but no compiler is found.
    """
    if name == "always":
        check_compiler(device, "--compile")
    obstacle = why_not_compile(device, precision) if name == "auto" else None
    if name == "never" or obstacle is not None:
        logger.debug("--compile: %s is off%s", name, "" if obstacle is None else f": {obstacle}")
        return frozenset()
    counts = Counter(_shapes(device, sizes, stroke_scale))
    megapixels = {shape: counts[shape] * shape.width * shape.height / 1e6 for shape in counts}
    needed = PAYS_FROM_MEGAPIXELS[device.type] if name == "auto" else 0
    largest = sorted(counts, key=lambda shape: megapixels[shape], reverse=True)[:MOST_SHAPES]
    chosen = [shape for shape in largest if megapixels[shape] >= needed]
    if not chosen:
        most = max(megapixels.values(), default=0.0)
        logger.debug(
            "--compile: auto is off: no size has the %d megapixels that repay it on %s, at most %.1f",
            needed, device.type, most,
        )  # fmt: skip
    for shape in chosen:
        logger.info(
            "--compile: %s is on for %d of %d×%d px, %.1f megapixels%s", name, counts[shape], shape.width, shape.height,
            megapixels[shape], f", at least the {needed} that repay it on {device.type}" if needed else "",
        )  # fmt: skip
    return frozenset(shape._replace(pictures=min(shape.pictures, counts[shape])) for shape in chosen)


def _shapes(device: torch.device, sizes: Iterable[tuple[int, int]], stroke_scale: float) -> Iterator[Shape]:
    """Of every picture, with as many as go together at most; too small ones fail later."""
    for size in sizes:
        with suppress(StylizeError):
            yield Shape(pictures_together(device, size), *shrunk_size(size, stroke_scale))
