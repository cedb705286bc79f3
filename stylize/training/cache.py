"""A cache of decoded and resized photographs in one memory-mapped file.

The file holds the pixels of every photograph, uint8 `(H, W, 3)`, one after the other; a JSON index with the offset of
each and the size and time of its file; the length of the index; and eight bytes that identify the format.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stylize.errors import StylizeError
from stylize.pictures.reading import DECODER, read_header, read_rgb, size_to_train_on
from stylize.system import distributed
from stylize.system.files import FolderLock, written_atomically
from stylize.training.workers import loaded

logger = logging.getLogger("stylize")

KIND = b"stylize1"
SUFFIX = ".cache"
LOCK_NAME = ".cache.lock"  # not the name of a run's lock: the folder may be the run's
MEASURED_HEADERS = 2000
SIGN_OF_LIFE_S = 60.0
GIB = 2**30
COMMON_RATIO = 1.5  # of the sides of photographs, at most


class _Entry(NamedTuple):
    """Offset and shape of a photograph's pixels, and size and time of its file when it was decoded."""

    file_bytes: int
    changed_ns: int
    offset: int = 0
    height: int = 0
    width: int = 0
    unreadable: str = ""

    @property
    def bytes(self) -> int:
        return self.height * self.width * 3


class _Contents(NamedTuple):
    """The contents of an open cache file."""

    pixels: NDArray[np.uint8]
    entries: dict[str, _Entry]


class PhotographCache:
    """Photographs as `read_rgb` returns them, decoded only once; any process can open the cache.

    Args:
        folder: The folder of the cache file, which is named after the photographs' folder and the shorter side.
        files: All photographs that may be read.
        shorter_side_px: Shorter side of the decoded photographs.
        limited: Whether the files were drawn from those of their folder: another draw has another cache.
    """

    def __init__(self, folder: Path, files: Sequence[Path], shorter_side_px: int, limited: bool = False) -> None:
        self.files = sorted(set(files))
        self.shorter_side_px = shorter_side_px
        self.made = f"to {shorter_side_px} px by {DECODER}"
        common = Path(os.path.commonpath([file.parent for file in self.files]))
        draw = hashlib.sha256(os.fsencode("\0".join(map(str, self.files)))).hexdigest() if limited else None
        key = hashlib.sha256(os.fsencode(f"{common}\0{draw}")).hexdigest()[:8]
        self.path = folder / f"{common.name or 'photographs'}-{shorter_side_px}px-{key}{SUFFIX}"
        self._contents: _Contents | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_contents": None}  # a memory map cannot be sent to another process

    def read(self, file: Path) -> NDArray[np.uint8]:
        """Return a photograph's pixels, `(H, W, 3)`, read-only.

        Raises:
            StylizeError: There is no cache, or `read_rgb` failed when it was built.
        """
        contents = self._open()
        entry = contents.entries.get(str(file))
        if entry is None:
            raise StylizeError(f"{file}: not in {self.path}, which another run has built anew")
        if entry.unreadable:
            raise StylizeError(f"{file}: {entry.unreadable}")
        pixels = contents.pixels[entry.offset : entry.offset + entry.bytes]
        return pixels.reshape(entry.height, entry.width, 3)

    def expected_bytes(self) -> int:
        """Return the size of the cache, or about what it will be, without reading the photographs."""
        if self.path.is_file():
            return self.path.stat().st_size
        return round(3 * self.shorter_side_px**2 * COMMON_RATIO * len(self.files))

    def prepare(self, workers: int) -> None:
        """Build the cache if it is missing or stale; the first process builds, the others wait.

        Args:
            workers: Number of decoding processes; 0: decode in this one.

        Raises:
            StylizeError: The cache cannot be written, or the disk is too small.
        """
        if not distributed.is_first():
            while not distributed.broadcast(False):
                pass
        else:
            last_s = time.monotonic()
            for _ in self._built(workers):
                if time.monotonic() > last_s + SIGN_OF_LIFE_S:  # the others would time out
                    distributed.broadcast(False)
                    last_s = time.monotonic()
            distributed.broadcast(True)
        self._open()

    def _built(self, workers: int) -> Iterator[None]:
        """Build the cache if needed; yields after every photograph."""
        states = {str(file): _state(file) for file in self.files}
        if self.path.exists():
            reason = self._why_stale(states)
            if not reason:
                logger.info("content.cache: %d photographs in %s", len(states), self.path)
                return
            logger.info("content.cache: %s is stale (%s): built anew", self.path, reason)
        remedy = "another process is building a cache there; wait for its end, or choose another content.cache"
        folder = self.path.parent
        if folder.is_symlink() and not folder.is_dir():
            raise StylizeError(
                f"content.cache: {folder}: is a link to {folder.readlink()}, must lead to a folder; "
                "make that, or remove the link"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FolderLock(self.path.parent, remedy, LOCK_NAME):
                self._make_room()
                with written_atomically(self.path) as file:
                    yield from self._write(file, states, workers)
        except OSError as error:
            raise StylizeError(f"content.cache: {self.path}: cannot be written ({error.strerror})") from error

    def _make_room(self) -> None:
        """Remove the stale cache and leftovers; log the space that a new one needs, and check that it is available."""
        self.path.unlink(missing_ok=True)
        for leftover in self.path.parent.glob(f".*{SUFFIX}.*.part"):
            leftover.unlink(missing_ok=True)
        needed_gib = estimated_bytes(self.files, self.shorter_side_px) / GIB
        free_gib = shutil.disk_usage(self.path.parent).free / GIB
        what = f"{len(self.files)} photographs, about {needed_gib:.3g} GiB"
        if needed_gib > free_gib:
            raise StylizeError(
                f"content.cache: {what}, must fit on the disk of {self.path.parent}, which has {free_gib:.3g} GiB "
                "left; make room, choose another folder, or train without (null)"
            )
        logger.info("content.cache: %s, decoded once to %s", what, self.path)

    def _write(self, file: Any, states: dict[str, tuple[int, int]], workers: int) -> Iterator[None]:
        entries: dict[str, _Entry] = {}
        offset = 0
        decoding = _Decoding(self.files, self.shorter_side_px)
        bar = tqdm(total=len(self.files), unit="photograph", disable=not sys.stderr.isatty(), dynamic_ncols=True)
        with bar:
            for path, decoded in zip(
                self.files, loaded(decoding, 0, len(self.files), "photograph", workers), strict=True
            ):
                entry = _Entry(*states[str(path)], offset)
                if isinstance(decoded, str):
                    entry = entry._replace(unreadable=decoded)
                else:
                    entry = entry._replace(height=decoded.shape[0], width=decoded.shape[1])
                    file.write(decoded)
                entries[str(path)] = entry
                offset += entry.bytes
                bar.update()
                yield
        index = json.dumps({"made": self.made, "entries": entries}).encode()
        file.write(index + len(index).to_bytes(8, "little") + KIND)

    def _why_stale(self, states: dict[str, tuple[int, int]]) -> str:
        """Return why the existing cache cannot be used, or an empty string."""
        try:
            made, contents = _read(self.path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "damaged, or of another version of stylize"
        if made != self.made:
            return f"decoded {made}, must be {self.made}"
        entries = contents.entries
        other = sum(name not in entries or entries[name][:2] != state for name, state in states.items())
        return f"{other} of {len(states)} photographs are new or changed" if other else ""

    def _open(self) -> _Contents:
        if self._contents is None:
            try:
                self._contents = _read(self.path)[1]
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise StylizeError(
                    f"content.cache: {self.path}: cannot be read ({error}); "
                    "it is built at the start of a training, whose processes must all see the same folder"
                ) from error
        return self._contents


def estimated_bytes(files: Sequence[Path], shorter_side_px: int) -> int:
    """Estimate the size of the photographs decoded to this shorter side, from about 2,000 headers."""
    measured = files[:: max(1, len(files) // MEASURED_HEADERS)]
    ratios = []
    for file in measured:
        try:
            size = read_header(file).size
        except StylizeError:
            continue  # takes no space in the cache
        width, height = size_to_train_on(size, shorter_side_px)
        ratios.append(width * height / shorter_side_px**2)
    return round(3 * shorter_side_px**2 * sum(ratios) * len(files) / len(measured))


class _Decoding:
    """Turns the number of a photograph into its pixels, or the reason why it cannot be decoded."""

    def __init__(self, files: Sequence[Path], shorter_side_px: int) -> None:
        self.files = files
        self.shorter_side_px = shorter_side_px

    def __call__(self, index: int) -> NDArray[np.uint8] | str:
        file = self.files[index]
        try:
            return np.asarray(read_rgb(file, self.shorter_side_px))
        except StylizeError as error:
            return str(error).removeprefix(f"{file}: ")


def _state(file: Path) -> tuple[int, int]:
    """Return the size in bytes and the modification time of a file; (−1, −1) if it does not exist."""
    try:
        found = file.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _read(path: Path) -> tuple[str, _Contents]:
    """Return how a cache was made, and its contents.

    Raises:
        OSError: It does not exist.
        ValueError, KeyError, TypeError, AttributeError: It is damaged.
    """
    pixels = np.asarray(np.memmap(path, np.uint8, "r"))
    end = len(pixels) - 16
    if end < 0 or pixels[end + 8 :].tobytes() != KIND:
        raise ValueError("it does not end as a cache does")
    start = end - int.from_bytes(pixels[end : end + 8].tobytes(), "little")
    index = json.loads(pixels[max(start, 0) : end].tobytes())
    entries = {name: _Entry(*entry) for name, entry in index["entries"].items()}
    if any(entry.offset < 0 or entry.offset + entry.bytes > start for entry in entries.values()):
        raise ValueError("it is shorter than its index says")
    return index["made"], _Contents(pixels, entries)
