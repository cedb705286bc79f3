"""What a run does when something goes wrong: it loses nothing that it had, or says in one line why it stops."""

import errno
import json
import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_runs import poison, write_config
from torch import Tensor

from stylize.build import build_run
from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.models.file import load_model
from stylize.run import train
from stylize.system.files import FolderLock, RecordFile, remove_leftovers, write_atomically
from stylize.training.checkpoint import encode_checkpoint, newest_checkpoint, save_checkpoint
from stylize.training.monitor import TIMES, Monitor
from stylize.training.tensorboard import PREFIX, EventFile, read_events
from stylize.training.trainer import Interrupted, Progress, Trainer

CPU = torch.device("cpu")
FEW_WORKERS = 2


def build(folder: Path, changes: Mapping[str, Any] | None = None, name: str = "run") -> Trainer:
    config = load_config(write_config(folder, changes))
    (folder / name).mkdir(exist_ok=True)
    return build_run(config, CPU, folder / name).trainer


def fit(trainer: Trainer, stop_after: int | None = None) -> None:
    """Train to the end, or until a step after which the run is asked to stop."""
    first_step = trainer.progress.step
    with Monitor(trainer.run_dir, steps=trainer.config.steps, first_step=first_step) as monitor:
        advance = monitor.advance

        def advance_and_ask() -> None:
            advance()
            trainer.stop_requested = trainer.progress.step == stop_after

        monitor.advance = advance_and_ask  # type: ignore[method-assign]
        trainer.fit(monitor)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.generator.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    """Whether two trees of values are bit for bit equal."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def scalars(run_dir: Path) -> dict[tuple[str, int], float]:
    """TensorBoard's scalars as they lie in the files; none may come twice."""
    found: list[tuple[tuple[str, int], float]] = []
    for path in sorted(run_dir.glob(f"{PREFIX}*")):
        for event in read_events(path):
            for value in event.summary.value:
                content = value.tensor.float_val[0] if value.tensor.float_val else value.simple_value
                found.append(((value.tag, event.step), content))
    counts = Counter(key for key, _ in found if key[1] > 0)
    assert [key for key, count in counts.items() if count > 1] == []
    return {key: value for key, value in found if key[1] > 0 and key[0].split("/")[-1] not in TIMES}


# Exact resume


EXACT = {
    "train.steps": 7,
    "train.validate_every": 2,
    "train.checkpoint_every": 3,
    "train.stop_after": 9,
    "generator.norm": "batch_instance",
    "train.schedule": {"name": "cosine", "warmup_steps": 4},
}


@pytest.mark.parametrize("workers", [0, FEW_WORKERS])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_the_run_that_never_stopped_in_every_bit(
    tmp_path: Path, precision: str, workers: int
) -> None:
    changes = {**EXACT, "train.precision": precision}
    fit(build(tmp_path, changes, "whole"))
    for stop_after in (2, 5, None):
        trainer = build(tmp_path, {**changes, "content.workers": workers}, "parts")
        if (trainer.run_dir / "checkpoints").exists():
            trainer.resume()
        poison(trainer, [])
        try:
            fit(trainer, stop_after)
        except Interrupted:
            assert trainer.progress.step == stop_after
    states = [newest_checkpoint(tmp_path / name / "checkpoints", CPU) for name in ("whole", "parts")]
    assert states[0] is not None and states[1] is not None
    assert same(*(state for _, state in filter(None, states)))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert scalars(tmp_path / "parts") == scalars(tmp_path / "whole")
    assert {step for tag, step in scalars(tmp_path / "parts") if tag == "train/total"} == set(range(1, 8))
    best, best_of_parts = (load_model(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert same(best[0].state_dict(), best_of_parts[0].state_dict())
    assert (best[1].step, best[1].validation) == (best_of_parts[1].step, best_of_parts[1].validation)


def test_a_run_that_is_resumed_with_a_cache_equals_the_run_without_in_every_bit(tmp_path: Path) -> None:
    fit(build(tmp_path, EXACT, "whole"))
    for stop_after, cache in ((2, None), (5, "cache"), (None, "cache")):
        trainer = build(tmp_path, {**EXACT, "content.cache": cache}, "parts")
        if (trainer.run_dir / "checkpoints").exists():
            trainer.resume()
        try:
            fit(trainer, stop_after)
        except Interrupted:
            assert trainer.progress.step == stop_after
    assert len(list((tmp_path / "cache").glob("*.cache"))) == 1
    states = [newest_checkpoint(tmp_path / name / "checkpoints", CPU) for name in ("whole", "parts")]
    assert states[0] is not None and states[1] is not None
    assert same(*(state for _, state in filter(None, states)))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_run_that_lost_steps_after_its_checkpoint_does_them_again_once(tmp_path: Path) -> None:
    fit(build(tmp_path, EXACT, "whole"))
    with pytest.raises(Interrupted):
        fit(build(tmp_path, EXACT, "parts"), stop_after=5)
    (tmp_path / "parts" / "checkpoints" / "step-00000005.pt").unlink()
    events = next((tmp_path / "parts").glob(f"{PREFIX}*"))
    events.write_bytes(events.read_bytes()[:-7])  # a killed process leaves half a record
    trainer = build(tmp_path, EXACT, "parts")
    trainer.resume()
    assert trainer.progress.step == 3
    fit(trainer)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert scalars(tmp_path / "parts") == scalars(tmp_path / "whole")


def test_other_photographs_are_told_on_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path).save()
    build(tmp_path).resume()
    assert caplog.messages == []
    next((tmp_path / "photos").glob("*.jpg")).unlink()
    build(tmp_path).resume()
    assert caplog.messages == ["content.path: the photographs are not those of the run so far: other batches follow"]


# Checkpoints


def test_a_damaged_newer_checkpoint_is_told_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, {"step": step}, keep=3)
    cut, headless = tmp_path / "step-00000030.pt", tmp_path / "step-00000020.pt"
    cut.write_bytes(cut.read_bytes()[:-1])
    headless.write_bytes(b"\0" * 5000)
    found = newest_checkpoint(tmp_path, CPU)
    assert found == (tmp_path / "step-00000010.pt", {"step": 10})
    assert caplog.messages == [
        f"{cut}: the checkpoint is damaged (its content does not have its SHA-256); passed over",
        f"{headless}: the checkpoint is damaged (its first line is not that of a checkpoint); passed over",
    ]
    save_checkpoint(tmp_path, 12, {"step": 12}, keep=1)
    assert newest_checkpoint(tmp_path, CPU) == (tmp_path / "step-00000012.pt", {"step": 12})
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-00000012.pt", "step-00000020.pt.damaged", "step-00000030.pt.damaged",
    }  # fmt: skip


def test_checkpoints_are_found_by_what_they_hold_not_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "step-00000099.pt").write_bytes(encode_checkpoint(5, {"step": 5}))
    (tmp_path / "copy of the good one.pt").write_bytes(encode_checkpoint(50, {"step": 50}))
    assert newest_checkpoint(tmp_path, CPU) == (tmp_path / "copy of the good one.pt", {"step": 50})


def test_only_damaged_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "step-00000001.pt").write_bytes(b"")
    with pytest.raises(StylizeError) as caught:
        newest_checkpoint(tmp_path, CPU)
    assert str(caught.value) == (
        f"{tmp_path}: every checkpoint is damaged; start anew with --overwrite or another --output"
    )
    assert newest_checkpoint(tmp_path / "nowhere", CPU) is None


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    names = [".step-00000001.pt.x.part", ".model.safetensors.y.part", "mine.part", ".hidden"]
    (tmp_path / "checkpoints").mkdir()
    for folder in (tmp_path, tmp_path / "checkpoints"):
        for name in names:
            (folder / name).touch()
    remove_leftovers(tmp_path)
    for folder in (tmp_path, tmp_path / "checkpoints"):
        assert {path.name for path in folder.iterdir() if path.is_file()} == {"mine.part", ".hidden"}


# Losses that are not finite


def test_a_batch_whose_loss_is_not_finite_is_skipped_from_the_last_good_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(tmp_path, {"train.steps": 5, "generator.norm": "batch"})
    batches = list(trainer.batches.from_step(0, 5))
    trainer.generator.train()
    trainer.step(batches[0])
    good = weights(trainer)
    expected = build(tmp_path, {"train.steps": 5, "generator.norm": "batch"}, "expected")
    poison(trainer, [])
    fresh = build(tmp_path, {"train.steps": 5, "generator.norm": "batch"}, "fresh")
    poison(fresh, [3])
    with caplog.at_level(logging.WARNING, "stylize"):
        fit(fresh)
    # Step 3 undoes the update of step 2, which may have been what spoilt the state, and passes over its own batch.
    expected.generator.train()
    for step in (0, 3, 4):
        expected.progress.step = step
        if step == 3:
            expected.generator.load_state_dict({**good, **_buffers_after(fresh, good, batches[1])})
        expected.step(batches[step])
    parameters = dict(fresh.generator.named_parameters())
    for name, value in expected.generator.named_parameters():
        assert torch.equal(value, parameters[name]), name
    assert fresh.progress.step == 5 and fresh.progress.skipped_in_a_row == 0
    (message,) = caplog.messages
    assert message.startswith("step 3: the loss is not finite (")
    assert message.endswith("): back to the last good state, batch skipped (1 in a row)")
    told = [line for line in metrics(tmp_path / "fresh") if line["kind"] == "skipped"]
    assert told == [{"step": 3, "kind": "skipped", "in_a_row": 1, "rate_factor": 1.0}]
    assert [line["step"] for line in metrics(tmp_path / "fresh") if line["kind"] == "train"] == [1, 2, 4, 5]
    assert scalars(tmp_path / "fresh")["skipped/in_a_row", 3] == 1


def _buffers_after(trainer: Trainer, state: Mapping[str, Tensor], batch: Tensor) -> dict[str, Tensor]:
    """Batch norm's running statistics after one more forward pass: they belong to the state that was good."""
    network = type(trainer.generator)(build_config(trainer)).train()
    network.load_state_dict(state)
    network(batch.float() / 255)
    return {name: value for name, value in network.state_dict().items() if "running" in name or "num_" in name}


def build_config(trainer: Trainer) -> Any:
    from stylize.generators import GeneratorConfig

    return GeneratorConfig(width=4, norm="batch")


def test_a_state_that_has_gone_bad_is_left(tmp_path: Path) -> None:
    trainer = build(tmp_path, {"train.steps": 6, "generator.norm": "batch"})
    optimizer_step = trainer.optimizer.step

    def spoil_once(*args: Any) -> None:
        optimizer_step(*args)
        if trainer.progress.step == 2:
            with torch.no_grad():
                next(trainer.generator.parameters()).fill_(math.inf)

    trainer.optimizer.step = spoil_once  # type: ignore[method-assign]
    fit(trainer)
    told = [(line["step"], line["kind"]) for line in metrics(trainer.run_dir) if line["kind"] != "validation"]
    assert told == [(1, "train"), (2, "train"), (3, "train"), (4, "skipped"), (5, "train"), (6, "train")]
    assert all(value.isfinite().all() for value in weights(trainer).values())


def test_the_third_skip_in_a_row_halves_the_learning_rate_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(tmp_path, {"train.steps": 9})
    poison(trainer, [2, 3, 5, 6, 7])
    fit(trainer)
    rates = {line["step"]: line["learning_rate"] for line in metrics(trainer.run_dir) if line["kind"] == "train"}
    assert rates == {1: 1e-3, 4: 1e-3, 8: 5e-4, 9: 5e-4}
    halving = "(3 in a row); the learning rate is halved from here on"
    assert [message.endswith(halving) for message in caplog.messages] == [False, False, False, False, True]
    factors = {line["step"]: line["rate_factor"] for line in metrics(trainer.run_dir) if line["kind"] == "skipped"}
    assert factors == {2: 1, 3: 1, 5: 1, 6: 1, 7: 0.5}


def test_the_tenth_skip_in_a_row_stops_with_a_report(tmp_path: Path) -> None:
    trainer = build(tmp_path, {"train.steps": 20})
    poison(trainer, range(2, 21))
    with pytest.raises(StylizeError) as caught:
        fit(trainer)
    message = str(caught.value)
    assert message.startswith("stopped at step 11: 10 steps in a row were not finite, last: the loss is not finite (")
    assert message.endswith("); start anew with a lower train.learning_rate or loss.style_weight")
    assert [line["in_a_row"] for line in metrics(trainer.run_dir) if line["kind"] == "skipped"] == list(range(1, 11))


@pytest.mark.parametrize("stop_after", [4, 5, 6])
def test_resuming_is_exact_around_skipped_steps(tmp_path: Path, stop_after: int) -> None:
    changes, bad = {**EXACT, "train.steps": 8, "train.checkpoint_every": 100}, [3, 5, 6, 7]
    whole = build(tmp_path, changes, "whole")
    poison(whole, bad)
    fit(whole)
    for stop in (stop_after, None):
        trainer = build(tmp_path, changes, "parts")
        if stop is None:
            trainer.resume()
        poison(trainer, bad)
        try:
            fit(trainer, stop)
        except Interrupted:
            assert trainer.progress.step == stop_after
    assert same(weights(trainer), weights(whole))
    assert vars(trainer.progress) == vars(whole.progress)
    assert trainer.progress.rate_factor == 0.5
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert scalars(tmp_path / "parts") == scalars(tmp_path / "whole")


# Two processes, one folder


HOLD = (
    "import sys, pathlib; from stylize.system.files import FolderLock\nwith FolderLock(pathlib.Path(sys.argv[1])): {}"
)


def in_process(folder: Path, body: str = "print('held', flush=True); input()") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD.format(body), str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = in_process(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_has_one_owner(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(StylizeError) as caught:
        FolderLock(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: in use: another process is training there; wait for its end, or choose another --output"
    )


def test_a_killed_owner_leaves_no_stale_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with FolderLock(tmp_path):
        assert "in use: another process" in in_process(tmp_path).communicate()[1]
    assert in_process(tmp_path, "pass").communicate() == ("", "")


def test_decoding_processes_that_outlive_their_parent_do_not_hold_the_folder(tmp_path: Path) -> None:
    body = "import os, time; child = os.fork(); child or time.sleep(60); print(child, flush=True); input()"
    process = in_process(tmp_path, body)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with FolderLock(tmp_path):
            os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_folder_has_one_owner_among_threads_too(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        with pytest.raises(StylizeError, match="in use: another process is training there"):
            FolderLock(tmp_path)
        # The refused attempt did not drop the lock, which the system keeps for the whole process.
        assert "in use: another process" in in_process(tmp_path).communicate()[1]
    with FolderLock(tmp_path):
        pass


def test_a_cache_in_the_run_folder_leaves_the_run_its_lock(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, {"train.steps": 4}), [f"content.cache={tmp_path}/run"])
    others = []

    def try_to_hold(progress: Progress) -> None:
        if progress.step == 2:
            others.append(in_process(tmp_path / "run").communicate()[1])

    result = train(config, tmp_path / "run", device="cpu", on_progress=try_to_hold)
    assert result.progress.step == 4
    assert len(list((tmp_path / "run").glob("*.cache"))) == 1
    assert len(others) == 1
    assert "in use: another process is training there" in others[0]


# Files


def test_files_have_the_mode_of_the_umask_which_is_never_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("other threads write files, too"))
        write_atomically(tmp_path / "a", b"a")
        monkeypatch.undo()
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


# Full disks


def test_a_record_is_written_whole_or_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write = RecordFile(tmp_path / "a"), os.write
    file.add(b"first\n")
    file.flush()

    def full(handle: int, data: Any) -> int:
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:4])

    monkeypatch.setattr(os, "write", full)
    for record in (b"second\n", b"third\n"):
        file.add(record)
        with pytest.raises(OSError, match="No space left"):
            file.flush()
        assert (tmp_path / "a").read_bytes() == b"first\n"
    monkeypatch.undo()
    file.flush()
    file.close()
    assert (tmp_path / "a").read_bytes() == b"first\nsecond\nthird\n"


def test_records_that_wait_for_room_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylize.system.files.WAITING_BYTES", 10)
    file = RecordFile(tmp_path / "a")
    for record in (b"1234\n", b"5678\n", b"90ab\n"):
        file.add(record)
    file.flush()
    file.close()
    assert (tmp_path / "a").read_bytes() == b"5678\n90ab\n"


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("stylize.system.files.os.fsync", full)
    monkeypatch.setattr("stylize.system.files.os.write", full)


def test_a_run_goes_on_when_the_disk_is_full_and_catches_up_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"train.steps": 8}
    fit(build(tmp_path, changes, "whole"))
    trainer = build(tmp_path, changes)
    step = trainer.step

    def fill_and_free(batch: Tensor) -> dict[str, Tensor]:
        if trainer.progress.step == 2:
            no_room(monkeypatch)
        if trainer.progress.step == 6:
            monkeypatch.undo()
            saved = [path.name for path in (trainer.run_dir / "checkpoints").iterdir()]
            assert saved == ["step-00000002.pt"]
            assert trainer.progress.best_step == 2
        return step(batch)

    trainer.step = fill_and_free  # type: ignore[method-assign]
    caplog.clear()
    with caplog.at_level(logging.INFO, "stylize"):
        fit(trainer)
    told = [message.split(":")[0] for message in caplog.messages if "goes on" in message]
    assert sorted(told) == ["TensorBoard's events", "metrics.jsonl", "the checkpoint", "the model", "the samples"]
    assert (
        f"the checkpoint: {trainer.run_dir}/checkpoints/step-00000004.pt: cannot be written (No space left on device); "
        "the run goes on with the checkpoint of step 2"
    ) in caplog.messages
    assert "the checkpoint: can be written again" in caplog.messages
    assert metrics(trainer.run_dir) == metrics(tmp_path / "whole")
    assert scalars(trainer.run_dir) == scalars(tmp_path / "whole")
    assert list(trainer.run_dir.rglob("*.part")) == []


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from stylize.cli import main
main()
"""


def test_files_that_the_system_cuts_short_never_get_their_names(tmp_path: Path) -> None:
    write_config(tmp_path, {"train.steps": 4})
    command = [sys.executable, "-c", FULL, "100000", "train", "--config", "a.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    run = tmp_path / "runs" / "tiny"
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "stylize: runs/tiny: no model could be written; make room, and train some more with --resume"
    )
    assert done.stderr.count("the checkpoint: ") == 1
    assert list((run / "checkpoints").iterdir()) == []
    assert not (run / "model.safetensors").exists()
    assert [line["step"] for line in metrics(run)] == [1, 2, 2, 3, 4, 4]


# The clock


def test_a_clock_that_is_set_back_changes_neither_rates_nor_the_order_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = EventFile(tmp_path)
    first.scalar("a", 1.0, 1)
    first.flush()
    first.close()
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    second = EventFile(tmp_path, first_step=1)
    second.scalar("a", 2.0, 2)
    second.flush()
    second.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [len(list(read_events(tmp_path / name))) for name in names] == [2, 3]
    assert list(scalars(tmp_path).values()) == [1.0, 2.0]
    with Monitor(tmp_path, steps=4) as monitor:
        monitor.log_step(1, {"content": 1.0, "style": 1.0})
        monkeypatch.setattr(time, "time", lambda: -1e9)
        monitor.log_step(2, {"content": 1.0, "style": 1.0})
    rates = [json.loads(line)["images_per_s"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(rate > 0 for rate in rates)


def test_events_that_an_older_version_named_by_the_clock_come_first(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}1700000000.host.123.0").touch()
    EventFile(tmp_path, 0).close()
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == f"{PREFIX}1700000001.stylize"


# Decoding processes and photographs


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs worker processes that are forked")
def test_a_decoding_process_that_is_killed_is_replaced_and_no_batch_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = list(build(tmp_path).batches.from_step(0, 12))
    trainer = build(tmp_path, {"content.workers": FEW_WORKERS})
    seen = []
    for batch in trainer.batches.from_step(0, 12):
        seen.append(batch.clone())
        if len(seen) == 3:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)
            time.sleep(0.3)  # an error would come here, in the middle of a step
    assert torch.equal(torch.stack(seen), torch.stack(alone))
    (message,) = caplog.messages
    assert message.startswith("a decoding process died (killed by SIGKILL); started again at step ")


def test_decoding_processes_that_always_die_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path, {"content.workers": 1})
    monkeypatch.setattr(
        type(trainer.batches.dataset), "__getitem__", lambda self, i: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(StylizeError) as caught:
        next(trainer.batches.from_step(4, 8))
    assert str(caught.value).startswith("step 5: decoding processes failed 3 times in a row (died (killed by SIGKILL)")
    assert str(caught.value).endswith("); give them memory, or set content.workers to 0")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 100)], ids=["removed", "truncated"])
def test_photographs_that_go_while_the_run_reads_them_are_told(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    trainer = build(tmp_path, {"train.steps": 40})
    batches = trainer.batches.from_step(0, 40)
    next(batches)
    for path in trainer.batches.dataset.files[:2]:
        damage(path)
    with pytest.raises(StylizeError, match=r"of 6 photographs cannot be read: .*/photos/\d.jpg: ") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
