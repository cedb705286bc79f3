import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from fixtures_runs import contents, picture, tiny, write_config, write_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stylize import __version__
from stylize.cli import main
from stylize.generators import GeneratorConfig, build_generator
from stylize.losses.vgg import VGG19
from stylize.losses.vgg_weights import randomize_
from stylize.models import find as models
from stylize.models.file import ModelCard, encode_model
from stylize.pictures.reading import read_picture
from stylize.training.checkpoint import checkpoints
from stylize.training.monitor import Monitor


class Outcome(NamedTuple):
    status: Any
    out: str
    err: str


Call = Callable[..., Outcome]
RUN_FILES = {".lock", "config.yaml", "inputs.json", "model.safetensors", "metrics.jsonl", "checkpoints", "samples"}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["stylize", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return Outcome(caught.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def refusal(call: Call) -> Callable[..., str]:
    """The one line with which the command line refuses."""

    def run(*arguments: object) -> str:
        outcome = call(*arguments)
        *log, message = outcome.err.splitlines()
        assert outcome.status == 1
        assert outcome.out == ""
        assert message.startswith("stylize: ")
        assert all(line.startswith("model: ") for line in log)
        return message.removeprefix("stylize: ")

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "dots.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and its finished run."""
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["stylize", "train", "--config", "a.yaml"])
        with pytest.raises(SystemExit) as caught:
            main()
    assert caught.value.code == 0
    return folder


def image(path: Path) -> Tensor:
    return read_picture(path).rgb


def chroma(rgb: Tensor) -> Tensor:
    red, green, blue = rgb
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([blue - luma, red - luma])


# What `train` refuses


def test_train_refuses_an_unknown_key(tmp_path: Path, refusal: Callable[..., str]) -> None:
    write_config(tmp_path, {"loss.style_wieght": 3})
    assert refusal("train", "--config", "a.yaml") == (
        "a.yaml: loss.style_wieght: unknown key, must be one of 'channel_balance', 'content_layers', "
        "'content_weight', 'padding', 'pooling', 'scale', 'style_energy', "
        "'style_layers', 'style_weight', 'tv_weight', 'vgg'. Did you mean 'style_weight'?"
    )


def test_train_refuses_a_value_of_the_wrong_type(tmp_path: Path, refusal: Callable[..., str]) -> None:
    write_config(tmp_path, {"train.steps": "many"})
    assert refusal("train", "--config", "a.yaml") == "a.yaml: train.steps: got 'many', must be a whole number"


def test_train_refuses_a_missing_config(refusal: Callable[..., str]) -> None:
    assert refusal("train", "--config", "b.yaml") == "b.yaml: no such config file"


def test_train_refuses_a_missing_style_image(tmp_path: Path, refusal: Callable[..., str]) -> None:
    write_config(tmp_path, {"style.image": "nowhere.jpg"})
    assert refusal("train", "--config", "a.yaml") == f"{tmp_path}/nowhere.jpg: no such file"


def test_train_refuses_a_style_image_that_is_too_small(tmp_path: Path, refusal: Callable[..., str]) -> None:
    picture(tmp_path / "dot.png", 3, 3)
    write_config(tmp_path, {"style.image": "dot.png"})
    assert refusal("train", "--config", "a.yaml") == (
        f"{tmp_path}/dot.png: got a style image of 3×3 px, must be at least 16 px in each direction"
    )


def test_train_refuses_an_empty_content_folder(tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "empty").mkdir()
    write_config(tmp_path, {"content.path": "empty"})
    assert refusal("train", "--config", "a.yaml") == (
        f"content.path: {tmp_path}/empty holds no image files (jpg, png, webp, tiff, gif, avif, bmp, ppm)"
    )


def test_train_refuses_a_crop_that_is_larger_than_every_photograph(tmp_path: Path, refusal: Callable[..., str]) -> None:
    write_config(tmp_path, {"content.crop": 64})
    assert refusal("train", "--config", "a.yaml") == (
        "a.yaml: content: got a crop of 64, must be at most resize (40): it would be larger than every photograph"
    )


def test_train_refuses_a_vgg_file_that_ends_before_the_deepest_layer(
    tmp_path: Path, refusal: Callable[..., str]
) -> None:
    vgg = VGG19(5)
    randomize_(vgg, 0)
    save_file(vgg.state_dict(), tmp_path / "vgg.safetensors")
    write_config(tmp_path, {"loss.vgg": "vgg.safetensors", "loss.style_layers": {"relu4_1": 1.0}})
    assert refusal("train", "--config", "a.yaml") == (
        f"{tmp_path}/vgg.safetensors: reaches relu3_1, must reach relu4_1; "
        "ask for shallower layers in loss.style_layers and loss.content_layers, or give a deeper file"
    )


def test_train_says_where_to_put_the_vgg_weights_that_cannot_be_downloaded(
    tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(url: str, timeout_s: float) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("stylize.losses.vgg_weights.check_connection", probe)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    write_config(tmp_path, {"loss.vgg": "imagenet"})
    assert refusal("train", "--config", "a.yaml") == (
        "the VGG-19 weights cannot be downloaded (no route to host); fetch "
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth (548 MB) and put it at "
        f"{tmp_path}/torch/hub/checkpoints/vgg19-dcbb9e9d.pth, "
        "or set loss.vgg to the path of a copy, to 'compact' (VGG-19's student, to relu3_1), "
        "or to 'random' (colour and fine texture only)"
    )


def test_train_refuses_batch_instance_norm_with_single_images(tmp_path: Path, refusal: Callable[..., str]) -> None:
    write_config(tmp_path, {"generator.norm": "batch_instance", "train.batch_size": 1})
    assert refusal("train", "--config", "a.yaml") == (
        "a.yaml: train.batch_size: got 1 with generator.norm 'batch_instance', must be at least 2: with one image "
        "batch and instance statistics are the same and the gates do not learn"
    )


def test_train_refuses_an_output_below_a_file(tmp_path: Path, refusal: Callable[..., str]) -> None:
    write_config(tmp_path)
    before = contents(tmp_path)
    assert refusal("train", "--config", "a.yaml", "--output", "a.yaml/run") == (
        f"a.yaml/run: cannot be created: {tmp_path}/a.yaml is a file"
    )
    assert refusal("train", "--config", "a.yaml", "--output", "a.yaml") == "a.yaml: is a file, must be a run folder"
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_train_refuses_an_output_folder_that_is_read_only(tmp_path: Path, refusal: Callable[..., str]) -> None:
    write_config(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o555)
    assert refusal("train", "--config", "a.yaml", "--output", "locked/run") == (
        f"locked/run: cannot be created: {tmp_path}/locked cannot be written to"
    )


def test_train_refuses_to_touch_an_earlier_run(trained: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    assert refusal("train", "--config", "a.yaml") == (
        "runs/tiny: is there already: go on with --resume, replace it with --overwrite, or choose another --output"
    )
    assert refusal("train", "--config", "a.yaml", "--output", "photos", "--overwrite") == (
        "photos: is there already: is no run folder; choose another --output"
    )
    assert contents(tmp_path) == before


def test_train_resumes_only_with_the_settings_of_the_run(
    trained: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    changed = ("train", "--config", "a.yaml", "--output", "runs/tiny", "--resume", "--set", "content.path=photos")
    assert refusal(*changed, "--set", "train.learning_rate=0.1") == (
        "--resume: train.learning_rate was 0.001 and is now 0.1, must be as before; start a new run with --output"
    )
    assert contents(tmp_path) == before


def test_train_resumes_only_what_was_begun(tmp_path: Path, refusal: Callable[..., str]) -> None:
    write_config(tmp_path)
    assert refusal("train", "--config", "a.yaml", "--resume") == "runs/tiny: nothing to resume: there is no run"


def test_train_refuses_to_overwrite_before_all_else_is_well(
    trained: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    refusal("train", "--config", "a.yaml", "--overwrite", "--set", "style.image=nowhere.jpg")
    assert contents(tmp_path) == before


# What `apply` refuses


def test_apply_refuses_a_model_that_is_none(tmp_path: Path, refusal: Callable[..., str]) -> None:
    picture(tmp_path / "image.jpg")
    (tmp_path / "notes.safetensors").write_text("not a model\n")
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"a": 1}))
    for name in ("notes.safetensors", "model.pt", "image.jpg"):
        assert refusal("apply", "image.jpg", "--model", name) == (
            f"{name}: no stylize model: must be a .safetensors file that `stylize train` wrote"
        )
    assert set(contents(tmp_path)) == {"image.jpg", "notes.safetensors", "model.pt"}


def test_apply_refuses_a_model_of_a_newer_format(tmp_path: Path, model: Path, refusal: Callable[..., str]) -> None:
    with safe_open(model, "pt") as file:
        metadata = {**file.metadata(), "format_version": "5"}
        save_file({name: file.get_tensor(name) for name in file.keys()}, tmp_path / "new.safetensors", metadata)  # noqa: SIM118
    assert refusal("apply", "image.jpg", "--model", "new.safetensors") == (
        "new.safetensors: got format version 5, must be at most 4: it was written by a newer stylize than this one "
        f"({__version__}); upgrade stylize"
    )


def test_apply_refuses_a_model_that_is_nowhere(
    tmp_path: Path, model: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "BUILT_IN", tmp_path)
    assert refusal("apply", "image.jpg", "--model", "dotz") == (
        "--model: got 'dotz', must be a model file, a run folder, or a built-in style ('dots'). Did you mean 'dots'?"
    )
    assert refusal("info", "dotz") == (
        "MODEL: got 'dotz', must be a model file, a run folder, or a built-in style ('dots'). Did you mean 'dots'?"
    )
    (tmp_path / "runs" / "begun").mkdir(parents=True)
    assert refusal("apply", "image.jpg", "--model", "runs/begun") == (
        "--model: runs/begun holds no model.safetensors: no training has got as far as its first validation"
    )
    monkeypatch.setattr(models, "BUILT_IN", tmp_path / "nothing")
    assert refusal("apply", "image.jpg") == (
        "--model: no model under runs/ and none built in; train one, or give a file"
    )
    assert refusal("apply", "image.jpg", "--model", "dotz") == (
        "--model: got 'dotz', must be a model file or a run folder"
    )


def test_apply_refuses_inputs_that_are_no_pictures(tmp_path: Path, model: Path, refusal: Callable[..., str]) -> None:
    whole = picture(tmp_path / "whole.jpg", 200, 200).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.jpg").write_text("not a picture\n")
    picture(tmp_path / "dot.png", 1, 1)
    (tmp_path / "empty" / "below").mkdir(parents=True)
    picture(tmp_path / "empty" / "below" / "image.jpg")
    before = contents(tmp_path)
    paint = ("apply", "--model", model.name)
    assert refusal(*paint, "missing.jpg") == "missing.jpg: no such file"
    assert refusal(*paint, "notes.jpg") == "notes.jpg: not an image of a known format"
    assert refusal(*paint, "dot.png") == ("dot.png: got an image of 1×1 px, must be at least 16 px in each direction")
    assert refusal(*paint, "cut.jpg") == "cut.jpg: cannot be read as an image (VipsJpeg: premature end of JPEG image)"
    assert refusal(*paint, "empty") == "empty: holds no images; --recursive searches the folders below it"
    (tmp_path / "empty" / "below" / "image.jpg").unlink()
    assert refusal(*paint, "empty", "--recursive") == "empty: holds no images"
    assert contents(tmp_path).items() <= before.items()


def test_apply_refuses_outputs_that_cannot_be_written(tmp_path: Path, model: Path, refusal: Callable[..., str]) -> None:
    picture(tmp_path / "a" / "image.jpg")
    picture(tmp_path / "b" / "image.jpg")
    before = contents(tmp_path)
    paint = ("apply", "--model", model.name, "a/image.jpg")
    assert refusal(*paint, "-o", f"{model.name}/out.jpg") == f"{model.name}: is a file, must be a folder"
    assert refusal(*paint, "-o", f"{model.name}/x/out.jpg") == (f"{model.name}/x: cannot be created (Not a directory)")
    assert refusal(*paint, "-o", "out.txt") == (
        "out.txt: got the suffix '.txt', must be one of .apng, .avif, .avifs, .bmp, .btf, .dib, .gif, "
        ".heic, .heif, .hif, .jfif, .jif, .jpe, .jpeg, .jpg, .jxl, .png, .pnm, .ppm, .ptif, .tf8, .tif, .tiff, .webp"
    )
    assert refusal(*paint, "b/image.jpg", "-o", model.name) == (
        f"-o: {model.name} is a file, must be a folder for several pictures"
    )
    assert refusal(*paint, "b/image.jpg", "-o", "out") == (
        "-o: a/image.jpg and b/image.jpg would both become out/image.jpg"
    )
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_apply_refuses_an_output_folder_that_is_read_only(
    tmp_path: Path, model: Path, refusal: Callable[..., str]
) -> None:
    picture(tmp_path / "image.jpg")
    (tmp_path / "locked").mkdir(mode=0o555)
    assert refusal("apply", "image.jpg", "--model", model.name, "-o", "locked") == "locked: cannot be written to"


def test_apply_never_replaces_a_file_unless_told_to(tmp_path: Path, model: Path, refusal: Callable[..., str]) -> None:
    picture(tmp_path / "image.jpg")
    (tmp_path / "image.dots.jpg").write_text("precious")
    before = contents(tmp_path)
    for output in ([], ["-o", "image.dots.jpg"]):
        assert refusal("apply", "image.jpg", "--model", model.name, *output) == (
            "image.dots.jpg: is there already; --overwrite replaces it"
        )
    assert refusal("apply", "image.jpg", "--model", model.name, "-o", ".") == (
        "image.jpg: is there already; --overwrite replaces it"
    )
    assert contents(tmp_path) == before


def test_wrong_usage_exits_with_2(call: Call) -> None:
    for arguments, message in {
        ("apply", "a.jpg", "--strength", "2"): "Invalid value for '--strength': 2.0 is not in the range 0<=x<=1.",
        ("apply",): "Missing argument 'INPUT...'.",
        ("train",): "must have either --config or --style",
        ("train", "--config", "a", "--resume", "--overwrite"): "--resume and --overwrite exclude each other",
        ("list", "norm"): "Invalid value for '{norms|generators|styles}': 'norm' is not one of 'norms', "
        "'generators', 'styles'.",
    }.items():
        outcome = call(*arguments)
        assert (outcome.status, outcome.err.splitlines()[-1]) == (2, f"Error: {message}")


# What `train` does


def test_train_fills_the_run_folder(trained: Path) -> None:
    run = trained / "runs" / "tiny"
    assert {p.name for p in run.iterdir() if "tfevents" not in p.name} == RUN_FILES
    assert [p.name for p in checkpoints(run / "checkpoints")] == ["step-00000002.pt", "step-00000004.pt"]
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["step-00000002.jpg", "step-00000004.jpg"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 1),
        ("train", 2),
        ("validation", 2),
        ("train", 3),
        ("train", 4),
        ("validation", 4),
    ]
    assert yaml.safe_load((run / "config.yaml").read_text())["style"]["image"] == str(trained / "style.png")


def test_train_says_what_it_trains_and_what_to_do_next(tmp_path: Path, call: Call) -> None:
    write_config(tmp_path, {"train.steps": 2, "train.precision": "auto"})
    status, out, err = call("train", "--config", "a.yaml", "--output", "out/first run")
    assert status == 0
    assert out.splitlines() == [
        "model: out/first run/model.safetensors",
        "paint with it: stylize apply PHOTO --model 'out/first run'",
        "watch it: tensorboard --logdir 'out/first run'",
    ]
    lines = err.splitlines()
    assert lines[0].startswith("train.precision: auto on cpu is ")
    assert lines[1] == (
        "johnson generator, instance norm, width 4: 28,467 parameters; VGG-19 weights: random, seed 0; device: cpu"
    )
    assert lines[2] == "6 photographs to train on, 2 held out"
    assert lines[3].startswith("step 2: held-out style ")
    assert " % of the steps' time went into waiting for photographs" in lines[4]
    assert lines[5].startswith("2 steps in ")
    assert lines[6].startswith("best at step 2: held-out style ")
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("share", "cache", "told"),
    [
        (0.05, None, ""),
        (0.12, None, ": raise content.workers (now 0), or decode every photograph once: content.cache=FOLDER"),
        (0.12, "cache", ": raise content.workers (now 0)"),
    ],
)
def test_train_says_how_long_it_waited_for_photographs_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, share: float, cache: str | None, told: str
) -> None:
    monkeypatch.setattr(Monitor, "data_wait_share", share)
    write_config(tmp_path, {"train.steps": 1, "content.cache": cache})
    status, _, err = call("train", "--config", "a.yaml")
    assert status == 0
    assert f"{100 * share:.1f} % of the steps' time went into waiting for photographs{told}" in err.splitlines()


def test_a_dry_run_builds_no_cache(tmp_path: Path, call: Call) -> None:
    write_config(tmp_path, {"content.cache": "cache"})
    assert call("train", "--config", "a.yaml", "--dry-run").status == 0
    assert not (tmp_path / "cache").exists()


def test_train_starts_anew_with_overwrite(trained: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "runs" / "tiny"
    (run / "notes.txt").write_text("mine")
    outcome = call("train", "--config", "a.yaml", "--overwrite", "--set", "train.steps=1", "--set", "content.limit=3")
    assert outcome.status == 0
    assert [p.name for p in checkpoints(run / "checkpoints")] == ["step-00000001.pt"]
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert (run / "notes.txt").read_text() == "mine"


def test_a_dry_run_prints_the_resolved_config_and_writes_nothing(tmp_path: Path, call: Call) -> None:
    write_config(tmp_path)
    before = contents(tmp_path)
    status, out, err = call("train", "--config", "a.yaml", "--set", "loss.style_weight=20", "--dry-run")
    tree = yaml.safe_load(out)
    assert status == 0
    assert tree["style"]["image"] == f"{tmp_path}/style.png"
    assert tree["loss"]["style_weight"] == 20.0
    assert tree["train"]["keep_checkpoints"] == 3
    assert err.splitlines()[-1] == "6 photographs to train on, 2 held out"
    assert contents(tmp_path) == before
    assert not (tmp_path / "runs").exists()


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_an_interrupted_run_saves_its_state_and_can_be_resumed(
    tmp_path: Path, call: Call, number: signal.Signals
) -> None:
    everyone = number == signal.SIGINT  # a terminal's ctrl-c reaches the decoding process, too
    write_config(tmp_path, {"train.steps": 1_000_000, "content.workers": int(everyone)})
    rarely = ("--set", "train.validate_every=1000000", "--set", "train.checkpoint_every=1000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "stylize", "train", "--config", "a.yaml", "--output", "out/my run", *rarely],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    run = tmp_path / "out" / "my run"
    try:
        deadline_s = time.monotonic() + 300
        while lines_of(run / "metrics.jsonl") < 2 and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
        os.killpg(process.pid, number) if everyone else process.send_signal(number)
        err = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130, err
    (saved,) = checkpoints(run / "checkpoints")
    step = int(saved.stem.removeprefix("step-"))
    assert err.count("finishing the step") == 1
    stopping, told = err.splitlines()[-2:]
    assert stopping == "finishing the step and writing a checkpoint (again to stop at once)"
    hint = "stylize train --config 'out/my run/config.yaml' --output 'out/my run' --resume"
    assert told == f"stopped after step {step}; go on with: {hint}"
    outcome = call(*shlex.split(hint)[1:], "--set", f"train.steps={step + 2}", "--set", "content.workers=0")
    assert outcome.status == 0
    assert f"resuming at step {step}" in outcome.err.splitlines()
    assert checkpoints(run / "checkpoints")[-1].name == f"step-{step + 2:08d}.pt"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, step + 3), step + 2]


# What `apply` does


def test_apply_puts_the_picture_beside_its_photograph(tmp_path: Path, model: Path, call: Call) -> None:
    source = picture(tmp_path / "photos" / "image.jpg", 50, 37).read_bytes()
    status, out, err = call("apply", "photos/image.jpg", "--model", model.name, "--precision", "fp32")
    assert (status, out, err) == (
        0,
        "photos/image.dots.jpg\n",
        "model: dots.safetensors, style dots, the file given\n",
    )
    with Image.open(tmp_path / "photos" / "image.dots.jpg") as painted:
        assert (painted.format, painted.size) == ("JPEG", (50, 37))
    assert (tmp_path / "photos" / "image.jpg").read_bytes() == source


def test_apply_writes_where_it_is_told_to(tmp_path: Path, model: Path, call: Call) -> None:
    picture(tmp_path / "image.jpg")
    picture(tmp_path / "other.png")
    paint = ("apply", "--model", model.name)
    assert call(*paint, "image.jpg", "-o", "out.png").out == "out.png\n"
    assert call(*paint, "image.jpg", "-o", "new/deeper").out == "new/deeper/image.jpg\n"
    assert call(*paint, "other.png", "-o", "new").out == "new/other.png\n"
    assert call(*paint, "image.jpg", "other.png", "-o", "both").out == "both/image.jpg\nboth/other.png\n"
    assert call(*paint, "image.jpg", "-o", "out.png", "--overwrite").status == 0
    with Image.open(tmp_path / "out.png") as painted:
        assert painted.format == "PNG"


def test_apply_paints_a_folder_and_leaves_its_earlier_outputs_alone(tmp_path: Path, model: Path, call: Call) -> None:
    for name in ("a.jpg", "b.png", "below/c.jpg"):
        picture(tmp_path / "photos" / name)
    first = call("apply", "photos", "--model", model.name)
    assert (first.status, first.out) == (0, "photos/a.dots.jpg\nphotos/b.dots.png\n")
    picture(tmp_path / "photos" / "d.jpg")
    again = call("apply", "photos", "--model", model.name)
    assert (again.status, again.out) == (1, "photos/d.dots.jpg\n")
    assert again.err.splitlines()[-1] == (
        "stylize: 2 of 3 pictures failed: photos/a.dots.jpg: is there already; --overwrite replaces it; "
        "photos/b.dots.png: is there already; --overwrite replaces it"
    )
    replaced = call("apply", "photos", "--model", model.name, "--overwrite")
    assert (replaced.status, replaced.out.splitlines()) == (
        0,
        ["photos/a.dots.jpg", "photos/b.dots.png", "photos/d.dots.jpg"],
    )


def test_apply_keeps_the_tree_of_a_folder(tmp_path: Path, model: Path, call: Call) -> None:
    for name in ("a.jpg", "x/a.jpg", "x/y/b.png"):
        picture(tmp_path / "photos" / name)
    status, out, _ = call("apply", "photos", "--model", model.name, "-o", "out", "--recursive")
    assert (status, out) == (0, "out/a.jpg\nout/x/a.jpg\nout/x/y/b.png\n")
    assert set(contents(tmp_path / "out")) == {"a.jpg", "x/a.jpg", "x/y/b.png"}


def test_one_bad_picture_among_many_does_not_stop_the_others(tmp_path: Path, model: Path, call: Call) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "c.jpg")
    (tmp_path / "b.jpg").write_text("not a picture\n")
    status, out, err = call("apply", "a.jpg", "b.jpg", "missing.jpg", "c.jpg", "--model", model.name)
    assert (status, out) == (1, "a.dots.jpg\nc.dots.jpg\n")
    assert err.splitlines()[-1] == (
        "stylize: 2 of 4 pictures failed: b.jpg: not an image of a known format; missing.jpg: no such file"
    )


def test_strength_mixes_the_photograph_and_the_painted_picture(tmp_path: Path, model: Path, call: Call) -> None:
    picture(tmp_path / "image.png")
    for strength in ("0", "0.5", "1"):
        call("apply", "image.png", "--model", model.name, "-o", f"{strength}.png", "--strength", strength)
    photograph, none, half, full = (image(tmp_path / f"{name}.png") for name in ("image", "0", "0.5", "1"))
    assert torch.equal(none, photograph)
    assert (full - photograph).abs().mean() > 0.1
    assert torch.allclose(half, (photograph + full) / 2, atol=1.5 / 255)


def test_keep_colors_keeps_the_chroma_of_the_photograph(tmp_path: Path, model: Path, call: Call) -> None:
    coarse = np.random.default_rng(0).integers(110, 146, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(tmp_path / "image.png")
    call("apply", "image.png", "--model", model.name, "-o", "kept.png", "--keep-colors")
    call("apply", "image.png", "--model", model.name, "-o", "painted.png")
    photograph, kept, painted = (image(tmp_path / f"{name}.png") for name in ("image", "kept", "painted"))
    assert (chroma(kept) - chroma(photograph)).abs().max() < 0.01
    assert (chroma(painted) - chroma(photograph)).abs().max() > 0.05
    assert torch.allclose(kept.mean(), painted.mean(), atol=0.05)


def test_max_size_shrinks_and_never_enlarges(tmp_path: Path, model: Path, call: Call) -> None:
    picture(tmp_path / "large.jpg", 90, 60)
    picture(tmp_path / "small.jpg", 30, 20)
    assert call("apply", "large.jpg", "small.jpg", "--model", model.name, "--max-size", "45").status == 0
    for name, size in {"large": (45, 30), "small": (30, 20)}.items():
        with Image.open(tmp_path / f"{name}.dots.jpg") as painted:
            assert painted.size == size


def test_transparency_stays_where_the_format_has_it(tmp_path: Path, model: Path, call: Call) -> None:
    rgba = Image.open(picture(tmp_path / "image.png")).convert("RGBA")
    alpha = Image.linear_gradient("L").resize(rgba.size)
    rgba.putalpha(alpha)
    rgba.save(tmp_path / "image.png")
    call("apply", "image.png", "--model", model.name)
    call("apply", "image.png", "--model", model.name, "-o", "image.jpg")
    with Image.open(tmp_path / "image.dots.png") as painted, Image.open(tmp_path / "image.jpg") as opaque:
        assert painted.getchannel("A").tobytes() == alpha.tobytes()
        assert opaque.mode == "RGB"


def test_a_turned_jpeg_comes_out_upright(tmp_path: Path, model: Path, call: Call) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "image.jpg", 60, 40, exif=exif)
    call("apply", "image.jpg", "--model", model.name, "--strength", "0", "-o", "upright.png")
    call("apply", "image.jpg", "--model", model.name)
    assert torch.equal(image(tmp_path / "upright.png"), image(tmp_path / "image.jpg"))
    with Image.open(tmp_path / "image.dots.jpg") as painted:
        assert painted.size == (40, 60)
        assert painted.getexif().get(0x0112, 1) == 1


def test_a_seed_makes_another_picture_of_a_texture_network(tmp_path: Path, call: Call) -> None:
    picture(tmp_path / "image.png")
    config = GeneratorConfig(name="texture_network", width=8)
    (tmp_path / "noisy.safetensors").write_bytes(encode_model(build_generator(config), ModelCard(config, "noisy")))

    def painted(*options: str) -> bytes:
        assert call("apply", "image.png", "--model", "noisy.safetensors", "--overwrite", *options).status == 0
        return (tmp_path / "image.noisy.png").read_bytes()

    assert painted() == painted("--seed", "0") != painted("--seed", "1") == painted("--seed", "1")


def test_a_seed_is_refused_for_a_network_without_noise(tmp_path: Path, call: Call) -> None:
    picture(tmp_path / "image.png")
    write_model(tmp_path / "dots.safetensors")
    assert call("apply", "image.png", "--model", "dots.safetensors", "--seed", "3") == (
        1,
        "",
        "model: dots.safetensors, style dots, the file given\n"
        "stylize: seed: got 3, but this network paints without noise, so no seed changes its pictures\n",
    )


def test_apply_takes_the_newest_run_or_else_a_built_in_style_and_says_so(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "image.jpg")
    monkeypatch.setattr(models, "BUILT_IN", tmp_path / "built-in")
    stripes = write_model(tmp_path / "built-in" / "stripes.safetensors", "stripes")
    apply = ("apply", "image.jpg", "--precision", "fp32")
    assert call(*apply) == (
        0,
        "image.stripes.jpg\n",
        f"model: {stripes}, style stripes, built in (stripes), as there is none under runs/\n",
    )
    for age, name in enumerate(("newer", "older")):
        path = write_model(tmp_path / "runs" / name / "model.safetensors", name)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert call(*apply) == (
        0,
        "image.newer.jpg\n",
        "model: runs/newer/model.safetensors, style newer, the newest under runs/\n",
    )
    assert call(*apply, "--model", "runs/older").err == (
        "model: runs/older/model.safetensors, style older, the best model of that run\n"
    )
    assert call(*apply, "--model", "stripes", "-o", "b.jpg").err == f"model: {stripes}, style stripes, built in\n"


def test_apply_paints_with_the_model_that_train_wrote(trained: Path, tmp_path: Path, call: Call) -> None:
    picture(tmp_path / "image.jpg")
    assert call("apply", "image.jpg", "--model", trained / "runs" / "tiny").out == "image.tiny.jpg\n"


# The other commands


def test_info_tells_what_the_model_file_says(trained: Path, call: Call) -> None:
    run = trained / "runs" / "tiny"
    status, out, err = call("info", run)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].startswith(f"{run}/model.safetensors (")
    assert lines[1:3] == ["style       tiny", "generator   johnson, instance norm, width 4"]
    assert lines[3].startswith("trained     ")
    assert lines[3].endswith(" steps against VGG-19 (random, seed 0)")
    assert [line.rsplit(" ", 1)[0] for line in lines[4:8]] == [
        "held-out    style",
        "held-out    style of photographs",
        "held-out    content",
        "held-out    content correlation",
    ]
    assert lines[8] == f"written by  stylize {__version__}, torch {torch.__version__}"


def test_info_tells_it_as_json(trained: Path, call: Call) -> None:
    facts = json.loads(call("info", trained / "runs" / "tiny", "--json").out)
    assert facts["style"] == "tiny"
    network = {"name": "johnson", "norm": "instance", "width": 4, "padding": "reflection", "margin": 4, "noise_seed": 0}
    assert facts["generator"] == network
    assert facts["step"] in (2, 4)
    assert facts["validation"].keys() == {
        "content/relu2_1", "style/relu1_1", "style/relu2_1", "content", "style", "tv", "total",
        "style_of_photographs", "content_correlation",
    }  # fmt: skip
    assert facts["config"]["style"]["image"] == "style.png"
    assert str(trained) not in json.dumps(facts["config"])


def test_list_tells_the_kinds_there_are(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "BUILT_IN", tmp_path)
    write_model(tmp_path / "dots.safetensors", norm="batch_instance")
    norms = call("list", "norms").out.splitlines()
    assert [line.split()[0] for line in norms] == ["instance", "batch", "batch_instance", "layer", "none"]
    assert all(line[20:].strip() for line in norms)
    generators = call("list", "generators").out.splitlines()
    assert [line.split()[0] for line in generators] == [
        "fast_neural_style",
        "johnson",
        "johnson_lite",
        "texture_network",
    ]
    assert call("list", "styles").out == "dots                 johnson, batch_instance norm, width 4\n"


def test_check_data_tells_what_a_run_would_find(tmp_path: Path, call: Call, refusal: Callable[..., str]) -> None:
    for i in range(20):
        picture(tmp_path / "photos" / f"{i:02}.jpg", 40 + i, 300)
    (tmp_path / "photos" / "bad.jpg").write_text("not a picture\n")
    assert call("check-data", "photos", "--resize", "42") == (
        0,
        "21 image files, 1 unreadable\nshorter sides: 40 to 59 px, median 50 px\n2 would be enlarged to 42 px\n"
        "unreadable: photos/bad.jpg: not an image of a known format\na run would use 20 photographs\n",
        "",
    )
    (tmp_path / "photos" / "worse.jpg").write_text("not a picture\n")
    status, out, err = call("check-data", "photos", "--resize", "42")
    assert (status, err) == (
        1,
        "stylize: photos: a run would stop: 2 of 22 files are unreadable (at most 5%)\n",
    )
    assert "unreadable: photos/worse.jpg: not an image of a known format" in out.splitlines()
    assert refusal("check-data", "nowhere") == "nowhere: must be a folder of photographs that exists"


def test_help_answers_without_importing_torch() -> None:
    for command in ([], ["train"], ["apply"]):
        shown = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "stylize", *command, "--help"], capture_output=True, text=True
        )
        assert shown.returncode == 0
        assert shown.stdout.startswith("Usage: ")
        imported = {line.rsplit("|", 1)[-1].strip() for line in shown.stderr.splitlines()}
        assert "stylize.cli" in imported
        assert not imported & {"torch", "numpy", "PIL", "pydantic", "yaml"}


def test_the_module_tells_its_version() -> None:
    shown = subprocess.run([sys.executable, "-m", "stylize", "--version"], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"stylize, version {__version__}\n", "")


def test_the_tiny_config_is_what_the_tests_say_it_is() -> None:
    assert tiny({"train.steps": 9})["train"]["steps"] == 9
    assert tiny()["train"]["steps"] == 4
