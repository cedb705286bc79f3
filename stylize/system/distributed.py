"""The processes of a training, as torchrun starts them: how many there are, which one this is, what they agree on.

In a training of one process every function gives back what it was given. Every function that exchanges something must
be called by all processes, in the same order.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stylize.system.devices import choose_device

T = TypeVar("T")

BACKENDS = "cpu:gloo,cuda:nccl"
# A process that waits longer for the others gives up; the first may be reading a large folder of photographs.
PATIENCE = timedelta(minutes=30)


@contextmanager
def joined(device_name: str) -> Iterator[torch.device]:
    """Within the block this process is one of those that torchrun started, if it did; gives the device of this one.

    A process that has joined already stays as it is.

    Args:
        device_name: As `choose_device` takes it; of several CUDA devices every process of a machine takes its own.

    Raises:
        StylizeError: The device is not there.
    """
    device = choose_device(device_name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if _several():
        yield device
        return
    # Its functions' defaults are the group that is there when it is first imported, which torch's optimizers do in
    # their first step: the group's threads would last to the interpreter's end, where they can abort the process.
    importlib.import_module("torch.distributed.nn")

    # The store outlives the processes that torchrun starts anew: they must not find addresses of the dead in it.
    meeting = dist.rendezvous("env://", timeout=PATIENCE)  # type: ignore[attr-defined]
    store, own_rank, world_size = next(meeting)
    dist.init_process_group(
        BACKENDS if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"attempt {_attempt()}", store),  # type: ignore[attr-defined]
        rank=own_rank,
        world_size=world_size,
        timeout=PATIENCE,
    )
    try:
        yield device
    finally:
        gc.collect()  # the network that is trained by several holds the group, too, and stands in a cycle
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun starts these processes anew, because one of them died."""
    return _attempt() > 0


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def count() -> int:
    """How many there are."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if _several() else 0


def is_first() -> bool:
    """Whether it is this one that writes and speaks."""
    return rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """The items that are this process's."""
    return items[rank() :: count()]


def average(x: Tensor) -> Tensor:
    """The mean of every process's `x`, to be differentiated like any function of all of them."""
    averaged: Tensor = _Sum.apply(x) / count() if _several() else x
    return averaged


def average_terms(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The means of scalars by name, detached, by one exchange."""
    detached = {name: term.detach() for name, term in terms.items()}
    if not _several():
        return detached
    return dict(zip(detached, average(torch.stack(list(detached.values()))).unbind(), strict=True))


def any_rank(flag: bool) -> bool:
    """Whether one of them says so."""
    return any(gather(flag)) if _several() else flag


def broadcast(value: T) -> T:
    """The first one's value."""
    if not _several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: T) -> list[T]:
    """Every process's value, in their order."""
    if not _several():
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def gather_interleaved(items: Sequence[T]) -> list[T]:
    """What `share` dealt out, or what became of it, in the order from before."""
    parts = gather(list(items))
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def wrap_ddp(network: nn.Module) -> nn.Module:
    """The network with gradients that are the means of all processes'."""
    if not _several():
        return network
    return nn.parallel.DistributedDataParallel(network)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum over all processes, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x
