"""Golden losses: a tiny training of every generator with every norm gives the recorded numbers.

    STYLIZE_UPDATE_GOLDEN=1 python -m pytest tests/test_golden.py

records them anew. On the machine and with the torch that recorded them the numbers must agree to 1e-6; elsewhere
kernels round differently, and three steps of training make more of it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stylize import ops
from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg_weights import load_vgg
from stylize.norms import NORMS
from stylize.system.compute import Compute
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import ContentConfig
from stylize.training.schedule import ScheduleConfig
from stylize.training.trainer import TrainConfig, Trainer

FOLDER = Path(__file__).parent / "golden"
STEPS = 3
THREADS = 2
TERMS = ("total", "content", "style", "tv")
SAME_MACHINE, ELSEWHERE = 1e-6, 5e-2
# A rate so low that rounding stays rounding: Adam's first steps have the sign of the gradient, whatever its size.
CONFIG = TrainConfig(
    steps=STEPS,
    batch_size=2,
    optimizer="adam",
    norm_rate=1.0,
    shift_weight=0.0,
    learning_rate=3e-5,
    schedule=ScheduleConfig(name="constant", warmup_steps=0),
    precision="fp32",
    compile="never",
)
LOSSES = LossConfig(
    content_layers={"relu2_1": 1.0},
    style_layers={"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0},
    style_energy="style",
)


def machine() -> str:
    """What the last digits depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    cache = next((line.partition(": ")[2] for line in lines if line.startswith("cache size")), "unknown")
    return f"{processor}, cache {cache}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def image(seed: int, side_px: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    fine = torch.rand(1, 3, side_px, side_px, generator=generator)
    return (0.8 * F.interpolate(coarse, size=side_px, mode="bilinear") + 0.2 * fine)[0]


def losses(generator_name: str, norm: str, folder: Path) -> dict[str, dict[str, float]]:
    """The terms of every step, and of a held-out photograph afterwards."""
    torch.manual_seed(0)
    generator = build_generator(GeneratorConfig(name=generator_name, norm=norm, width=16, margin=0))
    loss = PerceptualLoss(load_vgg("random", LOSSES.taps(), seed=0).vgg, LOSSES, [image(100, 64)])
    batches = Batches(CropDataset([Path("unused.jpg")], ContentConfig(path="unused"), 0), 2)
    trainer = Trainer(
        generator,
        loss,
        batches,
        [],
        CONFIG,
        compute=Compute(torch.device("cpu")),
        seed=0,
        run_dir=folder,
        save_best=lambda progress: None,
    )
    generator.train()
    found = {}
    for step in range(STEPS):
        crops = [(255 * image(10 * step + i)).round().to(torch.uint8) for i in range(2)]
        terms = trainer.step(torch.stack(crops))
        trainer.progress.step += 1
        found[f"step {step + 1}"] = {name: terms[name].item() for name in (*TERMS, "gradient_norm")}
    generator.eval()
    with torch.no_grad():
        photograph = image(999)[None]
        terms = loss.measure(generator(photograph), photograph)
    found["held out"] = {name: terms[name].item() for name in TERMS}
    return found


def written(found: dict[str, dict[str, float]]) -> str:
    lines = [f"# {machine()}"]
    for place, terms in found.items():
        lines.append(f"{place}: " + " ".join(f"{name} {value:.9g}" for name, value in terms.items()))
    return "\n".join(lines) + "\n"


def read(text: str) -> dict[str, dict[str, float]]:
    found = {}
    for line in text.splitlines()[1:]:
        place, _, terms = line.partition(": ")
        words = terms.split()
        found[place] = {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    return found


def check(found: dict[str, dict[str, float]], file: Path) -> None:
    if os.environ.get("STYLIZE_UPDATE_GOLDEN"):
        file.write_text(written(found), encoding="utf-8")
    recorded = file.read_text(encoding="utf-8")
    tolerance = SAME_MACHINE if recorded.startswith(f"# {machine()}\n") else ELSEWHERE
    golden = read(recorded)
    assert found.keys() == golden.keys()
    for place, terms in golden.items():
        assert found[place] == pytest.approx(terms, rel=tolerance, abs=1e-9), place


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_losses_with_compiled_kernels_are_the_golden_ones(generator: str, norm: str, tmp_path: Path) -> None:
    check(losses(generator, norm, tmp_path), FOLDER / f"{generator}-{norm}.txt")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_losses_by_plain_pytorch_are_the_golden_ones(generator: str, norm: str, tmp_path: Path) -> None:
    calls = ops.kernel_calls()
    with ops.reference():
        found = losses(generator, norm, tmp_path)
    assert ops.kernel_calls() == calls
    check(found, FOLDER / "reference" / f"{generator}-{norm}.txt")
