"""`stylize evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylize.cli.objective import check_style_is_named, objective_of
from stylize.cli.options import PATH, device_option, overrides_option, verbose_option
from stylize.errors import StylizeError
from stylize.system.memory import keep_freed_memory
from stylize.system.places import check_replaceable, make_parent

if TYPE_CHECKING:
    from stylize.config import ObjectiveConfig
    from stylize.evaluation.evaluate import Evaluation
    from stylize.evaluation.statistics import Table
    from stylize.evaluation.subjects import Subject

logger = logging.getLogger("stylize")


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--content",
    type=PATH,
    required=True,
    metavar="DIR",
    help="Folder of photographs.",
)
@click.option(
    "--style",
    type=PATH,
    metavar="IMAGE",
    help="Style image; default: that of --config.",
)
@click.option(
    "--config",
    "config_path",
    type=PATH,
    metavar="FILE",
    help="YAML file of a run whose loss and style size to use; default: those the model was trained with.",
)
@overrides_option
@click.option(
    "--size",
    type=click.IntRange(32),
    default=256,
    show_default=True,
    metavar="PX",
    help="Longer side the photographs are resized to.",
)
@click.option(
    "--photographs",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    metavar="N",
    help="Use the first N photographs by name.",
)
@click.option(
    "--iterations",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    metavar="N",
    help="L-BFGS iterations per photograph of the reference; 0: skip.",
)
@click.option(
    "--start",
    type=click.Choice(["content", "noise"]),
    default="content",
    show_default=True,
    help="Start of the reference: the photograph, or noise.",
)
@click.option(
    "--json",
    "json_path",
    type=PATH,
    metavar="FILE",
    help="Write all results as JSON.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing JSON file.")
@device_option
@verbose_option
def evaluate(
    model: str,
    content: Path,
    style: Path | None,
    config_path: Path | None,
    overrides: tuple[str, ...],
    size: int,
    photographs: int,
    iterations: int,
    start: str,
    json_path: Path | None,
    overwrite: bool,
    device: str,
) -> None:
    """Measure a model on photographs, and compare it with the slow reference.

    MODEL is a model file, a run folder, a built-in style, or a folder of
    pictures that any program has stylized, named as their photographs.
    """
    check_style_is_named(style, config_path)
    if json_path is not None:
        _check_json_place(json_path, overwrite)
    from stylize.build import build_objective, read_styles
    from stylize.evaluation.evaluate import EvaluationConfig, write_json
    from stylize.evaluation.evaluate import evaluate as measure
    from stylize.evaluation.subjects import check_sizes, find_pairs, read_photographs, read_subject
    from stylize.measures.painting import PaintingMeasures
    from stylize.system.devices import choose_device

    keep_freed_memory()
    evaluation = EvaluationConfig.model_validate({"iterations": iterations, "start": start})
    target = choose_device(device)
    subject = read_subject(model, target)
    objective = _objective(subject, config_path, style, overrides)
    pairs = find_pairs(content, subject.pictures, photographs)
    check_sizes(pairs, size, objective.loss, iterations)
    loss, weights = build_objective(objective)
    loss = loss.to(target)
    styles = [style.to(target) for style in read_styles(objective.style, objective.loss)]
    measures = PaintingMeasures(loss.vgg, list(objective.loss.style_layers), styles)
    result = measure(subject.painter, loss, read_photographs(pairs, size, target), evaluation, measures)
    settings = {
        "model": subject.name,
        "content": str(content),
        "size_px": size,
        **evaluation.model_dump(),
        "device": target.type,
        "vgg": weights,
        **objective.model_dump(mode="json"),
    }
    _show(result, settings)
    if json_path is not None:
        write_json(json_path, result, settings)


def _check_json_place(path: Path, overwrite: bool) -> None:
    if path.suffix.lower() != ".json":
        raise StylizeError(f"--json: got {path} with the suffix '{path.suffix}', must be .json")
    if path.is_dir():
        raise StylizeError(f"--json: {path} is a folder, must be a file")
    check_replaceable(path, overwrite)
    make_parent(path)


def _objective(
    subject: Subject, config_path: Path | None, style: Path | None, overrides: Sequence[str]
) -> ObjectiveConfig:
    """The loss of `--config`, else the one the model was trained with, else the default."""
    from stylize.config import objective_config

    if config_path is not None or subject.card is None:
        return objective_of(config_path, style, overrides)
    assert style is not None
    chosen = any(override.startswith("loss.vgg=") for override in overrides)
    trained = subject.card.config if chosen else _with_available_vgg(subject.card.config)
    return objective_config(style, overrides, trained, f"{subject.name}: its config")


def _with_available_vgg(trained: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a training; VGG weights from somebody's file are replaced by ImageNet's."""
    from stylize.config import is_vgg_keyword

    loss = trained.get("loss")
    vgg = loss.get("vgg") if isinstance(loss, Mapping) else None
    if not isinstance(loss, Mapping) or not isinstance(vgg, str) or is_vgg_keyword(vgg):
        return trained
    logger.info(
        "loss.vgg: the model was trained against the file %s; taken: imagenet; --set loss.vgg=FILE takes another", vgg
    )
    return {**trained, "loss": {**loss, "vgg": "imagenet"}}


def _show(result: Evaluation, settings: Mapping[str, Any]) -> None:
    from stylize.evaluation.evaluate import STARTS

    count = len(result.photographs)
    click.echo(
        f"{count} photograph{'s' if count > 1 else ''}, longer side {settings['size_px']} px, "
        f"VGG-19: {settings['vgg']}; means with 95 % confidence intervals"
    )
    for table in result.tables():
        click.echo(f"\n{aligned(table)}")
    equivalent = result.equivalent_iterations()
    if equivalent is not None:
        click.echo(f"\nIterations of L-BFGS from {STARTS[result.config.start]} to the same total: {equivalent}")
    if result.contrasts():
        click.echo("Changes are the root of the mean square over pixels, from contrast 1.")


def aligned(table: Table) -> str:
    """Return a table as text in columns, the first aligned left, the others right."""
    lines = [table.columns, *(tuple(str(cell) for cell in row) for row in table.rows)]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    shape = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(shape.format(*line) for line in lines)
