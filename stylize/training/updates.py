"""The optimizer's updates, and what happens to those with a loss or gradient that is not finite, or enormous."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from stylize.training.rollback import Rollback

SKIPS_THAT_HALVE_THE_RATE = 3
SKIPS_THAT_STOP = 10
NO_TERMS = ("gradient_norm", "gradient_median", "clipped_steps", "bounded_images", "learning_rate")
ENORMOUS = 1e4  # times the running median: clipped, such a gradient would still be made of rounding alone
ENORMOUS_NORM = 1e15  # whatever the median: Adam squares a gradient, and float32 ends at 3.4e38


def step_counts(total: Tensor, gradient_norm: Tensor, usual_norm: Tensor) -> Tensor:
    """Return whether a step counts, bool `()`: its loss and gradient are finite, and the gradient is not enormous.

    Args:
        total: The loss, `()`.
        gradient_norm: `()`.
        usual_norm: The running median of gradient norms, `()`; infinite where there is none.
    """
    enormous = (gradient_norm > ENORMOUS_NORM) | (gradient_norm > ENORMOUS * usual_norm)
    return total.detach().isfinite() & gradient_norm.isfinite() & ~enormous


def why_not_finite(values: Mapping[str, float]) -> str | None:
    """The reason why a step with these values must not count, or None; see `step_counts`.

    >>> why_not_finite({"style": math.nan, "total": math.nan, "gradient_norm": 1.0})
    'the loss is not finite (style)'
    >>> why_not_finite({"total": 3.0, "gradient_norm": 2e6, "gradient_median": 100.0})
    'the gradient is enormous (its norm is 2e+06, the median of the last steps 100)'
    """
    norm, usual = values["gradient_norm"], values.get("gradient_median", math.inf)
    if math.isfinite(values["total"]) and math.isfinite(norm):
        if norm <= min(ENORMOUS_NORM, ENORMOUS * usual):
            return None
        median = f", the median of the last steps {usual:.3g}" if math.isfinite(usual) else ""
        return f"the gradient is enormous (its norm is {norm:.3g}{median})"
    guilty = [name for name, value in values.items() if name not in NO_TERMS and not math.isfinite(value)]
    named = ", ".join(name for name in guilty if name != "total") or ("total" if guilty else "its gradient")
    return f"the loss is not finite ({named})"


class LateUpdates:
    """Updates by a device that itself passes over steps that are not finite; the host need not wait for it.

    The rules are those of a host that looks at every step, in the same order, so the weights are the same: a step that
    is not finite returns to the state before the last update, the third in a row halves the learning rate. Only the
    stop after the tenth is left to the host.

    Args:
        optimizer: A fused optimizer, which skips its update where its `found_inf` is 1.
        rollback: Holds the state before the last update.
        device: Where they are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rollback: Rollback, device: torch.device) -> None:
        self._optimizer = optimizer
        self._rollback = rollback
        self._skipped_in_a_row = torch.zeros((), device=device)
        self._rate_factor = torch.ones((), device=device)

    def resume(self, skipped_in_a_row: int, rate_factor: float) -> None:
        """Continue after steps that have left these numbers."""
        self._skipped_in_a_row.fill_(skipped_in_a_row)
        self._rate_factor.fill_(rate_factor)

    @torch.no_grad()
    def update(self, good: Tensor, rate: float) -> Tensor:
        """Update the weights by their gradients, or return to the state before the last update.

        Args:
            good: Whether the step counts, bool `()`.
            rate: The learning rate of the schedule.

        Returns:
            The learning rate that was used, `()`.
        """
        bad = good.logical_not().float()
        used_rate = self._rate_factor * rate
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = used_rate * group["factor"]
        if not self._optimizer.state:
            self._step(torch.ones_like(bad))  # makes the moments, which are kept and restored like the weights
        self._rollback.keep_or_restore_(good)
        self._step(bad)
        for group, known_rate in zip(groups, rates, strict=True):
            group["lr"] = known_rate  # a number, for checkpoints
        self._skipped_in_a_row.add_(1).mul_(bad)
        halved = self._skipped_in_a_row == SKIPS_THAT_HALVE_THE_RATE
        torch.where(halved, self._rate_factor / 2, self._rate_factor, out=self._rate_factor)
        return used_rate

    def _step(self, bad: Tensor) -> None:
        self._optimizer.found_inf = bad  # type: ignore[attr-defined]
        self._optimizer.step()
