from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylize import ops
from stylize.errors import StylizeError
from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.generators.statistics import frozen_statistics, recorded_statistics
from stylize.norms import (
    NORMS,
    BatchInstanceNorm,
    BatchNorm,
    InstanceNorm,
    LayerNorm,
    NoNorm,
    Norm,
    build_norm,
)
from stylize.ops import Statistics, batch_statistics, instance_statistics

CHANNELS = 6
LAYOUTS = (torch.contiguous_format, torch.channels_last)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
with_parameters = pytest.mark.parametrize("name", sorted(set(NORMS) - {"none"}))


def maps(count: int = 4, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    means = 3 * torch.randn(count, CHANNELS, 1, 1)
    deviations = 0.5 + torch.rand(count, CHANNELS, 1, 1)
    x = means + deviations * torch.randn(count, CHANNELS, 5, 7)
    return x.contiguous(memory_format=layout)


def with_random_affine(norm: Norm) -> Norm:
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm


def with_affine_of(reference: nn.Module, norm: Norm) -> nn.Module:
    reference.load_state_dict({"weight": norm.weight, "bias": norm.bias}, strict=False)
    return reference


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def normalized(x: Tensor, dims: tuple[int, ...], eps: float = 1e-5) -> Tensor:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(StylizeError) as caught:
        call()
    return str(caught.value)


@layouts
def test_instance_norm_equals_torch(layout: torch.memory_format) -> None:
    norm, x = with_random_affine(InstanceNorm(CHANNELS)), maps(layout=layout)
    assert_close(norm(x), F.instance_norm(x, weight=norm.weight, bias=norm.bias))


@layouts
def test_layer_norm_equals_torch_group_norm_with_one_group(layout: torch.memory_format) -> None:
    norm, x = with_random_affine(LayerNorm(CHANNELS)), maps(layout=layout)
    assert_close(norm(x), F.group_norm(x, 1, norm.weight, norm.bias))


@layouts
def test_batch_norm_equals_torch_in_training_and_in_evaluation(layout: torch.memory_format) -> None:
    norm = with_random_affine(BatchNorm(CHANNELS))
    reference = with_affine_of(nn.BatchNorm2d(CHANNELS), norm)
    for _ in range(5):
        x = maps(layout=layout)
        assert_close(norm(x), reference(x))
    assert_close(norm.running_mean, reference.running_mean)
    assert_close(norm.running_var, reference.running_var)
    x = maps(layout=layout)
    assert_close(norm.eval()(x), reference.eval()(x))


def test_batch_norm_leaves_its_running_statistics_alone_in_evaluation() -> None:
    norm = BatchNorm(CHANNELS)
    norm(maps())
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    norm.eval()(maps())
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, variance)


@layouts
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_every_norm_keeps_shape_and_layout(name: str, training: bool, layout: torch.memory_format) -> None:
    x = maps(layout=layout)
    y = build_norm(name, CHANNELS).train(training)(x)
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=layout)


@layouts
def test_gradients_of_instance_norm_equal_those_of_torch(layout: torch.memory_format) -> None:
    norm, x, upstream = with_random_affine(InstanceNorm(CHANNELS)), maps(layout=layout), maps()
    inputs = (x.requires_grad_(), norm.weight, norm.bias)
    reference = F.instance_norm(x, weight=norm.weight, bias=norm.bias)
    expected = torch.autograd.grad(reference, inputs, upstream)
    actual = torch.autograd.grad(norm(x), inputs, upstream)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, 1e-4)


def test_gradients_of_batch_norm_equal_those_of_torch() -> None:
    norm, x, upstream = with_random_affine(BatchNorm(CHANNELS)), maps().requires_grad_(), maps()
    reference = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    inputs = (x, norm.weight, norm.bias)
    expected = torch.autograd.grad(reference, inputs, upstream)
    actual = torch.autograd.grad(norm(x), inputs, upstream)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, 1e-4)


@pytest.mark.parametrize("name", ("instance", "layer", "none"))
def test_norms_of_single_images_are_the_same_in_training_and_in_evaluation(name: str) -> None:
    norm, x = build_norm(name, CHANNELS), maps()
    norm.train()(maps())
    assert torch.equal(norm.train()(x), norm.eval()(x))


@pytest.mark.parametrize("name", ("instance", "layer"))
def test_norms_of_single_images_do_not_see_the_other_images_of_the_batch(name: str) -> None:
    norm, x = build_norm(name, CHANNELS), maps()
    assert_close(norm(x)[1:2], norm(x[1:2]), 1e-6)


def test_instance_norm_removes_the_contrast_and_brightness_of_each_image() -> None:
    norm, x = InstanceNorm(CHANNELS, eps=0.0).eval(), maps()
    assert_close(norm(0.3 * x + 2), norm(x), 1e-4)


def test_instance_norm_has_no_buffers() -> None:
    norm = InstanceNorm(CHANNELS)
    norm(maps())
    assert list(norm.buffers()) == []
    assert list(norm.state_dict()) == ["weight", "bias"]


def test_instance_norm_of_a_hand_made_map_with_epsilon_three() -> None:
    norm = InstanceNorm(1, eps=3.0)
    assert norm(torch.tensor([[[[4.0, 6.0]]]])).flatten().tolist() == [-0.5, 0.5]


def test_batch_norm_of_two_hand_made_images() -> None:
    norm = BatchNorm(1, eps=0.0)
    x = torch.tensor([[[[0.0, 0.0]]], [[[2.0, 2.0]]]])
    assert norm(x).flatten().tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert_close(norm.running_mean, torch.tensor([0.1]))
    assert_close(norm.running_var, torch.tensor([0.9 + 0.1 * 4 / 3]))


@with_parameters
def test_without_center_there_is_no_offset(name: str) -> None:
    norm = build_norm(name, CHANNELS, center=False)
    assert norm.bias is None
    assert "bias" not in norm.state_dict()
    x = maps()
    whole = build_norm(name, CHANNELS)
    assert_close(norm(x), whole(x))


@with_parameters
def test_without_scale_there_is_no_factor(name: str) -> None:
    norm = build_norm(name, CHANNELS, scale=False)
    assert norm.weight is None
    assert "weight" not in norm.state_dict()
    x = maps()
    whole = build_norm(name, CHANNELS)
    assert_close(norm(x), whole(x))


@pytest.mark.parametrize(("name", "dims"), (("instance", (2, 3)), ("batch", (0, 2, 3)), ("layer", (1, 2, 3))))
def test_epsilon_is_added_to_the_variance(name: str, dims: tuple[int, ...]) -> None:
    x = maps()
    assert_close(build_norm(name, CHANNELS, eps=0.7)(x), normalized(x, dims, eps=0.7))


def test_no_norm_gives_the_input_back_and_has_no_parameters() -> None:
    norm, x = NoNorm(CHANNELS, center=True, eps=1.0), maps()
    assert norm(x) is x
    assert norm.state_dict() == {}


@layouts
def test_bin_with_gate_one_equals_batch_norm(layout: torch.memory_format) -> None:
    norm = with_random_affine(BatchInstanceNorm(CHANNELS))
    reference = with_affine_of(nn.BatchNorm2d(CHANNELS), norm)
    assert torch.equal(norm.gate, torch.ones(CHANNELS))
    for _ in range(3):
        x = maps(layout=layout)
        assert_close(norm(x), reference(x))
    x = maps(layout=layout)
    assert_close(norm.eval()(x), reference.eval()(x))


@layouts
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_bin_with_gate_zero_equals_instance_norm(training: bool, layout: torch.memory_format) -> None:
    norm = with_random_affine(BatchInstanceNorm(CHANNELS)).train(training)
    nn.init.zeros_(norm.gate)
    x = maps(layout=layout)
    assert_close(norm(x), F.instance_norm(x, weight=norm.weight, bias=norm.bias))


def test_bin_mixes_both_by_its_gate() -> None:
    norm, x = with_random_affine(BatchInstanceNorm(CHANNELS)), maps()
    nn.init.uniform_(norm.gate)
    gate, weight, bias = (p[:, None, None] for p in (norm.gate, norm.weight, norm.bias))
    mixed = gate * normalized(x, (0, 2, 3)) + (1 - gate) * normalized(x, (2, 3))
    assert_close(norm(x), weight * mixed + bias)


def test_bin_uses_running_statistics_and_the_images_own_in_evaluation() -> None:
    norm = with_random_affine(BatchInstanceNorm(CHANNELS))
    nn.init.uniform_(norm.gate)
    norm(maps())
    x = maps()
    gate, weight, bias = (p[:, None, None] for p in (norm.gate, norm.weight, norm.bias))
    running = F.batch_norm(x, norm.running_mean, norm.running_var)
    expected = weight * (gate * running + (1 - gate) * normalized(x, (2, 3))) + bias
    assert_close(norm.eval()(x), expected)


def test_gradient_of_the_gate_is_the_difference_of_the_two_normalizations() -> None:
    norm, x, upstream = with_random_affine(BatchInstanceNorm(CHANNELS)), maps(), maps()
    nn.init.uniform_(norm.gate)
    norm(x).backward(upstream)
    difference = normalized(x, (0, 2, 3)) - normalized(x, (2, 3))
    assert_close(norm.gate.grad, norm.weight * (difference * upstream).sum((0, 2, 3)), 1e-4)


def test_gate_has_no_gradient_with_a_single_image_a_batch() -> None:
    norm, x = with_random_affine(BatchInstanceNorm(CHANNELS)), maps(count=1)
    norm(x).backward(maps(count=1))
    assert_close(norm.gate.grad, torch.zeros(CHANNELS), 1e-4)


def test_gate_stays_in_its_range_after_optimizer_steps_and_projection() -> None:
    norm = BatchInstanceNorm(CHANNELS)
    optimizer = torch.optim.SGD(norm.parameters(), lr=1.0)
    left_the_range = False
    for _ in range(4):
        optimizer.zero_grad()
        norm(maps()).backward(maps())
        optimizer.step()
        left_the_range |= bool(((norm.gate < 0) | (norm.gate > 1)).any())
        norm.project_()
        assert ((norm.gate >= 0) & (norm.gate <= 1)).all()
    assert left_the_range


def test_gate_learns_ten_times_as_fast() -> None:
    norm = BatchInstanceNorm(CHANNELS)
    ordinary, gate = norm.param_groups()
    assert ordinary.learning_rate_factor == 1
    assert {id(p) for p in ordinary.parameters} == {id(norm.weight), id(norm.bias)}
    assert gate.learning_rate_factor == 10
    assert [id(p) for p in gate.parameters] == [id(norm.gate)]


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("name", NORMS)
def test_every_parameter_of_a_generator_is_in_one_group(generator: str, name: str) -> None:
    network = build_generator(GeneratorConfig(name=generator, norm=name, width=4))
    groups = network.param_groups()
    grouped = [id(p) for group in groups for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    factors = [group.learning_rate_factor for group in groups]
    assert factors == ([1.0, 10.0] if name == "batch_instance" else [1.0])


@with_parameters
def test_two_dimensional_input_is_refused(name: str) -> None:
    norm = build_norm(name, CHANNELS)
    assert refusal(lambda: norm(torch.zeros(2, CHANNELS))) == (
        f"{type(norm).__name__}: got an input of shape (2, 6), must be (N, C, H, W)"
    )


def test_maps_of_one_value_are_refused() -> None:
    assert refusal(lambda: InstanceNorm(CHANNELS)(torch.zeros(2, CHANNELS, 1, 1))) == (
        "normalization: got maps of 1×1, must be larger: there is nothing to take a variance of"
    )


def test_unknown_norm_is_refused_with_the_right_names() -> None:
    assert refusal(lambda: build_norm("instnce", CHANNELS)) == (
        "generator.norm: got 'instnce', must be one of 'batch', 'batch_instance', 'instance', "
        "'layer', 'none'. Did you mean 'instance'?"
    )


def two_norms() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 1),
        with_random_affine(InstanceNorm(CHANNELS)),
        nn.Conv2d(CHANNELS, CHANNELS, 1),
        with_random_affine(InstanceNorm(CHANNELS)),
    )


def test_recorded_statistics_are_those_of_the_image() -> None:
    network, x = two_norms(), maps()
    with recorded_statistics(network) as statistics:
        network(x)
    assert list(statistics) == ["1", "3"]
    inner = network[0](x)
    assert_close(statistics["1"].mean, inner.mean((2, 3)))
    assert_close(statistics["1"].variance, inner.var((2, 3), correction=0))
    assert not statistics["1"].mean.requires_grad


def test_recording_ends_with_the_block() -> None:
    network = two_norms()
    with recorded_statistics(network) as statistics:
        network(maps())
    before = statistics["1"].mean.clone()
    network(maps())
    assert torch.equal(statistics["1"].mean, before)
    assert network[1].recorded is None


def test_batch_norm_records_the_images_statistics_in_training_and_none_in_evaluation() -> None:
    norm, x = BatchNorm(CHANNELS), maps()
    with recorded_statistics(norm) as statistics:
        norm(x)
    assert_close(statistics[""].mean, x.mean((2, 3)))
    with recorded_statistics(norm.eval()) as statistics:
        norm(x)
    assert statistics == {}


def test_an_images_own_statistics_frozen_give_the_same_output() -> None:
    network, x = two_norms(), maps()
    with recorded_statistics(network) as statistics:
        expected = network(x)
    with frozen_statistics(network, statistics):
        assert_close(network(x), expected, 1e-6)


def test_statistics_of_another_image_give_an_affine_map() -> None:
    norm, x = with_random_affine(InstanceNorm(CHANNELS)), maps()
    mean, variance = torch.randn(1, CHANNELS), 0.5 + torch.rand(1, CHANNELS)
    with frozen_statistics(norm, {"": Statistics(mean, variance)}):
        y = norm(x)
    columns = (t.reshape(CHANNELS, 1, 1) for t in (mean, variance, norm.weight, norm.bias))
    mean, variance, weight, bias = columns
    assert_close(y, weight * (x - mean) / (variance + 1e-5).sqrt() + bias)


def test_frozen_statistics_make_a_crop_look_as_in_the_whole_image() -> None:
    network, x = two_norms(), maps()
    with recorded_statistics(network) as statistics:
        whole = network(x)
    with frozen_statistics(network, statistics):
        assert_close(network(x[..., 1:3, 2:5]), whole[..., 1:3, 2:5])


def test_frozen_bin_keeps_running_statistics_and_takes_the_given_instance_ones() -> None:
    norm, x = with_random_affine(BatchInstanceNorm(CHANNELS)), maps()
    nn.init.uniform_(norm.gate)
    norm(maps())
    norm.eval()
    with recorded_statistics(norm) as statistics:
        whole = norm(x)
    assert_close(statistics[""].mean, x.mean((2, 3)))
    with frozen_statistics(norm, statistics):
        assert_close(norm(x[..., :2, :3]), whole[..., :2, :3])


def test_norms_are_their_own_again_after_freezing_even_after_an_error() -> None:
    network, x = two_norms(), maps()
    expected = network(x)
    with recorded_statistics(network) as statistics:
        network(maps())
    with pytest.raises(KeyError), frozen_statistics(network, statistics):
        assert not torch.allclose(network(x), expected)
        raise KeyError
    assert torch.equal(network(x), expected)


def test_freezing_an_unknown_layer_is_refused_and_freezes_nothing() -> None:
    network, x = two_norms(), maps()
    given = Statistics(torch.zeros(1, CHANNELS), torch.ones(1, CHANNELS))

    def freeze() -> None:
        with frozen_statistics(network, {"1": given, "2": given}):
            pass

    assert refusal(freeze) == "frozen statistics: got '2', must be one of '1', '3'."
    assert network[1].frozen is None
    assert_close(network(x)[:1], network(x[:1]))


@layouts
@with_parameters
def test_bfloat16_input_is_normalized_by_float32_statistics(name: str, layout: torch.memory_format) -> None:
    norm = with_random_affine(build_norm(name, CHANNELS))
    x = maps(layout=layout).bfloat16()
    with recorded_statistics(norm) as statistics:
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=layout)
    assert statistics[""].mean.dtype == statistics[""].variance.dtype == torch.float32
    assert_close(y.float(), norm(x.float()), 0.05)


def test_statistics_of_a_large_bfloat16_map_do_not_lose_the_sum() -> None:
    x = torch.ones(1, 1, 128, 128, dtype=torch.bfloat16)
    x[..., ::2] = 3
    assert_close(instance_statistics(x).mean, torch.tensor([[2.0]]))
    assert_close(instance_statistics(x).variance, torch.tensor([[1.0]]))


@pytest.mark.parametrize("offset", (0.0, 1000.0))
def test_batch_statistics_are_mean_and_variance_over_the_batch(offset: float) -> None:
    x = maps() + offset
    batch = batch_statistics(instance_statistics(x))
    assert_close(batch.mean[0], x.mean((0, 2, 3)))
    expected = x.double().var((0, 2, 3), correction=0).float()
    torch.testing.assert_close(batch.variance[0], expected, atol=0, rtol=1e-3)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("name", [name for name in NORMS if name != "none"])
def test_coefficients_stay_float32_for_maps_of_bfloat16(name: str, kernels: bool) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 32, 9, 8) + 50).bfloat16().contiguous(memory_format=torch.channels_last)
    norm, exact = build_norm(name, 32), build_norm(name, 32).double()
    calls = ops.kernel_calls()
    with nullcontext() if kernels else ops.reference():
        found = norm(x)
    expected = exact(x.double())
    assert (ops.kernel_calls() > calls) == (kernels and name != "batch")  # alone, batch norm is torch's own
    assert found.dtype == torch.bfloat16
    # 50 channel deviations away from zero: an offset rounded to bfloat16 would be off by up to 0.13
    assert float((found.double() - expected).detach().abs().max()) < 0.01
    with torch.no_grad(), nullcontext() if kernels else ops.reference():
        assert float((norm.normalize_(x.clone()).double() - expected).detach().abs().max()) < 0.01


@pytest.mark.parametrize("differentiable", [True, False], ids=["with a gradient", "without"])
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
def test_a_multiply_add_of_bfloat16_rounds_its_result_alone(kernels: bool, differentiable: bool) -> None:
    x = (torch.randn(2, 32, 9, 8) + 50).bfloat16().contiguous(memory_format=torch.channels_last)
    factor = 1 + torch.rand(2, 32)
    offset = -50 * factor
    expected = factor.double()[:, :, None, None] * x.double() + offset.double()[:, :, None, None]
    with torch.set_grad_enabled(differentiable), nullcontext() if kernels else ops.reference():
        found = ops.affine(x, factor, offset)
    assert float((found.double() - expected).abs().max()) < 2**-8 * float(expected.abs().max())
