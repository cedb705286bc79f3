"""Several styles in one network: training, files, blends, growing, starts."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fixtures_runs import picture, write_config
from PIL import Image
from safetensors import safe_open
from test_large import GIB, keep_maps, levels, photograph, room
from torch import Tensor

import stylize
from stylize import run
from stylize.build import build_run
from stylize.cli import cli
from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.generators import GeneratorConfig, build_generator
from stylize.inference.large import paint_large
from stylize.inference.options import PaintOptions
from stylize.inference.stylizer import Stylizer
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg_weights import load_vgg
from stylize.measures.grid import grid_scores, mean_grid
from stylize.models import find as models
from stylize.models.blends import blend_of
from stylize.models.file import ModelCard, StylePicture, encode_model, load_model, make_thumbnail, read_card
from stylize.norms import build_norm
from stylize.ops import reference
from stylize.pictures.picture import Picture
from stylize.pictures.raster import Metadata, raster_of
from stylize.pictures.sheets import CAPTION_PX
from stylize.suggest import suggested_config
from stylize.system.compute import Compute
from stylize.system.devices import CPU
from stylize.training.checkpoint import checkpoint_path, load_checkpoint
from stylize.training.held_out import one_hot

NAMES = ("wave", "mosaic", "night")
AFFINE = ("instance", "batch", "batch_instance", "layer")


def styles(folder: Path, names: tuple[str, ...] = NAMES) -> list[dict[str, Any]]:
    for i, name in enumerate(names):
        picture(folder / f"{name}.png", seed=100 + i)
    return [{"name": name, "image": f"{name}.png", "size": 40 + 4 * i} for i, name in enumerate(names)]


def config_of(
    folder: Path, changes: Mapping[str, Any] | None = None, names: tuple[str, ...] = NAMES, file: str = "many.yaml"
) -> Path:
    return write_config(folder, {"style": None, "styles": styles(folder, names), **(changes or {})}, file)


def trained(folder: Path, changes: Mapping[str, Any] | None = None, names: tuple[str, ...] = NAMES) -> Path:
    return run.train(load_config(config_of(folder, changes, names)), folder / "runs" / "many", quiet=True).folder


def model_of(folder: Path, names: tuple[str, ...] = NAMES, **options: Any) -> Path:
    """A model file whose styles have γ and β drawn at random."""
    config = GeneratorConfig(width=4, **options)
    torch.manual_seed(0)
    generator = build_generator(config, len(names))
    for norm in generator.norms().values():
        for parameter in (norm.weight, norm.bias):
            if parameter is not None:
                torch.nn.init.normal_(parameter, 1, 0.3)
    pictures = tuple((StylePicture(1.0, make_thumbnail(Image.effect_noise((64, 64), 80))),) for _ in names)
    card = ModelCard(generator=config, style="many", styles=names if len(names) > 1 else (), style_pictures=pictures)
    path = folder / "many.safetensors"
    path.write_bytes(encode_model(generator, card))
    return path


def state(path: Path) -> dict[str, Tensor]:
    return load_model(path)[0].state_dict()


# Norms


@pytest.mark.parametrize("plain", (False, True), ids=("kernels", "reference"))
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("name", AFFINE)
def test_each_image_has_the_factor_and_offset_of_its_style(name: str, training: bool, plain: bool) -> None:
    torch.manual_seed(0)
    several, single = build_norm(name, 16).train(training), build_norm(name, 16).train(training)
    several.have_styles_(3)
    for kind in ("weight", "bias"):
        torch.nn.init.normal_(getattr(several, kind))
    x = torch.randn(2, 16, 8, 12)
    several.mixture = one_hot(torch.tensor([2, 0]), 3)

    def images() -> Tensor:
        outputs = []
        for style in (2, 0):
            for kind in ("weight", "bias"):
                getattr(single, kind).data = getattr(several, kind).data[style].clone()
            outputs.append(single(x))
        return torch.stack([outputs[0][0], outputs[1][1]])

    if plain:
        with reference():
            found, expected = several(x), images()
    else:
        found, expected = several(x), images()
    assert torch.allclose(found, expected, atol=1e-5)
    assert several.style_count == 3 and single.style_count == 1


@pytest.mark.parametrize("name", AFFINE)
def test_only_the_styles_of_a_batch_get_a_gradient(name: str) -> None:
    norm = build_norm(name, 16)
    norm.have_styles_(3)
    norm.mixture = one_hot(torch.tensor([1, 1]), 3)
    norm(torch.randn(2, 16, 8, 8)).square().mean().backward()  # type: ignore[no-untyped-call]
    assert norm.weight is not None and norm.weight.grad is not None
    assert norm.weight.grad[1].abs().sum() > 0
    assert norm.weight.grad[[0, 2]].abs().sum() == 0


def test_norms_without_parameters_refuse_several_styles(tmp_path: Path) -> None:
    with pytest.raises(StylizeError, match="have no γ and β"):
        build_generator(GeneratorConfig(width=4, norm="none"), 2)
    with pytest.raises(StylizeError, match=r"generator\.norm: got 'none' with several styles"):
        load_config(config_of(tmp_path, {"generator.norm": "none"}))


# Loss


@pytest.mark.parametrize("scale", ("relative", "raw"))
def test_the_loss_takes_the_targets_of_each_picture(scale: str) -> None:
    config = LossConfig(vgg="random", content_layers={"relu2_1": 1.0}, style_layers={"relu1_1": 1.0, "relu2_1": 2.0})
    config = config.model_copy(update={"scale": scale})
    vgg = load_vgg("random", config.taps(), pooling="max", padding="replication", seed=0, say=lambda *_: None).vgg
    torch.manual_seed(1)
    images = [torch.rand(3, 32, 40), torch.rand(3, 40, 32) ** 2, torch.rand(3, 36, 36) ** 3]
    stylized, content = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32)
    several = PerceptualLoss(vgg, config, images, [1.0, 1.0, 3.0], [0, 1, 1])
    singles = [PerceptualLoss(vgg, config, images[:1]), PerceptualLoss(vgg, config, images[1:], [1.0, 3.0])]
    numbers = torch.tensor([1, 0])
    expected = {
        name: (value + singles[0](stylized[1:], content[1:])[name]) / 2
        for name, value in singles[1](stylized[:1], content[:1]).items()
    }
    for found in (several(stylized, content, numbers), several.by_image(stylized, content, numbers)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert torch.equal(several.style_gram("relu2_1", 0), singles[0].style_gram("relu2_1"))
    with pytest.raises(ValueError, match="must be the style of each picture"):
        several(stylized, content)


# Config


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"style": {"image": "wave.png"}}, "must have either style or styles"),
        ({"styles": []}, "must have either style or styles"),
        ({"styles": [{"name": "a", "image": "wave.png"}] * 2}, "got the name 'a' twice"),
        ({"styles": [{"name": "a:b", "image": "wave.png"}]}, "name"),
        ({"styles": [{"name": "a"}]}, "must have either image or images"),
    ),
)
def test_styles_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StylizeError) as caught:
        load_config(config_of(tmp_path, changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_one_style_in_the_list_is_a_style(tmp_path: Path) -> None:
    alone = trained(tmp_path / "a", {"generator.margin": 0}, names=("wave",))
    style = {"style": {"image": "wave.png", "size": 40}, "generator.margin": 0}
    config = load_config(write_config(tmp_path / "a", style))
    plain = run.train(config, tmp_path / "plain", quiet=True).folder
    one, other = state(alone / "model.safetensors"), state(plain / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in other) and one.keys() == other.keys()
    with safe_open(plain / "model.safetensors", "pt") as file:
        assert file.metadata()["format_version"] == "1" and "styles" not in file.metadata()


# Training


def test_a_training_of_several_styles_is_recorded_by_style(tmp_path: Path) -> None:
    folder = trained(tmp_path, {"generator.margin": 0})
    card = read_card(folder / "model.safetensors")
    assert card.styles == NAMES and set(card.by_style) == set(NAMES)
    assert card.validation["style"] == pytest.approx(sum(card.by_style[n]["style"] for n in NAMES) / 3)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    of_styles = [line for line in lines if line["kind"] == "validation of style"]
    assert [line["style_name"] for line in of_styles] == list(NAMES) * 2
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["format_version"] == "2"  # which older versions refuse by that number
        assert file.get_slice("encode.0.norm.weight").get_shape() == [3, 4]
    with Image.open(next((folder / "samples").iterdir())) as sheet:
        assert sheet.height == 4 * 32 + 3 * (4 + CAPTION_PX * 3 // 2)  # the styles are named


@pytest.mark.parametrize("norm", ("instance", "batch_instance"))
def test_a_resumed_training_is_bit_for_bit_that_of_one_go(tmp_path: Path, norm: str) -> None:
    changes = {"generator.norm": norm, "train.steps": 6}
    whole = trained(tmp_path / "whole", changes)
    config = load_config(config_of(tmp_path / "parts", {**changes, "train.steps": 4}))
    parts = run.train(config, tmp_path / "parts" / "runs" / "many", quiet=True).folder
    run.train(load_config(config_of(tmp_path / "parts", changes)), parts, resume=True, quiet=True)
    one, other = (load_checkpoint(checkpoint_path(f / "checkpoints", 6), CPU)["generator"] for f in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


# Painting


@pytest.mark.parametrize("norm", AFFINE)
def test_a_style_and_a_blend_are_networks_of_one_style(tmp_path: Path, norm: str) -> None:
    generator, _ = load_model(model_of(tmp_path, norm=norm))
    x = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        generator.paint_in(one_hot(torch.tensor([1, 2]), 3))
        both = generator(x)
        alone = [generator.blended([0, 1, 0])(x[:1]), generator.blended([0, 0, 1])(x[1:])]
        assert torch.allclose(both, torch.cat(alone), atol=1e-5)
        ends = [generator.blended(shares)(x) for shares in ([1, 0, 0], [0.5, 0.5, 0], [0, 1, 0])]
    assert not torch.allclose(ends[0], ends[2], atol=1e-3)
    near = [float((ends[1] - end).abs().mean()) for end in (ends[0], ends[2])]
    assert max(near) < float((ends[0] - ends[2]).abs().mean())
    blended = generator.blended([0.25, 0.75, 0])
    assert blended.style_count == 1
    assert blended.to_rgb.weight is generator.to_rgb.weight  # type: ignore[union-attr]  # all but the norms is shared


def test_programs_name_a_style_or_a_blend(tmp_path: Path) -> None:
    model = stylize.load(model_of(tmp_path), device="cpu")
    photo = Image.open(picture(tmp_path / "a.png"))
    assert model.styles == NAMES
    wave, night = (torch.tensor(list(model(photo, style=name).tobytes())) for name in ("wave", "night"))
    assert not torch.equal(wave, night)
    text, table = (model(photo, style=s) for s in ("wave:3,mosaic:1", {"wave": 0.75, "mosaic": 0.25}))
    assert text.tobytes() == table.tobytes()
    with pytest.raises(StylizeError, match="this model has 3 styles, must be one of 'wave', 'mosaic', 'night'"):
        model(photo)
    with pytest.raises(StylizeError, match=r"got .wav., must be one of .* Did you mean 'wave'"):
        model(photo, style="wav")
    assert model.apply_file(tmp_path / "a.png", style="wave:3,mosaic:1").name == "a.wave-75-mosaic-25.png"


@pytest.mark.parametrize(
    ("wanted", "message"),
    (
        ("wave:0", "got the weight '0' for 'wave', must be a number above 0"),
        ("wave:nan", "got the weight 'nan'"),
        ("wave:-1,mosaic:2", "got the weight '-1'"),
        ("wave,wave", "got 'wave' twice"),
        ("", "got '', must be one of"),
        ({}, "got no style"),
        ("wave:x", "got the weight 'x'"),
    ),
)
def test_blends_that_cannot_be_are_refused(wanted: Any, message: str) -> None:
    with pytest.raises(StylizeError) as caught:
        blend_of(wanted, NAMES)
    assert message in str(caught.value)


def test_a_blend_in_strips_is_that_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blend = load_model(model_of(tmp_path))[0].blended([0.6, 0.4, 0])
    stylizer, source = Stylizer(blend, Compute(CPU)), raster_of([photograph()], Metadata())
    keep_maps(CPU, monkeypatch)
    painted = paint_large(stylizer, source, None, PaintOptions(), room(GIB, tmp_path), lambda _: None)
    whole = raster_of([stylizer(source.picture())], Metadata())
    assert (levels(painted) - levels(whole)).abs().max() <= 1


def test_apply_paints_a_style_and_a_sheet(tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png", 400, 300)
    command = ["apply", str(photo), "--model", str(model_of(tmp_path))]
    painted = CliRunner().invoke(cli, [*command, "--style", "wave:0.6,mosaic:0.4"])
    assert painted.exit_code == 0 and "a.wave-60-mosaic-40.png" in painted.output, painted.output
    refused = CliRunner().invoke(cli, command)
    assert refused.exit_code == 1 and "--style: this model has 3 styles" in str(refused.exception)
    sheet = CliRunner().invoke(cli, [*command, "--sheet"])
    assert sheet.exit_code == 0, sheet.output
    with Image.open(tmp_path / "a.sheet.png") as found:
        assert found.width == 5 * 400 + 4 * 6 and found.height > 2 * 300
    again = CliRunner().invoke(cli, [*command[:1], str(tmp_path / "b.png"), *command[1:], "--sheet"])
    assert again.exit_code == 1 and "2 of 2 pictures failed" in str(again.exception)
    assert "is there already" in str(again.exception) and "no such file" in str(again.exception)
    folder = CliRunner().invoke(cli, ["apply", str(tmp_path), *command[2:], "--sheet", "--overwrite"])
    assert folder.exit_code == 0 and "wave.sheet.png" not in folder.output, folder.output  # painted ones are left alone
    assert CliRunner().invoke(cli, [*command, "--sheet", "--overwrite", "--style", "night:1,wave:1"]).exit_code == 0


def test_info_names_the_styles(tmp_path: Path) -> None:
    told = CliRunner().invoke(cli, ["info", str(model_of(tmp_path))]).output
    assert "  - wave" in told and "  - night" in told


# Growing


def test_the_styles_of_a_built_in_file_have_their_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "built-in"
    folder.mkdir()
    run_folder = trained(tmp_path, {"train.steps": 2})
    (run_folder / "model.safetensors").rename(folder / "gallery.safetensors")
    monkeypatch.setattr(models, "BUILT_IN", folder)
    whole, card = load_model(folder / "gallery.safetensors")
    assert stylize.styles() == list(NAMES)
    image = torch.rand(3, 32, 40)
    for number, name in enumerate(NAMES):
        model = stylize.load(name, device="cpu", precision="fp32")
        expected = Stylizer(whole.blended([float(i == number) for i in range(3)]), Compute(CPU))
        assert torch.equal(model(image), stylize.Model(whole, card, Compute(CPU))(image, style=name))
        assert torch.equal(model(image), expected.paint_many([Picture(image)])[0].rgb)
        assert (model.card.style, model.card.all_styles) == (name, (name,))
        assert model.card.validation == card.by_style[name]
        assert model.card.style_pictures == (card.style_pictures[number],)
        assert model.card.config["style"]["image"] == f"{name}.png" and not model.card.config["styles"]
        assert model(image, refine=1).shape == image.shape
    listed = CliRunner().invoke(cli, ["list", "styles"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(NAMES)
    assert listed[1].endswith("johnson, instance norm, width 4; --style blends wave, mosaic, night")
    picture(tmp_path / "p.png", seed=7)
    apply = ["apply", str(tmp_path / "p.png"), "--model", "mosaic", "--precision", "fp32"]
    for arguments, file in (([], "p.mosaic.png"), (["--style", "wave:1,night:1"], "p.wave-50-night-50.png")):
        done = CliRunner().invoke(cli, [*apply, *arguments])
        assert (done.exit_code, Path(done.stdout.strip()).name) == (0, file)
    assert CliRunner().invoke(cli, [*apply, "--sheet"]).exit_code == 0
    assert "style       mosaic" in CliRunner().invoke(cli, ["info", "mosaic"]).stdout
    monkeypatch.chdir(tmp_path)
    assert models.find_model(None, tmp_path / "no-runs").style == "wave"


@pytest.mark.parametrize("norm", AFFINE)
def test_a_new_style_by_norms_alone_leaves_the_others_bit_for_bit(tmp_path: Path, norm: str) -> None:
    start = model_of(tmp_path, norm=norm)
    before = state(start)
    changes = {"train.start": str(start), "train.only": "norms", "generator.norm": norm}
    folder = trained(tmp_path, changes, names=("fourth",))
    card = read_card(folder / "model.safetensors")
    assert card.styles == (*NAMES, "fourth")
    after = state(folder / "model.safetensors")
    affine = [n for n in before if before[n].dim() == 2 and before[n].shape[0] == 3]
    assert affine
    for name, value in before.items():
        kept = after[name][:3] if name in affine else after[name]
        assert torch.equal(kept, value), name
    assert any(not torch.equal(after[name][3], before[name].mean(0)) for name in affine)


def test_a_new_style_can_stand_alone_and_resuming_never_looks_at_the_start(tmp_path: Path) -> None:
    start = model_of(tmp_path)
    changes = {"train.start": str(start), "train.only": "norms", "train.keep_styles": False}
    assert read_card(trained(tmp_path / "alone", changes, ("fourth",)) / "model.safetensors").styles == ()
    kept = {**changes, "train.keep_styles": True}
    folder = trained(tmp_path / "kept", kept, ("fourth",))
    pictures = (*read_card(start).style_pictures, read_card(folder / "model.safetensors").style_pictures[3])
    assert all(pictures)
    start.unlink()
    config = load_config(
        config_of(tmp_path / "kept", {**kept, "train.steps": 6, "train.validate_every": 1}, ("fourth",))
    )
    run.train(config, folder, resume=True, quiet=True)
    card = read_card(folder / "model.safetensors")
    assert len(card.styles) == 4
    assert card.style_pictures == pictures


def test_the_style_of_a_single_model_is_kept(tmp_path: Path) -> None:
    start = model_of(tmp_path, names=("only",))
    folder = trained(tmp_path, {"train.start": str(start), "train.only": "norms"}, ("new",))
    assert read_card(folder / "model.safetensors").styles == ("many", "new")


def test_all_weights_begin_from_a_model_by_the_names_of_styles(tmp_path: Path) -> None:
    start = model_of(tmp_path)
    config = load_config(config_of(tmp_path, {"train.start": str(start)}, ("night", "new")))
    generator = build_run(config, CPU, tmp_path).trainer.generator
    given = load_model(start)[0]
    for name, norm in generator.norms().items():
        theirs = given.norms()[name].weight
        assert norm.weight is not None and theirs is not None
        assert torch.equal(norm.weight[0], theirs[2]) and torch.allclose(norm.weight[1], theirs.mean(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"generator.width": 8}, "has generator.width 4, must be as here: 8"),
        ({"generator.norm": "batch"}, "has generator.norm 'instance', must be as here: 'batch'"),
        ({"generator.name": "johnson_lite"}, "has generator.name 'johnson', must be as here: 'johnson_lite'"),
        ({"train.start": "nowhere.safetensors"}, "train.start: got 'nowhere.safetensors', must be"),
    ),
)
def test_a_start_that_does_not_fit_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = load_config(config_of(tmp_path, {"train.start": str(model_of(tmp_path)), **changes}))
    with pytest.raises(StylizeError) as caught:
        build_run(config, CPU, tmp_path)
    assert message in str(caught.value)


def test_a_kept_style_and_a_new_one_have_different_names(tmp_path: Path) -> None:
    changes = {"train.start": str(model_of(tmp_path)), "train.only": "norms"}
    with pytest.raises(StylizeError, match=r"got the name .wave., which .* has already"):
        build_run(load_config(config_of(tmp_path, changes, ("wave",))), CPU, tmp_path)


# Without a config


def test_pictures_alone_are_trained_with_settings_that_suit_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylize.suggest._seconds_a_step", lambda config, device: 0.5)
    styles(tmp_path)
    pictures = [tmp_path / f"{name}.png" for name in NAMES]
    one = suggested_config(pictures[:1], None, None, 2, "cpu")
    assert (one.name, one.train.steps, one.style and one.style.image) == ("wave", 204, str(pictures[0]))
    longer = suggested_config(pictures[:1], None, "mine", 20, "cpu")
    assert (longer.name, longer.train.steps) == ("mine", 2040)
    assert suggested_config(pictures[:1], None, None, 0.01, "cpu").train.steps == 60
    assert [style.name for style in suggested_config(pictures, None, None, 2, "cpu").styles] == list(NAMES)
    (tmp_path / "b").mkdir()
    with pytest.raises(StylizeError, match="two pictures named 'wave'"):
        suggested_config([pictures[0], picture(tmp_path / "b" / "wave.png")], None, None, 2, "cpu")


def test_train_takes_pictures_in_place_of_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    styles(tmp_path)
    small = ["--set", "generator.width=4", "--set", "train.steps=2", "--set", "content.crop=64", "--name", "quick"]
    done = CliRunner().invoke(cli, ["train", "--style", "wave.png", "mosaic.png", *small])
    assert done.exit_code == 0, done.output
    assert read_card(tmp_path / "runs" / "quick" / "model.safetensors").styles == ("wave", "mosaic")
    assert load_config(tmp_path / "runs" / "quick" / "config.yaml").train.steps == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ([], "must have either --config or --style"),
        (["--config", "a.yaml", "--style", "a.png"], "must have either --config or --style"),
        (["--config", "a.yaml", "--minutes", "3"], "go with --style"),
        (["--config", "a.yaml", "b.png"], "go with --style"),
        (["--style", "a.png", "--resume"], "--resume takes the config of the run folder"),
    ),
)
def test_arguments_of_train_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["train", *arguments])
    assert done.exit_code == 2 and message in done.output


# The grid


def test_a_grid_is_found_at_its_period_and_in_photographs_none() -> None:
    torch.manual_seed(0)
    x = torch.arange(128.0)
    plain = torch.rand(3, 128, 128)
    woven = plain + 0.3 * torch.cos(2 * torch.pi * x / 4)
    assert all(0.7 < score < 1.4 for score in grid_scores(plain).values())
    found = grid_scores(woven.mT)
    assert found[4] > 3 and found[2] < 1.4 and found[8] < 1.4
    mean = (found[4] + grid_scores(plain)[4]) / 2
    assert mean_grid([woven.mT, plain, plain[:, :20]]) == pytest.approx(mean)
    assert grid_scores(plain[:, :20]) == {} and math.isnan(mean_grid([plain[:, :20]]))
