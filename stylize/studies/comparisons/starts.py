"""Trainings that begin with random weights and with the learned start."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from stylize.evaluation.statistics import Table, spread
from stylize.losses.summary import headline_terms, label_of
from stylize.measures.grid import mean_grid
from stylize.studies.findings import Finding, Plot, line_of_seeds
from stylize.studies.runs import Arm
from stylize.studies.study import Findings, Results, Setting, Study

FEWER = 4  # times as many steps with random weights as with the start


def _kinds(steps: int) -> dict[str, tuple[str, int]]:
    """The compared trainings by name: their start and their steps."""
    few = max(1, steps // FEWER)
    return {
        f"random, {steps} steps": ("none", steps),
        f"random, {few} steps": ("none", few),
        f"start, {few} steps": ("learned", few),
    }


def _arms(setting: Setting) -> list[Arm]:
    return [
        Arm(
            f"{style.name}: {kind}",
            {
                "style": dict.fromkeys(setting.seeds, style.unnamed().model_dump(mode="json")),  # alike for all
                "styles": [],
                "train.start": start,
                "train.steps": steps,
                "train.validate_every": min(setting.base.train.validate_every, steps),
            },
        )
        for style in setting.base.all_styles()
        for kind, (start, steps) in _kinds(setting.base.train.steps).items()
    ]


def _findings(results: Results) -> Findings:
    base = results.setting.base
    names, kinds = [style.name for style in base.all_styles()], list(_kinds(base.train.steps))
    grids = {f"{name}: {kind}": _grids(results, f"{name}: {kind}") for name in names for kind in kinds}
    parts: list[Finding] = [_means(results, names, kinds, grids)]
    parts += [_over_styles(results, names, kinds, term) for term in headline_terms()]
    for name in names:
        arms = [f"{name}: {kind}" for kind in kinds]
        parts.append(results.table(f"{name}: held-out losses after the last step", arms))
        for term in headline_terms():
            parts.append(results.plot(f"{name}: held-out {term} loss", arms, term))
        painters = {kind: results.generator(f"{name}: {kind}") for kind in kinds}
        parts.append(results.sheet(f"{name}: pictures", painters))
    statements = []
    whole, _, warm = kinds
    for term in ("style", "total", "content_correlation"):
        with_start, without = ([fmean(results.final(f"{n}: {kind}", term)) for n in names] for kind in (warm, whole))
        lower = sum(a <= b for a, b in zip(with_start, without, strict=True))
        statements.append(
            f"{term}: {warm} {fmean(with_start):.4f} against {whole} {fmean(without):.4f}, means over {len(names)} "
            f"styles; with the start it is lower or equal in {lower} of {len(names)}"
        )
    return Findings(statements, parts)


def _over_styles(results: Results, names: Sequence[str], kinds: Sequence[str], term: str) -> Plot:
    """The courses of a held-out term, of all styles and seeds together, by kind."""
    lines = []
    for kind in kinds:
        courses = [results.line(f"{name}: {kind}", term) for name in names]
        lines.append(line_of_seeds(kind, courses[0].x, [course.middle for course in courses]))
    title = f"Held-out {label_of(term)} loss, mean and range over {len(names)} styles"
    return Plot(title, "optimizer steps", f"held-out {label_of(term)} loss, relative", lines, y_scale="log")


def _grids(results: Results, arm: str) -> list[float]:
    """The grid of 4 px in the painted pictures, by seed."""
    return [mean_grid(results.painted(results.generator(arm, i))) for i in range(len(results.of_arm(arm)))]


def _means(results: Results, names: Sequence[str], kinds: Sequence[str], grids: dict[str, list[float]]) -> Table:
    """A row for each style and kind, and the means over the styles."""
    terms = ("style", "content_correlation", "total")
    rows = []
    for name in (*names, "mean"):
        for kind in kinds:
            arms = [f"{n}: {kind}" for n in (names if name == "mean" else [name])]
            cells = [spread([v for arm in arms for v in results.final(arm, term)]) for term in terms]
            rows.append((name, kind, *cells, spread([grid for arm in arms for grid in grids[arm]])))
    photographs = mean_grid(results.pictures)
    title = f"Held-out losses after the last step, and the pictures' grid of 4 px (photographs: {photographs:.2f})"
    return Table(title, ("style", "training", *terms, "grid"), rows)


STUDY = Study(
    "starts",
    "Random weights against the learned start",
    "Dumoulin et al. 2017 (arXiv:1610.07629) train γ and β of a new style from a network of many styles in an eighth "
    "of the steps; Zhang et al. 2019 (MetaStyle) begin from meta-trained weights. This study trains every style of its "
    "config from random weights, and from the package's start for a quarter of the steps.",
    _arms,
    _findings,
)
