"""Evaluate a student by its gradients at pictures that it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from statistics import fmean, median
from typing import NamedTuple

import torch
from distill.pictures import Scenes
from torch import Tensor
from torch.nn import functional as F

from stylize.losses.terms import channel_balance, squared_error
from stylize.losses.vgg import VGG19
from stylize.models.file import load_model
from stylize.models.find import built_in_models
from stylize.ops import gram_matrix, reference

TERMS = ("style_gradient", "content_gradient")
STAGES = (0.3, 0.6, 1.0)
TIMED_PX = 256


class LayerChoice(NamedTuple):
    """Layers of the two terms with their weights, and the channel balance of Gram matrices."""

    style: Mapping[str, float]
    content: Mapping[str, float]
    channel_balance: float


class Look(NamedTuple):
    """A network's features of scenes, and the gradients of both terms with respect to the pictures."""

    features: Mapping[str, Tensor]
    style_gradient: Tensor
    content_gradient: Tensor


def look(vgg: VGG19, scenes: Scenes, layers: LayerChoice, differentiable: bool = False) -> Look:
    """Return features and gradients in the relative scale of `PerceptualLoss`; each scene has its own targets."""
    image = scenes.image.detach().requires_grad_()
    # The kernels can be differentiated only once.
    with reference() if differentiable else nullcontext():
        features, of_content, of_style = (vgg(x, vgg.taps) for x in (image, scenes.content, scenes.style))
    terms: list[Tensor] = []
    style, content = image.new_zeros(()), image.new_zeros(())
    for tap, weight in layers.style.items():
        gram, target = gram_matrix(features[tap]), gram_matrix(of_style[tap])
        balance = torch.stack([channel_balance(one, layers.channel_balance) for one in target])
        target = balance * target
        style = style + weight * squared_error(balance * gram, target, mean_square(target))
    for tap, weight in layers.content.items():
        energy = mean_square(of_content[tap]) + mean_square(of_style[tap])
        content = content + weight * squared_error(features[tap], of_content[tap], energy)
    for term in (style, content):
        terms += torch.autograd.grad(term, image, create_graph=differentiable, retain_graph=True)
    return Look(features, *terms)


def mean_square(x: Tensor) -> Tensor:
    """Return the mean square of each item of a batch."""
    return x.square().flatten(1).mean(1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of gradients `(N, 3, H, W)`, averaged over the pictures."""
    return F.cosine_similarity(a.flatten(1), b.flatten(1), eps=1e-20).mean()


def log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return the logarithm of the ratio of the gradients' norms for each picture."""
    norm_a, norm_b = (x.flatten(1).norm(dim=1).clamp_min(1e-12) for x in (a, b))
    return torch.log(norm_a / norm_b)


class Examination:
    """Compares students with their teacher.

    Args:
        teacher: The VGG-19 to compare with, on its device.
        layers: Layers of the terms whose gradients are compared.
        photographs: Held-out photographs, `(3, size, size)`.
        styles: Style pictures of the same size; each is combined with each photograph.
    """

    def __init__(
        self, teacher: VGG19, layers: LayerChoice, photographs: Sequence[Tensor], styles: Sequence[Tensor]
    ) -> None:
        self.teacher, self.layers, self.device = teacher, layers, teacher.mean.device
        content = torch.stack([photograph for photograph in photographs for _ in styles]).to(self.device)
        style = torch.stack(list(styles) * len(photographs)).to(self.device)
        self.scenes = dict(_scenes(content, style))

    def __call__(self, student: VGG19) -> dict[str, float]:
        """Return the results by name.

        Returns:
            `style_gradient/photographs`, … : cosine of student's and teacher's gradient, by kind of picture; without a
            kind: their mean. `style_gradient_norm/photographs`, … : the ratio of their norms. `features/relu1_1`, … :
            error of the best linear map to the teacher's features. `time`: forward and backward, relative to the
            teacher.
        """
        results: dict[str, float] = {}
        fits = {tap: LinearFit() for tap in self.teacher.taps}
        for kind, scenes in self.scenes.items():
            taught, mine = look(self.teacher, scenes, self.layers), look(student, scenes, self.layers)
            for term in TERMS:
                a, b = getattr(mine, term), getattr(taught, term)
                results[f"{term}/{kind}"] = float(cosine(a, b))
                results[f"{term}_norm/{kind}"] = float(log_ratio(a, b).mean().exp())
            for tap, fit in fits.items():
                fit.add(mine.features[tap].detach(), taught.features[tap].detach())
        for term in TERMS:
            results[term] = fmean(value for name, value in results.items() if name.startswith(f"{term}/"))
        results |= {f"features/{tap}": fit.relative_error() for tap, fit in fits.items()}
        return dict(sorted(results.items())) | {"time": relative_time(student, self.teacher)}


@torch.no_grad()
def _scenes(content: Tensor, style: Tensor) -> Iterator[tuple[str, Scenes]]:
    # Another photograph is the content: at the content itself the content term has no gradient.
    yield "photographs", Scenes(content.roll(len(content) // 2, 0), content, style)
    painters = [load_model(*built_in)[0].to(content.device) for built_in in built_in_models().values()]
    painted = torch.cat([painters[i % len(painters)](photo[None]) for i, photo in enumerate(content)])
    for strength in STAGES:
        yield f"painted_{strength:g}", Scenes(torch.lerp(content, painted, strength), content, style)
    noise = torch.rand(content.shape, generator=torch.Generator().manual_seed(0)).to(content.device)
    yield "noise", Scenes(noise, content, style)


class LinearFit:
    """Least squares from features to features, from sums over all pixels."""

    def __init__(self) -> None:
        self.sums: tuple[Tensor, ...] = ()

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add feature maps `(N, C, H, W)`."""
        x, y = (maps.transpose(0, 1).flatten(1).double() for maps in (inputs, targets))
        x = torch.cat([x, torch.ones_like(x[:1])])
        new = (x @ x.T, x @ y.T, y.square().sum())
        self.sums = tuple(a + b for a, b in zip(self.sums, new, strict=True)) if self.sums else new

    def relative_error(self) -> float:
        """Return the error of the best linear map relative to the targets' energy."""
        xx, xy, yy = self.sums
        ridge = 1e-8 * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        return float(1 - (torch.linalg.solve(xx + ridge, xy) * xy).sum() / yy)


def relative_time(student: VGG19, teacher: VGG19, repeats: int = 5) -> float:
    """Return the time of forward and backward to the last tap at 256² relative to the teacher's, in turns."""
    device = teacher.mean.device
    image = torch.rand(1, 3, TIMED_PX, TIMED_PX, device=device, requires_grad=True)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for vgg, seconds in zip((student, teacher), times, strict=True):
            start_s = time.perf_counter()
            torch.autograd.grad(vgg(image, vgg.taps[-1:])[vgg.taps[-1]].square().mean(), image)[0].sum().item()
            seconds.append(time.perf_counter() - start_s)
    return median(times[0][1:]) / median(times[1][1:])


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return results by name as lines of text, with a column for each student."""
    rows = [["", *results]]
    rows += [[key, *(f"{values[key]:.3f}" for values in results.values())] for key in next(iter(results.values()))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
