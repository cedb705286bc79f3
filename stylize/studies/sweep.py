"""A sweep: short trainings over lists of values of config keys, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

import torch

from stylize.build import build_objective, read_styles
from stylize.config import NamedStyle, ObjectiveConfig, RunConfig, config_from_tree, read_value, with_changes
from stylize.errors import StylizeError
from stylize.evaluation.statistics import Table, spread
from stylize.generators import Generator
from stylize.measures.painting import MEASURES, PaintingMeasures, means_of
from stylize.models.file import STYLE_NAME
from stylize.studies.findings import Sheet, slug
from stylize.studies.runs import Arm
from stylize.studies.study import Findings, Results, Setting, Study
from stylize.system.files import write_atomically

MOST_CELLS = 64
RESERVED = ("runs", "photographs")  # folders that sweeps share
VALIDATIONS = 3
COLUMNS = ("style", "content_correlation", "total", "grid_4px", "frame", "flats", "wasserstein", "ssim", "cfsd")


class Variation(NamedTuple):
    """A key of the config, and the values that it takes."""

    key: str
    values: tuple[object, ...]


def read_variation(text: str) -> Variation:
    """Read `key.subkey=value,value`; the values are YAML.

    Raises:
        StylizeError: It has another form.

    >>> read_variation("loss.content_layers={relu2_2: 1},{relu2_2: 1, relu3_1: 1}").values
    ({'relu2_2': 1}, {'relu2_2': 1, 'relu3_1': 1})
    """
    key, separator, values = text.partition("=")
    found = read_value(f"[{values}]", f"--vary {text}") if separator else None
    if not key or not isinstance(found, list) or not found:
        raise StylizeError(f"--vary: got '{text}', must be KEY=VALUE,VALUE,…")
    return Variation(key, tuple(found))


def cells_of(variations: Sequence[Variation]) -> dict[str, dict[str, object]]:
    """Return the changes of each cell by its name: all combinations of the values.

    Raises:
        StylizeError: There are too many, or a key or a value comes twice.

    >>> list(cells_of([Variation("loss.tv_weight", (0, 1)), Variation("style.size", (256,))]))
    ['tv_weight=0, size=256', 'tv_weight=1, size=256']
    """
    keys = [variation.key for variation in variations]
    count = prod(len(variation.values) for variation in variations)
    if count > MOST_CELLS:
        raise StylizeError(f"--vary: got {count} combinations, must be at most {MOST_CELLS}")
    names = _short(keys)
    cells = {}
    for values in product(*(variation.values for variation in variations)):
        name = ", ".join(f"{names[key]}={_word(value)}" for key, value in zip(keys, values, strict=True))
        cells[name] = dict(zip(keys, values, strict=True))
    if len(set(keys)) < len(keys) or len(cells) < count:
        raise StylizeError("--vary: a key or a value comes twice")
    return cells


def _short(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or the whole where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def _word(value: object) -> str:
    if isinstance(value, str):
        return Path(value).stem or value
    if isinstance(value, dict):
        return "+".join(str(name) if part == 1 else f"{name}:{part}" for name, part in value.items())
    return str(value)


def shortened(config: RunConfig, steps: int | None) -> RunConfig:
    """Return the config of a sweep's trainings: with so many steps, if given, and few validations."""
    train = config.train
    steps = steps or train.steps
    changes = {
        "train.steps": steps,
        "train.validate_every": max(1, steps // VALIDATIONS),
        "train.stop_after": None,
        "train.schedule.warmup_steps": min(train.schedule.warmup_steps, steps // 10),
    }
    return with_changes(config, changes, "--steps")


def sweep(name: str, whole: RunConfig, cells: Mapping[str, Mapping[str, object]]) -> Study:
    """Return a study whose settings are the cells.

    Args:
        name: Its name, which is also that of its folder.
        whole: The config without changes, and not shortened: each cell gets one like it, ready to train.
        cells: Changes by the cell's name.

    Raises:
        StylizeError: A key or a value does not fit the config, or the name is unfit.
    """
    if name in RESERVED or not STYLE_NAME.fullmatch(name):
        raise StylizeError(
            f"--name: got '{name}', must be letters, digits, ' ', '.', '_' and '-', and not {' or '.join(RESERVED)}"
        )
    configs = {
        # paths are those of the current folder
        cell: config_from_tree(with_changes(whole, changes, "--vary").model_dump(mode="json"), place="--vary")
        for cell, changes in cells.items()
    }

    def arms(setting: Setting) -> list[Arm]:
        place = setting.folder / "cells"
        place.mkdir(parents=True, exist_ok=True)
        for number, (cell, config) in enumerate(configs.items(), 1):
            write_atomically(place / f"{number:02d}-{slug(cell)}.yaml", config.to_yaml().encode())
        return [
            Arm(cell, {key: _of_seeds(value_at(config, key), setting.seeds) for key in cells[cell]})
            for cell, config in configs.items()
        ]

    return Study(
        name,
        f"{whole.name}: {len(cells)} settings",
        "Which setting paints best? All are measured by the loss of the config as it is, and by measures that no "
        "training minimizes. Ready configs of all settings are in the folder `cells`.",
        arms,
        _findings,
    )


def value_at(config: RunConfig, key: str) -> object:
    """Return the value at a dotted key."""
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return cast(object, value)


def _of_seeds(value: object, seeds: Sequence[int]) -> object:
    """A value in the changes of an arm, where a mapping holds one for each seed."""
    return dict.fromkeys(seeds, value) if isinstance(value, dict) else value


def _findings(results: Results) -> Findings:
    figures = {arm: _measured(results, arm) for arm in results.arms}
    rows = [
        (arm, *(_cell([found[name] for found in seeds if name in found]) for name in COLUMNS))
        for arm, seeds in figures.items()
    ]
    notes = "; ".join(f"{name}: {MEASURES[name]}" for name in COLUMNS if name in MEASURES)
    table = Table("Figures after the last step, on the held-out photographs", ("setting", *COLUMNS), rows)
    painted = [results.painted(_generator(results, arm)) for arm in results.arms]
    heads = tuple(f"photograph {i + 1}" for i in range(len(results.pictures)))
    sheet = Sheet("Pictures", heads, [list(results.pictures), *painted], ("photograph", *results.arms))
    lowest = min(results.arms, key=lambda arm: fmean(found["total"] for found in figures[arm]))
    statements = [f"the lowest total: {lowest}", notes]
    return Findings(statements, [sheet, table])


def _cell(values: Sequence[float]) -> str:
    return spread(values) if values else ""


def _generator(results: Results, arm: str, seed: int = 0) -> Generator:
    generator = results.generator(arm, seed)
    count = generator.style_count
    return generator.blended([1.0, *[0.0] * (count - 1)])


def _measured(results: Results, arm: str) -> list[dict[str, float]]:
    """The figures of an arm's networks by seed, in the first style, by the loss of the config without changes."""
    base = results.setting.base
    found = []
    for seed, run in enumerate(results.of_arm(arm)):
        style: NamedStyle = run.config.all_styles()[0]
        loss, _ = build_objective(ObjectiveConfig(style=style.unnamed(), loss=base.loss, seed=base.seed))
        loss = loss.to(results.device)
        pictures = [image.to(results.device) for image in read_styles(style, base.loss)]
        measures = PaintingMeasures(loss.vgg, list(base.loss.style_layers), pictures)
        generator = _generator(results, arm, seed)
        with torch.no_grad():
            photographs = [photograph.to(results.device) for photograph in results.held_out]
            each = [measures.measure(generator(p[None])[0], p, generator) for p in photographs]
        found.append({**results.measured(generator, loss), **means_of(each)})
    return found
