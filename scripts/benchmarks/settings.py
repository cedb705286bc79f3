"""What is timed, and the inputs that every side gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from stylize.generators import Generator, GeneratorConfig, build_generator
from stylize.losses.terms import LossConfig
from stylize.losses.vgg import VGG19, tap_depth
from stylize.losses.vgg_weights import natural_noise, randomize_
from stylize.norms import Norm
from stylize.system.devices import choose_device, multiplies_bf16

WIDTH = 32
STYLE_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
CONTENT_TAP = "relu4_2"

LOSS = LossConfig(
    vgg="random",
    style_layers=dict.fromkeys(STYLE_TAPS, 1.0),
    content_layers={CONTENT_TAP: 1.0},
    content_weight=1.0,
    style_weight=3.0,
    channel_balance=0.0,  # the plain side has plain Gram matrices
    tv_weight=0.0,
    scale="relative",
)

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """What is timed, and how.

    Attributes:
        device: `auto`, `cpu` or `cuda`.
        threads: Of torch on the CPU; None: torch's own choice.
        batch: Crops in a training step.
        crop: Side of a crop, px.
        size: Side of the image to paint, px.
        precision: `auto`, `fp32` or `bf16`, of stylize; `auto`: a row for each that the hardware multiplies.
        compile: `auto`, `always` or `never`, of stylize's training step.
        norms: The norms with which stylize's training step is timed.
        rounds: Turns of each side.
        steps: Timed repeats in a turn.
        photos: Folder of photographs for the data path; None: generated ones.
        pictures: In the folder that is painted.
        seed: Of weights and images.
    """

    device: str
    threads: int | None
    batch: int
    crop: int
    size: int
    precision: Precision
    compile: Literal["auto", "always", "never"]
    norms: tuple[str, ...]
    rounds: int
    steps: int
    photos: Path | None
    pictures: int
    seed: int = 0

    def torch_device(self) -> torch.device:
        """The device to compute on; `auto`: CUDA, else the CPU."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return choose_device(name)

    def precisions(self) -> tuple[Literal["fp32", "bf16"], ...]:
        """Those in which stylize is timed."""
        if self.precision != "auto":
            return (self.precision,)
        return ("fp32", "bf16") if multiplies_bf16(self.torch_device()) else ("fp32",)


def make_generator(seed: int, norm: str = "instance", width: int = WIDTH) -> Generator:
    """The generator in `train()` on the CPU, its norms' parameters drawn, too, so that mixing them up would show."""
    torch.manual_seed(seed)
    generator = build_generator(GeneratorConfig(name="johnson", norm=norm, width=width))
    for layer in generator.norms().values():
        _draw_(layer)
    return generator


@torch.no_grad()
def _draw_(norm: Norm) -> None:
    if norm.weight is not None and norm.bias is not None:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)


def make_vgg(seed: int) -> VGG19:
    """VGG-19 to its deepest tap, pooling by maximum as with trained weights."""
    vgg = VGG19(tap_depth(LOSS.taps()))
    randomize_(vgg, seed)
    return vgg


def make_images(count: int, size_px: int, seed: int) -> Tensor:
    """Images `(count, 3, size, size)` in [0, 1]."""
    return natural_noise(count, size_px, torch.Generator().manual_seed(seed))


def make_crops(settings: Settings) -> Tensor:
    """A batch of training crops, uint8."""
    return (make_images(settings.batch, settings.crop, settings.seed + 1) * 255).byte()


def make_style(settings: Settings) -> Tensor:
    """The style image, `(3, crop, crop)` in [0, 1]."""
    return make_images(1, settings.crop, settings.seed + 2)[0]
