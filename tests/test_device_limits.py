"""What devices with memory of their own can take, by arithmetic on one that every machine has: torch's meta device."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stylize.errors import StylizeError
from stylize.evaluation.contrast import rms_difference
from stylize.generators import GeneratorConfig, build_generator
from stylize.generators.base import Stage
from stylize.inference import plans
from stylize.inference.large import fits_whole, paint_large
from stylize.inference.options import PaintOptions
from stylize.inference.painter import TorchPainter
from stylize.inference.plans import MemoryBudget, choose_plan, largest_values
from stylize.inference.stylizer import RGB_TO_YCC, Stylizer, shrink, with_colors_of
from stylize.pictures.raster import Raster
from stylize.system.compute import Compute
from stylize.system.devices import INDEXABLE_VALUES, has_antialiased_resizing, is_out_of_memory
from stylize.system.row_store import RowStore

CPU, DEVICE = torch.device("cpu"), torch.device("meta")
GIB = 2**30
LARGE = ((8192, 5464), (12247, 8165), (24495, 16330))  # 45, 100 and 400 megapixels


def stylizer_on(device: torch.device, name: str = "johnson", width: int = 32, precision: str = "bf16") -> Stylizer:
    return Stylizer(build_generator(GeneratorConfig(name=name, width=width, margin=0)), Compute(device, precision))


def room(device: torch.device = DEVICE, device_bytes: int = 2**50) -> MemoryBudget:
    return MemoryBudget(device, device_bytes, device_bytes, Path("/tmp"), 2**50)


def stages_of(stylizer: Stylizer, size: tuple[int, int]) -> list[Stage]:
    stages = stylizer.generator.stages(size[1], size[0])
    assert stages is not None
    return stages


# Maps of 2³¹ values


@pytest.mark.parametrize("size", LARGE)
def test_a_picture_whose_maps_a_device_cannot_index_is_painted_in_strips_that_it_can(size: tuple[int, int]) -> None:
    stylizer = stylizer_on(DEVICE)
    assert not fits_whole(stylizer, size, PaintOptions(), room())
    assert fits_whole(stylizer, (6600, 4900), PaintOptions(), room())
    stages = stages_of(stylizer, size)
    for device_bytes in (16 * GIB, 70 * GIB, 2**50):
        plan = choose_plan(stages, room(DEVICE, device_bytes), torch.bfloat16)
        assert largest_values(plan, stages) <= INDEXABLE_VALUES
        assert plan.working_bytes <= plans.DEVICE_WORKING_BYTES


@pytest.mark.parametrize("size", LARGE)
def test_strips_are_no_higher_than_a_device_can_index_even_if_memory_has_no_end(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "DEVICE_WORKING_BYTES", 2**60)
    stages = stages_of(stylizer_on(DEVICE), size)
    plan = choose_plan(stages, room(), torch.bfloat16)
    higher = plan._replace(strip_px=plan.strip_px + plans.LEAST_STRIP_PX)
    assert largest_values(plan, stages) <= INDEXABLE_VALUES < largest_values(higher, stages)


def test_the_largest_map_of_a_strip_is_the_upsampled_one_with_its_borders() -> None:
    stages = stages_of(stylizer_on(DEVICE), (4000, 3000))
    plan = choose_plan(stages, room(), torch.bfloat16)._replace(strip_px=160, sweeps=())
    # Of the last sweep, 160 rows and the four above and below that the last convolution sees; the one before it reads
    # 64 channels at full size, with a border of one.
    rows, border = 160 + 2 * 4, 2
    assert largest_values(plan, stages) == pytest.approx(64 * (rows + border) * (4000 + border), rel=0.03)


def test_a_cpu_indexes_as_many_values_as_there_are() -> None:
    stylizer = stylizer_on(CPU, precision="fp32")
    assert fits_whole(stylizer, LARGE[-1], PaintOptions(), room(CPU))
    assert stylizer.compute.indexable_values is None


def test_a_photograph_whose_own_values_cannot_be_indexed_is_enlarged_in_strips() -> None:
    stylizer, paint = stylizer_on(DEVICE), PaintOptions(stroke_scale=8)
    assert fits_whole(stylizer, (29000, 24000), paint, room())
    assert not fits_whole(stylizer, (30000, 24000), paint, room())  # 3 · 720 megapixels


def test_a_network_that_can_neither_be_indexed_nor_painted_in_strips_is_refused_in_one_line(tmp_path: Path) -> None:
    stylizer = stylizer_on(DEVICE, "texture_network")
    width, height = LARGE[-1]
    photograph = Raster(RowStore.holding(torch.zeros(1, 1, 3, dtype=torch.uint8).expand(height, width, 3)))
    assert not fits_whole(stylizer, (width, height), PaintOptions(), room())
    with pytest.raises(StylizeError) as caught:
        paint_large(stylizer, photograph, None, PaintOptions(), room(), lambda share: None)
    assert str(caught.value) == (
        "a picture of 24495×16330 px has maps of more values than the 2147483647 that meta can index, and this "
        "generator cannot paint in strips; --max-size shrinks the picture"
    )


def test_an_image_that_cannot_be_indexed_is_refused_in_one_line() -> None:
    stylizer = stylizer_on(DEVICE)
    with pytest.raises(StylizeError) as caught:
        stylizer.paint_batch(torch.empty(1, 3, 5464, 8192, device=DEVICE), PaintOptions())
    assert str(caught.value) == (
        "got an image of 8192×5464 px, whose maps have more values than the 2147483647 that meta can index; files of "
        "this size are painted in strips, and max_size shrinks an image"
    )


def test_a_batch_has_no_more_pictures_than_can_be_indexed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = TorchPainter(build_generator(GeneratorConfig(width=4)), Compute(DEVICE))
    most = int(2.5 * painter.footprint.values_per_px * 24 * 20)
    monkeypatch.setattr("stylize.system.devices.INDEXABLE_VALUES", most)
    painted: list[int] = []
    network = TorchPainter._network

    def noted(self: TorchPainter, photographs: Tensor) -> Tensor:
        painted.append(len(photographs))
        return network(self, photographs)

    monkeypatch.setattr(TorchPainter, "_network", noted)
    with torch.inference_mode():
        assert painter.paint(torch.empty(5, 3, 20, 24, device=DEVICE)).shape == (5, 3, 20, 24)
    assert painted == [2, 2, 1]


def test_parts_of_a_batch_are_painted_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = TorchPainter(build_generator(GeneratorConfig(width=4)), Compute(CPU))
    photographs = torch.rand(5, 3, 20, 24)
    with torch.inference_mode():
        whole = painter.paint(photographs)
        monkeypatch.setattr(TorchPainter, "indexable_pictures", lambda self, size: 2)
        assert torch.equal(painter.paint(photographs), whole)


# Memory


def test_what_libraries_take_beside_the_maps_is_allowed_for_and_told(caplog: pytest.LogCaptureFixture) -> None:
    stylizer, size = stylizer_on(DEVICE), (1000, 800)
    taken = stylizer.torch_painter.footprint.bytes_per_px
    maps = 800_000 * (taken + plans.BYTES_A_PIXEL)
    assert stylizer.bytes_for(size) == pytest.approx(1.15 * maps + 2**26, abs=2)
    with caplog.at_level(logging.DEBUG, "stylize"):
        fits_whole(stylizer, size, PaintOptions(), room(DEVICE, GIB))
    assert ", 15% for workspaces, of the 1.00 that there are: whole" in caplog.text


def test_on_a_device_large_strips_are_an_eighth_of_the_free_memory_and_on_a_cpu_they_stay_small() -> None:
    stages = stages_of(stylizer_on(DEVICE), LARGE[-1])
    strips = {}
    for device, gib in ((CPU, 70), (DEVICE, 8), (DEVICE, 70)):
        plan = choose_plan(stages, room(device, gib * GIB), torch.bfloat16)
        strips[device, gib] = plan.working_bytes / GIB
    assert 0.4 < strips[CPU, 70] <= 0.5
    assert 1.5 < strips[DEVICE, 8] <= 2  # of 16 that are free
    assert 7 < strips[DEVICE, 70] <= 8


def test_a_strip_on_a_device_takes_no_more_than_its_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cpu", lambda values: torch.zeros(values.shape))  # statistics
    stylizer, size = stylizer_on(DEVICE), (1024, 768)
    stages = stages_of(stylizer, size)
    plan = plans.plans_of(stages, torch.bfloat16)[0]._replace(strip_px=64, place=DEVICE)
    estimate = plans.working_bytes(plan, stages, torch.bfloat16, DEVICE)
    peak = strip_peak_bytes(stages, plan)
    assert peak <= estimate - plans.WORKSPACE_BYTES <= 1.3 * peak


def strip_peak_bytes(stages: list[Stage], plan: plans.Plan) -> int:
    """The most that PyTorch holds while it paints in strips, without what is kept."""
    from stylize.inference.footprint import _LiveMaps
    from stylize.inference.strips import StripPainter

    image = torch.empty(0, device=DEVICE)
    with (
        torch.inference_mode(),
        _LiveMaps(image) as live,
        StripPainter(
            stages,
            plan,
            lambda first, last: torch.empty(1, 3, last - first, 1024, dtype=torch.bfloat16, device=DEVICE),
            768,
            DEVICE,
            torch.bfloat16,
        ) as painter,
    ):
        for _ in painter.measure():
            pass
        for _ in painter.strips():
            pass
    return live.peak_bytes - plan.kept_bytes


@pytest.mark.parametrize(
    ("error", "is_one"),
    (
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("no header"), False),
        (ValueError("out of memory"), False),
    ),
)
def test_exhausted_memory_is_told_from_other_errors(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


# Nobody waits for the device: the meta device has no values, and an error is raised where one is asked for


@pytest.mark.parametrize("paint", (PaintOptions(), PaintOptions(strength=0.5, keep_colors=True, stroke_scale=2)))
def test_painting_asks_the_device_for_no_value(paint: PaintOptions) -> None:
    painted = stylizer_on(DEVICE, width=4).paint_batch(torch.rand(2, 3, 64, 80), paint)
    assert (painted.device, painted.shape) == (DEVICE, (2, 3, 64, 80))


@pytest.mark.parametrize("can_resize", (True, False))
def test_a_photograph_is_shrunk_on_the_device_if_that_can(can_resize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    interpolate = F.interpolate

    def noted(images: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if options.get("antialias"):
            devices.append(images.device)
        return interpolate(images, *arguments, **options)

    monkeypatch.setattr(F, "interpolate", noted)
    monkeypatch.setattr("stylize.system.compute.has_antialiased_resizing", lambda device: can_resize)
    stylizer_on(DEVICE, width=4).paint_batch(torch.rand(1, 3, 64, 80), PaintOptions(stroke_scale=2))
    assert devices == [DEVICE if can_resize else CPU]


def test_images_of_a_device_that_cannot_resize_are_shrunk_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [has_antialiased_resizing(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [True, True, False]
    images, copied = torch.rand(1, 3, 64, 80), []
    expected = shrink(images, (40, 32))
    cpu = torch.Tensor.cpu
    monkeypatch.setattr("stylize.inference.stylizer.has_antialiased_resizing", lambda device: False)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda values: copied.append(values.shape) or cpu(values))
    assert torch.equal(shrink(images, (40, 32)), expected)
    assert copied == [images.shape]


def test_the_matrix_of_colors_is_inverted_once_and_the_result_is_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photograph, painted = torch.rand(2, 3, 30, 40), torch.rand(2, 3, 30, 40)
    matrix = painted.new_tensor(RGB_TO_YCC)
    luma = torch.einsum("c,nchw->nhw", matrix[0], painted)
    chroma = torch.einsum("kc,nchw->nkhw", matrix[1:], photograph)
    mixed = torch.cat([luma[:, None], chroma], dim=1)
    expected = torch.einsum("ck,nkhw->nchw", torch.linalg.inv(matrix), mixed).clamp(0, 1)
    with_colors_of(photograph, painted)
    monkeypatch.setattr(torch.linalg, "inv", lambda matrix: pytest.fail("inverted again"))
    assert torch.equal(with_colors_of(photograph, painted), expected)


def test_colors_are_float32s_own_in_any_precision() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    compute = Compute(torch.device("cuda"), "bf16")
    with compute.context():
        assert torch.backends.cuda.matmul.allow_tf32
        with compute.exact_context():
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_differences_are_squared_in_float64_on_the_cpu_which_not_every_device_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[int] = []
    cpu, double = torch.Tensor.cpu, torch.Tensor.double

    def widened(values: Tensor) -> Tensor:
        assert copied
        return double(values)

    monkeypatch.setattr(torch.Tensor, "cpu", lambda values: copied.append(values.numel()) or cpu(values))
    monkeypatch.setattr(torch.Tensor, "double", widened)
    assert rms_difference(torch.zeros(4), torch.full((4,), 0.5)) == 0.5
