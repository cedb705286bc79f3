import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from skimage import data
from torch import Tensor

from stylize.errors import StylizeError
from stylize.generators import GENERATORS, Generator, GeneratorConfig, build_generator
from stylize.generators.base import PaddedConv2d, Stage
from stylize.inference import plans
from stylize.inference.plans import MemoryBudget, Plan, choose_plan, plans_of
from stylize.inference.strips import StripPainter
from stylize.models.file import load_model
from stylize.models.find import find_model
from stylize.norms import NORMS, InstanceNorm, RunningNorm

CPU = torch.device("cpu")
STREAMING = sorted(set(GENERATORS) - {"texture_network"})
LEVELS = 255


def photograph(width: int, height: int) -> Tensor:
    cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None] / 255
    resized = torch.nn.functional.interpolate(cat, (height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def half_constant(width: int, height: int) -> Tensor:
    image = photograph(width, height)
    image[:, :, height // 2 :] = 0.7
    return image


def trained(norm: str) -> Generator:
    """The weights of a model that was trained, with another norm: its running statistics are those of a photograph."""
    source, _ = load_model(find_model("stained_glass").path)
    generator = build_generator(GeneratorConfig(width=16, norm=norm, margin=0))
    generator.load_state_dict(source.state_dict(), strict=norm in ("instance", "layer"))  # the other ones have more
    if norm != "instance":
        for layer in generator.norms().values():
            if isinstance(layer, RunningNorm):
                layer.momentum = 1.0
        with torch.no_grad():
            generator.train()(torch.cat([photograph(128, 96), photograph(128, 96).flip(1)]))
    for name, values in generator.state_dict().items():
        if name.endswith("gate"):
            values.uniform_(0.2, 0.8)
    return generator.eval()


def random_generator(name: str, norm: str) -> Generator:
    generator = build_generator(GeneratorConfig(name=name, norm=norm, width=4, margin=0))
    for key, values in generator.state_dict().items():
        if "running" in key or "gate" in key:
            values.uniform_(0.3, 0.7)
        elif "norm" in key:
            values.add_(torch.randn_like(values), alpha=0.3)
    return generator.eval()


def stages_of(generator: Generator, image: Tensor) -> list[Stage]:
    stages = generator.stages(*image.shape[2:])
    assert stages is not None
    return stages


@torch.inference_mode()
def in_strips(generator: Generator, image: Tensor, plan: Plan) -> Tensor:
    height, width = image.shape[2:]
    painted = torch.full_like(image, torch.nan)
    with StripPainter(
        stages_of(generator, image), plan, lambda first, last: image[:, :, first:last], height, CPU, torch.float32
    ) as painter:
        shares = list(painter.measure())
        assert not shares or sum(shares) == pytest.approx(1)
        for first, strip in painter.strips():
            painted[:, :, first : first + strip.shape[2]] = strip[..., :width]
    return painted


@torch.inference_mode()
def whole(generator: Generator, image: Tensor) -> Tensor:
    painted: Tensor = generator(image)
    return painted


def grey_levels(image: Tensor) -> Tensor:
    return (image * LEVELS).round()


def strips(plan: Plan, height: int) -> int:
    return -(-height // plan.strip_px)


def room(device_bytes: int, folder: Path = Path("/tmp"), folder_bytes: int = 2**40) -> MemoryBudget:
    return MemoryBudget(CPU, device_bytes, 0, folder, folder_bytes)


def plan_of_strips(count: int, stages: Sequence[Stage], height: int, folder: Path) -> Plan:
    """With the least memory that makes it so many strips."""
    for budget in range(2**19, 2**25, 2**16):
        with suppress(StylizeError):
            plan = choose_plan(stages, room(budget, folder), torch.float32)
            if strips(plan, height) == count:
                return plan
    raise AssertionError(count)


def all_plans(stages: Sequence[Stage], folder: Path) -> Iterator[Plan]:
    for plan in plans_of(stages, torch.float32):
        for strip_px in (16, 48):
            yield plan._replace(strip_px=strip_px)
        yield plan._replace(strip_px=32, place=folder)


# Equal


@pytest.mark.parametrize("norm", ("instance", "batch", "batch_instance"))
@pytest.mark.parametrize("image", (photograph(161, 639), half_constant(203, 625)), ids=("photograph", "half-constant"))
def test_in_2_7_and_40_strips_a_picture_has_the_grey_levels_of_the_whole(
    norm: str, image: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "scratch_bytes", lambda: 0)  # else it is most of what these small strips take
    generator = trained(norm)
    stages = stages_of(generator, image)
    expected = grey_levels(whole(generator, image))
    assert expected.std() > 30
    height = image.shape[2]
    for count in (2, 7, 40):
        plan = plan_of_strips(count, stages, height, tmp_path)
        difference = (grey_levels(in_strips(generator, image, plan)) - expected).abs()
        assert difference.max() <= 1
        assert difference.mean() <= 0.01


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", STREAMING)
def test_every_plan_gives_the_whole_picture(name: str, norm: str, tmp_path: Path) -> None:
    generator = random_generator(name, norm)
    image = torch.rand(1, 3, 101, 37)
    expected = whole(generator, image)
    for plan in all_plans(stages_of(generator, image), tmp_path):
        assert (in_strips(generator, image, plan) - expected).abs().max() < 2e-5


@pytest.mark.parametrize("padding", ("reflection", "replication", "zero"))
@pytest.mark.parametrize("size", ((16, 16), (17, 18), (19, 33), (64, 30)))
def test_borders_and_remainders_are_those_of_the_whole(padding: str, size: tuple[int, int]) -> None:
    generator = build_generator(GeneratorConfig(width=4, padding=padding, margin=0)).eval()
    image = torch.rand(1, 3, *size)
    plan = plans_of(stages_of(generator, image), torch.float32)[0]._replace(strip_px=1)
    assert (in_strips(generator, image, plan) - whole(generator, image)).abs().max() < 2e-5


def test_differences_are_no_larger_where_strips_meet() -> None:
    generator, image = trained("instance"), photograph(301, 643)
    plan = plans_of(stages_of(generator, image), torch.float32)[0]._replace(strip_px=32)
    difference = (in_strips(generator, image, plan) - whole(generator, image)).abs().mean((0, 1, 3))
    meeting = torch.tensor([row for border in range(32, 643, 32) for row in (border - 1, border)])
    elsewhere = torch.ones(643, dtype=torch.bool)
    elsewhere[meeting] = False
    assert difference[meeting].mean() <= 1.2 * difference[elsewhere].mean()
    assert difference.max() < 1e-3


def test_statistics_of_large_values_do_not_cancel() -> None:
    generator = random_generator("johnson", "instance")
    with torch.no_grad():
        stages_of(generator, torch.zeros(1, 3, 16, 16))[0].conv.bias += 1000  # type: ignore[attr-defined]
    image = torch.rand(1, 3, 130, 40)
    exact = whole(generator.double(), image.double())
    plan = plans_of(stages_of(generator.float(), image), torch.float32)[0]
    strips_off = (in_strips(generator, image, plan) - exact).abs().mean()
    assert strips_off <= 2 * (whole(generator, image) - exact).abs().mean()


def test_norms_are_as_before_when_a_picture_is_done_and_when_it_fails() -> None:
    generator, image = random_generator("johnson", "instance"), torch.rand(1, 3, 40, 40)
    plan = plans_of(stages_of(generator, image), torch.float32)[0]
    before = whole(generator, image)
    in_strips(generator, image, plan)
    assert torch.equal(whole(generator, image), before)

    def fail(first: int, last: int) -> Tensor:
        raise OSError

    painter = StripPainter(stages_of(generator, image), plan, fail, 40, CPU, torch.float32)
    with torch.inference_mode(), pytest.raises(OSError), painter:
        list(painter.measure())
    assert torch.equal(whole(generator, image), before)


# Plans


def test_more_memory_means_maps_in_memory_then_less_arithmetic(tmp_path: Path) -> None:
    stages = build_generator(GeneratorConfig(width=32)).stages(3000, 4000)
    assert stages is not None
    pixels = 12_000_000
    chosen = [choose_plan(stages, room(int(gib * 2**30), tmp_path), torch.float32) for gib in (0.2, 0.5, 1.0, 1.5)]
    assert [plan.place for plan in chosen] == [tmp_path, tmp_path, CPU, CPU]
    assert [round(plan.effort, 2) for plan in chosen] == [1.17, 1.17, 1.49, 1.17]
    assert [plan.kept_bytes // pixels for plan in chosen] == [96, 96, 64, 96]
    assert chosen[0].strip_px < chosen[1].strip_px
    assert chosen[2].strip_px < chosen[3].strip_px


def test_on_a_disk_with_little_room_fewer_maps_are_kept(tmp_path: Path) -> None:
    stages = build_generator(GeneratorConfig(width=32)).stages(3000, 4000)
    assert stages is not None
    plan = choose_plan(stages, room(2**28, tmp_path, folder_bytes=2 * 10**9), torch.float32)
    assert (plan.place, plan.kept_bytes) == (tmp_path, 64 * 12_000_000)


def test_too_little_memory_for_a_strip_is_told(tmp_path: Path) -> None:
    stages = build_generator(GeneratorConfig(width=32)).stages(3000, 4000)
    assert stages is not None
    with pytest.raises(StylizeError) as caught:
        choose_plan(stages, room(2**20, tmp_path), torch.float32)
    assert re.fullmatch(
        r"a picture of 4000×3000 px needs 0\.\d\d GiB of memory even in strips, got 0\.00; "
        r"--max-memory allows more, --max-size shrinks it",
        str(caught.value),
    )


def test_too_little_room_on_the_disk_is_told(tmp_path: Path) -> None:
    stages = build_generator(GeneratorConfig(width=32)).stages(3000, 4000)
    assert stages is not None
    with pytest.raises(StylizeError) as caught:
        choose_plan(stages, room(2**28, tmp_path, folder_bytes=10**8), torch.float32)
    assert str(caught.value) == (
        f"a picture of 4000×3000 px needs 0.7 GiB on the disk, {tmp_path} has 0.1; "
        "--max-memory, or TMPDIR for another folder"
    )


def test_maps_stay_in_the_memory_of_a_device_then_of_the_processor_then_on_the_disk(tmp_path: Path) -> None:
    stages = build_generator(GeneratorConfig(width=32)).stages(3000, 4000)
    assert stages is not None
    cuda = torch.device("cuda")
    rooms = [
        MemoryBudget(cuda, device, host, tmp_path, 2**40)
        for device, host in ((2**31, 0), (2**28, 2**31), (2**28, 2**28))
    ]
    assert [choose_plan(stages, there, torch.float32).place for there in rooms] == [cuda, CPU, tmp_path]


@pytest.mark.parametrize("norm", ("batch", "none"))
def test_norms_without_statistics_of_the_image_cost_no_arithmetic(norm: str) -> None:
    stages = build_generator(GeneratorConfig(width=4, norm=norm)).stages(100, 60)
    assert stages is not None
    assert {plan.effort for plan in plans_of(stages, torch.float32)} == {1.0}


def test_a_network_that_is_no_chain_has_no_stages() -> None:
    assert build_generator(GeneratorConfig(name="texture_network", width=8)).stages(100, 60) is None


# Memory of a device


@pytest.mark.parametrize("error", (torch.OutOfMemoryError("full"), RuntimeError("MPS backend out of memory (…)")))
def test_where_memory_is_exhausted_strips_become_lower(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generator, image = random_generator("johnson", "instance"), torch.rand(1, 3, 150, 40)
    stages = stages_of(generator, image)
    convolution = type(stages[0].conv)
    rows = convolution.rows

    def scarce(self: object, window: object, asked: tuple[int, int], *others: object) -> Tensor:
        if asked[1] - asked[0] > 40:
            raise error
        painted: Tensor = rows(self, window, asked, *others)  # type: ignore[arg-type]
        return painted

    monkeypatch.setattr(convolution, "rows", scarce)
    plan = plans_of(stages, torch.float32)[0]._replace(strip_px=128)
    painted = in_strips(generator, image, plan)
    monkeypatch.undo()
    assert caplog.messages == [
        f"the memory of cpu is exhausted; going on in strips of {strip_px} px" for strip_px in (64, 32)
    ]
    assert (painted - whole(generator, image)).abs().max() < 2e-5


def test_memory_that_does_not_suffice_for_the_lowest_strip_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, image = random_generator("johnson", "instance"), torch.rand(1, 3, 64, 40)

    def none(self: object, window: object, *others: object) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(stages_of(generator, image)[0].conv), "rows", none)
    with pytest.raises(torch.OutOfMemoryError):
        in_strips(generator, image, plans_of(stages_of(generator, image), torch.float32)[0])


class Shallow(Generator):
    """Two convolutions at full size: no map is smaller than the largest, so none is worth keeping."""

    def __init__(self) -> None:
        super().__init__()
        config = GeneratorConfig(width=8, margin=0)
        self.encode, self.norm = PaddedConv2d(3, 8, 3, config), InstanceNorm(8)
        self.to_rgb = PaddedConv2d(8, 3, 3, config)

    def stages(self, height: int, width: int) -> list[Stage]:
        size = height, width
        return [Stage(self.encode, size, self.norm, relu=True), Stage(self.to_rgb, size, activation=torch.sigmoid)]


def test_a_network_without_smaller_maps_is_painted_in_strips_without_keeping_any() -> None:
    generator, image = Shallow().eval(), torch.rand(1, 3, 100, 60)
    plan = plans_of(stages_of(generator, image), torch.float32)[0]
    assert strips(plan, 100) == 7 and not any(sweep.keeps for sweep in plan.sweeps)
    torch.testing.assert_close(in_strips(generator, image, plan), whole(generator, image), rtol=0, atol=1e-5)


def test_pictures_are_painted_in_strips_by_one_network_in_several_threads() -> None:
    generator = build_generator(GeneratorConfig(width=8, margin=0)).eval()
    images = [torch.rand(1, 3, 90, 64) * (1 + i) / 4 for i in range(4)]
    plan = plans_of(stages_of(generator, images[0]), torch.float32)[0]
    alone = [in_strips(generator, image, plan) for image in images]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda image: in_strips(generator, image, plan), images))
    assert all(map(torch.equal, together, alone))
    assert not torch.equal(alone[0], alone[1])
