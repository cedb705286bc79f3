"""Build the objects of a run from its config."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stylize.config import NamedStyle, ObjectiveConfig, RunConfig, StyleConfig
from stylize.errors import StylizeError
from stylize.generators import Generator, build_generator
from stylize.losses.perceptual import PerceptualLoss, check_style_size
from stylize.losses.terms import LossConfig
from stylize.losses.vgg_weights import load_vgg
from stylize.measures.painting import PaintingMeasures
from stylize.models.file import (
    MOST_PICTURE_BYTES,
    PICTURES_BYTES,
    ModelCard,
    StylePicture,
    encode_model,
    encode_style_picture,
    make_thumbnail,
    read_card,
)
from stylize.pictures.picture import scaled_size, to_image, to_tensor
from stylize.pictures.reading import open_picture, read_rgb
from stylize.system import distributed
from stylize.system.compute import Compute, usable_cores
from stylize.system.files import write_atomically
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import Photographs, find_photographs, validation_images
from stylize.training.shifts import Shifts
from stylize.training.start import begin_, check_kept, find_start, train_norms_only
from stylize.training.trainer import Progress, Trainer

logger = logging.getLogger("stylize")

WIDTH_OF_VGG = 64  # channels of its largest maps


@dataclass(frozen=True)
class Run:
    """The objects of a training run.

    Attributes:
        config: The config that they were built from.
        trainer: Generator, loss and batches, ready to train.
        styles: The style images, `(3, H, W)` in [0, 1], of each style by its name.
        photographs: The files to train on and those held out.
        kept_styles: The names of the styles that the network has from its start, and that are not trained.
        vgg_weights: The source of the VGG weights, in words.
    """

    config: RunConfig
    trainer: Trainer
    styles: dict[str, list[Tensor]]
    photographs: Photographs
    vgg_weights: str
    kept_styles: tuple[str, ...] = ()


def build_run(
    config: RunConfig, device: torch.device, run_dir: Path, kept_styles: tuple[str, ...] | None = None
) -> Run:
    """Build the objects of a training run; cheap checks come first.

    Args:
        config: The run.
        device: Where it computes.
        run_dir: The run folder.
        kept_styles: The names of the styles that are kept from the start, of a run that is resumed, which does not look
            at its start again; None: the run begins.

    Raises:
        StylizeError: A picture, folder or weight file is missing or unfit.
    """
    train = config.train
    compute = Compute.for_training(device, train.precision, train.compile, train.steps, train.deterministic)
    check_map_size(config, compute)
    named = config.all_styles()
    styles = [read_styles(style, config.loss) for style in named]
    photographs = find_photographs(config.content, config.seed)
    torch.manual_seed(config.seed)
    start = None if kept_styles is not None else find_start(train.start, config.generator)
    if kept_styles is None:
        kept_styles = start.styles if start is not None and train.only == "norms" and train.keep_styles else ()
    new = [style.name for style in named]
    check_kept(kept_styles, new, train.start)
    generator = build_generator(config.generator, len(kept_styles) + len(new))
    if start is not None:
        logger.info("train.start: begins from %s", start.reason)
        begin_(generator, start, [*kept_styles, *new])
    if train.only == "norms":
        train_norms_only(generator)
    loss, weights = build_loss(config.loss, styles, [_shares(style) for style in named], config.seed)
    model = run_dir / "model.safetensors"
    known = _known_pictures(start.card if start is not None else _card_of(model)) if kept_styles else {}
    pictures = _style_pictures(named, styles, kept_styles, known)
    trainer = Trainer(
        generator,
        loss,
        build_batches(config, photographs, compute),
        validation_images(photographs.validation, config.content.crop),
        train,
        compute=compute,
        seed=config.seed,
        run_dir=run_dir,
        styles={style.name: style.weight for style in named},
        kept_styles=len(kept_styles),
        measures=[PaintingMeasures(loss.vgg, list(config.loss.style_layers), images) for images in styles],
        save_best=_ModelWriter(config, generator, weights, model, [*kept_styles, *new], pictures),
    )
    return Run(config, trainer, dict(zip(new, styles, strict=True)), photographs, weights, kept_styles)


def read_styles(style: StyleConfig, loss: LossConfig) -> list[Tensor]:
    """Read the style images, `(3, H, W)` in [0, 1], their longer side as configured.

    Raises:
        StylizeError: One cannot be read, or is too small for the style layers.
    """
    styles = []
    for image in style.all_images():
        with open_picture(Path(image.path)) as picture:
            width, height = picture.header.size
            check_style_size(height, width, loss, image.path)
            width, height = scaled_size((width, height), style.size / max(width, height))
            check_style_size(height, width, loss, f"{image.path} at style.size")
            styles.append(to_tensor(picture.read_rgb((width, height))))
    return styles


def build_loss(
    config: LossConfig, styles: Sequence[Sequence[Tensor]], shares: Sequence[Sequence[float]], seed: int = 0
) -> tuple[PerceptualLoss, str]:
    """Build the loss of some styles.

    Args:
        config: Its configuration.
        styles: The images of each style, `(3, H, W)` in [0, 1].
        shares: Their weights.
        seed: For random VGG weights.

    Returns:
        The loss, and a description of the VGG weights.

    Raises:
        StylizeError: The VGG weights are not available, or do not reach the deepest layer.
    """
    loaded = load_vgg(
        config.vgg, config.taps(), pooling=config.pooling, padding=config.padding, seed=seed, say=logger.warning
    )
    images = [image for of_style in styles for image in of_style]
    weights = [weight for of_style in shares for weight in of_style]
    numbers = [number for number, of_style in enumerate(styles) for _ in of_style]
    return PerceptualLoss(loaded.vgg, config, images, weights, numbers), loaded.weights


def build_objective(config: ObjectiveConfig) -> tuple[PerceptualLoss, str]:
    """Read the style images and build their loss; see `read_styles` and `build_loss`."""
    styles = read_styles(config.style, config.loss)
    return build_loss(config.loss, [styles], [_shares(config.style)], config.seed)


def _shares(style: StyleConfig) -> list[float]:
    return [image.weight for image in style.all_images()]


def build_batches(config: RunConfig, photographs: Photographs, compute: Compute) -> Batches:
    """Build the stream of training crops.

    Raises:
        StylizeError: The batches cannot be divided among the processes.
    """
    if config.train.batch_size % distributed.count():
        raise StylizeError(
            f"train.batch_size: got {config.train.batch_size}, must be a multiple of the number of processes, "
            f"{distributed.count()}: it is that of all together"
        )
    # With another seed, other photographs of the folder are held out; those of a separate folder are never trained on.
    held_out = photographs.validation if isinstance(config.content.validation, int) else []
    dataset = CropDataset(photographs.training, config.content, config.seed, held_out)
    asked = config.content.workers
    cached_bytes = None if dataset.cache is None else dataset.cache.expected_bytes()
    return Batches(
        dataset,
        config.train.batch_size,
        choose_workers(compute, cached_bytes) if asked == "auto" else asked,
        pin_memory=compute.copies_in_background,
        building_workers=usable_cores() if asked == "auto" else asked,
    )


def check_map_size(config: RunConfig, compute: Compute) -> None:
    """Refuse batches whose largest map, of the generator or of VGG-19, has more values than the device can count.

    Raises:
        StylizeError: It has.
    """
    batch_size, crop_px = config.train.batch_size, config.content.crop
    images = -(-batch_size // distributed.count())
    painted = images + Shifts(config.train.shift_weight, seed=0).again(images)
    painted_px = crop_px + 2 * config.generator.margin
    maps = [(painted, config.generator.width, painted_px), (images, WIDTH_OF_VGG, crop_px)]
    count, channels, side_px = max(maps, key=lambda sizes: sizes[0] * sizes[1] * sizes[2] ** 2)
    most = compute.indexable_values
    if most is not None and count * channels * side_px**2 > most:
        raise StylizeError(
            f"train.batch_size: got {batch_size} with content.crop {crop_px}: maps of {count}×{channels}×{side_px}² "
            f"values, must be below 2³¹ on {compute.kind}; lower one of the two"
        )


def choose_workers(compute: Compute, cached_bytes: int | None = None) -> int:
    """Number of processes that decode for this one, where the config leaves it open; it is logged.

    Args:
        compute: Where the training computes.
        cached_bytes: Size of the cache of decoded photographs, or None.
    """
    workers = compute.decoding_workers(cached_bytes)
    if workers:
        logger.info("content.workers: auto on %s is %d", compute.kind, workers)
    return workers


def _card_of(model: Path) -> ModelCard | None:
    """The card of the model that a run has written so far, if it has."""
    with suppress(StylizeError):
        return read_card(model)
    return None


def _known_pictures(card: ModelCard | None) -> dict[str, tuple[StylePicture, ...]]:
    return {} if card is None else dict(zip(card.all_styles, card.style_pictures, strict=False))


def _style_pictures(
    named: Sequence[NamedStyle],
    images: Sequence[Sequence[Tensor]],
    kept: Sequence[str],
    known: Mapping[str, tuple[StylePicture, ...]],
) -> tuple[tuple[StylePicture, ...], ...]:
    """The pictures of all styles for the model file; those of kept styles are as they were, where they are known."""
    most_bytes = min(MOST_PICTURE_BYTES, PICTURES_BYTES // (len(kept) + len(named)))
    found = [known.get(name, ()) for name in kept]
    for style, of_style in zip(named, images, strict=True):
        share = most_bytes // len(of_style)
        weights = _shares(style)
        found.append(
            tuple(
                StylePicture(weight, encode_style_picture(to_image(image), share))
                for weight, image in zip(weights, of_style, strict=True)
            )
        )
    return tuple(found)


class _ModelWriter:
    """Writes the best model of a run; in the first process only."""

    def __init__(
        self,
        config: RunConfig,
        generator: Generator,
        weights: str,
        path: Path,
        styles: Sequence[str],
        style_pictures: tuple[tuple[StylePicture, ...], ...],
    ) -> None:
        self.config = config
        self.generator = generator
        self.weights = weights
        self.path = path
        self.styles = tuple(styles) if len(styles) > 1 else ()
        self.style_pictures = style_pictures
        self.thumbnail = make_thumbnail(read_rgb(Path(config.all_styles()[0].all_images()[0].path)))

    def __call__(self, progress: Progress) -> None:
        if not distributed.is_first():
            return
        card = ModelCard(
            generator=self.config.generator,
            style=self.config.name,
            step=progress.step,
            vgg=self.weights,
            validation=progress.validation,
            styles=self.styles,
            by_style=progress.by_style,
            config=self.config.without_folders().model_dump(mode="json"),
            thumbnail=self.thumbnail,
            style_pictures=self.style_pictures,
        )
        write_atomically(self.path, encode_model(self.generator, card))
