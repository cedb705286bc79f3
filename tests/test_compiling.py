"""Networks and losses as one graph, as `torch.compile` takes them on GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from stylize import ops
from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg import VGG19, tap_depth
from stylize.losses.vgg_weights import natural_noise, randomize_
from stylize.norms import NORMS


def photographs() -> Tensor:
    images = natural_noise(2, 32, torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=torch.channels_last)


def gradients(
    name: str, norm: str, backend: str | None, *, with_loss: bool = False, maps: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The value and all gradients of a step, by plain PyTorch; compiled in one graph, if a backend is given."""
    torch.compiler.reset()
    torch.manual_seed(0)
    network = build_generator(GeneratorConfig(name=name, norm=norm, width=8)).train()
    network.maps = maps
    config = LossConfig(vgg="random")
    loss = None
    if with_loss:
        vgg = VGG19(tap_depth(config.taps()))
        randomize_(vgg, 0)
        loss = PerceptualLoss(vgg, config, [photographs()[0]])
        loss.hold_in(maps or torch.float32)

    def step(content: Tensor) -> Tensor:
        stylized = network(content)
        return stylized.square().mean() if loss is None else loss(stylized, content)["total"]

    forward = step if backend is None else torch.compile(step, fullgraph=True, backend=backend)
    torch.manual_seed(1)  # of the texture network's noise
    with ops.reference():
        total = forward(photographs())
        total.backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    return {"total": total.detach(), **found}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GENERATORS)
def test_every_network_and_norm_is_one_graph_with_the_same_gradients(name: str, norm: str) -> None:
    check_same(gradients(name, norm, "eager"), gradients(name, norm, None))


def check_same(compiled: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    assert compiled.keys() == plain.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for key, gradient in plain.items():
        assert float((compiled[key] - gradient).abs().max()) < 1e-3 * largest, key


def test_a_step_with_the_default_loss_is_one_graph_with_the_same_gradients() -> None:
    given = "johnson", "batch_instance"
    check_same(gradients(*given, "aot_eager", with_loss=True), gradients(*given, None, with_loss=True))


def test_a_step_with_maps_of_bfloat16_is_one_graph() -> None:
    plain, compiled = (
        gradients("johnson", "instance", backend, with_loss=True, maps=torch.bfloat16)
        for backend in (None, "aot_eager")
    )
    assert float(compiled["total"]) == pytest.approx(float(plain["total"]), rel=0.02)


COUNT = """
from count_kernels import *
layers = {"style_layers": {"relu1_1": 1.0}, "content_layers": {"relu1_2": 1.0}}
step = build_step("johnson", "instance", "bf16", 4, LossConfig(vgg="random", **layers), 32)
forward, backward = count_kernels(step, 2, 32)
print(forward["convolution"], backward["convolution_backward"], forward["fused by Triton"])
"""


@pytest.mark.skipif(Version(torch.__version__) < Version("2.14"), reason="uses what is internal to torch 2.14")
def test_the_kernels_of_a_step_on_a_gpu_are_counted_without_one() -> None:
    scripts = Path(__file__).parent.parent / "scripts"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(scripts), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", COUNT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    convolutions, gradients_of_convolutions, fused = map(int, done.stdout.split())
    network, loss_network = 16, 2
    assert convolutions == network + 2 * loss_network  # of the painted pictures and of the photographs
    assert gradients_of_convolutions == network + loss_network
    assert 50 < fused < 300
