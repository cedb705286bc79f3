"""Networks whose maps are bfloat16 or float16."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stylize import ops
from stylize.generators import GENERATORS, Generator, GeneratorConfig, build_generator
from stylize.inference.stylizer import Stylizer
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg import VGG19
from stylize.losses.vgg_weights import natural_noise, randomize_
from stylize.models.file import load_model
from stylize.norms import NORMS
from stylize.pictures.picture import Picture
from stylize.system.compute import Compute

CPU = torch.device("cpu")
BUILTIN = Path(__file__).parent.parent / "stylize" / "models" / "builtin"
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build(name: str, norm: str, width: int = 16) -> Generator:
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(name=name, norm=norm, width=width))


def photographs(count: int, side_px: int = 32) -> Tensor:
    return natural_noise(count, side_px, torch.Generator().manual_seed(1))


@pytest.fixture(params=["kernels", "plain"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """By the compiled kernels, and by plain PyTorch."""
    if request.param == "kernels":
        yield
    else:
        with ops.reference():
            yield


@torch.no_grad()
def levels_apart(name: str, norm: str, precision: str) -> float:
    exact, rough = build(name, norm).eval(), build(name, norm).eval()
    rough.hold_in(HALF[precision])
    images = photographs(1, 64)
    expected, found = exact(images), rough(images)
    assert found.dtype == torch.float32
    return float(255 * (found - expected).abs().mean())


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GENERATORS)
def test_every_network_paints_about_the_same_with_maps_of_bfloat16(name: str, norm: str) -> None:
    assert levels_apart(name, norm, "bf16") < 2


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_networks_paint_about_the_same_with_maps_of_float16(norm: str) -> None:
    assert levels_apart("johnson", norm, "fp16") < 0.3


@pytest.mark.parametrize("name", GENERATORS)
def test_between_the_first_and_the_last_convolution_maps_and_held_weights_have_the_type(name: str) -> None:
    network = build(name, "instance").eval()
    network.hold_in(torch.bfloat16)
    full = network.full_precision_layers()
    seen: dict[nn.Module, torch.dtype] = {}

    def note(layer: nn.Module, inputs: Any, result: Tensor) -> None:
        seen[layer] = result.dtype

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(photographs(1))
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert seen == {layer: torch.float32 if layer in full else torch.bfloat16 for layer in convolutions}
    assert all(layer.weight.dtype == seen[layer] for layer in convolutions)
    assert 2 <= len(full) < len(convolutions)
    assert {p.dtype for norm in network.norms().values() for p in norm.parameters()} == {torch.float32}


@pytest.mark.parametrize("style", ["stained_glass", "swirling_strokes"])
def test_an_even_picture_is_painted_as_in_float32(style: str) -> None:
    """A bird before an empty sky was 4.2 grey levels off in the mean when its first maps were rounded."""
    model = BUILTIN / f"{style}.safetensors"
    exact, rough = (Stylizer(load_model(model)[0], Compute(CPU, precision)) for precision in ("fp32", "bf16"))
    sky = 0.7 + torch.linspace(0, 4 / 255, 160).expand(3, 120, 160).clone()
    sky[:, 50:56, 70:80] = 0.2
    picture = Picture((sky * 255).round() / 255)
    assert float((exact(picture).rgb - rough(picture).rgb).abs().mean()) < 1 / 255


def test_bright_values_of_a_picture_in_16_bits_are_finer_than_bfloat16() -> None:
    stylizer = Stylizer(build("johnson", "instance"), Compute(CPU, "bf16"))
    painted = stylizer(Picture(photographs(1, 64)[0])).rgb
    bright = painted[painted > 0.5]
    assert len(bright) > 500
    assert len(bright.unique()) > 4 * 128  # bfloat16 has 128 values between a half and one


def perceptual_loss() -> PerceptualLoss:
    layers = {"style_layers": {"relu1_1": 1.0, "relu2_1": 1.0}, "content_layers": {"relu2_2": 1.0}}
    config = LossConfig.model_validate({"vgg": "random", **layers})
    vgg = VGG19(4)
    randomize_(vgg, 0)
    return PerceptualLoss(vgg, config, [photographs(1)[0]])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_reach_float32_weights_and_are_close(norm: str) -> None:
    def gradient(maps: torch.dtype | None) -> Tensor:
        network, loss = build("johnson", norm).train(), perceptual_loss()
        if maps is not None:
            network.maps = maps
            loss.hold_in(maps)
        images = photographs(2).contiguous(memory_format=torch.channels_last)
        loss(network(images), images)["total"].backward()
        assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {torch.float32}
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    exact, rough = gradient(None), gradient(torch.bfloat16)
    assert float((rough - exact).norm() / exact.norm()) < 0.2


class Operations(TorchDispatchMode):  # type: ignore[misc]
    """Counts operations, and the values that they return, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() > 5000:  # maps, not weights or coefficients
            self.calls[function.overloadpacket.__name__] += 1
        return result


def test_painting_copies_maps_only_to_change_their_type() -> None:
    """By plain PyTorch, as on a GPU: without copies to another layout."""
    network = build("johnson", "instance", width=8).eval().to(memory_format=torch.channels_last)
    network.hold_in(torch.bfloat16)
    images = photographs(1, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), ops.reference(), Operations() as operations:
        network(images)
    norms = len(network.norms())
    copies = {name: operations.calls[name] for name in ("_to_copy", "clone", "copy_", "contiguous")}
    # To float32 for each norm but the first, and back; from float32 after the first, and to it before the last layer.
    assert copies == {"_to_copy": norms - 1 + 2, "clone": 0, "copy_": norms - 1, "contiguous": 0}
