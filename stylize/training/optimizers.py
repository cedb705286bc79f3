"""The optimizers of trainings: Adam, and Muon for the kernels of convolutions with Adam for all else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from stylize.generators import Generator

OptimizerName = Literal["muon", "adam"]
LEAST_CHANNELS = 4  # of input and output, for a kernel to count as a matrix: not the layers from and to RGB
BETAS = (0.9, 0.99)  # with 0.999 the enormous gradients of a first picture would brake for a thousand steps
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Adam):
    """Muon for the groups with `orthogonal`, Adam for the others.

    A kernel `(O, I, k, k)` is a matrix `(O, I k²)`. Its momentum, in Nesterov's form, is replaced by the nearest matrix
    whose singular values are equal, so that a step goes equally far in every direction, and scaled until the root mean
    square of the step is the learning rate, which therefore serves Adam and Muon alike. The mean of squares of Adam
    decays by 0.99, not 0.999, a step.

    Args:
        groups: Parameter groups; those with `orthogonal: True` hold kernels.
        learning_rate: Learning rate of all.
        momentum: Decay of the momentum of kernels.
        fused: As for `torch.optim.Adam`.

    Source: Jordan et al. 2024, Muon (github.com/KellerJordan/Muon); the scale: Liu et al. 2025, arXiv:2502.16982.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], learning_rate: float, *, momentum: float = 0.9, fused: bool = False
    ) -> None:
        super().__init__(groups, lr=learning_rate, betas=BETAS, fused=fused)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make a step; where a device tells by `found_inf` of 1 that the step does not count, nothing changes."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._step_kernels([p for p in group["params"] if p.grad is not None], group["lr"])

    def _step_kernels(self, kernels: Sequence[Tensor], rate: float | Tensor) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for kernel in kernels:
            by_shape.setdefault(kernel.shape, []).append(kernel)
        bad: Tensor | None = getattr(self, "found_inf", None)
        for alike in by_shape.values():
            gradients = torch.stack([_gradient(kernel).flatten(1) for kernel in alike])
            before = torch.stack([self._state_of(kernel)["exp_avg"].flatten(1) for kernel in alike])
            momentum = self.momentum * before + gradients
            steps = orthogonal(gradients + self.momentum * momentum) * (rate * max(gradients.shape[1:]) ** 0.5)
            if bad is not None:
                momentum, steps = torch.where(bad > 0, before, momentum), torch.where(bad > 0, 0, steps)
            for kernel, moment, update in zip(alike, momentum, steps, strict=True):
                self._state_of(kernel)["exp_avg"].copy_(moment.view(kernel.shape))
                kernel.sub_(update.view(kernel.shape))

    def _state_of(self, kernel: Tensor) -> dict[str, Tensor]:
        """The state of a kernel, named as Adam's."""
        state: dict[str, Tensor] = self.state[kernel]
        if not state:
            state["step"] = torch.zeros((), device=kernel.device)  # Adam looks for it in all groups
            state["exp_avg"] = torch.zeros_like(kernel, memory_format=torch.preserve_format)
        return state


def build_optimizer(
    name: OptimizerName, generator: Generator, learning_rate: float, *, fused: bool, norm_rate: float = 1.0
) -> torch.optim.Adam:
    """Return the optimizer of a generator's trained parameters; its groups have a `factor` of the learning rate.

    Args:
        name: Which.
        generator: The generator; parameters without a gradient are left out.
        learning_rate: Learning rate.
        fused: Whether to use the fused kernels of the device.
        norm_rate: Factor of the learning rate of the norms' γ and β: a style is above all in these, and they are few.
    """
    of_norms = set(map(id, generator.norm_parameters()))
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for group in generator.param_groups():
        for parameter in group.parameters:
            if parameter.requires_grad:
                factor = group.learning_rate_factor * (norm_rate if id(parameter) in of_norms else 1.0)
                groups.setdefault((factor, name == "muon" and is_matrix(parameter)), []).append(parameter)
    in_order = [
        {"params": parameters, "factor": factor, "orthogonal": by_matrix}
        for (factor, by_matrix), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    optimizer = Muon if name == "muon" else torch.optim.Adam
    return optimizer(in_order, learning_rate, fused=fused)


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is the kernel of a convolution between maps of several channels.

    >>> [is_matrix(torch.zeros(shape)) for shape in ((32, 16, 3, 3), (32, 3, 9, 9), (32, 1, 3, 3), (32,))]
    [True, False, False, False]
    """
    return parameter.dim() == 4 and min(parameter.shape[:2]) >= LEAST_CHANNELS


def orthogonal(matrices: Tensor) -> Tensor:
    """Return the nearest matrices with equal singular values, near 1: 0.7 to 1.2.

    Args:
        matrices: `(N, R, C)`.

    Source: Jordan et al. 2024, a quintic Newton-Schulz iteration.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
