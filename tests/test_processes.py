"""Several processes train one generator as one process would."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_runs import write_config

from stylize.build import build_run
from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.models.file import load_model
from stylize.system import distributed
from stylize.training.monitor import Monitor

STEPS = 20
LONG_S = 240


def torchrun(*arguments: object, restarts: int = 0) -> list[str]:
    """The command that trains in two processes on the CPU."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"--max_restarts={restarts}"]
    return [sys.executable, *launcher, "-m", "stylize", "train", "--device=cpu", *map(str, arguments)]


def environment() -> dict[str, str]:
    root = Path(__file__).parent.parent
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def in_two(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun(*arguments), env=environment(), capture_output=True, text=True, timeout=LONG_S, check=False
    )


def script_in_two(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes on the CPU."""
    path = folder / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(path)]
    return subprocess.run(
        [*command, *arguments], env=environment(), capture_output=True, text=True, timeout=LONG_S, check=False
    )


def in_one(config_path: Path, run_dir: Path) -> None:
    run = build_run(load_config(config_path), torch.device("cpu"), run_dir)
    run_dir.mkdir()
    with Monitor(run_dir, steps=STEPS) as monitor:
        run.trainer.fit(monitor)


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_close(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """The same records, their losses to 1e-4, and so the first gradient; those that follow magnify rounding errors."""
    assert [(r["step"], r["kind"]) for r in one] == [(r["step"], r["kind"]) for r in other]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in [name for name in a if name.split("/")[0] in ("total", "style", "content")]:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), (a["step"], name)
    assert one[0]["gradient_norm"] == pytest.approx(other[0]["gradient_norm"], rel=1e-3)


KINDS: Mapping[str, dict[str, Any]] = {
    "johnson, batch": {"generator.norm": "batch"},
    "johnson, batch_instance": {"generator.norm": "batch_instance"},
    "johnson, three styles": {
        "style": None,
        "styles": [{"name": name, "image": "style.png", "size": 40 + 4 * i} for i, name in enumerate("abc")],
    },
    # Larger crops: instance norm of the few pixels of the smallest scale magnifies rounding errors.
    "texture_network, instance": {"generator.name": "texture_network", "content.crop": 64, "content.resize": 80},
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_losses_of_one(tmp_path: Path, kind: str) -> None:
    # A learning rate that is low, and rises slowly: at a high one rounding errors grow tenfold every other step in a
    # network so small, in one process with another number of threads just as well.
    schedule = {"name": "cosine", "warmup_steps": 100}
    changes = {"train.steps": STEPS, "train.batch_size": 4, "train.validate_every": 10, "train.schedule": schedule}
    rates = {"train.learning_rate": 1e-4, "train.norm_rate": 1.0}
    config = write_config(tmp_path, {**changes, **KINDS[kind], "content.validation": 3, **rates})
    in_one(config, tmp_path / "one")
    result = in_two("--config", config, "--output", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("2 processes, 2 photographs each a step") == 1
    assert result.stdout.count("model: ") == 1
    assert_close(records(tmp_path / "one"), records(tmp_path / "two"))
    one, two = (load_model(tmp_path / name / "model.safetensors")[0].state_dict() for name in ("one", "two"))
    running = [name for name in one if "running" in name]  # of the whole batch, not of a process's part
    assert bool(running) == ("batch" in kind)
    for name in running:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


def test_two_processes_take_the_same_suggested_settings(tmp_path: Path) -> None:
    """Each times its own steps: the number that follows from them must be one."""
    write_config(tmp_path)
    short = ("--set", "train.validate_every=60", "--set", "content.crop=32", "--set", "content.resize=40")
    result = in_two("--style", tmp_path / "style.png", "--minutes", "0.01", *short, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("60 steps of 4 crops of 192 px") == 1, result.stderr
    assert result.stderr.count("2 processes, 2 photographs each a step") == 1
    assert records(tmp_path / "run")[-1]["step"] == 60
    assert load_model(tmp_path / "run" / "model.safetensors")[1].step == 60


THREADS_AFTER_TRAINING = """
import sys
from pathlib import Path
from stylize.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print("threads:", [p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm") if "gloo" in p.read_text()])
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds threads in /proc, which is Linux's")
def test_no_thread_that_exchanges_outlives_the_training(tmp_path: Path) -> None:
    # At the interpreter's end it could abort the process.
    config = write_config(tmp_path, {"train.batch_size": 4})
    script = tmp_path / "train.py"
    script.write_text(THREADS_AFTER_TRAINING)
    command = torchrun("--config", config, "--output", tmp_path / "run")
    place = command.index("-m", 3)
    command[place : place + 2] = [str(script)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LONG_S, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("threads: []") == 2


def test_of_two_processes_the_first_builds_the_cache(tmp_path: Path) -> None:
    changes = {"train.steps": 3, "train.batch_size": 4, "train.validate_every": 3, "content.workers": 1}
    config = write_config(tmp_path, changes)
    runs = [in_two("--config", config, "--output", tmp_path / "decoded")]
    runs += [
        in_two("--config", config, "--output", tmp_path / name, "--set", f"content.cache={tmp_path}/cache")
        for name in ("built", "found")
    ]
    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    assert [run.stderr.count("content.cache: 8 photographs, about ") for run in runs] == [0, 1, 0]
    assert [run.stderr.count("content.cache: 8 photographs in ") for run in runs] == [0, 0, 1]
    decoded, built, found = (records(tmp_path / name) for name in ("decoded", "built", "found"))
    assert_close(decoded, built)
    assert_close(decoded, found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the process to kill in /proc, which is Linux's")
def test_a_killed_process_is_started_anew_and_goes_on_by_itself(tmp_path: Path) -> None:
    changes = {"train.steps": 60, "train.batch_size": 2, "train.log_every": 1, "train.checkpoint_every": 5}
    config, run_dir = write_config(tmp_path, {**changes, "train.validate_every": 60}), tmp_path / "run"
    command = torchrun("--config", config, "--output", run_dir, restarts=2)
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as launcher:
        give_up_s = time.monotonic() + LONG_S
        while not list((run_dir / "checkpoints").glob("*.pt")):
            assert launcher.poll() is None and time.monotonic() < give_up_s
            time.sleep(0.05)
        os.kill(second_of(launcher.pid), signal.SIGKILL)
        assert launcher.stderr is not None
        errors = launcher.stderr.read()
    assert launcher.returncode == 0, errors
    assert "resuming at step " in errors
    assert [record["step"] for record in records(run_dir) if record["kind"] == "train"] == list(range(1, 61))


def second_of(launcher: int) -> int:
    """The process id of rank 1."""
    children = [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
    ranks = {}
    for pid in children:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {variable: pid for variable in variables if variable.startswith(b"RANK=")}
    return ranks[b"RANK=1"]


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    result = in_two("--config", write_config(tmp_path, {"train.batch_size": 3}), "--output", tmp_path / "run")
    assert result.returncode == 1
    assert (
        "stylize: train.batch_size: got 3, must be a multiple of the number of processes, 2: it is that of all together"
        in result.stderr
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "gpus", "processes"),
    [({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 3, 4), ({"LOCAL_RANK": "2"}, 2, 3)],
)
def test_more_processes_than_gpus_are_refused_before_they_meet(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], gpus: int, processes: int
) -> None:
    monkeypatch.setattr("stylize.system.distributed.choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    meeting = {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {**variables, **meeting}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StylizeError) as caught, distributed.joined("cuda"):
        pass
    assert str(caught.value) == (
        f"torchrun: got {processes} processes on this machine, must be at most the number of its GPUs, {gpus}: "
        "each process takes one"
    )


COMPILED = """
import sys, torch
from stylize.generators import GeneratorConfig, build_generator
from stylize.system import distributed

with distributed.joined("cpu"):
    torch.manual_seed(0)
    generator = build_generator(GeneratorConfig(name="johnson_lite", width=4, norm=sys.argv[1])).train()
    network = distributed.wrap_ddp(generator)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(distributed.rank()))
    running = {name: value.clone() for name, value in generator.named_buffers()}

    def total(images):
        return network(images).square().mean()

    found = []
    for function in (total, torch.compile(total, backend="aot_eager")):
        generator.load_state_dict(running, strict=False)
        generator.zero_grad()
        value = function(images)
        value.backward()
        found.append([value.detach(), *(p.grad.clone() for p in generator.parameters()),
                      *(buffer.clone() for buffer in generator.buffers())])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    sys.stdout.write(f"{len(found[0])} equal\\n")
"""


@pytest.mark.parametrize("norm", ["batch", "batch_instance"])
def test_a_compiled_step_of_two_processes_is_that_of_eager_ones(tmp_path: Path, norm: str) -> None:
    result = script_in_two(tmp_path, COMPILED, norm)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" equal") == 2


STOPPED = """
import sys
from pathlib import Path
import torch.distributed as dist
from stylize.build import build_run
from stylize.config import load_config
from stylize.system import distributed
from stylize.system.compute import Compute
from stylize.training.monitor import Monitor
from stylize.training.trainer import Interrupted

folder, late = Path(sys.argv[1]), sys.argv[2] == "late"
if late:
    Compute.checks_late = property(lambda self: True)
with distributed.joined("cpu") as device:
    run_dir = folder / f"run {distributed.rank()}"
    run_dir.mkdir()
    trainer = build_run(load_config(folder / "a.yaml"), device, run_dir).trainer
    trainer.batches.prepare()
    exchanges = []
    for name in ("all_reduce", "all_gather_object", "broadcast_object_list"):
        def counted(*arguments, called=getattr(dist, name), name=name, **options):
            exchanges.append(name)
            return called(*arguments, **options)
        setattr(dist, name, counted)
    step = trainer.step

    def step_and_ask(batch):
        if distributed.rank() == 1 and trainer.progress.step == 1:
            trainer.stop_requested = True
        exchanges.append("step")
        return step(batch)

    trainer.step = step_and_ask
    try:
        with Monitor(run_dir, steps=9, silent=True) as monitor:
            trainer.fit(monitor)
    except Interrupted:
        sys.stdout.write(f"stopped at {trainer.progress.step} after {' '.join(exchanges)}\\n")
"""


@pytest.mark.parametrize(("when", "step"), [("at once", 2), ("late", 4)])
def test_a_signal_to_one_process_stops_all_and_costs_no_exchange_of_its_own(
    tmp_path: Path, when: str, step: int
) -> None:
    changes = {"train.steps": 9, "train.validate_every": 9, "train.checkpoint_every": 9, "train.log_every": 4}
    write_config(tmp_path, changes)
    result = script_in_two(tmp_path, STOPPED, str(tmp_path), when)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"stopped at {step} after {' '.join(['step', 'all_reduce'] * step)}\n") == 2


def test_one_process_is_given_back_what_it_gives() -> None:
    assert distributed.count() == 1
    assert distributed.is_first()
    assert distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.gather_interleaved([1, 2]) == [1, 2]
    assert distributed.broadcast("word") == "word"
    terms = {"total": torch.tensor(2.0, requires_grad=True)}
    assert distributed.average_terms(terms) == {"total": torch.tensor(2.0)}
