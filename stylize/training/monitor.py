"""Records of a training: a progress bar, `metrics.jsonl`, TensorBoard, sample sheets."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from torch import Tensor
from tqdm import tqdm

from stylize.errors import StylizeError
from stylize.losses.summary import held_out_text, progress_text
from stylize.pictures.picture import Picture
from stylize.pictures.sheets import captioned, contact_sheet
from stylize.pictures.writing import write_picture
from stylize.system.files import RecordFile, write_atomically
from stylize.system.transfer import HostWaits, Waits
from stylize.training.held_out import Measured
from stylize.training.tensorboard import EventFile

logger = logging.getLogger("stylize")

T = TypeVar("T")
Arguments = ParamSpec("Arguments")

# Scalars that describe the machine, not the run: they differ between equal runs.
TIMES = frozenset(("images_per_s", "data_wait_share"))
# A training that waits for photographs for so large a share of so long a time says so, once.
MUCH_WAITING = 0.25
WHILE_S = 60.0


def _unless_silent(
    record: Callable[Concatenate[Monitor, Arguments], None],
) -> Callable[Concatenate[Monitor, Arguments], None]:
    """Let a method do nothing if the monitor is silent."""

    @wraps(record)
    def recorded(monitor: Monitor, /, *args: Arguments.args, **options: Arguments.kwargs) -> None:
        if not monitor.silent:
            record(monitor, *args, **options)

    return recorded


class Monitor:
    """Records a run.

    A record that cannot be written is logged once and does not stop the run; it is kept until there is space again.

    Args:
        run_dir: The run folder, which exists.
        steps: The last step, for the bar.
        first_step: Steps done before (a resumed run); later records of an interrupted run are dropped.
        images_per_step: The batch size, for images/s.
        bar: Whether to show a progress bar; it appears only if stderr is a terminal.
        silent: Write, log and show nothing; for all processes but the first.
        waits: Times the waiting for batches; None: the host's.
        remedy: What to do against much waiting, for the message.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        steps: int,
        first_step: int = 0,
        images_per_step: int = 1,
        bar: Literal["shown", "hidden"] = "shown",
        silent: bool = False,
        waits: Waits | None = None,
        remedy: str = "",
    ) -> None:
        self.run_dir = run_dir
        self.images_per_step = images_per_step
        self.silent = silent
        self._failing: set[str] = set()
        self._open_files(first_step)
        self.bar = _SteadyBar(
            total=steps,
            initial=first_step,
            unit="step",
            disable=silent or bar == "hidden" or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._last = (first_step, time.perf_counter())
        self._since_record = _StepTimes()
        self._in_all = _StepTimes()
        self._lately = _StepTimes()
        self._tells_waiting = True
        self._remedy = remedy
        self._waits = HostWaits() if waits is None or silent else waits
        self._batch_came_s = self._last[1]

    @_unless_silent
    def _open_files(self, first_step: int) -> None:
        metrics_path = self.run_dir / "metrics.jsonl"
        _drop_lines_after(metrics_path, first_step)
        try:
            self._metrics = RecordFile(metrics_path)
            self.tensorboard = EventFile(self.run_dir, first_step)
        except OSError as error:
            raise StylizeError(f"{self.run_dir}: cannot be written to ({error.strerror})") from error

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()
        self.sync()
        self._close_files()

    @_unless_silent
    def _close_files(self) -> None:
        self.tensorboard.close()
        self._metrics.close()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches, and measure the wait for each."""
        while True:
            asked_s = time.perf_counter()
            self._waits.begin()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._batch_came_s = time.perf_counter()
            self._waits.end()
            self._since_record.spent_s += self._batch_came_s - asked_s
            yield batch

    def advance(self) -> None:
        """Count a finished step."""
        self._since_record.spent_s += time.perf_counter() - self._batch_came_s
        self._since_record.steps += 1
        self.bar.update()

    @property
    def data_wait_share(self) -> float:
        """Return the share of the steps' time spent waiting for batches, without validations and checkpoints."""
        self._since_record.waited_s += self._waits.taken_s()
        return self._in_all.plus(self._since_record).wait_share

    @_unless_silent
    def sync(self) -> None:
        """Flush all records to the disk: a checkpoint must not be newer than they are."""
        self._write("metrics.jsonl", self._metrics.sync)
        self._write("TensorBoard's events", self.tensorboard.sync)

    @_unless_silent
    def log_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record a step's scalars, and images/s and the share of waiting since the last record."""
        last_step, last_s = self._last
        now_s = time.perf_counter()
        rate = (step - last_step) * self.images_per_step / max(now_s - last_s, 1e-9)
        self._last = (step, now_s)
        times, self._since_record = self._since_record, _StepTimes()
        times.waited_s += self._waits.taken_s()
        self._in_all = self._in_all.plus(times)
        self._tell_much_waiting(times)
        self._scalars(step, "train", {**scalars, "images_per_s": rate, "data_wait_share": times.wait_share})
        self.bar.set_postfix_str(f"{progress_text(scalars)}, {rate:.1f} images/s")

    def _tell_much_waiting(self, times: _StepTimes) -> None:
        lately = self._lately = self._lately.plus(times)
        if lately.spent_s < WHILE_S:
            return
        self._lately = _StepTimes()
        if self._tells_waiting and lately.wait_share > MUCH_WAITING:
            self._tells_waiting = False
            self.bar.clear()
            logger.warning(
                "%.0f %% of the last %.0f s went into waiting for photographs, which came at %.0f images/s%s",
                100 * lately.wait_share, lately.spent_s, lately.steps * self.images_per_step / lately.spent_s,
                f": {self._remedy}" if self._remedy else "",
            )  # fmt: skip
            self.bar.refresh()

    @_unless_silent
    def log_validation(self, step: int, found: Measured, content: list[Tensor]) -> None:
        """Record the held-out losses and a sheet of the held-out photographs, below them a row for each style."""
        self._scalars(step, "validation", found.terms, also={"validation measures": found.measures})
        for name, terms in found.by_style.items():
            measures = found.measures_by_style.get(name, {})
            self._scalars(step, "validation of style", terms, name, also={"validation measures of style": measures})
        if not content:
            return
        rows = [
            [captioned(images[0], name), *images[1:]]
            for name, images in zip(found.by_style, found.painted, strict=False)
        ]
        sheet = contact_sheet([content, *(rows or found.painted)])
        folder = self.run_dir / "samples"
        with self.surviving("the samples"):
            folder.mkdir(exist_ok=True)
            write_picture(folder / f"step-{step:08d}.jpg", Picture(sheet), quality=90)
        self.tensorboard.image("validation/content above, stylized below", sheet, step)
        for i, images in enumerate(zip(content, *found.painted, strict=True)):
            self.tensorboard.image(f"stylized/{i}", contact_sheet([list(images)]), step)
        self.tell(f"step {step}: held-out {held_out_text(found.terms)}")

    @_unless_silent
    def log_skipped(self, step: int, report: str, scalars: Mapping[str, float]) -> None:
        """Record a step that was skipped, and why."""
        self.bar.clear()
        logger.warning(report)
        self.bar.refresh()
        self._scalars(step, "skipped", scalars)

    @_unless_silent
    def log_histogram(self, step: int, name: str, values: Tensor) -> None:
        """Record a distribution and its mean. The host waits for the device."""
        values = values.detach().float().cpu()
        self.tensorboard.histogram(name, values, step)
        self.tensorboard.scalar(f"{name}/mean", values.mean().item(), step)

    @_unless_silent
    def log_start(self, config_yaml: str, styles: Mapping[str, list[Tensor]]) -> None:
        """Show the resolved configuration and the style images."""
        self.tensorboard.text("config", f"```yaml\n{config_yaml}```", 0)
        for name, images in styles.items():
            for i, image in enumerate(images):
                self.tensorboard.image(f"style/{i}" if len(styles) == 1 else f"style/{name}/{i}", image, 0)
        self._write("TensorBoard's events", self.tensorboard.flush)

    @_unless_silent
    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Fill TensorBoard's HParams tab with the settings, by name; it adds the last values of the curves."""
        self.tensorboard.settings(values)

    @_unless_silent
    def tell(self, message: str) -> None:
        """Log a line above the bar."""
        self.bar.clear()
        logger.info(message)
        self.bar.refresh()

    @contextmanager
    def surviving(self, what: str, consequence: str = "") -> Iterator[None]:
        """Continue when something cannot be written; log it once, and once more when it can be written again.

        Args:
            what: What is written, for the message.
            consequence: The end of the message.
        """
        try:
            yield
        except (OSError, StylizeError) as error:
            if what not in self._failing:
                reason = error if isinstance(error, StylizeError) else f"cannot be written ({error.strerror})"
                logger.warning("%s: %s; the run goes on%s", what, reason, consequence)
            self._failing.add(what)
        else:
            if what in self._failing:
                logger.info("%s: can be written again", what)
            self._failing.discard(what)

    def _write(self, what: str, write: Callable[[], None]) -> None:
        with self.surviving(what, ", and its records wait"):
            write()

    def _scalars(
        self,
        step: int,
        kind: str,
        scalars: Mapping[str, float],
        style: str | None = None,
        also: Mapping[str, Mapping[str, float]] = {},  # immutable
    ) -> None:
        """Record scalars; `also` are others of the same record, by their group in TensorBoard."""
        for group, values in {kind: scalars, **also}.items():
            for name, value in values.items():
                self.tensorboard.scalar(f"{group if style is None else f'{group} {style}'}/{name}", value, step)
        scalars = {**scalars, **{name: value for values in also.values() for name, value in values.items()}}
        self._write("TensorBoard's events", self.tensorboard.flush)
        of_style = {} if style is None else {"style_name": style}
        line = {"step": step, "kind": kind, **of_style, **{k: float(f"{v:.7g}") for k, v in scalars.items()}}
        self._metrics.add(f"{json.dumps(line)}\n".encode())
        self._write("metrics.jsonl", self._metrics.flush)


@dataclass
class _StepTimes:
    """The time that steps took, and the part of it that they waited for their batches."""

    waited_s: float = 0.0
    spent_s: float = 0.0
    steps: int = 0

    @property
    def wait_share(self) -> float:
        return min(1.0, self.waited_s / max(self.spent_s, 1e-9))

    def plus(self, other: _StepTimes) -> _StepTimes:
        return _StepTimes(self.waited_s + other.waited_s, self.spent_s + other.spent_s, self.steps + other.steps)


class _SteadyBar(tqdm):  # type: ignore[type-arg]
    """A progress bar that keeps working when the clock is set back."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the line that a crash cut short
    write_atomically(path, "".join(kept).encode())
