"""Generators of several sizes, and the fast kernels against plain PyTorch."""

from __future__ import annotations

from statistics import fmean, median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stylize.evaluation.statistics import Row, Table, spread
from stylize.generators import GeneratorConfig, build_generator
from stylize.losses.summary import headline_measures, headline_terms, label_of
from stylize.losses.terms import TOTAL
from stylize.ops.dispatch import VARIABLE
from stylize.studies.findings import Finding
from stylize.studies.runs import Arm, records
from stylize.studies.study import Findings, Results, Setting, Study

FAST, REFERENCE = "Johnson", "Johnson, plain PyTorch"
COMPARED = (*headline_terms(), *headline_measures(), TOTAL)


def _arms(setting: Setting) -> list[Arm]:
    half = max(4, setting.base.generator.width // 8 * 4)
    johnson = {"generator.name": "johnson"}
    return [
        Arm(FAST, johnson),
        Arm(REFERENCE, johnson, {VARIABLE: "1"}),
        Arm("Johnson, half the width", {**johnson, "generator.width": half}),
        Arm("Johnson, separable convolutions", {"generator.name": "johnson_lite"}),
    ]


@torch.no_grad()
def multiply_adds(generator: nn.Module, side_px: int = 128) -> float:
    """Return the multiply-adds of the convolutions per pixel of the picture.

    Args:
        generator: The network; it is converted to bfloat16.
        side_px: Side of the picture that they are counted on.
    """
    with FlopCounterMode(display=False) as counter:
        generator.to(torch.bfloat16)(torch.zeros(1, 3, side_px, side_px, dtype=torch.bfloat16))
    return float(counter.get_total_flops()) / 2 / side_px**2


def _step_seconds(results: Results, arm: str) -> list[float]:
    """Return the median duration of a training step, by seed."""
    return [
        run.config.train.batch_size / median(r["images_per_s"] for r in records(run, "train") if "images_per_s" in r)
        for run in results.of_arm(arm)
    ]


def _row(results: Results, arm: str) -> Row:
    config: GeneratorConfig = results.of_arm(arm)[0].config.generator
    generator = build_generator(config)
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    return (
        arm,
        f"{multiply_adds(generator) / 1e3:.3g}",
        f"{parameters:,}",
        *(spread(results.final(arm, name)) for name in COMPARED),
        spread(_step_seconds(results, arm)),
    )


def _findings(results: Results) -> Findings:
    columns = ("generator", "thousand MAC/px", "parameters", *map(label_of, COMPARED), "s/step")
    parts: list[Finding] = [
        Table("Held-out losses after the last step", columns, [_row(results, arm) for arm in results.arms])
    ]
    parts += [results.plot(f"Held-out {term} loss", results.arms, term) for term in headline_terms()]
    parts.append(results.sheet("Pictures", {arm: results.generator(arm) for arm in results.arms}))
    statements = [_kernels(results)]
    statements += [results.compare(arm, FAST, TOTAL) for arm in results.arms if arm not in (FAST, REFERENCE)]
    return Findings(statements, parts)


def _kernels(results: Results) -> str:
    """Return a sentence on the effect of the fast kernels on the result."""
    pairs = zip(results.final(FAST, TOTAL), results.final(REFERENCE, TOTAL), strict=True)
    percent = [100 * (fast / plain - 1) for fast, plain in pairs]
    speed = fmean(_step_seconds(results, REFERENCE)) / fmean(_step_seconds(results, FAST))
    return (
        f"The fast kernels change the held-out total by {spread(percent)} %, by seed, "
        f"and a step takes 1/{speed:.2f} of the time of plain PyTorch"
    )


STUDY = Study(
    "generators",
    "Johnson's network with fast kernels, without, at half the width, and separable",
    "Do the CPU kernels change what a network learns? The same training runs again with plain PyTorch "
    f"({VARIABLE}=1) and the same seed. How much do smaller networks lose: with half the width, and with separable "
    "convolutions (johnson_lite)? On a GPU, and in bfloat16, the first two do the same.",
    _arms,
    _findings,
)
