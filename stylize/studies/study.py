"""A study: settings trained under the same conditions, and the measurements on the results."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from stylize.build import build_objective
from stylize.config import NamedStyle, ObjectiveConfig, RunConfig
from stylize.evaluation.contrast import change_contrast
from stylize.evaluation.evaluate import CONTRASTS, Evaluation, EvaluationConfig, Painter, Photograph, evaluate
from stylize.evaluation.statistics import Table, spread
from stylize.generators import Generator
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.summary import headline_measures, headline_terms, label_of, of_photographs
from stylize.losses.terms import TOTAL
from stylize.models.file import load_model
from stylize.optimization.gatys import OptimizationConfig, optimize
from stylize.studies.findings import Finding, Line, Plot, Sheet, line_of_seeds
from stylize.studies.photographs import Split, held_out_squares
from stylize.studies.runs import Arm, StudyRun, generator_of, records

logger = logging.getLogger("stylize")

NORM_NAMES = {"BN": "batch", "IN": "instance", "BIN": "batch_instance", "LN": "layer"}  # by the papers' abbreviations
COMPARED = (*headline_terms(), TOTAL, *headline_measures())


@dataclass(frozen=True)
class Setting:
    """The conditions of a study.

    Attributes:
        base: The config that all its trainings start from, photographs split.
        photographs: These photographs.
        seeds: Counted from 0, added to the base's seed.
        restyle: Painter of another style, for studies that restyle photographs.
        restyle_name: Name of the other style.
        device: Device that computes.
        folder: Folder of the study, for files of its arms.
        networks: Loss networks to compare with the base's own.
    """

    base: RunConfig
    photographs: Split
    seeds: tuple[int, ...]
    restyle: Painter
    restyle_name: str
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable
    folder: Path = Path()  # immutable
    networks: tuple[str, ...] = ()

    def photographs_count(self) -> int:
        """Return the number of photographs to train on."""
        return sum(1 for _ in self.photographs.training.iterdir())


@dataclass(frozen=True)
class Findings:
    """The findings of a study.

    Attributes:
        statements: Sentences, the main ones first.
        parts: Tables, plots and sheets, in the order of the report.
    """

    statements: Sequence[str]
    parts: Sequence[Finding]


@dataclass(frozen=True)
class Results:
    """The trained networks of a study, with methods to measure them.

    Attributes:
        setting: The conditions.
        arms: Names of the arms, in order.
        runs: All runs.
        device: Device that computes.
        pictures: Photographs for the sheets, `(3, H, W)` in [0, 1].
        iterations: L-BFGS iterations per photograph of the reference; 0: skip.
    """

    setting: Setting
    arms: tuple[str, ...]
    runs: Sequence[StudyRun]
    device: torch.device
    pictures: Sequence[Tensor]
    iterations: int

    @cached_property
    def loss(self) -> PerceptualLoss:
        """The loss of the base config."""
        loss, _ = build_objective(self.setting.base.objective())
        return loss.to(self.device)

    @cached_property
    def held_out(self) -> list[Tensor]:
        """The held-out photographs, as validation crops them."""
        return held_out_squares(self.setting.photographs, self.setting.base.content.crop)

    def of_arm(self, arm: str) -> list[StudyRun]:
        """Return an arm's runs, by seed."""
        return [run for run in self.runs if run.arm == arm]

    def generator(self, arm: str, seed: int = 0) -> Generator:
        """Return a network after its last step."""
        return generator_of(self.of_arm(arm)[seed], self.device)

    def model(self, arm: str, seed: int = 0) -> Generator:
        """Return the network of a run's model: that with the lowest held-out loss, which others can begin from."""
        return load_model(self.of_arm(arm)[seed].folder / "model.safetensors")[0]

    def final(self, arm: str, term: str, style: str | None = None) -> list[float]:
        """Return a held-out term after the last step, by seed: of one of the styles, or the mean over them."""
        if style is None:
            return [records(run, "validation")[-1][term] for run in self.of_arm(arm)]
        return [
            [r for r in records(run, "validation of style") if r["style_name"] == style][-1][term]
            for run in self.of_arm(arm)
        ]

    def line(self, arm: str, term: str, label: str | None = None) -> Line:
        """Return a held-out term over the steps as a curve."""
        courses = [records(run, "validation") for run in self.of_arm(arm)]
        steps = [record["step"] for record in courses[0]]
        return line_of_seeds(label or arm, steps, [[record[term] for record in course] for course in courses])

    def plot(self, title: str, arms: Sequence[str], term: str = "style") -> Plot:
        """Return a plot of a held-out term of several arms over the steps."""
        label = f"held-out {label_of(term)} loss, relative"
        return Plot(title, "optimizer steps", label, [self.line(arm, term) for arm in arms], y_scale="log")

    def table(self, title: str, arms: Sequence[str] = ()) -> Table:
        """Return a table of held-out terms after the last step: mean ± standard deviation over the seeds."""
        chosen = arms or self.arms
        table = seeds_table(
            title, {arm: [records(run, "validation")[-1] for run in self.of_arm(arm)] for arm in chosen}
        )
        style = fmean(self.final(chosen[0], of_photographs("style")))
        unstylized = {"style": style, "content": 0.0, "content_correlation": 1.0}
        cells = (f"{unstylized[name]:.4f}" if name in unstylized else "" for name in COMPARED)
        return replace(table, rows=[*table.rows, ("photographs as they are", *cells)])

    def loss_of(self, style: NamedStyle) -> PerceptualLoss:
        """The loss of the base config for one of its styles."""
        base = self.setting.base
        loss, _ = build_objective(ObjectiveConfig(style=style.unnamed(), loss=base.loss, seed=base.seed))
        return loss.to(self.device)

    def measured(self, painter: Painter, loss: PerceptualLoss | None = None) -> dict[str, float]:
        """Return the terms of a loss, the base's if none is given, averaged over the held-out photographs."""
        loss = loss or self.loss
        sums: dict[str, float] = {}
        with torch.no_grad():
            for image in self.held_out:
                content = image[None].to(self.device)
                for name, term in loss.measure(painter(content), content).items():
                    sums[name] = sums.get(name, 0.0) + float(term) / len(self.held_out)
        return sums

    @cached_property
    def optimized(self) -> list[Tensor]:
        """The pictures of the sheets, stylized by Gatys' method."""
        config = OptimizationConfig(iterations=self.iterations)
        found = []
        for picture in self.pictures:
            (last,) = deque(optimize(self.loss, picture[None].to(self.device), config), maxlen=1)
            found.append(last.picture[0].cpu())
        return found

    def painted(self, painter: Painter) -> list[Tensor]:
        """Return the pictures of the sheets, stylized by a painter."""
        with torch.no_grad():
            return [painter(picture[None].to(self.device))[0].float().cpu().clamp(0, 1) for picture in self.pictures]

    def sheet(self, title: str, columns: Mapping[str, Painter], *, with_optimized: bool = False) -> Sheet:
        """Return a sheet of the pictures, unstylized, by each painter, and with `with_optimized` by Gatys' method."""
        painted = [list(self.pictures), *(self.painted(painter) for painter in columns.values())]
        heads = ["photograph", *columns]
        if with_optimized and self.iterations:
            painted.append(self.optimized)
            heads.append(f"Gatys, {self.iterations} iterations")
        return Sheet(title, tuple(heads), list(zip(*painted, strict=True)))

    def contrast_table(self, title: str, painters: Mapping[str, Painter]) -> Table:
        """Return a table of the change of pictures with the photographs' contrast: RMS of pixels, and the style loss.

        RMS is the difference between the pictures painted from a photograph at a contrast and at contrast 1. Means
        with 95 % confidence intervals over the held-out photographs.
        """
        rows: list[tuple[str, ...]] = []
        for name, painter in {"photographs as they are": _as_it_is, **painters}.items():
            for factor, means in self.evaluated(painter).contrasts().items():
                rows.append((name, f"{factor:g}", str(means["stylized_rms"]), str(means["style"])))
        return Table(title, ("", "contrast", "RMS to that at contrast 1", "style"), rows)

    def evaluated(self, painter: Painter) -> Evaluation:
        """Evaluate a painter on every held-out photograph."""
        photographs = (Photograph(str(i), image.to(self.device)) for i, image in enumerate(self.held_out))
        return evaluate(painter, self.loss, photographs, EvaluationConfig(iterations=0))

    def contrast_sheet(self, title: str, painters: Mapping[str, Painter]) -> Sheet:
        """Return a sheet of the first picture at every contrast, unstylized and by each painter."""
        changed = [change_contrast(self.pictures[0][None].to(self.device), factor) for factor in CONTRASTS]
        with torch.no_grad():
            rows = [[painter(image)[0].float().cpu() for image in changed] for painter in painters.values()]
        heads = tuple(f"contrast {factor:g}" for factor in CONTRASTS)
        return Sheet(title, heads, [[image[0].cpu() for image in changed], *rows], ("photograph", *painters))

    def compare(self, lower: str, higher: str, term: str = "style") -> str:
        """Return a sentence on whether a held-out term of two arms differs by more than the spread over seeds."""
        a, b = self.final(lower, term), self.final(higher, term)
        differences = [y - x for x, y in zip(a, b, strict=True)]
        numbers = f"{term} {spread(a)} against {spread(b)}, difference {spread(differences)}"
        if len(differences) < 2:
            return f"{lower} against {higher}: {numbers}; one seed says nothing of the spread"
        deviation = max(stdev(a), stdev(b))
        mean = fmean(differences)
        if abs(mean) <= deviation:
            verdict = "no difference beyond the spread"
        else:
            verdict = f"{lower if mean > 0 else higher} is lower by more than the spread"
        return f"{lower} against {higher}: {verdict} ({numbers}; {len(a)} seeds)"


def seeds_table(title: str, measured: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    """Return a table of terms by name: mean ± standard deviation over the seeds."""
    rows = [
        (name, *(spread([terms[term] for terms in seeds]) for term in COMPARED)) for name, seeds in measured.items()
    ]
    return Table(title, ("", *map(label_of, COMPARED)), rows)


def norms_named(*names: str) -> dict[str, str]:
    """Return norms of the config by the papers' abbreviations.

    >>> norms_named("BN", "IN")
    {'BN': 'batch', 'IN': 'instance'}
    """
    return {name: NORM_NAMES[name] for name in names}


def _as_it_is(content: Tensor) -> Tensor:
    return content


@dataclass(frozen=True)
class Study:
    """A comparison, run by one command.

    Attributes:
        name: Name on the command line.
        title: One line.
        question: Question of the study, and results of the papers.
        arms: Returns the settings to train.
        findings: Measures the trained networks.
        arms_after: Returns settings to train after the others, from their results.
    """

    name: str
    title: str
    question: str
    arms: Callable[[Setting], list[Arm]]
    findings: Callable[[Results], Findings]
    arms_after: Callable[[Setting, Sequence[StudyRun]], list[Arm]] | None = None
