"""The benchmark, at sizes that take no time: that it runs, compares the same mathematics and counts right."""

from __future__ import annotations

import doctest
import functools
import importlib
import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, cast

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from stylize.models.find import built_in_models
from stylize.pictures.picture import Picture
from stylize.pictures.writing import write_picture

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "performance.md"
NORMS = ("instance", "batch_instance")
LINE = ["--device=cpu", "--precision=fp32", "--batch=2", "--crop=32", "--size=32", "--rounds=1", "--pictures=3"]
LINE += [f"--norm={norm}" for norm in NORMS]
HERE = {"torch": "0", "CPU": "c", "threads": "1", "CPU capability": "none", "device": "cpu", "precision": "fp32"}
HERE["CPU features"] = "AVX2"


class Local:
    """A player in this process, with what `Remote` has."""

    def __init__(
        self, name: str, make: Callable[[Any], Any], settings: Any, variables: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.player = make(settings)

    def call(self, method: str, *arguments: object) -> Any:
        return getattr(self.player, method)(*arguments)

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script, with everything small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        import benchmark
        from benchmarks import apply, data, floor, folder, norms, settings, workloads

        patch.setattr(floor, "PRODUCT_SIDE", {"cpu": 32})
        patch.setattr(floor, "COPY_BYTES", {"cpu": 2**16})
        patch.setattr(norms, "SHAPES", ((2, 3, 8, 8), (1, 4, 8, 8)))
        patch.setattr(apply, "SIZES_PX", (32, 64))
        patch.setattr(data, "WORKERS", (0, 1))
        for name, value in {"WIDTHS": (4, 8), "SIDE_PX": 32, "TURN": 2, "DISTINCT": 2}.items():
            patch.setattr(folder, name, value)
        patch.setattr(workloads, "make_vgg", functools.cache(settings.make_vgg))  # frozen; most of the time is its
        for name, value in {"LARGE_PX": (400, 300), "LARGE_COUNT": 1, "SMALL_PX": (64, 48), "SMALL_COUNT": 3}.items():
            patch.setattr(data, name, value)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # several that wait for each other take seconds where the machine has other work
        yield benchmark
        torch.set_num_threads(threads)


@pytest.fixture
def in_this_process(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import remote

    monkeypatch.setattr(remote, "Remote", Local)


@pytest.fixture
def settings(script: ModuleType) -> Any:
    names = ("device", "threads", "batch", "crop", "size", "precision", "compile", "norms", "rounds", "steps")
    names += ("photos", "pictures")
    values = ("cpu", None, 2, 32, 32, "fp32", "never", NORMS, 1, 1, None, 3)
    return script.Settings(**dict(zip(names, values, strict=True)))


@pytest.fixture
def floor(script: ModuleType) -> Any:
    return script.Floor(HERE, {"fp32": [1e9, 2e9], "tf32": [8e9]}, [4e9, 1e9])


def headers(script: ModuleType) -> dict[str, list[str]]:
    """The heads of the tables of every subject."""
    from benchmarks import apply, compare, data, folder, norms, step
    from benchmarks.floor import HEADER
    from benchmarks.report import header_lines

    columns: dict[str, list[tuple[str, ...]]] = {
        "floor": [HEADER],
        "step": [(step.HEADING, *compare.COLUMNS)],
        "norms": [norms.HEADER, norms.RATIO_HEADER],
        "data": [data.LOADING_HEADER, data.DECODING_HEADER],
        "apply": [(apply.HEADING, *compare.COLUMNS)],
        "sizes": [apply.SIZES_HEADER],
        "folder": [folder.HEADER],
    }
    return {subject: [header_lines(header) for header in of_subject] for subject, of_subject in columns.items()}


def test_every_subject_prints_its_tables_and_writes_its_numbers(
    script: ModuleType, in_this_process: None, tmp_path: Path
) -> None:
    line = ["all", *LINE, f"--json={tmp_path / 'numbers.json'}"]
    result = CliRunner().invoke(script.main, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    tables = [result.stdout.index(header) for of_subject in headers(script).values() for header in of_subject]
    assert tables == sorted(tables)
    numbers = json.loads((tmp_path / "numbers.json").read_text())["subjects"]
    assert list(numbers) == ["floor", *script.SUBJECTS]
    assert [row["name"] for row in numbers["step"]["rows"]] == ["instance, fp32", "batch_instance, fp32"]
    assert [row["name"] for row in numbers["apply"]["rows"]] == ["one image, fp32", "many images, fp32"]
    assert [sorted(row["differences"]) for row in numbers["step"]["rows"]] == [["gradient norm", "loss"], []]
    assert numbers["apply"]["rows"][0]["differences"]["picture"] < 1e-4
    assert {(row["layout"], len(row["shape"])) for row in numbers["norms"]["rows"]} == {
        ("contiguous", 4),
        ("channels_last", 4),
    }
    assert max(numbers["norms"]["differences"]["fp32"].values()) < 1e-4
    assert list(numbers["data"]["loaded_images_per_second"]) == ["0", "1"]
    assert [row["side_px"] for row in numbers["sizes"]["rows"]] == 3 * [32, 64]
    assert [(row["name"], row["pictures"]) for row in numbers["folder"]["rows"]] == [
        ("width 4, fp32", 3),
        ("width 8, fp32", 3),
    ]


def test_all_stands_for_every_subject_and_the_floor_is_always_measured(script: ModuleType) -> None:
    assert script.chosen_subjects(("step", "all")) == list(script.SUBJECTS)
    assert script.chosen_subjects(("floor",)) == []


def test_the_document_has_the_command_and_the_tables_of_every_subject(script: ModuleType) -> None:
    text = DOCUMENT.read_text("utf-8")
    for subject, of_subject in headers(script).items():
        assert f"python scripts/benchmark.py {subject}" in text
        for header in of_subject:
            assert header in text


# Of a pixel of the input.
GENERATOR_MAC = (
    *(81 * 3 * 32, 9 * 32 * 64 // 4, 9 * 64 * 128 // 16),
    *(10 * [9 * 128 * 128 // 16]),
    *(9 * 128 * 64 // 4, 9 * 64 * 32, 81 * 32 * 3),
)
VGG_MAC = (
    *(9 * 3 * 64, 9 * 64 * 64),
    *(9 * 64 * 128 // 4, 9 * 128 * 128 // 4),
    *(9 * 128 * 256 // 16, *(3 * [9 * 256 * 256 // 16])),
    *(9 * 256 * 512 // 64, 9 * 512 * 512 // 64),
)
GRAM_MAC = (64 * 64, 128 * 128 // 4, 256 * 256 // 16, 512 * 512 // 64)


@pytest.mark.parametrize("name", ("", "s.counts", "s.data", "s.measuring", "s.report"))
def test_examples_in_docstrings_hold(script: ModuleType, name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"benchmark{name}"))
    assert tried > 0
    assert failed == 0


def test_flop_are_those_of_a_count_by_hand(script: ModuleType) -> None:
    from benchmarks.counts import painting_flop, training_flop

    assert sum(GENERATOR_MAC) == 153_792
    assert painting_flop(3, 64) == 2 * sum(GENERATOR_MAC) * 3 * 64**2
    # Backward the generator again twice, but for the photographs' gradient; VGG, which does not learn, once, and
    # forward for painted pictures and photographs; a Gram product, of maps with themselves, twice.
    generator = 3 * sum(GENERATOR_MAC) - GENERATOR_MAC[0]
    assert training_flop(3, 64) == 2 * (generator + 3 * sum(VGG_MAC) + 3 * sum(GRAM_MAC)) * 3 * 64**2


def test_shares_are_of_the_best_round_and_float32_convolutions_on_cuda_are_tf32(floor: Any) -> None:
    assert floor.compute_share(4_000_000_000, 2.0, "fp32") == 0.25
    on_a_cpu = replace(floor, product_flops={"fp32": [1e9, 2e9]})
    assert on_a_cpu.compute_share(4_000_000_000, 4.0, "fp32") == 0.5
    assert floor.copy_share(1_000_000_000, 0.5) == 0.5


def test_ratios_of_norms_are_of_the_sums_over_all_shapes(script: ModuleType) -> None:
    from benchmarks import norms

    layer_ms = dict(zip(norms.layers(1), (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
    rows = {
        case: [norms.Seconds(turn * layer_ms[case.layer], case.shape[0] * layer_ms[case.layer]) for turn in (1, 2)]
        for case in norms.cases()
    }
    assert norms.totals(rows, "contiguous", "nn.InstanceNorm2d") == [(4.0, 6.0), (8.0, 6.0)]
    assert norms.layout_ratios(rows, "channels_last") == {
        "InstanceNorm / nn.InstanceNorm2d": [0.5, 0.5],
        "BatchInstanceNorm / InstanceNorm": [4.0, 4.0],
        "BatchInstanceNorm / BatchNorm": [4 / 3, 4 / 3],
        "BatchInstanceNorm / two layers": [0.8, 0.8],
    }


def test_what_is_expected_of_a_size_grows_with_its_pixels(script: ModuleType) -> None:
    from benchmarks.apply import Painted, expected_bytes
    from benchmarks.measuring import Memory

    painted = [Painted(256, "whole", "fp32", [1.0], Memory(*sizes), 0.5) for sizes in ((900, 100), (None, None))]
    assert expected_bytes(painted[:1], 512) == 800 + 400
    assert expected_bytes(painted, 512) is None
    assert expected_bytes([], 512) is None


def test_a_size_that_would_not_fit_is_skipped_with_a_message(
    in_this_process: None, settings: Any, floor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import apply

    monkeypatch.setattr(apply, "free_bytes", lambda device: 2**28)
    monkeypatch.setattr(apply, "expected_bytes", lambda painted, side_px: 2**29 if painted else None)
    found = apply.run_sizes(settings, floor)
    needed = "would need about 0.50 GiB, and 0.25 GiB are free"
    assert found.notes == [f"skipped 64², {way}, fp32: {needed}" for way in apply.WAYS]
    assert [row["side_px"] for row in found.numbers["rows"]] == [32] * len(apply.WAYS)


def test_norms_in_bfloat16_have_rows_of_their_own_beside_those_in_float32(
    in_this_process: None, settings: Any, floor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import norms

    monkeypatch.setattr("benchmarks.settings.multiplies_bf16", lambda device: True)
    typed = set()
    prepare = norms.NormPlayer._prepare

    def seen(player: Any, case: Any) -> Any:
        layer, x, gradient = prepare(player, case)
        typed.add((case.precision, x.dtype, gradient.dtype, next(layer.parameters()).dtype))
        return layer, x, gradient

    monkeypatch.setattr(norms.NormPlayer, "_prepare", seen)
    found = norms.run(replace(settings, precision="auto"), floor)
    assert typed == {
        ("fp32", torch.float32, torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16, torch.float32),
    }
    layers = len(norms.layers(1))
    precisions = [row["precision"] for row in found.numbers["rows"]]
    assert precisions == (layers * ["fp32"] + layers * ["bf16"]) * len(norms.SHAPES) * len(norms.LAYOUTS)
    ratios = [row[0] for row in found.tables[1].rows]
    assert ratios == [f"{a} / {b}, {kind}" for kind in ("fp32", "bf16") for a, b in norms.RATIOS]
    assert 1e-4 < max(found.numbers["differences"]["bf16"].values()) < 0.05
    assert max(found.numbers["differences"]["fp32"].values()) < 1e-4


def test_a_map_in_bfloat16_has_half_the_bytes(script: ModuleType) -> None:
    from benchmarks.counts import map_bytes

    assert map_bytes((2, 3, 4, 5), 3, 2) == map_bytes((2, 3, 4, 5), 3) / 2


def test_painting_is_timed_in_float16_and_training_is_not(script: ModuleType, in_this_process: None) -> None:
    line = ["apply", "--device=cpu", "--precision=fp16", "--size=32", "--rounds=1", "--steps=1"]
    result = CliRunner().invoke(script.main, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "| one image, fp16 |" in result.stdout and "product of matrices, fp16" in result.stdout
    for subjects in (["step"], [], ["all"], ["apply", "norms"]):
        refused = CliRunner().invoke(script.main, [*subjects, "--precision=fp16"])
        assert refused.exit_code == 1
        assert "Error: --precision: got 'fp16' with " in refused.output
        assert "; it is for apply, sizes, folder" in refused.output


@pytest.mark.parametrize(
    ("lines", "model", "features"),
    (
        (
            "processor\t: 0\nmodel name\t: A: fast one\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\n",
            "A: fast one",
            ["AVX2", "AVX-512", "AVX-512 BF16", "AMX tiles"],
        ),
        ("processor\t: 0\nmodel name\t: B\nflags\t\t: fpu avx512_bf16x\n", "B", []),
        ("processor\t: 0\nmodel name\t: C\nFeatures\t: fp asimd bf16\n", "C", ["Neon", "BF16"]),
    ),
)
def test_the_features_of_the_processor_are_those_that_the_system_tells(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, model: str, features: list[str]
) -> None:
    from benchmarks import measuring, report

    monkeypatch.setattr(measuring, "CPU_INFO", tmp_path / "cpuinfo")
    measuring.CPU_INFO.write_text(lines)
    told = measuring.environment(torch.device("cpu"))
    assert (told["CPU"], measuring.cpu_features()) == (model, features)
    assert f"{model} ({', '.join(features) or 'unknown'})" in report.place(told)


def test_sides_that_compute_something_else_are_not_compared(in_this_process: None, settings: Any, floor: Any) -> None:
    from benchmarks.compare import Pair, compare
    from benchmarks.workloads import PlainApply, StylizeApply

    def plain(given: Any) -> Any:
        return PlainApply(replace(given, seed=1))

    with pytest.raises(click.ClickException, match=r"^apply, fp32: the sides differ in the picture by 0\.\d+, must be"):
        compare(Pair("apply", {"plain": plain, "stylize": StylizeApply}, 1, 32, 1), settings, floor)


def test_pictures_in_bfloat16_have_the_levels_of_float32_and_others_are_refused(
    tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import apply

    for seed in range(2):
        write_picture(tmp_path / f"{seed}.png", Picture(apply.make_images(1, 48, seed)[0]))
    style, model = next(iter(built_in_models().items()))
    found = apply.roughness(style, model, "bf16", replace(settings, photos=tmp_path))
    assert found.pictures == 2 and 0 < found.mean <= found.worst_mean < 1 <= found.most < 64
    assert str(found).startswith(f"{style}, bf16: 2 pictures differ from those in fp32 by 0.")
    monkeypatch.setattr(apply, "MOST_LEVELS", found.mean / 2)
    with pytest.raises(click.ClickException, match=f"^apply, {style}: in bf16 pictures differ by 0"):
        apply.roughness(style, model, "bf16", replace(settings, photos=tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(apply, "MOST_LEVELS_OF_A_PICTURE", found.worst_mean / 2)
    with pytest.raises(click.ClickException, match=f"^apply, {style}: in bf16 a picture differs by 0"):
        apply.roughness(style, model, "bf16", replace(settings, photos=tmp_path))


def test_a_difference_that_is_no_number_is_refused(script: ModuleType) -> None:
    from benchmarks.compare import check_differences, relative_differences

    found = relative_differences({"loss": np.array([1.0, 4.0])}, {"loss": np.array([1.0, 3.0])})
    assert found == {"loss": 0.25}
    check_differences("step", found, 0.25)
    with pytest.raises(click.ClickException) as caught:
        check_differences("step", {"loss": float("nan")}, 0.25)
    assert caught.value.message == "step: the sides differ in the loss by nan, must be at most 0.25"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells what a process holds")
def test_memory_before_the_first_call_does_not_count_as_growth(script: ModuleType) -> None:
    from benchmarks.measuring import MemoryGauge

    def hold_for_a_moment(size: int) -> None:
        with mmap.mmap(-1, size) as memory:  # by the system itself: what is freed may be kept by the C library
            memory.write(bytes([1]) * size)

    hold_for_a_moment(2**27)
    gauge = MemoryGauge(torch.device("cpu"))
    hold_for_a_moment(2**25)
    peak, growth = gauge.read()
    assert peak is not None and growth is not None
    assert peak > 2**27
    assert 2**25 <= growth + 2**20 < 2**26 + 2**23


def test_a_player_in_its_own_process_gives_what_it_gives_here(script: ModuleType, settings: Any) -> None:
    from benchmarks.remote import Remote
    from benchmarks.workloads import PlainApply, WorkloadPlayer

    make = functools.partial(WorkloadPlayer, PlainApply)
    here = make(settings).play(1)
    with Remote("apply", make, settings) as player:
        there = player.call("play", 1)
    assert np.array_equal(there.values["picture"], here.values["picture"])
    assert len(there.seconds) == 1


def test_a_process_that_fails_is_named(script: ModuleType, settings: Any) -> None:
    from benchmarks.remote import Remote

    with pytest.raises(click.ClickException) as caught:
        Remote("apply, plain", cast(Any, int), settings)
    assert caught.value.message == "apply, plain: its process failed; its message stands above"
