"""Time the training step.

One optimizer step of a Johnson generator (width 32) against VGG-19 with style at relu1_1, 2_1, 3_1, 4_1 and content at
relu4_2. The plain side has instance normalization in float32 in every row; with another norm stylize computes
something else, and the results are not compared.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks.compare import Pair, choices_note, compare, table
from benchmarks.counts import training_flop
from benchmarks.floor import Floor
from benchmarks.report import Finding
from benchmarks.settings import Settings
from benchmarks.workloads import ENVIRONMENT, PlainTraining, StylizeTraining

HEADING = "training step"


def run(settings: Settings, floor: Floor) -> Finding:
    """Time the step with every norm and in every precision."""
    flop = training_flop(settings.batch, settings.crop)
    comparisons = [
        compare(_pair(norm, settings, flop), replace(settings, precision=precision), floor)
        for norm in settings.norms
        for precision in settings.precisions()
    ]
    size = f"{settings.batch} × {settings.crop}², {flop / 1e9:.4g} GFLOP"
    return Finding(
        [f"{HEADING}: {size}", *choices_note(comparisons)],
        [table(HEADING, comparisons)],
        {"flop": flop, "rows": [comparison.numbers() for comparison in comparisons]},
    )


def _pair(norm: str, settings: Settings, flop: int) -> Pair:
    return Pair(
        name=norm,
        make={"plain": PlainTraining, "stylize": partial(StylizeTraining, norm=norm)},
        images=settings.batch,
        side_px=settings.crop,
        flop=flop,
        same=norm == "instance",
        variables={"stylize": ENVIRONMENT},
    )
