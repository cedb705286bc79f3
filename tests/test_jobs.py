"""Files and folders painted by the library, and the seam to backends."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_runs import picture
from PIL import Image
from torch import Tensor

from stylize.errors import StylizeError
from stylize.generators import GeneratorConfig, build_generator
from stylize.generators.johnson import JohnsonGenerator
from stylize.inference import pipeline
from stylize.inference.file_painter import FileOptions
from stylize.inference.jobs import Job, paint_files, plan_jobs
from stylize.inference.options import PaintOptions
from stylize.inference.pipeline import WorkItem
from stylize.inference.plans import MemoryBudget
from stylize.inference.stylizer import Stylizer
from stylize.pictures.reading import read_picture
from stylize.system.compute import Compute

CPU = torch.device("cpu")
GIB = 2**30


def budget(folder: Path, device_bytes: int = 8 * GIB) -> MemoryBudget:
    return MemoryBudget(CPU, device_bytes, device_bytes, folder, 2**40)


def options(folder: Path, device_bytes: int = 8 * GIB, **given: PaintOptions) -> FileOptions:
    return FileOptions(budget(folder, device_bytes), **given)


def jobs(folder: Path, sizes: tuple[tuple[int, int], ...]) -> list[Job]:
    sources = [picture(folder / f"{i}.png", *size, seed=i) for i, size in enumerate(sizes)]
    return [Job(source, folder / "out" / source.name) for source in sources]


def torch_stylizer() -> Stylizer:
    return Stylizer(build_generator(GeneratorConfig(width=4, margin=0)), Compute(CPU))


class InvertingBackend:
    """A painter that is no PyTorch network: gives negatives, and takes a kilobyte a pixel."""

    def __init__(self) -> None:
        self.painted: list[tuple[int, ...]] = []

    def paint(self, photographs: Tensor) -> Tensor:
        self.painted.append(tuple(photographs.shape))
        return 1 - photographs

    def bytes_for(self, size: tuple[int, int]) -> int:
        return 1024 * size[0] * size[1]


# Another backend


def test_another_backend_paints_files_without_a_change_elsewhere(tmp_path: Path) -> None:
    backend = InvertingBackend()
    work = jobs(tmp_path, ((48, 40), (64, 32), (48, 40)))
    items = list(paint_files(work, Stylizer(backend, Compute(CPU)), options(tmp_path)))
    assert [item.error for item in items] == [None] * 3
    assert backend.painted == [(1, 3, 40, 48), (1, 3, 32, 64), (1, 3, 40, 48)]
    for job in work:
        negative = 1 - read_picture(job.source).rgb
        assert torch.allclose(read_picture(job.target).rgb, negative, atol=1e-6)


def test_what_does_not_fit_says_that_another_backend_cannot_paint_in_strips(tmp_path: Path) -> None:
    work = jobs(tmp_path, ((48, 40), (256, 200)))
    items = list(paint_files(work, Stylizer(InvertingBackend(), Compute(CPU)), options(tmp_path, 8 * 2**20)))
    assert items[0].error is None
    assert str(items[1].error) == (
        f"{work[1].source}: this picture does not fit into memory as a whole, and only PyTorch models can be painted "
        "in strips; --max-memory allows more, --max-size shrinks the picture"
    )


# What a photograph costs


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often files are opened, and stages built, by size."""
    counted: Counter[str] = Counter()
    opened = pipeline.open_picture
    stages = JohnsonGenerator.stages

    def count_opened(path: Path, **options: Any) -> object:
        counted[f"file {path.name}"] += 1
        return opened(path, **options)

    def count_stages(self: JohnsonGenerator, height: int, width: int) -> object:
        counted[f"stages of {width}×{height}"] += 1
        return stages(self, height, width)

    monkeypatch.setattr(pipeline, "open_picture", count_opened)
    monkeypatch.setattr(JohnsonGenerator, "stages", count_stages)
    return counted


@pytest.mark.parametrize("stroke_scale", (1.0, 2.0))
def test_stages_are_built_once_a_size_and_files_opened_once(
    tmp_path: Path, calls: Counter[str], stroke_scale: float
) -> None:
    work = jobs(tmp_path, ((48, 40), (64, 32), (48, 40), (64, 32)))
    paint = PaintOptions(stroke_scale=stroke_scale)
    stylizer = torch_stylizer()
    calls.clear()
    assert all(item.error is None for item in paint_files(work, stylizer, options(tmp_path, paint=paint)))
    sizes = ("24×20", "32×16") if stroke_scale == 2 else ("48×40", "64×32")
    assert calls == {f"file {i}.png": 1 for i in range(4)} | {f"stages of {size}": 1 for size in sizes}


def test_a_single_photograph_is_painted_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = jobs(tmp_path, ((48, 40),))
    stylizer = torch_stylizer()
    stylizer(read_picture(work[0].source))  # the kernels have their threads from now on
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread was started"))
    (item,) = paint_files(work, stylizer, options(tmp_path))
    assert item.error is None
    assert read_picture(work[0].target).size == (48, 40)


# Failures


def test_every_job_has_its_item_in_order_and_failures_are_kept_in_them(tmp_path: Path) -> None:
    work = jobs(tmp_path, ((48, 40), (48, 40), (8, 8)))
    work[1].source.write_text("not a picture\n")
    items: Iterator[WorkItem] = paint_files(work, torch_stylizer(), options(tmp_path))
    found = [(item.source, item.target, item.error is None, item.raster) for item in items]
    assert found == [(job.source, job.target, i == 0, None) for i, job in enumerate(work)]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]


def test_outputs_are_planned_beside_photographs_or_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", "below/b.png", "a.dots.jpg"):
        picture(tmp_path / name)
    alone = [Job(tmp_path / "a.jpg", tmp_path / "a.dots.jpg")]
    assert plan_jobs([tmp_path], None, "dots", recursive=False) == alone
    below = Job(tmp_path / "below/b.png", Path("out/below/b.png"))
    planned = plan_jobs([tmp_path], Path("out"), "dots", recursive=True)
    assert planned == [Job(tmp_path / "a.jpg", Path("out/a.jpg")), below]
    with pytest.raises(StylizeError, match=r"holds no images$"):
        (tmp_path / "empty").mkdir()
        plan_jobs([tmp_path / "empty"], None, "dots", recursive=True)


# A device with memory of its own


@pytest.mark.parametrize("case", ("whole", "in strips", "large strokes", "large strokes in strips"))
def test_files_by_way_of_a_device_are_as_on_a_cpu(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = jobs(tmp_path, ((48, 40), (48, 40), (64, 32)))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 4), np.uint8)).save(work[1].source)
    paint = PaintOptions(strength=0.7, keep_colors=True, stroke_scale=2 if "strokes" in case else 1)
    if "strips" in case:
        monkeypatch.setattr("stylize.inference.file_painter.fits_whole", lambda *arguments: False)
    written, stylizer = [], torch_stylizer()
    for device in ("cpu", "another"):
        if device == "another":  # what follows is handled as if the processor's memory were a device's
            monkeypatch.setattr("stylize.system.levels.has_own_memory", lambda device: True)
            monkeypatch.setattr(Compute, "leaves_cores_idle", True)
            monkeypatch.setattr(Compute, "file_threads", 2)
            monkeypatch.setattr(Compute, "pictures_together", lambda self, size: 2)
        items = list(paint_files(work, stylizer, options(tmp_path, paint=paint)))
        assert [item.error for item in items] == [None] * 3
        written.append([job.target.read_bytes() for job in work])
        for job in work:
            job.target.unlink()
    assert written[0] == written[1]
