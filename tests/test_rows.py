import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylize.errors import StylizeError
from stylize.system.row_store import RowStore

STORES = pytest.mark.parametrize("kind", ("memory", "file", "direct"))


def store(kind: str, folder: Path, shape: tuple[int, ...] = (11, 5, 3), dtype: torch.dtype = torch.float32) -> RowStore:
    return RowStore(shape, dtype, None if kind == "memory" else folder, direct=kind == "direct")


@STORES
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.uint8, torch.uint16))
def test_rows_come_back_as_they_were_written(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    values = (torch.rand(11, 5, 3) * 200).to(dtype)
    with store(kind, tmp_path, dtype=dtype) as rows:
        for first, last in ((7, 11), (0, 3), (3, 7)):
            rows.write(first, values[first:last])
        assert torch.equal(rows.read(0, 11), values)
        assert torch.equal(rows.read(2, 9), values[2:9])
        assert rows.read(2, 9).dtype == dtype


@STORES
def test_rows_of_any_layout_are_written_over_older_ones(tmp_path: Path, kind: str) -> None:
    values = torch.rand(3, 5, 4).permute(2, 1, 0)
    with store(kind, tmp_path) as rows:
        rows.write(0, torch.zeros(11, 5, 3))
        rows.write(6, values)
        assert torch.equal(rows.read(6, 10), values)
        assert rows.read(0, 6).eq(0).all()
        assert rows.read(10, 11).eq(0).all()


@STORES
def test_only_in_memory_are_read_rows_a_view(tmp_path: Path, kind: str) -> None:
    with store(kind, tmp_path) as rows:
        rows.write(0, torch.zeros(11, 5, 3))
        read = rows.read(0, 2)
        rows.write(0, torch.ones(1, 5, 3))
        assert bool(read[0].eq(1).all()) == rows.in_memory == (kind == "memory")


def test_a_file_has_no_name_in_its_folder(tmp_path: Path) -> None:
    with store("direct", tmp_path) as rows:
        rows.write(0, torch.zeros(11, 5, 3))
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    program = (
        "import os, sys, torch; from pathlib import Path; from stylize.system.row_store import RowStore;"
        "rows = RowStore((100, 4096), torch.uint8, Path(sys.argv[1])); rows.write(0, torch.zeros(9, 4096));"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_a_plain_file_is_the_array_as_it_is(tmp_path: Path) -> None:
    values = torch.arange(24, dtype=torch.uint8).view(4, 2, 3)
    with store("file", tmp_path, (4, 2, 3), torch.uint8) as rows:
        rows.write(0, values)
        assert Path(rows.file_name).read_bytes() == bytes(range(24))


def test_closing_gives_the_handle_back(tmp_path: Path) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        rows = store("direct", tmp_path)
        rows.close()
        rows.close()
        del rows
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StylizeError) as caught:
        RowStore((2, 2), torch.uint8, tmp_path / "none")
    expected = f"{tmp_path}/none: no temporary file can be made there (No such file or directory)"
    assert str(caught.value) == expected


def test_a_disk_without_the_room_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StylizeError) as caught:
        RowStore((2, 2), torch.uint8, tmp_path)
    assert str(caught.value) == f"{tmp_path}: no temporary file can be made there (No space left on device)"


def test_a_disk_that_fills_up_later_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, rows: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with store("file", tmp_path) as rows:
        monkeypatch.setattr("os.pwrite", full)
        with pytest.raises(StylizeError) as caught:
            rows.write(0, torch.zeros(1, 5, 3))
            rows.finish()
    assert str(caught.value) == f"{tmp_path}: a temporary file cannot be written (No space left on device)"


@pytest.mark.parametrize("kind", ("file", "direct"))
def test_rows_read_ahead_are_never_older_than_those_written(tmp_path: Path, kind: str) -> None:
    expected = torch.rand(200, 5, 3)
    with store(kind, tmp_path, (200, 5, 3)) as rows:
        rows.write(0, expected)
        for _ in range(300):
            first, last = sorted(torch.randint(0, 201, (2,)).tolist())
            if torch.rand(()) < 0.5 and first < last:
                expected[first:last] = torch.rand(last - first, 5, 3)
                rows.write(first, expected[first:last])
            assert torch.equal(rows.read(first, last), expected[first:last])
            following = min(200, last + 7)
            assert torch.equal(rows.read(max(0, last - 2), following), expected[max(0, last - 2) : following])
