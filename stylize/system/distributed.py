"""Training in several processes, as torchrun starts them: ranks, exchange, averages.

In a training of one process every function returns its argument. Functions that exchange values must be called by all
processes, in the same order.
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

from stylize.errors import StylizeError
from stylize.system.devices import choose_device

T = TypeVar("T")

BACKENDS = "cpu:gloo,cuda:nccl"
# A process that waits longer for the others fails; the first may be reading a large folder of photographs.
PATIENCE = timedelta(minutes=30)


@contextmanager
def joined(device_name: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, for the block; yields the device of this process.

    It may be nested: a process that has joined already stays joined.

    Args:
        device_name: A name that `choose_device` takes; of several CUDA devices every process of a machine takes its
            own.

    Raises:
        StylizeError: torch does not find the device, or there are fewer GPUs than processes on this machine.
    """
    device = choose_device(device_name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = _own_gpu()
        torch.cuda.set_device(device)
    if _several():
        yield device
        return
    # Defaults of its functions are the group that exists at its first import, which is in the first step of torch's
    # optimizers. The group's threads would then live to the interpreter's end, where they can abort the process.
    importlib.import_module("torch.distributed.nn")

    # The store outlives processes that torchrun restarts: they must not find the addresses of dead ones in it.
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
        gc.collect()  # the wrapped network holds the group, too, and is part of a cycle
        dist.destroy_process_group()


def _own_gpu() -> torch.device:
    """The GPU of this process. NCCL takes one process a GPU, and fails late and darkly where two have the same.

    Raises:
        StylizeError: There are fewer GPUs than processes on this machine.
    """
    own_rank = int(os.environ["LOCAL_RANK"])
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", own_rank + 1)), torch.cuda.device_count()
    if processes > gpus:
        raise StylizeError(
            f"torchrun: got {processes} processes on this machine, must be at most the number of its GPUs, {gpus}: "
            "each process takes one"
        )
    return torch.device("cuda", own_rank)


def restarted() -> bool:
    """Whether torchrun has restarted these processes because one of them died."""
    return _attempt() > 0


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _several() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and logs."""
    return rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """The items of this process: every `count()`-th."""
    return items[rank() :: count()]


def average(x: Tensor) -> Tensor:
    """The mean of `x` over all processes, differentiable with respect to each of them."""
    averaged: Tensor = _Sum.apply(x) / count() if _several() else x
    return averaged


def average_terms(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The means of named scalars over all processes, detached, in one exchange."""
    detached = {name: term.detach() for name, term in terms.items()}
    if not _several():
        return detached
    return dict(zip(detached, average(torch.stack(list(detached.values()))).unbind(), strict=True))


def broadcast(value: T) -> T:
    """The value of the first process."""
    if not _several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if not _several():
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def gather_interleaved(items: Sequence[T]) -> list[T]:
    """The items that `share` distributed, or results for them, in their original order."""
    parts = gather(list(items))
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def wrap_ddp(network: nn.Module) -> nn.Module:
    """Wrap a network so that gradients are averaged over all processes."""
    if not _several():
        return network
    return nn.parallel.DistributedDataParallel(network)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum over all processes, too."""

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
