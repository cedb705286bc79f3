"""Instance normalization with running averages at inference."""

from __future__ import annotations

import torch

from stylize.evaluation.evaluate import Painter
from stylize.evaluation.statistics import spread
from stylize.generators import Generator
from stylize.generators.statistics import frozen_statistics, recorded_statistics
from stylize.ops import Statistics
from stylize.pictures.find import find_images
from stylize.studies.findings import Finding
from stylize.studies.runs import Arm
from stylize.studies.study import Findings, Results, Setting, Study, seeds_table
from stylize.training.photographs import validation_images

AVERAGED = 64  # photographs


def _arms(setting: Setting) -> list[Arm]:
    return [Arm(norm, {"generator.norm": kind}) for norm, kind in (("IN", "instance"), ("BN", "batch"))]


@torch.no_grad()
def average_statistics(generator: Generator, photographs: list[torch.Tensor]) -> dict[str, Statistics]:
    """Return the mean of the images' means and variances at every norm, like running averages.

    Args:
        generator: A generator with instance normalization.
        photographs: Photographs, `(3, H, W)` each.
    """
    device = next(generator.parameters()).device
    collected: list[dict[str, Statistics]] = []
    for photograph in photographs:
        with recorded_statistics(generator) as used:
            generator(photograph[None].to(device))
        collected.append(used)
    return {
        name: Statistics(*(torch.stack(kind).mean(0) for kind in zip(*(c[name] for c in collected), strict=True)))
        for name in collected[0]
    }


def _frozen(generator: Generator, statistics: dict[str, Statistics]) -> Painter:
    def paint(content: torch.Tensor) -> torch.Tensor:
        with frozen_statistics(generator, statistics):
            painted: torch.Tensor = generator(content)
        return painted

    return paint


def _painters(results: Results, seed: int) -> dict[str, Painter]:
    generator = results.generator("IN", seed)
    files = find_images(results.setting.photographs.training)[:AVERAGED]
    photographs = validation_images(files, results.setting.base.content.crop)
    return {
        "IN, own statistics": generator,
        "IN, running averages": _frozen(generator, average_statistics(generator, photographs)),
        "BN": results.generator("BN", seed),
    }


def _findings(results: Results) -> Findings:
    measured: dict[str, list[dict[str, float]]] = {}
    for place in range(len(results.setting.seeds)):
        for name, painter in _painters(results, place).items():
            measured.setdefault(name, []).append(results.measured(painter))
    first = _painters(results, 0)
    parts: list[Finding] = [
        seeds_table("Held-out losses", measured),
        results.plot("Held-out style loss, with own statistics", results.arms),
        results.sheet("Pictures", first),
        results.contrast_table("How the pictures depend on the photographs' contrast", first),
        results.contrast_sheet("One photograph at four contrasts", first),
    ]
    styles = {name: [m["style"] for m in by_seed] for name, by_seed in measured.items()}
    factors = [b / a for a, b in zip(styles["IN, own statistics"], styles["IN, running averages"], strict=True)]
    against = [b / a for a, b in zip(styles["BN"], styles["IN, running averages"], strict=True)]
    statements = [
        f"Freezing the statistics of the same trained network multiplies its held-out style loss by {spread(factors)}",
        f"The frozen network's style loss is {spread(against)} times that of a network trained with BN",
    ]
    return Findings(statements, parts)


STUDY = Study(
    "frozen",
    "IN with each image's own statistics, with running averages, and BN",
    'Instance normalization "is applied at test time as well" (Ulyanov et al. 2016). Many programs use running '
    "averages in eval() instead, as for batch normalization. Here the same trained networks are measured both ways. "
    f"The averages are those of up to {AVERAGED} of the training photographs.",
    _arms,
    _findings,
)
