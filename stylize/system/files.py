"""Files that are whole or not there at all, files that grow by whole records, and folders with one owner."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from stylize.errors import StylizeError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_NAME = ".lock"
OF_A_RUN = "another process is training there; wait for its end, or choose another --output"
TEMPORARY_NAME = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # as tempfile makes them
WAITING_BYTES = 64 * 2**20


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its place, then rename: a reader never sees half of it.

    Raises:
        StylizeError: The folder does not exist or cannot be written to.
    """
    with written_atomically(path) as file:
        file.write(content)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write within the block; where that ends well, it is brought to the disk and gets its name.

    Raises:
        StylizeError: The folder does not exist or cannot be written to, or there was an `OSError` within the block.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise StylizeError(f"{path}: cannot be written ({error.strerror})") from error
    temporary = Path(name)
    held = os.dup(handle)  # until it has its name
    with suppress(OSError):  # a file system without locks
        _lock(held)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StylizeError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        os.close(held)
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder which nobody else writes to."""
    for path in folder.rglob(".*.part"):
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder that others may write to: those nobody holds."""
    for path in folder.glob(".*.part"):
        if not TEMPORARY_NAME.fullmatch(path.name):
            continue
        with suppress(OSError):  # held, or gone by itself
            with path.open("r+b") as file:
                _lock(file.fileno())
            path.unlink()


def _lock(handle: int) -> None:
    """Hold a file as long as it is open; Windows keeps open files from being removed without that.

    Raises:
        OSError: Another process holds it.
    """
    if sys.platform != "win32":
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Let a rename outlast a power cut; Windows neither needs nor offers it."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class RecordFile:
    """A file that grows by whole records.

    What cannot be written (the disk is full) leaves no half record: it is kept, and written with what comes later.
    Beyond 64 MiB the oldest of it is given up.

    Args:
        path: The file; it is created, or appended to.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0

    def add(self, record: bytes) -> None:
        """Take a record; `flush` writes it."""
        self._waiting.append(record)
        self._waiting_bytes += len(record)
        while self._waiting_bytes > WAITING_BYTES and len(self._waiting) > 1:
            self._waiting_bytes -= len(self._waiting.popleft())

    def flush(self) -> None:
        """Write all records that wait.

        Raises:
            OSError: They cannot be written; the file is as before, and they wait.
        """
        if not self._waiting:
            return
        whole = os.fstat(self._handle).st_size
        rest = memoryview(b"".join(self._waiting))
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            self._waiting.clear()  # in here: what a ctrl-c hits right now may be lost, but must not come twice
            self._waiting_bytes = 0
        except BaseException:
            os.ftruncate(self._handle, whole)
            raise

    def sync(self) -> None:
        """Flush, and wait until it is on the disk."""
        self.flush()
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; what still waits is lost."""
        os.close(self._handle)


class FolderLock:
    """Holds a folder for this process, until it is left or the process ends, however it ends.

    The kernel keeps the lock, not the file `.lock`, which stays: there is no stale lock. Processes that this one
    forks do not hold it. It is advisory: only a second `FolderLock` is kept out.

    Args:
        folder: The folder.
        remedy: For whom it keeps out: what the other process does, and what to do about it.

    Raises:
        StylizeError: Another process holds the folder.
    """

    def __init__(self, folder: Path, remedy: str = OF_A_RUN) -> None:
        try:
            self._handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StylizeError(f"{folder}: cannot be written to ({error.strerror})") from error
        try:
            if sys.platform == "win32":
                msvcrt.locking(self._handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(self._handle)
            raise StylizeError(f"{folder}: in use: {remedy}") from error
        except OSError:
            pass  # a file system without locks: better to train without than not at all

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._handle)
