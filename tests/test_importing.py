import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures_runs import picture
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from stylize.cli import main
from stylize.errors import StylizeError
from stylize.models.file import load_model
from stylize.models.importing import import_model
from stylize.pictures.reading import read_picture

Stored = dict[str, Tensor]


def stored(width: int = 32) -> Stored:
    """Random weights under the names of PyTorch's example, with the statistics that old versions of torch stored."""
    sizes = {
        "conv1": (3, width, 9), "conv2": (width, 2 * width, 3), "conv3": (2 * width, 4 * width, 3),
        **{f"res{i}.conv{k}": (4 * width, 4 * width, 3) for i in range(1, 6) for k in (1, 2)},
        "deconv1": (4 * width, 2 * width, 3), "deconv2": (2 * width, width, 3), "deconv3": (width, 3, 9),
    }  # fmt: skip
    state: Stored = {}
    for name, (in_channels, out_channels, kernel_px) in sizes.items():
        state[f"{name}.conv2d.weight"] = torch.randn(out_channels, in_channels, kernel_px, kernel_px) / kernel_px**2
        state[f"{name}.conv2d.bias"] = torch.randn(out_channels)
    norms = {"in1": width, "in2": 2 * width, "in3": 4 * width, "in4": 2 * width, "in5": width}
    norms |= {f"res{i}.in{k}": 4 * width for i in range(1, 6) for k in (1, 2)}
    for name, channels in norms.items():
        state[f"{name}.weight"] = torch.rand(channels) + 0.5
        state[f"{name}.bias"] = torch.randn(channels)
        state[f"{name}.running_mean"] = torch.randn(channels)
        state[f"{name}.running_var"] = torch.rand(channels)
    state["deconv3.conv2d.bias"] = torch.tensor([100.0, 128.0, 150.0])
    state["deconv3.conv2d.weight"] *= 400 / width**0.5
    return state


def their_network(state: Stored, x: Tensor) -> Tensor:
    """PyTorch's example, written out: values from 0 to 255 in and out."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv2d.weight"]
        padded = F.pad(x, (weight.shape[-1] // 2,) * 4, "reflect")
        return F.conv2d(padded, weight, state[f"{name}.conv2d.bias"], stride)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=state[f"{name}.weight"], bias=state[f"{name}.bias"], eps=1e-5)

    def enlarged(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")

    y = F.relu(norm("in1", conv("conv1", x)))
    y = F.relu(norm("in2", conv("conv2", y, 2)))
    y = F.relu(norm("in3", conv("conv3", y, 2)))
    for i in range(1, 6):
        inner = F.relu(norm(f"res{i}.in1", conv(f"res{i}.conv1", y)))
        y = norm(f"res{i}.in2", conv(f"res{i}.conv2", inner)) + y
    y = F.relu(norm("in4", conv("deconv1", enlarged(y))))
    y = F.relu(norm("in5", conv("deconv2", enlarged(y))))
    return conv("deconv3", y)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "candy.pth"
    torch.save(OrderedDict(stored(8)), path)
    return path


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(24, 32), (21, 27), (16, 50)])
def test_an_imported_model_paints_the_picture_of_the_network_it_was(tmp_path: Path, height: int, width: int) -> None:
    state = stored()
    torch.save(state, tmp_path / "candy.pth")
    (tmp_path / "candy.safetensors").write_bytes(import_model(tmp_path / "candy.pth", "candy"))
    generator, card = load_model(tmp_path / "candy.safetensors")
    x = torch.rand(2, 3, height, width)
    theirs = their_network(state, x * 255).clamp(0, 255)[..., :height, :width] / 255
    assert theirs.std() > 0.1
    assert ((theirs > 0) & (theirs < 1)).float().mean() > 0
    torch.testing.assert_close(generator(x), theirs, atol=2e-4, rtol=0)
    assert (card.style, card.generator.name, card.generator.width) == ("candy", "fast_neural_style", 32)
    assert card.vgg == "unknown: imported from candy.pth"


def refusal(path: Path, style: str = "candy") -> str:
    with pytest.raises(StylizeError) as caught:
        import_model(path, style)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda s: s.pop("res3.in2.bias"), "res3.in2.bias"),
        (lambda s: s.update({"res6.in2.bias": torch.zeros(3)}), "res6.in2.bias"),
        (lambda s: s.update({"in1.weight": torch.zeros(9)}), "in1.weight"),
        (lambda s: s.update({"in1.weight": torch.zeros(8, dtype=torch.int64)}), "in1.weight"),
        (lambda s: s.update({"conv1.conv2d.weight": torch.zeros(7, 3, 9, 9)}), "conv1.conv2d.weight"),
        (lambda s: s.pop("conv1.conv2d.weight"), "conv1.conv2d.weight"),
        (lambda s: s.update({"in1.scale": torch.zeros(8)}), "in1.scale"),
    ],
)
def test_a_state_dict_of_another_network_is_refused(
    tmp_path: Path, spoil: Callable[[Stored], object], name: str
) -> None:
    state = stored(8)
    spoil(state)
    torch.save(state, tmp_path / "a.pth")
    assert refusal(tmp_path / "a.pth") == (
        f"not of the network of PyTorch's fast_neural_style example: '{name}' is missing, unknown or of another shape"
    )


def test_a_file_that_is_no_state_dict_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pth"
    malicious = type("Malicious", (), {"__reduce__": lambda self: (Path.touch, (Path("executed"),))})()
    for content in (malicious, nn.Linear(1, 1)):
        torch.save(content, path)
        assert refusal(path) == "must be a state dict that torch.save wrote: weights, no code"
    assert not Path("executed").exists()
    path.write_bytes(b"words")
    assert refusal(path) == "must be a state dict that torch.save wrote: weights, no code"
    for content in ([1], {"a": 1}):
        torch.save(content, path)
        assert refusal(path) == "must hold a state dict: names with tensors"
    assert refusal(tmp_path / "none.pth") == "no such file"
    assert refusal(tmp_path) == "is a folder, must be a .pth file"
    assert refusal(path, "../x").startswith("--style: got '../x', must be letters")


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["stylize", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return (caught.value.code, *capsys.readouterr())

    return run


def test_import_makes_a_model_that_paints(
    tmp_path: Path, old: Path, call: Callable[..., tuple[object, str, str]]
) -> None:
    picture(tmp_path / "photo.png", 50, 37)
    assert call("import", "candy.pth", "-o", "candy.safetensors") == (0, "model: candy.safetensors\n", "")
    status, _, err = call("apply", "photo.png", "--model", "candy.safetensors", "-o", "out.png", "--precision", "fp32")
    assert (status, err) == (0, "model: candy.safetensors, style candy, the file given\n")
    photograph = read_picture(tmp_path / "photo.png").rgb[None]
    theirs = their_network(torch.load(old, weights_only=True), photograph * 255).clamp(0, 255) / 255
    painted = read_picture(tmp_path / "out.png").rgb
    assert (painted - theirs[0, :, :37, :50]).abs().max() < 1.5 / 255
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (50, 37)


def test_import_writes_where_it_may(old: Path, call: Callable[..., tuple[object, str, str]]) -> None:
    assert call("import", "candy.pth", "-o", "candy.pt")[2] == "stylize: -o: got 'candy.pt', must end in .safetensors\n"
    assert call("import", "candy.pth", "-o", "a.safetensors", "--style", "sweet")[0] == 0
    assert load_model(Path("a.safetensors"))[1].style == "sweet"
    assert call("import", "candy.pth", "-o", "a.safetensors") == (
        1, "", "stylize: a.safetensors: is there already: replace it with --overwrite, or choose another -o\n",
    )  # fmt: skip
    assert call("import", "candy.pth", "-o", "a.safetensors", "--overwrite")[0] == 0
    assert load_model(Path("a.safetensors"))[1].style == "candy"
