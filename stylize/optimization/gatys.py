"""Gatys' method: optimize the pixels of a picture against the perceptual loss; the reference for every network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from stylize.errors import StylizeError
from stylize.losses.perceptual import PerceptualLoss

Terms = dict[str, Tensor]

LEAST_LEVEL_PX = 32
LINE_SEARCH_EVALUATIONS = 25


class OptimizationConfig(BaseModel):
    """Settings of the optimization of a picture."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    iterations: int = Field(500, ge=1, description="total iterations over all levels")
    method: Literal["lbfgs", "adam"] = Field("lbfgs", description="lbfgs, as in the paper, or adam")
    start: Literal["content", "noise"] = Field("content", description="the photograph, or uniform noise")
    levels: int = Field(
        1, ge=1, le=6, description="pyramid levels, coarse to fine: each starts from the one before at twice its size"
    )
    learning_rate: float = Field(
        0.02, gt=0, allow_inf_nan=False, description="learning rate of adam, for pixels in [0, 1]"
    )
    history: int = Field(100, ge=1, description="steps that lbfgs remembers")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the noise")


class Iterate(NamedTuple):
    """The picture after an iteration.

    Attributes:
        iteration: Number from 1 on over all levels; 0 is the start of the first.
        picture: `(1, 3, H, W)` in [0, 1].
        terms: Terms of the loss, by name.
    """

    iteration: int
    picture: Tensor
    terms: dict[str, float]


def optimize(loss: PerceptualLoss, content: Tensor, config: OptimizationConfig) -> Iterator[Iterate]:
    """Optimize a picture, iteration by iteration.

    Pixels are clamped to [0, 1] before the loss, so that it measures the picture as displayed.

    Args:
        loss: Loss to minimize.
        content: The photograph, `(1, 3, H, W)` in [0, 1].
        config: Method, start, levels and iterations.

    Returns:
        The start of every level, and the picture after every iteration.

    Raises:
        StylizeError: The smallest level is too small for the loss network.

    Source: Gatys et al. 2016, Image style transfer using convolutional neural networks, section 3.
    Differs: torch's L-BFGS with a line search by the strong Wolfe conditions.
    """
    sizes = level_sizes(content.shape[-2], content.shape[-1], config.levels)
    picture = _start(content, config)
    done = 0
    for level, size in enumerate(sizes):
        iterations = config.iterations * (level + 1) // len(sizes) - done
        small, picture = _resized(content, size), _resized(picture, size)
        for step, iterate in enumerate(optimize_from(loss.towards(small), picture, iterations, config)):
            picture = iterate.picture
            yield iterate._replace(iteration=done + step)
        done += iterations


def level_sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Return height and width of every level of a pyramid, the smallest first.

    >>> level_sizes(100, 67, 2)
    [(50, 34), (100, 67)]

    Raises:
        StylizeError: The smallest is smaller than 32 px in a direction.
    """
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in reversed(range(levels))]
    if min(sizes[0]) < LEAST_LEVEL_PX:
        raise StylizeError(
            f"got {levels} levels for a picture of {width}×{height} px, the smallest of {sizes[0][1]}×{sizes[0][0]}, "
            f"must be at least {LEAST_LEVEL_PX} px in each direction"
        )
    return sizes


def _start(content: Tensor, config: OptimizationConfig) -> Tensor:
    if config.start == "content":
        return content
    generator = torch.Generator().manual_seed(config.seed)
    return torch.rand(content.shape, generator=generator).to(content)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def optimize_from(
    measure: Callable[[Tensor], Terms], start: Tensor, iterations: int, config: OptimizationConfig
) -> Iterator[Iterate]:
    """Optimize a picture from a start.

    Args:
        measure: Returns the terms of a picture `(1, 3, H, W)` in [0, 1], `total` with a gradient.
        start: The picture to begin with, likewise.
        iterations: Number of iterations.
        config: Method, learning rate and history.

    Returns:
        The start, and the picture after every iteration.
    """
    pixels = start.detach().clone().requires_grad_()
    objective = _Objective(measure, pixels)
    optimizer: torch.optim.Optimizer
    if config.method == "lbfgs":
        optimizer = torch.optim.LBFGS(
            [pixels],
            max_iter=1,
            max_eval=1 + LINE_SEARCH_EVALUATIONS,  # the default, 1 here, leaves none for the line search
            history_size=config.history,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
    else:
        optimizer = torch.optim.Adam([pixels], config.learning_rate)
    for iteration in range(iterations + 1):
        if iteration:
            optimizer.step(objective)  # type: ignore[no-untyped-call]
        objective()
        terms = {name: value.item() for name, value in objective.terms.items()}
        yield Iterate(iteration, pixels.detach().clamp(0, 1), terms)


class _Objective:
    """The closure of an optimizer: it returns the total, and stores the gradient in the pixels.

    A step of L-BFGS starts by evaluating the point where the one before ended, so the last evaluation is cached.
    """

    def __init__(self, measure: Callable[[Tensor], Terms], pixels: Tensor) -> None:
        self.measure = measure
        self.pixels = pixels
        self.terms: Terms = {}
        self._last: tuple[Tensor, Tensor] | None = None  # pixels, and the gradient there

    def __call__(self) -> float:
        if self._last is None or not torch.equal(self._last[0], self.pixels):
            terms = self.measure(self.pixels.clamp(0, 1))
            (gradient,) = torch.autograd.grad(terms["total"], self.pixels)
            self.terms = {name: value.detach() for name, value in terms.items()}
            self._last = self.pixels.detach().clone(), gradient
        self.pixels.grad = self._last[1].clone(memory_format=torch.contiguous_format)
        return self.terms["total"].item()
