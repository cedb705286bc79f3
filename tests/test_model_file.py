import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fixtures_runs import picture, write_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stylize import __version__
from stylize.errors import StylizeError
from stylize.generators import GeneratorConfig, build_generator
from stylize.models.file import ModelCard, encode_model, load_model, make_thumbnail, read_card


def refusal(path: Path) -> str:
    with pytest.raises(StylizeError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def rewrite(path: Path, changes: Mapping[str, str | None], tensors: Mapping[str, Tensor | None] | None = None) -> None:
    """Change metadata and tensors of a model file; None takes one out."""
    with safe_open(path, "pt") as file:
        metadata = {k: v for k, v in {**file.metadata(), **changes}.items() if v is not None}
    state = {k: v for k, v in {**load_file(path), **(tensors or {})}.items() if v is not None}
    save_file(state, path, metadata)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "dots.safetensors")


@pytest.mark.parametrize("name", ["johnson", "texture_network"])
@pytest.mark.parametrize("norm", ["instance", "batch", "batch_instance", "layer", "none"])
def test_a_model_comes_back_as_it_was_saved(tmp_path: Path, name: str, norm: str) -> None:
    config = GeneratorConfig(name=name, norm=norm, width=4, padding="replication")
    generator = build_generator(config)
    with torch.no_grad():
        for value in generator.state_dict().values():
            value.uniform_(0.1, 0.9)
    card = ModelCard(
        generator=config,
        style="swirling_strokes",
        step=1234,
        vgg="random, seed 0",
        validation={"total": 1.5, "style": float("inf")},
        config={"name": "ä", "train": {"steps": 3, "stop_after": None}},
        thumbnail=b"\xff\xd8 jpeg",
    )
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_model(generator, card))
    loaded, told = load_model(path)
    assert told == card == read_card(path)
    assert (told.stylize_version, told.torch_version) == (__version__, torch.__version__)
    assert type(loaded) is type(generator)
    assert not any(module.training for module in loaded.modules())
    saved = generator.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.state_dict().items())
    image = torch.rand(1, 3, 24, 24)
    assert torch.equal(loaded(image), generator.eval()(image))


def test_the_running_statistics_and_gates_of_batch_instance_norm_are_saved(tmp_path: Path) -> None:
    state = load_file(write_model(tmp_path / "model.safetensors", norm="batch_instance"))
    for suffix in ("running_mean", "running_var", "gate", "weight", "bias"):
        assert f"encode.0.norm.{suffix}" in state


def test_half_precision_halves_the_file_and_loads_in_float32(tmp_path: Path) -> None:
    config = GeneratorConfig(width=8)
    generator = build_generator(config)
    card = ModelCard(generator=config, style="dots")
    whole, half = encode_model(generator, card), encode_model(generator, card, torch.float16)
    assert len(half) < 0.6 * len(whole)
    (tmp_path / "half.safetensors").write_bytes(half)
    loaded, told = load_model(tmp_path / "half.safetensors")
    assert told == card
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, generator.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_weights_in_8_bits_halve_it_again_and_are_off_by_half_a_level_at_most(tmp_path: Path) -> None:
    config = GeneratorConfig(width=8)
    generator = build_generator(config)
    with torch.no_grad():
        generator.get_parameter("encode.1.conv.weight")[3] = 0  # a channel without weights has no largest one
    card = ModelCard(generator=config, style="dots")
    half, quarter = encode_model(generator, card, torch.float16), encode_model(generator, card, torch.int8)
    assert len(quarter) < 0.6 * len(half)
    path = tmp_path / "quarter.safetensors"
    path.write_bytes(quarter)
    loaded, told = load_model(path)
    assert told == card
    assert loaded.state_dict().keys() == generator.state_dict().keys()
    for name, value in loaded.state_dict().items():
        exact = generator.state_dict()[name]
        assert value.dtype == torch.float32
        if exact.dim() == 4:
            largest = exact.abs().amax((1, 2, 3), keepdim=True)
            assert torch.all((value - exact).abs() <= largest / 254 * 1.001)
            assert value.unique().numel() > 100
        else:
            assert torch.equal(value, exact.half().float())
    assert not loaded.get_parameter("encode.1.conv.weight")[3].any()
    with safe_open(path, "pt") as file:
        assert file.metadata()["format_version"] == "4"  # which older versions refuse by its number


@pytest.mark.parametrize("scale", (None, torch.ones(8), torch.full((8, 1, 1, 1), torch.nan)))
def test_weights_in_8_bits_without_a_proper_scale_are_refused(tmp_path: Path, scale: Tensor | None) -> None:
    config = GeneratorConfig(width=8)
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_model(build_generator(config), ModelCard(generator=config, style="dots"), torch.int8))
    rewrite(path, {}, {"encode.0.conv.weight.scale": scale})
    assert refusal(path).startswith("damaged: ")


def test_weights_on_other_layouts_are_saved_too(tmp_path: Path) -> None:
    config = GeneratorConfig(width=4)
    generator = build_generator(config).to(memory_format=torch.channels_last)
    (tmp_path / "a.safetensors").write_bytes(encode_model(generator, ModelCard(generator=config, style="a")))
    loaded = load_model(tmp_path / "a.safetensors")[0].state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in generator.state_dict().items())


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    no_model = "no stylize model: must be a .safetensors file that `stylize train` wrote"
    path = tmp_path / "model.safetensors"
    for content in (b"just words\n", b"", pickle.dumps([1, 2]), b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{}"):
        path.write_bytes(content)
        assert refusal(path) == no_model
    torch.save({"a": torch.ones(2)}, path)
    assert refusal(path) == no_model
    assert refusal(tmp_path / "missing.safetensors") == "no such file"
    assert refusal(tmp_path) == "is a folder, must be a model file"


def test_a_model_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    malicious = type("Malicious", (), {"__reduce__": lambda self: (Path.touch, (Path("executed"),))})()
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(malicious))
    refusal(path)
    torch.save(malicious, path)
    refusal(path)
    assert not Path("executed").exists()
    torch.save(malicious, "model.pt")
    torch.load("model.pt", weights_only=False)
    assert Path("executed").exists()


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vgg.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.ones(2)}, path, metadata)
        assert refusal(path) == "a safetensors file, but no stylize model: its metadata do not say so"


def test_a_cut_model_file_is_refused(model: Path) -> None:
    content = model.read_bytes()
    for share in (0.1, 0.5, 0.99):
        model.write_bytes(content[: int(share * len(content))])
        assert refusal(model) == "no stylize model: must be a .safetensors file that `stylize train` wrote"


@pytest.mark.parametrize("version", ["5", "10"])
def test_a_newer_format_is_refused(model: Path, version: str) -> None:
    rewrite(model, {"format_version": version})
    assert refusal(model) == (
        f"got format version {version}, must be at most 4: it was written by a newer stylize than this one "
        f"({__version__}); upgrade stylize"
    )


@pytest.mark.parametrize("version", [None, "", "one", "²", "-1", "1" * 5000])
def test_a_format_version_must_be_a_number(model: Path, version: str | None) -> None:
    rewrite(model, {"format_version": version})
    assert refusal(model) == "damaged: no format version"


@pytest.mark.parametrize(
    "key",
    ["generator", "style", "step", "vgg", "validation", "config", "thumbnail", "stylize_version", "torch_version"],
)
def test_metadata_that_are_missing_are_named(model: Path, key: str) -> None:
    rewrite(model, {key: None})
    assert refusal(model) == f"damaged: its metadata lack '{key}'"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "generator",
            '{"norm": "adain"}',
            "damaged: its metadata: generator.norm: got 'adain', must be one of 'batch', 'batch_instance', "
            "'instance', 'layer', 'none'.",
        ),
        ("generator", "{", "damaged: its metadata: generator: Invalid JSON: EOF while parsing an object at line 1"),
        ("generator", '{"depth": 3}', "damaged: its metadata: generator.depth: Extra inputs are not permitted"),
        ("generator", '{"width": 1e9}', "damaged: its metadata: generator.width: "),
        ("step", "many", "damaged: its metadata cannot be read (step: got 'many', must be a whole number)"),
        ("validation", "[1]", "damaged: its metadata cannot be read ("),
        ("validation", '{"total": []}', "damaged: its metadata cannot be read ("),
        ("validation", "{", "damaged: its metadata cannot be read (Expecting property name"),
        ("config", "3", "damaged: its metadata cannot be read ("),
        ("thumbnail", "a", "damaged: its metadata cannot be read ("),
        ("style", "../../x", "damaged: its metadata cannot be read (style: got '../../x', must be letters, digits, "
         "' ', '.', '_' and '-', at most 100)"),
        ("style", "", "damaged: its metadata cannot be read (style: got '', "),
        ("style", "a\nb", "damaged: its metadata cannot be read (style: got 'a\\nb', "),
        ("style", "x" * 101, "damaged: its metadata cannot be read (style: got 'xxx"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_read_are_refused(model: Path, key: str, value: str, message: str) -> None:
    rewrite(model, {key: value})
    assert refusal(model).startswith(message)
    assert "\n" not in refusal(model)


def test_weights_that_do_not_fit_the_generator_are_refused(model: Path) -> None:
    content = model.read_bytes()
    bias, weight = "encode.0.conv.bias", "encode.0.conv.weight"
    for tensors in ({bias: None}, {weight: torch.zeros(4, 3, 3, 3)}, {"other": torch.zeros(1)}):
        model.write_bytes(content)
        rewrite(model, {}, tensors)
        assert refusal(model) == "damaged: its weights do not fit its johnson generator"
        assert read_card(model).style == "dots"


def test_a_thumbnail_is_a_small_jpeg(tmp_path: Path) -> None:
    thumbnail = make_thumbnail(Image.open(picture(tmp_path / "a.png", 400, 200)))
    assert len(thumbnail) < 10_000
    (tmp_path / "a.jpg").write_bytes(thumbnail)
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (96, 48))


def test_a_model_loads_without_the_rooms_that_make_it(model: Path) -> None:
    code = (
        "import sys, pathlib; from stylize.models.file import load_model; "
        f"load_model(pathlib.Path({str(model)!r})); "
        "print(sorted({'stylize.losses', 'stylize.config', 'stylize.build'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=model.parent)
    assert (shown.stdout, shown.stderr) == ("[]\n", "")
