"""The trainings of a study: plan them, run each once, resume those that were stopped, read their records."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
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
from typing import NamedTuple

import torch
from tqdm import tqdm

from stylize.config import RunConfig, with_changes
from stylize.errors import StylizeError
from stylize.generators import Generator, build_generator
from stylize.norms import NORMS, Norm
from stylize.run import continuation, train
from stylize.system.devices import CPU
from stylize.system.memory import keep_freed_memory
from stylize.training.checkpoint import checkpoint_path, load_checkpoint

logger = logging.getLogger("stylize")

PLACE = "study"  # where the changes of a config come from, for messages
CHECKPOINTS = 10  # of every run whose norm has values worth watching, such as gates: their course is read from them


class Arm(NamedTuple):
    """One of the settings that a study compares.

    Attributes:
        name: Its name in the report.
        changes: Values at dotted keys of the config.
    """

    name: str
    changes: Mapping[str, object]


class StudyRun(NamedTuple):
    """One training.

    Attributes:
        arm: The name of its arm.
        seed: Seed of its weights, crops and order.
        config: Its whole config.
        folder: Its run folder.
    """

    arm: str
    seed: int
    config: RunConfig
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether it was trained to its last step."""
        return checkpoint_path(self.folder / "checkpoints", self.config.train.steps).exists()

    @property
    def command(self) -> str:
        """The shell command that trains it again, alone."""
        return shlex.join(
            ["stylize", "train", "--config", str(self.folder / "config.yaml"), "--output", f"again/{self.folder.name}"]
        )


def plan_runs(base: RunConfig, arms: Sequence[Arm], seeds: Sequence[int], folder: Path) -> list[StudyRun]:
    """The trainings of all arms and seeds. Equal configs have one folder, so studies share trainings.

    Args:
        base: The config that all have in common.
        arms: The settings; where a value is a mapping from seeds, a run takes the value of its seed.
        seeds: Seeds, added to that of the base.
        folder: The parent of the run folders.
    """
    runs = []
    for arm in arms:
        for seed in seeds:
            changes = {key: value[seed] if isinstance(value, dict) else value for key, value in arm.changes.items()}
            config = with_changes(base, {**changes, "seed": base.seed + seed}, PLACE)
            config = with_changes(config, _checkpointing(config), PLACE)
            runs.append(StudyRun(arm.name, seed, config, folder / _folder_name(config)))
    return runs


def _checkpointing(config: RunConfig) -> dict[str, object]:
    watched = NORMS[config.generator.norm].histograms is not Norm.histograms  # such as gates
    every = max(1, config.train.steps // CHECKPOINTS)
    kept = CHECKPOINTS + 1 if watched else 1
    # Networks are compared after equally many steps, so none stops early.
    return {"train.checkpoint_every": every, "train.keep_checkpoints": kept, "train.stop_after": None}


def _folder_name(config: RunConfig) -> str:
    digest = hashlib.sha256(config.to_yaml().encode()).hexdigest()[:10]
    return f"{config.generator.name}-{config.generator.norm}-{digest}"


def train_runs(runs: Sequence[StudyRun], device: str, jobs: int = 1) -> None:
    """Run the trainings that are not done yet.

    Args:
        runs: All trainings; those with the same folder are one.
        device: Name of the device.
        jobs: Number of trainings at a time, each in a process with its share of the cores.

    Raises:
        StylizeError: One fails; the checkpoints of the others are kept.
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
    if jobs == 1:
        for run in runs:
            _train(run, device)
            yield run
        return
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_process, initargs=(threads,))
    with _noted_interrupts() as interrupts, pool:
        futures = {pool.submit(_train, run, device): run for run in runs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            if interrupts:  # they ended the processes, too
                raise KeyboardInterrupt from error
            raise StylizeError(
                "a process that trained has died, maybe for want of memory: ask for the study again, with fewer "
                "--jobs; what was trained is kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Record interrupts within the block: as an exception one may be raised where nobody sees it."""
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a ctrl-c ends it without a traceback; its checkpoints are whole
    tqdm.set_lock(threading.RLock())  # the default is shared by all processes, and stays locked after a ctrl-c
    torch.set_num_threads(threads)
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


def _train(run: StudyRun, device: str) -> None:
    """Train to the last step, from the newest checkpoint if there is one."""
    if run.is_done:
        return
    train(run.config, run.folder, device=device, quiet=True, **continuation(run.folder)._asdict())
    if not run.is_done:
        raise StylizeError(f"{run.folder}: its last checkpoint could not be written; make room and start anew")


def records(run: StudyRun, kind: str) -> list[dict[str, float]]:
    """The records of a run of one kind, `train` or `validation`, by step."""
    found = []
    for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if record.pop("kind", None) == kind:
                found.append(record)
    return found


def generator_of(run: StudyRun, device: torch.device = CPU) -> Generator:
    """The generator after the last step, in `eval()`."""
    return generator_at(run, run.config.train.steps, device)


def generator_at(run: StudyRun, step: int, device: torch.device = CPU) -> Generator:
    """The generator at a checkpoint, in `eval()`.

    Raises:
        StylizeError: There is no such checkpoint.
    """
    state = load_checkpoint(checkpoint_path(run.folder / "checkpoints", step), device)
    generator = build_generator(run.config.generator)
    generator.load_state_dict(state["generator"])
    return generator.to(device).eval()


def checkpoint_steps(run: StudyRun) -> list[int]:
    """The steps of a run's checkpoints, ascending."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (run.folder / "checkpoints").glob("step-*.pt"))
