import logging
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_runs import contents, write_model
from PIL import Image
from skimage import data

from stylize.cli import cli
from stylize.errors import StylizeError
from stylize.generators import GeneratorConfig, build_generator
from stylize.inference.large import fits_whole, paint_large, raster_place
from stylize.inference.options import PaintOptions
from stylize.inference.plans import CPU, MemoryBudget, Plan, choose_plan
from stylize.inference.stylizer import Stylizer
from stylize.models.file import ModelCard, encode_model
from stylize.pictures.limits import limits
from stylize.pictures.picture import Picture
from stylize.pictures.raster import Metadata, Raster, raster_of
from stylize.system.compute import Compute
from stylize.system.row_store import RowStore

GIB = 2**30
MIB = 2**20


def stylizer_of(name: str = "johnson", norm: str = "instance", width: int = 4) -> Stylizer:
    return Stylizer(build_generator(GeneratorConfig(name=name, norm=norm, width=width)), Compute(CPU))


def room(device_bytes: int, folder: Path) -> MemoryBudget:
    return MemoryBudget(CPU, device_bytes, device_bytes, folder, 2**40)


def photograph(width: int = 150, height: int = 203, alpha: bool = False) -> Picture:
    image = Image.fromarray(data.chelsea()).resize((width, height))
    rgb = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return Picture(rgb, torch.rand(1, height, width) if alpha else None)


def levels(raster: Raster) -> torch.Tensor:
    return raster.rows.read(0, raster.rows.shape[0]).int()


def keep_maps(place: Path | torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures so small that they would all be kept in memory; in low strips."""

    def chosen(*arguments: Any) -> Plan:
        return choose_plan(*arguments)._replace(place=place, strip_px=32)

    monkeypatch.setattr("stylize.inference.large.choose_plan", chosen)


def test_a_stylizer_holds_the_compiled_functions_before_memory_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[torch.dtype] = []
    monkeypatch.setattr("stylize.ops.load_kernels", loaded.append)
    Stylizer(build_generator(GeneratorConfig(width=4)), Compute(torch.device("meta"), "bf16"))
    assert loaded == []
    Stylizer(build_generator(GeneratorConfig(width=4)), Compute(CPU, "bf16"))
    Stylizer(build_generator(GeneratorConfig(width=4)), Compute(CPU))
    assert loaded == [torch.bfloat16, torch.float32]


# Equal to the whole


@pytest.mark.parametrize("place", ("memory", "disk"))
@pytest.mark.parametrize("bits", (8, 16))
@pytest.mark.parametrize("paint", (PaintOptions(), PaintOptions(strength=0.6), PaintOptions(keep_colors=True)))
def test_a_picture_in_strips_has_the_levels_of_the_whole(
    paint: PaintOptions, bits: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stylizer, notes = stylizer_of(), Metadata(bits=bits)
    source = raster_of([photograph(alpha=True)], notes)
    expected = levels(raster_of([stylizer(source.picture(), paint)], notes))
    shares: list[float] = []
    keep_maps(tmp_path if place == "disk" else CPU, monkeypatch)
    painted = paint_large(stylizer, source, None, paint, room(GIB, tmp_path), shares.append)
    difference = (levels(painted) - expected).abs()
    assert difference.max() <= (1 if bits == 8 else 8)
    assert difference.double().mean() < (0.01 if bits == 8 else 0.5)
    assert torch.equal(levels(painted)[..., 3], levels(source)[..., 3])
    assert sum(shares) == pytest.approx(1)
    assert painted.metadata == notes
    assert list(tmp_path.iterdir()) == []


def test_every_frame_is_painted(tmp_path: Path) -> None:
    stylizer = stylizer_of()
    frames = [photograph(), Picture(photograph().rgb.flip(2))]
    painted = paint_large(
        stylizer, raster_of(frames, Metadata()), None, PaintOptions(), room(10**9, tmp_path), lambda _: None
    )
    expected = raster_of([stylizer(frame) for frame in frames], Metadata())
    assert painted.frames == 2
    assert (levels(painted) - levels(expected)).abs().max() <= 1


@pytest.mark.parametrize("whole_fits", (True, False), ids=("small one whole", "small one in strips"))
def test_larger_strokes_are_those_of_the_whole(
    whole_fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stylize.inference.large.fits_whole", lambda *arguments: whole_fits)
    keep_maps(tmp_path, monkeypatch)
    monkeypatch.setattr("stylize.inference.large.STRIP_PIXELS", 5_000)
    stylizer, paint = stylizer_of(), PaintOptions(stroke_scale=2)
    whole = photograph()
    rgb = torch.nn.functional.interpolate(whole.rgb[None], (102, 75), mode="bicubic", antialias=True)[0]
    small = raster_of([Picture(rgb)], Metadata(bits=16))  # in 8 bits it would be another picture
    painted = paint_large(stylizer, raster_of([whole], Metadata()), small, paint, room(GIB, tmp_path), lambda _: None)
    expected = levels(raster_of([stylizer(whole, paint)], Metadata()))
    assert (levels(painted) - expected).abs().max() <= 1
    assert (levels(painted) - expected).abs().double().mean() < 0.05


def test_in_bfloat16_strips_differ_no_more_than_that_precision_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = build_generator(GeneratorConfig(width=8))
    source = raster_of([photograph()], Metadata())
    exact, rough = (Stylizer(generator, Compute(CPU, precision)) for precision in ("fp32", "bf16"))
    expected, whole = (levels(raster_of([stylizer(source.picture())], Metadata())) for stylizer in (exact, rough))
    for place in (CPU, tmp_path):
        keep_maps(place, monkeypatch)
        painted = levels(paint_large(rough, source, None, PaintOptions(), room(GIB, tmp_path), lambda _: None))
        off = (painted - expected).abs().double().mean()
        assert off <= 1.5 * (whole - expected).abs().double().mean()


@pytest.mark.parametrize("precision", ("bf16", "fp16"))
@pytest.mark.parametrize("place", ("memory", "disk"))
def test_in_16_bits_strips_have_about_the_grey_levels_of_the_whole(
    precision: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = build_generator(GeneratorConfig(width=8))
    source = raster_of([photograph()], Metadata())
    stylizer = Stylizer(generator, Compute(CPU, precision))
    whole = levels(raster_of([stylizer(source.picture())], Metadata()))
    keep_maps(tmp_path if place == "disk" else CPU, monkeypatch)
    painted = levels(paint_large(stylizer, source, None, PaintOptions(), room(GIB, tmp_path), lambda _: None))
    assert whole.float().std() > 5
    assert (painted - whole).abs().max() <= (8 if precision == "bf16" else 1)
    assert (painted - whole).abs().double().mean() < (0.7 if precision == "bf16" else 0.1)


def test_strips_are_read_for_their_colors_only_where_these_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rows = RowStore.read

    def noted(self: RowStore, first: int, last: int) -> torch.Tensor:
        if self is source.rows:
            read.append(last - first)
        return rows(self, first, last)

    source = raster_of([photograph()], Metadata())
    keep_maps(CPU, monkeypatch)
    monkeypatch.setattr(RowStore, "read", noted)
    counts = []
    for paint in (PaintOptions(), PaintOptions(strength=0.5)):
        read.clear()
        paint_large(stylizer_of(), source, None, paint, room(GIB, tmp_path), lambda _: None)
        counts.append(len(read))
    assert counts[1] - counts[0] == -(-203 // 32)


# What fits


def test_what_a_whole_picture_takes_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stylizer = stylizer_of(width=32)
    needed = stylizer.bytes_for((1000, 800))
    gib = f"{needed / GIB:.2f}"
    with caplog.at_level(logging.DEBUG, "stylize"):
        assert fits_whole(stylizer, (1000, 800), PaintOptions(), room(needed, tmp_path))
        assert not fits_whole(stylizer, (1000, 800), PaintOptions(), room(needed - 1, tmp_path))
    assert caplog.messages == [
        f"1000×800 px as a whole would take about {gib} GiB of the {gib} that there are: {decision}"
        for decision in ("whole", "in strips")
    ]
    assert fits_whole(stylizer, (1000, 800), PaintOptions(stroke_scale=2), room(needed - 1, tmp_path))


def test_files_are_decoded_to_the_disk_where_they_would_take_much_of_the_memory(tmp_path: Path) -> None:
    assert raster_place(100, room(800, tmp_path)) is None
    assert raster_place(101, room(800, tmp_path)) == tmp_path


def test_a_network_that_cannot_paint_in_strips_says_what_the_whole_takes(tmp_path: Path) -> None:
    source = raster_of([photograph()], Metadata())
    with pytest.raises(StylizeError) as caught:
        paint_large(
            stylizer_of("texture_network", width=32), source, None, PaintOptions(), room(MIB, tmp_path), lambda _: None
        )
    assert re.fullmatch(
        r"a picture of 150×203 px takes about 0\.\d GiB of memory, for this generator cannot paint in strips; "
        r"--max-memory allows more, --max-size shrinks the picture",
        str(caught.value),
    )


def test_a_picture_that_is_too_small_is_refused(tmp_path: Path) -> None:
    source = raster_of([photograph(40, 12)], Metadata())
    with pytest.raises(StylizeError) as caught:
        paint_large(stylizer_of(), source, None, PaintOptions(), room(10**9, tmp_path), lambda _: None)
    assert str(caught.value) == "got an image of 40×12 px, must be at least 16 px in each direction"


# The command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "dots.safetensors")
    return tmp_path


def save(path: Path, width: int, height: int) -> Path:
    Image.fromarray(data.chelsea()).resize((width, height)).save(path)
    return path


def write_wide_model(path: Path, config: GeneratorConfig | None = None) -> None:
    config = config or GeneratorConfig(width=32)
    path.write_bytes(encode_model(build_generator(config), ModelCard(generator=config, style="dots")))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stylize", "apply", "--model", "dots.safetensors", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )


def own_gib(*arguments: str) -> float:
    """What the command takes for a tiny picture."""
    save(Path("tiny.png"), 32, 32)
    return peak_gib("tiny.png", *arguments)


def peak_gib(*arguments: str) -> float:
    program = (  # not getrusage, whose peak begins at that of the process which was forked
        "import sys; from stylize.cli import cli;"
        "cli.main(['apply', '--model', 'dots.safetensors', *sys.argv[1:]], standalone_mode=False);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1]) / MIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
def test_memory_stays_below_what_is_allowed_and_the_picture_the_same(folder: Path) -> None:
    save(folder / "large.png", 3001, 2003)
    own = own_gib()
    allowed = own + 0.3
    assert peak_gib("large.png", "-o", "strips.png", "--max-memory", f"{allowed:.3f}") < allowed
    assert peak_gib("large.png", "-o", "whole.png", "--max-memory", "16") > allowed
    strips, whole = (np.asarray(Image.open(name)).astype(int) for name in ("strips.png", "whole.png"))
    assert whole.std() > 5
    assert np.abs(strips - whole).max() <= 1
    assert np.abs(strips - whole).mean() < 0.01


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
@pytest.mark.parametrize("more_gib", (0.35, 0.85))  # some maps are kept in memory, or many
def test_a_network_of_the_usual_width_stays_below_what_is_allowed_every_time(folder: Path, more_gib: float) -> None:
    write_wide_model(folder / "dots.safetensors")
    save(folder / "large.png", 2801, 2101)
    allowed = own_gib() + more_gib
    arguments = ("large.png", "-o", "strips.png", "--overwrite", "--max-memory", f"{allowed:.3f}")
    assert max(peak_gib(*arguments) for _ in range(2)) < allowed  # a heap in pieces would not be so every time


# Prints what the process has after every strip: 150 of a sweep, as of a picture a hundred times as large.
MANY_STRIPS = """
import pathlib, torch
from stylize.generators import GeneratorConfig, build_generator
from stylize.inference.plans import CPU, MemoryBudget, choose_plan
from stylize.inference.strips import StripPainter
from stylize.inference.stylizer import Stylizer
from stylize.system.compute import Compute
from stylize.system.memory import keep_freed_memory, own_bytes

keep_freed_memory()
width, height = 6000, 1200
stylizer = Stylizer(build_generator(GeneratorConfig(width=16)), Compute(CPU))
stages = stylizer.generator.stages(height, width)
room = MemoryBudget(CPU, 2**31, 2**31, pathlib.Path(), 2**31)
plan = choose_plan(stages, room, torch.float32)._replace(strip_px=8)
photograph = torch.rand(1, 3, height, width).contiguous(memory_format=torch.channels_last)
with (
    torch.inference_mode(),
    StripPainter(stages, plan, lambda a, b: photograph[:, :, a:b], height, CPU, torch.float32) as painter,
):
    for strip, _ in zip(range(150), painter.measure()):
        print(own_bytes())
"""


def test_memory_does_not_grow_from_strip_to_strip() -> None:
    done = subprocess.run([sys.executable, "-c", MANY_STRIPS], check=True, capture_output=True, text=True)
    held = [int(line) / MIB for line in done.stdout.split()]
    assert len(held) == 150
    assert held[-1] - held[20] < 60  # more than 100 where nothing is returned, and 5000 of 400 megapixels


@pytest.mark.parametrize("scale", ("1", "2"))
@pytest.mark.parametrize("error", (torch.OutOfMemoryError("full"), RuntimeError("MPS backend out of memory (…)")))
def test_a_whole_picture_for_which_a_device_has_no_memory_is_painted_in_strips(
    error: RuntimeError, scale: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder / "image.png", 90, 60)
    arguments = ["apply", "image.png", "--model", "dots.safetensors", "--stroke-scale", scale, "-o"]
    cli.main([*arguments, "whole.png"], standalone_mode=False)
    paint_many = Stylizer.paint_many

    def short_of_memory(self: Stylizer, pictures: list[Picture], paint: PaintOptions) -> list[Picture]:
        if pictures[0].size == (90, 60):
            raise error
        return paint_many(self, pictures, paint)

    monkeypatch.setattr(Stylizer, "paint_many", short_of_memory)
    cli.main([*arguments, "strips.png"], standalone_mode=False)
    assert "the memory of cpu does not suffice for the whole picture" in caplog.messages
    strips, whole = (np.asarray(Image.open(name)).astype(int) for name in ("strips.png", "whole.png"))
    difference = np.abs(strips - whole)
    assert difference.max() <= 1 if scale == "1" else difference.mean() < 5  # a file is shrunk by another filter


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
@pytest.mark.parametrize(("name", "width"), (("johnson", 32), ("johnson_lite", 32), ("texture_network", 32)))
def test_what_a_whole_picture_takes_is_estimated_well(folder: Path, name: str, width: int) -> None:
    config = GeneratorConfig(name=name, width=width, margin=0)
    write_wide_model(folder / "dots.safetensors", config)
    save(folder / "large.png", 1501, 1003)
    stylizer = Stylizer(build_generator(config), Compute(CPU))
    estimate = stylizer.bytes_for((1501, 1003)) / GIB
    assert 0.7 * estimate < peak_gib("large.png", "--max-memory", "9") - own_gib("--overwrite") < 1.1 * estimate


def test_what_is_decided_is_told_with_verbose_only(folder: Path) -> None:
    save(folder / "image.png", 90, 60)
    assert run("image.png", "-v").stderr.count("90×60 px as a whole would take about 0.13 GiB of the ") == 1
    assert "as a whole" not in run("image.png", "--overwrite").stderr


def test_too_little_memory_is_one_line(folder: Path) -> None:
    save(folder / "image.png", 90, 60)
    told = run("image.png", "--max-memory", "0.1")
    assert told.returncode == 1
    assert re.fullmatch(
        r"stylize: image\.png: a picture of 90×60 px needs [01]\.\d\d GiB of memory even in strips, got 0\.10; "
        r"--max-memory allows more, --max-size shrinks it",
        told.stderr.splitlines()[-1],
    )
    assert set(contents(folder)) == {"dots.safetensors", "image.png"}


def test_a_decompression_bomb_is_refused_unless_it_is_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder / "image.png", 90, 60)
    monkeypatch.setattr(limits, "safe_pixels", 2000)
    arguments = ["apply", "image.png", "--model", "dots.safetensors", "-o", "out.png"]
    with pytest.raises(StylizeError, match=r"^image\.png: .*--max-pixels"):
        cli.main(arguments, standalone_mode=False)
    cli.main([*arguments, "--max-pixels", "5400"], standalone_mode=False)
    with Image.open("out.png") as painted:
        assert painted.size == (90, 60)


def test_killed_at_any_moment_the_output_is_whole_or_absent_and_the_next_start_tidies_up(folder: Path) -> None:
    save(folder / "image.png", 900, 700)
    own = own_gib()
    for path in folder.glob("tiny.*"):
        path.unlink()
    command = [sys.executable, "-m", "stylize", "apply", "--model", "dots.safetensors", "image.png", "-o", "out.png"]
    command += ["--max-memory", f"{own + 0.17:.3f}", "--overwrite"]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole, took_s = (folder / "out.png").read_bytes(), time.monotonic() - start
    for share in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(share * took_s)
        process.kill()
        process.wait()
        assert (folder / "out.png").read_bytes() == whole
    (folder / ".out.png.abcd_123.part").write_bytes(whole[:1000])
    subprocess.run(command, check=True, capture_output=True)
    assert set(contents(folder)) == {"dots.safetensors", "image.png", "out.png"}


def test_temporary_files_of_living_processes_and_of_others_stay(folder: Path) -> None:
    from stylize.system.files import remove_abandoned, written_atomically

    (folder / ".download.part").touch()
    with written_atomically(folder / "out.png") as file:
        file.write(b"half")
        remove_abandoned(folder)
        assert len(list(folder.glob(".out.png.*.part"))) == 1
    assert (folder / "out.png").read_bytes() == b"half"
    assert (folder / ".download.part").exists()
