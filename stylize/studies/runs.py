"""The trainings of a study: plan them, run each once or resume it, and read the results."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from stylize.config import RunConfig, with_changes
from stylize.errors import StylizeError
from stylize.generators import Generator, build_generator
from stylize.models.find import learned_start
from stylize.norms import NORMS, Norm
from stylize.resuming import kept_styles
from stylize.run import continuation, train
from stylize.system.devices import CPU
from stylize.system.memory import keep_freed_memory
from stylize.training.checkpoint import checkpoint_path, load_checkpoint
from stylize.training.start import LEARNED

logger = logging.getLogger("stylize")

PLACE = "study"  # source of the changes to a config, in messages
CHECKPOINTS = 10  # for runs whose norm has histograms, such as gates: a study reads their course from the checkpoints


class Arm(NamedTuple):
    """One of the settings that a study compares.

    Attributes:
        name: Its name in the report.
        changes: Values at dotted keys of the config.
        variables: Environment variables of its trainings.
    """

    name: str
    changes: Mapping[str, object]
    variables: Mapping[str, str] = {}  # immutable


class StudyRun(NamedTuple):
    """One training.

    Attributes:
        arm: Name of its arm.
        seed: Seed of weights, crops and order.
        config: The whole config.
        folder: The run folder.
        variables: Environment variables of its process.
    """

    arm: str
    seed: int
    config: RunConfig
    folder: Path
    variables: Mapping[str, str] = {}  # immutable

    @property
    def is_done(self) -> bool:
        """Whether the run was trained to its last step."""
        return checkpoint_path(self.folder / "checkpoints", self.config.train.steps).exists()

    @property
    def command(self) -> str:
        """The command that repeats this training on its own."""
        environment = ["env", *(f"{name}={value}" for name, value in self.variables.items())] if self.variables else []
        paths = ["--config", str(self.folder / "config.yaml"), "--output", f"again/{self.folder.name}"]
        return shlex.join([*environment, "stylize", "train", *paths])


def plan_runs(base: RunConfig, arms: Sequence[Arm], seeds: Sequence[int], folder: Path) -> list[StudyRun]:
    """Return the trainings of all arms and seeds. Equal configs share a folder, also between studies.

    Args:
        base: Config that all trainings start from.
        arms: Changes to it; if a value maps seeds to values, the run's seed selects one.
        seeds: Added to the base's seed.
        folder: Parent of the run folders.
    """
    runs = []
    for arm in arms:
        for seed in seeds:
            changes = {key: value[seed] if isinstance(value, dict) else value for key, value in arm.changes.items()}
            config = with_changes(base, {**changes, "seed": base.seed + seed}, PLACE)
            config = with_changes(config, _checkpointing(config), PLACE)
            place = folder / _folder_name(config, arm.variables)
            runs.append(StudyRun(arm.name, seed, config, place, arm.variables))
    return runs


def _checkpointing(config: RunConfig) -> dict[str, object]:
    watched = NORMS[config.generator.norm].histograms is not Norm.histograms  # such as gates
    every = max(1, config.train.steps // CHECKPOINTS)
    kept = CHECKPOINTS + 1 if watched else 1
    # Networks are compared after equal numbers of steps, so none stops early.
    return {"train.checkpoint_every": every, "train.keep_checkpoints": kept, "train.stop_after": None}


def _folder_name(config: RunConfig, variables: Mapping[str, str]) -> str:
    key = config.to_yaml() + "".join(f"{name}={value}\n" for name, value in variables.items())
    start = learned_start(config.generator.name, config.generator.width) if config.train.start == LEARNED else None
    if start is not None:  # a later version may have a better one
        key += hashlib.sha256(start.read_bytes()).hexdigest()
    digest = hashlib.sha256(key.encode()).hexdigest()[:10]
    return f"{config.generator.name}-{config.generator.norm}-{digest}"


def train_runs(runs: Sequence[StudyRun], device: str, jobs: int = 1) -> None:
    """Train the runs that are not done yet.

    Args:
        runs: All trainings; those with the same folder are done once.
        device: Name of the device.
        jobs: Number of trainings at a time, each in a process with its share of the cores.

    Raises:
        StylizeError: A training fails; the results of the others are kept.
    """
    waiting = list({run.folder: run for run in runs if not run.is_done}.values())
    logger.info("%d trainings, %d of them still to do", len({run.folder for run in runs}), len(waiting))
    bar = tqdm(total=len(waiting), unit="run", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    with bar:
        for run in _trained(waiting, device, jobs):
            bar.update()
            bar.clear()
            logger.info("%s, seed %d: trained", run.arm, run.seed)
            bar.refresh()


def _trained(runs: Sequence[StudyRun], device: str, jobs: int) -> Iterator[StudyRun]:
    with _noted_interrupts() as interrupts:
        try:
            yield from _one_by_one(runs, device) if jobs == 1 else _together(runs, device, jobs)
        except BrokenProcessPool as error:
            if interrupts:  # the interrupt also ended the processes
                raise KeyboardInterrupt from error
            raise StylizeError(
                "a process that trained has died, maybe for want of memory: ask for the study again, with fewer "
                "--jobs; what was trained is kept"
            ) from error


def _one_by_one(runs: Sequence[StudyRun], device: str) -> Iterator[StudyRun]:
    for run in runs:
        _train_in_environment(run, device)
        yield run


def _together(runs: Sequence[StudyRun], device: str, jobs: int) -> Iterator[StudyRun]:
    with _processes(jobs, max(1, torch.get_num_threads() // jobs)) as pool:
        futures = {pool.submit(_train_in_environment, run, device): run for run in runs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            pool.shutdown(cancel_futures=True)


def _processes(count: int, threads: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(count, mp_context=context, initializer=_begin_process, initargs=(threads,))
    except OSError as error:  # its locks are in shared memory
        raise StylizeError(
            f"--jobs: processes cannot be started ({error.strerror or error}): make room in /dev/shm, in a container "
            "with --shm-size, or take --jobs 1"
        ) from error


def _train_in_environment(run: StudyRun, device: str) -> None:
    """Train in this process, or in a new one if the run has variables, which are read when a process starts."""
    if not run.variables:
        _train(run, device)
        return
    before = dict(os.environ)
    os.environ.update(run.variables)
    try:
        with _processes(1, torch.get_num_threads()) as pool:
            pool.submit(_train, run, device).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Record a ctrl-c within the block, since the exception may be raised where it is swallowed."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, previous)


def _begin_process(threads: int) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a ctrl-c ends it without a traceback; its checkpoints stay intact
    tqdm.set_lock(threading.RLock())  # the default is shared by all processes, and stays locked after a ctrl-c
    torch.set_num_threads(threads)
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


def _end_with_the_parent() -> None:
    """Wait until the study ends, however it does, and end this process: nobody would read what it trains."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # its checkpoints stay intact


def _train(run: StudyRun, device: str) -> None:
    """Train to the last step, from the newest checkpoint if there is one."""
    if run.is_done:
        return
    train(run.config, run.folder, device=device, quiet=True, **continuation(run.folder)._asdict())
    if not run.is_done:
        raise StylizeError(f"{run.folder}: its last checkpoint could not be written; make room and start anew")


def records(run: StudyRun, kind: str) -> list[dict[str, Any]]:
    """Return a run's records of one kind, such as `train` or `validation`, by step."""
    found = []
    for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if record.pop("kind", None) == kind:
                found.append(record)
    return found


def generator_of(run: StudyRun, device: torch.device = CPU) -> Generator:
    """Return the network after the last step, in `eval()`."""
    return generator_at(run, run.config.train.steps, device)


def generator_at(run: StudyRun, step: int, device: torch.device = CPU) -> Generator:
    """Return the network at a checkpoint, in `eval()`.

    Raises:
        StylizeError: There is no such checkpoint.
    """
    state = load_checkpoint(checkpoint_path(run.folder / "checkpoints", step), device)
    generator = build_generator(run.config.generator, len(kept_styles(run.folder)) + len(run.config.all_styles()))
    generator.load_state_dict(state["generator"])
    return generator.to(device).eval()


def checkpoint_steps(run: StudyRun) -> list[int]:
    """Return the steps of a run's checkpoints, ascending."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (run.folder / "checkpoints").glob("step-*.pt"))
