"""How good a model is: its losses beside those of the slow reference, and what it makes of a photograph's contrast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from stylize.errors import StylizeError
from stylize.evaluation.contrast import change_contrast, rms_difference
from stylize.evaluation.gatys import OptimizationConfig, optimize
from stylize.evaluation.statistics import Table, confidence
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import in_order

Painter: TypeAlias = Callable[[Tensor], Tensor]
Terms: TypeAlias = Mapping[str, float]

CONTRASTS = (0.25, 0.5, 1.0, 1.5)
STARTS = {"content": "the photograph", "noise": "noise"}


class EvaluationConfig(BaseModel):
    """Beside what a model stands."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    iterations: int = Field(200, ge=0, description="of L-BFGS for each photograph; 0: the model stands alone")
    start: Literal["content", "noise"] = Field("content", description="of L-BFGS: the photograph, or uniform noise")


class Photograph(NamedTuple):
    """What a model is evaluated on.

    Attributes:
        name: How the results call it.
        image: `(3, H, W)` in [0, 1], on the loss's device.
        stylized: What a program has made of it, likewise; None: the painter is asked.
    """

    name: str
    image: Tensor
    stylized: Tensor | None = None


@dataclass(frozen=True)
class OptimizationResult:
    """Where Gatys' method gets to from the same photograph.

    Attributes:
        terms: Of the loss, after the last iteration.
        totals: The start's, and after every iteration.
        equivalent_iterations: How many of them reach the model's total; None: more than were made.
    """

    terms: Terms
    totals: tuple[float, ...]
    equivalent_iterations: float | None


@dataclass(frozen=True)
class ContrastResult:
    """What a change of the photograph's contrast does to the painted picture.

    Attributes:
        contrast: The factor.
        stylized_rms: Between the pictures painted from it and from the photograph as it is.
        photograph_rms: Between these two themselves.
        style: The style term of what was painted from it.
    """

    contrast: float
    stylized_rms: float
    photograph_rms: float
    style: float


@dataclass(frozen=True)
class PhotographResult:
    """What was measured on one photograph.

    Attributes:
        name: The photograph's.
        stylized: The terms of `PerceptualLoss.measure` for the model's picture.
        unstylized: The same for the photograph itself.
        optimization: None where none was made.
        contrasts: One for each of `CONTRASTS`; empty without a painter.
    """

    name: str
    stylized: Terms
    unstylized: Terms
    optimization: OptimizationResult | None
    contrasts: tuple[ContrastResult, ...]


@dataclass(frozen=True)
class Mean:
    """A mean over photographs, and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of values.

        >>> str(Mean.of([0.5, 0.5]))
        '0.5000 [0.5000, 0.5000]'
        """
        return cls(fmean(values), *confidence(values))

    def __str__(self) -> str:
        return f"{self.mean:#.4g} [{self.low:#.4g}, {self.high:#.4g}]"


@dataclass(frozen=True)
class EquivalentIterations:
    """After how many iterations L-BFGS is where the model is, over photographs.

    Attributes:
        median: None: more than were made; so the quartiles.
        lower_quartile: A quarter of the photographs need fewer.
        upper_quartile: A quarter need more.
        not_reached: On how many photographs the iterations that were made do not reach the model.
        photographs: Their number.
        iterations: How many were made.
    """

    median: float | None
    lower_quartile: float | None
    upper_quartile: float | None
    not_reached: int
    photographs: int
    iterations: int

    @classmethod
    def of(cls, values: Sequence[float | None], iterations: int) -> EquivalentIterations:
        """Median and quartiles of what the photographs need; None: more than `iterations`."""
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
    """All that was measured, and what it comes to.

    Attributes:
        config: How it was measured.
        photographs: Photograph by photograph, at least one.
    """

    config: EvaluationConfig
    photographs: tuple[PhotographResult, ...]

    def terms(self) -> dict[str, dict[str, Mean]]:
        """The means of every term, for the photographs themselves, the model and, where it ran, the optimization."""
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
        """After how many iterations the optimization is where the model is; None where none was made."""
        found = [r.optimization.equivalent_iterations for r in self.photographs if r.optimization is not None]
        return EquivalentIterations.of(found, self.config.iterations) if found else None

    def contrasts(self) -> dict[float, dict[str, Mean]]:
        """The means by contrast; empty without a painter."""
        by_contrast = zip(*(result.contrasts for result in self.photographs), strict=True)
        return {results[0].contrast: _means_of_contrast(results) for results in by_contrast}

    def tables(self) -> list[Table]:
        """The means with their intervals, to be read."""
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
        return tables

    def as_data(self) -> dict[str, Any]:
        """Summaries and photographs as plain data without NaN: what was not reached, or not made, is None."""
        equivalent = self.equivalent_iterations()
        summary = {
            "terms": {kind: {name: asdict(m) for name, m in means.items()} for kind, means in self.terms().items()},
            "equivalent_iterations": None if equivalent is None else asdict(equivalent),
            "contrasts": [
                {"contrast": factor} | {name: asdict(mean) for name, mean in means.items()}
                for factor, means in self.contrasts().items()
            ],
        }
        return {"summary": summary, "photographs": [asdict(result) for result in self.photographs]}


def evaluate(
    painter: Painter | None,
    loss: PerceptualLoss,
    photographs: Iterable[Photograph],
    config: EvaluationConfig = EvaluationConfig(),  # noqa: B008  # immutable
) -> Evaluation:
    """Measure a model over photographs.

    Args:
        painter: `(1, 3, H, W)` in [0, 1] to the same shape and range; None where every photograph brings its
            stylized picture.
        loss: By what it is measured.
        photographs: One after the other.
        config: Beside what.

    Raises:
        StylizeError: There is no photograph, one is too small, or a loss is not finite.

    Source: Johnson et al. 2016, arXiv:1603.08155, section 4.1 (the objective beside that of the optimization, and the
        iterations that reach it); Huang & Belongie 2017, arXiv:1703.06868, section 6.2.
    Differs: torch's L-BFGS with a line search by the strong Wolfe conditions.
    """
    results = tuple(evaluate_photograph(painter, loss, photograph, config) for photograph in photographs)
    if not results:
        raise StylizeError("got no photographs to evaluate, must be at least 1")
    return Evaluation(config, results)


def evaluate_photograph(
    painter: Painter | None, loss: PerceptualLoss, photograph: Photograph, config: EvaluationConfig
) -> PhotographResult:
    """Measure a model on one photograph; everything as in `evaluate`."""
    image = photograph.image[None]
    stylized = _painted(painter, image) if photograph.stylized is None else photograph.stylized[None]
    terms = _measured(loss, stylized, image, f"{photograph.name}, stylized")
    return PhotographResult(
        name=photograph.name,
        stylized=terms,
        unstylized=_measured(loss, image, image, photograph.name),
        optimization=_optimized(loss, photograph, terms["total"], config) if config.iterations else None,
        contrasts=() if painter is None else _contrasts(painter, loss, photograph),
    )


def equivalent_iterations(totals: Sequence[float], objective: float) -> float | None:
    """After how many iterations the best total so far reaches an objective, interpolated between iterations.

    Args:
        totals: The start's, and after every iteration.
        objective: What is to be reached.

    Returns:
        0 where the start is there already; None where none is.

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
    """A quantile, interpolated linearly, of values some of which are only known to be larger than all others: None.

    Returns:
        None where one of the two values between which it lies is.

    >>> quantile([3.0, None, 1.0], 0.5), quantile([3.0, None, 1.0], 0.75)
    (3.0, None)
    """
    ordered = sorted(math.inf if value is None else value for value in values)
    position = q * (len(ordered) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return None if math.isinf(high) else low + (high - low) * (position % 1)


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
        changed = image if factor == 1 else change_contrast(image, factor)  # not even its rounding
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
