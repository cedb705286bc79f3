"""The gates of batch-instance normalization over the training."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from stylize.evaluation.statistics import Row, Table, spread
from stylize.generators import Generator
from stylize.norms import BatchInstanceNorm
from stylize.studies.findings import Finding, Histogram, Plot, line_of_seeds
from stylize.studies.runs import Arm, StudyRun, checkpoint_steps, generator_at
from stylize.studies.study import Findings, Results, Setting, Study, seeds_table

ARM = "BIN"
NEAR = 0.1
PRUNINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "as trained": torch.clone,
    "each to its nearer side": torch.round,
    "all instance": torch.zeros_like,
    "all batch": torch.ones_like,
}


def _arms(setting: Setting) -> list[Arm]:
    return [Arm(ARM, {"generator.norm": "batch_instance"})]


def gates_of(generator: Generator) -> dict[str, Tensor]:
    """Return the gates of every layer, `(C,)`, by the layer's name, in the order of the network."""
    return {n: m.gate.detach().cpu().clone() for n, m in generator.norms().items() if isinstance(m, BatchInstanceNorm)}


@torch.no_grad()
def prune_(generator: Generator, pruning: Callable[[Tensor], Tensor]) -> Generator:
    """Replace the values of all gates."""
    for norm in generator.norms().values():
        if isinstance(norm, BatchInstanceNorm):
            norm.gate.copy_(pruning(norm.gate))
    return generator


def _course(results: Results) -> Plot:
    """Return a plot of the mean gate of every layer over the steps."""
    runs = results.of_arm(ARM)
    steps = [0, *checkpoint_steps(runs[0])]
    by_run = [_means(run, steps[1:]) for run in runs]
    lines = [line_of_seeds(layer, steps, [[1.0, *means[layer]] for means in by_run]) for layer in by_run[0]]
    return Plot("Mean gate of each layer (1: batch, 0: instance)", "optimizer steps", "mean gate", lines)


def _means(run: StudyRun, steps: list[int]) -> dict[str, list[float]]:
    courses: dict[str, list[float]] = {}
    for step in steps:
        for layer, gate in gates_of(generator_at(run, step)).items():
            courses.setdefault(layer, []).append(float(gate.mean()))
    return courses


def _findings(results: Results) -> Findings:
    places = range(len(results.setting.seeds))
    gates = {f"seed {i}": torch.cat(list(gates_of(results.generator(ARM, i)).values())).tolist() for i in places}
    measured = {
        name: [results.measured(prune_(results.generator(ARM, place), pruning)) for place in places]
        for name, pruning in PRUNINGS.items()
    }
    layers = [_layer(layer, gate) for layer, gate in gates_of(results.generator(ARM)).items()]
    parts: list[Finding] = [
        _course(results),
        Histogram("Gates after the last step", "gate (1: batch, 0: instance)", gates),
        seeds_table("What pruning the gates costs: held-out losses", measured),
        Table("Gates by layer, first seed", ("layer", "channels", "mean", "below 0.1", "above 0.9"), layers),
        results.sheet("Pictures", {n: prune_(results.generator(ARM), pruning) for n, pruning in PRUNINGS.items()}),
    ]
    return Findings(_statements(gates, measured), parts)


def _layer(layer: str, gate: Tensor) -> Row:
    shares = (float(near.float().mean()) for near in (gate < NEAR, gate > 1 - NEAR))
    return layer, len(gate), f"{float(gate.mean()):.3f}", *(f"{share:.3f}" for share in shares)


def _statements(gates: dict[str, list[float]], measured: dict[str, list[dict[str, float]]]) -> list[str]:
    shares = [
        [fmean(float(low <= gate <= high) for gate in values) for values in gates.values()]
        for low, high in ((0, NEAR), (1 - NEAR, 1))
    ]
    cost = [
        b["total"] / a["total"] - 1
        for a, b in zip(measured["as trained"], measured["each to its nearer side"], strict=True)
    ]
    ends = [low + high for low, high in zip(*shares, strict=True)]
    verdict = (
        "bimodal: most gates are at the ends" if fmean(ends) > 0.5 and min(map(fmean, shares)) > 0.05 else "not bimodal"
    )
    return [
        f"The gates are {verdict}: {spread(shares[0])} of them are below {NEAR}, {spread(shares[1])} above {1 - NEAR}",
        f"To put every gate to its nearer side changes the held-out total by {100 * fmean(cost):+.1f} %",
    ]


STUDY = Study(
    "gates",
    "The gates of batch-instance normalization over the training",
    "Nam & Kim 2018 (arXiv:1805.07925) find that the gates of batch-instance normalization become bimodal, and that "
    "style transfer moves more of them to instance normalization than classification does. All gates start at 1, "
    "which is batch normalization.",
    _arms,
    _findings,
)
