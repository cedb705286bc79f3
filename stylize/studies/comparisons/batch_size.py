"""Normalizations by batch size."""

from __future__ import annotations

from stylize.norms import NORMS
from stylize.studies.findings import Finding
from stylize.studies.runs import Arm
from stylize.studies.study import Findings, Results, Setting, Study, norms_named

COMPARED_NORMS = norms_named("BN", "IN", "BIN")
BATCH_SIZES = (1, 2, 4, 8)


def _arms(setting: Setting) -> list[Arm]:
    return [
        Arm(f"{norm}, batch {size}", {"generator.norm": kind, "train.batch_size": size})
        for norm, kind in COMPARED_NORMS.items()
        for size in BATCH_SIZES
        if size >= NORMS[kind].min_batch_size
    ]


def _findings(results: Results) -> Findings:
    parts: list[Finding] = [results.table("Held-out losses after the last step, by norm and batch size")]
    for norm in COMPARED_NORMS:
        arms = [arm for arm in results.arms if arm.startswith(f"{norm},")]
        parts.append(results.plot(f"{norm}: held-out style loss by batch size", arms))
    for norm in COMPARED_NORMS:
        arms = [arm for arm in results.arms if arm.startswith(f"{norm},")]
        painters = {arm.split(", ")[1]: results.generator(arm) for arm in arms}
        parts.append(results.sheet(f"{norm}: pictures", painters))
    statements = [results.compare(f"IN, batch {size}", f"BN, batch {size}") for size in BATCH_SIZES]
    statements += [results.compare(f"{norm}, batch 8", f"{norm}, batch 2") for norm in COMPARED_NORMS]
    return Findings(statements, parts)


STUDY = Study(
    "batch-size",
    "BN, IN and BIN at batches of 1, 2, 4 and 8",
    "With a batch of 1, batch normalization in training is instance normalization, but eval() uses running "
    "statistics. Batch-instance normalization cannot train with a batch of 1, because its gates get no gradient. "
    "All networks train for the same number of steps, so those with larger batches have seen more photographs.",
    _arms,
    _findings,
)
