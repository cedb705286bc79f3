"""What has to be computed and moved, counted: not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from benchmarks.plain import PlainLoss, PlainVGG, plain_generator
from benchmarks.settings import WIDTH
from torch.utils.flop_counter import FlopCounterMode

FLOAT32_BYTES = 4
# How often a norm has to read or write a map: forward once for the statistics, then once in and once out; backward both
# the map and its output's gradient for two sums, then both again in and one out.
NORM_PASSES = {"forward": 3, "backward": 5}


def training_flop(batch: int, crop_px: int) -> int:
    """Of a training step: two for each multiply-add of convolutions and Gram products, forward and backward."""
    with torch.device("meta"):
        generator, loss = plain_generator(WIDTH), PlainLoss(PlainVGG(), torch.empty(3, crop_px, crop_px))
        content = torch.empty(batch, 3, crop_px, crop_px)
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(loss(generator(content), content))
    return int(counter.get_total_flops())


def painting_flop(images: int, side_px: int) -> int:
    """Of painting: two for each multiply-add of the convolutions."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain_generator(WIDTH)(torch.empty(images, 3, side_px, side_px))
    return int(counter.get_total_flops())


def product_flop(side: int) -> int:
    """Of the product of two square matrices.

    >>> product_flop(10)
    2000
    """
    return 2 * side**3


def map_bytes(shape: Sequence[int], passes: int) -> int:
    """Of so many passes over float32 maps.

    >>> map_bytes((2, 3, 4, 5), NORM_PASSES["forward"])
    1440
    """
    return FLOAT32_BYTES * math.prod(shape) * passes
