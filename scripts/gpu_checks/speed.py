"""How fast: training steps, painting from tensors and from files, folders, and the loader.

Shares are of the rate of a large product of matrices in the same type, measured at the section's start, and of the
counted operations: two for each multiply-add of convolutions and Gram products.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from benchmarks.counts import painting_flop, training_flop
from benchmarks.measuring import number
from torch import Tensor

from gpu_checks.pictures import paint_to_files, write_photograph
from gpu_checks.results import Check, Found, Goal, Skipped, require
from gpu_checks.setting import (
    SMALL_LOSS,
    Setting,
    Task,
    build_trainer,
    heard_warnings,
    knows_graphs,
    make_crops,
    make_picture,
    make_stylizer,
    paint_in_strips,
    small_compiler,
)
from gpu_checks.timing import milliseconds, product_rate, seconds_of
from stylize.errors import StylizeError
from stylize.inference.painter import Shape
from stylize.inference.stylizer import Stylizer
from stylize.system.compute import Compute, usable_cores
from stylize.system.numerics import prepare_determinism
from stylize.training.loader import Batches, CropDataset
from stylize.training.photographs import ContentConfig, find_photographs

STEPS, PAINTING, FILES, LOADER = "training steps", "painting from tensors", "painting from files", "the loader"
TRAINING_IMAGES = 160_000
GOAL_MINUTES, GOAL_SHARE, GOAL_FRAMES = 2.0, 40.0, 120.0
GOAL_LOADED = TRAINING_IMAGES / 60 / GOAL_MINUTES
MODES = {"never": "eager", "always": "compiled", "graphs": "CUDA graphs"}
RESIZE_PX, CROP_PX = 288, 256


class Size(NamedTuple):
    """A picture to paint.

    Attributes:
        name: How it is called.
        height: Height in px.
        width: Width in px.
    """

    name: str
    height: int
    width: int


UHD = Size("3840×2160", 2160, 3840)
SIZES = (
    UHD,
    Size("1024²", 1024, 1024),
    Size("12 MP", 3000, 4000),
    Size("45 MP", 5504, 8256),
    Size("100 MP", 8640, 11648),
)


def checks(setting: Setting) -> Iterator[Check]:
    """Yield the section's checks: the cheap ones, those with a goal, the others that compile."""
    peak = product_rate(setting, setting.fast_precision)
    batches = setting.sized((16, 32, 4), (2,))
    sizes = setting.sized(SIZES, (Size("48×32", 32, 48),))
    for batch in batches:
        yield Check(f"step, batch {batch}, eager", partial(step, setting, batch, "never", peak), STEPS)
    for size in sizes:
        yield Check(f"{size.name}, eager", partial(paint, setting, size, 32, False, peak), PAINTING)
    yield from _compiled_steps(setting, batches[0], peak)
    slow = partial(step, setting, batches[0], "never", peak, deterministic=True)
    yield Check(f"step, batch {batches[0]}, eager, deterministic", slow, STEPS)
    for width in setting.sized((32, 16), (32,)):
        name = f"{sizes[0].name}, width {width}, compiled"
        yield Check(name, partial(paint, setting, sizes[0], width, True, peak), PAINTING, setting.sized(30.0, 0.0))
    for size in sizes:
        yield Check(f"file of {size.name}", partial(paint_file, setting, size), FILES)
    yield Check("a folder", partial(paint_folder, setting), FILES)
    workers = setting.sized(max(1, Compute(setting.device).decoding_workers()), 0)
    yield Check("loader, JPEGs", partial(load, setting, False, workers), LOADER)
    for count in sorted({workers, 0}):
        yield Check(f"loader, cache, {count} workers", partial(load, setting, True, count), LOADER)
    for batch in batches[1:]:
        yield from _compiled_steps(setting, batch, peak)


def _compiled_steps(setting: Setting, batch: int, peak: float) -> Iterator[Check]:
    for mode in ("always", "graphs"):
        name = f"step, batch {batch}, {MODES[mode]}"
        yield Check(name, partial(step, setting, batch, mode, peak), STEPS, setting.sized(40.0, 0.0))


def step(setting: Setting, batch: int, mode: str, peak: float, deterministic: bool = False) -> Found:
    """Time the training step.

    Raises:
        Failed: There was a warning, such as of a failed compilation.
        Skipped: It cannot be compiled here.
    """
    if mode == "graphs" and not (knows_graphs() and setting.on_cuda):
        raise Skipped("there is no CUDA" if knows_graphs() else "train.compile does not know graphs")
    if deterministic:
        prepare_determinism()
    told_mode = f"{MODES[mode]}{', deterministic' if deterministic else ''}"
    task = Task(batch=batch, precision=setting.fast_precision, compile=mode, deterministic=deterministic)
    if setting.miniature:
        task = replace(task, width=4, crop_px=32, loss=SMALL_LOSS)
    torch._dynamo.reset()  # another batch is compiled as such, not for all sizes
    with small_compiler(setting), heard_warnings() as heard:
        try:
            trainer = build_trainer(task, setting.device)
        except StylizeError as error:
            raise Skipped(str(error)) from error
        trainer.generator.train()
        crops = make_crops(task, batch).to(setting.device)
        first_s = _seconds_once(setting, partial(trainer.step, crops))
        seconds = seconds_of(setting, partial(trainer.step, crops), setting.sized(7, 2), warmup=setting.sized(4, 1))
    flop = training_flop(batch, task.crop_px)
    share, minutes = flop / seconds.median / peak, TRAINING_IMAGES / batch * seconds.median / 60
    row = {
        "batch": str(batch),
        "mode": told_mode,
        "precision": task.precision,
        "ms a step (median, least..most)": milliseconds(seconds),
        "images/s": number(batch / seconds.median),
        "share of the product": f"{100 * share:.0f} %",
        f"minutes for {TRAINING_IMAGES:,} crops": number(minutes),
        "first step s": number(first_s),
    }
    goals = []
    if batch >= 16:
        named = f"batch {batch}, {told_mode}"
        goals.append(Goal(f"{TRAINING_IMAGES:,} crops, {named}", minutes, GOAL_MINUTES, "minutes", at_least=False))
        if batch == 16:
            goals.append(Goal(f"share of the {task.precision} product, {named}", 100 * share, GOAL_SHARE, "%"))
    numbers = {"seconds": seconds._asdict(), "share": share, "flop": flop, "first_s": first_s}
    found = Found(row, numbers, tuple(goals))
    require(not heard, f"warned: {'; '.join(heard)}", found)
    return found


def _seconds_once(setting: Setting, function: Callable[[], object]) -> float:
    setting.synchronize()
    start_s = time.perf_counter()
    function()
    setting.synchronize()
    return time.perf_counter() - start_s


def paint(setting: Setting, size: Size, width: int, compiled: bool, peak: float) -> Found:
    """Time painting from a tensor to a tensor on the device: as a whole, or in strips where maps are too large.

    Raises:
        Failed: There was a warning, such as of a failed compilation.
    """
    shapes = {Shape(1, size.width, size.height)} if compiled else set()
    setting.free()
    torch._dynamo.reset()
    with small_compiler(setting), torch.inference_mode(), heard_warnings() as heard:
        compute = replace(Compute(setting.device, setting.fast_precision), tuned=True)
        made = make_stylizer(setting, setting.fast_precision, width)
        stylizer = Stylizer(made.generator, compute, shapes)
        whole = stylizer.can_index((size.width, size.height))
        picture = make_picture(size.height, size.width).to(setting.device)
        run = partial(stylizer.painter.paint, picture) if whole else partial(paint_in_strips, stylizer, picture)
        first_s = _seconds_once(setting, run)
        seconds = seconds_of(setting, run, setting.sized(7 if whole else 3, 2), warmup=1)
    flop = painting_flop(1, size.height, size.width, width)
    mode = "compiled" if compiled else "eager"
    row = {
        "picture": size.name,
        "width": str(width),
        "way": f"{'whole' if whole else 'in strips'}, {mode}",
        "precision": setting.fast_precision,
        "ms (median, least..most)": milliseconds(seconds),
        "pictures/s": number(1 / seconds.median),
        "MP/s": number(size.height * size.width / 1e6 / seconds.median),
        "share of the product": f"{100 * flop / seconds.median / peak:.0f} %",
        "first s": number(first_s),
    }
    frames = 1 / seconds.median
    goals = (Goal(f"{size.name}, width 32, {mode}", frames, GOAL_FRAMES, "frames/s"),) if width == 32 else ()
    numbers = {"seconds": seconds._asdict(), "flop": flop, "first_s": first_s}
    found = Found(row, numbers, goals if size.name == UHD.name or setting.miniature else ())
    require(not heard, f"warned: {'; '.join(heard)}", found)
    return found


def paint_file(setting: Setting, size: Size) -> Found:
    """Time painting from a JPEG to a JPEG: the second time, when everything is loaded."""
    setting.needs("pyvips")
    setting.free()
    stylizer = make_stylizer(setting, setting.fast_precision, setting.sized(32, 8))
    with setting.scratch() as folder:
        source = write_photograph(folder / "photograph.jpg", size.height, size.width)
        times = [paint_to_files(stylizer, [source], [folder / "painted.jpg"]) for _ in range(2)]
    return _files(size.name, 1, size.height * size.width, times[1], times[0])


def paint_folder(setting: Setting) -> Found:
    """Time painting a folder of small JPEGs."""
    setting.needs("pyvips")
    setting.free()
    side, count = setting.sized((512, 256), (32, 3))
    stylizer = make_stylizer(setting, setting.fast_precision, setting.sized(32, 8))
    with setting.scratch() as folder:
        sources = _photographs(folder, count, side, side)
        targets = [folder / f"painted-{source.name}" for source in sources]
        times = [paint_to_files(stylizer, sources, targets) for _ in range(2)]
    return _files(f"folder of {count} × {side}²", count, side * side, times[1], times[0])


def _files(name: str, count: int, pixels: int, seconds: float, first_s: float) -> Found:
    row = {
        "files": name,
        "s": number(seconds),
        "pictures/s": number(count / seconds),
        "MP/s": number(count * pixels / 1e6 / seconds),
        "first time s": number(first_s),
    }
    return Found(row, {"seconds": seconds, "first_s": first_s, "count": count})


def load(setting: Setting, cached: bool, workers: int) -> Found:
    """Time the loader: crops of JPEGs of 640×480, or of decoded ones in a cache."""
    setting.needs("pyvips")
    count, batch, batches = setting.sized((128, 16, 120), (4, 2, 4))
    with setting.scratch() as folder:
        (folder / "photographs").mkdir()
        _photographs(folder / "photographs", count, *setting.sized((480, 640), (48, 64)))
        sizes = setting.sized((RESIZE_PX, CROP_PX), (40, 32))
        cache = str(folder / "cache") if cached else None
        if cached:
            (folder / "cache").mkdir()
        config = ContentConfig(
            path=str(folder / "photographs"), validation=0, resize=sizes[0], crop=sizes[1], cache=cache
        )
        files = find_photographs(config, 0).training
        source = Batches(CropDataset(files, config, 0), batch, workers, pin_memory=setting.on_cuda)
        source.prepare()
        rate = _rate(source.from_step(0, batches + 2 * workers + 2), batches, workers)
    row = {
        "photographs": "decoded, in the cache" if cached else "JPEGs of 640×480",
        "workers": f"{workers} of {usable_cores()} cores",
        "crops/s": number(rate),
    }
    name = f"crops/s of the loader, {row['photographs']}, {workers} workers"
    goal = Goal(name, rate, round(GOAL_LOADED), "crops/s")
    return Found(row, {"rate": rate, "workers": workers}, (goal,))


def _rate(batches: Iterator[Tensor], count: int, workers: int) -> float:
    for _ in itertools.islice(batches, 1 + workers):
        pass
    start_s = time.perf_counter()
    crops = sum(len(batch) for batch in itertools.islice(batches, count))
    seconds = time.perf_counter() - start_s
    for _ in batches:  # a worker that ends while it sends a batch may abort
        pass
    return crops / seconds


def _photographs(folder: Path, count: int, height: int, width: int) -> list[Path]:
    """Write JPEGs; sixteen are distinct."""
    written: list[Path] = []
    for i in range(count):
        path = folder / f"{i:05}.jpg"
        if i < 16:
            write_photograph(path, height, width, i)
        else:
            path.write_bytes(written[i % 16].read_bytes())
        written.append(path)
    return written
