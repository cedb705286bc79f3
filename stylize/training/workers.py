"""Decoding processes, each with a pipe of its own: none can block another or damage what it sends.

Results are pickled through the pipes. Nothing is in shared memory, which containers limit to 64 MB: where it is full, a
process that writes to it is killed by a bus error.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch

from stylize.errors import StylizeError

logger = logging.getLogger("stylize")

FAILURES_THAT_STOP = 3
AHEAD = 2  # items that a process may be ahead
LOOK_S = 0.2  # between two looks at a request to stop
GRACE_S = 3.0  # for the next item, after a request to stop
PATIENCE_S = 600.0  # for an item; a stalled network drive may come back
END_S = 5.0

Work = Callable[[int], Any]


def never() -> bool:
    """No request to stop."""
    return False


def loaded(
    work: Work, first: int, last: int, place: str, processes: int, stops: Callable[[], bool] = never, start: str = ""
) -> Iterator[Any]:
    """Yield the results of the items `first` to `last` − 1; begin anew at the failed item when a process fails.

    It ends early if `stops` says so and the next item has not come a few seconds later.

    Args:
        work: Turns the number of an item into its result. It is pickled where processes are spawned.
        first: Number of the first item.
        last: Number after the last item.
        place: Word for an item in messages, such as `step`.
        processes: Number of decoding processes; 0: in this one.
        stops: Whether to stop.
        start: Start method of the processes; empty: Python's default.

    Raises:
        StylizeError: Three processes died, failed or hung at the same item.
    """
    at, failures = first, 0
    while at < last:
        group = _Group(work, processes, start)
        try:
            for result in group.results(at, last, stops):
                yield result
                at, failures = at + 1, 0
            return
        except _Failed as error:
            failures += 1
            if failures == FAILURES_THAT_STOP:
                raise StylizeError(
                    f"{place} {at + 1}: decoding processes failed {failures} times in a row ({error}); "
                    "give them memory, or set content.workers to 0"
                ) from error
            logger.warning("a decoding process %s; started again at %s %d", error, place, at + 1)
        finally:
            group.end()


class _Failed(Exception):
    """A decoding process died, failed or hung; the message continues "a decoding process …"."""


class _Outcome(NamedTuple):
    """What a process sends: an item and its result, or the reason why there is none."""

    item: int
    result: Any = None
    failure: str = ""


class _Group:
    """Processes that work ahead, and a thread that receives from them.

    Args:
        work: See `loaded`.
        processes: Their number. If so many cannot be started there are fewer, or none, which is logged.
        start: See `loaded`.
    """

    def __init__(self, work: Work, processes: int, start: str = "") -> None:
        self.work = work
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []
        self._received: queue.SimpleQueue[_Outcome | int] = queue.SimpleQueue()
        self._owing: list[int] = []  # the number of items that each process still has to send
        self._thread: threading.Thread | None = None
        context = multiprocessing.get_context(start or None)
        try:
            for _ in range(processes):
                self._start(context)
        except OSError as error:  # no more processes, memory or file handles
            logger.warning(
                "content.workers: of %d decoding processes %d could be started (%s): %s",
                processes, len(self.processes), error.strerror or error,
                "they do the work of all" if self.processes else "the training process decodes",
            )  # fmt: skip

    def _start(self, context: BaseContext) -> None:
        ours, theirs = context.Pipe()
        with theirs:  # with no copy of it here, the end of the process is the end of what can be read
            process = context.Process(target=_serve, args=(theirs, self.work), daemon=True)  # type: ignore[attr-defined]
            try:
                process.start()
            except BaseException:
                ours.close()
                raise
        self.processes.append(process)
        self.pipes.append(ours)
        self._owing.append(0)

    def results(self, first: int, last: int, stops: Callable[[], bool]) -> Iterator[Any]:
        """Yield the results in order.

        Raises:
            _Failed: A process died, hangs, or failed at the item whose turn it is.
        """
        if not self.processes:
            yield from map(self.work, range(first, last))
            return
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        waiting = iter(range(first, last))
        for _ in range(AHEAD * len(self.processes)):
            self._hand_out(waiting)
        ready: dict[int, _Outcome] = {}
        for item in range(first, last):
            while item not in ready:
                outcome = self._next_received(stops)
                if outcome is None:
                    return
                ready[outcome.item] = outcome
            outcome = ready.pop(item)
            if outcome.failure:
                raise _Failed(f"failed ({outcome.failure})")
            self._hand_out(waiting)
            yield outcome.result

    def _hand_out(self, waiting: Iterator[int]) -> None:
        """Give the next item to the process with the fewest."""
        item = next(waiting, None)
        if item is None:
            return
        index = min(range(len(self.pipes)), key=lambda i: self._owing[i])
        self._owing[index] += 1
        with suppress(OSError):  # it is dead, of which the thread hears, too
            self.pipes[index].send(item)

    def _next_received(self, stops: Callable[[], bool]) -> _Outcome | None:
        """The next item from any process; None: stop."""
        start_s, asked_s = time.monotonic(), None
        while True:
            with suppress(queue.Empty):
                received = self._received.get(timeout=LOOK_S)
                if isinstance(received, int):
                    raise _Failed(self._why_dead(received))
                return received
            now_s = time.monotonic()
            if stops():
                asked_s = now_s if asked_s is None else asked_s
                if now_s - asked_s >= GRACE_S:
                    return None
            if now_s - start_s > PATIENCE_S:
                raise _Failed(f"has sent nothing for {PATIENCE_S:.0f} s")

    def _receive(self) -> None:
        """Receive until all processes have ended; of each its number tells the end."""
        alive = {pipe: index for index, pipe in enumerate(self.pipes)}
        while alive:
            for pipe in wait(list(alive)):
                index = alive[pipe]  # type: ignore[index]
                try:
                    outcome = pickle.loads(self.pipes[index].recv_bytes())
                except Exception:  # it ended, maybe while it sent
                    del alive[self.pipes[index]]
                    self._received.put(index)
                    continue
                self._owing[index] -= 1
                self._received.put(outcome)

    def _why_dead(self, index: int) -> str:
        process = self.processes[index]
        process.join(END_S)
        code = process.exitcode
        if code is None or code >= 0:
            return f"died (with status {code})"
        with suppress(ValueError):
            return f"died (killed by {signal.Signals(-code).name})"
        return f"died (killed by signal {-code})"

    def end(self) -> None:
        """End the processes, however they are, and the thread."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(END_S)
        if self._thread is not None:
            self._thread.join(END_S)
        for pipe in self.pipes:
            pipe.close()


def _serve(pipe: Connection, work: Work) -> None:
    """Work in a decoding process until the training closes its end of the pipe, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is for the training
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_encoded(pipe.recv(), work))


def _encoded(item: int, work: Work) -> bytes:
    try:
        return pickle.dumps(_Outcome(item, work(item)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        reason = " ".join(str(error).split())
        return pickle.dumps(_Outcome(item, failure=f"{type(error).__name__}: {reason}".removesuffix(": ")))
