"""Pictures on which teacher and student are compared: a mixture of all inputs that a loss network gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from stylize.generators import Generator, GeneratorConfig, build_generator
from stylize.losses.vgg_weights import natural_noise
from stylize.models.file import load_model
from stylize.models.find import built_in_models

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the config."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MixtureConfig(Section):
    """Shares of the kinds of pictures on which teacher and student are compared."""

    photograph: Weight = 0.15
    style: Weight = 0.1
    painted: Weight = Field(0.2, description="by a built-in model, at a random strength")
    untrained: Weight = Field(0.1, description="by a generator with random weights, as at the start of a training")
    noise: Weight = Field(0.15, description="a photograph mixed with noise")
    optimized: Weight = Field(0.3, description="from the pool: after some steps of descent on a loss")


class PoolConfig(Section):
    """Pictures that descend a loss, by a step whenever they are drawn."""

    size: int = Field(16, ge=1, description="number of pictures")
    renewal: Share = Field(0.05, description="probability that another picture replaces one in the pool")
    step: float = Field(0.03, gt=0, le=1, description="root mean square of the change in a step, for a range of 1")


class Scenes(NamedTuple):
    """Pictures, and the photographs and styles that the loss compares them with; each `(N, 3, size, size)`."""

    image: Tensor
    content: Tensor
    style: Tensor


def uniform(low: float, high: float, draw: torch.Generator, *shape: int) -> Tensor:
    """Return random numbers between `low` and `high`."""
    return torch.empty(shape).uniform_(low, high, generator=draw)


def augment(crops: Tensor, size_px: int, draw: torch.Generator) -> Tensor:
    """Return parts of crops, uint8 `(N, 3, S, S)`, with random place, scale and colours, resized to `size_px`."""
    images = []
    for crop in crops.float() / 255:
        part = int(uniform(min(size_px, crop.shape[-1]), crop.shape[-1] + 1, draw))
        left, top = (int(uniform(0, crop.shape[-1] - part + 1, draw)) for _ in range(2))
        image = crop[None, :, top : top + part, left : left + part]
        image = F.interpolate(image, (size_px, size_px), mode="bilinear", antialias=True, align_corners=False)[0]
        image = torch.lerp(image.mean(0, keepdim=True), image, uniform(0.3, 1.3, draw, 1))
        image = 0.5 + uniform(0.6, 1.2, draw, 3, 1, 1) * (image - 0.5) + uniform(-0.15, 0.15, draw, 3, 1, 1)
        images.append(image.clamp(0, 1))
    return torch.stack(images)


class Mixture:
    """Scenes of every kind except the last, which come from the pool."""

    def __init__(self, config: MixtureConfig, device: torch.device) -> None:
        self.shares = torch.tensor(list(config.model_dump().values()))
        self.painters = [load_model(*built_in)[0].to(device) for built_in in built_in_models().values()]
        self.kinds: tuple[Callable[[Scenes, int, torch.Generator], Tensor], ...] = (
            lambda scenes, i, draw: scenes.content[i - 1],
            lambda scenes, i, draw: scenes.style[i - 1],
            lambda scenes, i, draw: self._painted(self._choose(draw), scenes.content[i], uniform(0.1, 1, draw, 1)),
            lambda scenes, i, draw: self._painted(untrained(draw), scenes.content[i], torch.ones(1)),
            lambda scenes, i, draw: with_noise(scenes.content[i], uniform(0.3, 1, draw, 1), draw),
        )

    def __call__(self, photographs: Tensor, styles: Tensor, draw: torch.Generator) -> tuple[Scenes, list[bool]]:
        """Return scenes, and which of them the pool must replace."""
        drawn = torch.multinomial(self.shares, len(photographs), replacement=True, generator=draw).tolist()
        scenes = Scenes(photographs, photographs, styles)
        # Scenes that the pool replaces are painted too: while the pool fills, it has none to offer.
        images = [self.kinds[min(kind, 4)](scenes, i, draw) for i, kind in enumerate(drawn)]
        some_noise = [with_noise(image, uniform(-0.15, 0.15, draw, 1).clamp_min(0), draw) for image in images]
        return scenes._replace(image=torch.stack(some_noise)), [kind == len(self.kinds) for kind in drawn]

    def _choose(self, draw: torch.Generator) -> Generator:
        return self.painters[int(torch.randint(len(self.painters), (1,), generator=draw))]

    @torch.no_grad()
    def _painted(self, painter: Generator, photograph: Tensor, strength: Tensor) -> Tensor:
        painted: Tensor = painter.to(photograph.device)(photograph[None])[0]
        return torch.lerp(photograph, painted, strength.to(photograph.device))


def untrained(draw: torch.Generator) -> Generator:
    """Return a generator with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=draw)))
        return build_generator(GeneratorConfig(width=16)).eval()


def with_noise(image: Tensor, amount: Tensor, draw: torch.Generator) -> Tensor:
    """Return images mixed with noise, white or with the spectrum of photographs."""
    noise = torch.rand(image.shape, generator=draw)
    if uniform(0, 1, draw, 1) < 0.5:
        noise = natural_noise(1, image.shape[-1], draw)[0]
    return torch.lerp(image, noise.to(image.device), amount.to(image.device))


class Pool:
    """Scenes that descend a loss: stylized pictures of every stage, at the cost of one step."""

    def __init__(self, config: PoolConfig, size_px: int, device: torch.device) -> None:
        self.config = config
        self.scenes = torch.zeros(3, config.size, 3, size_px, size_px, device=device)
        self.filled = 0

    def exchange(self, scenes: Scenes, wanted: Sequence[bool], draw: torch.Generator) -> tuple[Scenes, list[int]]:
        """Replace scenes from the pool where needed; also return the slot of each scene in the pool, −1: none."""
        stacked, slots = torch.stack(scenes), []
        for place, want in enumerate(wanted):
            slot = int(torch.randint(self.config.size, (1,), generator=draw))
            renew = bool(uniform(0, 1, draw, 1) < self.config.renewal)
            if self.filled < self.config.size:
                slot, self.filled = self.filled, self.filled + 1
            elif want and slot not in slots:
                stacked[:, place] = self.scenes[:, slot]
            elif not renew or slot in slots:
                slot = -1
            slots.append(slot)
        return Scenes(*stacked), slots

    def descend_(self, scenes: Scenes, slots: Sequence[int], gradients: Sequence[Tensor]) -> None:
        """Store the scenes that have a slot, with their pictures moved a step down the gradients."""
        direction = sum(g / g.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12) for g in gradients)
        scale = self.config.step / len(gradients)
        stepped = torch.stack(scenes._replace(image=(scenes.image - scale * direction).clamp(0, 1)))
        for place, slot in enumerate(slots):
            if slot >= 0:
                self.scenes[:, slot] = stepped[:, place]
