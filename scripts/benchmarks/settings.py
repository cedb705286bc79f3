"""Settings of the benchmark, and the inputs of all sides."""

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
    channel_balance=0.0,  # the plain side uses plain Gram matrices
    tv_weight=0.0,
    scale="relative",
    style_energy="style",  # and divides by the style's energy
)

Named = Literal["fp32", "bf16", "fp16"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        device: `auto`, `cpu` or `cuda`.
        threads: Number of CPU threads; None: chosen by torch.
        batch: Number of crops in a training step.
        crop: Side of a crop, px.
        size: Side of the painted image, px.
        precision: Precision of stylize: `auto`, `fp32`, `bf16`, or for painting `fp16`; `auto`: a row for fp32, and one
            for bf16 if the hardware supports it.
        compile: Compilation of stylize's training step: `auto`, `always` or `never`.
        norms: Norms of stylize's training step.
        rounds: Number of turns of each side.
        steps: Number of timed repeats in a turn.
        photos: Folder of photographs for `data` and `apply`; None: generated ones.
        pictures: Number of pictures in the folder that is painted.
        seed: Seed of weights and images.
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
        """Return the device; `auto`: CUDA if available, otherwise the CPU."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return choose_device(name)

    def precisions(self) -> tuple[Named, ...]:
        """Return the precisions in which stylize is timed."""
        if self.precision != "auto":
            return (self.precision,)
        return ("fp32", "bf16") if multiplies_bf16(self.torch_device()) else ("fp32",)


def make_generator(seed: int, norm: str = "instance", width: int = WIDTH) -> Generator:
    """Return a generator in `train()` on the CPU; the norms' parameters are random too, which would reveal mix-ups."""
    torch.manual_seed(seed)
    generator = build_generator(GeneratorConfig(name="johnson", norm=norm, width=width, margin=0))
    for layer in generator.norms().values():
        draw_norm_(layer)
    return generator


@torch.no_grad()
def draw_norm_(norm: Norm) -> None:
    """Draw the parameters of a norm."""
    if norm.weight is not None and norm.bias is not None:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)


def make_vgg(seed: int) -> VGG19:
    """Return VGG-19 to its deepest tap, with max pooling."""
    vgg = VGG19(tap_depth(LOSS.taps()))
    randomize_(vgg, seed)
    return vgg


def make_images(count: int, size_px: int, seed: int) -> Tensor:
    """Return images `(count, 3, size, size)` in [0, 1]."""
    return natural_noise(count, size_px, torch.Generator().manual_seed(seed))


def make_crops(settings: Settings) -> Tensor:
    """Return a batch of training crops, uint8."""
    return (make_images(settings.batch, settings.crop, settings.seed + 1) * 255).byte()


def make_style(settings: Settings) -> Tensor:
    """Return the style image, `(3, crop, crop)` in [0, 1]."""
    return make_images(1, settings.crop, settings.seed + 2)[0]
