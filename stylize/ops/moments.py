"""Mean and variance, of images and of what is made of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stylize.system import distributed


class Statistics(NamedTuple):
    """Mean and biased variance, each `(N or 1, C or 1)`, float32."""

    mean: Tensor
    variance: Tensor


def batch_statistics(instance: Statistics) -> Statistics:
    """Return the statistics of the whole batch from those of its images: two of `(N, C)` → two of `(1, C)`.

    `μ_B = mean μ_n`, `σ²_B = mean σ²_n + mean (μ_n − μ_B)²`: the variance within the images and that between them. The
    batch is that of all processes of a training, each of which has equally many images.

    Differs: from `mean(σ²_n + μ_n²) − μ_B²`, the same number, which cancels where the means are large.

    >>> instance = Statistics(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.5], [0.5]]))
    >>> batch = batch_statistics(instance)
    >>> batch.mean.item(), batch.variance.item()
    (2.0, 1.5)
    """
    if distributed.count() == 1:
        between, mean = torch.var_mean(instance.mean, 0, correction=0, keepdim=True)
        return Statistics(mean, instance.variance.mean(0, keepdim=True) + between)
    mean = distributed.average(instance.mean.mean(0, keepdim=True))
    own = (instance.variance + (instance.mean - mean).square()).mean(0, keepdim=True)
    return Statistics(mean, distributed.average(own))


def layer_statistics(instance: Statistics) -> Statistics:
    """Return the statistics over all channels of each image: two of `(N, C)` → two of `(N, 1)`."""
    between, mean = torch.var_mean(instance.mean, 1, correction=0, keepdim=True)
    return Statistics(mean, instance.variance.mean(1, keepdim=True) + between)


def merged(counts: Tensor, means: Tensor, variances: Tensor) -> Statistics:
    """Merge the statistics of pieces, stacked in the first dimension, in float64.

    Args:
        counts: Number of values of each piece, `(pieces, 1, …)`.
        means: Their means.
        variances: Their biased variances.

    Source: Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, equation 2.1.
    """
    shares = counts.double() / counts.sum()
    mean = (shares * means.double()).sum(0)
    variance = (shares * (variances.double() + (means.double() - mean).square())).sum(0)
    return Statistics(mean.float(), variance.float())
