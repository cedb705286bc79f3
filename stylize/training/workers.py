"""Decoding processes, and the order of their items when one of them is killed."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader

from stylize.errors import StylizeError

logger = logging.getLogger("stylize")

DEATHS_THAT_STOP = 3
# How torch's errors begin when a process died: with pinned memory another thread receives the items, and dies of it.
SIGNS_OF_DEATH = ("DataLoader worker", "Pin memory thread exited")


def options_of(workers: int) -> dict[str, Any]:
    """Return arguments for a `DataLoader` that decodes in that many processes; 0: in this one."""
    return {
        "num_workers": workers,
        "multiprocessing_context": _context_of_workers() if workers else None,
        "worker_init_fn": _leave_ctrl_c_to_the_training,
        "generator": torch.Generator(),  # otherwise its seed is drawn from torch's generator, and a resumed run differs
    }


def loaded(loader_from: Callable[[int], DataLoader[Any]], first: int, last: int, place: str) -> Iterator[Any]:
    """Yield the items `first` to `last` − 1; restart the loader at the failed item when a decoding process dies.

    Args:
        loader_from: Returns a loader that starts at the item with this number.
        first: Number of the first item.
        last: Number after the last item.
        place: Word for an item in messages, such as `step`.

    Raises:
        StylizeError: Three processes died at the same item.
    """
    at, deaths = first, 0
    while at < last:
        try:
            for item in _or_worker_died(_started(loader_from(at))):
                yield item
                at, deaths = at + 1, 0
        except _WorkerDied as error:
            deaths += 1
            if deaths == DEATHS_THAT_STOP:
                raise StylizeError(
                    f"{place} {at + 1}: decoding processes died {deaths} times in a row ({error}); "
                    "give them memory, or set content.workers to 0"
                ) from error
            logger.warning("a decoding process died (%s); started again at %s %d", error, place, at + 1)


class _WorkerDied(Exception):
    """A decoding process was killed."""


def _or_worker_died(items: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if not any(sign in str(error) for sign in SIGNS_OF_DEATH):
                raise
            raise _WorkerDied(str(error).splitlines()[0]) from error
        except (ConnectionError, EOFError) as error:  # it died while it sent an item
            raise _WorkerDied(f"DataLoader worker: {error!r}") from error
        yield item


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    with _no_interruption_by_dead_workers():
        return iter(loader)


def _leave_ctrl_c_to_the_training(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Flag:
    """The part of `multiprocessing.Event` that `DataLoader` uses, without its lock.

    A worker takes that lock once per batch; if it is killed while it holds the lock, the training blocks forever.
    """

    def __init__(self) -> None:
        self.raised = multiprocessing.RawValue("b", 0)

    def set(self) -> None:
        self.raised.value = 1

    def is_set(self) -> bool:
        return bool(self.raised.value)


def _context_of_workers() -> BaseContext:
    context = copy.copy(multiprocessing.get_context())
    context.Event = _Flag  # type: ignore[assignment,method-assign]
    return context


@contextmanager
def _no_interruption_by_dead_workers() -> Iterator[None]:
    """Keep torch from raising an error in the middle of a step when a worker dies.

    Its SIGCHLD handler would interrupt the step; without it the error is raised where the next batch is requested.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)
