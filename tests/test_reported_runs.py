"""Faults of machines, folders and foreign files, as users of training programs report them."""

import faulthandler
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fixtures_runs import picture, write_config, write_model
from safetensors.torch import save_file
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context
from test_importing import stored

from stylize import run
from stylize.build import build_run
from stylize.cli import cli
from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.losses.vgg_weights import read_weights
from stylize.models.file import load_model, read_card
from stylize.models.find import BUILT_IN, find_model
from stylize.models.importing import import_model
from stylize.studies.runs import _processes
from stylize.system import distributed
from stylize.system.devices import CPU
from stylize.training import workers as workers_module
from stylize.training.monitor import Monitor
from stylize.training.trainer import Interrupted, Progress, Trainer
from stylize.training.workers import loaded

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs decoding processes that are forked")


def trainer_of(folder: Path, **changes: Any) -> Trainer:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return build_run(load_config(write_config(folder, dotted)), CPU, folder / "run").trainer


# Decoding processes


class Work:
    """Megabytes of an item's number; at item 5 the given fault, until it has struck so often."""

    def __init__(self, fault: Callable[[], object], folder: Path, times: int = 1) -> None:
        self.fault = fault
        self.folder = folder
        self.times = times

    def __call__(self, item: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        struck = len(list(self.folder.iterdir()))
        if item == 5 and struck < self.times:
            (self.folder / str(struck)).touch()
            self.fault()
        return np.full(2_000_000, item, np.uint8)


def killed(number: int) -> Callable[[], object]:
    def fault() -> None:
        faulthandler.disable()  # pytest's
        os.kill(os.getpid(), number)

    return fault


def raises(error: Exception) -> Callable[[], object]:
    def fault() -> None:
        raise error

    return fault


FAULTS = {
    "a process killed for want of memory": (killed(signal.SIGKILL), "died (killed by SIGKILL)"),
    "a process that died of a bus error": (killed(signal.SIGBUS), "died (killed by SIGBUS)"),
    "a process that ends by itself": (lambda: os._exit(3), "died (with status 3)"),
    "a process without memory": (raises(MemoryError()), "failed (MemoryError)"),
    "a process that fails in two lines": (raises(OSError(24, "Too many\nopen files")), "failed (OSError: [Errno 24] "),
    "a process that hangs": (lambda: time.sleep(3600), "has sent nothing for 1 s"),
    "a process that is stopped": (killed(signal.SIGSTOP), "has sent nothing for 1 s"),
}


@FORKS
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("times", [1, 99])
def test_a_decoding_process_that_fails_is_replaced_or_ends_the_run_in_a_line(
    tmp_path: Path, name: str, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers_module, "PATIENCE_S", 1)
    fault, reason = FAULTS[name]
    results = loaded(Work(fault, tmp_path, times), 0, 9, "step", 2)
    if times == 1:
        assert [(len(result), result[0], result[-1]) for result in results] == [(2_000_000, i, i) for i in range(9)]
        (message,) = caplog.messages
        assert message.startswith(f"a decoding process {reason}")
    else:
        with pytest.raises(StylizeError) as caught:
            list(results)
        assert str(caught.value).startswith("step ")
        assert f"decoding processes failed 3 times in a row ({reason}" in str(caught.value)
        assert str(caught.value).endswith("give them memory, or set content.workers to 0")
        assert "\n" not in str(caught.value)
    assert not [thread for thread in threading.enumerate() if "_receive" in thread.name]


@FORKS
@pytest.mark.parametrize(("started", "who"), [(1, "they do the work of all"), (0, "the training process decodes")])
def test_where_no_more_processes_can_be_started_those_that_are_go_on(
    tmp_path: Path, started: int, who: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fork, forked = os.fork, []

    def limited() -> int:
        if len(forked) == started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        forked.append(1)
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    assert [result[0] for result in loaded(Work(raises(MemoryError()), tmp_path, 0), 0, 9, "step", 3)] == [*range(9)]
    assert caplog.messages == [
        f"content.workers: of 3 decoding processes {started} could be started (Resource temporarily unavailable): {who}"
    ]


@FORKS
def test_batches_need_neither_shared_memory_nor_semaphores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("torch.UntypedStorage._share_fd_cpu_", "torch.UntypedStorage._share_filename_cpu_"):
        monkeypatch.setattr(place, none)
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", none)
    monkeypatch.setattr("multiprocessing.heap.Arena.__init__", none)
    alone = list(trainer_of(tmp_path).batches.from_step(0, 4))
    cached = trainer_of(tmp_path, content__workers=2, content__cache="cache").batches
    for batches in (trainer_of(tmp_path, content__workers=2).batches, cached):
        assert all(map(np.array_equal, batches.from_step(0, 4), alone))


def test_studies_without_shared_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", none)
    with pytest.raises(StylizeError, match=r"^--jobs: processes cannot be started \(No space left on device\): make"):
        _processes(2, 1)


@FORKS
def test_a_signal_ends_a_training_whose_photographs_do_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "GRACE_S", 0.5)
    trainer = trainer_of(tmp_path, content__workers=1, train__steps=9, train__checkpoint_every=9)
    read = type(trainer.batches.dataset).__getitem__

    def hung(dataset: Any, position: int) -> Any:
        if position >= 6:
            time.sleep(3600)
        return read(dataset, position)

    monkeypatch.setattr(type(trainer.batches.dataset), "__getitem__", hung)
    (tmp_path / "run").mkdir()

    def ask_at_3(progress: Progress) -> None:
        if progress.step == 3:
            threading.Timer(0.5, lambda: setattr(trainer, "stop_requested", True)).start()

    with Monitor(tmp_path / "run", steps=9) as monitor, pytest.raises(Interrupted):
        trainer.fit(monitor, ask_at_3)
    assert (trainer.progress.step, trainer.saved_step) == (3, 3)


# Variables of distributed processes

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
SET: dict[str, tuple[dict[str, str], str]] = {
    "WORLD_SIZE alone": ({"WORLD_SIZE": "2"}, "WORLD_SIZE: got 2, but RANK, MASTER_ADDR, MASTER_PORT are not set"),
    "no port": ({**WHOLE, "MASTER_PORT": ""}, "WORLD_SIZE: got 2, but MASTER_PORT is not set"),
    "a word": ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: got 'abc', must be a whole number from 1 to 1,000,000"),
    "no process": ({"WORLD_SIZE": "0"}, "WORLD_SIZE: got '0', must be a whole number from 1 to 1,000,000"),
    "fewer than none": ({"WORLD_SIZE": "-1"}, "WORLD_SIZE: got '-1', must be a whole number from 1 to 1,000,000"),
    "a rank beyond the last": ({**WHOLE, "RANK": "2"}, "RANK: got '2', must be a whole number from 0 to 1"),
    "a rank that is a word": ({**WHOLE, "RANK": "one"}, "RANK: got 'one', must be a whole number from 0 to 1"),
    "a port that is none": (
        {**WHOLE, "MASTER_PORT": "99999"},
        "MASTER_PORT: got '99999', must be a whole number from 1 to 65,535",
    ),
    "nobody comes": ({**WHOLE, "RANK": "1"}, "WORLD_SIZE: 2 processes have not come together at 127.0.0.1:1 ("),
    "an unknown host": (
        {**WHOLE, "RANK": "1", "MASTER_ADDR": "no.such.invalid"},
        "WORLD_SIZE: 2 processes have not come together at no.such.invalid:1 (",
    ),
    "an empty WORLD_SIZE": ({"WORLD_SIZE": ""}, ""),
    "one process": ({"WORLD_SIZE": "1"}, ""),
    "a RANK of something else": ({"RANK": "3", "LOCAL_RANK": "x", "LOCAL_WORLD_SIZE": ""}, ""),
    "an attempt of something else": ({"TORCHELASTIC_RESTART_COUNT": "2"}, ""),
    "a job of SLURM": ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7"}, ""),
}


@pytest.mark.parametrize("name", SET)
def test_variables_of_distributed_processes_are_fit_or_refused_in_a_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, refusal = SET[name]
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(distributed, "PATIENCE_AT_THE_START", timedelta(seconds=1))
    if refusal:
        with pytest.raises(StylizeError) as caught, distributed.joined("cpu"):
            pass
        assert str(caught.value).startswith(refusal)
        assert str(caught.value).endswith(
            ": start several processes with torchrun, or unset WORLD_SIZE to train in one"
        )
        assert "\n" not in str(caught.value)
    else:
        with distributed.joined("cpu") as device:
            assert (device, distributed.count(), distributed.restarted()) == (CPU, 1, False)


# Models by name


@pytest.mark.parametrize(
    ("beside", "name", "reason"),
    [
        ("nothing", "stained_glass", "built in"),
        ("folder", "stained_glass", "built in; the folder is ./stained_glass"),
        ("file", "stained_glass", "built in; the file is ./stained_glass"),
        ("run", "stained_glass", "the best model of that run, not the built-in style stained_glass"),
        ("run", "./stained_glass", "the best model of that run"),
        ("file", "./stained_glass", "the file given"),
    ],
)
def test_a_name_is_that_of_the_built_in_style_unless_a_run_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str, name: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "stained_glass"
    if beside == "folder":
        write_model(place / "other.safetensors")
    elif beside != "nothing":
        write_model(place if beside == "file" else place / "model.safetensors")
    found = find_model(name)
    assert found.reason == reason
    read_card(found.path)
    assert (found.path.parent == BUILT_IN) == ("built in" in reason and "not the" not in reason)


def test_a_folder_without_a_model_is_told_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stained_glass").mkdir()
    with pytest.raises(StylizeError, match="holds no model"):
        find_model("./stained_glass")


def test_the_newest_model_is_found_among_odd_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("runs/old/model.safetensors"))
    os.utime("runs/old/model.safetensors", (1, 1))
    assert find_model(None).reason == "the newest under runs/"
    Path("runs/folder/model.safetensors").mkdir(parents=True)
    Path("runs/dangling").mkdir()
    Path("runs/dangling/model.safetensors").symlink_to("nowhere")
    Path("runs/foreign").mkdir()
    Path("runs/foreign/model.safetensors").write_bytes(b"words")
    Path("runs/file").touch()
    Path("runs/loop").symlink_to("loop")
    found = find_model(None)
    assert found.path == Path("runs/old/model.safetensors")
    assert found.reason.startswith("the newest under runs/ that can be read; passed over: runs/")
    assert "runs/foreign/model.safetensors" in found.reason


# Moved and linked folders


def train_in(folder: Path, resume: bool = False, overwrite: bool = False, **changes: Any) -> None:
    """Train with the config and the photographs in a folder."""
    run.train(load_config(folder / "a.yaml", [f"{k.replace('__', '.')}={v}" for k, v in changes.items()]),
              folder / "run", device="cpu", resume=resume, overwrite=overwrite, quiet=True)  # fmt: skip


def weights(folder: Path) -> bytes:
    state = load_model(folder / "run" / "model.safetensors")[0].state_dict()
    return b"".join(value.numpy().tobytes() for value in state.values())


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run of two steps in a folder `one`."""
    (tmp_path / "one").mkdir()
    write_config(tmp_path / "one", {"train.steps": 2})
    train_in(tmp_path / "one")
    return tmp_path / "one"


def renamed(one: Path) -> Path:
    return one.rename(one.parent / "another name")


def data_moved(one: Path) -> Path:
    (one / "photos").rename(one.parent / "a data set")
    (one / "style.png").rename(one.parent / "the style.png")
    write_config(one, {"content.path": "../a data set", "style.image": "../the style.png"})
    return one


def data_linked(one: Path) -> Path:
    (one / "linked").symlink_to("photos")
    write_config(one, {"content.path": "./linked/../linked", "style.image": "./style.png"})
    return one


@pytest.mark.parametrize("move", [renamed, data_moved, data_linked], ids=["renamed", "data moved", "data linked"])
def test_a_run_whose_folders_moved_is_resumed_to_the_same_weights(
    half: Path, move: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    whole = half.parent / "whole"
    whole.mkdir()
    write_config(whole)
    train_in(whole)
    moved = move(half)
    train_in(moved, resume=True, train__steps=4)
    assert weights(moved) == weights(whole)
    assert not caplog.messages


def other_photographs(one: Path) -> None:
    (one / "photos").rename(one / "elsewhere")
    picture(one / "elsewhere/3.jpg", 50, 50, seed=99)
    write_config(one, {"content.path": "elsewhere"})


def another_style(one: Path) -> None:
    (one / "style.png").rename(one / "elsewhere.png")
    picture(one / "elsewhere.png", seed=98)
    write_config(one, {"style.image": "elsewhere.png"})


@pytest.mark.parametrize(("change", "key"), [(other_photographs, "content.path"), (another_style, "style.image")])
def test_other_files_at_another_place_are_refused(half: Path, change: Callable[[Path], None], key: str) -> None:
    change(half)
    with pytest.raises(StylizeError) as caught:
        train_in(half, resume=True, train__steps=4)
    assert str(caught.value).startswith(f"--resume: {key} was '")
    assert "which holds something else, must hold the same; start a new run with --output" in str(caught.value)


def test_a_style_picture_that_was_replaced_is_told(half: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(half / "style.png", seed=98)
    train_in(half, resume=True, train__steps=4)
    assert "style.image: its files have changed since the run began: it goes on with the new ones" in caplog.messages


def test_a_run_of_an_older_version_is_resumed_where_its_photographs_moved(
    half: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (half / "run" / "inputs.json").unlink()
    (half / "photos").rename(half / "elsewhere")
    write_config(half, {"content.path": "elsewhere"})
    train_in(half, resume=True, train__steps=4)
    assert not caplog.messages


@pytest.mark.parametrize("how", ["resume", "overwrite"])
@pytest.mark.parametrize("name", ["checkpoints", "samples", "run"])
def test_a_folder_of_a_run_may_be_a_link(half: Path, name: str, how: str) -> None:
    place = half / "run" if name == "run" else half / "run" / name
    target = half.parent / "disk"
    place.rename(target)
    place.symlink_to(target)
    (target / "theirs.txt").write_text("kept")
    train_in(half, **{how: True}, train__steps=4)
    assert place.is_symlink()
    assert (target / "theirs.txt").read_text() == "kept"
    assert [path.name for path in (half / "run" / "checkpoints").iterdir() if path.suffix == ".pt"]
    assert (half / "run" / "samples" / "step-00000004.jpg").exists()


@pytest.mark.parametrize("name", ["checkpoints", "samples", "run", "cache"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_a_link_that_leads_nowhere_is_told(tmp_path: Path, name: str, target: str) -> None:
    write_config(tmp_path, {"content.cache": "cache"})
    place = tmp_path / name if name in ("run", "cache") else tmp_path / "run" / name
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(place if target == "itself" else "nowhere")
    with pytest.raises(StylizeError, match=r"must lead to a folder; make that, or remove the link$") as caught:
        train_in(tmp_path)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


# Weights of other programs

Stored = dict[str, Any]


def prefixed(prefix: str) -> Callable[[Stored], object]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


FOREIGN: dict[str, Callable[[Stored], object]] = {
    "as the example saved it": lambda state: state,
    "of DataParallel": prefixed("module."),
    "of torch.compile": prefixed("_orig_mod."),
    "of both": prefixed("module._orig_mod."),
    "of both the other way": prefixed("_orig_mod.module."),
    "within state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "within model_state_dict": lambda state: {"model_state_dict": state, "loss": 1.0},
    "within model": lambda state: {"model": state},
    "within generator": lambda state: {"discriminator": {"a": torch.zeros(1)}, "generator": state},
    "within netG, of DataParallel": lambda state: {"netG": prefixed("module.")(state)},
    "the averaged weights": lambda state: {"params": prefixed("not.")(state), "params_ema": state},
    "within two": lambda state: {"model": {"state_dict": state}},
    "of Lightning, beside a loss": lambda state: {
        "pytorch-lightning_version": "2.0",
        "state_dict": {"loss.vgg.0.weight": torch.zeros(1), **dict(prefixed("style_net.")(state))},  # type: ignore[call-overload]
    },
    "in float16": lambda state: {name: value.half() for name, value in state.items()},
    "in bfloat16": lambda state: {name: value.bfloat16() for name, value in state.items()},
    "in float64": lambda state: {name: value.double() for name, value in state.items()},
    "not contiguous": lambda state: {k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in state.items()},
    "parameters that want gradients": lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("form", [".pth", ".ckpt", "old.pth"])
def test_weights_of_other_programs_are_taken(tmp_path: Path, kind: str, form: str) -> None:
    state = stored(8)
    path = tmp_path / f"a{form}"
    torch.save(FOREIGN[kind](state), path, _use_new_zipfile_serialization=form != "old.pth")
    (tmp_path / "a.safetensors").write_bytes(import_model(path, "a"))
    weight = load_model(tmp_path / "a.safetensors")[0].state_dict()["blocks.2.conv.weight"]
    torch.testing.assert_close(weight, state["res3.conv2.conv2d.weight"], atol=2e-3 if "16" in kind else 0, rtol=0.01)


def test_safetensors_of_other_programs_are_taken(tmp_path: Path) -> None:
    save_file({f"module.{name}": value for name, value in stored(8).items()}, tmp_path / "a.safetensors")
    assert import_model(tmp_path / "a.safetensors", "a")


def spoiled(name: str, value: float) -> Stored:
    state = stored(8)
    state[name].view(-1)[0] = value
    return state


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    torch.save(spoiled("res3.in2.weight", value), tmp_path / "a.pth")
    with pytest.raises(StylizeError, match=r"a.pth: not all values of 'res3.in2.weight' are finite"):
        import_model(tmp_path / "a.pth", "a")


def test_a_program_is_told_from_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about TorchScript itself
        torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)), tmp_path / "a.pt")
    with pytest.raises(StylizeError, match="is a TorchScript archive, a program; must be a state dict"):
        import_model(tmp_path / "a.pt", "a")


def test_import_makes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(stored(8), "a.pth")
    result = CliRunner().invoke(cli, ["import", "a.pth", "-o", "new/folder/x.safetensors"])
    assert (result.exit_code, result.exception) == (0, None)
    assert load_model(Path("new/folder/x.safetensors"))[1].style == "a"


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "vgg."])
@pytest.mark.parametrize("place", ["", "state_dict", "model"])
def test_weights_of_vgg_may_have_prefixes(tmp_path: Path, prefix: str, place: str) -> None:
    weights = {"features.0.weight": torch.rand(64, 3, 3, 3), "features.0.bias": torch.rand(64)}
    state = {f"{prefix}{name}": value for name, value in weights.items()}
    torch.save({place: state, "epoch": 1} if place else state, tmp_path / "vgg.pth")
    torch.testing.assert_close(read_weights(tmp_path / "vgg.pth", 1), weights)
    state[f"{prefix}features.0.bias"][0] = float("nan")
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(StylizeError, match=r"not all values of features.0.bias are finite"):
        read_weights(tmp_path / "vgg.pth", 1)


# TensorBoard


def test_final_figures_stand_on_the_page_of_settings_and_not_among_the_curves(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_config(tmp_path, {"seed": seed, "train.learning_rate": 1e-3 + seed / 1e4})
        run.train(load_config(tmp_path / "a.yaml"), tmp_path / "runs" / str(seed), device="cpu", quiet=True)
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "runs"))
    events.Reload()
    provider = MultiplexerDataProvider(events, str(tmp_path))
    scalars = provider.list_scalars(RequestContext(), experiment_id="", plugin_name="scalars")
    assert {tag.split("/")[0] for tags in scalars.values() for tag in tags} == {
        "train",
        "validation",
        "validation measures",
    }
    context = Context(TBContext(data_provider=provider, logdir=str(tmp_path)))
    metadata = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, metadata, [])
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert {"validation/total", "validation/style", "validation/content"} <= metrics
    assert metrics <= set(scalars["0"])
    names = [info.name for info in experiment.hparam_infos]
    assert not [name for name in names if name.split(".")[-1] in ("path", "image", "images", "cache", "workers", "vgg")]
    differing = [info.name for info in experiment.hparam_infos if info.differs]
    assert differing == names[:2] == ["seed", "train.learning_rate"]
