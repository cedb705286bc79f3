"""The learning rate over a run."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ScheduleConfig(BaseModel):
    """The learning rate over the run."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Literal["constant", "cosine", "step"] = Field("cosine", description="shape after the warm-up")
    warmup_steps: int = Field(100, ge=0, description="steps of linear increase to the full rate")
    final_factor: float = Field(0.01, ge=0, le=1, description="cosine: final rate relative to the full rate")
    step_every: int = Field(2000, ge=1, description="step: steps between two drops")
    step_factor: float = Field(0.8, gt=0, le=1, description="step: factor of a drop")


def rate_factor(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Return the factor of the learning rate at a step.

    Args:
        step: The step, counted from 0.
        steps: Number of steps of the run.
        schedule: The schedule of the rate.

    >>> schedule = ScheduleConfig(name="step", warmup_steps=2, step_every=10, step_factor=0.5)
    >>> [rate_factor(step, 100, schedule) for step in (0, 1, 2, 9, 10, 25)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.25]
    """
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.name == "cosine":
        share = step / max(steps - 1, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        return warmup * (schedule.final_factor + (1 - schedule.final_factor) * cosine)
    if schedule.name == "step":
        return warmup * schedule.step_factor ** (step // schedule.step_every)
    return warmup
