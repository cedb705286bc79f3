"""Training in several processes, as torchrun starts them: ranks, exchange, averages.

In a training of one process every function returns its argument. Functions that exchange values must be called by all
processes, in the same order.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stylize.errors import StylizeError
from stylize.system.devices import choose_device

logger = logging.getLogger("stylize")

T = TypeVar("T")

BACKENDS = "cpu:gloo,cuda:nccl"
# A process that waits longer for the others fails; the first may be reading a large folder of photographs.
PATIENCE = timedelta(minutes=30)
PATIENCE_AT_THE_START = timedelta(minutes=5)
REMEDY = "start several processes with torchrun, or unset WORLD_SIZE to train in one"


@contextmanager
def joined(device_name: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, for the block; yields the device of this process.

    It may be nested: a process that has joined already stays joined.

    Args:
        device_name: A name that `choose_device` takes; of several CUDA devices every process of a machine takes its
            own.

    Raises:
        StylizeError: torch does not find the device, there are fewer GPUs than processes on this machine, the
            variables that torchrun sets are unfit, or the processes do not come together.
    """
    device = choose_device(device_name)
    if _asked_for() == 1:
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
    store, own_rank, world_size = _meet()
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


def _asked_for() -> int:
    """The number of processes that the variables of torchrun tell of; 1 without them.

    Raises:
        StylizeError: One is missing or unfit.
    """
    processes = _whole("WORLD_SIZE", 1, 10**6) if os.environ.get("WORLD_SIZE") else 1
    if processes == 1:
        return 1
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        lacks = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set"
        raise StylizeError(f"WORLD_SIZE: got {processes}, but {lacks}: {REMEDY}")
    _whole("RANK", 0, processes - 1)
    _whole("MASTER_PORT", 1, 65535)
    return processes


def _whole(name: str, least: int, most: int) -> int:
    """The whole number in an environment variable.

    Raises:
        StylizeError: It holds something else.
    """
    text = os.environ.get(name, "")
    if not re.fullmatch("[0-9]{1,9}", text.strip()) or not least <= int(text) <= most:
        raise StylizeError(f"{name}: got {text[:50]!r}, must be a whole number from {least} to {most:,}: {REMEDY}")
    return int(text)


def _meet() -> tuple[Any, int, int]:
    """Wait for all processes; returns their store, and the rank and the number of processes.

    Raises:
        StylizeError: They do not come, or not to this address.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    count = os.environ["WORLD_SIZE"]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        logger.warning("WORLD_SIZE: waiting at %s until %s processes have come", place, count)
    try:
        meeting = dist.rendezvous("env://", timeout=PATIENCE_AT_THE_START)  # type: ignore[attr-defined]
        store, own_rank, world_size = next(meeting)
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StylizeError(
            f"WORLD_SIZE: {count} processes have not come together at {place} ({reason}): {REMEDY}"
        ) from error
    store.set_timeout(PATIENCE)
    return store, own_rank, world_size


def _own_gpu() -> torch.device:
    """The GPU of this process. NCCL takes one process a GPU, and fails late and darkly where two have the same.

    Raises:
        StylizeError: There are fewer GPUs than processes on this machine.
    """
    own_rank, gpus = _whole("LOCAL_RANK", 0, 1000), torch.cuda.device_count()
    processes = _whole("LOCAL_WORLD_SIZE", own_rank + 1, 1000) if "LOCAL_WORLD_SIZE" in os.environ else own_rank + 1
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
    if not os.environ.get("WORLD_SIZE") or not os.environ.get("TORCHELASTIC_RESTART_COUNT"):
        return 0
    return _whole("TORCHELASTIC_RESTART_COUNT", 0, 10**6)


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
