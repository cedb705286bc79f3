"""The last state of a training under which the loss was finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class LastGood:
    """A copy of weights, buffers and optimizer state, to go back to.

    It is kept in memory, before every update: to go back to a checkpoint would throw up to a thousand good steps away.
    It costs a copy of the weights and of Adam's moments a step, and doubles the size of a checkpoint.

    Args:
        network: Whose parameters and buffers are kept.
        optimizer: Whose state is kept; it must be all tensors, as Adam's is.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._network = network
        self._optimizer = optimizer
        self._kept: dict[str, Tensor] = {}
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Take the present state as good."""
        present = self._present()
        if present.keys() != self._kept.keys():
            self._kept = {name: value.detach().clone() for name, value in present.items()}
        else:
            torch._foreach_copy_(list(self._kept.values()), list(present.values()))

    @torch.no_grad()
    def restore_(self) -> None:
        """Go back to the state that was kept last."""
        present = self._present()
        for name, value in self._kept.items():
            present[name].copy_(value)
        if present.keys() != self._kept.keys():  # kept before the first update, when Adam had no moments
            self._optimizer.state.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """For checkpoints: a resumed run must go back to the same state."""
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state that `state_dict` gave; the network and the optimizer stay."""
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
