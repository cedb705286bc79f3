"""Number of photographs to train on."""

from __future__ import annotations

from statistics import fmean

from stylize.evaluation.statistics import Table, spread
from stylize.losses.summary import headline_terms
from stylize.losses.terms import TOTAL
from stylize.studies.findings import Finding
from stylize.studies.photographs import subset
from stylize.studies.runs import Arm, records
from stylize.studies.study import Findings, Results, Setting, Study

COUNTS = (1, 4, 16, 64, 256)


def _name(count: int) -> str:
    return "1 photograph" if count == 1 else f"{count} photographs"


def _arms(setting: Setting) -> list[Arm]:
    there = setting.photographs_count()
    arms = []
    for count in (count for count in COUNTS if count < there):
        paths = {seed: str(subset(setting.photographs, count, seed).training) for seed in setting.seeds}
        arms.append(Arm(_name(count), {"content.path": paths}))
    return [*arms, Arm(f"all {there}", {})]


def _best(results: Results, arm: str) -> list[dict[str, float]]:
    """Return the validation with the lowest total, by seed."""
    return [min(records(run, "validation"), key=lambda record: record["total"]) for run in results.of_arm(arm)]


def _findings(results: Results) -> Findings:
    rows = []
    for arm in results.arms:
        best = _best(results, arm)
        at_best = (spread([record[term] for record in best]) for term in (*headline_terms(), TOTAL))
        rows.append(
            (arm, f"{fmean(record['step'] for record in best):.0f}", *at_best, spread(results.final(arm, "total")))
        )
    columns = ("trained on", "best step", *headline_terms(), TOTAL, "total after the last step")
    parts: list[Finding] = [Table("Held-out losses at the best step, where early stopping would stop", columns, rows)]
    parts += [
        results.plot(f"Held-out {term} loss by the number of photographs", results.arms, term)
        for term in (TOTAL, *headline_terms())
    ]
    painters = {arm: results.generator(arm) for arm in results.arms}
    parts.append(results.sheet("Pictures after the last step", painters))
    last = results.arms[-1]
    statements = [results.compare(last, arm, "total") for arm in results.arms[:-1]]
    return Findings(statements, parts)


STUDY = Study(
    "image-count",
    "Trained on 1, 4, 16, 64, 256 and all photographs",
    'Ulyanov et al. 2016 report that "a network trained on just 16 example images produced better results than one '
    'trained from thousands of those", and stop early. This study measures the held-out losses over the steps for '
    "each number of photographs, which are drawn again for every seed.",
    _arms,
    _findings,
)
