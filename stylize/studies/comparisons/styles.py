"""Many styles in one network, against a network for each, and a further style by the norms alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.evaluation.statistics import Table, spread
from stylize.generators import Generator
from stylize.studies.findings import Finding, Line, Plot, Sheet
from stylize.studies.runs import Arm, StudyRun
from stylize.studies.study import Findings, Results, Setting, Study

TOGETHER, BY_NORMS = "together", "by its norms"
NORMS_STEPS = 2  # times as many steps for a further style's norms as for a network of its own
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
TERMS = ("style", "content", "content_correlation", "total")


def _alone(name: str) -> str:
    return f"{name}: alone"


def _arms(setting: Setting) -> list[Arm]:
    base = setting.base
    styles = base.all_styles()
    if len(styles) < 3:
        raise StylizeError(
            f"styles: got {len(styles)}, must be at least 3 for this study: the last is added to the others"
        )
    alone = [
        Arm(_alone(style.name), {"style": _alike(setting, style.unnamed().model_dump(mode="json")), "styles": []})
        for style in styles
    ]
    several = [style.model_dump(mode="json") for style in styles[:-1]]
    steps = base.train.steps * len(several)
    return [*alone, Arm(TOGETHER, {"styles": _alike(setting, several), "train.steps": steps})]


def _arms_after(setting: Setting, trained: Sequence[StudyRun]) -> list[Arm]:
    ninth = setting.base.all_styles()[-1]
    starts = {run.seed: str(run.folder) for run in trained if run.arm == TOGETHER}
    return [
        Arm(
            f"{ninth.name}: {BY_NORMS}",
            {
                "styles": _alike(setting, [ninth.model_dump(mode="json")]),
                "train.start": starts,
                "train.only": "norms",
                "train.steps": setting.base.train.steps * NORMS_STEPS,
            },
        )
    ]


def _alike(setting: Setting, value: object) -> dict[int, object]:
    """A value of a config, the same for all seeds: a list or tree by itself would be one by seed."""
    return dict.fromkeys(setting.seeds, value)


def _findings(results: Results) -> Findings:
    base = results.setting.base
    *several, last = [style.name for style in base.all_styles()]
    added = f"{last}: {BY_NORMS}"
    rows, ratios = [], []
    for name in several:
        alone = {term: results.final(_alone(name), term) for term in TERMS}
        shared = {term: results.final(TOGETHER, term, name) for term in TERMS}
        rows += [(name, "alone", *_cells(alone)), (name, TOGETHER, *_cells(shared))]
        ratios.append({term: fmean(shared[term]) / fmean(alone[term]) for term in TERMS})
    own, by_norms = ({term: results.final(arm, term) for term in TERMS} for arm in (_alone(last), added))
    rows += [(last, "alone", *_cells(own)), (last, BY_NORMS, *_cells(by_norms))]
    steps = base.train.steps
    mean = {term: fmean(ratio[term] for ratio in ratios) for term in TERMS}
    statements = [
        f"{len(several)} styles in one network of {steps * len(several)} steps against networks of {steps} steps each: "
        + ", ".join(f"{term} × {mean[term]:.3f}" for term in TERMS)
        + f" on average; style between × {min(r['style'] for r in ratios):.3f} and "
        f"× {max(r['style'] for r in ratios):.3f}",
        f"{last}, added by {steps * NORMS_STEPS} steps of the norms alone, against a network of its own of {steps} "
        "steps: " + ", ".join(f"{term} × {fmean(by_norms[term]) / fmean(own[term]):.3f}" for term in TERMS),
        f"the {len(several)} styles and all shared weights are "
        + ("the same bits as before" if _unchanged(results, added) else "changed"),
    ]
    network = results.generator(TOGETHER)
    blends = _blends(results, network)
    singles = {name: results.generator(_alone(name)) for name in several}
    parts: list[Finding] = [
        Table("Held-out losses after the last step", ("style", "network", *TERMS), rows),
        blends,
        _plot(blends),
        _sheet(results, network, singles),
    ]
    return Findings([*statements, _order(blends, several[:2])], parts)


def _cells(terms: dict[str, list[float]]) -> list[str]:
    return [spread(terms[term]) for term in TERMS]


def _unchanged(results: Results, added: str) -> bool:
    """Whether the networks that a style was added to hold the others and all shared weights as before."""
    for seed in range(len(results.of_arm(TOGETHER))):
        before = results.model(TOGETHER, seed).state_dict()
        for name, value in results.model(added, seed).state_dict().items():
            if not torch.equal(value[: len(before[name])], before[name]):
                return False
    return True


def _blends(results: Results, network: Generator) -> Table:
    """The style losses of the first two styles along their blend, over the held-out photographs."""
    pair = results.setting.base.all_styles()[:2]
    losses = [results.loss_of(style) for style in pair]
    rows = []
    for share in BLENDS:
        painter = network.blended([1 - share, share] + [0.0] * (network.style_count - 2))
        rows.append((f"{share:.2f}", *(f"{results.measured(painter, loss)['style']:.4f}" for loss in losses)))
    first, second = (style.name for style in pair)
    return Table(f"Style losses along the blend of {first} and {second}", (f"share of {second}", first, second), rows)


def _plot(blends: Table) -> Plot:
    shares = [float(row[0]) for row in blends.rows]
    lines = []
    for i, name in enumerate(blends.columns[1:], 1):
        losses = [float(row[i]) for row in blends.rows]
        lines.append(Line(name, shares, losses, losses, losses))
    return Plot(f"{blends.title}, plotted", blends.columns[0], "held-out style loss, relative", lines)


def _order(blends: Table, pair: Sequence[str]) -> str:
    columns = [[float(row[i]) for row in blends.rows] for i in (1, 2)]
    rising = all(a < b for a, b in zip(columns[0], columns[0][1:], strict=False))
    falling = all(a > b for a, b in zip(columns[1], columns[1][1:], strict=False))
    verdict = "monotone" if rising and falling else "not monotone"
    return f"along the blend of {pair[0]} and {pair[1]} the style losses of both are {verdict}"


def _sheet(results: Results, network: Generator, singles: dict[str, Generator]) -> Sheet:
    """The first photograph in every style, by the shared network and by those of one style."""
    photograph = results.pictures[0]
    count = network.style_count
    painters = [network.blended([float(i == number) for i in range(count)]) for number in range(count)]
    rows: list[list[Tensor]] = [
        [photograph, *(results.painted(painter)[0] for painter in some)] for some in (singles.values(), painters)
    ]
    return Sheet("Pictures", ("photograph", *singles), rows, ("alone", TOGETHER))


STUDY = Study(
    "styles",
    "Many styles in one network against a network for each",
    "Dumoulin et al. 2017 (arXiv:1610.07629) found a network of many styles, γ and β apart, about as good as "
    "networks of one, and learned a further style by γ and β alone. This study trains every style of its config but "
    "the last in one network, and each in one of its own, with equal steps for each style; then it adds the last by "
    "its norms.",
    _arms,
    _findings,
    _arms_after,
)
