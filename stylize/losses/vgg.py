"""The frozen VGG-19 whose features the losses compare, and its compact student.

RGB in [0, 1] goes in, named feature maps come out; the normalization that the weights expect happens inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylize import ops
from stylize.errors import StylizeError, pick

Pooling = Literal["max", "average"]
VGGPadding = Literal["zero", "replication"]
Convolution = Literal["plain", "separable", "low_rank"]
Ranks = Sequence[tuple[int, int] | None]
BLOCK_WIDTHS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class Layer(NamedTuple):
    """A convolution of VGG-19, and the name of the tap after its ReLU."""

    tap: str
    key: str  # its index among torchvision's `features`
    in_channels: int
    out_channels: int
    pool_before: bool


def _layers() -> tuple[Layer, ...]:
    layers, index, in_channels = [], 0, 3
    for block, widths in enumerate(BLOCK_WIDTHS, start=1):
        for number, out_channels in enumerate(widths, start=1):
            pool_before = block > 1 and number == 1
            layers.append(Layer(f"relu{block}_{number}", str(index), in_channels, out_channels, pool_before))
            in_channels, index = out_channels, index + 2
        index += 1
    return tuple(layers)


LAYERS = _layers()
TAPS: Mapping[str, int] = {layer.tap: i for i, layer in enumerate(LAYERS)}
WIDTHS = tuple(layer.out_channels for layer in LAYERS)


class VGG19(nn.Module):
    """The convolutional part of VGG-19, cut after the deepest tap that is needed. Its weights do not train.

    Args:
        depth: Number of convolutions, 1 to 16.
        pooling: `max` as trained, or `average` as Gatys et al. prefer.
        padding: Padding of every map: `replication` of the border (the default), or `zero` as in VGG-19's training.
        widths: Channels of each convolution: a student keeps the layers and their taps, and has fewer channels.
        convolution: `plain` as in VGG-19; `separable`: after the first layer 3×3 within every channel, then 1×1
            across them; or `low_rank`, see `ranks`.
        ranks: For `low_rank`, of each convolution: the input and output channels of a 3×3 convolution between two of
            1×1, all linear, or None: plain.

    Source: Simonyan & Zisserman 2014, arXiv:1409.1556, configuration E; Kim et al. 2015, arXiv:1511.06530 (low rank
        on both sides).
    Differs: with zero padding every layer sees a dark frame around the picture, and a generator learns to answer
        it with a frame of its own; replication takes the frame away.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        depth: int,
        pooling: Pooling = "max",
        padding: VGGPadding = "replication",
        widths: Sequence[int] = WIDTHS,
        convolution: Convolution = "plain",
        ranks: Ranks = (),
    ) -> None:
        super().__init__()
        self.widths, self.ranks, self.convolution = tuple(widths[:depth]), tuple(ranks[:depth]), convolution
        if convolution == "low_rank" and len(self.ranks) != len(self.widths):
            raise ValueError(f"got {len(self.ranks)} ranks, must be one for each of {len(self.widths)} convolutions")
        modules = {}
        with torch.random.fork_rng(devices=[]):  # weights are loaded: the caller's random numbers stay the same
            for number, (inputs, outputs) in enumerate(zip((3, *self.widths), self.widths, strict=False)):
                rank = self.ranks[number] if convolution == "low_rank" else None
                if rank is not None:
                    module = _low_rank(inputs, *rank, outputs, padding)
                elif convolution == "separable" and number > 0:
                    module = _separable(inputs, outputs, padding)
                else:
                    module = SameSizeConv2d(inputs, outputs, padding)
                modules[LAYERS[number].key] = module
        self.features = nn.ModuleDict(modules)
        self.pooling = pooling
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor, taps: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps of RGB images, by tap name; no deeper than the deepest tap.

        Args:
            image: `(N, 3, H, W)` in [0, 1].
            taps: Names such as `relu2_2`.

        Returns:
            `{tap: (N, C, H / 2^k, W / 2^k)}`, k poolings deep, in the type of the weights and the layout of the device.

        Raises:
            StylizeError: A tap that VGG-19 does not have, or that lies deeper than this network was cut.
        """
        wanted = set(taps)
        depth = tap_depth(wanted)
        if depth > len(self.features):
            last = LAYERS[len(self.features) - 1].tap
            raise StylizeError(f"got the tap {LAYERS[depth - 1].tap}, must be no deeper than {last}")
        normalized = (image - self.mean) / self.std
        first = last_convolution(self.features[LAYERS[0].key])
        found, x = {}, normalized.to(first.weight.dtype, memory_format=ops.preferred_layout(image))
        for layer in LAYERS[:depth]:
            if layer.pool_before:
                x = self.pool(x)
            conv = self.features[layer.key]
            x = conv(x, relu=True) if isinstance(conv, SameSizeConv2d) else F.relu(conv(x), inplace=True)
            if layer.tap in wanted:
                found[layer.tap] = x
        return found

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the taps that it reaches."""
        return tuple(layer.tap for layer in LAYERS[: len(self.features)])

    def hold_in(self, dtype: torch.dtype) -> None:
        """Hold the weights, and so the maps, in this type; images are still normalized in their own."""
        self.features.to(dtype)

    def pool(self, x: Tensor) -> Tensor:
        """One value of 2×2 px: `(N, C, H, W)` to `(N, C, H // 2, W // 2)`."""
        return F.avg_pool2d(x, 2) if self.pooling == "average" else ops.max_pool2x2(x)


class SameSizeConv2d(nn.Conv2d):
    """A 3×3 convolution that keeps the size.

    Args:
        in_channels: See `torch.nn.Conv2d`.
        out_channels: Likewise.
        padding: Zeros, or the replicated border.
        groups: See `torch.nn.Conv2d`.
        bias: Likewise.
    """

    def __init__(
        self, in_channels: int, out_channels: int, padding: VGGPadding, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, 3, padding=int(padding == "zero"), groups=groups, bias=bias)
        self.geometry = ops.Geometry(3, 1, "replicate" if padding == "replication" else "constant")

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """`(N, C, H, W)` → `(N, C', H, W)`, with ReLU if asked."""
        return ops.conv2d(x, self.weight, self.bias, self.geometry, relu=relu)


def _separable(in_channels: int, out_channels: int, padding: VGGPadding) -> nn.Module:
    depthwise = SameSizeConv2d(in_channels, in_channels, padding, groups=in_channels, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(in_channels, out_channels, 1))


def _low_rank(in_channels: int, before: int, behind: int, out_channels: int, padding: VGGPadding) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, before, 1, bias=False),
        SameSizeConv2d(before, behind, padding, bias=False),
        nn.Conv2d(behind, out_channels, 1),
    )


def last_convolution(layer: nn.Module) -> nn.Conv2d:
    """Return the convolution with a layer's bias: the only one, or the last 1×1."""
    conv = layer[-1] if isinstance(layer, nn.Sequential) else layer
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    return conv


def tap_depth(taps: Iterable[str]) -> int:
    """Return the number of convolutions up to the deepest of the taps.

    Raises:
        StylizeError: VGG-19 has no such tap.

    >>> tap_depth(["relu1_1", "relu3_1"])
    5
    """
    return 1 + max(pick(TAPS, tap, "VGG-19 layer") for tap in taps)
