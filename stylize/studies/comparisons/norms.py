"""Generators by normalization."""

from __future__ import annotations

from stylize.losses.summary import headline_terms
from stylize.norms import NORMS
from stylize.studies.findings import Finding
from stylize.studies.runs import Arm
from stylize.studies.study import NORM_NAMES, Findings, Results, Setting, Study

GENERATORS = {"Johnson": "johnson", "texture network": "texture_network"}
COMPARED_NORMS = NORM_NAMES | {name: name for name in NORMS if name not in NORM_NAMES.values()}


def _arms(setting: Setting) -> list[Arm]:
    return [
        Arm(f"{generator}, {norm}", {"generator.name": name, "generator.norm": kind})
        for generator, name in GENERATORS.items()
        for norm, kind in COMPARED_NORMS.items()
    ]


def _findings(results: Results) -> Findings:
    statements, parts = [], list[Finding]()
    for generator in GENERATORS:
        arms = [f"{generator}, {norm}" for norm in COMPARED_NORMS]
        parts.append(results.table(f"{generator}: held-out losses after the last step, in eval()", arms))
        for term in headline_terms():
            parts.append(results.plot(f"{generator}: held-out {term} loss in eval()", arms, term))
        painters = {arm.split(", ")[1]: results.generator(arm) for arm in arms}
        parts.append(results.sheet(f"{generator}: pictures", painters, with_optimized=True))
        for term in ("style", "total"):
            statements.append(results.compare(f"{generator}, IN", f"{generator}, BN", term))
        statements.append(results.compare(f"{generator}, BIN", f"{generator}, IN"))
    return Findings(statements, parts)


STUDY = Study(
    "norms",
    "BN, IN, BIN, LN and no normalization in two generators",
    "Ulyanov et al. 2016 (arXiv:1607.08022, figure 5) show, with pictures only, that instance normalization instead "
    "of batch normalization improves both the texture network and Johnson's network. This study measures the same "
    "networks under equal conditions on held-out photographs in eval(), where batch normalization uses its running "
    "statistics.",
    _arms,
    _findings,
)
