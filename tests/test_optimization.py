from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from click import UsageError
from PIL import Image
from skimage import data
from torch import Tensor

from stylize.cli import cli
from stylize.errors import StylizeError
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg_weights import load_vgg
from stylize.models.file import load_model
from stylize.models.find import find_model
from stylize.optimization.gatys import Iterate, OptimizationConfig, optimize
from stylize.training.tensorboard import read_events

METHODS = pytest.mark.parametrize("method", ("lbfgs", "adam"))


class Distance:
    """In place of a perceptual loss: the weighted squared distance from a picture, and how often it was asked for."""

    def __init__(self, target: float, weights: Tensor | float = 1.0) -> None:
        self.target = target
        self.weights = weights
        self.calls = 0

    def towards(self, content: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
        def measure(stylized: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            return {"total": (self.weights * (stylized - self.target).square()).mean()}

        return measure


def run(loss: Distance, content: Tensor, **config: object) -> list[Iterate]:
    return list(optimize(cast(PerceptualLoss, loss), content, OptimizationConfig.model_validate(config)))


def perceptual_loss() -> PerceptualLoss:
    taps = ("relu1_1", "relu2_1")
    config = LossConfig(vgg="random", content_layers={"relu2_1": 1.0}, style_layers=dict.fromkeys(taps, 1.0))
    style = torch.from_numpy(data.coffee()).permute(2, 0, 1)[:, ::6, ::6] / 255
    return PerceptualLoss(load_vgg("random", taps).vgg, config, [style])


def photograph(side_px: int = 48) -> Tensor:
    image = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None] / 255
    return torch.nn.functional.interpolate(image, (side_px, side_px), mode="bicubic", antialias=True).clamp(0, 1)


def test_lbfgs_finds_the_minimum_of_a_parabola_at_once_and_adam_in_time() -> None:
    content, weights = torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40) + 0.1
    assert run(Distance(0.3, weights), content, iterations=15)[-1].terms["total"] < 1e-6
    assert run(Distance(0.3, weights), content, iterations=100, method="adam")[-1].terms["total"] < 1e-3


def test_lbfgs_shortens_a_step_that_is_too_long() -> None:
    class Saturating(Distance):
        def towards(self, content: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
            return lambda stylized: {"total": ((stylized - self.target).square() * 100 + 1).log().mean()}

    totals = [i.terms["total"] for i in run(Saturating(0.3), torch.rand(1, 3, 40, 40), iterations=10)]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < 0.05 * totals[0]


@METHODS
def test_every_iterate_is_the_picture_whose_loss_is_told(method: str) -> None:
    iterates = run(Distance(0.3), torch.rand(1, 3, 40, 40), iterations=4, method=method)
    assert [iterate.iteration for iterate in iterates] == [0, 1, 2, 3, 4]
    for iterate in iterates:
        assert iterate.terms["total"] == pytest.approx(float((iterate.picture - 0.3).square().mean()), rel=1e-5)


@METHODS
def test_pictures_stay_within_the_range(method: str) -> None:
    last = run(Distance(1.7), torch.rand(1, 3, 40, 40), iterations=60, method=method, learning_rate=0.1)[-1]
    assert last.picture.eq(1).all()


def test_nothing_is_computed_twice() -> None:
    loss = Distance(0.3, torch.rand(1, 3, 40, 40) + 0.1)
    run(loss, torch.rand(1, 3, 40, 40), iterations=20)
    assert loss.calls <= 35  # 20 more if a step asked again where the one before has ended
    loss.calls = 0
    run(loss, torch.rand(1, 3, 40, 40), iterations=20, method="adam")
    assert loss.calls == 21


def test_a_pyramid_begins_small_and_shares_the_iterations() -> None:
    iterates = run(Distance(0.3), torch.rand(1, 3, 97, 130), iterations=7, levels=2)
    assert [tuple(iterate.picture.shape[2:]) for iterate in iterates] == 4 * [(49, 65)] + 5 * [(97, 130)]
    assert [iterate.iteration for iterate in iterates] == [0, 1, 2, 3, 3, 4, 5, 6, 7]


def test_a_pyramid_that_begins_too_small_is_refused() -> None:
    with pytest.raises(StylizeError) as caught:
        run(Distance(0.3), torch.rand(1, 3, 100, 200), levels=3)
    assert str(caught.value) == (
        "got 3 levels for a picture of 200×100 px, the smallest of 50×25, must be at least 32 px in each direction"
    )


def test_noise_is_that_of_the_seed() -> None:
    content = torch.rand(1, 3, 40, 40)
    starts = [run(Distance(0.3), content, iterations=1, start="noise", seed=seed)[0].picture for seed in (1, 1, 2)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert torch.equal(run(Distance(0.3), content, iterations=1)[0].picture, content)


def test_fixed_photographs_give_the_terms_of_a_call() -> None:
    loss, content = perceptual_loss(), photograph()
    stylized = torch.rand_like(content)
    expected, fixed = loss(stylized, content), loss.towards(content)(stylized)
    assert expected.keys() == fixed.keys()
    assert all(torch.equal(expected[name], fixed[name]) for name in expected)


@METHODS
@pytest.mark.parametrize("start", ("content", "noise"))
def test_the_loss_becomes_lower_than_that_of_a_trained_network(method: str, start: str) -> None:
    loss, content = perceptual_loss(), photograph()
    model, _ = load_model(find_model("stained_glass").path)
    with torch.inference_mode():
        of_network = float(loss(model.eval()(content), content)["total"])
    config = OptimizationConfig.model_validate({"iterations": 60, "method": method, "start": start})
    totals = [iterate.terms["total"] for iterate in optimize(loss, content, config)]
    assert totals[-1] < of_network
    assert totals[-1] < 0.5 * totals[0]


# The command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).resize((72, 48)).save("cat.png", dpi=(300, 300))
    Image.fromarray(data.coffee()).resize((80, 64)).save("cup.jpg")
    return tmp_path


def call(*arguments: str) -> None:
    cli.main(["optimize", "cat.png", "-o", "out.png", "--device", "cpu", *arguments], standalone_mode=False)


RANDOM = ("--set", "loss.vgg=random", "--iterations", "3", "--style", "cup.jpg")


def test_a_picture_is_written_with_the_notes_of_the_photograph(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*RANDOM, "--size", "64")
    assert capsys.readouterr().out == "out.png\n"
    with Image.open("out.png") as out:
        assert out.size == (64, 43)
        assert out.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_tensorboard_gets_losses_and_pictures(folder: Path) -> None:
    call(*RANDOM, "--log", "log/cat", "--log-every", "2")
    (file,) = (folder / "log" / "cat").iterdir()
    found = [(value.tag, event.step) for event in read_events(file) for value in event.summary.value]
    assert [step for tag, step in found if tag == "optimization/total"] == [0, 1, 2, 3]
    assert [step for tag, step in found if tag == "optimization/picture"] == [0, 2, 3]


def test_a_run_s_config_gives_style_and_losses(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "run.yaml").write_text(
        "name: cup\nstyle: {image: cup.jpg, size: 64}\ncontent: {path: .}\n"
        "loss: {vgg: random, content_layers: {relu2_1: 1.0}, style_layers: {relu1_1: 1.0}}\n"
    )
    with caplog.at_level("INFO", "stylize"):
        call("--config", "run.yaml", "--iterations", "2")
    assert caplog.messages[-1].startswith("after 2 iterations: total ")


def test_a_style_must_be_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="--style or --config: one must name the style"):
        call()


def test_an_output_that_is_there_is_kept(folder: Path) -> None:
    (folder / "out.png").write_text("older")
    with pytest.raises(StylizeError) as caught:
        call(*RANDOM)
    assert str(caught.value) == "out.png: is there already; --overwrite replaces it"
    assert (folder / "out.png").read_text() == "older"
    call(*RANDOM, "--overwrite")
    with Image.open("out.png") as out:
        assert out.size == (72, 48)


def test_a_mistake_in_an_override_is_told(folder: Path) -> None:
    with pytest.raises(StylizeError, match=r"^--set: loss\.style_weigth"):
        call(*RANDOM, "--set", "loss.style_weigth=3")
