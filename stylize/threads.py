"""Threads in which torch computes on one core, beside or in place of those of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def single_core_threads(count: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch uses no others.

    OpenMP would count those, and let the threads that compute sleep whenever they wait for each other, which is often.
    """
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
