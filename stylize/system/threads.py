"""Threads beside torch's own: single-core workers, and helpers that run compiled functions in parallel.

torch is imported only when needed: how its threads wait must be chosen before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from queue import SimpleQueue
from threading import Barrier, Lock, Thread
from typing import NamedTuple

# How often a waiting thread of GNU's OpenMP polls before it sleeps. The default takes some milliseconds, in which it
# occupies a core that the threads here need.
SHORT_SPINS = {"GOMP_SPINCOUNT": "1000"}


def let_waiting_threads_sleep() -> None:
    """Let torch's idle threads sleep soon. Call it before torch is imported.

    A variable that the user has set stays. Where OpenMP is not GNU's, nothing changes.
    """
    for name, value in SHORT_SPINS.items():
        os.environ.setdefault(name, value)


def single_core_threads(count: int) -> ThreadPoolExecutor:
    """An executor of `count` threads, in each of which torch uses one core.

    OpenMP would count more threads than cores, and let those that compute sleep whenever they wait for each other.
    """
    import torch

    threads = torch.get_num_threads()
    executor, all_there = ThreadPoolExecutor(count), Barrier(count)

    def use_one() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread adopts the number when it is first asked for
        all_there.wait()

    for future in [executor.submit(use_one) for _ in range(count)]:
        future.result()
    torch.set_num_threads(threads)  # the number for new threads is the one set last, in any thread
    return executor


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work` with 0 to `count` − 1, all at the same time; pays for functions that release the GIL.

    It may be nested, and called from several threads. When all calls have ended, the first error is raised.
    """
    if count == 1:
        work(0)
        return
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    helpers = _helpers(os.getpid())  # a process that was forked has none of the threads
    helpers.start([_Task(work, number, ended) for number in range(1, count)])
    try:
        work(0)
    finally:
        errors = [ended.get() for _ in range(1, count)]
        helpers.release(count - 1)
    for error in errors:
        if error is not None:
            raise error


class _Task(NamedTuple):
    work: Callable[[int], None]
    number: int
    ended: SimpleQueue[BaseException | None]  # receives the error, or None


class _Helpers:
    """Threads that wait for tasks: as many as there ever were tasks at a time.

    A task never waits for a thread that is busy: it may be the one that started it, and waits for its end.
    An executor's future takes five times as long as the two queues here, which is as long as many a task.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self._threads = 0
        self._unfinished = 0
        self._lock = Lock()

    def start(self, tasks: list[_Task]) -> None:
        """Run tasks at once, each in a thread of its own."""
        with self._lock:
            for _ in range(self._threads, self._unfinished + len(tasks)):
                Thread(target=_serve, args=(self._tasks,), daemon=True).start()
                self._threads += 1
            self._unfinished += len(tasks)
        for task in tasks:
            self._tasks.put(task)

    def release(self, count: int) -> None:
        """Take note that so many tasks have ended."""
        with self._lock:
            self._unfinished -= count


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
