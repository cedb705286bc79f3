"""Compiled code is kept, and never stale."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stylize.ops.cpu import compile as compilation
from stylize.ops.cpu.compile import cache_folder, source_digest

ROOT = Path(__file__).parent.parent
# A constant of one kernel file, which is inlined into a function of another: numba alone looks at the other.
INLINED = """
from stylize.ops.cpu.compile import compiled

FACTOR = 2


@compiled
def scaled(x):
    return FACTOR * x
"""
CALLER = """
from stylize.ops.cpu.compile import compiled
from stylize.ops.cpu.inlined import scaled


@compiled
def scaled_and_moved(x):
    return scaled(x) + 1
"""


def copy_of_the_package(folder: Path) -> Path:
    shutil.copytree(ROOT / "stylize", folder / "stylize", ignore=shutil.ignore_patterns("__pycache__"))
    kernels = folder / "stylize" / "ops" / "cpu"
    (kernels / "inlined.py").write_text(INLINED)
    (kernels / "caller.py").write_text(CALLER)
    return kernels


def result(folder: Path) -> tuple[str, set[str]]:
    """What a new process computes, and the cache folders there are afterwards."""
    code = "from stylize.ops.cpu.caller import scaled_and_moved; print(scaled_and_moved(5))"
    cache = folder / "cache"
    environment = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(cache)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # by the file's time Python would take its own compiled code for right
    environment.pop("NUMBA_CACHE_DIR", None)
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip(), {path.name for path in (cache / "stylize" / "kernels").iterdir()}


def test_a_changed_constant_in_one_kernel_file_is_seen_by_a_new_process(tmp_path: Path) -> None:
    kernels = copy_of_the_package(tmp_path)
    assert result(tmp_path) == ("11", {source_digest(kernels)})
    before = (kernels / "inlined.py").stat()
    (kernels / "inlined.py").write_text(INLINED.replace("FACTOR = 2", "FACTOR = 3"))
    os.utime(kernels / "inlined.py", ns=(before.st_atime_ns, before.st_mtime_ns))  # even if nothing else tells of it
    computed, folders = result(tmp_path)
    assert computed == "16"
    assert len(folders) == 2 and source_digest(kernels) in folders


def test_a_second_process_takes_the_code_that_the_first_compiled(tmp_path: Path) -> None:
    copy_of_the_package(tmp_path)
    result(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.nb[ci]")}
    assert len(files) >= 4  # an index and the code of each of the two functions
    assert result(tmp_path)[0] == "11"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.nb[ci]")} == files


def test_the_digest_sees_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one")
    first = source_digest(tmp_path)
    (tmp_path / "a.py").write_text("two")
    second = source_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, source_digest(tmp_path)}) == 3


def test_code_that_nobody_has_used_for_a_month_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.settings, "CACHE_DIR", str(tmp_path))
    old, recent = tmp_path / "stylize" / "old", tmp_path / "stylize" / "recent"
    for folder, days in ((old, 31), (recent, 29)):
        folder.mkdir(parents=True)
        then = time.time() - days * 24 * 3600
        os.utime(folder, (then, then))
    cache_folder.cache_clear()
    try:
        own = cache_folder()
        assert own is not None and own.is_dir()
        assert not old.exists() and recent.exists()
    finally:
        cache_folder.cache_clear()


def test_a_folder_that_cannot_be_made_leaves_code_uncached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compilation.settings, "CACHE_DIR", str(tmp_path / "file"))
    cache_folder.cache_clear()
    try:
        assert cache_folder() is None

        @compilation.compiled
        def double(x: int) -> int:
            return 2 * x

        assert double(4) == 8
    finally:
        cache_folder.cache_clear()


def test_other_users_of_numba_keep_their_own_cache() -> None:
    before = compilation.settings.CACHE_DIR

    @compilation.compiled
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == 8
    assert before == compilation.settings.CACHE_DIR
