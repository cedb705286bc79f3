"""A device that computes while the host goes on: steps that are not finite are skipped there, and told later."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_runs import poison, write_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stylize import ops
from stylize.build import build_run
from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.system.compute import Compute
from stylize.training.checkpoint import newest_checkpoint
from stylize.training.monitor import TIMES, Monitor
from stylize.training.trainer import Interrupted, Trainer

CPU = torch.device("cpu")
# A rate that float32 holds exactly: the device multiplies it.
CHANGES = {
    "train.steps": 9,
    "train.learning_rate": 2.0**-10,
    "train.log_every": 4,
    "train.validate_every": 6,
    "train.checkpoint_every": 5,
    "generator.norm": "batch_instance",
}
# They return a number to the host, which waits for it.
SYNCHRONIZING = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")


def build(folder: Path, patch: pytest.MonkeyPatch, changes: Mapping[str, Any], name: str, late: bool = True) -> Trainer:
    config = load_config(write_config(folder, changes))
    (folder / name).mkdir(exist_ok=True)
    patch.setattr(Compute, "checks_late", property(lambda self: late))
    return build_run(config, CPU, folder / name).trainer


def fit(trainer: Trainer, stop_after: int | None = None) -> None:
    first_step = trainer.progress.step
    with Monitor(trainer.run_dir, steps=trainer.config.steps, first_step=first_step) as monitor:
        step = trainer.step

        def step_and_ask(batch: Tensor) -> dict[str, Tensor]:
            trainer.stop_requested = trainer.progress.step + 1 == stop_after
            return step(batch)

        trainer.step = step_and_ask  # type: ignore[method-assign]
        trainer.fit(monitor)


def records(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def state(trainer: Trainer) -> list[Tensor]:
    moments = [value for of_one in trainer.optimizer.state.values() for value in of_one.values()]
    return [*trainer.generator.state_dict().values(), *moments, *trainer.rollback.state_dict().values()]


def same(one: Trainer, other: Trainer) -> bool:
    return all(map(torch.equal, state(one), state(other))) and len(state(one)) == len(state(other))


@pytest.mark.parametrize(
    ("norm", "bad"), [("batch_instance", []), ("batch", [1, 2]), ("batch_instance", [3, 5, 6, 7, 9])]
)
def test_a_training_checked_late_is_that_checked_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, norm: str, bad: list[int]
) -> None:
    trainers, told = [], []
    for late in (False, True):
        trainer = build(tmp_path, monkeypatch, {**CHANGES, "generator.norm": norm}, f"late {late}", late)
        poison(trainer, bad)
        caplog.clear()
        fit(trainer)
        trainers.append(trainer)
        told.append(caplog.messages[:])
    at_once, late_one = trainers
    assert same(at_once, late_one)
    assert all(value.isfinite().all() for value in state(late_one))
    assert vars(at_once.progress) == vars(late_one.progress)
    assert records(at_once.run_dir) == records(late_one.run_dir)
    assert told[0] == told[1]
    assert len(told[0]) == len(bad)
    assert late_one.progress.rate_factor == (0.5 if 7 in bad else 1)


@pytest.mark.parametrize("stop_after", [2, 6])
def test_resuming_is_exact_around_steps_that_the_device_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    bad = [2, 5, 6, 7]
    whole = build(tmp_path, monkeypatch, CHANGES, "whole")
    poison(whole, bad)
    fit(whole)
    for stop in (stop_after, None):
        trainer = build(tmp_path, monkeypatch, CHANGES, "parts")
        if stop is None:
            trainer.resume()
        poison(trainer, bad)
        try:
            fit(trainer, stop)
        except Interrupted:
            assert trainer.progress.step == stop_after
    assert same(trainer, whole)
    assert vars(trainer.progress) == vars(whole.progress)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    found = newest_checkpoint(tmp_path / "parts" / "checkpoints", CPU)
    assert found is not None
    assert all(isinstance(group["lr"], float) for group in found[1]["optimizer"]["param_groups"])


@pytest.mark.parametrize("late_first", [True, False])
def test_a_checkpoint_goes_from_late_checks_to_others_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_first: bool
) -> None:
    changes = {**CHANGES, "train.checkpoint_every": 100}
    whole = build(tmp_path, monkeypatch, changes, "whole")
    poison(whole, [2, 3])
    fit(whole)
    with pytest.raises(Interrupted):
        first = build(tmp_path, monkeypatch, changes, "parts", late_first)
        fit(first, 1)  # the kept state is that before the first update, without moments
    second = build(tmp_path, monkeypatch, changes, "parts", not late_first)
    second.resume()
    poison(second, [2, 3])
    fit(second)
    assert all(map(torch.equal, second.generator.state_dict().values(), whole.generator.state_dict().values()))


def test_ten_skipped_steps_in_a_row_stop_the_training_though_they_are_told_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(tmp_path, monkeypatch, {"train.steps": 40, "train.log_every": 8, "train.validate_every": 40}, "run")
    poison(trainer, range(3, 41))
    with pytest.raises(StylizeError, match=r"^stopped at step 12: 10 steps in a row were not finite, last: the loss "):
        fit(trainer)
    assert [line["step"] for line in records(trainer.run_dir) if line["kind"] == "skipped"] == list(range(3, 13))


@pytest.fixture
def synchronizations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What makes the host wait for the device, as it happens."""
    seen: list[str] = []

    def counted(name: str) -> Any:
        method = getattr(Tensor, name)

        def call(self: Tensor, *arguments: Any, **options: Any) -> Any:
            seen.append(name)
            return method(self, *arguments, **options)

        return call

    class Numbers(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_local_scalar_dense" in str(function) or "nonzero" in str(function):
                seen.append(str(function))
            return function(*args, **(kwargs or {}))

    for name in SYNCHRONIZING:
        monkeypatch.setattr(Tensor, name, counted(name))
    with Numbers():
        yield seen


def test_between_two_records_the_host_never_waits_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synchronizations: list[str]
) -> None:
    changes = {**CHANGES, "train.steps": 8, "train.validate_every": 100, "train.checkpoint_every": 100}
    trainer = build(tmp_path, monkeypatch, changes, "run")
    poison(trainer, [2, 3])
    batches = list(trainer.batches.from_step(0, 8))
    trainer.generator.train()
    waits = []
    # Plain PyTorch, as on a GPU; and the loss of the whole batch.
    monkeypatch.setattr(Compute, "image_by_image", property(lambda self: False))
    with ops.reference(), Monitor(trainer.run_dir, steps=8) as monitor:
        for batch in batches:
            synchronizations.clear()
            trainer._step_or_skip(batch, monitor)
            waits.append(list(synchronizations))
    assert waits == [[], [], [], ["tolist"], [], [], [], ["tolist"]]


def test_the_gradient_norm_is_measured_and_no_gradient_is_multiplied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(tmp_path, monkeypatch, {}, "run", late=False)
    batch = next(trainer.batches.from_step(0, 1))
    called: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(function))
            return function(*args, **(kwargs or {}))

    trainer.generator.train()
    with Names():
        terms = trainer.step(batch)
    assert terms["gradient_norm"] > 0
    assert [name for name in called if "_foreach_mul" in name] == []


def test_only_devices_that_compute_while_the_host_goes_on_are_checked_late() -> None:
    assert Compute(torch.device("cuda")).checks_late
    assert not Compute(CPU).checks_late
    assert not Compute(torch.device("mps")).checks_late  # its optimizers cannot skip by themselves


def test_a_signal_between_a_step_and_its_checkpoint_reads_what_was_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {**CHANGES, "train.validate_every": 100, "train.checkpoint_every": 100, "train.log_every": 100}
    trainer = build(tmp_path, monkeypatch, changes, "run")
    poison(trainer, [2])
    with Monitor(trainer.run_dir, steps=9) as monitor, caplog.at_level(logging.WARNING, "stylize"):
        advance = monitor.advance

        def advance_and_ask() -> None:
            advance()
            trainer.stop_requested = trainer.progress.step == 2

        monitor.advance = advance_and_ask  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            trainer.fit(monitor)
    assert trainer.progress.skipped_in_a_row == 1
    assert [message[:7] for message in caplog.messages] == ["step 2:"]
