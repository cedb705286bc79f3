"""Return to the last state of a training with a finite loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Rollback:
    """A copy of weights, buffers and optimizer state, to return to when a loss is not finite.

    The copy is made before every update and stays on the device; a return to the last checkpoint would lose up to a
    thousand good steps. It costs a copy of the weights and Adam's moments per step, and doubles the size of
    a checkpoint.

    Args:
        network: The network whose parameters and buffers are copied.
        optimizer: The optimizer whose state is copied; it must be all tensors, as Adam's is.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._network = network
        self._optimizer = optimizer
        self._kept: dict[str, Tensor] = {}
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the current state."""
        present = self._present()
        if present.keys() != self._kept.keys():
            self._kept = {name: value.detach().clone() for name, value in present.items()}
        else:
            torch._foreach_copy_(list(self._kept.values()), list(present.values()))

    @torch.no_grad()
    def restore_(self) -> None:
        """Return to the state that was copied last."""
        present = self._present()
        for name, value in self._kept.items():
            present[name].copy_(value)
        if present.keys() != self._kept.keys():  # copied before the first update, when Adam had no moments
            self._optimizer.state.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the copy, for a checkpoint: a resumed run must roll back to the same state."""
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the copy to one that `state_dict` returned; the network and the optimizer do not change.

        Raises:
            ValueError: It is of another network.
        """
        present = self._present()
        wrong = [name for name in state if name not in present or present[name].shape != state[name].shape]
        if wrong or not self._network.state_dict().keys() <= {name.removeprefix("network.") for name in state}:
            raise ValueError(f"no state of this network: {wrong}")
        self._kept = {name: value.detach().to(present[name].device, copy=True) for name, value in state.items()}

    def _present(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": value for name, value in self._network.state_dict().items()}
        for i, parameter in enumerate(p for group in self._optimizer.param_groups for p in group["params"]):
            for name, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{i}.{name}"] = value
        return tensors
