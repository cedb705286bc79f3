"""What a training run tells: a progress bar, `metrics.jsonl`, TensorBoard, sample sheets."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from stylize.images import Picture, contact_sheet, write_atomically, write_picture

logger = logging.getLogger("stylize")


class Monitor:
    """Writes down how a run goes.

    Args:
        run_dir: The run's folder, which exists.
        steps: The last step, for the bar.
        first_step: Steps done before (a resumed run); later lines of an interrupted run are dropped.
        images_per_step: The batch size, for images/s.
    """

    def __init__(self, run_dir: Path, *, steps: int, first_step: int = 0, images_per_step: int = 1) -> None:
        self.run_dir = run_dir
        self.images_per_step = images_per_step
        self._metrics_path = run_dir / "metrics.jsonl"
        _drop_lines_after(self._metrics_path, first_step)
        self._metrics = self._metrics_path.open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(str(run_dir), purge_step=first_step + 1, flush_secs=10)
        self.bar = tqdm(
            total=steps,
            initial=first_step,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._last = (first_step, time.perf_counter())

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()
        self.tensorboard.close()
        self._metrics.close()

    def advance(self) -> None:
        """One step is done."""
        self.bar.update()

    def log_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record a training step's scalars, and the images/s since the last record."""
        last_step, last_s = self._last
        now_s = time.perf_counter()
        rate = (step - last_step) * self.images_per_step / max(now_s - last_s, 1e-9)
        self._last = (step, now_s)
        self._scalars(step, "train", {**scalars, "images_per_s": rate})
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
        folder.mkdir(exist_ok=True)
        write_picture(folder / f"step-{step:08d}.jpg", Picture(sheet), quality=90)
        self.tensorboard.add_image("validation/content above, stylized below", sheet, step)
        for i, image in enumerate(stylized):
            self.tensorboard.add_image(f"stylized/{i}", contact_sheet([[content[i], image]]), step)
        self.tell(
            f"step {step}: held-out style {terms['style']:.4f} (photographs: {terms['style_of_photographs']:.4f}), "
            f"content {terms['content']:.4f} (correlation {terms['content_correlation']:.3f})"
        )

    def log_histogram(self, step: int, name: str, values: Tensor) -> None:
        """Record a distribution and its mean."""
        self.tensorboard.add_histogram(name, values.detach().float().cpu(), step)
        self.tensorboard.add_scalar(f"{name}/mean", values.detach().float().mean().item(), step)

    def log_start(self, config_yaml: str, styles: list[Tensor]) -> None:
        """Show the resolved configuration and the style images."""
        self.tensorboard.add_text("config", f"```yaml\n{config_yaml}```", 0)
        for i, style in enumerate(styles):
            self.tensorboard.add_image(f"style/{i}", style, 0)
        self.tensorboard.flush()

    def log_hyperparameters(self, values: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Fill TensorBoard's HParams tab: the settings with the final held-out losses."""
        metrics = {f"hparam/{name}": value for name, value in results.items()}
        for summary in hparams(dict(values), metrics):  # type: ignore[no-untyped-call]
            self.tensorboard._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
        for name, value in metrics.items():
            self.tensorboard.add_scalar(name, value)

    def tell(self, message: str) -> None:
        """A line for the user, above the bar."""
        self.bar.clear()
        logger.info(message)
        self.bar.refresh()

    def _scalars(self, step: int, kind: str, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.tensorboard.add_scalar(f"{kind}/{name}", value, step)
        line = {"step": step, "kind": kind, **{k: float(f"{v:.7g}") for k, v in scalars.items()}}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()


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
