import hashlib
import io
import json
import logging
import math
import os
import pickle
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_runs import write_config
from torch import Tensor

from stylize.build import Run, build_run, check_map_size, choose_workers
from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.generators import GeneratorConfig
from stylize.models.file import load_model, read_card
from stylize.norms import BatchInstanceNorm, BatchNorm
from stylize.pictures.picture import to_bytes
from stylize.pictures.reading import read_rgb
from stylize.system.compiler import choose_compile, has_compiler
from stylize.system.compute import Compute
from stylize.system.devices import (
    CPU,
    choose_device,
    choose_memory_format,
    choose_precision,
    has_bf16_matrix_units,
    has_fp16_matrix_units,
)
from stylize.training.checkpoint import (
    checkpoint_path,
    checkpoints,
    encode_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from stylize.training.loader import Batches, CropDataset
from stylize.training.monitor import TIMES, Monitor
from stylize.training.photographs import ContentConfig
from stylize.training.schedule import ScheduleConfig, rate_factor
from stylize.training.trainer import Interrupted, NotFinite, TrainConfig, Trainer

CUDA = torch.device("cuda")


def build(folder: Path, changes: Mapping[str, Any] | None = None, name: str = "run") -> Run:
    config = load_config(write_config(folder, changes))
    (folder / name).mkdir(exist_ok=True)
    return build_run(config, CPU, folder / name)


def fit(trainer: Trainer) -> None:
    first_step, steps = trainer.progress.step, trainer.config.steps
    with Monitor(trainer.run_dir, steps=steps, first_step=first_step) as monitor:
        trainer.fit(monitor)


def fit_until(trainer: Trainer, step: int) -> None:
    """Ask the training to stop while that step runs."""
    with Monitor(trainer.run_dir, steps=trainer.config.steps) as monitor:
        advance = monitor.advance

        def advance_and_ask() -> None:
            advance()
            trainer.stop_requested = trainer.progress.step == step

        monitor.advance = advance_and_ask
        trainer.fit(monitor)


def batch_of(trainer: Trainer) -> Tensor:
    return next(trainer.batches.from_step(0, 1))


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.generator.state_dict().items()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def validate_with(trainer: Trainer, totals: Iterator[float], patch: pytest.MonkeyPatch) -> None:
    """Let the held-out totals be these, one a validation; training goes on as it would."""
    measure = trainer.loss.measure
    per_validation = (total for total in totals for _ in trainer.held_out.photographs)

    def told(stylized: Tensor, content: Tensor, styles: Tensor) -> dict[str, Tensor]:
        return {**measure(stylized, content, styles), "total": torch.tensor(next(per_validation))}

    patch.setattr(trainer.loss, "measure", told)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


# A step


@pytest.mark.parametrize("norm", ["instance", "batch_instance"])
def test_thirty_steps_lower_the_loss(tmp_path: Path, norm: str) -> None:
    trainer = build(tmp_path, {"train.steps": 30, "train.learning_rate": 1e-2, "generator.norm": norm}).trainer
    totals = [trainer.step(batch)["total"].item() for batch in trainer.batches.from_step(0, 30)]
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])


def test_a_step_tells_every_term_the_gradient_norm_and_the_learning_rate(tmp_path: Path) -> None:
    trainer = build(tmp_path, {"train.schedule": {"name": "constant", "warmup_steps": 4}}).trainer
    terms = trainer.step(batch_of(trainer))
    assert set(terms) == {
        "content/relu2_1", "style/relu1_1", "style/relu2_1", "content", "style", "tv", "total", "shift",
        "gradient_norm", "gradient_median", "clipped_steps", "bounded_images", "learning_rate",
    }  # fmt: skip
    assert terms["learning_rate"].item() == pytest.approx(0.25e-3)
    gradients = [p.grad.flatten() for p in trainer.generator.parameters() if p.grad is not None]
    assert terms["gradient_norm"].item() == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-5)
    assert not any(term.requires_grad for term in terms.values())


def test_crops_reach_the_generator_scaled_to_one(tmp_path: Path) -> None:
    trainer = build(tmp_path).trainer
    seen: list[Tensor] = []
    trainer.generator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = batch_of(trainer)
    assert batch.dtype == torch.uint8
    trainer.step(batch)
    assert torch.equal(seen[0][: len(batch)], batch.float() / 255)
    assert 0.5 < seen[0].max() <= 1


def test_a_loss_that_is_not_finite_is_named_before_anything_is_updated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(tmp_path, {"generator.norm": "none"}).trainer
    before, style = weights(trainer), trainer.loss.terms["style"]
    difference = style._difference
    monkeypatch.setattr(
        style, "_difference", lambda tap, *rest: difference(tap, *rest) * (math.nan if tap == "relu1_1" else 1)
    )
    with pytest.raises(NotFinite) as caught:
        trainer.step(batch_of(trainer))
    assert str(caught.value) == "the loss is not finite (style/relu1_1, style)"
    assert equal(weights(trainer), before)
    assert trainer.optimizer.state_dict()["state"] == {}


def test_gates_stay_in_range_and_learn_ten_times_as_fast(tmp_path: Path) -> None:
    trainer = build(tmp_path, {"generator.norm": "batch_instance", "train.learning_rate": 0.02}).trainer
    gates = [norm.gate for norm in trainer.generator.norms().values() if isinstance(norm, BatchInstanceNorm)]
    for batch in trainer.batches.from_step(0, 8):
        trainer.step(batch)
        assert all(gate.min() >= 0 and gate.max() <= 1 for gate in gates)
    assert any(gate.min() < 0.9 for gate in gates)
    groups = {group["factor"]: group for group in trainer.optimizer.param_groups}
    assert groups.keys() == {1.0, 10.0, 16.0}
    assert {id(p) for p in groups[10.0]["params"]} == {id(gate) for gate in gates}
    assert [groups[factor]["lr"] for factor in (1.0, 10.0, 16.0)] == pytest.approx([0.02, 0.2, 0.32])
    assert all(group["weight_decay"] == 0 for group in groups.values())


def test_a_step_in_bfloat16_keeps_weights_and_loss_in_float32(tmp_path: Path) -> None:
    trainer = build(tmp_path, {"train.precision": "bf16"}).trainer
    exact = build(tmp_path).trainer
    rough, right = trainer.step(batch_of(trainer)), exact.step(batch_of(exact))
    assert all(value.dtype == torch.float32 for value in [*weights(trainer).values(), rough["total"]])
    assert rough["total"].item() == pytest.approx(right["total"].item(), rel=0.05)
    assert rough["total"] != right["total"]


# The learning rate


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (ScheduleConfig(name="constant", warmup_steps=0), [1, 1, 1, 1, 1]),
        (ScheduleConfig(name="constant", warmup_steps=4), [0.25, 0.5, 0.75, 1, 1]),
        (ScheduleConfig(name="cosine", warmup_steps=0, final_factor=0), [1, 0.8535534, 0.5, 0.1464466, 0]),
        (ScheduleConfig(name="cosine", warmup_steps=0, final_factor=0.2), [1, 0.8828427, 0.6, 0.3171573, 0.2]),
        (ScheduleConfig(name="cosine", warmup_steps=2, final_factor=0), [0.5, 0.8535534, 0.5, 0.1464466, 0]),
        (ScheduleConfig(name="step", warmup_steps=0, step_every=2, step_factor=0.5), [1, 1, 0.5, 0.5, 0.25]),
        (ScheduleConfig(name="step", warmup_steps=4, step_every=2, step_factor=0.5), [0.25, 0.5, 0.375, 0.5, 0.25]),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: ScheduleConfig, factors: list[float]) -> None:
    assert [rate_factor(step, 5, schedule) for step in range(5)] == pytest.approx(factors, abs=1e-7)


def test_a_run_of_one_step_has_a_learning_rate() -> None:
    assert rate_factor(0, 1, ScheduleConfig(warmup_steps=0)) == 1


# Validation


def test_validation_uses_running_statistics_and_leaves_them_alone(tmp_path: Path) -> None:
    trainer = build(tmp_path, {"generator.norm": "batch"}).trainer
    trainer.generator.train()
    trainer.step(batch_of(trainer))
    before, modes = weights(trainer), list[bool]()
    trainer.generator.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    with Monitor(trainer.run_dir, steps=4) as monitor:
        trainer.validate(monitor)
    assert modes == [False, False]
    assert trainer.generator.training
    assert any(isinstance(m, BatchNorm) and m.training for m in trainer.generator.modules())
    assert equal(weights(trainer), before)
    trainer.generator.eval()
    content = torch.stack(trainer.held_out.photographs)
    with torch.no_grad():
        terms = [trainer.loss(trainer.generator(image[None]), image[None])["total"].item() for image in content]
    assert trainer.progress.validation["total"] == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_the_model_kept_is_the_best_on_validation_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path, {"train.steps": 8, "train.keep_checkpoints": 4}).trainer
    validate_with(trainer, iter([3.0, 1.0, 2.0, math.nan]), monkeypatch)
    fit(trainer)
    assert (trainer.progress.best_step, trainer.progress.best_total) == (4, 1.0)
    generator, card = load_model(tmp_path / "run" / "model.safetensors")
    saved = load_checkpoint(checkpoint_path(tmp_path / "run" / "checkpoints", 4), CPU)
    assert (card.step, card.validation["total"]) == (4, 1.0)
    assert equal(generator.state_dict(), saved["generator"])
    assert not equal(generator.state_dict(), weights(trainer))


def test_without_held_out_photographs_the_last_model_is_kept(tmp_path: Path) -> None:
    trainer = build(tmp_path, {"content.validation": 0}).trainer
    fit(trainer)
    generator, card = load_model(tmp_path / "run" / "model.safetensors")
    assert (card.step, card.validation) == (4, {})
    assert equal(generator.state_dict(), weights(trainer))


def test_a_run_stops_early_when_it_gets_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(tmp_path, {"train.steps": 20, "train.stop_after": 2}).trainer
    validate_with(trainer, iter([5.0, 1.0, 2.0, 1.0, 0.5]), monkeypatch)
    with caplog.at_level(logging.INFO, "stylize"):
        fit(trainer)
    assert trainer.progress.step == 8
    assert caplog.messages[-1] == "stopped early: no better held-out loss since step 4"


# Stopping and resuming


def test_a_run_that_is_asked_to_stop_finishes_its_step_and_saves(tmp_path: Path) -> None:
    trainer = build(tmp_path, {"train.steps": 8, "train.checkpoint_every": 100}).trainer
    with pytest.raises(Interrupted):
        fit_until(trainer, 3)
    assert trainer.progress.step == 3
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003.pt"]
    assert [line["step"] for line in metrics(tmp_path / "run") if line["kind"] == "train"] == [1, 2, 3]


def test_a_run_that_is_asked_to_stop_in_its_last_step_is_done(tmp_path: Path) -> None:
    trainer = build(tmp_path).trainer
    fit_until(trainer, 4)
    assert trainer.progress.step == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"generator.norm": "instance", "train.schedule": {"name": "cosine", "warmup_steps": 4}},
        {"generator.norm": "batch_instance"},
        {"generator.name": "texture_network", "generator.norm": "batch"},
    ],
    ids=["instance", "batch_instance", "texture_network"],
)
def test_a_resumed_run_equals_the_run_that_never_stopped(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {**changes, "train.steps": 7, "train.validate_every": 2}
    whole = build(tmp_path, changes, "whole").trainer
    fit(whole)
    with pytest.raises(Interrupted):
        fit_until(build(tmp_path, changes, "parts").trainer, 3)
    torch.rand(5)
    second = build(tmp_path, changes, "parts").trainer
    second.resume()
    assert second.progress.step == 3
    fit(second)
    assert vars(second.progress) == vars(whole.progress)
    assert equal(weights(second), weights(whole))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    best, best_of_parts = (load_model(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert equal(best_of_parts[0].state_dict(), best[0].state_dict())
    assert best_of_parts[1] == best[1]
    rates = [line["learning_rate"] for line in metrics(tmp_path / "parts") if line["kind"] == "train"]
    assert rates == [pytest.approx(1e-3 * rate_factor(step, 7, whole.config.schedule), rel=1e-6) for step in range(7)]


def test_resuming_drops_the_records_after_the_checkpoint(tmp_path: Path) -> None:
    trainer = build(tmp_path, {"train.steps": 2}).trainer
    fit(trainer)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "kind": "train", "total": 1.0}\n7\n{"step": 4, "ki')
    again = build(tmp_path, {"train.steps": 4}).trainer
    again.resume()
    fit(again)
    lines = [(line["step"], line["kind"]) for line in metrics(tmp_path / "run")]
    assert lines == [(1, "train"), (2, "train"), (2, "validation"), (3, "train"), (4, "train"), (4, "validation")]


def test_a_run_may_be_resumed_on_another_kind_of_device_and_says_what_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(tmp_path).trainer
    path = trainer.save()
    written = load_checkpoint(path, CPU)
    assert (written["device"], written["random_of_device"]) == ("cpu", [])
    for of_cuda in ({"device": "cuda", "random_of_device": [torch.zeros(16)]}, {"random_cuda": [torch.zeros(16)] * 4}):
        state = {k: v for k, v in written.items() if k not in ("device", "random_of_device")}
        path.write_bytes(encode_checkpoint(0, {**state, **of_cuda}))
        caplog.clear()
        build(tmp_path).trainer.resume()
        assert caplog.messages == [
            "--resume: the run so far was on cuda, this is cpu: its rounding and noise differ from here on"
        ]
    caplog.clear()
    path.write_bytes(encode_checkpoint(0, {**state, "random_cuda": []}))  # of an older version, on a CPU
    build(tmp_path).trainer.resume()
    assert caplog.messages == []


def test_there_must_be_a_checkpoint_to_resume(tmp_path: Path) -> None:
    with pytest.raises(StylizeError) as caught:
        build(tmp_path).trainer.resume()
    assert str(caught.value) == f"{tmp_path}/run: nothing to resume: no checkpoint was written yet"


def test_small_losses_keep_their_digits_in_the_metrics(tmp_path: Path) -> None:
    with Monitor(tmp_path, steps=1) as monitor:
        monitor.log_step(1, {"content": 1.23456789e-9, "style": 123.456789, "total": 0.0})
    assert metrics(tmp_path)[0] == {
        "step": 1, "kind": "train", "content": 1.234568e-9, "style": 123.4568, "total": 0.0,
    }  # fmt: skip


# Checkpoints


def test_the_share_of_waiting_for_data_is_of_the_steps_since_the_last_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)

    def slow_batches() -> Iterator[int]:
        nonlocal now_s
        for i in range(4):
            now_s += (1, 0, 3, 0)[i]
            yield i

    with Monitor(tmp_path, steps=4) as monitor:
        for i in monitor.timed(slow_batches()):
            now_s += 1
            monitor.advance()
            if i % 2:
                monitor.log_step(i + 1, {"content": 1.0, "style": 1.0})
            now_s += 10  # a validation
        assert monitor.data_wait_share == 0.5
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["data_wait_share"] for line in lines] == [pytest.approx(1 / 3, rel=1e-6), 0.6]


def test_much_waiting_for_photographs_is_told_once_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    waits_s = iter([5] * 4 + [10] * 20)  # of 25 s, then of 30

    def slow_batches() -> Iterator[int]:
        nonlocal now_s
        for i in range(24):
            now_s += next(waits_s)
            yield i

    told_at = []
    with Monitor(tmp_path, steps=24, images_per_step=60, remedy="get a cache") as monitor:
        for i in monitor.timed(slow_batches()):
            now_s += 20
            monitor.advance()
            monitor.log_step(i + 1, {"content": 1.0, "style": 1.0})
            told_at.append(len(caplog.messages))
    assert caplog.messages == [
        "29 % of the last 85 s went into waiting for photographs, which came at 2 images/s: get a cache"
    ]
    assert told_at.index(1) == 5  # 3 × 25 s with a fifth of waiting, then 25 + 30 + 30 s


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    (tmp_path / "step-notes.pt").touch()
    for step in (5, 10, 999_999_99, 20):
        save_checkpoint(tmp_path, step, {"step": step}, keep=3)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010.pt", "step-00000020.pt", "step-99999999.pt"]
    assert (tmp_path / "step-notes.pt").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1}, keep=1)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for error_of in (2, 1):
        with pytest.raises(StylizeError) as caught:
            save_checkpoint(tmp_path, error_of, {}, keep=1)
        assert str(caught.value) == f"{tmp_path}/step-{error_of:08d}.pt: cannot be written (No space left on device)"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    assert load_checkpoint(tmp_path / "step-00000001.pt", CPU) == {"step": 1}


def signed(payload: bytes) -> bytes:
    """A checkpoint file of these bytes, with the right hash."""
    digest = hashlib.sha256(b"1\n" + payload).hexdigest()
    return f"stylize checkpoint 1, step 1, sha256 {digest}\n".encode() + payload


def saved(content: object) -> bytes:
    encoded = io.BytesIO()
    torch.save(content, encoded)
    return encoded.getvalue()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path, 1, {"weights": torch.rand(500)}, keep=1).read_bytes()
    path = tmp_path / "cut.pt"
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # torch alone would read it as another weight
    no_header, no_hash = "its first line is not that of a checkpoint", "its content does not have its SHA-256"
    other_step = whole.replace(b"step 1,", b"step 2,")
    damages = {whole[: len(whole) // 2]: no_hash, bytes(flipped): no_hash, other_step: no_hash, b"": no_header}
    for content, reason in {**damages, b"not a checkpoint": no_header}.items():
        path.write_bytes(content)
        with pytest.raises(StylizeError) as caught:
            load_checkpoint(path, CPU)
        assert str(caught.value) == f"{path}: the checkpoint is damaged ({reason})"
    path.write_bytes(signed(saved([1, 2])))
    with pytest.raises(StylizeError) as caught:
        load_checkpoint(path, CPU)
    assert str(caught.value) == f"{path}: no checkpoint: must hold a dict"


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step-00000001.pt"
    malicious = type("Malicious", (), {"__reduce__": lambda self: (Path.touch, (Path("executed"),))})()
    for payload in (pickle.dumps({"progress": malicious}), saved({"progress": malicious})):
        path.write_bytes(signed(payload))
        with pytest.raises(StylizeError, match="the checkpoint is damaged") as caught:
            load_checkpoint(path, CPU)
        assert "SHA-256" not in str(caught.value)
    assert not Path("executed").exists()
    torch.load(io.BytesIO(saved({"progress": malicious})), weights_only=False)
    assert Path("executed").exists()


@pytest.mark.parametrize(
    "changes", [{"generator.width": 8}, {"generator.norm": "batch_instance"}, {"generator.name": "texture_network"}]
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    build(tmp_path).trainer.save()
    other = build(tmp_path, changes).trainer
    with pytest.raises(StylizeError) as caught:
        other.resume()
    assert str(caught.value) == (
        f"{tmp_path}/run/checkpoints/step-00000000.pt: does not fit this run: it is of another network, or damaged"
    )


def test_a_checkpoint_without_its_parts_is_refused(tmp_path: Path) -> None:
    trainer = build(tmp_path).trainer
    path = trainer.save()
    state = load_checkpoint(path, CPU)
    without = [{k: v for k, v in state.items() if k != part} for part in ("optimizer", "last_good")]
    other = {"network.to_rgb.bias": torch.zeros(4)}
    for broken in (
        *without,
        {**state, "progress": {"stp": 1}},
        {**state, "last_good": other},
        {**state, "last_good": {}},
    ):
        path.write_bytes(encode_checkpoint(0, broken))
        with pytest.raises(StylizeError) as caught:
            trainer.resume()
        assert str(caught.value) == f"{path}: does not fit this run: it is of another network, or damaged"


# Where and how to compute


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STYLIZE_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(StylizeError) as caught:
        choose_device("cuda")
    assert str(caught.value) == "--device: got 'cuda', which torch does not find here; usable: 'cpu'"
    assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == CUDA
    assert choose_device("cpu") == CPU
    monkeypatch.setenv("STYLIZE_DEVICE", "cpu")
    assert choose_device("auto") == CPU
    monkeypatch.setenv("STYLIZE_DEVICE", "tpu")
    with pytest.raises(StylizeError, match=r"^STYLIZE_DEVICE: got 'tpu', which torch does not find here; usable: "):
        choose_device("auto")


@pytest.mark.parametrize(
    ("device", "units", "training", "inference"),
    [
        (CUDA, {"bf16", "fp16"}, "bf16", "bf16"),
        (CUDA, {"fp16"}, "fp32", "fp16"),  # T4, V100
        (CUDA, set(), "fp32", "fp32"),
        (CPU, {"bf16"}, "bf16", "bf16"),
        (CPU, set(), "fp32", "fp32"),
    ],
)
def test_automatic_precision_is_that_of_the_matrix_units(
    device: torch.device, units: set[str], training: str, inference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STYLIZE_PRECISION")
    for kind in ("bf16", "fp16"):
        has = kind in units
        monkeypatch.setattr(f"stylize.system.devices.has_{kind}_matrix_units", lambda device, has=has: has)
    assert choose_precision("auto", device) == training
    assert choose_precision("auto", device, inference=True) == inference
    assert choose_precision("fp32", device) == "fp32"
    assert choose_precision("bf16", device) == "bf16"


def test_matrix_units_are_known_by_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=found: found)
        assert has_bf16_matrix_units(CPU) == found
    for capability, found in (((7, 0), True), ((6, 1), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert has_fp16_matrix_units(CUDA) == found
    assert not has_fp16_matrix_units(CPU)


def test_a_variable_says_what_automatic_precision_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STYLIZE_PRECISION", "bf16")
    with caplog.at_level(logging.INFO, "stylize"):
        trainer = build(tmp_path, {"train.precision": "auto"}).trainer
    assert trainer.compute.precision == "bf16" and trainer.generator.maps == torch.bfloat16
    assert caplog.messages[0] == "train.precision: auto on cpu is bf16"
    monkeypatch.setenv("STYLIZE_PRECISION", "fp16")
    assert choose_precision("auto", CPU, inference=True) == "fp16"
    with pytest.raises(StylizeError, match=r"^STYLIZE_PRECISION: got 'fp16', must be one of 'bf16', 'fp32'"):
        choose_precision("auto", CPU)


def test_memory_format_follows_the_device() -> None:
    assert choose_memory_format(CUDA) == choose_memory_format(CPU) == torch.channels_last
    assert choose_memory_format(torch.device("mps")) == torch.contiguous_format


def test_automatic_compilation_is_for_long_runs_where_it_pays_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stylize.system.compiler.has_compiler", lambda device: True)
    with caplog.at_level(logging.INFO, "stylize"):
        assert choose_compile("auto", CUDA, 40_000)
        assert not choose_compile("auto", CUDA, 100)
        assert not choose_compile("auto", CPU, 40_000)
    assert caplog.messages == [
        "train.compile: auto is on: cuda, a compiler is found, 40000 steps, at least the 2000 that repay it",
        "train.compile: auto is off: 100 steps on cuda, fewer than the 2000 that repay it",
        "train.compile: auto is off: on cpu the kernels of the eager networks, which it would turn off, are faster",
    ]
    assert choose_compile("always", CPU, 1)
    assert not choose_compile("never", CUDA, 40_000)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_compilation_without_a_compiler_is_refused(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stylize.system.compiler.has_compiler", lambda device: False)
    with pytest.raises(StylizeError) as caught:
        choose_compile("always", device, 1)
    assert str(caught.value) == f"train.compile: got 'always', but no compiler for {device.type} is found"
    with caplog.at_level(logging.INFO, "stylize"):
        assert not choose_compile("auto", CUDA, 40_000)
    assert caplog.messages == ["train.compile: auto is off: no compiler for cuda is found"]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.11's compiler does
@pytest.mark.skipif(not has_compiler(CPU), reason="no compiler for cpu is found")
def test_a_compiled_step_gives_the_loss_terms_of_an_eager_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache" / "triton"))
    shallow = {"loss.content_layers": {"relu1_2": 1.0}, "loss.style_layers": {"relu1_1": 1.0}}
    shallow["generator.padding"] = "replication"  # which torch's own compiler cannot lower
    eager, compiled = (
        build(tmp_path, {**shallow, "train.compile": name, "train.steps": 1}, name).trainer
        for name in ("never", "always")
    )
    batch = batch_of(eager)
    terms, with_compiler = eager.step(batch), compiled.step(batch)
    torch.compiler.reset()
    assert terms.keys() == with_compiler.keys()
    for name, term in terms.items():
        assert with_compiler[name].item() == pytest.approx(term.item(), rel=1e-4, abs=1e-6), name
    assert terms["gradient_norm"].item() > 0


def test_the_first_compiled_step_tells_how_long_it_took_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    monkeypatch.setattr("stylize.system.compiler.has_compiler", lambda device: True)
    run = build(tmp_path, {"train.compile": "always", "train.steps": 2})
    with caplog.at_level(logging.INFO, "stylize"):
        fit(run.trainer)
    told = [message for message in caplog.messages if message.startswith("train.compile")]
    assert len(told) == 1
    assert re.fullmatch(r"train\.compile: the first step, which compiles, took \d+\.\d s", told[0])


def test_a_decoding_process_that_is_spawned_gives_the_same_batches(tmp_path: Path) -> None:
    write_config(tmp_path)
    files = sorted((tmp_path / "photos").iterdir())
    dataset = CropDataset(files, ContentConfig(path="photos", resize=40, crop=32), 0)
    spawned = Batches(dataset, 4, workers=1)
    spawned.start = "spawn"
    here, there = (list(batches.from_step(3, 5)) for batches in (Batches(dataset, 4), spawned))
    assert torch.equal(torch.stack(here), torch.stack(there))


@pytest.mark.parametrize(
    ("cores", "processes_here", "workers"), [(1, 1, 1), (4, 1, 2), (64, 1, 62), (16, 4, 2), (2, 4, 1)]
)
def test_automatic_workers_on_a_gpu_share_the_cores_and_are_told(
    cores: int, processes_here: int, workers: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stylize.system.compute.usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes_here))
    monkeypatch.setattr("stylize.system.compute.available_bytes", lambda: 1000)
    assert choose_workers(Compute(CPU)) == 0
    assert choose_workers(Compute(CUDA), cached_bytes=999) == 0  # reading from memory needs no help
    with caplog.at_level(logging.INFO, "stylize"):
        assert choose_workers(Compute(CUDA)) == workers
        assert choose_workers(Compute(CUDA), cached_bytes=1000) == workers
    assert caplog.messages == [f"content.workers: auto on cuda is {workers}"] * 2


def test_the_size_of_a_cache_is_expected_before_it_is_built_and_known_afterwards(tmp_path: Path) -> None:
    dataset = build(tmp_path, {"content.cache": str(tmp_path / "cache")}).trainer.batches.dataset
    assert dataset.cache is not None
    known_bytes = 3 * sum(np.prod(read_rgb(file, 40).size) for file in dataset.cache.files)
    assert known_bytes <= dataset.cache.expected_bytes() <= 1.6 * known_bytes
    dataset.cache.prepare(0)
    assert dataset.cache.expected_bytes() == dataset.cache.path.stat().st_size


def test_a_map_that_a_gpu_cannot_count_is_refused_early(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, {"content.crop": 4096, "content.resize": 4096}))
    check_map_size(config, Compute(CPU))
    check_map_size(config.model_copy(update={"train": TrainConfig(batch_size=1)}), Compute(CUDA))
    for batch_size, width in ((2, 32), (1, 512)):
        other = config.model_copy(
            update={"train": TrainConfig(batch_size=batch_size), "generator": GeneratorConfig(width=width)}
        )
        with pytest.raises(StylizeError) as caught:
            check_map_size(other, Compute(CUDA) if width == 32 else Compute(torch.device("mps")))
        if width == 32:
            assert str(caught.value) == (
                "train.batch_size: got 2 with content.crop 4096: maps of 2×64×4096² values, must be below 2³¹ on cuda; "
                "lower one of the two"
            )


@pytest.mark.parametrize("name", ["fp16", "float16"])
def test_float16_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    with pytest.raises(StylizeError) as caught:
        load_config(write_config(tmp_path, {"train.precision": name}))
    assert str(caught.value).endswith(
        f"train.precision: got '{name}', must be auto, fp32 or bf16: float16 needs scaled losses in training"
    )


# A compiled step


def broken(reason: Exception, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the compiled step fail after it has moved running statistics and drawn random numbers."""
    patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "cache"))
    patch.setattr("stylize.system.compiler.has_compiler", lambda device: True)

    def compiled(function: Any) -> Any:
        def fail(*crops: Any) -> None:
            function(*crops)["total"].backward()
            torch.rand(3)
            raise reason

        return fail

    patch.setattr(torch, "compile", compiled)


def test_if_the_first_compiled_step_fails_the_run_goes_on_without_as_if_there_had_been_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"generator.norm": "batch", "generator.name": "texture_network", "train.steps": 2}
    broken(RuntimeError("cannot lower\nthat"), monkeypatch, tmp_path)
    monkeypatch.setattr(Compute, "image_by_image", property(lambda self: False))
    eager, compiled = (
        build(tmp_path, {**changes, "train.compile": name}, name).trainer for name in ("never", "always")
    )
    for trainer in (eager, compiled):
        torch.manual_seed(0)
        fit(trainer)
    told = [message for message in caplog.messages if message.startswith("train.compile")]
    assert told == ["train.compile: a first step failed (cannot lower); the run goes on without compilation"]
    assert equal(weights(eager), weights(compiled))


def test_a_compiled_step_that_finds_no_memory_fails_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = RuntimeError("the backend failed")  # as compilers do
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    broken(wrapped, monkeypatch, tmp_path)
    trainer = build(tmp_path, {"train.compile": "always"}).trainer
    with pytest.raises(RuntimeError, match=r"^the backend failed$"):
        trainer.step(batch_of(trainer))


def test_how_libraries_compute_is_set_outside_of_what_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(tmp_path).trainer
    terms, seen = trainer._terms, list[str]()

    class Context:
        def __enter__(self) -> None:
            seen.append("in")

        def __exit__(self, *error: object) -> None:
            seen.append("out")

    def called(*crops: Any) -> dict[str, Tensor]:
        seen.append("terms")
        return terms(*crops)

    monkeypatch.setattr(Compute, "context", lambda self: Context())
    trainer._terms = called
    trainer.step(batch_of(trainer))
    assert seen == ["in", "terms", "out"]


def test_cuda_graphs_are_for_one_process_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylize.system.compiler.has_compiler", lambda device: True)
    assert choose_compile("graphs", CUDA, 1)
    for device, processes, where in ((CPU, 1, "cpu"), (CUDA, 2, "2 processes")):
        monkeypatch.setattr("stylize.system.distributed.count", lambda processes=processes: processes)
        with pytest.raises(StylizeError) as caught:
            choose_compile("graphs", device, 1)
        assert str(caught.value) == (
            f"train.compile: got 'graphs' with {where}, must be auto, always or never: it needs cuda, one process"
        )
    monkeypatch.undo()
    monkeypatch.setattr("stylize.system.compiler.has_compiler", lambda device: False)
    with pytest.raises(StylizeError, match=r"^train\.compile: got 'graphs', but no compiler for cuda is found$"):
        choose_compile("graphs", CUDA, 1)


def test_what_a_cuda_graph_returned_may_be_overwritten_by_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, options = [], list[dict[str, str]]()
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    monkeypatch.setattr(torch, "compile", lambda function, **keys: options.append(keys) or function)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    trainer = build(tmp_path).trainer
    object.__setattr__(trainer.compute, "graphs", True)
    object.__setattr__(trainer.compute, "compiled", True)
    assert trainer.compute.compile(abs) is abs and options == [{"mode": "reduce-overhead"}]
    forward, memory = trainer._forward, dict[str, Tensor]()

    def replayed(*crops: Any) -> dict[str, Tensor]:
        """Return the same memory at every call."""
        terms = forward(*crops)
        with torch.no_grad():
            for name, term in terms.items():
                memory.setdefault(name, torch.empty(())).copy_(term)
        return {name: memory[name] if name != "total" else term for name, term in terms.items()}

    trainer._terms = replayed
    first = trainer.step(batch_of(trainer))
    style = first["style"].item()
    trainer.step(batch_of(trainer))
    assert begun == [True, True]
    assert memory["style"].item() != style
    assert first["style"].item() == style


def test_what_a_run_builds_is_what_its_config_says(tmp_path: Path) -> None:
    run = build(tmp_path, {"content.limit": 3, "style.size": 32})
    assert (len(run.photographs.training), len(run.photographs.validation)) == (3, 2)
    assert run.vgg_weights == "random, seed 0"
    assert run.styles["tiny"][0].shape == (3, 27, 32)
    assert [image.shape for image in run.trainer.held_out.photographs] == [(3, 32, 32)] * 2
    crops = to_bytes(read_rgb(run.photographs.training[0], 40))
    assert min(crops.shape[1:]) == 40


def test_several_style_images_share_the_target_by_their_weights(tmp_path: Path) -> None:
    write_config(tmp_path)
    paths = ["style.png", "photos/0.jpg"]
    grams = [
        build(tmp_path, {"style": {"image": path, "size": 48}}).trainer.loss.style_gram("relu1_1") for path in paths
    ]
    images = [{"path": path, "weight": weight} for path, weight in zip(paths, (3.0, 1.0), strict=True)]
    mixed = build(tmp_path, {"style": {"images": images, "size": 48}}).trainer.loss.style_gram("relu1_1")
    assert torch.allclose(mixed, 0.75 * grams[0] + 0.25 * grams[1])


def test_the_model_file_says_how_it_was_trained(tmp_path: Path) -> None:
    fit(build(tmp_path, {"name": "dots"}).trainer)
    card = read_card(tmp_path / "run" / "model.safetensors")
    assert (card.style, card.vgg, card.generator.width) == ("dots", "random, seed 0", 4)
    assert card.config["train"]["steps"] == 4
    assert card.thumbnail.startswith(b"\xff\xd8")
