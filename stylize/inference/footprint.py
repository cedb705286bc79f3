"""How much memory a network needs, derived from the network itself."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SIDE_PX = 256  # large enough that borders and small maps count little


@torch.no_grad()
def peak_values_per_px(network: nn.Module) -> float:
    """Return how many values a pixel of the image a network's maps have in memory at most.

    The network runs on the meta device, where tensors have shapes but no memory. Counted is what plain PyTorch holds at
    once: the image, all maps that are alive, and the operation's result.

    >>> peak_values_per_px(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1)))
    12.0
    """
    # A copy: the network may be painting in other threads.
    copied = copy.deepcopy(network, {id(t): _on_meta(t) for t in (*network.parameters(), *network.buffers())})
    image = torch.empty(1, 3, SIDE_PX, SIDE_PX, device="meta").contiguous(memory_format=torch.channels_last)
    with _LiveValues(image) as live:
        copied(image)
    return float(live.peak) / SIDE_PX**2


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


class _LiveValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the values of all tensors that operations return within the block, until they are freed."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: set[int] = set()
        self._now = 0
        self.peak = 0
        self._add(image)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._add(value)
        self.peak = max(self.peak, self._now)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, values = storage._cdata, storage.nbytes() // tensor.element_size()
        if key in self._known:  # a view, or the result of an operation in place
            return
        self._known.add(key)
        self._now += values
        weakref.finalize(storage, self._free, key, values)

    def _free(self, key: int, values: int) -> None:
        self._known.discard(key)
        self._now -= values
