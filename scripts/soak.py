"""Train and paint for a long time in one process, and check that memory, open files and threads do not grow.

python scripts/soak.py [--steps 2000] [--images 2000]

A tiny training with validations and checkpoints is followed by a tiny model that paints one image after another. The
measurements after a tenth and at the end are compared. Exits with 1 if they have grown (memory: by more than
`ALLOWED_MIB`, the variation of the allocator's pools). Needs Linux, since it reads /proc.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import yaml
from PIL import Image

from stylize import run
from stylize.config import load_config
from stylize.inference.stylizer import Stylizer
from stylize.models.file import load_model
from stylize.pictures.raster import raster_of
from stylize.pictures.reading import read_raster
from stylize.pictures.writing import write_raster
from stylize.system.compute import Compute
from stylize.system.devices import CPU

ALLOWED_MIB = 8.0


class Held(NamedTuple):
    """Resources in use by this process."""

    memory_mib: float
    files: int
    threads: int

    def __str__(self) -> str:
        return f"{self.memory_mib:.1f} MiB resident, {self.files} open files, {self.threads} threads"


def held() -> Held:
    """Return the resources that this process uses now."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory_kib = int(status["VmRSS"].split()[0])
    return Held(
        memory_kib / 1024,
        len(list(Path("/proc/self/fd").iterdir())),
        max(int(status["Threads"]), threading.active_count()),
    )


def main() -> int:
    """Train and paint; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stylize-soak-") as name:
        folder = Path(name)
        prepare(folder, options.steps)
        return max(report("train", *train(folder)), report("apply", *paint(folder, options.images)))


def prepare(folder: Path, steps: int) -> None:
    """Write pictures and config."""
    (folder / "photos").mkdir()
    for path in [folder / "style.png", *(folder / "photos" / f"{i}.jpg" for i in range(20))]:
        Image.effect_noise((96, 80), 60).convert("RGB").save(path)
    config = {
        "name": "soak",
        "style": {"image": "style.png", "size": 64},
        "content": {"path": "photos", "validation": 2, "resize": 64, "crop": 48, "workers": 0},
        "generator": {"width": 4, "norm": "batch_instance"},
        "loss": {"vgg": "random", "content_layers": {"relu2_1": 1.0}, "style_layers": {"relu1_1": 1.0, "relu2_1": 1.0}},
        "train": {
            "steps": steps, "batch_size": 2, "compile": "never",
            "checkpoint_every": max(steps // 40, 1), "validate_every": max(steps // 40, 1),
        },
    }  # fmt: skip
    (folder / "soak.yaml").write_text(yaml.safe_dump(config))


def train(folder: Path) -> tuple[Held, Held]:
    """Train; return the resources after a tenth and after the last step."""
    config = load_config(folder / "soak.yaml")
    steps = config.train.steps
    looked: list[Held] = []

    def look(progress: run.Progress) -> None:
        if progress.step in (max(steps // 10, 1), steps):
            looked.append(held())

    run.train(config, folder / "run", device="cpu", on_progress=look)
    return looked[0], looked[-1]


def paint(folder: Path, images: int) -> tuple[Held, Held]:
    """Paint; return the resources after a tenth and at the end."""
    stylizer = Stylizer(load_model(folder / "run" / "model.safetensors")[0], Compute(CPU))
    photographs = sorted((folder / "photos").iterdir())
    early = held()
    for i in range(images):
        with read_raster(photographs[i % len(photographs)]) as photograph:
            painted = raster_of([stylizer(photograph.picture())], photograph.metadata)
        with painted:
            write_raster(folder / "painted.png", painted)
        if i + 1 == max(images // 10, 1):
            early = held()
    return early, held()


def report(what: str, early: Held, late: Held) -> int:
    """Print a line; return 1 if the resources have grown."""
    grown = late.memory_mib > early.memory_mib + ALLOWED_MIB or late.files > early.files or late.threads > early.threads
    print(f"{what}: after a tenth {early}; at the end {late}{': MORE' if grown else ''}", flush=True)
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
