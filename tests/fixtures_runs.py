"""Tiny runs: pictures, photographs and configs that train in seconds, without a network connection."""

import copy
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from stylize.generators import GeneratorConfig, build_generator
from stylize.models.file import ModelCard, encode_model
from stylize.training.trainer import Trainer

TINY: dict[str, Any] = {
    "name": "tiny",
    "style": {"image": "style.png", "size": 48},
    "content": {"path": "photos", "validation": 2, "resize": 40, "crop": 32, "workers": 0},
    "generator": {"width": 4, "margin": 4},
    "loss": {"vgg": "random", "content_layers": {"relu2_1": 1.0}, "style_layers": {"relu1_1": 1.0, "relu2_1": 1.0}},
    "train": {
        "steps": 4,
        "batch_size": 2,
        "schedule": {"name": "constant", "warmup_steps": 0},
        "precision": "fp32",
        "compile": "never",
        "checkpoint_every": 2,
        "validate_every": 2,
        "log_every": 1,
    },
}


def picture(path: Path, width: int = 48, height: int = 40, seed: int = 0, **options: Any) -> Path:
    """A file with coarse coloured noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(40, 216, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, **options)
    return path


def tiny(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tree of a tiny run's config, with other values at the dotted keys."""
    tree = copy.deepcopy(TINY)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return tree


def write_config(folder: Path, changes: Mapping[str, Any] | None = None, name: str = "a.yaml") -> Path:
    """A tiny run's config file in `folder`, and beside it the style image and eight photographs that it names."""
    if not (folder / "photos").exists():
        picture(folder / "style.png", seed=1)
        for i in range(8):
            picture(folder / "photos" / f"{i}.jpg", 48 + i, 60 - i, seed=10 + i)
    path = folder / name
    path.write_text(yaml.safe_dump(tiny(changes), sort_keys=False), encoding="utf-8")
    return path


def write_model(path: Path, style: str = "dots", norm: str = "instance", **card: Any) -> Path:
    """A model file of an untrained generator."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config = GeneratorConfig(width=4, norm=norm, margin=0)
    torch.manual_seed(0)
    path.write_bytes(encode_model(build_generator(config), ModelCard(generator=config, style=style, **card)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with what it holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def poison(trainer: Trainer, steps: Collection[int]) -> None:
    """Let the loss of these steps, counted from 1, be not a number."""
    terms = trainer._terms

    def poisoned(*crops: Tensor | None) -> dict[str, Tensor]:
        bad = trainer.progress.step + 1 in steps
        return {name: term * (math.nan if bad else 1) for name, term in terms(*crops).items()}

    trainer._terms = poisoned
