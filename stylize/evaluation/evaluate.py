"""Measure a model: its losses compared with Gatys' optimization, and its response to contrast."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from stylize import __version__
from stylize.errors import StylizeError
from stylize.evaluation.contrast import change_contrast, rms_difference
from stylize.evaluation.statistics import Table, confidence
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import in_order
from stylize.measures.painting import MEASURES, PaintingMeasures, by_measure
from stylize.optimization.gatys import OptimizationConfig, optimize
from stylize.system.files import write_atomically

Painter: TypeAlias = Callable[[Tensor], Tensor]
Terms: TypeAlias = Mapping[str, float]

CONTRASTS = (0.25, 0.5, 1.0, 1.5)
STARTS = {"content": "the photograph", "noise": "noise"}


class EvaluationConfig(BaseModel):
    """Settings of the reference that a model is compared with."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    iterations: int = Field(200, ge=0, description="L-BFGS iterations per photograph of the reference; 0: skip")
    start: Literal["content", "noise"] = Field(
        "content", description="start of the reference: the photograph, or noise"
    )


class Photograph(NamedTuple):
    """A photograph to evaluate a model on.

    Attributes:
        name: Its name in the results.
        image: `(3, H, W)` in [0, 1], on the loss's device.
        stylized: The stylized picture, likewise; None: the painter paints it.
    """

    name: str
    image: Tensor
    stylized: Tensor | None = None


@dataclass(frozen=True)
class OptimizationResult:
    """Result of Gatys' method on the same photograph.

    Attributes:
        terms: Terms of the loss after the last iteration.
        totals: Total of the start, and after every iteration.
        equivalent_iterations: Number of iterations that reach the model's total; None: more than were made.
    """

    terms: Terms
    totals: tuple[float, ...]
    equivalent_iterations: float | None


@dataclass(frozen=True)
class ContrastResult:
    """Effect of a change of the photograph's contrast on the stylized picture.

    Attributes:
        contrast: Factor of the change.
        stylized_rms: RMS difference of the pictures stylized from the changed and the original photograph.
        photograph_rms: RMS difference of the changed and the original photograph.
        style: Style term of the picture stylized from the changed photograph.
    """

    contrast: float
    stylized_rms: float
    photograph_rms: float
    style: float


@dataclass(frozen=True)
class PhotographResult:
    """Measurements on one photograph.

    Attributes:
        name: Name of the photograph.
        stylized: Values of `PerceptualLoss.measure` for the stylized picture.
        unstylized: The same for the photograph itself.
        optimization: Result of the reference; None without iterations.
        contrasts: One for each of `CONTRASTS`; empty without a painter.
        measures: Measures that no training minimizes, of the stylized picture and of the photograph by their names;
            empty if they were not asked for.
    """

    name: str
    stylized: Terms
    unstylized: Terms
    optimization: OptimizationResult | None
    contrasts: tuple[ContrastResult, ...]
    measures: Mapping[str, Terms]


@dataclass(frozen=True)
class Mean:
    """A mean over photographs, and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Return the mean of values.

        >>> str(Mean.of([0.5, 0.5]))
        '0.5000 [0.5000, 0.5000]'
        """
        return cls(fmean(values), *confidence(values))

    def __str__(self) -> str:
        return f"{self.mean:#.4g} [{self.low:#.4g}, {self.high:#.4g}]"


@dataclass(frozen=True)
class EquivalentIterations:
    """Number of L-BFGS iterations that reach the model's total, over photographs.

    Attributes:
        median: None, like the quartiles: more than were made.
        lower_quartile: A quarter of the photographs need fewer.
        upper_quartile: A quarter need more.
        not_reached: Number of photographs on which the reference does not reach the model.
        photographs: Number of photographs.
        iterations: Number of iterations that were made.
    """

    median: float | None
    lower_quartile: float | None
    upper_quartile: float | None
    not_reached: int
    photographs: int
    iterations: int

    @classmethod
    def of(cls, values: Sequence[float | None], iterations: int) -> EquivalentIterations:
        """Return median and quartiles over photographs; None: more than `iterations`."""
        lower, median, upper = (quantile(values, q) for q in (0.25, 0.5, 0.75))
        return cls(median, lower, upper, values.count(None), len(values), iterations)

    def __str__(self) -> str:
        median, lower, upper = (
            f"more than {self.iterations}" if value is None else f"{value:.1f}"
            for value in (self.median, self.lower_quartile, self.upper_quartile)
        )
        return (
            f"median {median}, quartiles {lower} and {upper}; "
            f"more than {self.iterations} on {self.not_reached} of {self.photographs} photographs"
        )


@dataclass(frozen=True)
class Evaluation:
    """All measurements, and their summaries.

    Attributes:
        config: Settings of the reference.
        photographs: Measurements of each photograph, at least one.
    """

    config: EvaluationConfig
    photographs: tuple[PhotographResult, ...]

    def terms(self) -> dict[str, dict[str, Mean]]:
        """Return the mean of every term for the photographs, the model and the reference, if it ran."""
        of_all = {
            "unstylized": [result.unstylized for result in self.photographs],
            "stylized": [result.stylized for result in self.photographs],
            "optimized": [r.optimization.terms for r in self.photographs if r.optimization is not None],
        }
        return {
            kind: {name: Mean.of([terms[name] for terms in found]) for name in in_order(found[0])}
            for kind, found in of_all.items()
            if found
        }

    def equivalent_iterations(self) -> EquivalentIterations | None:
        """Return the number of iterations that reach the model; None without the reference."""
        found = [r.optimization.equivalent_iterations for r in self.photographs if r.optimization is not None]
        return EquivalentIterations.of(found, self.config.iterations) if found else None

    def contrasts(self) -> dict[float, dict[str, Mean]]:
        """Return the means by contrast; empty without a painter."""
        by_contrast = zip(*(result.contrasts for result in self.photographs), strict=True)
        return {results[0].contrast: _means_of_contrast(results) for results in by_contrast}

    def measures(self) -> dict[str, dict[str, Mean]]:
        """Return the mean of every measure over the photographs that have it, for the pictures by their names."""
        found = {}
        for kind in self.photographs[0].measures:
            together = by_measure([result.measures[kind] for result in self.photographs])
            found[kind] = {name: Mean.of(values) for name, values in together.items()}
        return found

    def tables(self) -> list[Table]:
        """Return the means with their intervals as tables to print."""
        terms, contrasts = self.terms(), self.contrasts()
        heads = {
            "unstylized": "photograph",
            "stylized": "stylized",
            "optimized": f"{self.config.iterations} iterations of L-BFGS",
        }
        rows = [(name, *(str(means[name]) for means in terms.values())) for name in terms["stylized"]]
        tables = [Table("Losses", ("term", *(heads[kind] for kind in terms)), rows)]
        if contrasts:
            columns = ("contrast", "change of the photograph", "change of the stylized", "style of the stylized")
            keys = ("photograph_rms", "stylized_rms", "style")
            of_contrast = [(f"{factor:g}", *(str(means[key]) for key in keys)) for factor, means in contrasts.items()]
            tables.append(Table("Contrast", columns, of_contrast))
        if self.measures():
            tables.append(self._table_of_measures(heads))
        return tables

    def _table_of_measures(self, heads: Mapping[str, str]) -> Table:
        found = self.measures()
        rows = [(name, *(str(means.get(name, "")) for means in found.values())) for name in MEASURES]
        return Table("Measures", ("measure", *(heads[kind] for kind in found)), [row for row in rows if any(row[1:])])

    def as_data(self) -> dict[str, Any]:
        """Return summaries and photographs as plain data for JSON; missing values are None, never NaN."""
        equivalent = self.equivalent_iterations()
        summary = {
            "terms": {kind: {name: asdict(m) for name, m in means.items()} for kind, means in self.terms().items()},
            "equivalent_iterations": None if equivalent is None else asdict(equivalent),
            "contrasts": [
                {"contrast": factor} | {name: asdict(mean) for name, mean in means.items()}
                for factor, means in self.contrasts().items()
            ],
            "measures": {
                kind: {name: asdict(mean) for name, mean in means.items()} for kind, means in self.measures().items()
            },
        }
        return {"summary": summary, "photographs": [asdict(result) for result in self.photographs]}


def evaluate(
    painter: Painter | None,
    loss: PerceptualLoss,
    photographs: Iterable[Photograph],
    config: EvaluationConfig = EvaluationConfig(),  # noqa: B008  # immutable
    measures: PaintingMeasures | None = None,
) -> Evaluation:
    """Measure a model on photographs.

    Args:
        painter: `(1, 3, H, W)` in [0, 1] to the same shape and range; None if every photograph has its stylized
            picture.
        loss: Loss whose terms are measured.
        photographs: Photographs, read one after the other.
        config: Settings of the reference.
        measures: What measures the pictures beside the loss; None: nothing does.

    Raises:
        StylizeError: There is no photograph, one is too small, or a loss is not finite.

    Source: Johnson et al. 2016, arXiv:1603.08155, section 4.1 (the objective against that of the optimization, and the
        iterations that reach it); Huang & Belongie 2017, arXiv:1703.06868, section 6.2.
    Differs: torch's L-BFGS with a line search by the strong Wolfe conditions.
    """
    results = tuple(evaluate_photograph(painter, loss, photograph, config, measures) for photograph in photographs)
    if not results:
        raise StylizeError("got no photographs to evaluate, must be at least 1")
    return Evaluation(config, results)


def evaluate_photograph(
    painter: Painter | None,
    loss: PerceptualLoss,
    photograph: Photograph,
    config: EvaluationConfig,
    measures: PaintingMeasures | None = None,
) -> PhotographResult:
    """Measure a model on one photograph; see `evaluate`."""
    image = photograph.image[None]
    stylized = _painted(painter, image) if photograph.stylized is None else photograph.stylized[None]
    terms = _measured(loss, stylized, image, f"{photograph.name}, stylized")
    return PhotographResult(
        name=photograph.name,
        stylized=terms,
        unstylized=_measured(loss, image, image, photograph.name),
        optimization=_optimized(loss, photograph, terms["total"], config) if config.iterations else None,
        contrasts=() if painter is None else _contrasts(painter, loss, photograph),
        measures={}
        if measures is None
        else {
            "unstylized": measures.measure(photograph.image, photograph.image),
            "stylized": measures.measure(stylized[0], photograph.image, painter),
        },
    )


def equivalent_iterations(totals: Sequence[float], objective: float) -> float | None:
    """Return the iterations after which the best total so far reaches an objective, interpolated linearly.

    Args:
        totals: Total of the start, and after every iteration.
        objective: Total to reach.

    Returns:
        0 if the start reaches it already; None if no iteration does.

    >>> equivalent_iterations([8.0, 4.0, 5.0, 2.0], 3.0)
    2.5
    >>> equivalent_iterations([8.0, 4.0], 3.0) is None
    True
    """
    best = list(accumulate(totals, min))
    if best[0] <= objective:
        return 0.0
    for iteration, (before, after) in enumerate(pairwise(best)):
        if after <= objective:
            return iteration + (before - objective) / (before - after)
    return None


def quantile(values: Sequence[float | None], q: float) -> float | None:
    """Return a quantile, interpolated linearly; None represents a value larger than all others.

    Returns:
        None if one of the two neighbouring values is None.

    >>> quantile([3.0, None, 1.0], 0.5), quantile([3.0, None, 1.0], 0.75)
    (3.0, None)
    """
    ordered = sorted(math.inf if value is None else value for value in values)
    position = q * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return None if math.isinf(high) else low + (high - low) * (position % 1)


def write_json(path: Path, evaluation: Evaluation, settings: Mapping[str, Any]) -> None:
    """Write an evaluation with its settings and the versions of the libraries, atomically.

    Raises:
        StylizeError: The file cannot be written.
    """
    versions = {
        "stylize": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    tree = {"settings": settings, "versions": versions, **evaluation.as_data()}
    write_atomically(path, f"{json.dumps(tree, indent=2, allow_nan=False)}\n".encode())


def _painted(painter: Painter | None, image: Tensor) -> Tensor:
    if painter is None:
        raise ValueError("without a painter every photograph must bring its stylized picture")
    with torch.no_grad():
        return painter(image)


def _measured(loss: PerceptualLoss, stylized: Tensor, image: Tensor, place: str) -> dict[str, float]:
    with torch.no_grad():
        terms = {name: value.item() for name, value in loss.measure(stylized, image).items()}
    for name, value in terms.items():
        if not math.isfinite(value):
            raise StylizeError(
                f"{place}: got {value} for {name}, must be finite; look at the picture, and at the weights of the loss"
            )
    return terms


def _optimized(
    loss: PerceptualLoss, photograph: Photograph, objective: float, config: EvaluationConfig
) -> OptimizationResult:
    image = photograph.image[None]
    optimization = OptimizationConfig(iterations=config.iterations, start=config.start)
    totals = []
    for iterate in optimize(loss, image, optimization):
        totals.append(iterate.terms["total"])
        last = iterate.picture
    terms = _measured(loss, last, image, f"{photograph.name}, optimized")
    return OptimizationResult(terms, tuple(totals), equivalent_iterations(totals, objective))


def _contrasts(painter: Painter, loss: PerceptualLoss, photograph: Photograph) -> tuple[ContrastResult, ...]:
    image = photograph.image[None]
    reference = _painted(painter, image)
    results = []
    for factor in CONTRASTS:
        changed = image if factor == 1 else change_contrast(image, factor)  # exactly equal: change_contrast rounds
        painted = _painted(painter, changed)
        terms = _measured(loss, painted, changed, f"{photograph.name} at contrast {factor:g}, stylized")
        results.append(
            ContrastResult(
                contrast=factor,
                stylized_rms=rms_difference(painted, reference),
                photograph_rms=rms_difference(changed, image),
                style=terms["style"],
            )
        )
    return tuple(results)


def _means_of_contrast(results: Sequence[ContrastResult]) -> dict[str, Mean]:
    return {
        "stylized_rms": Mean.of([result.stylized_rms for result in results]),
        "photograph_rms": Mean.of([result.photograph_rms for result in results]),
        "style": Mean.of([result.style for result in results]),
    }
