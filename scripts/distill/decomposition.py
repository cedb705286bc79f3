"""Decompose a teacher's weights into a student with fewer channels and low-rank convolutions.

Layers are fitted one after the other on the student's own features of pictures, so that each layer compensates errors
of the previous ones. Only least squares and eigenvectors are used. The result is the start of a training.

Source: Kim et al. 2015, arXiv:1511.06530 (low rank on both sides of a convolution, then training); Zhang et al. 2015,
    arXiv:1505.06798 (fitted to responses on the compressed network's own inputs).
Differs: input directions are chosen by the energy that they send through the teacher's weights; responses are taken
    before the ReLU, and weak channels have more weight, as in Gram matrices of balanced channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylize.losses.vgg import LAYERS, VGG19, last_convolution
from stylize.ops import gram_matrix
from stylize.ops.padding import pad

PIXELS = 400  # of each picture and layer
RIDGE = 1e-5  # relative to the inputs' mean energy; keeps the teacher's weights where pictures give no information


class Moments(NamedTuple):
    """Means and covariances of patches x, `(C·9)`, and responses y, regularized to the teacher's weights; float64."""

    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor


@torch.no_grad()
def decompose_(
    student: VGG19, teacher: VGG19, images: Tensor, seed: int, given: VGG19 | None = None
) -> dict[str, Tensor]:
    """Set the weights of a plain or low-rank student to the closest approximation of its teacher's.

    Args:
        student: A network with at most as many channels as the teacher in every layer; its first layer must be plain.
        teacher: A network of the same depth.
        images: Pictures on which they should agree, `(N, 3, H, W)`.
        seed: Seed of the choice of pixels.
        given: A student whose layers are taken as they are; its last has all of the teacher's channels.

    Returns:
        By tap, the teacher's channels that the student has: those that best predict the others. Layers that are given
        are left out.
    """
    draw = torch.Generator().manual_seed(seed)
    kept, kept_before = dict[str, Tensor](), torch.arange(3)
    inputs = [(image - teacher.mean) / teacher.std for image in torch.split(images, 16)]
    taught = list(inputs)
    for layer, module, width in zip(LAYERS, student.features.values(), student.widths, strict=False):
        if layer.pool_before:
            inputs, taught = ([teacher.pool(maps) for maps in batches] for batches in (inputs, taught))
        responses = [teacher.features[layer.key](maps) for maps in taught]
        taught = [F.relu(response) for response in responses]
        if given is not None and layer.key in given.features:
            module.load_state_dict(given.features[layer.key].state_dict())
            kept_before = torch.arange(width, device=teacher.mean.device)
            inputs = [F.relu(module(maps)) for maps in inputs]
            continue
        kept[layer.tap] = representatives(torch.cat([gram_matrix(maps) for maps in taught]).mean(0).double(), width)
        chosen = [response[:, kept[layer.tap]] for response in responses]
        own = last_convolution(teacher.features[layer.key])
        weight = own.weight[kept[layer.tap]][:, kept_before]
        if layer is LAYERS[0]:
            _set_(last_convolution(module), weight, cast(Tensor, own.bias)[kept[layer.tap]])
        else:
            _fit_layer_(module, _moments(inputs, chosen, weight, draw))
        kept_before = kept[layer.tap]
        inputs = [F.relu(module(maps)) for maps in inputs]
    return kept


def representatives(energies: Tensor, count: int) -> Tensor:
    """Choose greedily the channels that best predict the others, scaled to equal energy, by linear maps.

    Args:
        energies: A Gram matrix of the channels, `(C, C)`.
        count: Number of channels to choose.

    Returns:
        Their numbers, ascending.
    """
    scale = energies.diagonal().clamp_min(1e-12).sqrt()
    left, chosen = energies / torch.outer(scale, scale), list[int]()
    for _ in range(count):
        gain = left.square().sum(0) / left.diagonal().clamp_min(1e-9)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        left = left - torch.outer(left[:, best], left[best]) / left[best, best].clamp_min(1e-9)
    return torch.tensor(sorted(chosen), device=energies.device)


def _moments(inputs: Sequence[Tensor], responses: Sequence[Tensor], weight: Tensor, draw: torch.Generator) -> Moments:
    """Return moments of 3×3 patches and responses at random pixels, plus white patches under `weight`."""
    xs, ys = [], []
    for maps, response in zip(inputs, responses, strict=True):
        pixels = torch.randperm(maps[0, 0].numel(), generator=draw)[:PIXELS].to(maps.device)
        xs.append(F.unfold(pad(maps, 1, "replicate"), 3)[..., pixels].transpose(0, 1).flatten(1))
        ys.append(response.flatten(2)[..., pixels].transpose(0, 1).flatten(1))
    x, y = (torch.cat(parts, 1) for parts in (xs, ys))
    mean_x, mean_y = (values.mean(1, dtype=torch.float64) for values in (x, y))
    xx, xy = torch.zeros(2, 1, 1, dtype=torch.float64, device=x.device)
    for some_x, some_y in zip(torch.split(x, 4096, 1), torch.split(y, 4096, 1), strict=True):
        some_x, some_y = some_x - mean_x[:, None], some_y - mean_y[:, None]
        xx, xy = xx + some_x @ some_x.T / x.shape[1], xy + some_x @ some_y.T / x.shape[1]
    ridge = RIDGE * xx.diagonal().mean()
    white = torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    return Moments(mean_x, mean_y, xx + ridge * white, xy + ridge * weight.flatten(1).T.double())


def _fit_layer_(module: nn.Module, moments: Moments) -> None:
    last = last_convolution(module)
    mean_x, mean_y, xx, xy = moments
    best = torch.linalg.solve(xx, xy)  # (C·9, C'): the whole convolution
    if not isinstance(module, nn.Sequential):
        _set_(last, best.T, mean_y - best.T @ mean_x)
        return
    before, between, last = (cast(nn.Conv2d, conv) for conv in module)
    strength = (best.T @ xx @ best).diagonal().clamp_min(1e-12) ** 0.25  # each response is divided by it
    mix = _input_directions(best / strength, xx, before.out_channels)  # (C, a)
    widened = torch.kron(mix, torch.eye(9, dtype=mix.dtype, device=mix.device))  # the same at all nine places
    mean_z, zz, zy = widened.T @ mean_x, widened.T @ xx @ widened, widened.T @ xy
    through = torch.linalg.solve(zz, zy) / strength
    _, directions = torch.linalg.eigh(through.T @ zz @ through)
    directions = directions[:, -between.out_channels :]
    narrow = through @ directions  # (a·9, b)
    spread = (narrow.T @ zz @ narrow).diagonal().clamp_min(1e-12).sqrt()
    narrow, back = narrow / spread, directions * spread * strength[:, None]
    before.weight.copy_(mix.T[..., None, None])
    between.weight.copy_(narrow.T.reshape(between.weight.shape))
    _set_(last, back, mean_y - back @ (narrow.T @ mean_z))


def _input_directions(weights: Tensor, xx: Tensor, count: int) -> Tensor:
    """Return the `count` mixtures of input channels that carry most of the response, `(C, count)`."""
    channels = len(xx) // 9
    centre = xx.reshape(channels, 9, channels, 9)[:, 4, :, 4]
    values, vectors = torch.linalg.eigh(centre)
    root, inverse = (vectors * values.clamp_min(1e-9) ** power @ vectors.T for power in (0.5, -0.5))
    sent = root @ weights.reshape(channels, -1)
    _, directions = torch.linalg.eigh(sent @ sent.T)
    result: Tensor = inverse @ directions[:, -count:]
    return result


def _set_(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight.copy_(weight.reshape(conv.weight.shape))
    cast(Tensor, conv.bias).copy_(bias)
