"""From a configuration to objects: the only place that knows every part."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stylize.config import RunConfig
from stylize.errors import StylizeError
from stylize.generators import Generator, build_generator
from stylize.losses.perceptual import PerceptualLoss, check_style_size
from stylize.losses.vgg_weights import load_vgg
from stylize.models.file import ModelCard, encode_model, make_thumbnail
from stylize.pictures.picture import scaled_size, to_tensor
from stylize.pictures.reading import open_picture, read_rgb
from stylize.system import distributed
from stylize.system.files import write_atomically
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import Photographs, find_photographs, validation_images
from stylize.training.trainer import Progress, Trainer

logger = logging.getLogger("stylize")

WORKERS_THAT_SERVE_A_GPU = 8


@dataclass(frozen=True)
class Run:
    """All that a training run consists of."""

    config: RunConfig
    trainer: Trainer
    styles: list[Tensor]
    photographs: Photographs
    vgg_weights: str


def build_run(config: RunConfig, device: torch.device, run_dir: Path) -> Run:
    """Build everything that a training run needs; cheap checks come first.

    Raises:
        StylizeError: A picture, folder or weight file is missing or unfit.
    """
    styles = read_styles(config)
    photographs = find_photographs(config.content, config.seed)
    torch.manual_seed(config.seed)
    generator = build_generator(config.generator).to(device)
    loss, weights = build_loss(config, styles)
    trainer = Trainer(
        generator,
        loss.to(device),
        build_batches(config, photographs, device),
        validation_images(photographs.validation, config.content.crop),
        config.train,
        seed=config.seed,
        run_dir=run_dir,
        save_best=_ModelWriter(config, generator, weights, run_dir / "model.safetensors"),
    )
    return Run(config, trainer, styles, photographs, weights)


def read_styles(config: RunConfig) -> list[Tensor]:
    """The style images, `(3, H, W)` in [0, 1], their longer side as configured.

    Raises:
        StylizeError: One cannot be read, or is too small for the style layers.
    """
    styles = []
    for image in config.style.all_images():
        with open_picture(Path(image.path)) as picture:
            width, height = picture.header.size
            check_style_size(height, width, config.loss, image.path)
            width, height = scaled_size((width, height), config.style.size / max(width, height))
            check_style_size(height, width, config.loss, f"{image.path} at style.size")
            styles.append(to_tensor(picture.read_rgb((width, height))))
    return styles


def build_loss(config: RunConfig, styles: list[Tensor]) -> tuple[PerceptualLoss, str]:
    """The loss, and in words where its VGG came from.

    Raises:
        StylizeError: The VGG weights cannot be had or do not reach the deepest layer.
    """
    loaded = load_vgg(
        config.loss.vgg,
        config.loss.taps(),
        pooling=config.loss.pooling,
        padding=config.loss.padding,
        seed=config.seed,
        say=logger.warning,
    )
    weights = [image.weight for image in config.style.all_images()]
    return PerceptualLoss(loaded.vgg, config.loss, styles, weights), loaded.weights


def build_batches(config: RunConfig, photographs: Photographs, device: torch.device) -> Batches:
    """The stream of training crops.

    Raises:
        StylizeError: The batches cannot be divided among the processes.
    """
    if config.train.batch_size % distributed.count():
        raise StylizeError(
            f"train.batch_size: got {config.train.batch_size}, must be a multiple of the number of processes, "
            f"{distributed.count()}: it is that of all together"
        )
    # A folder's own held-out photographs are others with another seed; those of a folder apart are never trained on.
    held_out = photographs.validation if isinstance(config.content.validation, int) else []
    dataset = CropDataset(photographs.training, config.content, config.seed, held_out)
    asked = config.content.workers
    return Batches(
        dataset,
        config.train.batch_size,
        choose_workers(device) if asked == "auto" else asked,
        pin_memory=device.type == "cuda",
        building_workers=_cores() if asked == "auto" else asked,
    )


def choose_workers(device: torch.device) -> int:
    """How many processes decode for this one, if the config leaves it open."""
    if device.type == "cpu":
        return 0  # beside a CPU that trains, decoding in another process wins nothing
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = min(WORKERS_THAT_SERVE_A_GPU, max(1, _cores() // processes_here))
    logger.info("content.workers: auto on %s is %d", device.type, workers)
    return workers


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _ModelWriter:
    """Writes the best model of a run; the first process does."""

    def __init__(self, config: RunConfig, generator: Generator, weights: str, path: Path) -> None:
        self.config = config
        self.generator = generator
        self.weights = weights
        self.path = path
        self.thumbnail = make_thumbnail(read_rgb(Path(config.style.all_images()[0].path)))

    def __call__(self, progress: Progress) -> None:
        if not distributed.is_first():
            return
        card = ModelCard(
            generator=self.config.generator,
            style=self.config.name,
            step=progress.step,
            vgg=self.weights,
            validation=progress.validation,
            config=self.config.without_folders().model_dump(mode="json"),
            thumbnail=self.thumbnail,
        )
        write_atomically(self.path, encode_model(self.generator, card))
