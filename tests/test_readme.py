"""What the README says is run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from stylize.cli import cli
from stylize.training.photographs import sample_photographs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.startswith("stylize ")
]
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_has_its_two_commands() -> None:
    for script in ("scripts/quickstart", "scripts/test"):
        assert any(script in block for block in BLOCKS)
        assert os.access(ROOT / script, os.X_OK)


def test_the_quickstart_finds_its_photograph(capsys: pytest.CaptureFixture[str]) -> None:
    script = (ROOT / "scripts" / "quickstart").read_text(encoding="utf-8")
    (program,) = re.findall(r"python -c '([^']+)'", script)
    exec(compile(program, "scripts/quickstart", "exec"), {})
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_every_link_and_picture_of_the_documents_exists() -> None:
    for document in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "data" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_pictures_are_small() -> None:
    for picture in [*(ROOT / "docs").rglob("*.jpg"), *(ROOT / "configs").rglob("*.jpg")]:
        assert picture.stat().st_size < 150_000, picture


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 5


def test_the_program_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Image.open(sample_photographs()[1]) as photograph:
        photograph.resize((96, 64)).save("photo.png")
    (program,) = PROGRAMS
    exec(compile(program, "README.md", "exec"), {})
    for name in ("glass.png", "large.png"):
        with Image.open(name) as painted:
            assert painted.size == (96, 64)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(sample_photographs()[1], tmp_path / "photo.png")
    (tmp_path / "holiday").mkdir()
    shutil.copy(sample_photographs()[1], tmp_path / "holiday")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "configs" / "styles" / "woodcut.jpg", tmp_path / "picture.jpg")
    (tmp_path / "my-style.yaml").write_text(
        "name: my-style\nstyle: {image: configs/styles/woodcut.jpg}\ncontent: {path: samples}\n", encoding="utf-8"
    )
    arguments = shlex.split(command)[1:]
    if arguments[0] == "train":
        arguments += ["--dry-run", "--set", "loss.vgg=random", "--set", "content.path=samples"]
        arguments += ["--set", "generator.width=4", "--set", "content.validation=1"]
        arguments = [argument for argument in arguments if argument != "--resume"]
    if arguments[0] == "evaluate":
        arguments += ["--set", "loss.vgg=random", "--size", "64", "--iterations", "1"]
    if arguments[:2] == ["study", "norms"]:
        arguments += ["--seeds", "1", "--iterations", "0", "--set", "loss.vgg=random", "--set", "content.path=samples"]
        arguments += ["--set", "train.steps=1", "--set", "content.validation=1", "--set", "content.crop=32"]
    if arguments[0] == "sweep":
        arguments += ["--steps", "1", "--set", "loss.vgg=random", "--set", "generator.width=4"]
        arguments += ["--set", "content.path=samples", "--set", "content.validation=1", "--set", "content.crop=64"]
    if arguments[0] == "apply":
        arguments += ["--max-size", "64"]
    cli.main([str(argument) for argument in arguments], standalone_mode=False)
    assert capsys.readouterr().out
