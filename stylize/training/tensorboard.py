"""TensorBoard's event files, safe against a full disk, a killed process and a clock that is set back.

torch's `SummaryWriter` writes in a thread that dies when the disk is full, leaves partial records, and names its files
by the clock, which determines the order in which TensorBoard reads them.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch import Tensor
from torch.utils.tensorboard import summary

from stylize.system.files import RecordFile, write_atomically

PREFIX = "events.out.tfevents."
VERSION = "brain.Event:2"
POSITIVE_BINS = [1e-12 * 1.1**i for i in range(775)]
BINS = [-edge for edge in reversed(POSITIVE_BINS)] + [0.0] + POSITIVE_BINS


class EventFile:
    """The event file of one process of a run; its name sorts after those of earlier processes.

    Args:
        run_dir: The run folder; events after `first_step` in its earlier files are dropped.
        first_step: Number of steps done before.
    """

    def __init__(self, run_dir: Path, first_step: int = 0) -> None:
        earlier = sorted(run_dir.glob(f"{PREFIX}*"))
        for path in earlier:
            drop_events_after(path, first_step)
        number = max((_number(path) for path in earlier), default=-1) + 1
        self._file = RecordFile(run_dir / f"{PREFIX}{number:010d}.stylize")
        self._add(Event(wall_time=time.time(), file_version=VERSION))
        if earlier:  # a running TensorBoard has read the dropped events
            self._add(
                Event(wall_time=time.time(), step=first_step + 1, session_log=SessionLog(status=SessionLog.START))
            )

    def scalar(self, name: str, value: float, step: int) -> None:
        self.add(summary.scalar(name, value), step)  # type: ignore[no-untyped-call]

    def image(self, name: str, image: Tensor, step: int) -> None:
        self.add(summary.image(name, image, dataformats="CHW"), step)  # type: ignore[no-untyped-call]

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        self.add(summary.histogram(name, values.numpy(), BINS), step)  # type: ignore[no-untyped-call]

    def text(self, name: str, text: str, step: int) -> None:
        self.add(summary.text(name, text), step)  # type: ignore[no-untyped-call]

    def settings(self, values: Mapping[str, Any]) -> None:
        """Write the settings for the HParams tab, which shows them with the ends of the curves.

        The description of all runs that torch makes, too, is left out: then TensorBoard compares the runs itself,
        and shows first the settings in which they differ.
        """
        _, *records = summary.hparams(dict(values), {})  # type: ignore[no-untyped-call]
        for record in records:
            self.add(record, 0)

    def add(self, values: Summary, step: int) -> None:
        """Append a summary; `flush` writes it."""
        self._add(Event(wall_time=time.time(), step=step, summary=values))

    def flush(self) -> None:
        """Write the pending events.

        Raises:
            OSError: They cannot be written, and stay pending.
        """
        self._file.flush()

    def sync(self) -> None:
        """Flush, and wait until the events are on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file; pending events are lost."""
        self._file.close()

    def _add(self, event: Event) -> None:
        self._file.add(framed(event.SerializeToString()))


def framed(data: bytes) -> bytes:
    """Return a record framed for an event file: length, its checksum, data, their checksum."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))]
    )  # fmt: skip


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a file up to the first truncated or damaged record."""
    content = path.read_bytes()
    place = 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        data = content[place + 12 : place + 12 + length]
        if content[place : place + 16 + length] != framed(data):
            return
        yield Event.FromString(data)
        place += 16 + length


def drop_events_after(path: Path, step: int) -> None:
    """Rewrite an event file without the events of later steps and without a truncated record."""
    kept = b"".join(framed(event.SerializeToString()) for event in read_events(path) if event.step <= step)
    if len(kept) != path.stat().st_size:
        write_atomically(path, kept)


def _number(path: Path) -> int:
    digits = path.name.removeprefix(PREFIX).split(".")[0]
    return int(digits) if digits.isdecimal() else -1
