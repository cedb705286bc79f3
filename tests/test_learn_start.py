"""A start is the mean of the styles that one network has learned."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from fixtures_runs import picture, write_config

from stylize.models.file import load_model
from stylize.models.find import STARTS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import learn_start  # noqa: E402


def test_what_is_wrong_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "start.yaml").write_text("base: nowhere.yaml\npictures: [pictures]\n")
    command = [str(tmp_path / "start.yaml"), "--output", str(tmp_path / "run")]
    told = CliRunner().invoke(learn_start.main, command)
    assert (told.exit_code, told.stderr) == (1, f"Error: {tmp_path}/pictures: No such file or directory\n")
    picture(tmp_path / "pictures" / "a.jpg")
    told = CliRunner().invoke(learn_start.main, command)
    assert told.exit_code == 1
    assert told.stderr.startswith(f"Error: {tmp_path}/nowhere.yaml: ")


def learned(folder: Path, *arguments: str, **more: int) -> Path:
    write_config(folder)
    for i, name in enumerate(("a", "b", "left")):
        picture(folder / "pictures" / f"{name}.jpg", seed=50 + i)
    start: dict[str, object] = {
        "base": "a.yaml",
        "pictures": ["pictures"],
        "left_out": ["left"],
        "variants": 2,
        "sizes": [48, 40],
        **more,
    }
    (folder / "start.yaml").write_text(yaml.safe_dump(start))
    command = [str(folder / "start.yaml"), "--output", str(folder / "run"), *arguments]
    done = CliRunner().invoke(learn_start.main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "run" / "start.safetensors"


def test_a_start_is_the_mean_of_all_styles(tmp_path: Path) -> None:
    path = learned(tmp_path)
    many, card = load_model(path.with_name("model.safetensors"))
    assert card.styles == ("a-0", "a-1", "b-0", "b-1")
    start, own = load_model(path)
    assert own.styles == () and start.style_count == 1
    for name, norm in start.norms().items():
        theirs = many.norms()[name]
        assert norm.weight is not None and theirs.weight is not None
        assert torch.allclose(norm.weight, theirs.weight.mean(0), atol=1e-3)
    changed = [(tmp_path / "run-styles" / f"a-{i}.png").read_bytes() for i in (0, 1)]
    assert changed[0] != changed[1]
    assert learned(tmp_path, "--resume", "--set", "train.steps=5").is_file()
    assert load_model(path)[1].step >= card.step


def test_the_ending_brings_the_start_nearer_to_every_style(tmp_path: Path) -> None:
    learned(tmp_path, ending_steps=3, ending_inner_steps=2)
    start, mean = (load_model(tmp_path / "run" / f"{name}.safetensors")[0] for name in ("start", "mean"))
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), mean.parameters(), strict=True))
    before = start.state_dict()
    again = load_model(learned(tmp_path, "--trained", ending_steps=3, ending_inner_steps=2))[0].state_dict()
    assert all(torch.equal(again[name], before[name]) for name in before)  # it was done


@pytest.mark.parametrize("path", sorted(STARTS.glob("*.safetensors")), ids=lambda path: path.name)
def test_a_start_of_the_package_is_small_and_described(path: Path) -> None:
    generator, card = load_model(path)
    assert path.stem == f"{card.generator.name}-{card.generator.width}"
    assert card.generator.norm == "instance" and generator.style_count == 1
    assert path.stat().st_size < (0.9e6 if card.generator.width == 16 else 3.5e6)
    assert f"`{path.name}`" in (STARTS / "README.md").read_text("utf-8")
