"""A configuration for style pictures alone: settings that suit the machine and the time."""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylize.build import build_run
from stylize.config import RunConfig, config_from_tree
from stylize.errors import StylizeError
from stylize.system import distributed
from stylize.system.devices import choose_device, has_own_memory
from stylize.system.logs import only_warnings
from stylize.training.photographs import SAMPLES

logger = logging.getLogger("stylize")

TIMED_STEPS, LEAST_STEPS, MOST_STEPS = 3, 60, 40_000
SHARE_OF_STEPS = 0.85  # of the time; the rest is for validation, checkpoints and the start
LAYERS = {"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0}


def suggested_config(
    pictures: Sequence[Path], content: Path | None, name: str | None, minutes: float, device_name: str
) -> RunConfig:
    """Return a configuration; a few steps are timed for it.

    Args:
        pictures: A style picture, or one for each of several styles.
        content: A folder of photographs; None: those that come with scikit-image and scikit-learn.
        name: Name of the run; None: that of the first picture.
        minutes: How long the training may take.
        device_name: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        StylizeError: A picture or folder cannot be used.
    """
    device = choose_device(device_name)
    names = _names(pictures)
    tree: dict[str, Any] = {
        "name": name or names[0],
        "content": {"path": SAMPLES if content is None else str(content), "resize": 224, "crop": 192},
        "generator": {"width": 32 if has_own_memory(device) else 16},
        "loss": {"vgg": "imagenet-or-compact", "style_layers": LAYERS, "content_layers": {"relu2_2": 1.0}},
        "train": {"batch_size": 4, "schedule": {"warmup_steps": 10}, "start": "learned"},
    }
    if len(pictures) == 1:
        tree["style"] = {"image": str(pictures[0]), "size": 384}
    else:
        tree["styles"] = [
            {"name": style, "image": str(picture), "size": 384} for style, picture in zip(names, pictures, strict=True)
        ]
    if content is None:
        tree["content"]["validation"] = 2
    config = config_from_tree(tree, place="--style")
    with only_warnings():  # the training will say the same
        seconds = distributed.broadcast(_seconds_a_step(config, device_name))
    steps = round(min(max(60 * minutes * SHARE_OF_STEPS / seconds, LEAST_STEPS), MOST_STEPS))
    if distributed.is_first():
        logger.info(
            "%.2g min at %.2f s a step on %s: width %d, %d steps of %d crops of %d px",
            minutes, seconds, device, config.generator.width, steps, config.train.batch_size, config.content.crop,
        )  # fmt: skip
        if steps == LEAST_STEPS:
            logger.warning("--minutes: %g are few: %d steps will take %.1f", minutes, steps, steps * seconds / 60)
    tree["train"] |= {"steps": steps, "validate_every": max(20, steps // 4), "checkpoint_every": max(20, steps // 4)}
    return config_from_tree(tree, place="--style")


def _names(pictures: Sequence[Path]) -> list[str]:
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", picture.stem).strip("-._") or "style" for picture in pictures]
    for name in names:
        if names.count(name) > 1:
            raise StylizeError(f"--style: got two pictures named '{name}', must have different names")
    return names


def _seconds_a_step(config: RunConfig, device_name: str) -> float:
    """Time a few steps; the first, which transforms weights and compiles, does not count."""
    short = config.model_copy(
        update={
            "content": config.content.model_copy(update={"validation": 0, "workers": 0}),
            "train": config.train.model_copy(update={"compile": "never", "start": "none"}),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_run(short, choose_device(device_name), Path(folder)).trainer
        batches = trainer.batches.from_step(0, TIMED_STEPS + 1)
        float(trainer.step(next(batches))["total"])
        start_s = time.monotonic()
        for batch in batches:
            float(trainer.step(batch)["total"])
    return (time.monotonic() - start_s) / TIMED_STEPS
