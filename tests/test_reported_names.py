"""Names, consoles, folders and numbers that users really have."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_runs import picture, write_config, write_model

from stylize.config import read_yaml
from stylize.errors import StylizeError
from stylize.system.files import TEMPORARY_NAME, _create_temporary, written_atomically
from stylize.system.places import temporary_folder
from stylize.training.photographs import ContentConfig, find_photographs


def run(
    folder: Path, *arguments: str, before: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **variables}
    command = [*before, sys.executable, "-m", "stylize", *arguments]
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


def test_a_name_that_would_act_on_the_console_is_escaped(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors")
    name = "a\n\x1b[31m.png"
    (tmp_path / name).write_bytes(picture(tmp_path / "plain.png").read_bytes())
    done = run(tmp_path, "apply", name, "plain.png", "--model", "model.safetensors", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines() == ["out/a\\n\\x1b[31m.png", "out/plain.png"]


@pytest.mark.parametrize("name", ("x" * 300 + ".png", "closed/a.png", "missing.png"))
def test_an_input_that_cannot_be_looked_at_does_not_stop_the_others(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / "model.safetensors")
    picture(tmp_path / "plain.png")
    picture(tmp_path / "closed" / "a.png")
    (tmp_path / "closed").chmod(0)
    try:
        done = run(tmp_path, "apply", name, "plain.png", "--model", "model.safetensors", "-o", "out")
    finally:
        (tmp_path / "closed").chmod(0o755)
    assert (tmp_path / "out" / "plain.png").is_file()
    readable = os.geteuid() == 0 and name.startswith("closed")  # root may read everything
    assert done.returncode == (0 if readable else 1), done.stderr
    assert b"Traceback" not in done.stderr


def test_a_name_too_long_for_its_output_is_told_and_the_others_are_done(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors")
    long = "\u957f" * 83 + ".png"  # with .dots.png it has more than 255 bytes
    (tmp_path / long).write_bytes(picture(tmp_path / "plain.png").read_bytes())
    done = run(tmp_path, "apply", long, "plain.png", "--model", "model.safetensors")
    assert done.returncode == 1
    assert (tmp_path / "plain.dots.png").is_file()
    assert b"File name too long" in done.stderr and b"Traceback" not in done.stderr


def test_many_failures_are_told_in_a_short_line(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors")
    for i in range(40):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i:02}.png").write_text("no picture\n")
    done = run(tmp_path, "apply", "in", "--model", "model.safetensors")
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("stylize: 40 of 40 pictures failed: in/00.png: ") and last.endswith("; and 30 more")


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (("-",), "stylize: -: standard input is not read, must be a file or a folder"),
        (
            ("a.png", "-o", "-"),
            "stylize: -o: got '-', but standard output is not written to, must be a file or a folder",
        ),
        (("/dev/stdin",), "stylize: /dev/stdin: not a regular file, must be an image file"),
    ),
)
def test_streams_are_refused_in_a_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    write_model(tmp_path / "model.safetensors")
    picture(tmp_path / "a.png")
    refused = run(tmp_path, "apply", *arguments, "--model", "model.safetensors")
    assert (refused.returncode, refused.stderr.decode().splitlines()[-1]) == (1, message)
    assert not (tmp_path / "-").exists()


def test_a_path_that_ends_with_a_slash_is_a_folder_for_one_picture_too(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors")
    picture(tmp_path / "a.png")
    done = run(tmp_path, "apply", "a.png", "--model", "model.safetensors", "-o", "results.2024/")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results.2024" / "a.png").is_file()


@pytest.mark.parametrize(
    ("text", "value"),
    (
        ("0100", 100), ("40_000", 40000), ("0x10", 16), ("0o10", 8), ("-7", -7), ("1e-3", 0.001), (".5", 0.5),
        ("1.", 1.0), ("1:30", "1:30"), ("yes", "yes"), ("off", "off"), ("true", True), ("~", None),
        ("2026-01-31", "2026-01-31"),
    ),
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "a.yaml").write_text(f"key: {text}\n")
    read = read_yaml(tmp_path / "a.yaml")["key"]
    assert read == value and type(read) is type(value)


def test_a_key_that_comes_twice_is_told_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nseed: 1\nname: b\n")
    with pytest.raises(StylizeError, match=r"the key 'name' comes twice in line 3$"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(("wanted", "held_out"), ((16, 2), (8, 2), (7, 7), (0, 0)))
def test_fewer_photographs_are_held_out_where_none_would_be_left(tmp_path: Path, wanted: int, held_out: int) -> None:
    write_config(tmp_path)  # with eight photographs
    config = ContentConfig(path=str(tmp_path / "photos"), validation=wanted)
    found = find_photographs(config, 0)
    assert (len(found.training), len(found.validation)) == (8 - held_out, held_out)


WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


@pytest.mark.parametrize(
    ("arguments", "told"),
    (
        (("apply", "closed/a.png", "--model", "model.safetensors", "-o", "o.png"), "closed/a.png: cannot be read"),
        (("apply", "b.png", "a.png", "--model", "model.safetensors"), "b.png: cannot be read (Permission denied)"),
        (("apply", "closed", "--model", "model.safetensors"), "closed: cannot be read"),
        (("apply", "a.png", "--model", "closed/m.safetensors"), "closed/m.safetensors: Permission denied"),
        (("apply", "a.png", "--model", "model.safetensors", "-o", "closed/x.png"), "closed/x.png: cannot be written"),
        (("info", "closed/m.safetensors"), "closed/m.safetensors: Permission denied"),
        (("import", "closed/m.pth", "-o", "x.safetensors"), "closed/m.pth: Permission denied"),
        (("check-data", "closed"), "closed"),
        (("train", "--config", "closed/c.yaml"), "closed/c.yaml: cannot be read (Permission denied)"),
        (("optimize", "closed/a.png", "--style", "a.png", "-o", "z.png"), "closed/a.png: cannot be read"),
        (("evaluate", "model.safetensors", "--content", "closed", "--style", "a.png"), "closed"),
    ),
)
def test_a_place_that_may_not_be_looked_at_is_told_in_a_line(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    write_model(tmp_path / "model.safetensors")
    for name in ("a.png", "b.png", "closed/a.png"):
        picture(tmp_path / name)
    for name in ("closed", "b.png"):
        (tmp_path / name).chmod(0)
    try:
        done = run(tmp_path, *arguments, before=unprivileged())
    finally:
        (tmp_path / "closed").chmod(0o755)
    assert done.returncode == 1, done.stderr
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("stylize: ") and told in last and b"Traceback" not in done.stderr
    assert (tmp_path / "a.dots.png").exists() == ("b.png" in arguments)


def unprivileged() -> tuple[str, ...]:
    """What is put before a command so that a superuser, too, may not read what is closed."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("a superuser without setpriv may read everything")
    return WITHOUT_RIGHTS
