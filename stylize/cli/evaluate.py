"""`stylize evaluate`."""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from stylize.cli.losses import check_style_is_named, config_of_losses
from stylize.cli.options import device_option, overrides_option, verbose_option
from stylize.cli.places import check_replaceable, make_parent
from stylize.errors import StylizeError
from stylize.system.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

    from stylize.config import RunConfig
    from stylize.evaluation.evaluate import Evaluation, Painter, Photograph
    from stylize.evaluation.statistics import Table
    from stylize.generators import Generator
    from stylize.losses.perceptual import LossConfig
    from stylize.models.file import ModelCard

logger = logging.getLogger("stylize")

SHAPE_TOLERANCE = 0.05  # programs round sizes to what their networks take
SHOWN_NAMES = 5


class Pair(NamedTuple):
    """A photograph, and the picture that a program has made of it, if that is what is evaluated."""

    photograph: Path
    picture: Path | None = None


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--content", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder of photographs."
)
@click.option("--style", type=click.Path(path_type=Path), metavar="IMAGE", help="The style; default: that of --config.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="A run's YAML file, whose losses and style size are taken; default: those that the model was trained with.",
)
@overrides_option
@click.option(
    "--size", type=click.IntRange(32), default=256, show_default=True, metavar="PX", help="Their longer side."
)
@click.option(
    "--photographs", type=click.IntRange(1), default=16, show_default=True, metavar="N", help="The first N by name."
)
@click.option(
    "--iterations",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    metavar="N",
    help="Of Gatys' optimization, for each photograph, to compare with; 0: none.",
)
@click.option(
    "--start",
    type=click.Choice(["content", "noise"]),
    default="content",
    show_default=True,
    help="What the optimization begins with.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Everything, as JSON.")
@click.option("--overwrite", is_flag=True, help="Replace a JSON file that is there already.")
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
    """Measure a model over photographs, beside the slow reference.

    MODEL is a model file, a run folder, a built-in style, or a folder of pictures that any program has stylized, named
    as their photographs.
    """
    check_style_is_named(style, config_path)
    if json_path is not None:
        _check_json_place(json_path, overwrite)
    from stylize.build import build_loss, read_styles
    from stylize.evaluation.evaluate import EvaluationConfig
    from stylize.evaluation.evaluate import evaluate as evaluated
    from stylize.system.devices import choose_device

    keep_freed_memory()
    evaluation = EvaluationConfig.model_validate({"iterations": iterations, "start": start})
    target = choose_device(device)
    subject = _read_subject(model, target)
    config = _config(subject, config_path, style, overrides)
    pairs = _find_pairs(content, subject.pictures, photographs)
    _check_sizes(pairs, size, config.loss, iterations)
    loss, weights = build_loss(config, read_styles(config))
    result = evaluated(subject.painter, loss.to(target), _photographs(pairs, size, target), evaluation)
    settings = {
        "model": subject.name,
        "content": str(content),
        "size_px": size,
        **evaluation.model_dump(),
        "device": target.type,
        "vgg": weights,
        **config.model_dump(mode="json", include={"style", "loss", "seed"}),
    }
    _show(result, settings)
    if json_path is not None:
        _write_json(json_path, result, settings)


def _check_json_place(path: Path, overwrite: bool) -> None:
    if path.suffix.lower() != ".json":
        raise StylizeError(f"--json: got {path} with the suffix '{path.suffix}', must be .json")
    if path.is_dir():
        raise StylizeError(f"--json: {path} is a folder, must be a file")
    check_replaceable(path, overwrite)
    make_parent(path)


class Subject(NamedTuple):
    """What is evaluated.

    Attributes:
        name: The path of the model file, or of the folder of pictures.
        card: The model's; None for pictures.
        painter: Likewise.
        pictures: By stem; None for a model.
    """

    name: str
    card: ModelCard | None = None
    painter: Painter | None = None
    pictures: Mapping[str, Path] | None = None


def _read_subject(model: str, device: torch.device) -> Subject:
    from stylize.models.file import load_model
    from stylize.models.find import MODEL_NAME, find_model
    from stylize.pictures.find import find_images

    folder = Path(model)
    if folder.is_dir() and not (folder / MODEL_NAME).is_file():
        pictures = find_images(folder, recursive=False)
        if not pictures:
            raise StylizeError(
                f"MODEL: {folder} holds neither {MODEL_NAME} nor pictures, must be a run folder or one of pictures"
            )
        return Subject(model, pictures=_by_stem(pictures))
    found = find_model(model, place="MODEL")
    generator, card = load_model(found.path)
    logger.info("model: %s, style %s, %s", found.path, card.style, found.reason)
    return Subject(str(found.path), card, _painter(generator, device))


def _painter(generator: Generator, device: torch.device) -> Painter:
    """The model as `stylize apply` paints with it, in float32 everywhere."""
    from stylize.inference.stylizer import Stylizer
    from stylize.pictures.picture import Picture

    stylizer = Stylizer(generator, device)
    return lambda photograph: stylizer(Picture(photograph[0])).rgb[None].to(photograph)


def _config(subject: Subject, config_path: Path | None, style: Path | None, overrides: Sequence[str]) -> RunConfig:
    """The losses of `--config`, else those that the model was trained with, else the default ones."""
    from stylize.config import trained_loss_config

    if config_path is not None or subject.card is None:
        return config_of_losses(config_path, style, overrides)
    assert style is not None
    chosen = any(override.startswith("loss.vgg=") for override in overrides)
    trained = subject.card.config if chosen else _with_vgg_at_hand(subject.card.config)
    return trained_loss_config(style, trained, f"{subject.name}: its config", overrides)


def _with_vgg_at_hand(trained: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a training; VGG weights that were a file of somebody's are replaced by ImageNet's."""
    from stylize.config import is_vgg_keyword

    loss = trained.get("loss")
    vgg = loss.get("vgg") if isinstance(loss, Mapping) else None
    if not isinstance(loss, Mapping) or not isinstance(vgg, str) or is_vgg_keyword(vgg):
        return trained
    logger.info(
        "loss.vgg: the model was trained against the file %s; taken: imagenet; --set loss.vgg=FILE takes another", vgg
    )
    return {**trained, "loss": {**loss, "vgg": "imagenet"}}


def _find_pairs(content: Path, pictures: Mapping[str, Path] | None, count: int) -> list[Pair]:
    """The first photographs by name, with their pictures; those without are told and left out.

    Raises:
        StylizeError: There is no photograph, or none with a picture.
    """
    from stylize.pictures.find import find_images
    from stylize.pictures.formats import listed_suffixes

    if not content.is_dir():
        raise StylizeError(f"--content: {content} must be a folder of photographs that exists")
    files = find_images(content, recursive=False)
    if not files:
        raise StylizeError(f"--content: {content} holds no image files ({listed_suffixes()})")
    pairs = [Pair(file) for file in files] if pictures is None else _paired(content, files, pictures)
    if len(pairs) > count:
        logger.info("of %d photographs the first %d by name; --photographs takes more", len(pairs), count)
    return pairs[:count]


def _paired(content: Path, files: Sequence[Path], pictures: Mapping[str, Path]) -> list[Pair]:
    photographs = _by_stem(files)
    pairs = [Pair(file, pictures[stem]) for stem, file in photographs.items() if stem in pictures]
    if not pairs:
        raise StylizeError(
            f"MODEL: got no picture named as one of the photographs in {content}, such as {files[0].stem}.png"
        )
    alone = [file.name for stem, file in photographs.items() if stem not in pictures]
    if alone:
        more = f" and {len(alone) - SHOWN_NAMES} more" if len(alone) > SHOWN_NAMES else ""
        logger.warning("left out, for there is no picture of them: %s%s", ", ".join(alone[:SHOWN_NAMES]), more)
    return pairs


def _by_stem(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise StylizeError(
                f"{file}: {found[file.stem].name} has the same stem, by which pictures and photographs are paired; "
                "take one away"
            )
        found[file.stem] = file
    return found


def _check_sizes(pairs: Sequence[Pair], size_px: int, loss: LossConfig, iterations: int) -> None:
    """See, by the headers of the files, that all are large enough, and pictures of their photographs' shape.

    Raises:
        StylizeError: One is not.
    """
    from stylize.evaluation.gatys import LEAST_LEVEL_PX
    from stylize.losses.perceptual import least_side_px

    least = max(least_side_px(loss), LEAST_LEVEL_PX if iterations else 0)
    resized = 0
    for pair in pairs:
        width, height = _size(pair.photograph, size_px)
        if min(width, height) < least:
            raise StylizeError(
                f"{pair.photograph}: got {width}×{height} px at --size {size_px}, must be at least {least} px in each "
                "direction; --size takes more of a larger file"
            )
        resized += pair.picture is not None and not _is_as_large(pair.picture, (width, height), size_px)
    if resized:
        logger.info("%d of %d pictures are resized by a few px to the size of their photographs", resized, len(pairs))


def _is_as_large(picture: Path, photograph_size: tuple[int, int], size_px: int) -> bool:
    size = _size(picture, size_px)
    deviation = max(abs(side / wanted - 1) for side, wanted in zip(size, photograph_size, strict=True))
    if deviation > SHAPE_TOLERANCE:
        raise StylizeError(
            f"{picture}: got {size[0]}×{size[1]} px at --size {size_px}, must be within {SHAPE_TOLERANCE:.0%} of its "
            f"photograph's {photograph_size[0]}×{photograph_size[1]}; stylize the whole photograph, or lower --size"
        )
    return size == photograph_size


def _size(path: Path, size_px: int) -> tuple[int, int]:
    from stylize.pictures.picture import limited_size
    from stylize.pictures.reading import read_header

    return limited_size(read_header(path).size, size_px)


def _photographs(pairs: Sequence[Pair], size_px: int, device: torch.device) -> Iterator[Photograph]:
    """What the pairs name, one after the other, behind a bar; what cannot be decoded is told and left out."""
    from tqdm import tqdm

    from stylize.evaluation.evaluate import Photograph

    with tqdm(pairs, unit="photograph", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        for pair in bar:
            try:
                image = _read(pair.photograph, size_px).to(device)
                stylized = None if pair.picture is None else _fitted(_read(pair.picture, size_px).to(device), image)
            except StylizeError as error:  # what the others have taken so far may be hours
                logger.warning("skipped: %s", error)
                continue
            yield Photograph(pair.photograph.name, image, stylized)


def _read(path: Path, size_px: int) -> torch.Tensor:
    from stylize.pictures.picture import limited_size, to_tensor
    from stylize.pictures.reading import open_picture

    with open_picture(path) as picture:
        return to_tensor(picture.read_rgb(limited_size(picture.header.size, size_px)))


def _fitted(picture: torch.Tensor, photograph: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional as F

    if picture.shape == photograph.shape:
        return picture
    size = photograph.shape[-2:]
    resized = F.interpolate(picture[None], size, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


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
    """A table in columns, the first to the left, the others to the right."""
    lines = [table.columns, *(tuple(str(cell) for cell in row) for row in table.rows)]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    shape = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(shape.format(*line) for line in lines)


def _write_json(path: Path, result: Evaluation, settings: Mapping[str, Any]) -> None:
    import numpy as np
    import torch

    from stylize import __version__
    from stylize.system.files import write_atomically

    versions = {
        "stylize": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    tree = {"settings": settings, "versions": versions, **result.as_data()}
    write_atomically(path, f"{json.dumps(tree, indent=2, allow_nan=False)}\n".encode())
