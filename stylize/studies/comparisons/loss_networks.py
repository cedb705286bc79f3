"""Generators trained against several loss networks, all measured by one of them, the judge."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

import torch

from stylize.build import build_objective, build_run
from stylize.config import RunConfig, is_vgg_keyword, with_changes
from stylize.errors import StylizeError
from stylize.evaluation.evaluate import Painter
from stylize.evaluation.statistics import Row, Table, spread
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.summary import headline_measures, headline_terms, label_of
from stylize.studies.findings import Finding
from stylize.studies.runs import PLACE, Arm
from stylize.studies.study import Findings, Results, Setting, Study
from stylize.system.files import write_atomically
from stylize.system.places import expanded
from stylize.training.trainer import Trainer

logger = logging.getLogger("stylize")

TIMED_ROUNDS = 7
CLEARLY_FASTER = 1.1  # a network that is not faster gets no second run of equal time
COMPARED = (*headline_terms(), *headline_measures())
PLAIN = "style, plain Gram matrices"


def label(network: str) -> str:
    """Return a short name of a loss network.

    >>> label("compact"), label("/data/vgg19-conv3_1.safetensors")
    ('compact', 'vgg19-conv3_1')
    """
    return network if is_vgg_keyword(network) else Path(network).stem


def networks_of(setting: Setting) -> list[str]:
    """Return the loss networks to train against, the judge first, paths absolute.

    Raises:
        StylizeError: Two of them have the same short name.
    """
    named = [name if is_vgg_keyword(name) else str(expanded(name).resolve()) for name in setting.networks]
    networks = list(dict.fromkeys([setting.base.loss.vgg, *named]))
    labels = [label(network) for network in networks]
    for network in networks:
        if labels.count(label(network)) > 1:
            raise StylizeError(f"--network: got two of the name '{label(network)}', must have different names")
    return networks


def step_counts(steps: int, judge_s: float, network_s: float) -> list[int]:
    """Return the steps of a network's runs: as many as the judge's, and, if it is faster, those of equal time.

    Args:
        steps: Steps of the judge's run.
        judge_s: Seconds of a training step against the judge.
        network_s: Seconds of a training step against the network.

    >>> step_counts(400, 0.3, 0.2), step_counts(400, 0.3, 0.3)
    ([400, 600], [400])
    """
    faster = judge_s / network_s
    return [steps, round(steps * faster)] if faster > CLEARLY_FASTER else [steps]


def measure_step_seconds(config: RunConfig, networks: Sequence[str], device: torch.device) -> dict[str, float]:
    """Return the median seconds of a training step against each network; they take turns."""
    trainers = {network: _trainer(config, network, device) for network in networks}
    crops = next(iter(next(iter(trainers.values())).batches.from_step(0, 1)))
    seconds: dict[str, list[float]] = {network: [] for network in networks}
    for _ in range(TIMED_ROUNDS):
        for network, trainer in trainers.items():
            start_s = time.perf_counter()
            trainer.step(crops)
            seconds[network].append(time.perf_counter() - start_s)
    return {network: median(times[1:]) for network, times in seconds.items()}


def _trainer(config: RunConfig, network: str, device: torch.device) -> Trainer:
    return build_run(with_changes(config, {"loss.vgg": network}, PLACE), device, Path()).trainer


def step_seconds(setting: Setting) -> dict[str, float]:
    """Return the seconds of a step, measured once and kept in the study's folder: they determine its trainings."""
    networks = networks_of(setting)
    key = hashlib.sha256(f"{networks} {setting.device}\n{setting.base.to_yaml()}".encode()).hexdigest()[:10]
    file = setting.folder / f"step-seconds-{key}.json"
    if not file.is_file():
        logger.info("loss-networks: timing a step against each network")
        measured = measure_step_seconds(setting.base, networks, setting.device)
        write_atomically(file, (json.dumps(measured, indent=2) + "\n").encode())
    found: dict[str, float] = json.loads(file.read_text("utf-8"))
    return found


def _arms(setting: Setting) -> list[Arm]:
    seconds = step_seconds(setting)
    judge = setting.base.loss.vgg
    return [
        Arm(_name(network, steps, judge), {"loss.vgg": network, "train.steps": steps})
        for network in networks_of(setting)
        for steps in step_counts(setting.base.train.steps, seconds[judge], seconds[network])
    ]


def _name(network: str, steps: int, judge: str) -> str:
    return f"{label(network)}{' (judge)' if network == judge else ''}, {steps} steps"


def _plain_loss(results: Results) -> PerceptualLoss:
    """Return the loss of the judge with plain Gram matrices."""
    objective = results.setting.base.objective()
    loss = objective.loss.model_copy(update={"channel_balance": 0.0})
    return build_objective(objective.model_copy(update={"loss": loss}))[0].to(results.device)


@torch.no_grad()
def mean_style(results: Results, loss: PerceptualLoss, painter: Painter) -> float:
    """Return the style term of a loss, averaged over the held-out photographs."""
    contents = (image[None].to(results.device) for image in results.held_out)
    return fmean(float(loss(painter(content), content)["style"]) for content in contents)


def _measured(results: Results, arm: str, plain: PerceptualLoss) -> dict[str, list[float]]:
    """Return the judge's measurements of an arm's networks, by seed."""
    found: dict[str, list[float]] = {name: [] for name in (*COMPARED, PLAIN)}
    for seed in range(len(results.setting.seeds)):
        generator = results.generator(arm, seed)
        values = {**results.measured(generator), PLAIN: mean_style(results, plain, generator)}
        for name, collected in found.items():
            collected.append(values[name])
    return found


def _findings(results: Results) -> Findings:
    plain = _plain_loss(results)
    measured = {arm: _measured(results, arm, plain) for arm in results.arms}
    names = (*COMPARED, PLAIN)
    columns = ("trained against", *map(label_of, names))
    rows: list[Row] = [(arm, *(spread(values) for values in found.values())) for arm, found in measured.items()]
    rows.append(_unstylized(results, plain, names))
    seconds = step_seconds(results.setting)
    times: list[Row] = [(label(network), f"{value:.4f}") for network, value in seconds.items()]
    parts: list[Finding] = [
        Table("Held-out photographs, measured by the judge", columns, rows),
        Table("Seconds of a training step", ("trained against", "s/step"), times),
        results.plot("Held-out style loss, measured by each one's own network", results.arms),
        results.sheet("Pictures", {arm: results.generator(arm) for arm in results.arms}),
    ]
    return Findings(_statements(measured), parts)


def _unstylized(results: Results, plain: PerceptualLoss, names: Sequence[str]) -> Row:
    values = results.measured(_unchanged) | {PLAIN: mean_style(results, plain, _unchanged)}
    return ("photographs as they are", *(f"{values[name]:.4f}" for name in names))


def _unchanged(content: torch.Tensor) -> torch.Tensor:
    return content


def _statements(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    judge, *others = measured
    found = []
    for arm in others:
        ratios = [a / b for a, b in zip(measured[arm]["style"], measured[judge]["style"], strict=True)]
        found.append(f"{arm}: the judge measures {spread(ratios)} times the style loss of {judge}")
    return found


STUDY = Study(
    "loss-networks",
    "Trained against several loss networks, measured by one of them",
    "Can a smaller loss network replace VGG-19? The config's own loss.vgg is the judge. A generator is trained against "
    "it, and one against each --network for as many steps; if the network is faster, also one for the same time. The "
    "judge measures all of them on held-out photographs: the style term as configured and with plain Gram matrices.",
    _arms,
    _findings,
)
