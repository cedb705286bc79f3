from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stylize import ops
from stylize.errors import StylizeError
from stylize.losses.perceptual import PerceptualLoss, check_style_size
from stylize.losses.terms import Batch, LossConfig, StyleTerm, squared_error, total_variation
from stylize.losses.vgg import TAPS, VGG19, last_convolution
from stylize.losses.vgg_weights import load_vgg
from stylize.ops import gram_matrix
from stylize.ops.cpu.compile import PANEL
from stylize.ops.cpu.winograd import winograd_of

STYLE_LAYERS = {"relu1_1": 1.0, "relu2_1": 3.0}
CONTENT_LAYERS = {"relu1_2": 1.0}


@pytest.fixture
def vgg() -> VGG19:
    return load_vgg("random", ["relu2_1"]).vgg


def config(**options: object) -> LossConfig:
    layers = {"style_layers": STYLE_LAYERS, "content_layers": CONTENT_LAYERS}
    return LossConfig(**{**layers, **options})


def photos(count: int = 2, height: int = 24, width: int = 20) -> Tensor:
    return torch.rand(count, 3, height, width)


def count_calls(vgg: VGG19) -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []
    vgg.register_forward_pre_hook(lambda module, arguments: calls.append(tuple(arguments[1])))
    return calls


def complaint(build: Callable[[], object]) -> str:
    with pytest.raises(ValidationError) as caught:
        build()
    return str(caught.value.errors()[0]["msg"])


def test_gram_matrix_of_hand_made_features() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert gram_matrix(features).tolist() == [[[1.25, 2.75], [2.75, 6.25]]]


def test_gram_matrix_is_that_of_each_image_and_does_not_see_positions() -> None:
    features = torch.rand(3, 4, 5, 6)
    shuffled = features.flatten(2)[..., torch.randperm(30)].reshape(3, 4, 6, 5)
    torch.testing.assert_close(gram_matrix(features)[1:2], gram_matrix(features[1:2]))
    torch.testing.assert_close(gram_matrix(shuffled), gram_matrix(features))


def test_gram_matrix_has_the_gradients_of_its_formula_the_second_too() -> None:
    features = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(gram_matrix, features)
    torch.autograd.gradgradcheck(gram_matrix, features)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gram_matrices_by_compiled_products_have_both_gradients_too(layout: torch.memory_format) -> None:
    features = torch.randn(2, PANEL, 5, 4).contiguous(memory_format=layout)

    def with_gradients(x: Tensor) -> list[Tensor]:
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        gram = gram_matrix(leaf)
        energy = gram.square().mean()
        (plain,) = torch.autograd.grad(energy, leaf, retain_graph=True)
        (first,) = torch.autograd.grad(energy, leaf, create_graph=True)
        return [gram.detach(), plain, first.detach(), torch.autograd.grad(first.square().sum(), leaf)[0]]

    calls = ops.kernel_calls()
    found = with_gradients(features)
    assert (ops.kernel_calls() > calls) == (layout is torch.channels_last)
    for ours, exact in zip(found, with_gradients(features.double()), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


def test_gram_matrix_is_float32_under_autocast() -> None:
    features = torch.rand(2, 8, 64, 64)
    expected = gram_matrix(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (features.flatten(2) @ features.flatten(2).transpose(1, 2)).dtype == torch.bfloat16
        actual = gram_matrix(features)
        from_bfloat16 = gram_matrix(features.bfloat16())
    assert actual.dtype == from_bfloat16.dtype == torch.float32
    assert torch.equal(actual, expected)
    torch.testing.assert_close(from_bfloat16, gram_matrix(features.bfloat16().float()))


def test_gram_matrices_of_bfloat16_are_multiplied_into_float32_where_the_device_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products: list[str] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            products.extend([str(function)] if "bmm" in str(function) else [])
            assert function.overloadpacket is not torch.ops.aten._to_copy or args[0].shape[-1] == args[0].shape[-2]
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr("stylize.ops.gram.multiplies_into_float32", lambda x: x.dtype == torch.bfloat16)
    features = torch.empty(2, 16, 8, 5, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with Products():
        gram = gram_matrix(features)
        gram.sum().backward()  # type: ignore[no-untyped-call]
    assert gram.dtype == torch.float32 and gram.shape == (2, 16, 16)
    assert products == ["aten.bmm.dtype", "aten.bmm.default"]
    assert features.grad is not None and features.grad.dtype == torch.bfloat16


def test_total_variation_of_a_hand_made_image() -> None:
    image = torch.tensor([[[[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]]])
    assert float(total_variation(image)) == pytest.approx((0 + 1 + 0.5) / 3 + (1 + 0.5) / 4)
    assert float(total_variation(image, squared=True)) == pytest.approx(1.25 / 3 + 1.25 / 4)


def test_total_variation_of_a_flat_image_is_zero() -> None:
    assert float(total_variation(torch.full((2, 3, 5, 5), 0.3))) == 0


def test_squared_error_of_hand_made_values() -> None:
    value, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    assert float(squared_error(value, target)) == 2
    assert float(squared_error(value, target, energy=torch.tensor(8.0))) == 0.25


def test_relative_error_is_taken_image_by_image() -> None:
    target = torch.tensor([[1.0], [100.0]])
    energy = target.square().flatten()
    assert float(squared_error(2 * target, target, energy)) == 1
    assert float(squared_error(target * torch.tensor([[2.0], [1.0]]), target, energy)) == 0.5


def test_relative_error_of_a_black_target_is_finite() -> None:
    assert torch.isfinite(squared_error(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1)))


def test_relative_content_is_measured_by_the_energy_of_photograph_and_style(vgg: VGG19) -> None:
    style, stylized, content = photos(1, 32, 28), photos(), 0.1 * photos()
    terms = PerceptualLoss(vgg, config(), [style[0]])(stylized, content)
    ours, of_style, of_content = (vgg(image, ["relu1_2"])["relu1_2"] for image in (stylized, style, content))
    expected = sum(
        (ours[i] - of_content[i]).square().mean() / (of_content[i].square().mean() + of_style.square().mean())
        for i in range(2)
    )
    torch.testing.assert_close(terms["content"], expected / 2)


@pytest.mark.parametrize("contrast", (0.5, 1.0))
def test_the_relative_content_term_of_unrelated_pictures_is_below_one_at_any_contrast(contrast: float) -> None:
    layers = {"relu2_1": 1.0}
    vgg = load_vgg("random", layers).vgg
    style, painted = (0.5 + contrast * (photos(1, 64, 64) - 0.5) for _ in range(2))
    content = 0.5 + 0.3 * (photos(1, 64, 64) - 0.5)
    loss = PerceptualLoss(vgg, config(style_layers=layers, content_layers=layers), [style[0]])
    assert 0.05 < float(loss(painted, content)["content"]) < 1


@pytest.mark.parametrize("scale", ("relative", "raw"))
def test_style_term_is_zero_for_the_style_image_itself(vgg: VGG19, scale: str) -> None:
    style = photos(1)
    terms = PerceptualLoss(vgg, config(scale=scale), [style[0]])(style, photos(1))
    assert float(terms["style"]) == pytest.approx(0, abs=1e-9)
    assert float(terms["content"]) > 0.01


@pytest.mark.parametrize("scale", ("relative", "raw"))
def test_content_term_is_zero_for_the_photograph_itself(vgg: VGG19, scale: str) -> None:
    content = photos()
    terms = PerceptualLoss(vgg, config(scale=scale), [photos(1)[0]])(content.clone(), content)
    assert float(terms["content"]) == 0
    assert float(terms["style"]) > 1e-6


def test_raw_terms_are_the_sums_over_layers_of_mean_squares(vgg: VGG19) -> None:
    style, stylized, content = photos(1, 32, 28), photos(), photos()
    terms = PerceptualLoss(vgg, config(scale="raw"), [style[0]])(stylized, content)
    taps = (*STYLE_LAYERS, *CONTENT_LAYERS)
    ours, of_style, of_content = (vgg(image, taps) for image in (stylized, style, content))
    for tap in STYLE_LAYERS:
        expected = (gram_matrix(ours[tap]) - gram_matrix(of_style[tap])).square().mean()
        torch.testing.assert_close(terms[f"style/{tap}"], expected)
    expected = (ours["relu1_2"] - of_content["relu1_2"]).square().mean()
    torch.testing.assert_close(terms["content/relu1_2"], expected)
    torch.testing.assert_close(terms["content"], expected)
    weighted = terms["style/relu1_1"] + 3 * terms["style/relu2_1"]
    torch.testing.assert_close(terms["style"], weighted)
    torch.testing.assert_close(terms["tv"], total_variation(stylized, squared=True))


def test_balanced_style_terms_compare_gram_matrices_over_their_channels_energy(vgg: VGG19) -> None:
    style, stylized = photos(1, 32, 28), photos(1)
    terms = PerceptualLoss(vgg, config(channel_balance=1.0), [style[0]])(stylized, photos(1))
    ours, target = (gram_matrix(vgg(image, ["relu2_1"])["relu2_1"])[0] for image in (stylized, style))
    rms = target.diagonal().clamp_min(1e-3 * target.diagonal().mean()).sqrt()
    ours, target = ours / torch.outer(rms, rms), target / torch.outer(rms, rms)
    torch.testing.assert_close(terms["style/relu2_1"], (ours - target).square().sum() / target.square().sum())


def test_balanced_channels_tell_a_pastel_picture_from_its_gray_copy_better(vgg: VGG19) -> None:
    style = 0.8 + 0.1 * photos(1, 32, 28)
    gray = style.mean(1, keepdim=True).expand_as(style)

    def of_gray_copy(balance: float) -> float:
        loss = PerceptualLoss(vgg, config(channel_balance=balance), [style[0]])
        return float(loss(gray, photos(1, 32, 28))["style"])

    assert of_gray_copy(1.0) > of_gray_copy(0.5) > of_gray_copy(0.0)


def test_balance_leaves_a_channel_that_the_style_lacks_finite(vgg: VGG19) -> None:
    black = torch.zeros(3, 32, 28)
    terms = PerceptualLoss(vgg, config(channel_balance=1.0), [black])(photos(), photos())
    assert torch.isfinite(terms["total"])


def test_relative_layers_are_averaged_by_their_weights(vgg: VGG19) -> None:
    terms = PerceptualLoss(vgg, config(), [photos(1)[0]])(stylized := photos(), photos())
    weighted = (terms["style/relu1_1"] + 3 * terms["style/relu2_1"]) / 4
    torch.testing.assert_close(terms["style"], weighted)
    torch.testing.assert_close(terms["tv"], total_variation(stylized))


def test_relative_terms_do_not_depend_on_the_scale_of_the_features(vgg: VGG19) -> None:
    layers = {"style_layers": {"relu2_1": 1.0}, "content_layers": {"relu2_1": 1.0}}
    style, stylized, content = photos(1)[0], photos(), photos()

    def terms(scale: str) -> dict[str, Tensor]:
        return PerceptualLoss(vgg, LossConfig(scale=scale, **layers), [style])(stylized, content)

    relative, raw = terms("relative"), terms("raw")
    for parameter in vgg.features["5"].parameters():
        parameter.mul_(10)
    scaled_relative, scaled_raw = terms("relative"), terms("raw")
    for name in ("style", "content"):
        torch.testing.assert_close(scaled_relative[name], relative[name], rtol=1e-4, atol=0)
    torch.testing.assert_close(scaled_raw["content"], 1e2 * raw["content"], rtol=1e-4, atol=0)
    torch.testing.assert_close(scaled_raw["style"], 1e4 * raw["style"], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("weights", "share"), ((None, 0.5), ([3.0, 1.0], 0.75)))
def test_gram_matrices_of_several_style_images_are_averaged_by_weight(
    vgg: VGG19, weights: list[float] | None, share: float
) -> None:
    first, second = photos(1, 24, 20), photos(1, 32, 40)
    loss = PerceptualLoss(vgg, config(), [first[0], second[0]], weights)
    for tap in STYLE_LAYERS:
        grams = [gram_matrix(vgg(image, [tap])[tap])[0] for image in (first, second)]
        expected = share * grams[0] + (1 - share) * grams[1]
        torch.testing.assert_close(loss.style_gram(tap), expected)


@pytest.mark.parametrize("settings", ({"style_energy": "style"}, {"scale": "raw"}))
def test_total_is_the_weighted_sum_of_the_terms(vgg: VGG19, settings: dict[str, str]) -> None:
    weights = {"content_weight": 2.0, "style_weight": 3.0, "tv_weight": 5.0}
    terms = PerceptualLoss(vgg, config(**weights, **settings), [photos(1)[0]])(photos(), photos())
    expected = 2 * terms["content"] + 3 * terms["style"] + 5 * terms["tv"]
    torch.testing.assert_close(terms["total"], expected)


class Grams(NamedTuple):
    """A style term whose pictures have the style's Gram matrices, times a factor each."""

    term: StyleTerm
    batch: Batch


def grams_times(vgg: VGG19, factors: list[float], **settings: object) -> Grams:
    style = photos(1)
    loss = PerceptualLoss(vgg, config(**settings), [style[0]])
    features = loss.vgg(style, loss.config.taps())
    times = {tap: torch.cat([factor**0.5 * maps for factor in factors]) for tap, maps in features.items()}
    pictures = style.expand(len(factors), -1, -1, -1)
    return Grams(loss.terms["style"], Batch(pictures, pictures, times, times))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("factor", "reported", "minimized"),
    ((0.0, 1.0, 2.0), (1.0, 0.0, 0.0), (3.0, 4.0, 0.8), (100.0, 9801.0, 2 * 9801 / 10001)),
)
def test_what_is_minimized_of_the_style_is_bounded_and_as_large_for_no_contrast_as_for_too_much(
    vgg: VGG19, factor: float, reported: float, minimized: float
) -> None:
    term, batch = grams_times(vgg, [factor])
    found = term(batch)
    assert float(found.value) == pytest.approx(reported, abs=1e-6, rel=1e-4)  # (c − 1)²
    assert float(found.in_total) == pytest.approx(minimized, abs=1e-6, rel=1e-4)  # 2 (c − 1)² / (1 + c²)
    plain = grams_times(vgg, [factor], style_energy="style")
    assert float(plain.term(plain.batch).in_total) == pytest.approx(reported, abs=1e-6, rel=1e-4)


def test_what_is_minimized_of_a_batch_is_the_mean_over_its_pictures(vgg: VGG19) -> None:
    term, batch = grams_times(vgg, [0.0, 3.0])
    found = term(batch)
    assert float(found.value) == pytest.approx((1 + 4) / 2, rel=1e-4)
    assert float(found.in_total) == pytest.approx((2 + 0.8) / 2, rel=1e-4)


def test_near_the_style_both_forms_have_the_same_gradient(vgg: VGG19) -> None:
    style = photos(1)
    near = (style + 0.001 * torch.randn_like(style)).clamp(0, 1)
    gradients = []
    for energy in ("both", "style"):
        loss = PerceptualLoss(vgg, config(style_energy=energy, content_weight=0.0), [style[0]])
        leaf = near.clone().requires_grad_()
        gradients += torch.autograd.grad(loss(leaf, style)["total"], leaf)
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[1].norm()


def test_terms_are_scalars_with_names(vgg: VGG19) -> None:
    terms = PerceptualLoss(vgg, config(), [photos(1)[0]])(photos(), photos())
    assert sorted(terms) == [
        "content",
        "content/relu1_2",
        "style",
        "style/relu1_1",
        "style/relu2_1",
        "total",
        "tv",
    ]
    assert {term.shape for term in terms.values()} == {()}


def test_the_loss_of_a_batch_is_the_mean_over_its_images(vgg: VGG19) -> None:
    loss, stylized, content = PerceptualLoss(vgg, config(), [photos(1)[0]]), photos(), photos()
    batch = loss(stylized, content)["total"]
    alone = [loss(stylized[i : i + 1], content[i : i + 1])["total"] for i in range(2)]
    torch.testing.assert_close(batch, (alone[0] + alone[1]) / 2)


def test_style_targets_are_computed_once(vgg: VGG19) -> None:
    calls = count_calls(vgg)
    loss = PerceptualLoss(vgg, config(), [photos(1)[0], photos(1)[0]])
    assert calls == [(*STYLE_LAYERS, *CONTENT_LAYERS)] * 2
    calls.clear()
    for _ in range(3):
        loss(photos(), photos())
    assert calls == [("relu1_2",), ("relu1_1", "relu2_1", "relu1_2")] * 3


@pytest.mark.parametrize(("together", "calls"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3])])
@pytest.mark.parametrize("scale", ["relative", "raw"])
def test_image_by_image_the_terms_and_the_gradient_are_those_of_a_call(
    vgg: VGG19, scale: str, together: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = PerceptualLoss(vgg, config(scale=scale, tv_weight=0.3), [photos(1)[0]])
    content = photos(3)
    stylized = torch.rand_like(content).requires_grad_()
    called = loss(stylized, content)
    seen: list[int] = []
    vgg.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr("stylize.losses.perceptual.PIXELS_TOGETHER", together * content.shape[2] * content.shape[3])
    by_image = loss.by_image(stylized, content)
    assert seen == [count for count in calls for _ in range(2)]  # the photographs, what is made of them
    torch.testing.assert_close(by_image, called, rtol=1e-4, atol=1e-7)
    expected, found = (torch.autograd.grad(2 * terms["total"], stylized)[0] for terms in (called, by_image))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_a_compiler_sees_through_the_whole_loss(vgg: VGG19) -> None:
    loss, stylized, content = PerceptualLoss(vgg, config(), [photos(1)[0]]), photos(), photos()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")  # raises where the graph would break
    torch.testing.assert_close(compiled(stylized, content), loss(stylized, content), rtol=1e-4, atol=1e-7)


def test_what_the_convolutions_keep_of_frozen_weights_is_there_before_the_first_step(vgg: VGG19) -> None:
    loss = PerceptualLoss(vgg, config(), [photos(1)[0]])
    weight = last_convolution(vgg.features["2"]).weight
    assert "_backward" not in vars(winograd_of(weight))
    loss.prepare()
    assert {"_forward", "_backward"} <= set(vars(winograd_of(weight)))


def test_content_pass_stops_at_the_content_layer(vgg: VGG19) -> None:
    loss, depths = PerceptualLoss(vgg, config(), [photos(1)[0]]), []
    for key, conv in vgg.features.items():
        conv.register_forward_hook(lambda *_, key=key: depths.append(key))
    loss(photos(), photos())
    assert depths == ["0", "2", "0", "2", "5"]


def test_the_pictures_are_not_changed(vgg: VGG19) -> None:
    style, stylized, content = photos(1)[0], photos(), photos()
    copies = [image.clone() for image in (style, stylized, content)]
    PerceptualLoss(vgg, config(), [style])(stylized, content)
    for image, copy in zip((style, stylized, content), copies, strict=True):
        assert torch.equal(image, copy)


def test_gradient_flows_to_the_stylized_picture_only(vgg: VGG19) -> None:
    style, stylized, content = (photos().requires_grad_() for _ in range(3))
    PerceptualLoss(vgg, config(), [style[0]])(stylized, content)["total"].backward()
    assert stylized.grad.abs().sum() > 0
    assert style.grad is None
    assert content.grad is None
    assert all(p.grad is None for p in vgg.parameters())


def test_terms_of_a_network_in_bfloat16_are_float32_and_close(vgg: VGG19) -> None:
    loss, stylized, content = PerceptualLoss(deepcopy(vgg), config(), [photos(1)[0]]), photos(), photos()
    expected = loss(stylized, content)
    loss.hold_in(torch.bfloat16)
    actual = loss(stylized, content)
    assert {features.dtype for features in loss.vgg(content, ["relu1_1"]).values()} == {torch.bfloat16}
    assert {term.dtype for term in actual.values()} == {torch.float32}
    for name in ("content", "total"):
        torch.testing.assert_close(actual[name], expected[name], rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("height", "width", "layers", "least"),
    (
        (40, 31, {"relu4_1": 1.0, "relu1_1": 1.0}, 32),
        (63, 70, {"relu5_1": 1.0}, 64),
        (15, 16, {"relu1_1": 1.0}, 16),
    ),
)
def test_too_small_a_style_image_is_refused(height: int, width: int, layers: dict[str, float], least: int) -> None:
    with pytest.raises(StylizeError) as caught:
        check_style_size(height, width, config(style_layers=layers), "starry.jpg")
    assert str(caught.value) == (
        f"starry.jpg: got a style image of {width}×{height} px, must be at least {least} px in each direction"
    )
    check_style_size(least, least, config(style_layers=layers), "starry.jpg")


def test_a_deeper_content_layer_asks_for_a_larger_style_image() -> None:
    with pytest.raises(StylizeError, match="must be at least 32 px in each direction"):
        check_style_size(40, 31, config(content_layers={"relu4_2": 1.0}), "starry.jpg")


@pytest.mark.parametrize("key", ("style_layers", "content_layers"))
def test_unknown_layers_are_refused_by_the_config(key: str) -> None:
    listed = ", ".join(f"'{tap}'" for tap in sorted(TAPS))
    message = complaint(lambda: LossConfig(**{key: {"conv9": 1.0}}))
    assert message == f"Value error, got 'conv9', must be one of {listed}."


def test_layer_weights_of_zero_and_no_layers_are_refused_by_the_config() -> None:
    assert complaint(lambda: LossConfig(style_layers={"relu1_1": 0.0})) == (
        "Value error, got relu1_1: 0.0, must be a finite weight above 0"
    )
    assert complaint(lambda: LossConfig(content_layers={})) == ("Value error, got no layers, must name at least one")


@pytest.mark.parametrize("key", ("content_weight", "style_weight", "tv_weight"))
def test_negative_weights_are_refused_by_the_config(key: str) -> None:
    with pytest.raises(ValidationError):
        LossConfig(**{key: -1.0})


def test_the_config_names_every_layer_once() -> None:
    layers = {"style_layers": {"relu1_1": 1.0, "relu2_1": 1.0}, "content_layers": {"relu2_1": 1.0}}
    assert LossConfig(**layers).taps() == ("relu1_1", "relu2_1")
