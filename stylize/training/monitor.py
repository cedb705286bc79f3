"""What a training run tells: a progress bar, `metrics.jsonl`, TensorBoard, sample sheets."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from stylize.errors import StylizeError
from stylize.pictures.picture import Picture
from stylize.pictures.sheets import contact_sheet
from stylize.pictures.writing import write_picture
from stylize.system.files import RecordFile, write_atomically
from stylize.training.tensorboard import EventFile

logger = logging.getLogger("stylize")

T = TypeVar("T")

# Scalars that tell of the machine, not of the run: equal runs differ in them.
TIMES = frozenset(("images_per_s", "data_wait_share"))


class Monitor:
    """Writes down how a run goes.

    What cannot be written is told once and does not stop the run. Records wait until there is room again.

    Args:
        run_dir: The run's folder, which exists.
        steps: The last step, for the bar.
        first_step: Steps done before (a resumed run); later records of an interrupted run are dropped.
        images_per_step: The batch size, for images/s.
        bar: Shown where stderr is a terminal, or hidden.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        steps: int,
        first_step: int = 0,
        images_per_step: int = 1,
        bar: Literal["shown", "hidden"] = "shown",
    ) -> None:
        self.run_dir = run_dir
        self.images_per_step = images_per_step
        self._failing: set[str] = set()
        metrics_path = run_dir / "metrics.jsonl"
        _drop_lines_after(metrics_path, first_step)
        try:
            self._metrics = RecordFile(metrics_path)
            self.tensorboard = EventFile(run_dir, first_step)
        except OSError as error:
            raise StylizeError(f"{run_dir}: cannot be written to ({error.strerror})") from error
        self.bar = _SteadyBar(
            total=steps,
            initial=first_step,
            unit="step",
            disable=bar == "hidden" or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._last = (first_step, time.perf_counter())
        self._since_record = _StepTimes()
        self._in_all = _StepTimes()
        self._batch_came_s = self._last[1]

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
        self.tensorboard.close()
        self._metrics.close()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; how long each is waited for is measured."""
        while True:
            asked_s = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._batch_came_s = time.perf_counter()
            self._since_record.waited_s += self._batch_came_s - asked_s
            yield batch

    def advance(self) -> None:
        """One step is done."""
        self._since_record.worked_s += time.perf_counter() - self._batch_came_s
        self.bar.update()

    @property
    def data_wait_share(self) -> float:
        """The share of all steps' time in which they waited for their batch; validations and checkpoints aside."""
        return self._in_all.plus(self._since_record).wait_share

    def sync(self) -> None:
        """Bring all records to the disk: a checkpoint must not be ahead of them."""
        self._write("metrics.jsonl", self._metrics.sync)
        self._write("TensorBoard's events", self.tensorboard.sync)

    def log_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record a training step's scalars, and the images/s and the share of waiting since the last record."""
        last_step, last_s = self._last
        now_s = time.perf_counter()
        rate = (step - last_step) * self.images_per_step / max(now_s - last_s, 1e-9)
        self._last = (step, now_s)
        times, self._since_record = self._since_record, _StepTimes()
        self._in_all = self._in_all.plus(times)
        self._scalars(step, "train", {**scalars, "images_per_s": rate, "data_wait_share": times.wait_share})
        self.bar.set_postfix_str(f"content {scalars['content']:.3f}, style {scalars['style']:.4f}, {rate:.1f} images/s")

    def log_validation(
        self, step: int, terms: Mapping[str, float], content: list[Tensor], stylized: list[Tensor]
    ) -> None:
        """Record the held-out losses and a sheet of the held-out photographs, stylized below."""
        self._scalars(step, "validation", terms)
        if not content:
            return
        sheet = contact_sheet([content, stylized])
        folder = self.run_dir / "samples"
        with self.surviving("the samples"):
            folder.mkdir(exist_ok=True)
            write_picture(folder / f"step-{step:08d}.jpg", Picture(sheet), quality=90)
        self.tensorboard.image("validation/content above, stylized below", sheet, step)
        for i, image in enumerate(stylized):
            self.tensorboard.image(f"stylized/{i}", contact_sheet([[content[i], image]]), step)
        self.tell(
            f"step {step}: held-out style {terms['style']:.4f} (photographs: {terms['style_of_photographs']:.4f}), "
            f"content {terms['content']:.4f} (correlation {terms['content_correlation']:.3f})"
        )

    def log_skipped(self, step: int, report: str, scalars: Mapping[str, float]) -> None:
        """Record a step that was skipped, and why."""
        self.bar.clear()
        logger.warning(report)
        self.bar.refresh()
        self._scalars(step, "skipped", scalars)

    def log_histogram(self, step: int, name: str, values: Tensor) -> None:
        """Record a distribution and its mean."""
        values = values.detach().float().cpu()
        self.tensorboard.histogram(name, values, step)
        self.tensorboard.scalar(f"{name}/mean", values.mean().item(), step)

    def log_start(self, config_yaml: str, styles: list[Tensor]) -> None:
        """Show the resolved configuration and the style images."""
        self.tensorboard.text("config", f"```yaml\n{config_yaml}```", 0)
        for i, style in enumerate(styles):
            self.tensorboard.image(f"style/{i}", style, 0)
        self._write("TensorBoard's events", self.tensorboard.flush)

    def log_hyperparameters(self, values: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Fill TensorBoard's HParams tab: the settings with the final held-out losses."""
        metrics = {f"hparam/{name}": value for name, value in results.items()}
        for summary in hparams(dict(values), metrics):  # type: ignore[no-untyped-call]
            self.tensorboard.add(summary, 0)
        for name, value in metrics.items():
            self.tensorboard.scalar(name, value, 0)

    def tell(self, message: str) -> None:
        """A line for the user, above the bar."""
        self.bar.clear()
        logger.info(message)
        self.bar.refresh()

    @contextmanager
    def surviving(self, what: str, consequence: str = "") -> Iterator[None]:
        """Go on when something cannot be written, and say so once until it can be written again.

        Args:
            what: Names the thing.
            consequence: Completes the message.
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

    def _scalars(self, step: int, kind: str, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.tensorboard.scalar(f"{kind}/{name}", value, step)
        self._write("TensorBoard's events", self.tensorboard.flush)
        line = {"step": step, "kind": kind, **{k: float(f"{v:.7g}") for k, v in scalars.items()}}
        self._metrics.add(f"{json.dumps(line)}\n".encode())
        self._write("metrics.jsonl", self._metrics.flush)


@dataclass
class _StepTimes:
    """How long steps waited for their batches, and how long they worked on them."""

    waited_s: float = 0.0
    worked_s: float = 0.0

    @property
    def wait_share(self) -> float:
        return self.waited_s / max(self.waited_s + self.worked_s, 1e-9)

    def plus(self, other: _StepTimes) -> _StepTimes:
        return _StepTimes(self.waited_s + other.waited_s, self.worked_s + other.worked_s)


class SilentMonitor(Monitor):
    """Of a process that is not the first: it writes nothing and says nothing."""

    def __init__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        return batches

    def advance(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def log_step(self, step: int, scalars: Mapping[str, float]) -> None:
        pass

    def log_validation(
        self, step: int, terms: Mapping[str, float], content: list[Tensor], stylized: list[Tensor]
    ) -> None:
        pass

    def log_skipped(self, step: int, report: str, scalars: Mapping[str, float]) -> None:
        pass

    def log_histogram(self, step: int, name: str, values: Tensor) -> None:
        pass

    def log_start(self, config_yaml: str, styles: list[Tensor]) -> None:
        pass

    def log_hyperparameters(self, values: Mapping[str, Any], results: Mapping[str, float]) -> None:
        pass

    def tell(self, message: str) -> None:
        pass

    @contextmanager
    def surviving(self, what: str, consequence: str = "") -> Iterator[None]:
        """The first process is the one that writes, and may fail."""
        yield


class _SteadyBar(tqdm):  # type: ignore[type-arg]
    """A bar that does not stand still when the clock is set back."""

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
