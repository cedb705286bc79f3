"""Many pictures: together, one by one, compiled."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures_runs import contents, picture, write_model
from PIL import Image

from stylize.cli import cli
from stylize.errors import StylizeError
from stylize.generators import GeneratorConfig, build_generator
from stylize.inference.compilation import choose_shapes
from stylize.inference.options import PaintOptions
from stylize.inference.painter import Shape
from stylize.inference.pipeline import (
    WorkItem,
    ahead_if_small,
    behind_if_small,
    grouped,
    read_by_threads,
    written_by_threads,
)
from stylize.inference.stylizer import Stylizer
from stylize.norms import NORMS
from stylize.ops.cpu import winograd
from stylize.pictures.picture import Picture
from stylize.pictures.raster import Metadata, raster_of
from stylize.system.compiler import check_compiler, has_compiler, keep_compiled_code, why_not_compile
from stylize.system.compute import Compute

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def pictures(count: int, width: int = 24, height: int = 20) -> list[Picture]:
    """Of contrasts that differ, so that statistics of the whole batch would be wrong for each."""
    return [Picture(torch.rand(3, height, width) / (1 + i), torch.rand(1, height, width)) for i in range(count)]


def stylizer_with(norm: str, name: str = "johnson") -> Stylizer:
    """One whose running statistics are not those of its pictures, and whose gates stand in the middle."""
    generator = build_generator(GeneratorConfig(name=name, width=4, norm=norm))
    for parameter_name, values in generator.state_dict().items():
        if "running" in parameter_name or "gate" in parameter_name:
            values.uniform_(0.3, 0.7)
    return Stylizer(generator, Compute(CPU))


@pytest.fixture
def compiler() -> None:
    if not has_compiler(CPU):
        pytest.skip("no compiler for cpu is found")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty; torch's and this test's settings of it are undone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path / "cache"


# Together


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("generator", ["johnson", "texture_network"])
@pytest.mark.parametrize("paint", [PaintOptions(), PaintOptions(strength=0.6, keep_colors=True, max_size_px=20)])
def test_pictures_painted_together_are_as_painted_one_by_one(norm: str, generator: str, paint: PaintOptions) -> None:
    stylizer, photographs = stylizer_with(norm, generator), pictures(3)
    together = stylizer.paint_many(photographs, paint)
    for photograph, painted in zip(photographs, together, strict=True):
        alone = stylizer(photograph, paint)
        assert painted.size == ((24, 20) if paint.max_size_px is None else (20, 17))
        assert (painted.rgb - alone.rgb).abs().max() <= 1e-5
        assert torch.equal((painted.rgb * 255).round(), (alone.rgb * 255).round())
        assert painted.alpha is not None
        assert alone.alpha is not None
        assert torch.equal(painted.alpha, alone.alpha)


def test_pictures_of_several_sizes_are_not_painted_together() -> None:
    with pytest.raises(ValueError, match="pictures to paint together") as caught:
        stylizer_with("instance").paint_many([*pictures(1), *pictures(1, 30)])
    assert str(caught.value) == "pictures to paint together: got the sizes [(24, 20), (30, 20)], must be of one"


def test_a_megapixel_goes_together_on_cuda_and_one_picture_on_a_cpu() -> None:
    sizes = ((256, 256), (1024, 1024), (1023, 1024), (4000, 3000))
    assert [Compute(CUDA).pictures_together(size) for size in sizes] == [16, 1, 1, 1]
    assert {Compute(CPU).pictures_together(size) for size in sizes} == {1}


def test_consecutive_pictures_of_one_size_go_together_and_failures_keep_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Compute, "pictures_together", lambda self, size: 3 if size[0] < 50 else 1)
    widths = [None, 24, None, 24, 24, 24, 30, 24, 60, 60, None, 24, None]
    pieces = [
        WorkItem(Path(str(i)), Path("-"), None if width is None else raster_of(pictures(1, width), Metadata()))
        for i, width in enumerate(widths)
    ]
    groups = [[int(piece.source.name) for piece in group] for group in grouped(pieces, Compute(CUDA))]
    assert groups == [[0], [1, 2, 3, 4], [5], [6], [7], [8], [9], [10], [11, 12]]


def test_no_more_photographs_are_read_than_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compute, "pictures_together", lambda self, size: 2)
    read: list[int] = []

    def reading() -> Iterator[WorkItem]:
        for i in range(6):
            read.append(i)
            yield WorkItem(Path(str(i)), Path("-"), raster_of(pictures(1), Metadata()))

    assert [len(read) for _ in grouped(reading(), Compute(CUDA))] == [2, 4, 6]


def test_weights_are_transformed_once_for_all_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    transformed: list[torch.Size] = []
    transform = winograd._transformed

    def counted(kernels: torch.Tensor) -> torch.Tensor:
        transformed.append(kernels.shape)
        return transform(kernels)

    monkeypatch.setattr(winograd, "_transformed", counted)
    stylizer = Stylizer(build_generator(GeneratorConfig(width=16)), Compute(CPU))
    transformed.clear()
    for width in (24, 24, 40):
        stylizer(pictures(1, width)[0])
    assert len(transformed) == 12  # ten convolutions of the residual blocks, two that enlarge


# Beside each other


def small_item(name: object, width: int = 24) -> WorkItem:
    return WorkItem(Path(str(name)), Path("-"), raster_of(pictures(1, width), Metadata()))


def test_several_threads_read_at_a_time_and_the_order_stays() -> None:
    all_read = threading.Barrier(3)

    def read(number: int) -> int:
        all_read.wait(60)
        return number

    assert list(read_by_threads(range(9), read, lambda number: 10, threads=3)) == list(range(9))


def test_several_threads_write_at_a_time_and_the_order_stays() -> None:
    all_write = threading.Barrier(3)

    def write(item: WorkItem) -> None:
        all_write.wait(60)

    written = written_by_threads((small_item(i) for i in range(9)), write, threads=3)
    assert [item.source.name for item in written] == [str(i) for i in range(9)]


def test_no_more_than_two_small_pictures_a_thread_are_read_ahead_and_wait_to_be_written() -> None:
    read: list[int] = []
    items = read_by_threads(range(40), lambda i: read.append(i) or i, lambda i: 10, threads=3)
    for i in items:
        assert i < len(read) <= i + 1 + 2 * 3
    may_write = threading.Event()
    made: list[int] = []

    def making() -> Iterator[WorkItem]:
        for i in range(20):
            made.append(i)
            if i == 7:  # the eighth comes only when one of the first has been written
                may_write.set()
            yield small_item(i)

    def write(item: WorkItem) -> None:
        may_write.wait(0.2)

    written = written_by_threads(making(), write, threads=3)
    next(written)
    assert len(made) <= 8
    assert len(list(written)) == 19


def test_of_pictures_larger_than_all_that_may_wait_one_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylize.inference.pipeline.SMALL_PIXELS", 10)  # 60 pixels may wait
    sizes = [10, 20, 30, 1000, 1000, 70, 10, 10]
    read: list[int] = []
    left: list[int] = []
    for i in read_by_threads(range(8), lambda i: read.append(i) or i, lambda i: sizes[i], threads=3):
        left.append(i)
        waiting = [sizes[j] for j in set(read) - set(left)]
        assert sum(waiting) <= 60 or len(waiting) == 1
    assert left == list(range(8))


def test_a_picture_larger_than_all_that_may_wait_is_written_before_the_next_but_one_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stylize.inference.pipeline.SMALL_PIXELS", 100)  # 24×20 and 50×20 are above 200
    told: list[str] = []

    def making() -> Iterator[WorkItem]:
        for i in range(5):
            told.append(f"made {i}")
            yield small_item(i)

    list(written_by_threads(making(), lambda item: told.append(f"written {item.source}"), threads=1))
    for i in range(3):
        assert told.index(f"written {i}") < told.index(f"made {i + 2}")


def test_what_fails_in_a_thread_is_raised_in_its_turn() -> None:
    def fail(number: int) -> int:
        if number == 1:
            raise ValueError("of the second")
        return number

    items = read_by_threads(range(30), fail, lambda number: 10, threads=2)
    assert next(items) == 0
    with pytest.raises(ValueError, match="of the second"):
        next(items)
    written = written_by_threads((small_item(i) for i in range(9)), lambda item: fail(int(item.source.name)), threads=2)
    assert next(written).source.name == "0"
    with pytest.raises(ValueError, match="of the second"):
        next(written)


def test_a_device_that_leaves_cores_idle_has_half_of_them_for_reading_and_half_for_writing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, threads in ((1, 1), (2, 1), (16, 8)):
        monkeypatch.setattr("stylize.system.compute.usable_cores", lambda cores=cores: cores)
        assert (Compute(CUDA).file_threads, Compute(CPU).file_threads) == (threads, 1)


def test_a_small_photograph_is_read_while_another_is_in_use_and_a_large_one_in_its_turn() -> None:
    read = [threading.Event() for _ in range(4)]

    def reading(job: int) -> int:
        read[job].set()
        return job

    items = ahead_if_small(range(4), reading, lambda job: job != 2)
    assert next(items) == 0
    assert read[1].wait(60)
    assert next(items) == 1
    assert not read[2].wait(0.05)
    assert not read[3].is_set()
    assert list(items) == [2, 3]


def test_a_small_picture_is_written_while_the_next_is_made_and_a_large_one_before_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stylize.inference.pipeline.SMALL_PIXELS", 600)
    made, told = [threading.Event() for _ in range(4)], []

    def making() -> Iterator[WorkItem]:
        for i, width in enumerate((24, 24, 50, 24)):
            told.append(f"made {i}")
            made[i].set()
            yield WorkItem(Path(str(i)), Path("-"), raster_of(pictures(1, width), Metadata()))

    def write(piece: WorkItem) -> None:
        if piece.source.name == "0":
            assert made[1].wait(60)
        told.append(f"written {piece.source}")
        piece.picture = None

    assert [piece.source.name for piece in behind_if_small(making(), write)] == ["0", "1", "2", "3"]
    assert told.index("made 1") < told.index("written 0")
    assert told.index("written 2") < told.index("made 3")
    assert [line for line in told if "written" in line] == [f"written {i}" for i in range(4)]


def test_no_more_than_three_small_pictures_are_in_memory() -> None:
    begun: list[int] = []
    written: list[WorkItem] = []
    held: list[int] = []

    def read(job: int) -> WorkItem:
        begun.append(job)
        return WorkItem(Path(str(job)), Path("-"), raster_of(pictures(1), Metadata()))

    def write(piece: WorkItem) -> None:
        held.append(len(begun) - len(written))
        written.append(piece)

    pieces = behind_if_small(ahead_if_small(range(20), read, lambda job: True), write)
    assert len(list(pieces)) == 20
    assert max(held) <= 3


def test_a_file_that_cannot_be_written_by_a_fault_of_the_program_stops_it() -> None:
    def write(piece: WorkItem) -> None:
        raise ZeroDivisionError(piece.source.name)

    pieces = (WorkItem(Path(str(i)), Path("-"), raster_of(pictures(1), Metadata())) for i in range(3))
    with pytest.raises(ZeroDivisionError, match="0"):
        list(behind_if_small(pieces, write))


# The command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "dots.safetensors")
    for i, width in enumerate((48, 48, 48, 60, 48, 48)):
        picture(tmp_path / "photos" / f"{i}.png", width, seed=i)
    (tmp_path / "photos" / "1.jpg").write_text("not a picture\n")
    return tmp_path


def paint_folder(output: str, *options: str) -> str:
    """What the command says at its end, if it fails."""
    arguments = ["apply", "photos", "--model", "dots.safetensors", "--precision", "fp32", "-o", output, *options]
    try:
        cli.main(arguments, standalone_mode=False)
    except StylizeError as error:
        return str(error)
    return ""


def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compute, "pictures_together", lambda self, size: 2)
    monkeypatch.setattr(Compute, "leaves_cores_idle", True)
    monkeypatch.setattr(Compute, "file_threads", 3)


def test_a_folder_painted_in_batches_and_threads_is_as_painted_one_by_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = "1 of 7 pictures failed: photos/1.jpg: not an image of a known format"
    assert paint_folder("alone") == failure
    as_on_cuda(monkeypatch)
    assert paint_folder("together") == failure
    assert contents(folder / "together") == contents(folder / "alone")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("together")]
    assert told == [f"together/{i}.png" for i in range(6)]


def test_a_batch_that_fails_is_painted_one_by_one_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paint_folder("alone")
    as_on_cuda(monkeypatch)
    paint_many = Stylizer.paint_many

    def short_of_memory(self: Stylizer, pictures: list[Picture], paint: PaintOptions) -> list[Picture]:
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("out of memory\nand much about it")
        return paint_many(self, pictures, paint)

    monkeypatch.setattr(Stylizer, "paint_many", short_of_memory)
    with caplog.at_level(logging.WARNING, "stylize"):
        paint_folder("together")
    assert caplog.messages == ["2 pictures together failed (out of memory); painting them one by one"] * 2
    assert contents(folder / "together") == contents(folder / "alone")


def test_pictures_too_small_fail_each_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda(monkeypatch)
    for i in (7, 8):
        picture(folder / "photos" / f"{i}.png", 8, 8)
    assert paint_folder("out") == (
        "3 of 9 pictures failed: photos/1.jpg: not an image of a known format; "
        "photos/7.png: got an image of 8×8 px, must be at least 16 px in each direction; "
        "photos/8.png: got an image of 8×8 px, must be at least 16 px in each direction"
    )
    assert set(contents(folder / "out")) == {f"{i}.png" for i in range(6)}


def test_a_photograph_given_twice_does_not_replace_its_own_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_cuda(monkeypatch)
    twice = ["photos/0.png", "photos/0.png"]
    with pytest.raises(StylizeError) as caught:
        cli.main(["apply", *twice, "--model", "dots.safetensors"], standalone_mode=False)
    assert str(caught.value) == ("1 of 2 pictures failed: photos/0.dots.png: is there already; --overwrite replaces it")


# Compiled


def test_compilation_follows_device_and_megapixels_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stylize.system.compiler.has_compiler", lambda device: True)
    with caplog.at_level(logging.DEBUG, "stylize"):
        assert choose_shapes("auto", Compute(CUDA, "bf16"), [(256, 256)] * 30_600) == {Shape(16, 256, 256)}
        assert choose_shapes("auto", Compute(CUDA, "bf16"), [(1000, 1000)] * 1999 + [(2000, 1000)] * 24) == frozenset()
        assert choose_shapes("auto", Compute(CPU, "bf16"), [(1000, 1000)] * 5000) == frozenset()
        assert choose_shapes("never", Compute(CUDA, "bf16"), [(1000, 1000)] * 5000) == frozenset()
        assert choose_shapes("always", Compute(CPU, "fp32"), [(40, 30)]) == {Shape(1, 40, 30)}
    assert caplog.messages == [
        "--compile: auto is on for 30600 of 256×256 px, 2005.4 megapixels, at least the 2000 that repay it on cuda",
        "--compile: auto is off: no size has the 2000 megapixels that repay it on cuda, at most 1999.0",
        "--compile: auto is off: on cpu the kernels of the eager networks, which it would turn off, are faster",
        "--compile: never is off",
        "--compile: always is on for 1 of 40×30 px, 0.0 megapixels",
    ]


def test_no_file_is_opened_to_find_out_where_compilation_is_impossible() -> None:
    def sizes() -> Iterator[tuple[int, int]]:
        raise AssertionError
        yield 0, 0

    assert choose_shapes("auto", Compute(CPU, "fp32"), sizes()) == frozenset()
    assert choose_shapes("never", Compute(CPU, "bf16"), sizes()) == frozenset()


def test_at_most_eight_sizes_are_compiled_those_with_the_most_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylize.inference.compilation.check_compiler", lambda device, place: None)
    sizes = [(20 + i, 20) for i in range(10)]
    assert {shape.width for shape in choose_shapes("always", Compute(CPU, "fp32"), sizes)} == set(range(22, 30))


@pytest.mark.parametrize(
    ("missing", "device"),
    [("importlib.util.find_spec", CUDA), ("shutil.which", CUDA), ("shutil.which", CPU), ("pathlib.Path.exists", CPU)],
)
def test_without_what_it_needs_there_is_no_compiler(
    missing: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("importlib.util.find_spec", "shutil.which", "pathlib.Path.exists"):
        monkeypatch.setattr(name, lambda *_, found=name != missing: found or None)
    assert not has_compiler(device)
    assert device == CPU or why_not_compile(device) == f"no compiler for {device.type} is found"
    with pytest.raises(StylizeError) as caught:
        check_compiler(device, "--compile")
    assert str(caught.value) == f"--compile: got 'always', but no compiler for {device.type} is found"
    monkeypatch.undo()


def test_compilation_is_for_cuda_alone_unless_it_is_asked_for() -> None:
    assert why_not_compile(CPU) == "on cpu the kernels of the eager networks, which it would turn off, are faster"
    assert why_not_compile(torch.device("mps")) == "it pays on cuda, not on mps"


def test_compiled_code_is_kept_in_the_cache_folder_of_the_user(own_cache: Path) -> None:
    keep_compiled_code()
    folder = own_cache / "stylize" / "compiled"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_compiled_code_is_kept_where_the_user_said(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    assert not own_cache.exists()


def test_a_cache_folder_that_cannot_be_made_is_told(own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    own_cache.write_text("a file")
    keep_compiled_code()
    assert caplog.messages == [
        f"{own_cache}/stylize/compiled: cannot be created (Not a directory); compiled code is not kept there"
    ]
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_a_compilation_that_fails_is_told_and_painting_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(network: torch.nn.Module, dynamic: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def fail(photographs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no header\nand much about it")

        return fail

    monkeypatch.setattr(torch, "compile", compiled)
    photograph = pictures(1)[0]
    generator = build_generator(GeneratorConfig(width=4))
    stylizer = Stylizer(generator, Compute(CPU), compiled=[Shape(1, 24, 20)])
    painted = [stylizer(photograph).rgb for _ in range(2)]
    assert caplog.messages == ["--compile: compilation failed (no header); painting without"]
    assert torch.equal(painted[0], Stylizer(generator, Compute(CPU))(photograph).rgb)
    assert torch.equal(*painted)


@pytest.mark.parametrize("error", (torch.OutOfMemoryError("full"), RuntimeError("MPS backend out of memory")))
def test_a_compiled_network_without_memory_is_no_failed_compilation(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def compiled(network: torch.nn.Module, dynamic: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def fail_once(photographs: torch.Tensor) -> torch.Tensor:
            calls.append(len(photographs))
            if len(calls) == 1:
                raise error
            return photographs.clone()

        return fail_once

    monkeypatch.setattr(torch, "compile", compiled)
    stylizer = Stylizer(build_generator(GeneratorConfig(width=4)), Compute(CPU), compiled=[Shape(1, 24, 20)])
    with pytest.raises(type(error)):
        stylizer(pictures(1)[0])
    stylizer(pictures(1)[0])
    assert (calls, caplog.messages) == ([1, 1], [])


@pytest.mark.usefixtures("compiler")
def test_the_compiled_network_paints_what_the_eager_one_paints(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "image.png", 40, 32)
    model = write_model(tmp_path / "dots.safetensors")
    options = ["image.png", "--model", str(model), "--precision", "fp32"]
    cli.main(["apply", *options, "--compile", "always", "-o", "compiled.png"], standalone_mode=False)
    cli.main(["apply", *options, "--compile", "never", "-o", "eager.png"], standalone_mode=False)
    torch.compiler.reset()
    compiled, eager = (np.asarray(Image.open(f"{name}.png")).astype(int) for name in ("compiled", "eager"))
    assert eager.std() > 5
    assert np.abs(compiled - eager).mean() < 0.01
    assert np.abs(compiled - eager).max() <= 1
    assert any((own_cache / "stylize" / "compiled").rglob("*.so"))
