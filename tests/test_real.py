"""With real VGG-19 weights and photographs: set STYLIZE_TEST_DATA to a folder with vgg/, photos/ and styles/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from stylize.build import build_run
from stylize.config import load_config
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg_weights import load_vgg
from stylize.models.file import load_model
from stylize.models.find import built_in_models
from stylize.pictures.picture import to_tensor
from stylize.pictures.reading import read_rgb
from stylize.training.monitor import Monitor

DATA = os.environ.get("STYLIZE_TEST_DATA", "")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA, reason="STYLIZE_TEST_DATA names no folder with real weights and photographs"),
]
STYLES = Path(__file__).parent.parent / "configs" / "styles"
LAYERS = {"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0}
LOSS = LossConfig(vgg=f"{DATA}/vgg/vgg19-conv3_1.safetensors", style_layers=LAYERS, content_layers={"relu3_1": 1.0})


def photographs(count: int, side_px: int) -> torch.Tensor:
    files = sorted(Path(DATA, "photos").glob("*.jpg"))[:count]
    return torch.stack([to_tensor(read_rgb(file, side_px))[:, :side_px, :side_px] for file in files])


def loss_against(style: str, size_px: int) -> PerceptualLoss:
    image = read_rgb(STYLES / f"{style}.jpg", size_px)
    return PerceptualLoss(load_vgg(LOSS.vgg, LOSS.taps()).vgg, LOSS, [to_tensor(image)])


def test_mean_activation_over_photographs_is_near_one() -> None:
    with torch.no_grad():
        features = load_vgg(LOSS.vgg, LOSS.taps()).vgg(photographs(8, 192), LOSS.taps())
    for tap, maps in features.items():
        assert 0.6 < float(maps.mean()) < 1.6, tap


@pytest.mark.parametrize("style", sorted(built_in_models()))
def test_built_in_models_carry_their_style_and_keep_the_content(style: str) -> None:
    loss = loss_against(style, 384)
    generator, _ = load_model(*built_in_models()[style])
    content = photographs(4, 192)
    with torch.no_grad():
        painted, plain = loss.measure(generator(content), content), loss(content, content)
    assert painted["style"] < 0.3 * plain["style"]
    assert painted["content_correlation"] > 0.25


def test_a_short_training_on_real_weights_learns_the_style(tmp_path: Path) -> None:
    config = load_config(
        STYLES.parent / "quickstart.yaml",
        [
            f"loss.vgg={LOSS.vgg}",
            "loss.content_weight=0.2",
            f"style.image={STYLES}/swirling_strokes.jpg",
            f"content.path={DATA}/photos",
            "content.validation=4",
            "content.resize=112",
            "content.crop=96",
            "generator.width=16",
            "train.steps=80",
            "train.learning_rate=2e-3",
            "train.batch_size=1",
            "train.validate_every=80",
        ],
    )
    run = build_run(config, torch.device("cpu"), tmp_path)
    with Monitor(tmp_path, steps=80) as monitor:
        progress = run.trainer.fit(monitor)
    with torch.no_grad():
        plain = [float(run.trainer.loss(x[None], x[None])["style"]) for x in run.trainer.held_out.photographs]
    assert progress.validation["style"] < 0.7 * sum(plain) / len(plain)
