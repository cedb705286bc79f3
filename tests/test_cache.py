"""A cache of decoded photographs changes nothing but the time."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_runs import picture, write_config
from PIL import Image

from stylize.build import build_run
from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.system.files import FolderLock
from stylize.training import cache as cache_module
from stylize.training.cache import DECODER, PhotographCache, estimated_bytes
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import ContentConfig

CPU = torch.device("cpu")
SIDE_PX = 40


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Photographs of many sizes and kinds, among them a large one that is turned, and one that cannot be read."""
    folder = tmp_path / "photos"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(folder / "a.jpg", 700, 500, seed=1, exif=exif)
    picture(folder / "b.png", 40, 40, seed=2)
    picture(folder / "c.webp", 90, 61, seed=3)
    Image.open(picture(folder / "d.jpg", 333, 444, seed=4)).convert("L").save(folder / "d.jpg")
    (folder / "e.jpg").write_text("no image")
    return [*sorted(folder.iterdir()), *(picture(folder / f"f{i:02}.jpg", 48 + i, 70, seed=i) for i in range(30))]


def batches(files: list[Path], folder: Path | None, workers: int = 0, **options: Any) -> Batches:
    config = ContentConfig(path="photos", resize=SIDE_PX, crop=32, cache=folder and str(folder))
    return Batches(CropDataset(files, config, seed=3), 4, workers, **options)


def the_cache(folder: Path) -> Path:
    (found,) = folder.glob("*.cache")
    return found


def prepared(files: list[Path], folder: Path) -> Path:
    PhotographCache(folder, files, SIDE_PX).prepare(workers=0)
    return the_cache(folder)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(StylizeError) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "stylize"):
        yield caplog


@pytest.mark.parametrize(("workers", "start"), [(0, ""), (2, "fork"), (1, "spawn")])
def test_crops_from_the_cache_are_those_of_the_files_bit_for_bit(
    tmp_path: Path, files: list[Path], workers: int, start: str, told: pytest.LogCaptureFixture
) -> None:
    decoded, cached = batches(files, None), batches(files, tmp_path / "cache", workers)
    if start:
        cached.start = start
    expected = torch.stack(list(decoded.from_step(0, 20)))
    skipped = list(told.messages)
    told.clear()
    assert torch.equal(torch.stack(list(cached.from_step(0, 20))), expected)
    assert torch.equal(torch.stack(list(cached.from_step(7, 20))), expected[7:])
    assert skipped == [f"skipped: {files[4]}: not an image of a known format"]
    assert told.messages[1:] == skipped
    assert cached.unreadable == decoded.unreadable


def test_files_are_decoded_once(tmp_path: Path, files: list[Path]) -> None:
    expected = list(batches(files, tmp_path / "cache").from_step(0, 5))
    for file in files:
        state = file.stat()
        file.write_bytes(bytes(state.st_size))
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert torch.equal(torch.stack(list(batches(files, tmp_path / "cache").from_step(0, 5))), torch.stack(expected))


def test_the_room_it_takes_is_told_before_and_where_it_is_afterwards(
    tmp_path: Path, files: list[Path], told: pytest.LogCaptureFixture
) -> None:
    path = prepared(files, tmp_path / "cache")
    gib = estimated_bytes(files, SIDE_PX) / 2**30
    assert told.messages == [f"content.cache: 35 photographs, about {gib:.3g} GiB, decoded once to {path}"]
    told.clear()
    assert prepared(files, tmp_path / "cache") == path
    assert told.messages == [f"content.cache: 35 photographs in {path}"]


def test_the_room_is_estimated_from_headers(tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = prepared(files, tmp_path / "cache")
    assert estimated_bytes(files, SIDE_PX) == pytest.approx(path.stat().st_size, rel=0.1)
    several = [files[5]] * 1000
    monkeypatch.setattr(cache_module, "MEASURED_HEADERS", 10)
    assert estimated_bytes(several, SIDE_PX) == 1000 * estimated_bytes(several[:1], SIDE_PX)


def test_a_disk_without_the_room_is_refused_before_anything_is_decoded(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**10, 2**10))
    monkeypatch.setattr(cache_module, "read_rgb", None)
    gib = estimated_bytes(files, SIDE_PX) / 2**30
    assert refusal(lambda: prepared(files, tmp_path / "cache")) == (
        f"content.cache: 35 photographs, about {gib:.3g} GiB, must fit on the disk of {tmp_path / 'cache'}, which has "
        "9.54e-07 GiB left; make room, choose another folder, or train without (null)"
    )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".cache.lock"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, files: list[Path]) -> None:
    (tmp_path / "cache").touch()
    assert refusal(lambda: prepared(files, tmp_path / "cache" / "deep")).endswith(
        "-40px-" + PhotographCache(tmp_path, files, SIDE_PX).path.name.split("-40px-")[1]
        + ": cannot be written (Not a directory)"
    )  # fmt: skip


def changed(files: list[Path], path: Path) -> str:
    picture(files[1], 50, 50, seed=9)
    picture(files[4], 50, 50, seed=9)
    return "2 of 35 photographs are new or changed"


def without_one(files: list[Path], path: Path) -> str:
    path.unlink()
    PhotographCache(path.parent, files[1:], SIDE_PX).prepare(workers=0)
    return "1 of 35 photographs are new or changed"


def by_another_decoder(files: list[Path], path: Path) -> str:
    content = path.read_bytes()
    name = DECODER.replace("Pillow", "Pillar")
    path.write_bytes(content.replace(DECODER.encode(), name.encode()))
    return f"decoded to 40 px by {name}, must be to 40 px by {DECODER}"


def cut_short(files: list[Path], path: Path) -> str:
    os.truncate(path, path.stat().st_size - 1)
    return "damaged, or of another version of stylize"


def without_its_first_bytes(files: list[Path], path: Path) -> str:
    path.write_bytes(path.read_bytes()[100:])
    return "damaged, or of another version of stylize"


def emptied(files: list[Path], path: Path) -> str:
    path.write_bytes(b"")
    return "damaged, or of another version of stylize"


@pytest.mark.parametrize(
    "spoil", [changed, without_one, by_another_decoder, cut_short, without_its_first_bytes, emptied]
)
def test_a_cache_that_is_stale_is_built_anew_and_says_why(
    tmp_path: Path,
    files: list[Path],
    told: pytest.LogCaptureFixture,
    spoil: Callable[[list[Path], Path], str],
) -> None:
    path = prepared(files, tmp_path / "cache")
    reason = spoil(files, path)
    told.clear()
    cached = torch.stack(list(batches(files, tmp_path / "cache").from_step(0, 20)))
    assert told.messages[0] == f"content.cache: {path} is stale ({reason}): built anew"
    assert torch.equal(cached, torch.stack(list(batches(files, None).from_step(0, 20))))


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = cache_module.read_rgb

    def interrupted(file: Path, shorter_side_px: int) -> Image.Image:
        if file == files[20]:
            raise KeyboardInterrupt
        return read(file, shorter_side_px)

    monkeypatch.setattr(cache_module, "read_rgb", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared(files, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".cache.lock"]


SLOW = """
import sys, time
from pathlib import Path
from stylize.training import cache
read = cache.read_rgb
cache.read_rgb = lambda file, side: time.sleep(0.2) or read(file, side)
folder = Path(sys.argv[1])
cache.PhotographCache(folder / "cache", sorted((folder / "photos").iterdir()), 40).prepare(workers=0)
"""


def test_a_killed_build_leaves_no_cache_and_the_next_one_removes_what_it_left(
    tmp_path: Path, files: list[Path]
) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)])
    deadline_s = time.monotonic() + 60
    while not list(tmp_path.glob("cache/.*.part")) and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    process.kill()
    process.wait()
    (left,) = tmp_path.glob("cache/.*.part")
    assert list(tmp_path.glob("cache/*.cache")) == []
    prepared(files, tmp_path / "cache")
    assert not left.exists()


def test_a_second_build_beside_the_first_is_refused(tmp_path: Path, files: list[Path]) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)])
    deadline_s = time.monotonic() + 60
    while not list(tmp_path.glob("cache/.*.part")) and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    try:
        message = refusal(lambda: prepared(files, tmp_path / "cache"))
    finally:
        process.kill()
        process.wait()
    assert message == (
        f"{tmp_path / 'cache'}: in use: another process is building a cache there; wait for its end, "
        "or choose another content.cache"
    )
    with FolderLock(tmp_path / "cache", name=cache_module.LOCK_NAME):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs worker processes that are forked")
def test_a_decoding_process_that_is_killed_while_it_is_built_is_replaced(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    read, mark = cache_module.read_rgb, tmp_path / "killed"

    def killed_once(file: Path, shorter_side_px: int) -> Image.Image:
        if file == files[20] and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(file, shorter_side_px)

    expected = prepared(files, tmp_path / "expected").read_bytes()
    told.clear()
    monkeypatch.setattr(cache_module, "read_rgb", killed_once)
    PhotographCache(tmp_path / "cache", files, SIDE_PX).prepare(workers=2)
    assert the_cache(tmp_path / "cache").read_bytes() == expected
    assert told.messages[1].startswith("a decoding process died (killed by SIGKILL); started")
    assert "started again at photograph " in told.messages[1]


def test_a_full_disk_ends_the_build_with_one_line(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stylize.system.files.os.fsync", full)
    path = PhotographCache(tmp_path / "cache", files, SIDE_PX).path
    assert refusal(lambda: prepared(files, tmp_path / "cache")) == (
        f"{path}: cannot be written (No space left on device)"
    )
    assert [left.name for left in path.parent.iterdir()] == [".cache.lock"]


def test_a_cache_that_is_not_there_is_told(tmp_path: Path, files: list[Path]) -> None:
    cache = PhotographCache(tmp_path / "cache", files, SIDE_PX)
    assert refusal(lambda: cache.read(files[0])) == (
        f"content.cache: {cache.path}: cannot be read ([Errno 2] No such file or directory: '{cache.path}'); "
        "it is built at the start of a training, whose processes must all see the same folder"
    )
    prepared(files[5:], tmp_path / "cache")
    assert refusal(lambda: cache.read(files[0])) == f"{files[0]}: not in {cache.path}, which another run has built anew"


def test_pixels_of_the_cache_cannot_be_written_to(tmp_path: Path, files: list[Path]) -> None:
    prepared(files, tmp_path / "cache")
    pixels = PhotographCache(tmp_path / "cache", files, SIDE_PX).read(files[0])
    assert (pixels.dtype, pixels.shape) == (np.uint8, (56, 40, 3))
    assert not pixels.flags.writeable


def test_another_seed_finds_its_photographs_in_the_same_cache(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    for seed in (0, 1):
        changes = {"content.cache": "cache", "content.validation": 3, "seed": seed}
        config = load_config(write_config(tmp_path, changes))
        told.clear()
        build_run(config, CPU, tmp_path).trainer.batches.prepare()
        assert told.messages[-1].startswith("content.cache: 8 photographs")
    assert told.messages[-1].endswith(f" in {the_cache(tmp_path / 'cache')}")
    build_run(
        load_config(write_config(tmp_path, {**changes, "content.limit": 2})), CPU, tmp_path
    ).trainer.batches.prepare()
    assert len(list((tmp_path / "cache").glob("*.cache"))) == 2


def test_another_draw_of_a_limit_has_another_cache(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    trainers = []
    for seed in (0, 1):
        changes = {"content.cache": "cache", "content.validation": 1, "content.limit": 3, "seed": seed}
        trainers.append(build_run(load_config(write_config(tmp_path, changes)), CPU, tmp_path).trainer)
        trainers[-1].batches.prepare()
    assert trainers[0].batches.dataset.files != trainers[1].batches.dataset.files
    for trainer in trainers:  # the second has not replaced what the first reads
        next(trainer.batches.from_step(0, 1))
    assert "is stale" not in " ".join(told.messages)
