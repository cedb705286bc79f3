"""The networks and the loss as in the widely copied scripts: eager `torch.nn` modules, contiguous layout."""

from __future__ import annotations

import torch
from benchmarks.settings import CONTENT_TAP, LOSS, STYLE_TAPS
from torch import Tensor, nn

# Layers of VGG-19 up to each tap: a number is a convolution with that many channels, P a pooling.
VGG_SLICES = ((64,), (64, "P", 128), (128, "P", 256), (256, 256, 256, "P", 512), (512,))


def conv(in_channels: int, out_channels: int, kernel_px: int, stride: int = 1) -> list[nn.Module]:
    """Return reflection padding and a convolution."""
    return [nn.ReflectionPad2d(kernel_px // 2), nn.Conv2d(in_channels, out_channels, kernel_px, stride)]


def conv_norm(in_channels: int, out_channels: int, kernel_px: int, stride: int = 1) -> list[nn.Module]:
    """Return reflection padding, a convolution and instance normalization."""
    return [*conv(in_channels, out_channels, kernel_px, stride), nn.InstanceNorm2d(out_channels, affine=True)]


def upsample() -> nn.Module:
    """Return maps of twice the size, like `stylize.ops.upsample_to`."""
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


class PlainResidual(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*conv_norm(channels, channels, 3), nn.ReLU(), *conv_norm(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.layers(x)
        return x + residual


def plain_generator(width: int) -> nn.Sequential:
    """Return Johnson's generator for sides that are multiples of 4; parameters in the order of `JohnsonGenerator`."""
    return nn.Sequential(
        *(*conv_norm(3, width, 9), nn.ReLU()),
        *(*conv_norm(width, 2 * width, 3, stride=2), nn.ReLU()),
        *(*conv_norm(2 * width, 4 * width, 3, stride=2), nn.ReLU()),
        *(PlainResidual(4 * width) for _ in range(5)),
        *(upsample(), *conv_norm(4 * width, 2 * width, 3), nn.ReLU()),
        *(upsample(), *conv_norm(2 * width, width, 3), nn.ReLU()),
        *conv(width, 3, 9),
        nn.Sigmoid(),
    )


class PlainVGG(nn.Module):
    """VGG-19 in slices that end at the taps; parameters in the order of `VGG19`."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.slices = nn.ModuleList()
        channels = 3
        for items in VGG_SLICES:
            layers: list[nn.Module] = []
            for item in items:
                if isinstance(item, str):
                    layers.append(nn.MaxPool2d(2))
                    continue
                layers += [nn.ReplicationPad2d(1), nn.Conv2d(channels, item, 3), nn.ReLU(inplace=True)]
                channels = item
            self.slices.append(nn.Sequential(*layers))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x, features = (image - self.mean) / self.std, {}
        for tap, layers in zip((*STYLE_TAPS, CONTENT_TAP), self.slices, strict=True):
            x = features[tap] = layers(x)
        return features


def plain_gram(features: Tensor) -> Tensor:
    """Return Gram matrices, `(N, C, H, W)` → `(N, C, C)`."""
    n, c, h, w = features.size()
    flat = features.view(n, c, h * w)
    return flat.bmm(flat.transpose(1, 2)) / (c * h * w)


def plain_error(value: Tensor, target: Tensor, of_style: Tensor | float = 0.0) -> Tensor:
    """Return the mean squared difference over the target's mean square and another, averaged over the images."""
    dims = tuple(range(1, value.dim()))
    return (((value - target) ** 2).mean(dims) / ((target**2).mean(dims) + of_style)).mean()


class PlainLoss:
    """The perceptual loss against one style.

    Args:
        vgg: The loss network.
        style: The style image, `(3, H, W)` in [0, 1].
    """

    def __init__(self, vgg: PlainVGG, style: Tensor) -> None:
        self.vgg = vgg
        with torch.no_grad():
            features = vgg(style[None])
        self.grams = {tap: plain_gram(features[tap]) for tap in STYLE_TAPS}
        self.style_energy = (features[CONTENT_TAP] ** 2).mean()

    def __call__(self, stylized: Tensor, content: Tensor) -> Tensor:
        features, targets = self.vgg(stylized), self.vgg(content)
        content_loss = plain_error(features[CONTENT_TAP], targets[CONTENT_TAP], self.style_energy)
        style_loss = torch.zeros_like(content_loss)
        for tap, target in self.grams.items():
            gram = plain_gram(features[tap])
            style_loss = style_loss + plain_error(gram, target.expand_as(gram))
        return LOSS.content_weight * content_loss + LOSS.style_weight * style_loss / len(STYLE_TAPS)


@torch.no_grad()
def copy_parameters_(target: nn.Module, source: nn.Module) -> None:
    """Copy the parameters of `source` to `target`; they have the same order."""
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        assert mine.shape == theirs.shape
        mine.copy_(theirs)
