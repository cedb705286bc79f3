"""What an image, and a step, may contribute: even photographs, and gradients far from what is usual."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_runs import picture, write_config
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stylize import ops
from stylize.build import Run, build_run
from stylize.cli import main
from stylize.config import load_config
from stylize.generators import GENERATORS
from stylize.norms import NORMS, build_norm
from stylize.system.compute import Compute
from stylize.training.bounds import LEAST_STEPS, GradientBounds
from stylize.training.contrast import has_contrast, pixels_have_contrast
from stylize.training.monitor import Monitor
from stylize.training.updates import why_not_finite

CPU = torch.device("cpu")
PX = 40


def even(level: int) -> NDArray[np.uint8]:
    return np.full((PX, PX, 3), level, np.uint8)


def sky(levels: int) -> NDArray[np.uint8]:
    rows = np.arange(PX)[:, None, None] * levels // PX
    return np.broadcast_to(np.array([120, 160, 220]) + rows, (PX, PX, 3)).astype(np.uint8)


EVEN = {"black": even(0), "gray": even(128), "white": even(255)}
NEARLY_EVEN = {"a sky of two levels": sky(2), "a sky of four levels": sky(4), "a sky of sixteen levels": sky(16)}


def build(folder: Path, changes: dict[str, Any], name: str = "run") -> Run:
    (folder / name).mkdir(exist_ok=True)
    return build_run(load_config(write_config(folder, changes)), CPU, folder / name)


def batch_of(*pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())


def photograph(seed: int = 0) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(40, 216, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((PX, PX), Image.Resampling.BICUBIC))


def gradients(run: Run, *pictures: NDArray[np.uint8]) -> list[Tensor]:
    """The gradient of every weight after a step without an update."""
    trainer = run.trainer
    trainer.generator.train()
    batch = batch_of(*pictures)
    trainer.bounds.begin_step(len(batch))
    trainer.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with trainer.compute.context():
        trainer._terms_and_gradients(trainer.compute.photographs(batch))
    return [p.grad.clone() for p in trainer.generator.parameters() if p.grad is not None]


# Image by image


@pytest.mark.parametrize("kernels", (True, False), ids=("kernels", "plain"))
@pytest.mark.parametrize("norm", ("instance", "layer", "none"))
def test_an_even_image_contributes_nothing(tmp_path: Path, norm: str, kernels: bool) -> None:
    run = build(tmp_path, {"generator.norm": norm, "generator.width": 16})

    def both() -> None:
        (alone,) = [gradients(run, photograph(), photograph())]
        for image in EVEN.values():
            for with_even, usual in zip(gradients(run, photograph(), image), alone, strict=True):
                torch.testing.assert_close(with_even, usual / 2, rtol=1e-4, atol=1e-6 * float(usual.norm() + 1))
            assert all(not g.any() for g in gradients(run, image, image))

    if kernels:
        both()
    else:
        with ops.reference():
            both()


@pytest.mark.parametrize("gate", (0.0, 0.5, 1.0))
@pytest.mark.parametrize("kernels", (True, False), ids=("kernels", "plain"))
def test_an_even_image_of_a_batch_with_shared_statistics_blows_nothing_up(
    tmp_path: Path, gate: float, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(tmp_path, {"generator.norm": "batch_instance", "generator.width": 16})
    with torch.no_grad():
        for norm in run.trainer.generator.norms().values():
            norm.gate.fill_(gate)  # type: ignore[operator, union-attr]
    if not kernels:
        monkeypatch.setenv("STYLIZE_REFERENCE", "1")
    usual = torch.nn.utils.get_total_norm(gradients(run, photograph(0), photograph(1)))
    for image in EVEN.values():
        assert torch.nn.utils.get_total_norm(gradients(run, photograph(0), image)) < 10 * usual


@pytest.mark.parametrize("kernels", (True, False), ids=("kernels", "plain"))
@pytest.mark.parametrize("name", ("instance", "batch_instance"))
def test_an_even_channel_passes_no_gradient_on_and_others_all_of_it(name: str, kernels: bool) -> None:
    norm = build_norm(name, 16).train()
    values = torch.randn(2, 16, 8, 8)
    values[1, 3] = 0.5  # exactly even
    values[1, 4] = 0.5 + 1e-3 * values[1, 4]  # of a variance of 1e-6, a tenth of ε
    x = values.contiguous(memory_format=torch.channels_last).requires_grad_()
    towards = torch.randn(2, 16, 8, 8)

    def gradient(layer: torch.nn.Module) -> Tensor:
        x.grad = None
        layer(x).backward(towards)
        assert x.grad is not None
        return x.grad.clone()

    def both() -> tuple[Tensor, Tensor]:
        bounded = gradient(norm)
        norm.divides_by_images = False  # type: ignore[misc]
        return bounded, gradient(norm)

    if kernels:
        bounded, unbounded = both()
    else:
        with ops.reference():
            bounded, unbounded = both()
    assert not bounded[1, 3].any()
    variance = values[1, 4].var(correction=0)
    torch.testing.assert_close(bounded[1, 4], unbounded[1, 4] * variance / norm.eps, rtol=1e-3, atol=1e-3)
    for channel in (0, 1, 2, 5):
        torch.testing.assert_close(bounded[:, channel], unbounded[:, channel])


def test_the_gradient_of_an_image_is_bounded_by_a_multiple_of_the_median() -> None:
    bounds = GradientBounds(4.0, CPU)
    content = torch.rand(2, 3, 8, 8)
    scales = torch.tensor([1.0, 100.0])
    found = []
    for _ in range(LEAST_STEPS + 1):
        bounds.begin_step(2)
        stylized = torch.rand(2, 3, 8, 8, requires_grad=True)
        # the gradient of an image's own loss, of which the batch's is the mean, has the norm √192 · scale
        (bounds.of_images(stylized, content) * scales[:, None, None, None]).sum().div(2).backward()
        assert stylized.grad is not None
        found.append(stylized.grad.flatten(1).norm(dim=1) * 2 / math.sqrt(192))
        bounds.record_(bounds.of_batch(), torch.tensor(1.0), torch.tensor(1.0), 2, torch.tensor(True))
    for norms in found[:LEAST_STEPS]:
        torch.testing.assert_close(norms, scales)  # nothing is usual yet
    median = 101 / 2
    torch.testing.assert_close(found[-1], scales.clamp(max=4 * median))
    assert bounds.bounded_images == 0
    scales[1] = 1000.0
    bounds.begin_step(2)
    stylized = torch.rand(2, 3, 8, 8, requires_grad=True)
    (bounds.of_images(stylized, content) * scales[:, None, None, None]).sum().div(2).backward()
    assert stylized.grad is not None
    norms = stylized.grad.flatten(1).norm(dim=1) * 2 / math.sqrt(192)
    torch.testing.assert_close(norms, torch.tensor([1.0, 4 * median]))
    bounds.record_(bounds.of_batch(), torch.tensor(1.0), torch.tensor(1.0), 2, torch.tensor(True))
    assert bounds.bounded_images == 1


def test_without_clipping_no_image_is_bounded_but_even_ones() -> None:
    bounds = GradientBounds(None, CPU)
    content = torch.stack([torch.rand(3, 8, 8), torch.zeros(3, 8, 8)])
    for scale in (*[1.0] * 2 * LEAST_STEPS, 1e6):
        bounds.begin_step(2)
        stylized = torch.rand(2, 3, 8, 8, requires_grad=True)
        (scale * bounds.of_images(stylized, content)).sum().backward()
        assert stylized.grad is not None
        assert torch.equal(stylized.grad[0], torch.full((3, 8, 8), scale))
        assert not stylized.grad[1].any()
        bounds.record_(bounds.of_batch(), torch.tensor(1.0), torch.tensor(1.0), 2, torch.tensor(True))
    assert bounds.bounded_images == 2 * LEAST_STEPS + 1


# Step by step


def recorded(clip: float | None, norms: list[float]) -> GradientBounds:
    bounds = GradientBounds(clip, CPU)
    for norm in norms:
        batch = {"image_gradient_norm": torch.tensor(1.0), "bounded_images": torch.tensor(0.0)}
        counts = torch.tensor(math.isfinite(norm))
        bounds.record_(batch, torch.tensor(norm), torch.tensor(1.0), 2, counts)
    return bounds


@pytest.mark.parametrize("always", (True, False), ids=("on the device", "asked by the host"))
def test_a_step_s_gradient_is_clipped_to_a_multiple_of_the_running_median(always: bool) -> None:
    bounds = recorded(4.0, [1.0, 2.0, 3.0, math.nan, 4.0, 1e6])
    gradient = [torch.full((16,), 25.0)]
    factor = bounds.clip_(gradient, torch.tensor(100.0), always=always)
    assert factor == pytest.approx(4 * 3 / 100)
    assert torch.allclose(gradient[0], torch.full((16,), 3.0))
    small = [torch.full((16,), 1.0)]
    assert bounds.clip_(small, torch.tensor(4.0), always=always) == 1
    assert torch.equal(small[0], torch.full((16,), 1.0))


def test_before_anything_is_usual_and_without_clipping_gradients_stay() -> None:
    for bounds in (recorded(4.0, [1.0] * (LEAST_STEPS - 1)), recorded(None, [1.0] * 20)):
        gradient = [torch.ones(4)]
        assert bounds.clip_(gradient, torch.tensor(1e9), always=True) == 1
        assert torch.equal(gradient[0], torch.ones(4))


def test_batches_of_even_images_do_not_make_zero_the_usual_gradient() -> None:
    bounds = recorded(4.0, [2.0, *[0.0] * 8])
    assert bounds.usual().step == 2


@pytest.mark.parametrize("late", (False, True), ids=("host", "device"))
def test_an_enormous_gradient_counts_as_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    monkeypatch.setattr(Compute, "checks_late", property(lambda self: late))
    trainer = build(tmp_path, {"train.steps": 8, "train.log_every": 1}).trainer
    terms = trainer._terms

    def jumped(*crops: Any) -> dict[str, Tensor]:
        factor = 1e9 if trainer.progress.step == 6 else 1.0
        return {name: term * factor if name == "total" else term for name, term in terms(*crops).items()}

    trainer._terms = jumped
    trainer.config = trainer.config.model_copy(update={"clip": None})
    trainer.bounds.clip = None  # an image's bound would have kept it small
    with Monitor(trainer.run_dir, steps=8) as monitor:
        trainer.fit(monitor)
    lines = (trainer.run_dir / "metrics.jsonl").read_text().splitlines()
    skipped = [line for line in lines if '"skipped"' in line]
    assert len(skipped) == 1 and '"step": 7' in skipped[0]
    assert all(p.isfinite().all() for p in trainer.generator.parameters())


def test_the_reason_names_the_gradient_and_what_is_usual() -> None:
    values = {"total": 1.0, "gradient_norm": 5e7, "gradient_median": 12.0}
    assert why_not_finite(values) == "the gradient is enormous (its norm is 5e+07, the median of the last steps 12)"
    assert why_not_finite({**values, "gradient_norm": 5e4}) is None
    unknown = {"total": 1.0, "gradient_norm": 5e17, "gradient_median": math.inf}
    assert why_not_finite(unknown) == "the gradient is enormous (its norm is 5e+17)"


def test_what_is_usual_is_resumed() -> None:
    bounds, other = recorded(4.0, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), GradientBounds(4.0, CPU)
    bounds.clipped_steps += 3
    other.load_state_dict(bounds.state_dict())
    assert other.usual().step == bounds.usual().step
    assert other.clipped_steps == 3
    for continued in (bounds, other):
        continued.record_(
            {"image_gradient_norm": torch.tensor(9.0), "bounded_images": torch.tensor(0.5)},
            torch.tensor(9.0), torch.tensor(0.5), 4, torch.tensor(True),
        )  # fmt: skip
    assert other.bounded_images == bounds.bounded_images == 2
    torch.testing.assert_close(other._norms, bounds._norms, equal_nan=True)


# Trainings


def held_out_total(folder: Path, extra: Mapping[str, NDArray[np.uint8]], changes: Mapping[str, Any]) -> float:
    """The held-out loss after a training on eight photographs and these."""
    folder.mkdir()
    write_config(folder)
    for i in range(3):
        picture(folder / "held" / f"{i}.png", seed=100 + i)
    for name, pixels in extra.items():
        Image.fromarray(pixels).save(folder / "photos" / f"{name.replace(' ', '-')}.png")
    trainer = build(folder, {**changes, "content.validation": str(folder / "held")}).trainer
    trainer.generator.train()
    for batch in trainer.batches.from_step(0, trainer.config.steps):
        terms = trainer.step(batch)  # raises if the step is lost
        assert all(term.isfinite() for name, term in terms.items() if name != "gradient_median")
        trainer.progress.step += 1
    return trainer.held_out.measure().terms["total"]


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_even_photographs_among_others_cost_no_step_and_no_quality(
    tmp_path: Path, generator: str, norm: str, precision: str
) -> None:
    changes: dict[str, Any] = {
        "generator.name": generator, "generator.norm": norm, "train.precision": precision, "train.steps": 12,
        "generator.width": 8, "content.resize": 32, "loss.scale": "relative",
    }  # fmt: skip
    with_even = held_out_total(tmp_path / "with", {**EVEN, "a sky": sky(4)}, changes)
    without = [held_out_total(tmp_path / f"without-{seed}", {}, {**changes, "seed": seed}) for seed in range(2)]
    assert with_even < 2 * max(without)  # after so few steps seeds differ by more than half


# Photographs


def test_crops_without_contrast_are_drawn_anew(tmp_path: Path) -> None:
    margin = np.full((200, 60, 3), 255, np.uint8)
    margin[90:110] = photograph()[:20, :, :].repeat(2, 1)[:, :60]
    write_config(tmp_path)
    for i, pixels in enumerate((*EVEN.values(), margin)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"even-{i}.png")
    dataset = build(tmp_path, {"content.validation": 0}).trainer.batches.dataset
    crops = [dataset[i] for i in range(60)]
    assert all(messages == [] for _, messages in crops)
    assert all(crop is not None and has_contrast(crop[None] / 255) for crop, _ in crops)
    again = [dataset[i][0] for i in range(60)]
    assert all(torch.equal(a, b) for (a, _), b in zip(crops, again, strict=True) if a is not None and b is not None)


def test_a_folder_of_even_photographs_alone_still_gives_crops(tmp_path: Path) -> None:
    write_config(tmp_path)
    for path in (tmp_path / "photos").iterdir():
        path.unlink()
    for name, pixels in EVEN.items():
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    run = build(tmp_path, {"content.validation": 1, "train.steps": 3})
    with Monitor(run.trainer.run_dir, steps=3) as monitor:
        run.trainer.fit(monitor)
    assert run.trainer.progress.step == 3


@pytest.mark.parametrize("name", (*EVEN, "a sky of two levels", "noise of one level"))
def test_these_have_no_contrast(name: str) -> None:
    noise = (128 + np.random.default_rng(0).integers(0, 2, (PX, PX, 3))).astype(np.uint8)
    pixels = {**EVEN, **NEARLY_EVEN, "noise of one level": noise}[name]
    assert not pixels_have_contrast(pixels)
    assert not has_contrast(batch_of(pixels) / 255)


@pytest.mark.parametrize("name", ("photograph", "a sky of four levels", "a dot off the grid"))
def test_these_have_contrast(name: str) -> None:
    dot = even(0)
    dot[13, 13] = 255
    pixels = {**NEARLY_EVEN, "photograph": photograph(), "a dot off the grid": dot}[name]
    assert pixels_have_contrast(pixels)
    assert has_contrast(batch_of(pixels) / 255)


def test_even_photographs_are_named_by_check_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "photo.jpg")
    for name, pixels in EVEN.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    monkeypatch.setattr("sys.argv", ["stylize", "check-data", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    output = capsys.readouterr().out
    named = [line for line in output.splitlines() if line.startswith("even, of one colour")]
    assert [Path(line.split(": ", 1)[1]).name for line in named] == ["black.png", "gray.png", "white.png"]


def test_a_held_out_even_photograph_leaves_the_losses_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    write_config(tmp_path)
    (tmp_path / "held").mkdir()
    Image.fromarray(even(255)).save(tmp_path / "held" / "white.png")
    picture(tmp_path / "held" / "photo.png")
    trainer = build(tmp_path, {"content.validation": str(tmp_path / "held")}).trainer
    terms = trainer.held_out.measure().terms
    assert all(math.isfinite(value) for value in terms.values()), terms
