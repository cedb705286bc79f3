"""What an image, and a step, may contribute to the weights.

An image without contrast has nothing to normalize, and one with very little may be blown up, by each norm anew. So the
gradient of every image is bounded where it enters the network, and that of a step before the update: by a multiple of
what is usual, the running median. An even image contributes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stylize.training.contrast import has_contrast

WINDOW = 32  # steps of a running median: early in a training gradients shrink a hundredfold within as many
LEAST_STEPS = 5  # before which there is no median
UNKNOWN = -1.0  # in a checkpoint: not-a-number does not equal itself
IMAGE_NORM = "image_gradient_norm"


class UsualNorms(NamedTuple):
    """Running medians of gradient norms; infinite before there are any. `()` each.

    Attributes:
        image: Of an image: the norm of its own loss's gradient with respect to its painted picture.
        step: Of a step: the norm of all weights' gradient.
    """

    image: Tensor
    step: Tensor


class GradientBounds:
    """Bounds the gradients of images and steps by multiples of their running medians. The host never waits.

    Args:
        clip: The multiple; None: only even images, and gradients that are enormous, are kept from the weights.
        device: Where gradients are.

    Attributes:
        limit: Largest norm of an image's gradient in this step, `()`; its address stays, for compiled steps.
        clipped_steps: Number of steps whose gradient was scaled down so far, `()`.
        bounded_images: Number of images whose gradient was scaled down, or that were even, so far, `()`.
    """

    def __init__(self, clip: float | None, device: torch.device) -> None:
        self.clip = clip
        self._norms = torch.full((2, WINDOW), math.nan, device=device)
        self._recorded = 0
        self.limit = torch.full((), math.inf, device=device)
        self.clipped_steps = torch.zeros((), device=device)
        self.bounded_images = torch.zeros((), device=device)
        self._probe = torch.zeros(1, 2, device=device, requires_grad=True)

    def begin_step(self, images: int) -> None:
        """Set the limit for a batch of so many images, and forget what the last one's gradients were."""
        if len(self._probe) != images:
            self._probe = torch.zeros(images, 2, device=self.limit.device, requires_grad=True)
        self._probe.grad = None
        if self.clip is not None:
            self.limit.copy_(self.clip * self.usual().image)

    def usual(self) -> UsualNorms:
        """Return the running medians."""
        if self._recorded < LEAST_STEPS:
            return UsualNorms(*torch.full((2,), math.inf, device=self.limit.device))
        return UsualNorms(*self._norms.nanmedian(1).values.nan_to_num(math.inf))

    def of_images(self, stylized: Tensor, content: Tensor) -> Tensor:
        """Return the painted pictures `(N, 3, H, W)`, whose gradient is bounded image by image on its way back.

        Args:
            stylized: The painted pictures.
            content: Their photographs, the same shape, in [0, 1].
        """
        shares = has_contrast(content).to(stylized.dtype)
        bounded: Tensor = _Bounded.apply(stylized, shares, self.limit, self._probe)
        return bounded

    def of_batch(self) -> dict[str, Tensor]:
        """Return what is known of this batch's images after the backward pass, to be averaged over all processes.

        `image_gradient_norm`: the mean of the bounded norms; `bounded_images`: the share of images that were bounded.
        """
        norms, bounded = torch.zeros_like(self._probe).T if self._probe.grad is None else self._probe.grad.T
        return {IMAGE_NORM: norms.mean(), "bounded_images": bounded.mean()}

    @torch.no_grad()
    def clip_(self, gradients: Sequence[Tensor], norm: Tensor, *, always: bool) -> Tensor:
        """Scale a step's gradient down to its bound; return the factor, `()`.

        Args:
            gradients: Of all weights; changed in place.
            norm: Their norm, `()`.
            always: Multiply by a factor of 1, too, rather than ask for it.
        """
        if self.clip is None:
            return torch.ones_like(norm)
        factor = (self.clip * self.usual().step / norm).nan_to_num(1.0, posinf=1.0).clamp(max=1.0)
        if always or factor.item() < 1:
            torch._foreach_mul_(list(gradients), factor)
        return factor

    @torch.no_grad()
    def record_(self, batch: Mapping[str, Tensor], norm: Tensor, factor: Tensor, images: int, counts: Tensor) -> None:
        """Take a step into the running medians and the counts, unless it did not count.

        Args:
            batch: Of `of_batch`, averaged over all processes.
            norm: Of the step's gradient before it was scaled, `()`.
            factor: By which it was scaled, `()`.
            images: Number of images of the batch, in all processes.
            counts: Whether the step counts, bool `()`.
        """
        place = self._norms[:, self._recorded % WINDOW]
        known = counts & (norm > 0)  # zero is the gradient of a batch of even images
        place.copy_(torch.where(known, torch.stack([batch[IMAGE_NORM], norm]), place))
        self.clipped_steps += counts & (factor < 1)
        self.bounded_images += counts * images * batch["bounded_images"]
        self._recorded += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the running medians and counts, for a checkpoint."""
        counts = {"clipped_steps": self.clipped_steps, "bounded_images": self.bounded_images}
        return {"norms": self._norms.nan_to_num(UNKNOWN), "recorded": self._recorded, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what `state_dict` returned."""
        norms = state["norms"]
        self._norms.copy_(torch.where(norms == UNKNOWN, math.nan, norms))
        self._recorded = int(state["recorded"])
        self.clipped_steps.copy_(state["clipped_steps"])
        self.bounded_images.copy_(state["bounded_images"])


class _Bounded(torch.autograd.Function):
    """The identity, whose gradient is scaled image by image. The probe's gradient is what was found of each."""

    @staticmethod
    def forward(ctx: Any, stylized: Tensor, shares: Tensor, limit: Tensor, probe: Tensor) -> Tensor:
        ctx.save_for_backward(shares, limit)
        return stylized.view_as(stylized)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, Tensor]:
        (gradient,) = gradients
        shares, limit = ctx.saved_tensors
        norms = len(gradient) * torch.linalg.vector_norm(gradient.float(), dim=(1, 2, 3))  # the loss is a mean
        factors = shares * (limit / norms).nan_to_num(1.0, posinf=1.0).clamp(max=1.0)
        scaled = torch.where(factors[:, None, None, None] > 0, factors[:, None, None, None] * gradient, 0)
        found = torch.stack([torch.minimum(norms, limit), (factors < 1).float()], 1)
        return scaled.to(gradient.dtype), None, None, found
