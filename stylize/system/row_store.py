"""Arrays that may be too large for memory, read and written by rows: in memory, or in a private temporary file.

A file takes no room in memory: where the file system allows it, reads and writes bypass the system's cache, which is
also faster than to fault in the cache's pages. Threads write rows behind and read rows ahead while the process
computes. The file has no name, so it is gone with the process, however that ends.

Where a system has no files without a name (Windows), the file is removed when it is closed, which the system does at
the end of the process.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stylize.errors import StylizeError
from stylize.system.devices import CPU
from stylize.system.scratch import SCRATCH, allocate, map_pages

ALIGNMENT_BYTES = 4096  # of offsets, lengths and addresses that bypass the system's cache
DIRECT = getattr(os, "O_DIRECT", 0)
WITHOUT_NAME = getattr(os, "O_TMPFILE", 0)


class RowStore:
    """An array `(H, …)` of any type, written and read by rows; rows never written are undefined.

    Args:
        shape: `(H, …)`.
        dtype: Type of its values.
        place: The folder of its file, or the device in whose memory it is kept; None: the CPU.
        direct: Bypass the system's cache, if the file system can; rows are padded then. Otherwise the file is the plain
            array, and others can read it by `file_name`.

    Raises:
        StylizeError: The folder does not exist, cannot be written to, or has too little room.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        place: Path | torch.device | None = None,
        *,
        direct: bool = True,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._values: Tensor | None = None
        self._file: _RowFile | None = None
        if isinstance(place, Path):
            self._file = _RowFile(shape[0], self.row_bytes, place, direct)
        else:
            on_cpu = place is None or place == CPU
            self._values = allocate(shape, dtype) if on_cpu else torch.empty(shape, dtype=dtype, device=place)

    @classmethod
    def holding(cls, values: Tensor) -> RowStore:
        """An array in memory with these values, `(H, …)` and contiguous, without a copy."""
        store = cls((0, *values.shape[1:]), values.dtype)
        store.shape, store._values = tuple(values.shape), values
        return store

    @property
    def in_memory(self) -> bool:
        """Whether the array is in memory."""
        return self._file is None

    @property
    def file_name(self) -> str:
        """A name by which this process can open the file, with all rows written; it must not be `direct`."""
        assert self._file is not None
        assert not self._file.direct
        self._file.finish()
        return self._file.name

    def read(self, first: int, last: int) -> Tensor:
        """The rows `first` to `last` − 1: of an array in memory a view, of a file a copy."""
        if self._values is not None:
            return self._values[first:last]
        assert self._file is not None
        rows = SCRATCH.take((last - first, *self.shape[1:]), self.dtype)
        self._file.read(first, self._as_bytes(rows))
        return rows

    def write(self, first: int, rows: Tensor) -> None:
        """Write the rows from `first` on: `(rows, …)`, of any layout.

        Raises:
            StylizeError: Earlier rows could not be written.
        """
        if self._values is not None:
            self._values[first : first + len(rows)] = rows
            return
        assert self._file is not None
        self._file.write(first, self._as_bytes(rows.to(CPU, self.dtype).contiguous()))

    def finish(self) -> None:
        """Wait until all rows are written.

        Raises:
            StylizeError: They could not be written.
        """
        if self._file is not None:
            self._file.finish()

    def close(self) -> None:
        """Free the memory or the file; the array cannot be used any more."""
        self._values = None
        if self._file is not None:
            self._file.close()

    def _as_bytes(self, rows: Tensor) -> Tensor:
        """Return contiguous rows as bytes `(rows, bytes)`, a view."""
        return rows.view(torch.uint8).view(len(rows), self.row_bytes)

    def __enter__(self) -> RowStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Range(NamedTuple):
    """Rows `first` to `last` − 1 on their way to or from the disk."""

    first: int
    last: int
    done: Future[Tensor]


class _RowFile:
    def __init__(self, height: int, row_bytes: int, folder: Path, direct: bool) -> None:
        self.folder = folder
        self._named = None if WITHOUT_NAME else tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        try:
            self.handle, self.direct = self._open(direct and bool(DIRECT) and self._named is None)
            self.stride_bytes = _padded(row_bytes) if self.direct else row_bytes
            self._reserve(height * self.stride_bytes)
        except OSError as error:
            raise StylizeError(f"{folder}: no temporary file can be made there ({error.strerror})") from error
        self.height = height
        self.row_bytes = row_bytes
        self._threads = ThreadPoolExecutor(2)
        self._writing: _Range | None = None
        self._ahead: _Range | None = None
        self._buffers = {name: torch.empty(0, dtype=torch.uint8) for name in ("read", "write", "ahead")}

    @property
    def name(self) -> str:
        return str(self._named.name) if self._named and sys.platform == "win32" else f"/dev/fd/{self.handle}"

    def read(self, first: int, rows: Tensor) -> None:
        """Read into `rows`, and start to read as many that follow."""
        last = first + len(rows)
        self._await_written(first, last + len(rows))
        ahead, self._ahead = self._ahead, None
        end = first
        if ahead is not None:
            values = ahead.done.result()
            low, high = max(first, ahead.first), min(last, ahead.last)
            if low < high:
                rows[low - first : high - first] = values[low - ahead.first : high - ahead.first]
                self._read_now(first, rows[: low - first])
                end = high
        self._read_now(end, rows[end - first :])
        following = min(self.height, last + len(rows))
        if last < following:
            buffer = self._buffer("ahead", following - last)
            self._ahead = _Range(last, following, self._threads.submit(self._fill, last, buffer))

    def write(self, first: int, rows: Tensor) -> None:
        """Start to write `rows`; an error is raised by the next call."""
        self.finish()
        last = first + len(rows)
        if self._ahead is not None and first < self._ahead.last and self._ahead.first < last:
            self._ahead.done.result()
            self._ahead = None
        buffer = self._buffer("write", len(rows))
        buffer[:, : self.row_bytes] = rows
        self._writing = _Range(first, last, self._threads.submit(self._drain, first, buffer))

    def finish(self) -> None:
        """Wait until all rows are written."""
        self._await_written(0, self.height)

    def _await_written(self, first: int, last: int) -> None:
        """Wait for the rows being written, if they are among these."""
        writing = self._writing
        if writing is None or writing.last <= first or last <= writing.first:
            return
        self._writing = None
        try:
            writing.done.result()
        except OSError as error:
            raise StylizeError(f"{self.folder}: a temporary file cannot be written ({error.strerror})") from error

    def _read_now(self, first: int, rows: Tensor) -> None:
        if len(rows):
            rows.copy_(self._fill(first, self._buffer("read", len(rows))))

    def _fill(self, first: int, buffer: Tensor) -> Tensor:
        done, wanted = 0, buffer.numpy().data.cast("B")
        while done < len(wanted):
            got = self._read_into(first * self.stride_bytes + done, wanted[done:])
            if not got:
                raise StylizeError(f"{self.folder}: a temporary file there has lost its end")
            done += got
        return buffer[:, : self.row_bytes]

    def _drain(self, first: int, buffer: Tensor) -> Tensor:
        done, wanted = 0, buffer.numpy().data.cast("B")
        while done < len(wanted):
            done += self._write_from(first * self.stride_bytes + done, wanted[done:])
        return buffer

    def close(self) -> None:
        if hasattr(self, "_threads"):
            self._threads.shutdown()  # a late write would go to whichever file has the handle next
        if self._named is not None:
            self._named.close()
        elif self.handle >= 0:
            os.close(self.handle)
        self.handle = -1

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.close()

    def _open(self, direct: bool) -> tuple[int, bool]:
        """A handle, and whether it bypasses the system's cache."""
        if self._named is not None:
            return self._named.fileno(), False
        if direct:
            try:
                return os.open(self.folder, WITHOUT_NAME | os.O_RDWR | DIRECT, 0o600), True
            except OSError:
                pass  # the file system cannot, such as tmpfs
        return os.open(self.folder, WITHOUT_NAME | os.O_RDWR, 0o600), False

    def _reserve(self, size_bytes: int) -> None:
        """Reserve the space: a full disk must show now, not in the middle of the work."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.handle, 0, size_bytes)

    def _buffer(self, name: str, rows: int) -> Tensor:
        """A buffer `(rows, stride)` at an aligned address; it is kept, since its page faults take long."""
        needed = rows * self.stride_bytes
        if self._buffers[name].numel() < needed:
            self._buffers[name] = torch.frombuffer(map_pages(needed), dtype=torch.uint8)
        return self._buffers[name][:needed].view(rows, self.stride_bytes)

    def _read_into(self, offset: int, wanted: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.handle, [wanted], offset)
        os.lseek(self.handle, offset, os.SEEK_SET)
        got = os.read(self.handle, len(wanted))
        wanted[: len(got)] = got
        return len(got)

    def _write_from(self, offset: int, wanted: memoryview) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self.handle, wanted, offset)
        os.lseek(self.handle, offset, os.SEEK_SET)
        return os.write(self.handle, wanted)


def _padded(row_bytes: int) -> int:
    return -(-row_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
