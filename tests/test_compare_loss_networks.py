"""The comparison of loss networks, with tiny students."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

from stylize.config import load_config
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.vgg import VGG19
from stylize.losses.vgg_weights import encode_compact, randomize_

ROOT = Path(__file__).parent.parent
STYLE = ROOT / "configs" / "styles" / "stained_glass.jpg"
COMMON = (
    "style.size=48",
    "content.path=samples",
    "content.validation=2",
    "content.resize=40",
    "content.crop=32",
    "generator.width=4",
)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        import compare_loss_networks

        yield compare_loss_networks


def write_student(path: Path, width: int) -> Path:
    vgg = VGG19(5, widths=[width] * 5)
    randomize_(vgg, seed=width)
    path.write_bytes(encode_compact(vgg, {}))
    return path


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("loss_networks")
    judge, other = (
        write_student(folder / f"{name}.safetensors", width) for name, width in (("judge", 6), ("other", 4))
    )
    (folder / "out").mkdir()
    (folder / "out" / "step_seconds.json").write_text(json.dumps({str(judge): 0.3, str(other): 0.2}))
    options = [f"--judge={judge}", f"--network={other}", "--steps=2", f"--output={folder / 'out'}"]
    return [*options, f"--style={STYLE}", *(f"--set={setting}" for setting in COMMON)]


def test_a_model_is_trained_with_every_network_and_judged(script: ModuleType, arguments: list[str]) -> None:
    output = Path(arguments[3].removeprefix("--output="))
    result = CliRunner().invoke(script.main, arguments, catch_exceptions=False)
    lines = [line.split()[:3] for line in result.output.splitlines()[-4:]]
    assert lines[0] == ["style", "network", "steps"]
    assert lines[1:] == [[STYLE.stem, *run] for run in (["judge", "2"], ["other", "2"], ["other", "3"])]
    runs = json.loads((output / "results.json").read_text())["runs"]
    assert len({run["style_of_photographs"] for run in runs}) == 1
    assert len({run["plain_style"] for run in runs}) == 3
    assert (output / "sheet.png").stat().st_size > 10_000
    models = {path: path.stat().st_mtime_ns for path in output.glob("*/model.safetensors")}
    again = CliRunner().invoke(script.main, arguments, catch_exceptions=False)
    assert again.output.splitlines()[-4:] == result.output.splitlines()[-4:]
    assert {path: path.stat().st_mtime_ns for path in models} == models


def test_the_judge_measures_what_the_perceptual_loss_says(
    script: ModuleType, arguments: list[str], tmp_path: Path
) -> None:
    from stylize.build import build_run, read_styles
    from stylize.losses.terms import correlation
    from stylize.losses.vgg_weights import load_vgg
    from stylize.training.trainer import Progress

    judge = arguments[0].removeprefix("--judge=")
    config = load_config(script.CONFIG, script.Task(STYLE, judge, 2, "").overrides(COMMON))
    run = build_run(config, torch.device("cpu"), tmp_path)
    run.trainer.save_best(Progress())
    found, photographs, pictures = script.Judge(config)(tmp_path / "model.safetensors")
    vgg = load_vgg(judge, config.loss.taps()).vgg
    plain = PerceptualLoss(
        vgg, config.loss.model_copy(update={"channel_balance": 0.0}), read_styles(config.style, config.loss)
    )
    content, painted = torch.stack(photographs), torch.stack(pictures)
    with torch.no_grad():
        assert found.plain_style == pytest.approx(float(plain(painted, content)["style"]), rel=1e-4)
        assert found.plain_style_of_photographs == pytest.approx(float(plain(content, content)["style"]), rel=1e-4)
        taps = config.loss.content_layers
        pairs = zip(vgg(painted, taps).values(), vgg(content, taps).values(), strict=True)
        expected = sum(float(correlation(*pair)) for pair in pairs) / len(taps)
    assert found.content_correlation == pytest.approx(expected, rel=1e-4)


def test_seconds_of_a_step_are_measured_for_every_network(script: ModuleType, arguments: list[str]) -> None:
    networks = [argument.split("=", 1)[1] for argument in arguments[:2]]
    seconds = script.step_seconds(script.CONFIG, networks, COMMON, STYLE)
    assert list(seconds) == networks
    assert all(value > 0 for value in seconds.values())
