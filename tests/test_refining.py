"""Paintings refined by L-BFGS against the model's style."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fixtures_runs import picture, write_config
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import stylize
from stylize import run
from stylize.cli import cli
from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.models.blends import blend_of
from stylize.models.file import StylePicture, encode_style_picture, load_model, read_card
from stylize.pictures.picture import to_tensor
from stylize.refining import refiner_of

CPU = torch.device("cpu")


def trained(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A tiny run's model."""
    config = load_config(write_config(folder, {"train.steps": 2, "style.size": 48, **(changes or {})}))
    return run.train(config, folder / "run", quiet=True).model


def two_styles(folder: Path) -> Path:
    picture(folder / "other.png", seed=5)
    styles = [{"name": name, "image": f"{name}.png", "size": 48} for name in ("style", "other")]
    return trained(folder, {"style": None, "styles": styles})


def photograph(height: int = 40, width: int = 48) -> Tensor:
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]


def total(model: Path, painted: Tensor, content: Tensor, blend: str | None = None) -> float:
    card = read_card(model)
    loss = refiner_of(card, blend_of(blend, card.all_styles), 1, "compact", CPU).loss
    with torch.no_grad():
        return float(loss(painted[None], content[None])["total"])


def test_iterations_lower_the_loss_of_the_models_style(tmp_path: Path) -> None:
    path, content = trained(tmp_path), photograph()
    model = stylize.load(path, device="cpu")
    painted = [model(content, refine=iterations) for iterations in (0, 3, 8)]
    totals = [total(path, picture, content) for picture in painted]
    assert totals[2] < totals[1] < 0.9 * totals[0]
    assert all(p.shape == content.shape and p.min() >= 0 and p.max() <= 1 for p in painted)
    batch = model(torch.stack([content, content.flip(2)]), refine=3)
    torch.testing.assert_close(batch[0], painted[1], atol=2e-3, rtol=0)


def test_a_command_refines_files(tmp_path: Path) -> None:
    path, source = trained(tmp_path), picture(tmp_path / "p.png", 64, 48, seed=7)
    for name, arguments in (("plain", []), ("refined", ["--refine", "3"])):
        done = CliRunner().invoke(
            cli, ["apply", str(source), "--model", str(path), "-o", str(tmp_path / f"{name}.png"), *arguments]
        )
        assert done.exit_code == 0, done.output
    plain, refined = (levels(tmp_path / f"{name}.png") for name in ("plain", "refined"))
    content = levels(source)
    assert total(path, refined, content) < 0.9 * total(path, plain, content)


def levels(path: Path) -> Tensor:
    with Image.open(path) as opened:
        return to_tensor(opened.convert("RGB"))


def test_a_blend_is_refined_towards_both_styles(tmp_path: Path) -> None:
    path, content = two_styles(tmp_path), photograph()
    model = stylize.load(path, device="cpu")
    for blend in ("style", "style:1,other:1"):
        plain, refined = (model(content, style=blend, refine=n) for n in (0, 4))
        assert total(path, refined, content, blend) < 0.9 * total(path, plain, content, blend)
    card = read_card(path)
    losses = [refiner_of(card, blend_of(b, card.all_styles), 1, "compact", CPU).loss for b in
              ("style", "other", "style:3,other:1")]  # fmt: skip
    grams = [loss.style_gram("relu1_1") for loss in losses]
    torch.testing.assert_close(grams[2], 0.75 * grams[0] + 0.25 * grams[1])


def test_layers_that_the_network_does_not_reach_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layers = {"loss.content_layers": {"relu4_2": 1.0}, "loss.style_layers": {"relu2_1": 1.0, "relu4_1": 2.0}}
    card = read_card(trained(tmp_path, {**layers, "loss.vgg": "random", "content.crop": 48, "content.resize": 56}))
    refiner = refiner_of(card, blend_of(None, card.all_styles), 1, "compact", CPU)
    assert "without relu4_1, relu4_2, which compact does not reach" in caplog.text
    assert refiner.loss.config.style_layers == {"relu2_1": 1.0} == refiner.loss.config.content_layers
    with pytest.raises(StylizeError, match="nowhere"):
        refiner_of(card, blend_of(None, card.all_styles), 1, str(tmp_path / "nowhere.pth"), CPU)


def rewritten(path: Path, changes: Mapping[str, str | None]) -> None:
    with safe_open(path, "pt") as file:
        metadata = {k: v for k, v in {**file.metadata(), **changes}.items() if v is not None}
    save_file(load_file(path), path, metadata)


def test_a_model_without_pictures_of_its_style_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path)
    rewritten(path, {"style_pictures": None})
    assert read_card(path).style_pictures == ()
    with pytest.raises(StylizeError, match="this model file has no picture of its style 'tiny'"):
        stylize.load(path, device="cpu")(photograph(), refine=1)
    stylize.load(path, device="cpu")(photograph())  # all else works


def test_damaged_pictures_are_told(tmp_path: Path) -> None:
    path = trained(tmp_path)
    rewritten(path, {"style_pictures": '[[[1.0, "AAAA"]]]'})
    with pytest.raises(StylizeError, match="style picture cannot be read"):
        stylize.load(path, device="cpu")(photograph(), refine=1)
    rewritten(path, {"style_pictures": "[[1.0]]"})
    with pytest.raises(StylizeError, match="its metadata cannot be read"):
        read_card(path)


def test_what_cannot_be_refined_is_told_in_a_line(tmp_path: Path) -> None:
    path = two_styles(tmp_path)
    source = picture(tmp_path / "p.png", 640, 480, seed=7)
    arguments = ["apply", str(source), "--model", str(path), "--refine", "2"]
    done = CliRunner().invoke(cli, [*arguments, "--sheet"])
    assert done.exit_code == 2 and "exclude each other" in done.output
    done = CliRunner().invoke(cli, [*arguments, "--style", "other", "--max-memory", "1.2"])
    assert isinstance(done.exception, StylizeError) and "to be refined" in str(done.exception)
    with pytest.raises(StylizeError, match="refine: got -1"):
        stylize.load(path, device="cpu")(photograph(), style="other", refine=-1)


def test_a_model_file_holds_the_pictures_that_it_has_learned(tmp_path: Path) -> None:
    card = read_card(two_styles(tmp_path))
    assert [len(pictures) for pictures in card.style_pictures] == [1, 1]
    for name, ((weight, jpeg),) in zip(card.all_styles, card.style_pictures, strict=True):
        assert weight == 1
        with Image.open(io.BytesIO(jpeg)) as opened, Image.open(tmp_path / f"{name}.png") as original:
            assert opened.size == (48, 40)
            ours, theirs = (to_tensor(i.convert("L")) * 255 for i in (opened, original))
            assert (ours - theirs).abs().mean() < 3
    assert load_model(tmp_path / "run" / "model.safetensors")[1].style_pictures == card.style_pictures


def test_pictures_are_kept_small() -> None:
    noise = Image.effect_noise((512, 512), 90).convert("RGB")
    for most in (150_000, 30_000, 5_000):
        jpeg = encode_style_picture(noise, most)
        assert len(jpeg) <= most
        assert StylePicture(1.0, jpeg).rgb().size[0] >= 64
