"""Cause faults in a tiny training, and print the outcome of each.

python scripts/faults.py [--quick] [--only WORDS]

Every row causes a fault in a run, resumes it to its end, and compares weights, optimizer, `metrics.jsonl` and
TensorBoard's curves bit for bit with an undisturbed run on the CPU. A lost step is one that had to be repeated. Needs
an operating system with fork; filling a disk needs permission to mount a tmpfs. Exits with 1 if a row fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image

from stylize.cli import main as stylize_main
from stylize.system.devices import CPU
from stylize.training.checkpoint import checkpoints, newest_checkpoint
from stylize.training.loader import CropDataset, epoch_order
from stylize.training.monitor import TIMES
from stylize.training.tensorboard import PREFIX, read_events
from stylize.training.trainer import Trainer

STEPS, VALIDATE_EVERY, CHECKPOINT_EVERY = 18, 6, 4
PHOTOGRAPHS = 40
Hook = Callable[[], None]


class Failed(Exception):
    """A run did not survive a fault as it must; the message says why."""


class Row(NamedTuple):
    """A fault, the number of trials, and the function that causes it and returns the outcome and the lost steps."""

    fault: str
    times: int
    strike: Callable[[Path], tuple[str, int]]


def main() -> int:
    """Run all rows and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="every fault once, kill -9 six times")
    parser.add_argument("--only", default="", help="only the faults whose names match this regular expression")
    options = parser.parse_args()
    chosen = [row for row in rows(1 if options.quick else 5) if re.search(options.only, row.fault)]
    torch.set_num_threads(1)
    memory = Path("/dev/shm")  # if it exists: the faults are those of processes, not power cuts
    folder = Path(tempfile.mkdtemp(prefix="stylize-faults-", dir=memory if memory.is_dir() else None))
    try:
        prepare(folder)
        print(f"{'fault':<44} {'times':>5}  {'lost steps':>10}  outcome", flush=True)
        return max([report(row, folder) for row in chosen], default=0)
    finally:
        shutil.rmtree(folder)


def report(row: Row, folder: Path) -> int:
    """Try a row and print its line; return 1 if it fails."""
    outcomes: dict[str, None] = {}
    lost, failed = [], 0
    for _ in range(row.times):
        try:
            outcome, steps = row.strike(folder)
            lost.append(steps)
        except Failed as error:
            outcome, failed = f"FAILED: {error}", 1
        outcomes[outcome] = None
        shutil.rmtree(folder / "run", ignore_errors=True)
    shown = f"{min(lost)} to {max(lost)}" if lost else "-"
    print(f"{row.fault:<44} {row.times:>5}  {shown:>10}  {'; '.join(outcomes)}", flush=True)
    return failed


def rows(times: int) -> list[Row]:
    """Return all faults."""
    return [
        Row("kill -9 at a random moment", 6 * times, kill_anywhere),
        Row("kill -9 during a checkpoint", times, lambda f: hooked(f, in_checkpoint(signal.SIGKILL))),
        Row("kill -9 during a validation", times, lambda f: hooked(f, in_validation(signal.SIGKILL))),
        Row("SIGTERM at a step", times, lambda f: hooked(f, in_step(signal.SIGTERM), 130)),
        Row("SIGINT at a step", times, lambda f: hooked(f, in_step(signal.SIGINT), 130)),
        Row("SIGTERM during a checkpoint", times, lambda f: hooked(f, in_checkpoint(signal.SIGTERM), 130)),
        Row("SIGINT during a checkpoint", times, lambda f: hooked(f, in_checkpoint(signal.SIGINT), 130)),
        Row("SIGTERM during a validation", times, lambda f: hooked(f, in_validation(signal.SIGTERM), 130)),
        Row("SIGINT during a validation", times, lambda f: hooked(f, in_validation(signal.SIGINT), 130)),
        Row("SIGINT twice in a row", times, lambda f: hooked(f, in_step(signal.SIGINT, 2), 130)),
        Row("SIGTERM twice during a checkpoint", times, lambda f: hooked(f, in_checkpoint(signal.SIGTERM, 2), 130)),
        Row("newest checkpoint cut short", times, lambda f: damaged(f, lambda path: os.truncate(path, 5000))),
        Row("newest checkpoint with a flipped bit", times, lambda f: damaged(f, flip_a_bit)),
        Row("disk full while everything is written", times, disk_full),
        Row("disk full while a picture is written", times, disk_full_of_pictures),
        Row("decoding process killed", times, worker_killed),
        Row("one photograph removed while running", times, lambda f: photographs_gone(f, 1, Path.unlink)),
        Row("one photograph truncated while running", times, lambda f: photographs_gone(f, 1, truncate)),
        Row("half of the photographs removed", times, lambda f: photographs_gone(f, 20, Path.unlink)),
        Row("a loss that is not finite", times, lambda f: not_finite(f, 1)),
        Row("ten losses in a row that are not finite", times, lambda f: not_finite(f, 99)),
        Row("clock set back by a year", times, clock_set_back),
        Row("second process on the run folder", times, second_process),
    ]


# The training


def prepare(folder: Path) -> None:
    """Write pictures and config, and train the undisturbed run."""
    draw = random.Random(0)
    (folder / "photos").mkdir()
    for path in [folder / "style.png", *(folder / "photos" / f"{i:02d}.png" for i in range(PHOTOGRAPHS))]:
        Image.frombytes("RGB", (8, 6), draw.randbytes(144)).resize((48, 40)).save(path)
    config = {
        "name": "tiny",
        "style": {"image": "style.png", "size": 48},
        "content": {"path": "photos", "validation": 2, "resize": 40, "crop": 32, "workers": 0},
        "generator": {"width": 4, "norm": "batch_instance"},
        "loss": {"vgg": "random", "content_layers": {"relu2_1": 1.0}, "style_layers": {"relu1_1": 1.0}},
        "train": {
            "steps": STEPS, "batch_size": 2, "precision": "fp32", "compile": "never",
            "checkpoint_every": CHECKPOINT_EVERY, "validate_every": VALIDATE_EVERY, "log_every": 1,
        },
    }  # fmt: skip
    (folder / "a.yaml").write_text(yaml.safe_dump(config))
    start_s = time.monotonic()
    status, log = train(folder, "reference")
    (folder / "seconds.txt").write_text(str(time.monotonic() - start_s))
    if status != 0:
        raise SystemExit(f"the training itself does not work: {log}")


def start(folder: Path, run: str, *options: str, hook: Hook | None = None) -> tuple[int, Path]:
    """Start a training in a new process, with a hook that causes a fault; return the process id and the log."""
    config, output = str(folder / "a.yaml"), str(folder / run)
    return fork(folder, ["train", "--config", config, "--output", output, "--device", "cpu", *options], hook)


def fork(folder: Path, arguments: list[str], hook: Hook | None = None) -> tuple[int, Path]:
    """Start a command in a new process; return the process id and the log."""
    log = folder / "log.txt"
    pid = os.fork()
    if pid:
        return pid, log
    with suppress(BaseException):
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.argv = ["stylize", *arguments]
        status: Any = 99
        if hook is not None:
            hook()
        try:
            stylize_main()
        except SystemExit as error:
            status = error.code
        sys.stderr.flush()
        os._exit(status)
    os._exit(98)


def ended(pid: int) -> int:
    """Wait for a process; return its exit status, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(folder: Path, run: str, *options: str, hook: Hook | None = None) -> tuple[int, str]:
    """Train from start to end; return the exit status and the output."""
    pid, log = start(folder, run, *options, hook=hook)
    return ended(pid), log.read_text()


def finish(folder: Path) -> int:
    """Resume the run to its end, or restart it if there is no checkpoint; return the lost steps."""
    before = last_step(folder / "run")
    saved = checkpoints(folder / "run" / "checkpoints")
    how = "--resume" if saved else "--overwrite" if (folder / "run" / "config.yaml").exists() else "--device=cpu"
    status, log = train(folder, "run", how)
    if status != 0:
        raise Failed(f"{how} ended with {status}: {log.splitlines()[-1:]}")
    resumed = [int(line.split()[-1]) for line in log.splitlines() if line.startswith("resuming at step ")]
    return before - (resumed[0] if resumed else 0)


def last_step(run: Path) -> int:
    """Return the last recorded step."""
    return max((line["step"] for line in metrics(run)), default=0)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return `metrics.jsonl` without the rates; a truncated line is an error if the run has ended."""
    found = []
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):
            found.append({key: value for key, value in json.loads(line).items() if key not in TIMES})
    return found


def curves(run: Path) -> list[tuple[str, int, bytes]]:
    """Return TensorBoard's values from the files, one for every tag and step."""
    events = [event for path in sorted(run.glob(f"{PREFIX}*")) for event in read_events(path)]
    values = [(value.tag, event.step, value.SerializeToString()) for event in events for value in event.summary.value]
    return sorted(value for value in values if value[1] > 0 and value[0].split("/")[-1] not in TIMES)


def same(one: Any, other: Any) -> bool:
    """Return whether two trees of values are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def compare(folder: Path) -> str:
    """Compare the run with the undisturbed one.

    Raises:
        Failed: The runs differ, or files were left behind.
    """
    run, reference = folder / "run", folder / "reference"
    states = [newest_checkpoint(path / "checkpoints", CPU) for path in (run, reference)]
    if states[0] is None or states[1] is None or not same(states[0][1], states[1][1]):
        raise Failed("another state than that of the run never stopped")
    if metrics(run) != metrics(reference):
        raise Failed("other metrics.jsonl than that of the run never stopped")
    if curves(run) != curves(reference):
        raise Failed("other TensorBoard curves than those of the run never stopped")
    if left := [path.name for path in run.rglob("*.part")]:
        raise Failed(f"left behind: {left}")
    return "equal to the run never stopped"


# What strikes


def in_step(number: int, count: int = 1) -> Hook:
    """Return a hook that sends signals in the middle of a step."""
    return _around(Trainer, "step", number, count, random.randrange(2, STEPS))


def in_validation(number: int, count: int = 1) -> Hook:
    """Return a hook that sends signals at the start of a validation."""
    return _around(Trainer, "validate", number, count, random.randrange(1, STEPS // VALIDATE_EVERY))


def in_checkpoint(number: int, count: int = 1) -> Hook:
    """Return a hook that sends signals when a checkpoint is written but not yet renamed."""

    def hook() -> None:
        replace, calls = Path.replace, iter(range(99))
        strike_at = random.randrange(0, STEPS // CHECKPOINT_EVERY)

        def struck(self: Path, target: Path) -> Path:
            if "checkpoints" in str(target) and next(calls) == strike_at:
                for _ in range(count):
                    os.kill(os.getpid(), number)
            return replace(self, target)

        Path.replace = struck  # type: ignore[assignment,method-assign]

    return hook


def _around(owner: type, name: str, number: int, count: int, strike_at: int) -> Hook:
    def hook() -> None:
        original, calls = getattr(owner, name), iter(range(1, 999))

        def struck(self: Any, *arguments: Any) -> Any:
            if next(calls) == strike_at:
                for _ in range(count):
                    os.kill(os.getpid(), number)
            return original(self, *arguments)

        setattr(owner, name, struck)

    return hook


def hooked(folder: Path, hook: Hook, status: int | None = None) -> tuple[str, int]:
    """Run with a hook, then finish the run."""
    got, log = train(folder, "run", hook=hook)
    if "Traceback" in log or (status is not None and got not in (status, 0)):
        raise Failed(f"ended with {got}: {log.splitlines()[-1:]}")
    lost = finish(folder)
    return compare(folder), lost


def kill_anywhere(folder: Path) -> tuple[str, int]:
    """Kill a run, and the run that resumes it."""
    lost = 0
    for options in ([], ["--resume"]):
        if options and not checkpoints(folder / "run" / "checkpoints"):
            break
        pid, _ = start(folder, "run", *options)
        time.sleep(random.uniform(0, float((folder / "seconds.txt").read_text())))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        saved = newest_checkpoint(folder / "run" / "checkpoints", CPU)
        lost = max(lost, last_step(folder / "run") - (saved[1]["progress"]["step"] if saved else 0))
    finish(folder)
    return compare(folder), lost


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def damaged(folder: Path, damage: Callable[[Path], object]) -> tuple[str, int]:
    """Damage the newest checkpoint of a stopped run."""
    train(folder, "run", hook=_around(Trainer, "step", signal.SIGTERM, 1, 14))
    damage(checkpoints(folder / "run" / "checkpoints")[-1])
    lost = finish(folder)
    if "passed over" not in (folder / "log.txt").read_text():
        raise Failed("the damaged checkpoint was not told")
    return compare(folder), lost


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[bool]:
    """Mount a tmpfs of this size; yield False if that is not possible."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", path], check=True)


def disk_full(folder: Path) -> tuple[str, int]:
    """Fill the disk of the run from step 6 to 13, then train to the end."""

    def hook() -> None:
        step, filler = Trainer.step, folder / "run" / "filler"

        def filling(self: Trainer, batch: torch.Tensor) -> Any:
            if self.progress.step == 5:
                with suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(512))
            if self.progress.step == 13:
                filler.unlink()
            return step(self, batch)

        Trainer.step = filling  # type: ignore[method-assign]

    with small_disk(folder / "run", "8m") as mounted:
        if not mounted:
            return "not tried: no tmpfs can be mounted", 0
        status, log = train(folder, "run", hook=hook)
        told = [line.split(":")[0] for line in log.splitlines() if "the run goes on" in line]
        expected = {"the checkpoint", "the model", "the samples"}  # short records may fit into the last page
        if status != 0 or "Traceback" in log or len(told) != len(set(told)) or not expected <= set(told):
            raise Failed(f"ended with {status}, told {told}: {log.splitlines()[-1:]}")
        return f"went on, told each once, {compare_but_for_the_best(folder)}", 0


def disk_full_of_pictures(folder: Path) -> tuple[str, int]:
    """Overwrite an older picture on a disk that is too small."""
    photograph, model = min((folder / "photos").iterdir()), folder / "reference" / "model.safetensors"
    with small_disk(folder / "run", "64k") as mounted:
        if not mounted:
            return "not tried: no tmpfs can be mounted", 0
        picture = folder / "run" / "painted.png"
        picture.write_bytes(b"older picture")
        with suppress(OSError), (folder / "run" / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        command = [
            "apply",
            str(photograph),
            "--model",
            str(model),
            "-o",
            str(picture),
            "--overwrite",
            "--device",
            "cpu",
        ]
        pid, log = fork(folder, command)
        status, lines = ended(pid), log.read_text().splitlines()
        left = sorted(path.name for path in (folder / "run").iterdir())
        if status != 1 or not lines or "No space left" not in lines[-1] or "Traceback" in log.read_text():
            raise Failed(f"ended with {status}: {lines[-1:]}")
        if left != ["filler", "painted.png"] or picture.read_bytes() != b"older picture":
            raise Failed(f"left behind: {left}")
    return "one line, the older picture stays, nothing half written", 0


def compare_but_for_the_best(folder: Path) -> str:
    """Compare a run whose best model could not be written: it keeps another one, all else must be equal."""
    found, reference = (newest_checkpoint(folder / name / "checkpoints", CPU) for name in ("run", "reference"))
    if found is None or reference is None:
        raise Failed("no checkpoint")
    for part in ("generator", "optimizer", "random"):
        if not same(found[1][part], reference[1][part]):
            raise Failed(f"other {part} than the run never stopped")
    if metrics(folder / "run") != metrics(folder / "reference") or curves(folder / "run") != curves(
        folder / "reference"
    ):
        raise Failed("records are missing or doubled")
    return "weights and records equal"


def worker_killed(folder: Path) -> tuple[str, int]:
    """Kill the decoding processes at a step."""

    def hook() -> None:
        step = Trainer.step

        def killing(self: Trainer, batch: torch.Tensor) -> Any:
            if self.progress.step == 9:
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGKILL)
            return step(self, batch)

        Trainer.step = killing  # type: ignore[method-assign]

    status, log = train(folder, "run", "--set", "content.workers=2", hook=hook)
    if status != 0 or "a decoding process died" not in log:
        raise Failed(f"ended with {status}: {log.splitlines()[-1:]}")
    return compare(folder), 0


def truncate(path: Path) -> None:
    os.truncate(path, 40)


def photographs_gone(folder: Path, count: int, damage: Callable[[Path], object]) -> tuple[str, int]:
    """Damage photographs at step 3: a few are skipped, many stop the run with one line."""
    photographs = sorted((folder / "photos").iterdir())
    kept = {path: path.read_bytes() for path in photographs}

    def hook() -> None:
        step = Trainer.step

        def damaging(self: Trainer, batch: torch.Tensor) -> Any:
            if self.progress.step == 3:
                for path in _coming(self.batches.dataset, 10, count):
                    damage(path)
            return step(self, batch)

        Trainer.step = damaging  # type: ignore[method-assign]

    status, log = train(folder, "run", hook=hook)
    for path, content in kept.items():
        path.write_bytes(content)
    last = log.splitlines()[-1]
    if count == 1 and status == 0 and log.count("skipped: ") == 1:
        return "told, another taken instead", 0
    if count > 1 and status == 1 and "photographs cannot be read" in last and "Traceback" not in log:
        lost = finish(folder)
        return f"stopped with one line; once they are back {compare(folder)}", lost
    raise Failed(f"ended with {status}: {last}")


def _coming(dataset: CropDataset, position: int, count: int) -> list[Path]:
    """Return the photographs of `count` positions."""
    order = epoch_order(dataset.seed, 0, len(dataset.files))
    return [dataset.files[index] for index in order[position : position + count]]


def not_finite(folder: Path, count: int) -> tuple[str, int]:
    """Make the losses from step 8 on NaN."""

    def hook() -> None:
        forward = Trainer._forward

        def poisoned(self: Trainer, *crops: Any) -> dict[str, torch.Tensor]:
            bad = 7 <= self.progress.step < 7 + count
            return {name: term * (float("nan") if bad else 1) for name, term in forward(self, *crops).items()}

        Trainer._forward = poisoned  # type: ignore[assignment, method-assign]

    status, log = train(folder, "run", hook=hook)
    skipped = [line for line in metrics(folder / "run") if line["kind"] == "skipped"]
    if count == 1 and status == 0 and len(skipped) == 1:
        return "rolled back, batch skipped", 1
    if count > 1 and status == 1 and len(skipped) == 10 and "10 steps in a row" in log.splitlines()[-1]:
        return "rate halved, stopped with one line", 10
    raise Failed(f"ended with {status} after {len(skipped)} skipped: {log.splitlines()[-1:]}")


def clock_set_back(folder: Path) -> tuple[str, int]:
    """Stop a run, and resume it with the clock set back a year."""
    train(folder, "run", hook=_around(Trainer, "step", signal.SIGTERM, 1, 11))
    now = time.time
    status, log = train(folder, "run", "--resume", hook=lambda: setattr(time, "time", lambda: now() - 365 * 86400))
    if status != 0:
        raise Failed(f"ended with {status}: {log.splitlines()[-1:]}")
    return compare(folder), 0


def second_process(folder: Path) -> tuple[str, int]:
    """Start another training with --overwrite and --resume on the folder of a running one."""
    go_on = folder / "go-on"
    go_on.unlink(missing_ok=True)

    def hook() -> None:
        step = Trainer.step

        def waiting(self: Trainer, batch: torch.Tensor) -> Any:
            while self.progress.step == STEPS - 2 and not go_on.exists():
                time.sleep(0.05)
            return step(self, batch)

        Trainer.step = waiting  # type: ignore[method-assign]

    pid, _ = start(folder, "run", hook=hook)
    timer = threading.Timer(120, os.kill, (pid, signal.SIGKILL))
    timer.start()
    while not checkpoints(folder / "run" / "checkpoints"):
        time.sleep(0.05)
    refusals = [train(folder, "run", option) for option in ("--resume", "--overwrite")]
    go_on.touch()
    status = ended(pid)
    timer.cancel()
    for refused, log in refusals:
        if refused != 1 or "in use: another process" not in log.splitlines()[-1]:
            raise Failed(f"the second process ended with {refused}: {log.splitlines()[-1:]}")
    if status != 0:
        raise Failed(f"the first process ended with {status}")
    return f"refused with one line; the first is {compare(folder)}", 0


if __name__ == "__main__":
    sys.exit(main())
