"""Exhausted memory, maps of more values than 32 bits count, and the estimate of a picture's memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from benchmarks.measuring import MemoryGauge
from torch import Tensor

from gpu_checks.networks import LIMITS, contrast_error
from gpu_checks.pictures import paint_to_files, read_rgb, write_photograph
from gpu_checks.results import Check, Failed, Found, Skipped, require
from gpu_checks.setting import Setting, heard_warnings, make_picture, make_stylizer, paint_in_strips

EXHAUSTED, LARGE, ESTIMATE = "exhausted memory", "maps of more than 2³¹ values", "estimated memory"
GIB = 2**30
LARGE_PX = (5504, 8256)  # 45 megapixels
LEVELS_APART = 2.0  # mean, of an eighth of the picture
# The peak may be so many times the estimate, which decides whether a picture is painted as a whole.
MOST_OF_ESTIMATE = 1.1


def checks(setting: Setting) -> Iterator[Check]:
    """Yield the section's checks."""
    yield Check("an error of the allocator", partial(planted_error, setting), EXHAUSTED)
    yield Check("a limit of the allocator", partial(limited_memory, setting), EXHAUSTED)
    for precision in dict.fromkeys(("fp32", setting.fast_precision)):
        yield Check(f"estimate, {precision}", partial(estimate, setting, precision), ESTIMATE)
    yield Check("45 megapixels at width 32", partial(large_picture, setting), LARGE)


def planted_error(setting: Setting) -> Found:
    """Check that strips are halved where one of them raises that memory is exhausted.

    Raises:
        Failed: The error came through, or the picture is another one.
    """
    picture = make_picture(*setting.sized((512, 512), (96, 48))).to(setting.device)
    stylizer = make_stylizer(setting, "fp32", width=8)
    whole = stylizer.torch_painter.paint(picture)
    limit_px = setting.sized(128, 80)

    def rows(first: int, last: int) -> Tensor:
        if last - first > limit_px:
            raise torch.OutOfMemoryError("planted")
        return picture[:, :, first:last]

    with heard_warnings() as heard:
        painted = paint_in_strips(stylizer, picture, {"strip_px": picture.shape[2]}, rows)
    return _judged("planted", heard, contrast_error(painted, whole), LIMITS["fp32"].same)


def limited_memory(setting: Setting) -> Found:
    """Check that strips are halved where the allocator has less memory than they need.

    Raises:
        Failed: The error came through, or the picture is another one.
        Skipped: The device has no such limit.
    """
    if not setting.on_cuda:
        raise Skipped("a CPU's memory has no limit to set")
    picture = make_picture(*setting.sized((2048, 4096), (256, 256))).to(setting.device)
    stylizer = make_stylizer(setting, "fp32")
    changes = {"strip_px": picture.shape[2]}
    setting.free()
    held = torch.cuda.memory_allocated(setting.device)
    torch.cuda.reset_peak_memory_stats(setting.device)
    free = paint_in_strips(stylizer, picture, changes)
    peak = torch.cuda.max_memory_allocated(setting.device)
    setting.free()
    total = torch.cuda.get_device_properties(setting.device).total_memory
    allowed = held + (peak - held) * 6 // 10
    torch.cuda.set_per_process_memory_fraction(allowed / total, setting.device)
    try:
        with heard_warnings() as heard:
            painted = paint_in_strips(stylizer, picture, changes)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device)
    name = f"{allowed / GIB:.2f} GiB for {peak / GIB:.2f}"
    return _judged(name, heard, contrast_error(painted, free), LIMITS["fp32"].same)


def _judged(name: str, heard: list[str], error: float, allowed: float) -> Found:
    halved = sum("strips of" in message for message in heard)
    found = Found({"limit": name, "halved": str(halved), "off": f"{error:.1e}"}, {"halved": halved, "error": error})
    require(halved > 0, "the strips were not halved", found)
    require(error <= allowed, f"off by {error:.2g}, must be at most {allowed:.2g}", found)
    return found


def estimate(setting: Setting, precision: str) -> Found:
    """Compare the memory that painting takes with the estimate; on a CPU it is told only, for libraries take some, too.

    Raises:
        Failed: It takes more.
    """
    side = setting.sized(2048 if setting.on_cuda else 1024, 128)
    stylizer = make_stylizer(setting, precision, width=setting.sized(32, 8))
    picture = make_picture(side, side).to(setting.device)
    expected = stylizer.bytes_for((side, side))
    setting.free()
    gauge = MemoryGauge(setting.device)
    with torch.inference_mode():
        stylizer.painter.paint(picture)
    setting.synchronize()
    growth = gauge.read().growth_bytes
    if growth is None:
        raise Skipped("the system does not tell the peak of memory")
    row = {
        "picture": f"{side}²",
        "precision": precision,
        "estimate": f"{expected / GIB:.2f} GiB",
        "measured": f"{growth / GIB:.2f} GiB",
        "measured / estimate": f"{growth / expected:.2f}",
    }
    found = Found(row, {"estimate": expected, "measured": growth})
    if setting.on_cuda and growth > MOST_OF_ESTIMATE * expected:
        raise Failed(f"takes {growth / expected:.2f} times the estimate, must be at most {MOST_OF_ESTIMATE}", found)
    return found


def large_picture(setting: Setting) -> Found:
    """Paint a picture with maps of more than 2³¹ values: from file to file, and in strips from a tensor.

    Raises:
        Failed: It fails, or the two differ.
    """
    setting.needs("pyvips")
    height, width = setting.sized(LARGE_PX, (90, 130))
    stylizer = make_stylizer(setting, setting.fast_precision, width=setting.sized(32, 8))
    with setting.scratch() as folder:
        source = write_photograph(folder / "large.jpg", height, width)
        target = folder / "painted.tif"
        seconds = paint_to_files(stylizer, [source], [target])
        picture, got = read_rgb(source), read_rgb(target)
    strips = paint_in_strips(stylizer, picture[None].to(setting.device))[0].cpu()
    levels = 255 * float((strips - got).abs().mean())
    bands = [255 * float(b.abs().mean()) for b in (strips - got).chunk(8, dim=1)]
    values = 2 * setting.sized(32, 8) * math.prod((height, width))
    row = {
        "picture": f"{width}×{height}",
        "values of its largest map": f"{values / 2**31:.2f} × 2³¹",
        "file to file": f"{seconds:.2f} s",
        "grey levels off strips, mean / of the worst eighth": f"{levels:.2g} / {max(bands):.2g}",
    }
    found = Found(row, {"seconds": seconds, "levels": levels, "bands": bands})
    require(tuple(got.shape) == (3, height, width), f"the painted picture has the shape {tuple(got.shape)}", found)
    require(max(bands) <= LEVELS_APART, f"{max(bands):.2g} grey levels off, must be at most {LEVELS_APART}", found)
    return found
