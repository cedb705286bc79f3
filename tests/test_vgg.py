import hashlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VGG19_Weights
from torchvision.models._api import Weights, WeightsEnum

import stylize.losses.vgg_weights
from stylize.errors import StylizeError
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg import LAYERS, TAPS, VGG19, Convolution, tap_depth
from stylize.losses.vgg_weights import (
    COMPACT_FORMAT,
    check_connection,
    encode_compact,
    imagenet_file,
    load_vgg,
    natural_noise,
    randomize_,
    read_weights,
)
from stylize.models.find import built_in_models

COMPACT_TAPS = ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1")


@pytest.fixture(scope="module")
def whole_random_vgg() -> VGG19:
    return load_vgg("random", TAPS, padding="zero").vgg


def weights(depth: int) -> dict[str, Tensor]:
    return VGG19(depth).state_dict()


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(StylizeError) as caught:
        call()
    return str(caught.value)


def empty_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    return folder / "checkpoints" / "vgg19-dcbb9e9d.pth"


def without_network(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    def refuse(url: str, timeout_s: float) -> None:
        raise OSError(reason)

    monkeypatch.setattr(stylize.losses.vgg_weights, "check_connection", refuse)


def cannot_download(reason: str, place: Path) -> str:
    return (
        f"the VGG-19 weights cannot be downloaded ({reason}); fetch "
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth (548 MB) "
        f"and put it at {place}, or set loss.vgg to the path of a copy, to 'compact' (VGG-19's student, to relu3_1), "
        "or to 'random' (colour and fine texture only)"
    )


def test_taps_are_the_sixteen_of_vgg_19() -> None:
    assert " ".join(TAPS) == (
        "relu1_1 relu1_2 relu2_1 relu2_2 relu3_1 relu3_2 relu3_3 relu3_4 "
        "relu4_1 relu4_2 relu4_3 relu4_4 relu5_1 relu5_2 relu5_3 relu5_4"
    )
    assert " ".join(layer.key for layer in LAYERS) == "0 2 5 7 10 12 14 16 19 21 23 25 28 30 32 34"


@torch.no_grad()
def test_all_taps_equal_torchvision_with_the_same_weights(whole_random_vgg: VGG19) -> None:
    from torchvision.models import vgg19

    with torch.device("meta"):
        features = vgg19(weights=None).features
    features.to_empty(device="cpu").load_state_dict(whole_random_vgg.features.state_dict())
    network = VGG19(16, "max", "zero")
    network.load_state_dict(whole_random_vgg.state_dict())
    image = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x, expected = (image - mean[:, None, None]) / std[:, None, None], []
    for module in features:
        x = module(x.clone())
        if isinstance(module, nn.ReLU):
            expected.append(x)
    taps = network(image, TAPS)
    assert list(taps) == list(TAPS)
    for ours, theirs in zip(taps.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.max()))


@torch.no_grad()
@pytest.mark.parametrize("pooling", ("max", "average"))
def test_taps_have_the_channels_and_the_scale_of_their_block(pooling: str) -> None:
    found = VGG19(9, pooling)(torch.rand(2, 3, 33, 48), ["relu1_1", "relu2_2", "relu3_1", "relu4_1"])
    assert {tap: tuple(f.shape) for tap, f in found.items()} == {
        "relu1_1": (2, 64, 33, 48),
        "relu2_2": (2, 128, 16, 24),
        "relu3_1": (2, 256, 8, 12),
        "relu4_1": (2, 512, 4, 6),
    }


@pytest.mark.parametrize(("taps", "depth"), ((["relu1_1"], 1), (["relu2_1", "relu1_1"], 3), (["relu5_4"], 16)))
def test_depth_is_that_of_the_deepest_tap(taps: list[str], depth: int) -> None:
    assert tap_depth(taps) == depth


@torch.no_grad()
def test_forward_stops_at_the_deepest_tap() -> None:
    vgg, calls = VGG19(6), []
    for conv in vgg.features.values():
        conv.register_forward_hook(lambda *_: calls.append(1))
    vgg(torch.rand(1, 3, 16, 16), ["relu1_1", "relu2_1"])
    assert len(calls) == 3


def test_loading_builds_no_layer_behind_the_deepest_tap() -> None:
    assert len(load_vgg("random", ["relu1_2", "relu2_1"]).vgg.features) == 3


@torch.no_grad()
def test_a_tap_is_not_changed_by_the_layers_behind_it() -> None:
    vgg, image = VGG19(3), torch.rand(1, 3, 16, 16)
    alone = vgg(image, ["relu1_1"])["relu1_1"]
    assert torch.equal(vgg(image, ["relu1_1", "relu2_1"])["relu1_1"], alone)


@torch.no_grad()
def test_the_image_is_not_changed() -> None:
    image = torch.rand(1, 3, 16, 16)
    before = image.clone()
    VGG19(2)(image, ["relu1_2"])
    assert torch.equal(image, before)


@torch.no_grad()
def test_replicated_borders_leave_a_flat_image_flat_and_zero_borders_do_not() -> None:
    image = torch.full((1, 3, 16, 16), 0.7)
    replicated, zero = VGG19(3, padding="replication"), VGG19(3, padding="zero")
    zero.load_state_dict(replicated.state_dict())
    assert replicated(image, ["relu2_1"])["relu2_1"].std((2, 3)).max() < 1e-6
    assert zero(image, ["relu2_1"])["relu2_1"].std((2, 3)).max() > 1e-3


def test_weights_do_not_train_but_the_image_gets_a_gradient() -> None:
    vgg, image = VGG19(2), torch.rand(1, 3, 16, 16, requires_grad=True)
    vgg(image, ["relu1_2"])["relu1_2"].sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in vgg.parameters())


def test_unknown_tap_is_refused_with_the_right_names() -> None:
    assert refusal(lambda: tap_depth(["relu1_1", "conv9"])) == (
        "VGG-19 layer: got 'conv9', must be one of 'relu1_1', 'relu1_2', 'relu2_1', 'relu2_2', "
        "'relu3_1', 'relu3_2', 'relu3_3', 'relu3_4', 'relu4_1', 'relu4_2', 'relu4_3', 'relu4_4', "
        "'relu5_1', 'relu5_2', 'relu5_3', 'relu5_4'."
    )


def test_a_tap_deeper_than_the_network_is_refused() -> None:
    assert refusal(lambda: VGG19(3)(torch.rand(1, 3, 16, 16), ["relu3_1"])) == (
        "got the tap relu3_1, must be no deeper than relu2_1"
    )


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
@pytest.mark.parametrize("kind", ("whole", "features only", "cut short"))
def test_weight_files_of_every_kind_can_be_read(tmp_path: Path, kind: str, suffix: str) -> None:
    expected = weights(3)
    state = weights(5) | expected if kind != "cut short" else dict(expected)
    if kind == "whole":
        state["classifier.0.weight"] = torch.rand(4, 4)
    if kind == "features only":
        state = {key.removeprefix("features."): value for key, value in state.items()}
    path = tmp_path / f"vgg{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_vgg(str(path), ["relu2_1"])
    assert loaded.weights == path.name
    actual = loaded.vgg.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    save_file({key: value.half() for key, value in weights(1).items()}, tmp_path / "a.safetensors")
    vgg = load_vgg(str(tmp_path / "a.safetensors"), ["relu1_1"]).vgg
    assert {p.dtype for p in vgg.parameters()} == {torch.float32}


def test_a_file_that_ends_before_the_deepest_tap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    save_file(weights(2), path)
    assert refusal(lambda: load_vgg(str(path), ["relu1_1", "relu2_1"])) == (
        f"{path}: reaches relu1_2, must reach relu2_1; ask for shallower layers in "
        "loss.style_layers and loss.content_layers, or give a deeper file"
    )


@pytest.mark.parametrize(
    "state",
    ({"conv.weight": torch.zeros(3)}, {"features.0.weight": torch.zeros(32, 3, 3, 3)}),
    ids=("other names", "other shape"),
)
def test_weights_of_another_network_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "other.pth"
    torch.save(state, path)
    assert refusal(lambda: read_weights(path, 1)) == (
        f"{path}: no VGG-19: must hold features.0.weight of shape (64, 3, 3, 3)"
    )


def test_a_file_that_is_no_dict_of_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([1, 2], path)
    assert refusal(lambda: read_weights(path, 1)) == (f"{path}: not a weight file: must be a dict of tensors by name")


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
def test_a_text_file_is_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"notes{suffix}"
    path.write_text("these are not weights\n" * 20)
    message = refusal(lambda: load_vgg(str(path), ["relu1_1"]))
    assert message.startswith(f"{path}: not a weight file that can be read safely (")
    assert message.endswith(")")
    assert "\n" not in message


class _Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("writer", ("torch", "pickle"))
def test_code_in_a_weight_file_is_not_run(tmp_path: Path, writer: str) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    state = {**weights(1), "extra": _Payload(f"touch '{trace}'")}
    torch.save(state, path) if writer == "torch" else path.write_bytes(pickle.dumps(state))
    message = refusal(lambda: load_vgg(str(path), ["relu1_1"]))
    assert message.startswith(f"{path}: not a weight file that can be read safely (")
    assert not trace.exists()


def test_the_payload_of_the_test_above_would_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"extra": _Payload(f"touch '{trace}'")}, path)
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_missing_file_is_refused() -> None:
    assert refusal(lambda: load_vgg("no/such.pth", ["relu1_1"])).startswith(
        "loss.vgg: got 'no/such.pth', must be 'imagenet', "
    )


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = load_vgg("random", ["relu2_1"], seed=5)
    torch.manual_seed(2)
    again, other = load_vgg("random", ["relu2_1"], seed=5), load_vgg("random", ["relu2_1"], seed=6)
    assert first.weights == "random, seed 5"
    for key, value in first.vgg.state_dict().items():
        assert torch.equal(value, again.vgg.state_dict()[key])
    key = "features.0.weight"
    assert not torch.equal(first.vgg.state_dict()[key], other.vgg.state_dict()[key])


def test_random_weights_do_not_depend_on_the_depth() -> None:
    shallow = load_vgg("random", ["relu1_2"]).vgg.state_dict()
    deep = load_vgg("random", ["relu2_2"]).vgg.state_dict()
    assert all(torch.equal(value, deep[key]) for key, value in shallow.items())


def build_student(convolution: Convolution, **options: Any) -> VGG19:
    ranks = [None, None, (2, 3), (3, 3), (5, 4)] if convolution == "low_rank" else []
    return VGG19(5, widths=(4, 4, 6, 6, 8), convolution=convolution, ranks=ranks, **options)


def write_student(path: Path, convolution: Convolution = "plain") -> VGG19:
    vgg = build_student(convolution)
    randomize_(vgg, seed=1)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode_compact(vgg, {"name": "tiny"}))
    return vgg


@pytest.fixture
def compact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VGG19:
    """A small student in place of the one in the package."""
    monkeypatch.setattr(stylize.losses.vgg_weights, "COMPACT", tmp_path / "weights" / "vgg19-compact.safetensors")
    return write_student(stylize.losses.vgg_weights.COMPACT)


@torch.no_grad()
@pytest.mark.parametrize("convolution", get_args(Convolution))
def test_a_student_has_the_taps_of_vgg_19_with_fewer_channels(tmp_path: Path, convolution: Convolution) -> None:
    path, image = tmp_path / "student.safetensors", torch.rand(1, 3, 33, 48)
    written = write_student(path, convolution)
    loaded = load_vgg(str(path), COMPACT_TAPS)
    found, expected = loaded.vgg(image, COMPACT_TAPS), written(image, COMPACT_TAPS)
    assert loaded.weights == "student.safetensors"
    assert {tap: tuple(maps.shape) for tap, maps in found.items()} == {
        "relu1_1": (1, 4, 33, 48),
        "relu1_2": (1, 4, 33, 48),
        "relu2_1": (1, 6, 16, 24),
        "relu2_2": (1, 6, 16, 24),
        "relu3_1": (1, 8, 8, 12),
    }
    for tap in COMPACT_TAPS:
        torch.testing.assert_close(found[tap], expected[tap], rtol=0.01, atol=0.01)  # stored in float16


def test_convolutions_of_low_rank_have_the_channels_that_are_asked_for_between() -> None:
    student = build_student("low_rank")
    shapes = [tuple(parameter.shape) for parameter in student.features["5"].parameters()]
    assert shapes == [(2, 4, 1, 1), (3, 2, 3, 3), (6, 3, 1, 1), (6,)]
    with pytest.raises(ValueError, match="got 1 ranks, must be one for each of 2 convolutions"):
        VGG19(2, widths=(4, 4), convolution="low_rank", ranks=[None])


def test_feature_maps_are_channels_last_and_their_gram_matrices_need_no_copy() -> None:
    vgg = load_vgg("random", ["relu2_1"]).vgg
    (maps,) = vgg(torch.rand(2, 3, 16, 20), ["relu2_1"]).values()
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert maps.permute(0, 2, 3, 1).flatten(1, 2).data_ptr() == maps.data_ptr()


def test_compact_is_the_student_in_the_package(compact: VGG19) -> None:
    loaded = load_vgg("compact", ["relu1_1", "relu2_1"], pooling="average", padding="zero")
    assert loaded.weights == "compact (VGG-19's student)"
    assert loaded.vgg.widths == (4, 4, 6)
    assert loaded.vgg.pooling == "average"
    assert loaded.vgg.features["0"].geometry.border == "constant"
    assert torch.equal(loaded.vgg.features["0"].weight, compact.features["0"].weight.half().float())


def test_the_student_in_the_package_is_small_and_no_built_in_style() -> None:
    assert stylize.losses.vgg_weights.COMPACT not in [model.path for model in built_in_models().values()]
    assert (
        not stylize.losses.vgg_weights.COMPACT.exists() or stylize.losses.vgg_weights.COMPACT.stat().st_size <= 600_000
    )


def test_a_tap_deeper_than_the_student_is_refused(compact: VGG19) -> None:
    assert refusal(lambda: load_vgg("compact", ["relu1_1", "relu4_2"])) == (
        f"{stylize.losses.vgg_weights.COMPACT}: reaches relu3_1, must reach relu4_2; ask for shallower layers in "
        "loss.style_layers and loss.content_layers, or give a deeper file"
    )


def test_a_package_without_the_student_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stylize.losses.vgg_weights, "COMPACT", tmp_path / "gone.safetensors")
    assert refusal(lambda: load_vgg("compact", ["relu1_1"])) == (
        f"loss.vgg: got 'compact', but {tmp_path}/gone.safetensors is missing; install stylize anew, make the file "
        "with scripts/distill_vgg.py, or take 'imagenet', 'random' or a weight file"
    )


def test_imagenet_or_compact_takes_the_student_without_the_network(
    compact: VGG19, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = empty_cache(monkeypatch, tmp_path)
    without_network(monkeypatch, "no route to host")
    said: list[str] = []
    assert load_vgg("imagenet-or-compact", ["relu3_1"], say=said.append).weights == "compact (VGG-19's student)"
    assert said == [
        "loss.vgg: of 'imagenet-or-compact' took 'compact', because " + cannot_download("no route to host", place)
    ]


@pytest.mark.parametrize(
    "metadata",
    (
        {"widths": "4,4"},
        {"widths": "4,x", "convolution": "plain"},
        {"widths": "4,9", "convolution": "plain"},
        {"widths": "4,4", "convolution": "low_rank"},
        {"widths": "4,4", "convolution": "low_rank", "ranks": "plain,3"},
        {"widths": "4,4", "convolution": "low_rank", "ranks": "plain,3:2"},
    ),
    ids=("no kind", "no numbers", "other widths", "no ranks", "half a rank", "other layers"),
)
def test_a_damaged_student_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "student.safetensors"
    state = VGG19(2, widths=(4, 4)).state_dict()
    save_file(state, path, {"format": COMPACT_FORMAT, **metadata})
    assert refusal(lambda: load_vgg(str(path), ["relu1_2"])) == f"{path}: damaged: its weights do not fit its metadata"


@pytest.mark.parametrize("scale", ("relative", "raw"))
def test_the_loss_of_a_student_has_the_names_of_that_of_vgg_19(compact: VGG19, scale: str) -> None:
    layers = {"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0}
    config = LossConfig(style_layers=layers, content_layers={"relu2_2": 1.0}, scale=scale)
    terms = []
    for source in ("compact", "random"):
        image = torch.rand(1, 3, 32, 32, requires_grad=True)
        loss = PerceptualLoss(load_vgg(source, config.taps()).vgg, config, [torch.rand(3, 40, 40)])
        terms.append(loss(image, torch.rand(1, 3, 32, 32)))
        terms[-1]["total"].backward()
        assert image.grad.abs().sum() > 0
    assert terms[0].keys() == terms[1].keys()
    assert all(torch.isfinite(term) for term in terms[0].values())


@pytest.mark.parametrize("convolution", get_args(Convolution))
def test_a_random_student_has_a_mean_activation_of_one(convolution: Convolution) -> None:
    vgg = build_student(convolution, pooling="average")
    randomize_(vgg, seed=0)
    images = natural_noise(8, 64, torch.Generator().manual_seed(0))
    assert {tap: round(float(f.mean()), 2) for tap, f in vgg(images, COMPACT_TAPS).items()} == dict.fromkeys(
        COMPACT_TAPS, 1.0
    )


def test_random_weights_leave_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    load_vgg("random", ["relu2_1"])
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_random_weights_give_a_mean_activation_of_one_at_every_layer(
    whole_random_vgg: VGG19,
) -> None:
    images = natural_noise(8, 64, torch.Generator().manual_seed(0))
    found = whole_random_vgg(images, TAPS)
    means = {tap: round(float(f.mean()), 2) for tap, f in found.items()}
    assert means == dict.fromkeys(TAPS, 1.0)


@torch.no_grad()
def test_random_weights_give_a_mean_activation_near_one_on_other_images() -> None:
    vgg = load_vgg("random", ["relu3_1"]).vgg
    images = natural_noise(4, 48, torch.Generator().manual_seed(99))
    taps = [layer.tap for layer in LAYERS[:5]]
    assert all(0.7 < f.mean() < 1.4 for f in vgg(images, taps).values())


def test_random_weights_take_average_pooling() -> None:
    assert load_vgg("random", ["relu1_1"], pooling="max").vgg.pooling == "average"


def test_imagenet_comes_from_the_cache_without_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = empty_cache(monkeypatch, tmp_path)
    path.parent.mkdir()
    torch.save(weights(1), path)
    without_network(monkeypatch, "the network was asked for")
    assert imagenet_file() == path
    loaded = load_vgg("imagenet", ["relu1_1"])
    assert loaded.weights == "imagenet (torchvision IMAGENET1K_V1)"


def test_imagenet_without_cache_or_network_says_what_to_fetch_and_where_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = empty_cache(monkeypatch, tmp_path)
    without_network(monkeypatch, "no route to host")
    message = refusal(lambda: load_vgg("imagenet", ["relu1_1"]))
    assert message == cannot_download("no route to host", place)


def test_imagenet_or_random_takes_random_without_the_network_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = empty_cache(monkeypatch, tmp_path)
    without_network(monkeypatch, "no route to host")
    said: list[str] = []
    loaded = load_vgg("imagenet-or-random", ["relu1_1"], seed=3, say=said.append)
    assert loaded.weights == "random, seed 3"
    assert said == [
        "loss.vgg: of 'imagenet-or-random' took 'random', because " + cannot_download("no route to host", place)
    ]


def test_the_first_source_to_be_had_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "vgg.safetensors"
    save_file(weights(1), path)
    said: list[str] = []
    loaded = load_vgg(f"{path}-or-random", ["relu1_1"], say=said.append)
    assert loaded.weights == "vgg.safetensors"
    assert said == [f"loss.vgg: of '{path}-or-random' took '{path}'"]


def test_a_path_with_or_in_its_name_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine-or-yours.safetensors"
    save_file(weights(1), path)
    said: list[str] = []
    assert load_vgg(str(path), ["relu1_1"], say=said.append).weights == path.name
    assert said == []


def test_a_single_source_is_taken_without_a_word() -> None:
    said: list[str] = []
    load_vgg("random", ["relu1_1"], say=said.append)
    assert said == []


def test_a_failed_download_says_what_to_fetch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = empty_cache(monkeypatch, tmp_path)
    monkeypatch.setattr(stylize.losses.vgg_weights, "check_connection", lambda url, timeout_s: None)

    def download(url: str, file: str, hash_prefix: str, **options: object) -> None:
        assert (url, file, hash_prefix) == (VGG19_Weights.IMAGENET1K_V1.url, str(place), "dcbb9e9d")
        raise RuntimeError("invalid hash value\nmore")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert refusal(imagenet_file) == cannot_download("invalid hash value", place)
    assert capsys.readouterr().out == ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """A server of the files in `tmp_path / "served"`."""
    (tmp_path / "served").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("hash_is", ("right", "wrong"))
def test_a_download_is_in_the_cache_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: ThreadingHTTPServer, hash_is: str
) -> None:
    torch.save(weights(1), tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8] if hash_is == "right" else "01234567"
    (tmp_path / "served" / f"vgg19-{digest}.pth").write_bytes(content)
    url = f"http://127.0.0.1:{server.server_port}/vgg19-{digest}.pth"
    entry = WeightsEnum("Local", {"WEIGHTS": Weights(url, transforms=None, meta={})}).WEIGHTS
    monkeypatch.setattr(stylize.losses.vgg_weights, "imagenet_weights", lambda: entry)
    cache = empty_cache(monkeypatch, tmp_path).parent
    if hash_is == "right":
        assert imagenet_file().read_bytes() == content
        assert [path.name for path in cache.iterdir()] == [entry.url.rpartition("/")[2]]
    else:
        assert 'invalid hash value (expected "01234567"' in refusal(imagenet_file)
        assert list(cache.iterdir()) == []


def test_a_connection_is_given_up_on_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights"
        started = time.monotonic()
        with pytest.raises(OSError, match=r"no connection within|timed out"):
            check_connection(url, 0.3)
        assert time.monotonic() - started < 1.5


def test_a_connection_reports_a_server_that_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"garbage\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OSError, match="garbage"):
            check_connection(f"http://127.0.0.1:{server.getsockname()[1]}/weights", 5)
        thread.join()


def test_a_connection_is_given_up_on_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights"
    with pytest.raises(OSError, match="refused"):
        check_connection(url, 5)
