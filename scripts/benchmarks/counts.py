"""Counts of floating-point operations and of bytes to move; nothing here is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from benchmarks.plain import PlainLoss, PlainVGG, plain_generator
from benchmarks.settings import WIDTH
from torch.utils.flop_counter import FlopCounterMode

FLOAT32_BYTES = 4
# Passes of a norm over a map. Forward: read for the statistics, read again, write. Backward: read the map and the
# gradient of its output for two sums, read both again, write one.
NORM_PASSES = {"forward": 3, "backward": 5}


def training_flop(batch: int, crop_px: int) -> int:
    """Return the FLOP of a training step: two for each multiply-add of convolutions and Gram products, both passes."""
    with torch.device("meta"):
        generator, loss = plain_generator(WIDTH), PlainLoss(PlainVGG(), torch.empty(3, crop_px, crop_px))
        content = torch.empty(batch, 3, crop_px, crop_px)
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(loss(generator(content), content))
    return int(counter.get_total_flops())


def painting_flop(images: int, height_px: int, width_px: int | None = None, channels: int = WIDTH) -> int:
    """Return the FLOP of painting: two for each multiply-add of the convolutions.

    Args:
        images: Number of images.
        height_px: Their height.
        width_px: Their width; None: they are square.
        channels: Width of the generator.
    """
    size = height_px, height_px if width_px is None else width_px
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain_generator(channels)(torch.empty(images, 3, *size))
    return int(counter.get_total_flops())


def product_flop(side: int) -> int:
    """Return the FLOP of the product of two square matrices.

    >>> product_flop(10)
    2000
    """
    return 2 * side**3


def map_bytes(shape: Sequence[int], passes: int, value_bytes: int = FLOAT32_BYTES) -> int:
    """Return the bytes of a number of passes over maps.

    >>> map_bytes((2, 3, 4, 5), NORM_PASSES["forward"])
    1440
    """
    return value_bytes * math.prod(shape) * passes
