"""Threads beside those of torch: in which it computes on one core, or in which compiled functions do.

Nothing of torch is imported before it is needed: what its own threads do is chosen before it comes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from threading import Barrier

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
    others = [_pool(count - 1, os.getpid()).submit(work, number) for number in range(1, count)] if count > 1 else []
    try:
        work(0)
    finally:
        wait(others)
    for other in others:
        other.result()


@lru_cache(1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    # A process that was forked has none of the threads; so the number of the process is asked for, too.
    return ThreadPoolExecutor(threads)
