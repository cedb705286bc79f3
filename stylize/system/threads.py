"""Threads beside those of torch: in which it computes on one core, or in which compiled functions do.

Nothing of torch is imported before it is needed: what its own threads do is chosen before it comes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from queue import SimpleQueue
from threading import Barrier, Lock, Thread
from typing import NamedTuple

# How often a waiting thread of GNU's OpenMP asks before it sleeps. Its own choice takes some milliseconds, and in these
# a core from the threads here.
SHORT_SPINS = {"GOMP_SPINCOUNT": "1000"}


def let_waiting_threads_sleep() -> None:
    """Let torch's threads sleep soon when they have nothing to do. Before torch is imported.

    Who has set the variable already is left to it. Where OpenMP is not GNU's, nothing changes.
    """
    for name, value in SHORT_SPINS.items():
        os.environ.setdefault(name, value)


def single_core_threads(count: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch uses no others.

    OpenMP would count those, and let the threads that compute sleep whenever they wait for each other, which is often.
    """
    import torch

    threads = torch.get_num_threads()
    executor, all_there = ThreadPoolExecutor(count), Barrier(count)

    def use_one() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes the number over when it is first asked for it
        all_there.wait()

    for future in [executor.submit(use_one) for _ in range(count)]:
        future.result()
    torch.set_num_threads(threads)  # torch's number for new threads is what was set last, in whichever
    return executor


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work` with 0 to `count` − 1, at the same time; for functions that leave the interpreter's lock alone."""
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    if count > 1:
        # A process that was forked has none of the threads; so the number of the process is asked for, too.
        _helpers(os.getpid()).start([_Task(work, number, ended) for number in range(1, count)])
    try:
        work(0)
    finally:
        errors = [ended.get() for _ in range(1, count)]
    for error in errors:
        if error is not None:
            raise error


class _Task(NamedTuple):
    work: Callable[[int], None]
    number: int
    ended: SimpleQueue[BaseException | None]  # takes what went wrong, or None


class _Helpers:
    """Threads that wait for tasks: as many as were ever needed at a time.

    An executor's future takes five times as long as the two queues here, which is as long as many a task.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self._count = 0
        self._lock = Lock()

    def start(self, tasks: list[_Task]) -> None:
        with self._lock:
            for _ in range(self._count, len(tasks)):
                Thread(target=_serve, args=(self._tasks,), daemon=True).start()
                self._count += 1
        for task in tasks:
            self._tasks.put(task)


def _serve(tasks: SimpleQueue[_Task]) -> None:
    while True:
        task = tasks.get()
        error: BaseException | None = None
        try:
            task.work(task.number)
        except BaseException as caught:
            error = caught
        task.ended.put(error)
        del task, error  # with all that they hold, while this waits


@lru_cache(1)
def _helpers(process: int) -> _Helpers:
    return _Helpers()
