"""Names, consoles, folders and numbers that users really have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_runs import picture, write_config, write_model

from stylize.system.files import TEMPORARY_NAME, _create_temporary, written_atomically
from stylize.system.places import temporary_folder


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **variables}
    command = [sys.executable, "-m", "stylize", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, timeout=120)


@pytest.mark.parametrize("encoding", ("ascii:strict", "cp1252:strict", "utf-8:strict"))
def test_any_name_is_printed_on_any_console_and_the_rest_is_done(tmp_path: Path, encoding: str) -> None:
    write_model(tmp_path / "model.safetensors")
    names = ["caf\udce9.png", "\u041c\u043e\u0441\u043a\u0432\u0430.png", "plain.png"]
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        plain = picture(tmp_path / "plain.png")
        (tmp_path / "in" / name).write_bytes(plain.read_bytes())
    done = run(tmp_path, "apply", "in", "--model", "model.safetensors", "-o", "out", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


@pytest.mark.parametrize("option", ("--strength", "--max-memory", "--stroke-scale"))
@pytest.mark.parametrize("number", ("nan", "inf", "-inf"))
def test_numbers_on_the_command_line_are_finite(tmp_path: Path, option: str, number: str) -> None:
    picture(tmp_path / "a.png")
    refused = run(tmp_path, "apply", "a.png", f"{option}={number}")
    assert refused.returncode == 2
    assert option.encode() in refused.stderr and b"Traceback" not in refused.stderr


def test_a_home_folder_that_nobody_has_is_told_in_a_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"style.image": "~nobody-of-this-name/p.png"})
    refused = run(tmp_path, "train", "--config", config.name)
    assert refused.returncode == 1
    assert refused.stderr.decode().splitlines() == [
        "stylize: ~nobody-of-this-name/p.png: no home folder is known for it; write the whole path"
    ]


@pytest.mark.parametrize("name", ("x" * 251 + ".png", "\u957f" * 80 + ".png", "a.png"))
def test_a_temporary_name_fits_where_its_file_s_fits(tmp_path: Path, name: str) -> None:
    handle, temporary = _create_temporary(tmp_path / name)
    os.close(handle)
    assert TEMPORARY_NAME.fullmatch(temporary.name)
    with written_atomically(tmp_path / name) as file:
        file.write(b"whole")
    assert (tmp_path / name).read_bytes() == b"whole"


def test_a_temporary_folder_that_is_not_there_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    assert temporary_folder(tmp_path / "a.png") == tmp_path
    (tmp_path / "nowhere").mkdir()
    assert temporary_folder(tmp_path / "a.png") == tmp_path / "nowhere"
