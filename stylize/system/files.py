"""Files that are whole or absent, files that grow by whole records, and folders with one owner."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import BinaryIO

from stylize.errors import StylizeError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_NAME = ".lock"
OF_A_RUN = "another process is training there; wait for its end, or choose another --output"
NAME_BYTES = 200  # a file system has 255 in all
TEMPORARY_NAME = re.compile(r"\..+\.[a-z0-9_]{8}\.part")
WAITING_BYTES = 64 * 2**20
BINARY = getattr(os, "O_BINARY", 0)  # Windows


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its place, then rename: a reader never sees half of it.

    Raises:
        StylizeError: The folder does not exist or cannot be written to.
    """
    with written_atomically(path) as file:
        file.write(content)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write within the block; at its end the file is brought to the disk and gets its name.

    Raises:
        StylizeError: The folder does not exist or cannot be written to, or there was an `OSError` within the block.
    """
    try:
        handle, temporary = _create_temporary(path)
    except OSError as error:
        raise StylizeError(f"{path}: cannot be written ({error.strerror})") from error
    held = os.dup(handle)  # until it has its name
    with suppress(OSError):  # a file system without locks
        _lock(held)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StylizeError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        os.close(held)
        temporary.unlink(missing_ok=True)


def _create_temporary(path: Path) -> tuple[int, Path]:
    """Create a file of a new name beside `path`; returns its handle and its path.

    The system applies the process's umask. `tempfile` makes files private; to undo that the umask would have to be
    asked for, which is possible only by changing it, for all threads.
    """
    while True:
        temporary = path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(4)}.part")
        with suppress(FileExistsError):
            return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY, 0o666), temporary


def _shortened(name: str) -> str:
    """The beginning of a name, whole characters, that leaves room for what a temporary name adds."""
    return os.fsencode(name)[:NAME_BYTES].decode("utf-8", "ignore")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder that no other process writes to."""
    for path in folder.rglob(".*.part"):
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder that others may write to: those without a lock."""
    for path in folder.glob(".*.part"):
        if not TEMPORARY_NAME.fullmatch(path.name):
            continue
        with suppress(OSError):  # held, or gone by itself
            with path.open("r+b") as file:
                _lock(file.fileno())
            path.unlink()


def _lock(handle: int) -> None:
    """Lock a file as long as it is open. On Windows open files cannot be removed anyway.

    Raises:
        OSError: Another process holds it.
    """
    if sys.platform != "win32":
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows neither needs nor offers it."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RecordFile:
    """A file that grows by whole records.

    A record that cannot be written (the disk is full) leaves no half record: it waits, and is written with the next.
    Beyond 64 MiB the oldest of those that wait are dropped.

    Args:
        path: The file; it is created, or appended to.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY, 0o666)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0

    def add(self, record: bytes) -> None:
        """Append a record; `flush` writes it."""
        self._waiting.append(record)
        self._waiting_bytes += len(record)
        while self._waiting_bytes > WAITING_BYTES and len(self._waiting) > 1:
            self._waiting_bytes -= len(self._waiting.popleft())

    def flush(self) -> None:
        """Write all waiting records.

        Raises:
            OSError: They cannot be written; the file stays as it was, and they wait.
        """
        if not self._waiting:
            return
        whole = os.fstat(self._handle).st_size
        rest = memoryview(b"".join(self._waiting))
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            self._waiting.clear()  # in here: on a ctrl-c right now a record may be lost, but must not come twice
            self._waiting_bytes = 0
        except BaseException:
            os.ftruncate(self._handle, whole)
            raise

    def sync(self) -> None:
        """Flush, and wait until it is on the disk."""
        self.flush()
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; records that still wait are lost."""
        os.close(self._handle)


class FolderLock:
    """Holds a folder for one owner, until the block is left or the process ends, however it ends.

    The kernel keeps the lock, not the lock file, which stays: there is no stale lock. Forked processes do not hold it:
    decoding processes may outlive their parent. Such a lock is the process's, so this module keeps out other owners in
    the same process by itself. It is advisory: only another `FolderLock` is kept out.

    Args:
        folder: The folder.
        remedy: The end of the message: what the other owner does, and what to do about it.
        name: The lock file. Locks of different names are independent of each other.

    Raises:
        StylizeError: There is another owner, in this process or in another.
    """

    def __init__(self, folder: Path, remedy: str = OF_A_RUN, name: str = LOCK_NAME) -> None:
        with _locks:
            try:
                self._handle, self._file = _open_once(folder / name)
            except BlockingIOError as error:
                raise StylizeError(f"{folder}: in use: {remedy}") from error
            except OSError as error:
                raise StylizeError(f"{folder}: cannot be written to ({error.strerror})") from error
            try:
                _lock_for_process(self._handle)
            except (BlockingIOError, PermissionError) as error:
                self._release()
                raise StylizeError(f"{folder}: in use: {remedy}") from error
            except OSError:
                pass  # a file system without locks: better to train without than not at all

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _locks:
            self._release()

    def _release(self) -> None:
        _owners.pop(self._file, None)
        os.close(self._handle)


_locks = Lock()
_owners: dict[tuple[int, int], int] = {}  # the process that has a lock file open, by the file's device and inode


def _open_once(path: Path) -> tuple[int, tuple[int, int]]:
    """Open a lock file, and identify it.

    POSIX drops all locks of a process on a file when the process closes any of its handles: there must be one only.

    Raises:
        BlockingIOError: It is open in this process.
        OSError: It cannot be opened.
    """
    with suppress(FileNotFoundError):
        known = path.stat()
        if _owners.get((known.st_dev, known.st_ino)) == os.getpid():  # else of the parent that forked this process
            raise BlockingIOError(f"{path} is locked in this process")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    opened = os.fstat(handle)
    file = opened.st_dev, opened.st_ino
    _owners[file] = os.getpid()
    return handle, file


def _lock_for_process(handle: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
