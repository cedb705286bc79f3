"""Padding of the convolutions."""

from __future__ import annotations

from statistics import fmean

import torch

from stylize.errors import StylizeError
from stylize.evaluation.borders import BORDER_PX, border_scores
from stylize.evaluation.statistics import Table, spread
from stylize.studies.findings import Finding
from stylize.studies.runs import Arm
from stylize.studies.study import Findings, Results, Setting, Study, norms_named

PADDINGS = ("zero", "reflection", "replication")
COMPARED_NORMS = norms_named("BN", "IN")
SCORES = ("content", "style", "brightness")


def _arms(setting: Setting) -> list[Arm]:
    crop = setting.base.content.crop
    if crop <= 2 * BORDER_PX:
        raise StylizeError(f"content.crop: got {crop}, must be above {2 * BORDER_PX} for this study of the border")
    return [
        Arm(f"{norm}, {padding}", {"generator.norm": kind, "generator.padding": padding})
        for norm, kind in COMPARED_NORMS.items()
        for padding in PADDINGS
    ]


@torch.no_grad()
def _scores(results: Results, arm: str, seed: int) -> dict[str, float]:
    generator = results.generator(arm, seed)
    collected = []
    for image in results.held_out:
        content = image[None].to(results.device)
        collected.append(border_scores(results.loss, generator(content), content))
    return {name: fmean(scores[name] for scores in collected) for name in SCORES}


def _findings(results: Results) -> Findings:
    scores = {
        arm: [_scores(results, arm, place) for place in range(len(results.setting.seeds))] for arm in results.arms
    }
    rows = [(arm, *(spread([s[name] for s in by_seed]) for name in SCORES)) for arm, by_seed in scores.items()]
    title = f"The outer {BORDER_PX} px over the centre (brightness: over the photograph's own ratio)"
    parts: list[Finding] = [
        Table(title, ("", "content loss", "style loss", "brightness"), rows),
        results.table("Held-out losses after the last step"),
        results.plot("Held-out style loss", results.arms),
        results.sheet("Pictures", {arm: results.generator(arm) for arm in results.arms}),
    ]
    statements = [
        f"{norm}: the border has {told} of the centre's {score} loss"
        for score in ("content", "style")
        for norm in COMPARED_NORMS
        for told in [", ".join(f"{spread([s[score] for s in scores[f'{norm}, {p}']])} ({p})" for p in PADDINGS)]
    ]
    return Findings(statements, parts)


STUDY = Study(
    "padding",
    "Zero, reflection and replication padding with BN and IN",
    "Ulyanov et al. 2016 find the most serious artifacts along the border and attribute them to zero padding. Their "
    "figure 3 shows that instance normalization removes the coloured frame even with zero padding.",
    _arms,
    _findings,
)
