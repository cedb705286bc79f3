"""Ulyanov's multi-scale texture network."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from stylize import ops
from stylize.generators.base import Generator, NetworkConfig, PaddedConv2d
from stylize.norms import build_norm
from stylize.ops import upsample_to
from stylize.ops.dispatch import pools_to_any_size
from stylize.system import distributed

SCALES = 6
NOISE_CHANNELS = 3
MIN_MAP_PX = 2
KEPT_NOISE_BYTES = 1 << 28


Sizes = tuple[tuple[int, int], ...]


class TextureNetwork(Generator):
    """A pyramid of the image at six scales, with noise z concatenated at each, joined from coarse to fine.

    At every scale a branch of three convolutions takes the downsampled image and three channels of uniform noise to
    W/4 channels. The coarser result is upsampled, both are normalized and concatenated, and three more convolutions
    follow. `config.width` 32 gives the paper's 8 channels per branch. Sigmoid output.

    In `train()` z is drawn from the random generator of the device. In `eval()` it is determined by `noise_seed`
    (initially the config's), and is the same for all images of a size: one seed gives one picture.

    Source: Ulyanov et al. 2016, arXiv:1603.03417, and the authors' `pyramid.lua`.
    Differs: reflection padding as in the other generators instead of circular; the smallest maps are 2×2, so that
        instance statistics exist; sigmoid output.
    """

    draws_noise = True

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        step = config.width // 4
        self.noise_seed = config.noise_seed
        self.branches = nn.ModuleList(conv_block(3 + NOISE_CHANNELS, step, config) for _ in range(SCALES))
        self.joins = nn.ModuleList(Join(step * k, step, config) for k in range(1, SCALES))
        self.to_rgb = nn.Conv2d(step * SCALES, 3, 1)

    def paint(self, x: Tensor) -> Tensor:
        sizes = pyramid_sizes(x.shape[-2], x.shape[-1])
        coarse_to_fine = tuple(reversed(sizes))
        noises = self._drawn(x, coarse_to_fine) if self.training else _kept_noise(self.noise_seed, coarse_to_fine, x)
        inputs = [
            torch.cat([resize_to(x, size), noise.to(x).expand(len(x), -1, -1, -1)], dim=1)
            for size, noise in zip(coarse_to_fine, noises, strict=True)
        ]
        maps = self.maps or x.dtype
        branches = cast("list[nn.Sequential]", list(self.branches))
        deep = branched(branches[0], inputs[0], maps)
        for join, branch, level in zip(self.joins, branches[1:], inputs[1:], strict=True):
            deep = join(upsample_to(deep, (level.shape[-2], level.shape[-1])), branched(branch, level, maps))
        return torch.sigmoid(self.to_rgb(ops.widened(deep)))

    def full_precision_layers(self) -> set[nn.Module]:
        first = [cast(nn.Sequential, branch)[0] for branch in self.branches]
        return {*first, self.to_rgb}

    def seed_noise(self, seed: int) -> None:
        """Paint with the noise of this seed in `eval()`."""
        self.noise_seed = seed

    @staticmethod
    def _drawn(x: Tensor, sizes: Sizes) -> list[Tensor]:
        """Draw noise for training, `(N, 3, h, w)` of each size, by the random generator of the device of `x`.

        It is drawn for the images of all processes, so that several draw the same noise as one.
        """
        shares = distributed.count()
        wholes = [torch.rand(len(x) * shares, NOISE_CHANNELS, *size, device=x.device) for size in sizes]
        return [whole.chunk(shares)[distributed.rank()] for whole in wholes]


class _Noise(NamedTuple):
    """What determines noise in inference."""

    seed: int
    sizes: Sizes
    device: torch.device
    dtype: torch.dtype


class _NoiseCache:
    """The noise painted with last, so that pictures of one size need none to be drawn or copied; for all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[_Noise, list[Tensor]] = OrderedDict()

    def get(self, wanted: _Noise) -> list[Tensor]:
        with self._lock:
            if wanted in self._kept:
                self._kept.move_to_end(wanted)
                return self._kept[wanted]
        noise = _drawn_on_cpu(wanted)
        with self._lock:
            self._kept[wanted] = noise
            while sum(maps.nbytes for noise in self._kept.values() for maps in noise) > KEPT_NOISE_BYTES:
                self._kept.popitem(last=False)
        return noise


_noise_cache = _NoiseCache()


def _kept_noise(seed: int, sizes: Sizes, x: Tensor) -> list[Tensor]:
    """Return the noise of a seed, `(1, 3, h, w)` of each size, on the device of `x` and in its type."""
    wanted = _Noise(seed, sizes, x.device, x.dtype)
    return _noise_cache.get(wanted) if type(x) is Tensor else _drawn_on_cpu(wanted)  # a tracer's tensors are not kept


@torch.inference_mode(False)  # other modes will use what is kept
def _drawn_on_cpu(wanted: _Noise) -> list[Tensor]:
    """Draw noise on the CPU: a seed gives the same on every device, and all images the same."""
    generator = torch.Generator().manual_seed(wanted.seed)
    drawn = [torch.rand(1, NOISE_CHANNELS, *size, generator=generator) for size in wanted.sizes]
    return [noise.to(wanted.device, wanted.dtype) for noise in drawn]


class Join(nn.Module):
    """Norms on both paths, then concatenation, then three convolutions.

    The norms right before the concatenation balance the gradients along the two paths.
    """

    def __init__(self, deep_channels: int, shallow_channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.deep_norm = build_norm(config.norm, deep_channels)
        self.shallow_norm = build_norm(config.norm, shallow_channels)
        channels = deep_channels + shallow_channels
        self.convs = conv_block(channels, channels, config)

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        joined = torch.cat([self.deep_norm(deep), self.shallow_norm(shallow)], dim=1)
        merged: Tensor = self.convs(joined)
        return merged


def conv_block(in_channels: int, out_channels: int, config: NetworkConfig) -> nn.Sequential:
    """3×3, 3×3 and 1×1 convolutions, each with norm and leaky ReLU (slope 0.01)."""
    layers: list[nn.Module] = []
    for kernel_px in (3, 3, 1):
        layers += [
            PaddedConv2d(in_channels, out_channels, kernel_px, config),
            build_norm(config.norm, out_channels),
            nn.LeakyReLU(0.01, inplace=True),
        ]
        in_channels = out_channels
    return nn.Sequential(*layers)


def branched(block: nn.Sequential, image: Tensor, maps: torch.dtype) -> Tensor:
    """Run a block on an image; from the first norm's result on the maps have the type `maps`."""
    convolution, norm, *rest = block
    x = norm(convolution(image)).to(maps)
    for layer in rest:
        x = layer(x)
    return cast(Tensor, x)


def pyramid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the sizes of the six levels from fine to coarse: halved, rounded up, at least 2.

    >>> pyramid_sizes(65, 16)
    [(65, 16), (33, 8), (17, 4), (9, 2), (5, 2), (3, 2)]
    """
    sizes = [(height, width)]
    while len(sizes) < SCALES:
        height, width = (max(MIN_MAP_PX, -(-n // 2)) for n in (height, width))
        sizes.append((height, width))
    return sizes


def resize_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize by average pooling."""
    if x.shape[-2:] == size:
        return x
    height, width = x.shape[-2:]
    if pools_to_any_size(x) or (height % size[0] == 0 and width % size[1] == 0):
        return nn.functional.adaptive_avg_pool2d(x, size)
    rows, columns = _averaging(height, size[0]), _averaging(width, size[1])
    return rows.to(x) @ x @ columns.to(x).T


def _averaging(length: int, pooled: int) -> Tensor:
    """Return the matrix of adaptive average pooling from one length to another, `(pooled, length)`.

    >>> _averaging(3, 2)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.5000, 0.5000]])
    """
    position, numbers = torch.arange(length), torch.arange(pooled)[:, None]
    inside = (position >= numbers * length // pooled) & (position < -(-(numbers + 1) * length // pooled))
    return inside / inside.sum(1, keepdim=True)
