"""For which pictures it pays to compile the generator."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

from stylize.errors import StylizeError
from stylize.inference.painter import Shape
from stylize.inference.strokes import shrunk_size
from stylize.system.compiler import check_compiler, why_not_compile
from stylize.system.compute import Compute

logger = logging.getLogger("stylize")

# Compilation takes half a minute or more, and is estimated to save some hundredths of a second a megapixel on a GPU.
PAYS_FROM_MEGAPIXELS = 2000
MAX_SHAPES = 8  # torch.compile gives up on a network that is recompiled more often


def choose_shapes(
    name: str, compute: Compute, sizes: Iterable[tuple[int, int]], stroke_scale: float = 1
) -> frozenset[Shape]:
    """Choose the shapes for which to compile the generator; the decision is logged.

    Args:
        name: `always`: the eight sizes with the most pixels; `never`; `auto`: those of the eight that repay it.
        compute: Device and precision.
        sizes: Width and height of every picture in px; iterated only where compilation is possible.
        stroke_scale: Pictures are painted at this fraction of their size.

    Raises:
        StylizeError: `always`, but no compiler is found.
    """
    if name == "always":
        check_compiler(compute.device, "--compile")
    obstacle = why_not_compile(compute.device) if name == "auto" else None
    if name == "never" or obstacle is not None:
        logger.debug("--compile: %s is off%s", name, "" if obstacle is None else f": {obstacle}")
        return frozenset()
    counts = Counter(_shapes(compute, sizes, stroke_scale))
    megapixels = {shape: counts[shape] * shape.width * shape.height / 1e6 for shape in counts}
    needed = PAYS_FROM_MEGAPIXELS if name == "auto" else 0
    largest = sorted(counts, key=lambda shape: megapixels[shape], reverse=True)[:MAX_SHAPES]
    chosen = [shape for shape in largest if megapixels[shape] >= needed]
    if not chosen:
        logger.debug(
            "--compile: auto is off: no size has the %d megapixels that repay it on %s, at most %.1f",
            needed, compute.kind, max(megapixels.values(), default=0.0),
        )  # fmt: skip
    for shape in chosen:
        logger.info(
            "--compile: %s is on for %d of %d×%d px, %.1f megapixels%s", name, counts[shape], shape.width, shape.height,
            megapixels[shape], f", at least the {needed} that repay it on {compute.kind}" if needed else "",
        )  # fmt: skip
    return frozenset(shape._replace(pictures=min(shape.pictures, counts[shape])) for shape in chosen)


def _shapes(compute: Compute, sizes: Iterable[tuple[int, int]], stroke_scale: float) -> Iterator[Shape]:
    """The shape of the largest batch of each size; sizes that are too small are left to fail later."""
    for size in sizes:
        with suppress(StylizeError):
            yield Shape(compute.pictures_together(size), *shrunk_size(size, stroke_scale))
