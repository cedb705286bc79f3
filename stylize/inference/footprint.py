"""How much memory a network needs, derived from the network itself."""

from __future__ import annotations

import copy
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SIDE_PX = 256  # large enough that borders and small maps count little


class Footprint(NamedTuple):
    """What a network holds for a pixel of the image.

    Attributes:
        bytes_per_px: Bytes of all its maps that are in memory at once, at most.
        values_per_px: Values of the largest map.
    """

    bytes_per_px: float
    values_per_px: float


@torch.no_grad()
def footprint(network: nn.Module) -> Footprint:
    """Return what the maps of a network take.

    The network runs on the meta device, where tensors have shapes but no memory. Counted is what plain PyTorch holds at
    once, in the types that it has: the image, all maps that are alive, and the operation's result.

    Args:
        network: The network, with weights and maps in the types in which it paints.

    >>> footprint(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1)))
    Footprint(bytes_per_px=48.0, values_per_px=8.0)
    """
    # A copy: the network may be painting in other threads.
    copied = copy.deepcopy(network, {id(t): _on_meta(t) for t in (*network.parameters(), *network.buffers())})
    image = torch.empty(1, 3, SIDE_PX, SIDE_PX, device="meta").contiguous(memory_format=torch.channels_last)
    with _LiveMaps(image) as live:
        copied(image)
    return Footprint(live.peak_bytes / SIDE_PX**2, live.largest / SIDE_PX**2)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


class _LiveMaps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations return within the block, until they are freed."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: set[int] = set()
        self._now = 0
        self.peak_bytes = 0
        self.largest = 0
        self._add(image)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._add(value)
        self.peak_bytes = max(self.peak_bytes, self._now)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size_bytes = storage._cdata, storage.nbytes()
        if key in self._known:  # a view, or the result of an operation in place
            return
        self._known.add(key)
        self._now += size_bytes
        self.largest = max(self.largest, tensor.numel())
        weakref.finalize(storage, self._free, key, size_bytes)

    def _free(self, key: int, size_bytes: int) -> None:
        self._known.discard(key)
        self._now -= size_bytes
