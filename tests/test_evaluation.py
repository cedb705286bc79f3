import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from click import UsageError
from fixtures_runs import picture, write_config, write_model
from PIL import Image
from test_images import icc_profile
from torch import Tensor

from stylize.cli import cli
from stylize.errors import StylizeError
from stylize.evaluation.contrast import change_contrast, rms_difference
from stylize.evaluation.evaluate import (
    CONTRASTS,
    EquivalentIterations,
    Evaluation,
    EvaluationConfig,
    Mean,
    Photograph,
    equivalent_iterations,
    evaluate,
    quantile,
)
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg_weights import load_vgg
from stylize.optimization.gatys import OptimizationConfig, optimize
from stylize.training.photographs import validation_images

TAPS = ("relu1_1", "relu2_1")


def noise(seed: int, side_px: int = 40) -> Tensor:
    """Coarse coloured noise, `(3, side, side)` in [0.2, 0.8]: change of contrast up to 1.5 clips little of it."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.2
    return torch.nn.functional.interpolate(coarse, (side_px, side_px), mode="bilinear")[0]


@pytest.fixture(scope="module")
def loss() -> PerceptualLoss:
    config = LossConfig(vgg="random", content_layers={"relu2_1": 1.0}, style_layers=dict.fromkeys(TAPS, 1.0))
    return PerceptualLoss(load_vgg("random", TAPS).vgg, config, [noise(1, 48)])


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    return [Photograph(f"{seed}.png", noise(seed)) for seed in (11, 12, 13)]


@pytest.fixture(scope="module")
def unchanged(loss: PerceptualLoss, photographs: list[Photograph]) -> Evaluation:
    return evaluate(lambda image: image, loss, photographs, EvaluationConfig(iterations=3))


# After how many iterations


@pytest.mark.parametrize(
    ("totals", "objective", "expected"),
    (
        ([8.0, 4.0, 2.0], 8.0, 0.0),
        ([8.0, 4.0, 2.0], 9.0, 0.0),
        ([8.0, 4.0, 2.0], 5.0, 0.75),
        ([8.0, 4.0, 2.0], 4.0, 1.0),
        ([8.0, 4.0, 2.0], 2.0, 2.0),
        ([8.0, 4.0, 4.0, 4.0, 2.0], 4.0, 1.0),
        ([8.0, 4.0, 4.0, 4.0, 2.0], 3.0, 3.5),
        ([8.0, 4.0, 7.0, 2.0], 3.0, 2.5),
        ([8.0], 8.0, 0.0),
    ),
)
def test_equivalent_iterations_are_the_first_crossing_of_the_best_so_far(
    totals: list[float], objective: float, expected: float
) -> None:
    assert equivalent_iterations(totals, objective) == expected


@pytest.mark.parametrize("totals", ([8.0], [8.0, 4.0, 3.1], [8.0, 4.0, 4.0, 4.0]))
def test_what_is_never_reached_has_no_number(totals: list[float]) -> None:
    assert equivalent_iterations(totals, 3.0) is None


def test_quantiles_are_numbers_only_where_both_neighbours_are() -> None:
    assert [quantile([4.0, 1.0, 2.0, 3.0], q) for q in (0.0, 0.25, 0.5, 1.0)] == [1.0, 1.75, 2.5, 4.0]
    assert [quantile([None, 1.0, 2.0, None], q) for q in (0.25, 0.5, 0.75)] == [1.75, None, None]
    assert quantile([1.0, 2.0, None], 0.5) == 2.0
    assert quantile([None], 0.5) is None


def test_iterations_beyond_those_made_are_told_as_such() -> None:
    told = str(EquivalentIterations.of([10.0, None, 30.0, 20.0, None], 200))
    assert told == "median 30.0, quartiles 20.0 and more than 200; more than 200 on 2 of 5 photographs"


def test_every_iterate_is_worth_its_own_number(loss: PerceptualLoss) -> None:
    image = noise(11)
    iterates = list(optimize(loss, image[None], OptimizationConfig(iterations=6)))
    for iterate in iterates[1:]:
        subject = [Photograph("a", image, iterate.picture[0])]
        (result,) = evaluate(None, loss, subject, EvaluationConfig(iterations=6)).photographs
        assert result.optimization is not None
        assert result.optimization.equivalent_iterations == pytest.approx(iterate.iteration, abs=0.01)
        assert result.stylized["total"] == pytest.approx(iterate.terms["total"], rel=1e-5)


# What is measured


def test_a_painter_that_changes_nothing_has_the_losses_of_the_photographs(unchanged: Evaluation) -> None:
    for result in unchanged.photographs:
        assert result.stylized == result.unstylized
        assert result.stylized["content_correlation"] == pytest.approx(1, abs=1e-5)
        assert result.stylized["content"] == 0
        assert result.optimization is not None
        assert result.optimization.equivalent_iterations == pytest.approx(0, abs=1e-4)


def test_a_painter_that_changes_nothing_keeps_the_change_of_contrast(
    unchanged: Evaluation, photographs: list[Photograph]
) -> None:
    for result, photograph in zip(unchanged.photographs, photographs, strict=True):
        image = photograph.image[None]
        for of_contrast, factor in zip(result.contrasts, CONTRASTS, strict=True):
            assert of_contrast.contrast == factor
            assert of_contrast.stylized_rms == of_contrast.photograph_rms
            expected = rms_difference(change_contrast(image, factor), image)
            assert of_contrast.stylized_rms == pytest.approx(expected, abs=1e-6)
        by_factor = {of_contrast.contrast: of_contrast for of_contrast in result.contrasts}
        assert by_factor[1.0].stylized_rms == 0
        assert by_factor[0.25].stylized_rms > by_factor[0.5].stylized_rms > 0.02
        assert by_factor[1.0].style == result.stylized["style"] != by_factor[0.25].style


def test_a_painter_that_evens_contrast_out_has_no_change(loss: PerceptualLoss, photographs: list[Photograph]) -> None:
    gray = evaluate(torch.zeros_like, loss, photographs, EvaluationConfig(iterations=0))
    for means in gray.contrasts().values():
        assert means["stylized_rms"] == Mean(0, 0, 0)
    assert gray.contrasts()[0.25]["photograph_rms"].mean > 0.02


def test_means_stand_within_their_intervals(unchanged: Evaluation) -> None:
    terms = unchanged.terms()
    assert list(terms) == ["unstylized", "stylized", "optimized"]
    for means in terms.values():
        assert list(means) == [
            "total", "style", "style/relu1_1", "style/relu2_1", "content", "content/relu2_1",
            "content_correlation", "tv",
        ]  # fmt: skip
        assert all(mean.low <= mean.mean + 1e-9 and mean.mean <= mean.high + 1e-9 for mean in means.values())
    style = terms["stylized"]["style"]
    values = [result.stylized["style"] for result in unchanged.photographs]
    assert style.mean == pytest.approx(sum(values) / 3)
    assert min(values) <= style.low < style.mean < style.high <= max(values)


def test_the_optimization_lies_below_the_photographs(unchanged: Evaluation) -> None:
    terms = unchanged.terms()
    assert terms["optimized"]["total"].high < terms["unstylized"]["total"].low


def test_without_iterations_the_model_stands_alone(loss: PerceptualLoss, photographs: list[Photograph]) -> None:
    alone = evaluate(lambda image: image, loss, photographs, EvaluationConfig(iterations=0))
    assert list(alone.terms()) == ["unstylized", "stylized"]
    assert alone.equivalent_iterations() is None
    assert alone.as_data()["summary"]["equivalent_iterations"] is None


def test_the_noise_is_where_the_optimization_begins(loss: PerceptualLoss, photographs: list[Photograph]) -> None:
    config = EvaluationConfig(iterations=1, start="noise")
    (result,) = evaluate(lambda image: image, loss, photographs[:1], config).photographs
    assert result.optimization is not None
    image = photographs[0].image[None]
    of_noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    assert result.optimization.totals[0] == pytest.approx(float(loss(of_noise, image)["total"]), rel=1e-5)


def test_a_loss_that_is_not_finite_is_refused(loss: PerceptualLoss, photographs: list[Photograph]) -> None:
    with pytest.raises(StylizeError) as caught:
        evaluate(lambda image: image * math.nan, loss, photographs, EvaluationConfig(iterations=0))
    assert str(caught.value) == (
        "11.png, stylized: got nan for content/relu2_1, must be finite; look at the picture, and at the weights of the "
        "loss"
    )


def test_nothing_to_evaluate_is_refused(loss: PerceptualLoss) -> None:
    with pytest.raises(StylizeError, match=r"^got no photographs to evaluate, must be at least 1$"):
        evaluate(lambda image: image, loss, [])
    with pytest.raises(ValueError, match="without a painter every photograph must bring its stylized picture"):
        evaluate(None, loss, [Photograph("a", noise(11))])


# The command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, seed in {"a": 11, "b": 12, "c": 13}.items():
        picture(tmp_path / "photos" / f"{name}.png", 64, 56, seed=seed)
    picture(tmp_path / "style.png", seed=1)
    trained = {
        "seed": 3,
        "style": {"image": "elsewhere.jpg", "images": [], "size": 44},
        "loss": {"vgg": "random", "content_layers": {"relu2_1": 1.0}, "style_layers": {"relu1_1": 1.0}},
    }
    write_model(tmp_path / "runs" / "dots" / "model.safetensors", config=trained)
    return tmp_path


def call(*arguments: str, model: str = "runs/dots") -> None:
    common = ("--content", "photos", "--size", "48", "--device", "cpu")
    cli.main(["evaluate", model, *common, *arguments], standalone_mode=False)


def call_for_json(*arguments: str, model: str = "runs/dots") -> dict[str, Any]:
    call("--json", "new/found.json", *arguments, model=model)
    return cast(dict[str, Any], json.loads(Path("new/found.json").read_text("utf-8"), parse_constant=pytest.fail))


ALONE = ("--style", "style.png", "--iterations", "0")
RANDOM = (
    "--style", "style.png", "--set", "loss.vgg=random", "--set", "loss.content_layers={relu2_1: 1.0}",
    "--set", "loss.style_layers={relu1_1: 1.0, relu2_1: 1.0}",
)  # fmt: skip


def optimize_two(*arguments: str) -> None:
    for name in ("a", "b"):
        paths = (f"photos/{name}.png", "-o", f"painted/{name}.png")
        common = ("--size", "48", "--iterations", "12", "--device", "cpu")
        cli.main(["optimize", *paths, *common, *arguments], standalone_mode=False)


@pytest.mark.parametrize("start", ("content", "noise"))
def test_what_optimize_writes_is_worth_its_iterations(folder: Path, start: str) -> None:
    optimize_two(*RANDOM, "--start", start)
    found = call_for_json(*RANDOM, "--start", start, "--iterations", "16", model="painted")
    for photograph in found["photographs"]:
        totals = photograph["optimization"]["totals"]
        assert totals[11] / totals[12] > 1.002 and totals[12] / totals[13] > 1.002  # else any number would do
        assert photograph["optimization"]["equivalent_iterations"] == pytest.approx(12, rel=0.1)
    assert found["summary"]["equivalent_iterations"]["median"] == pytest.approx(12, rel=0.1)
    assert found["summary"]["contrasts"] == []


def test_a_table_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("--style", "style.png", "--iterations", "2")
    out = capsys.readouterr().out
    head, _, columns, *rows = out.splitlines()
    assert head == "3 photographs, longer side 48 px, VGG-19: random, seed 3; means with 95 % confidence intervals"
    assert columns.split("  ")[0] == "term"
    assert columns.endswith("2 iterations of L-BFGS")
    assert [row.split()[0] for row in rows[:7]] == [
        "total", "style", "style/relu1_1", "content", "content/relu2_1", "content_correlation", "tv",
    ]  # fmt: skip
    assert len({len(row) for row in (columns, *rows[:7])}) == 1
    assert [row.split()[0] for row in rows[8:13]] == ["contrast", "0.25", "0.5", "1", "1.5"]
    assert [row.split()[0] for row in rows[14:21]] == [
        "measure", "grid_2px", "grid_4px", "grid_8px", "wasserstein", "ssim", "cfsd",
    ]  # fmt: skip  # the photographs are too small for a frame, and have no even areas
    assert rows[22] == (
        "Iterations of L-BFGS from the photograph to the same total: median 0.0, quartiles 0.0 and 0.0; more than 2 on "
        "0 of 3 photographs"
    )


def test_json_holds_settings_summaries_and_every_photograph(folder: Path) -> None:
    found = call_for_json("--style", "style.png", "--iterations", "2", "--photographs", "2")
    assert list(found) == ["settings", "versions", "summary", "photographs"]
    settings = found["settings"]
    assert settings["model"] == str(Path("runs/dots/model.safetensors"))
    assert (settings["vgg"], settings["size_px"], settings["iterations"]) == ("random, seed 3", 48, 2)
    assert settings["style"] == {"image": str(folder / "style.png"), "images": [], "size": 44}
    assert settings["loss"]["style_layers"] == {"relu1_1": 1.0}
    assert found["versions"]["torch"] == torch.__version__
    assert [photograph["name"] for photograph in found["photographs"]] == ["a.png", "b.png"]
    for photograph in found["photographs"]:
        assert len(photograph["optimization"]["totals"]) == 3
        assert photograph["optimization"]["equivalent_iterations"] == 0  # an untrained model
        assert [of_contrast["contrast"] for of_contrast in photograph["contrasts"]] == list(CONTRASTS)
    mean = found["summary"]["terms"]["stylized"]["total"]
    assert mean["low"] <= mean["mean"] <= mean["high"]
    assert found["summary"]["equivalent_iterations"]["median"] == 0
    measures = found["summary"]["measures"]
    assert measures["unstylized"]["ssim"]["mean"] == pytest.approx(1)
    each = [photograph["measures"]["stylized"]["ssim"] for photograph in found["photographs"]]
    assert measures["stylized"]["ssim"]["mean"] == pytest.approx(sum(each) / 2)


def test_a_total_that_is_not_reached_is_told_as_such(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = call_for_json(*RANDOM, "--start", "noise", "--iterations", "1", model="photos")
    assert [photograph["optimization"]["equivalent_iterations"] for photograph in found["photographs"]] == [None] * 3
    assert found["summary"]["equivalent_iterations"]["median"] is None
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Iterations of L-BFGS from noise to the same total: median more than 1, quartiles more than 1 and more than 1; "
        "more than 1 on 3 of 3 photographs"
    )


def test_the_losses_are_those_of_the_config_or_of_the_training_with_overrides_on_top(folder: Path) -> None:
    write_config(folder)
    of_config = call_for_json("--config", "a.yaml", "--iterations", "0")["settings"]
    assert (of_config["style"]["size"], list(of_config["loss"]["style_layers"])) == (48, ["relu1_1", "relu2_1"])
    changed = ("--set", "loss.style_weight=7", "--set", "style.size=40")
    overridden = call_for_json(*ALONE, *changed, "--overwrite")["settings"]
    assert (overridden["style"]["size"], overridden["loss"]["style_weight"]) == (40, 7)
    assert list(overridden["loss"]["style_layers"]) == ["relu1_1"]


def test_vgg_weights_that_were_a_file_are_told_to_be_imagenet(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights() -> Path:
        raise StylizeError("no ImageNet weights here")

    monkeypatch.setattr("stylize.losses.vgg_weights.imagenet_file", no_weights)
    layers = {"content_layers": {"relu2_1": 1.0}, "style_layers": {"relu1_1": 1.0}}
    write_model(folder / "own.safetensors", config={"loss": {"vgg": "own.pth", **layers}})
    with caplog.at_level("INFO", "stylize"), pytest.raises(StylizeError, match=r"^no ImageNet weights here$"):
        call(*ALONE, model="own.safetensors")
    assert caplog.messages[-1] == (
        "loss.vgg: the model was trained against the file own.pth; taken: imagenet; --set loss.vgg=FILE takes another"
    )
    caplog.clear()
    call(*ALONE, "--set", "loss.vgg=random", model="own.safetensors")
    assert not [message for message in caplog.messages if message.startswith("loss.vgg")]


def test_the_first_photographs_by_name_are_taken_and_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "stylize"):
        call(*ALONE, "--photographs", "2")
    assert "of 3 photographs the first 2 by name; --photographs takes more" in caplog.messages


def test_photographs_without_a_picture_are_told_and_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(folder / "painted" / "b.jpg", 64, 56, seed=20)
    picture(folder / "painted" / "z.jpg", 64, 56, seed=20)
    call(*RANDOM, "--iterations", "0", model="painted")
    assert "left out, for there is no picture of them: a.png, c.png" in caplog.messages
    assert capsys.readouterr().out.startswith("1 photograph, longer side 48 px")


def test_pictures_that_differ_by_a_few_px_are_resized_and_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(folder / "painted" / "a.png", 64, 56, seed=20)
    picture(folder / "painted" / "b.png", 48, 41, seed=20)
    with caplog.at_level("INFO", "stylize"):
        call(*RANDOM, "--iterations", "0", model="painted")
    assert "1 of 2 pictures are resized by a few px to the size of their photographs" in caplog.messages


def test_a_photograph_that_cannot_be_decoded_is_told_and_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "photos" / "b.png").read_bytes()
    (folder / "photos" / "b.png").write_bytes(whole[: len(whole) // 2])
    call(*ALONE)
    (message,) = [message for message in caplog.messages if message.startswith("skipped: photos")]
    assert "b.png: cannot be read as an image" in message
    assert capsys.readouterr().out.startswith("2 photographs, ")


def test_held_out_photographs_have_the_pixels_that_training_validates_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif, square = Image.Exif(), folder / "square"
    exif[0x0112] = 6
    picture(square / "a.jpg", 400, 400, seed=1, exif=exif, icc_profile=icc_profile(red=2, blue=0))
    picture(square / "b.jpg", 99, 99, seed=2)
    picture(square / "c.webp", 200, 200, seed=3)
    picture(square / "d.bmp", 130, 130, seed=4)
    levels = np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)
    Image.fromarray(levels).save(square / "e.png")
    colours = np.random.default_rng(0).integers(0, 256, (80, 80, 4), dtype=np.uint8)
    Image.fromarray(colours).save(square / "f.png")
    seen: list[Photograph] = []
    monkeypatch.setattr("stylize.evaluation.evaluate.evaluate", lambda painter, loss, found, *more: seen.extend(found))
    with pytest.raises(AttributeError):  # there is nothing to show
        call(*ALONE, "--content", "square")
    expected = validation_images([square / photograph.name for photograph in seen], 48)
    assert [photograph.name for photograph in seen] == ["a.jpg", "b.jpg", "c.webp", "d.bmp", "e.png", "f.png"]
    for photograph, validated in zip(seen, expected, strict=True):
        assert torch.equal(photograph.image, validated)


def test_a_style_must_be_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="--style or --config: one must name the style"):
        call("--iterations", "0")


@pytest.fixture
def refusal(folder: Path) -> Callable[..., str]:
    """The message by which the command refuses its arguments."""

    def refused(*arguments: str, model: str = "runs/dots") -> str:
        with pytest.raises(StylizeError) as caught:
            call(*ALONE, *arguments, model=model)
        return str(caught.value)

    return refused


def test_the_place_of_the_json_is_checked_before_the_work(folder: Path, refusal: Callable[..., str]) -> None:
    nowhere = ("--content", "nowhere")  # looked for later
    assert refusal("--json", "found.txt", *nowhere) == "--json: got found.txt with the suffix '.txt', must be .json"
    (folder / "found.json").write_text("older")
    assert refusal("--json", "found.json", *nowhere) == "found.json: is there already; --overwrite replaces it"
    (folder / "folder.json").mkdir()
    assert refusal("--json", "folder.json", *nowhere) == "--json: folder.json is a folder, must be a file"
    assert refusal("--json", "found.json/a.json", *nowhere) == "found.json: is a file, must be a folder"
    assert (folder / "found.json").read_text() == "older"


def test_a_folder_without_photographs_is_refused(folder: Path, refusal: Callable[..., str]) -> None:
    assert refusal("--content", "nowhere") == "--content: nowhere must be a folder of photographs that exists"
    assert refusal("--content", "runs") == (
        "--content: runs holds no image files (jpg, png, webp, tiff, gif, avif, bmp, ppm)"
    )


def test_a_model_that_is_not_there_is_refused(folder: Path, refusal: Callable[..., str]) -> None:
    assert refusal(model="stained_gloss").endswith("Did you mean 'stained_glass'?")
    assert refusal(model="runs") == (
        "MODEL: runs holds neither model.safetensors nor pictures, must be a run folder or one of pictures"
    )


def test_a_config_of_a_training_that_is_none_is_refused(folder: Path, refusal: Callable[..., str]) -> None:
    write_model(folder / "odd.safetensors", config={"loss": {"content_weight": "much"}})
    assert refusal(model="odd.safetensors") == (
        "odd.safetensors: its config: loss.content_weight: got 'much', must be a number"
    )


def test_photographs_that_are_too_small_are_refused(folder: Path, refusal: Callable[..., str]) -> None:
    picture(folder / "photos" / "a.png", 64, 14)
    too_small = (
        "photos/a.png: got 48×10 px at --size 48, must be at least {} px in each direction; --size takes more of "
    )
    assert refusal() == too_small.format(16) + "a larger file"
    assert refusal("--iterations", "1") == too_small.format(32) + "a larger file"


def test_pictures_without_photographs_are_refused(folder: Path, refusal: Callable[..., str]) -> None:
    picture(folder / "painted" / "z.png", 64, 56)
    assert refusal(model="painted") == "MODEL: got no picture named as one of the photographs in photos, such as a.png"


def test_two_pictures_of_one_photograph_are_refused(folder: Path, refusal: Callable[..., str]) -> None:
    for suffix in ("jpg", "png"):
        picture(folder / "painted" / f"a.{suffix}", 64, 56)
    assert refusal(model="painted") == (
        "painted/a.png: a.jpg has the same stem, by which pictures and photographs are paired; take one away"
    )


def test_pictures_of_another_shape_are_refused(folder: Path, refusal: Callable[..., str]) -> None:
    picture(folder / "painted" / "a.png", 48, 48)
    assert refusal(*RANDOM, model="painted") == (
        "painted/a.png: got 48×48 px at --size 48, must be within 5% of its photograph's 48×42; stylize the whole "
        "photograph, or lower --size"
    )


def test_pictures_beside_a_model_s_file_are_no_folder_of_pictures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "style.png", folder / "runs" / "dots" / "a.png")
    call(*ALONE)
    assert "change of the stylized" in capsys.readouterr().out  # a model's: pictures have no contrast to change
