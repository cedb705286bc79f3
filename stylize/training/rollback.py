"""Return to the last state of a training with a finite loss, told by the host or by the device alone."""

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
        self._flat: _Flat | None = None
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

    @torch.no_grad()
    def keep_or_restore_(self, good: Tensor) -> None:
        """Copy the current state if it is good, else return to the one that was copied last; the host does not know.

        The optimizer must have its state already.

        Args:
            good: Whether the state is good, bool `()`, on the device.
        """
        if self._flat is None:
            self._flat = _Flat(self._present(), self._kept)
            self._kept = self._flat.kept
        self._flat.keep_or_restore_(good)

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
        self._flat = None

    def _present(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": value for name, value in self._network.state_dict().items()}
        for i, parameter in enumerate(p for group in self._optimizer.param_groups for p in group["params"]):
            for name, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{i}.{name}"] = value
        return tensors


class _Flat:
    """Present and kept tensors in one piece of memory, so that a choice between them takes three kernels.

    Args:
        present: The tensors in use, float32, on one device; they are changed in place from here on.
        kept: Earlier values, by the same names; a moment of the optimizer that is not there was zero.

    Attributes:
        kept: The kept values.
    """

    def __init__(self, present: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        self._present = [_in_memory_order(value) for value in present.values()]
        self._memory = torch.cat(self._present)
        self._parts = list(torch.split(self._memory, [len(part) for part in self._present]))
        self.kept = {
            name: part.as_strided(value.shape, value.stride())
            for (name, value), part in zip(present.items(), self._parts, strict=True)
        }
        for name, value in self.kept.items():
            if name in kept:
                value.copy_(kept[name])
            else:
                value.zero_()

    def keep_or_restore_(self, good: Tensor) -> None:
        torch.where(good, torch.cat(self._present), self._memory, out=self._memory)
        torch._foreach_copy_(self._present, self._parts)


def _in_memory_order(x: Tensor) -> Tensor:
    """The values of a dense tensor as they lie in memory, `(values,)`: a view, whatever the layout."""
    return x.detach().as_strided((x.numel(),), (1,))
