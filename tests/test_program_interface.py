"""`import stylize` in programs."""

import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_runs import picture, tiny, write_config, write_model
from mypy import api
from PIL import Image

import stylize
from stylize.cli import cli
from stylize.config import load_config
from stylize.inference.stylizer import Stylizer
from stylize.models.find import built_in_models

CPU = "cpu"


@pytest.fixture(scope="module")
def model() -> stylize.Model:
    return stylize.load("stained_glass", device=CPU)


def photograph(width: int = 40, height: int = 32, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# Importing


def test_importing_is_cheap_and_changes_nothing() -> None:
    program = """
        import sys, os, logging, warnings
        before = dict(os.environ), list(logging.root.handlers), list(warnings.filters)
        import stylize
        assert (dict(os.environ), list(logging.root.handlers), list(warnings.filters)) == before
        assert not logging.getLogger("stylize").handlers
        print(sorted({"torch", "numba", "numpy", "PIL", "pydantic", "click"} & set(sys.modules)))
        print(*stylize.styles(), "torch" in sys.modules)
    """
    assert run(program).splitlines() == ["[]", " ".join([*built_in_models(), "False"])]


def test_every_exported_name_exists_and_no_other_does() -> None:
    assert {name: getattr(stylize, name) for name in stylize.__all__}.keys() <= set(dir(stylize))
    with pytest.raises(AttributeError, match=r"^module 'stylize' has no attribute 'lod'$"):
        stylize.lod  # type: ignore[attr-defined]  # noqa: B018


def test_loading_and_painting_leave_the_state_of_the_process_alone() -> None:
    program = """
        import os, logging, numpy as np, torch
        torch.set_num_threads(2)
        torch.set_grad_enabled(False); torch.set_grad_enabled(True)
        def state():
            logger = logging.getLogger("stylize")
            return (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(), torch.get_rng_state().tolist(), torch.is_autocast_enabled("cpu"),
                torch.are_deterministic_algorithms_enabled(), logger.level, logger.handlers, logger.propagate,
                logging.root.handlers, dict(os.environ), os.getcwd(), np.random.get_state()[1].tolist())
        before = state()
        import stylize
        for name in stylize.styles():
            model = stylize.load(name, device="cpu")
            assert state() == before, "loading"
            model(np.zeros((32, 32, 3), np.uint8))
            model(torch.rand(3, 32, 32, generator=torch.Generator()), stroke_scale=2)
        assert state() == before, "painting"
    """
    run(program)


# Images


def test_each_kind_of_image_comes_back_as_its_kind_with_the_same_pixels(model: stylize.Model) -> None:
    array = photograph()
    painted = model(array)
    assert (painted.dtype, painted.shape, type(painted)) == (np.uint8, (32, 40, 3), np.ndarray)
    assert np.abs(painted.astype(int) - array).mean() > 5

    image = model(Image.fromarray(array))
    assert (type(image), image.mode, image.size) == (Image.Image, "RGB", (40, 32))
    assert np.array_equal(np.asarray(image), painted)

    tensor = torch.from_numpy(array).permute(2, 0, 1) / 255
    of_tensor = model(tensor)
    assert (of_tensor.dtype, of_tensor.shape) == (torch.float32, (3, 32, 40))
    assert np.array_equal((of_tensor * 255).round().byte().permute(1, 2, 0).numpy(), painted)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float16, torch.bfloat16))
def test_tensors_keep_their_type_and_a_batch_is_painted_image_by_image(
    model: stylize.Model, dtype: torch.dtype
) -> None:
    batch = torch.rand(3, 3, 32, 24).to(dtype).requires_grad_()
    painted = model(batch)
    assert (painted.dtype, painted.shape) == (dtype, batch.shape)
    assert not (painted.requires_grad or painted.is_inference())
    for one, alone in zip(painted, batch, strict=True):
        assert torch.equal(one, model(alone))


@pytest.mark.parametrize("mode", ("L", "P", "CMYK", "1", "I;16", "F"))
def test_a_pil_image_of_any_mode_comes_back_in_rgb(model: stylize.Model, mode: str) -> None:
    gray = photograph()[..., 0]
    image = Image.fromarray((gray / 255).astype(np.float32)) if mode == "F" else Image.fromarray(gray).convert(mode)
    painted = model(image)
    assert (painted.mode, painted.size) == ("RGB", (40, 32))


@pytest.mark.parametrize("mode", ("RGBA", "LA"))
def test_a_pil_image_keeps_its_alpha(model: stylize.Model, mode: str) -> None:
    image = Image.fromarray(photograph()).convert(mode)
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    painted = model(image)
    assert painted.mode == "RGBA"
    assert np.array_equal(np.asarray(painted.getchannel("A")), np.asarray(alpha))
    assert model(image, max_size=20).size == (20, 16)


def test_transparency_of_palettes_and_premultiplied_alpha_are_kept(model: stylize.Model, tmp_path: Path) -> None:
    rgba = Image.fromarray(photograph()).convert("RGBA")
    rgba.putalpha(Image.fromarray(photograph(seed=1)[..., 0]))
    rgba.quantize(32).save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as palette:
        assert (palette.mode, type(palette.info["transparency"])) == ("P", bytes)
        painted = model(palette)
        assert np.array_equal(np.asarray(painted)[..., 3], np.asarray(palette.convert("RGBA"))[..., 3])
        assert "transparency" in palette.info
    painted = model(rgba.convert("RGBa"))
    assert np.array_equal(np.asarray(painted)[..., 3], np.asarray(rgba)[..., 3])


def test_a_pil_image_comes_back_upright_and_the_given_one_is_unchanged(model: stylize.Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = picture(tmp_path / "turned.jpg", 60, 40, exif=exif)
    with Image.open(path) as image:
        assert model(image).size == (40, 60)
        assert (image.size, image.getexif()[0x0112]) == ((60, 40), 6)


def test_options_do_what_those_of_the_command_do(model: stylize.Model) -> None:
    array = photograph(80, 64)
    assert np.array_equal(model(array, strength=0), array)
    assert model(array, max_size=40).shape == (32, 40, 3)
    gray = array.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    kept = model(gray, keep_colors=True).astype(int)
    assert np.ptp(kept, axis=2).max() <= 1
    assert np.ptp(model(gray).astype(int), axis=2).max() > 20
    assert not np.array_equal(model(array, stroke_scale=2), model(array))


@pytest.mark.parametrize(
    ("image", "message"),
    (
        (np.zeros((32, 32, 3)), "image: got an array of float64 and shape (32, 32, 3), must be of uint8 and shape"),
        (np.zeros((32, 32), np.uint8), "image: got an array of uint8 and shape (32, 32), must be of uint8 and shape"),
        (np.zeros((3, 32, 32), np.uint8), "image: got an array of uint8 and shape (3, 32, 32), must be of uint8"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "image: got a tensor of torch.uint8 and shape (3, 32, 32), must"),
        (torch.zeros(32, 32, 3), "image: got a tensor of torch.float32 and shape (32, 32, 3), must be of floating"),
        (torch.zeros(0, 3, 32, 32), "image: got a tensor of torch.float32 and shape (0, 3, 32, 32), must be of"),
        (torch.full((3, 32, 32), 1.5), "image: got values from 1.5 to 1.5, must be in [0, 1]"),
        (torch.full((3, 32, 32), torch.nan), "image: got values from nan to nan, must be in [0, 1]"),
        (np.zeros((8, 32, 3), np.uint8), "got an image of 32×8 px, must be at least 16 px in each direction"),
        (np.zeros((0, 32, 3), np.uint8), "got an image of 32×0 px, must be at least 16 px in each direction"),
    ),
)
def test_an_image_of_wrong_shape_type_or_range_is_refused(model: stylize.Model, image: Any, message: str) -> None:
    with pytest.raises(stylize.StylizeError) as caught:
        model(image)
    assert str(caught.value).startswith(message)


def test_an_image_of_another_kind_is_a_type_error(model: stylize.Model) -> None:
    with pytest.raises(TypeError, match=r"^image: got str, must be a PIL image, a NumPy array or a tensor$"):
        model("photo.jpg")  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"strength": 1.5}, "strength: got 1.5, must be a number from 0 to 1"),
        ({"strength": "much"}, "strength: got 'much', must be a number from 0 to 1"),
        ({"stroke_scale": float("nan")}, "stroke_scale: got nan, must be a number from 1 to 8"),
        ({"max_size": 8}, "max_size: got 8, must be a whole number of at least 16 px, or None"),
        ({"max_size": 40.0}, "max_size: got 40.0, must be a whole number of at least 16 px, or None"),
    ),
)
def test_an_option_out_of_range_is_refused(
    model: stylize.Model, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    attempts: tuple[Callable[[], object], ...] = (
        lambda: model(photograph(), **options),
        lambda: model.apply_file(tmp_path / "missing.jpg", **options),
    )
    for attempt in attempts:
        with pytest.raises(stylize.StylizeError) as caught:
            attempt()
        assert str(caught.value) == message


# Loading


def test_a_model_is_found_by_name_file_and_run_folder(tmp_path: Path) -> None:
    file = write_model(tmp_path / "run" / "model.safetensors")
    for name in (file, str(file), tmp_path / "run"):
        loaded = stylize.load(name, device=CPU)
        assert (loaded.card.style, loaded.card.generator.width) == ("dots", 4)
        assert repr(loaded) == "<stylize.Model 'dots': johnson, instance norm, width 4, on cpu in fp32>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"model": "stained_gloss"}, "model: got 'stained_gloss', must be a model file, a run folder, or a built-in"),
        ({"precision": "fp8"}, "precision: got 'fp8', must be one of 'auto', 'bf16', 'fp16', 'fp32'."),
        ({"device": "cuda"}, "device: got 'cuda', which torch does not find here; usable: 'cpu'"),
        ({"device": "gpu"}, "device: got 'gpu', which PyTorch cannot use here ("),
    ),
)
def test_what_cannot_be_loaded_is_refused(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(stylize.StylizeError) as caught:
        stylize.load(**{"model": "stained_glass", "device": CPU, **arguments})
    assert str(caught.value).startswith(message)


def test_a_model_that_was_loaded_in_inference_mode_paints_as_any(model: stylize.Model) -> None:
    with torch.inference_mode():
        loaded = stylize.load("stained_glass", device=torch.device(CPU))
    assert np.array_equal(loaded(photograph()), model(photograph()))


def test_a_model_outlasts_its_file(tmp_path: Path) -> None:
    file = write_model(tmp_path / "dots.safetensors")
    loaded = stylize.load(file, device=CPU)
    before = loaded(photograph())
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 2)
        content.write(bytes(file.stat().st_size // 4))
    assert np.array_equal(loaded(photograph()), before)


# Threads and processes


def test_eight_pictures_in_eight_threads_are_those_painted_alone_bit_for_bit() -> None:
    shared = stylize.load("stained_glass", device=CPU)
    pictures = [torch.rand(3, 40 + 8 * (i % 3), 64 + 4 * i) for i in range(8)]
    together = threading.Barrier(8)

    def paint(image: torch.Tensor) -> list[torch.Tensor]:
        together.wait(60)
        return [shared(image) for _ in range(4)]

    with ThreadPoolExecutor(8) as threads:
        painted = list(threads.map(paint, pictures))
    alone = stylize.load("stained_glass", device=CPU)
    for image, results in zip(pictures, painted, strict=True):
        expected = alone(image)
        assert all(torch.equal(result, expected) for result in results)


def test_files_in_strips_and_whole_pictures_are_painted_in_threads_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stylizer, "bytes_for", lambda self, size: 2**50)
    shared = stylize.load("stained_glass", device=CPU)
    sources = [picture(tmp_path / f"{i}.png", 90, 60 + i, seed=i) for i in range(4)]
    arrays = [np.array(Image.open(source)) for source in sources]

    def by_file(source: Path) -> bytes:
        return shared.apply_file(source, overwrite=True).read_bytes()

    whole, files = [shared(array) for array in arrays], [by_file(source) for source in sources]
    with ThreadPoolExecutor(8) as threads:
        painted = threads.map(shared, arrays * 4)
        written = threads.map(by_file, sources)
        assert list(written) == files
        assert all(np.array_equal(a, b) for a, b in zip(painted, whole * 4, strict=True))


def test_a_pickled_model_paints_the_same_in_another_process(model: stylize.Model, tmp_path: Path) -> None:
    assert np.array_equal(pickle.loads(pickle.dumps(model))(photograph()), model(photograph()))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "photograph.npy", photograph())
    program = """
        import pickle, sys, pathlib, numpy as np
        folder = pathlib.Path(sys.argv[1])
        model = pickle.loads((folder / "model.pickle").read_bytes())
        np.save(folder / "painted.npy", model(np.load(folder / "photograph.npy")))
        print(repr(model))
    """
    assert run(program, str(tmp_path)) == f"{model!r}\n"
    assert np.array_equal(np.load(tmp_path / "painted.npy"), model(photograph()))


# Files


def test_a_file_is_painted_as_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x013B] = "somebody"
    source = picture(tmp_path / "photo.jpg", 90, 60, exif=exif)
    model = stylize.load(write_model(tmp_path / "dots.safetensors"), device=CPU)
    assert model.apply_file("photo.jpg") == Path("photo.dots.jpg")
    assert model.apply_file(source, tmp_path / "new" / "a.png", strength=0.5, max_size=45) == tmp_path / "new/a.png"
    assert model.apply_file(source, "new") == Path("new/photo.jpg")
    arguments = ["apply", "photo.jpg", "--model", "dots.safetensors", "--device", CPU]
    cli.main([*arguments, "-o", "by_command.jpg"], standalone_mode=False)
    cli.main([*arguments, "-o", "a.png", "--strength", "0.5", "--max-size", "45"], standalone_mode=False)
    for name in ("photo.dots.jpg", "new/photo.jpg"):
        assert Path(name).read_bytes() == Path("by_command.jpg").read_bytes()
    assert Path("new/a.png").read_bytes() == Path("a.png").read_bytes()
    with Image.open("photo.dots.jpg") as painted:
        assert painted.getexif()[0x013B] == "somebody"


def test_a_file_is_painted_in_strips_where_memory_is_short_and_progress_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stylizer, "bytes_for", lambda self, size: 2**50)
    model = stylize.load(write_model(tmp_path / "dots.safetensors"), device=CPU)
    source, shares = picture(tmp_path / "photo.png", 90, 60), list[float]()
    painted = np.asarray(Image.open(model.apply_file(source, on_progress=shares.append))).astype(int)
    assert sum(shares) == pytest.approx(1)
    whole = np.asarray(model(Image.open(source))).astype(int)
    assert np.abs(painted - whole).max() <= 1


def test_a_file_that_cannot_be_painted_is_refused(model: stylize.Model, tmp_path: Path) -> None:
    source = picture(tmp_path / "photo.png")
    (tmp_path / "notes.jpg").write_text("not a picture\n")
    target = model.apply_file(source)
    for arguments, message in (
        ((source,), f"{target}: is there already; --overwrite replaces it"),
        ((tmp_path,), f"{tmp_path}: is a folder, must be an image file"),
        ((tmp_path / "notes.jpg",), f"{tmp_path}/notes.jpg: not an image of a known format"),
        ((tmp_path / "a.jpg",), f"{tmp_path}/a.jpg: no such file"),
    ):
        with pytest.raises(stylize.StylizeError) as caught:
            model.apply_file(*arguments)
        assert str(caught.value) == message
    assert model.apply_file(source, overwrite=True) == target
    for options, message in (
        ({"quality": 0}, "quality: got 0, must be from 1 to 100"),
        ({"max_memory_gib": 0}, "max_memory_gib: got 0, must be above 0"),
    ):
        with pytest.raises(stylize.StylizeError) as caught:
            model.apply_file(source, overwrite=True, **options)  # type: ignore[arg-type]
        assert str(caught.value) == message


# Training


def train_and_count(config: Any, folder: Path | None = None, **options: Any) -> tuple[Any, list[int]]:
    """The result, and the steps at which progress was reported."""
    steps: list[int] = []
    return stylize.train(config, folder, device=CPU, on_progress=lambda p: steps.append(p.step), **options), steps


def test_a_config_is_trained_from_file_dict_and_checked_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_config(tmp_path)
    result, steps = train_and_count(str(file), quiet=True)
    assert (result.folder, result.model) == (Path("runs/tiny"), Path("runs/tiny/model.safetensors"))
    assert (steps, result.progress.step, result.interrupted) == ([1, 2, 3, 4], 4, False)
    assert capfd.readouterr() == ("", "")
    painted = stylize.load(result.folder, device=CPU)(photograph())

    tree = tiny({"style.image": Path("style.png")})
    for config, folder in ((tree, tmp_path / "from_dict"), (load_config(file), tmp_path / "from_config")):
        result, _ = train_and_count(config, folder, quiet=True)
        assert result.folder == folder
        assert np.array_equal(stylize.load(folder, device=CPU)(photograph()), painted)

    result, steps = train_and_count(tree, tmp_path / "from_dict", overrides=["train.steps=6"], resume=True)
    assert (steps, result.first_step, result.progress.step) == ([5, 6], 4, 6)


def test_a_config_that_is_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    with pytest.raises(stylize.StylizeError) as caught:
        stylize.train(tiny({"train.steps": "many"}), device=CPU)
    assert str(caught.value) == "config: train.steps: got 'many', must be a whole number"
    with pytest.raises(TypeError, match=r"^config: got list, must be a path, a dict or a RunConfig$"):
        stylize.train([], device=CPU)  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()


# Types

TYPED = """
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import stylize

model: stylize.Model = stylize.load("stained_glass", device="cpu", precision="fp32")
image: Image.Image = model(Image.open("photo.jpg"), strength=0.5)
array: NDArray[np.uint8] = model(np.zeros((32, 32, 3), np.uint8))
tensor: torch.Tensor = model(torch.zeros(3, 32, 32), max_size=32)
written: Path = model.apply_file("photo.jpg", Path("out.jpg"), overwrite=True)
names: list[str] = stylize.styles()
step: int = model.card.step
version: str = stylize.__version__
error: type[Exception] = stylize.StylizeError
"""
MISTAKES = {
    "wrong: Image.Image = model(np.zeros((32, 32, 3), np.uint8))": "Incompatible types in assignment",
    'model("photo.jpg")': "cannot be",
    "model(torch.zeros(3, 32, 32), strenght=0.5)": "Unexpected keyword argument",
    'stylize.load("stained_glass", precision="fp8")': "incompatible type",
    "stylize.lod": 'has no attribute "lod"',
}


def checked(program: str, folder: Path) -> tuple[str, int]:
    """What mypy says of a program, outside the configuration of this project."""
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    cache = Path(__file__).parent.parent / ".mypy_cache" / "programs"  # the project's is of other options
    options = ["--strict", "--config-file=", f"--cache-dir={cache}", "--follow-imports=silent"]
    out, err, status = api.run([*options, str(file)])
    assert not err
    return out, status


def test_types_of_a_program_are_known_and_its_mistakes_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYPYPATH", str(Path(stylize.__file__).parent.parent))
    out, status = checked(TYPED, tmp_path)
    assert status == 0, out
    out, status = checked("\n".join([TYPED, *MISTAKES]), tmp_path)
    first = TYPED.count("\n") + 2
    found = {int(line.split(":")[1]): line for line in out.splitlines() if "program.py:" in line and ": error:" in line}
    assert status == 1
    assert sorted(found) == list(range(first, first + len(MISTAKES))), out
    for line, message in zip(sorted(found), MISTAKES.values(), strict=True):
        assert message in found[line]
    assert (Path(stylize.__file__).parent / "py.typed").exists()
