import weakref
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stylize.errors import StylizeError
from stylize.generators import GENERATORS, Generator, GeneratorConfig, build_generator
from stylize.generators.base import PaddedConv2d
from stylize.generators.texture_network import pyramid_sizes
from stylize.norms import NORMS
from stylize.ops import convolution

SIZES_PX = range(16, 49)
DIAGONAL = [(side, side) for side in SIZES_PX]
# 7 and 33 are coprime: every height once and every width once, paired differently.
SCATTERED = [(16 + i, 16 + (7 * i + 5) % 33) for i in range(33)]


def build(name: str = "johnson", norm: str = "instance", **options: object) -> Generator:
    return build_generator(GeneratorConfig(name=name, norm=norm, **{"width": 4, **options}))


def photos(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width)


def flat(levels: tuple[float, float, float], height: int = 50, width: int = 37) -> Tensor:
    return torch.tensor(levels)[None, :, None, None].expand(1, 3, height, width).contiguous()


def spread(x: Tensor) -> float:
    return float((x.amax((2, 3)) - x.amin((2, 3))).max())


def perturb_(network: Generator, amount: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    network.project_()


def test_johnson_of_width_32_with_instance_norm_has_1679235_parameters() -> None:
    network = build(width=32)
    assert sum(p.numel() for p in network.parameters()) == 1_679_235


def test_johnson_has_five_residual_blocks_of_their_own() -> None:
    blocks = build().blocks
    assert len({id(p) for block in blocks for p in block.parameters()}) == 5 * 8


@torch.no_grad()
@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_every_generator_paints_with_every_norm(name: str, norm: str, training: bool) -> None:
    x = photos(2, 20, 27)
    y = build(name, norm).train(training)(x)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1
    assert y.std() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", GENERATORS)
def test_output_is_as_large_as_input_for_every_height_and_width(name: str) -> None:
    network = build(name)
    wrong = [
        (height, width)
        for height, width in DIAGONAL + SCATTERED
        if network(photos(1, height, width)).shape != (1, 3, height, width)
    ]
    assert wrong == []


@torch.no_grad()
@pytest.mark.parametrize("padding", ("reflection", "replication", "zero"))
def test_output_is_as_large_as_input_with_every_padding(padding: str) -> None:
    assert build(padding=padding)(photos(1, 19, 30)).shape == (1, 3, 19, 30)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(("height", "width"), ((15, 20), (20, 15), (1, 1)))
def test_too_small_an_image_is_refused(name: str, height: int, width: int) -> None:
    with pytest.raises(StylizeError) as caught:
        build(name)(photos(1, height, width))
    assert str(caught.value) == (f"got an image of {width}×{height} px, must be at least 16 px in each direction")


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("perturbation", (0.0, 0.02, 0.05))
@pytest.mark.parametrize("width", (8, 32))  # convolutions of few channels, and of many
def test_johnson_paints_a_flat_image_flat(norm: str, perturbation: float, width: int) -> None:
    network = build(norm=norm, width=width).eval()
    perturb_(network, perturbation)
    for levels in ((0.0, 0.0, 0.0), (0.3, 0.5, 0.8), (1.0, 1.0, 1.0)):
        assert spread(network(flat(levels))) <= 1 / 255


@torch.no_grad()
def test_zero_padding_would_leave_a_border_on_a_flat_image() -> None:
    assert spread(build(width=8, padding="zero")(flat((0.3, 0.5, 0.8)))) > 1 / 255


@torch.no_grad()
def test_johnson_with_instance_norm_is_the_same_in_training_and_in_evaluation() -> None:
    network, x = build(), photos(2, 24, 33)
    assert torch.equal(network.train()(x), network.eval()(x))


@torch.no_grad()
@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("norm", NORMS)
def test_an_image_alone_equals_the_image_in_a_batch_in_evaluation(name: str, norm: str) -> None:
    network, x = build(name, norm), photos(3, 24, 33)
    network(x)
    network.eval()
    torch.testing.assert_close(network(x[1:2]), network(x)[1:2], atol=1e-4, rtol=0)


@torch.no_grad()
def test_texture_network_paints_the_same_picture_by_the_same_seed() -> None:
    network, x = build("texture_network").eval(), photos(1, 32, 40)
    first = network(x)
    torch.manual_seed(123)
    assert torch.equal(network(x), first)


@torch.no_grad()
def test_texture_network_paints_another_picture_by_another_seed() -> None:
    network, x = build("texture_network").eval(), photos(1, 32, 40)
    first = network(x)
    network.noise_seed = 1
    second = network(x)
    assert not torch.allclose(second, first, atol=1e-4)
    configured = build_generator(GeneratorConfig(name="texture_network", width=8, noise_seed=1)).eval()
    assert configured.noise_seed == 1


@torch.no_grad()
def test_texture_network_leaves_the_global_random_state_alone_in_evaluation() -> None:
    network, x = build("texture_network").eval(), photos(1, 32, 40)
    state = torch.get_rng_state()
    network(x)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_texture_network_draws_fresh_noise_for_every_image_in_training() -> None:
    network, x = build("texture_network").train(), photos(1, 32, 40).expand(2, -1, -1, -1)
    first, second = network(x), network(x)
    assert not torch.allclose(first, second, atol=1e-4)
    assert not torch.allclose(first[0], first[1], atol=1e-4)


@pytest.mark.parametrize(
    ("size", "expected"),
    (
        ((64, 64), [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]),
        ((65, 16), [(65, 16), (33, 8), (17, 4), (9, 2), (5, 2), (3, 2)]),
        ((17, 300), [(17, 300), (9, 150), (5, 75), (3, 38), (2, 19), (2, 10)]),
    ),
)
def test_pyramid_halves_rounded_up_but_not_below_two(size: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    assert pyramid_sizes(*size) == expected


@pytest.mark.parametrize("name", GENERATORS)
def test_projection_clamps_the_gates_of_all_layers(name: str) -> None:
    network = build(name, "batch_instance")
    gates = [norm.gate for norm in network.norms().values()]
    with torch.no_grad():
        for gate in gates:
            gate.copy_(torch.linspace(-0.5, 1.5, len(gate)))
    network.project_()
    assert len(gates) > 10
    assert all(torch.equal(g, torch.linspace(-0.5, 1.5, len(g)).clamp(0, 1)) for g in gates)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("norm", sorted(set(NORMS) - {"none"}))
def test_every_parameter_gets_a_gradient(name: str, norm: str) -> None:
    network = build(name, norm)
    (network(photos(2, 24, 24)) * torch.rand(2, 3, 24, 24)).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_unknown_generator_is_refused_with_the_right_names() -> None:
    with pytest.raises(StylizeError) as caught:
        build_generator(GeneratorConfig.model_construct(name="jonson"))
    assert str(caught.value) == (
        "generator.name: got 'jonson', must be one of 'fast_neural_style', 'johnson', 'johnson_lite', "
        "'texture_network'. Did you mean 'johnson'?"
    )


def test_unknown_generator_is_refused_by_the_config() -> None:
    with pytest.raises(ValidationError) as caught:
        GeneratorConfig(name="jonson")
    assert caught.value.errors()[0]["msg"] == (
        "Value error, got 'jonson', must be one of 'fast_neural_style', 'johnson', 'johnson_lite', "
        "'texture_network'. Did you mean 'johnson'?"
    )


def test_unknown_norm_is_refused_by_the_config() -> None:
    with pytest.raises(ValidationError) as caught:
        GeneratorConfig(norm="instnce")
    assert caught.value.errors()[0]["msg"] == (
        "Value error, got 'instnce', must be one of 'batch', 'batch_instance', 'instance', "
        "'layer', 'none'. Did you mean 'instance'?"
    )


@pytest.mark.parametrize("width", (0, 2, 6, 513, 516, "wide", 32.5))
def test_unfit_width_is_refused_by_the_config(width: object) -> None:
    with pytest.raises(ValidationError):
        GeneratorConfig(width=width)


def test_unknown_key_is_refused_by_the_config() -> None:
    with pytest.raises(ValidationError):
        GeneratorConfig(widht=32)


@torch.no_grad()
def test_upsampled_maps_are_freed_before_the_convolution_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the largest of all: kept any longer, they would add to the memory that painting takes."""
    upsample, convolve = convolution.upsample_to, torch.nn.functional.conv2d
    upsampled: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def watched_upsample(*arguments: Any) -> Tensor:
        maps = upsample(*arguments)
        upsampled.append(weakref.ref(maps))
        return maps

    def watched_convolve(*arguments: Any, **options: Any) -> Tensor:
        alive.extend(reference() is not None for reference in upsampled)
        return convolve(*arguments, **options)

    monkeypatch.setattr(convolution, "upsample_to", watched_upsample)
    monkeypatch.setattr(torch.nn.functional, "conv2d", watched_convolve)
    x = torch.rand(1, 4, 16, 16, dtype=torch.float64)  # by the kernels they never exist as a whole
    conv = PaddedConv2d(4, 4, 3, GeneratorConfig()).double()
    conv(x, conv.geometry._replace(size=(32, 32)))
    assert alive == [False]
