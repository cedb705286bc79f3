"""The check of a GPU, in miniature on the CPU: that it runs whole, finds faults, and survives its sections."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from stylize import ops

SCRIPTS = Path(__file__).parent.parent / "scripts"
SCRIPT = SCRIPTS / "gpu_check.py"


class Ran(NamedTuple):
    status: int
    printed: str
    report: str
    numbers: Mapping[str, Any]


def run(folder: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> Ran:
    line = [sys.executable, str(SCRIPT), f"--output={folder}", *arguments]
    ran = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **(variables or {})}, timeout=600)
    report, numbers = folder / "gpu_check.md", folder / "gpu_check.json"
    assert report.exists(), ran.stderr
    return Ran(ran.returncode, ran.stdout, report.read_text("utf-8"), json.loads(numbers.read_text("utf-8")))


@pytest.fixture(scope="module")
def check() -> Iterator[ModuleType]:
    """The script as a module, and its parts importable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import gpu_check

        yield gpu_check


@pytest.fixture
def setting(check: ModuleType, tmp_path: Path) -> Any:
    from gpu_checks.setting import Setting

    return Setting(torch.device("cpu"), miniature=True, folder=tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Everything in miniature."""
    return run(tmp_path_factory.mktemp("whole"), "--device=cpu", "--miniature")


# The whole


def test_the_miniature_passes_whole_and_its_report_tells_every_section(whole: Ran, check: ModuleType) -> None:
    assert whole.status == 0, whole.report
    assert whole.printed.strip() == whole.report.strip()
    for section in check.SECTIONS:
        assert re.search(rf"^\| {section.name} \| passed \| \d+ \| 0 \| \d+ \| \d+\.\d \|$", whole.report, re.MULTILINE)
        assert f"## {section.name}: passed\n\n{section.about}\n" in whole.report
    assert whole.report.index("| section | result |") < whole.report.index("## Goals") < whole.report.index("### ")
    assert "in miniature: its times say nothing" in whole.report


def test_the_report_has_the_tables_of_every_section(whole: Ran) -> None:
    for title in (
        "The machine", "Its rates", "Largest errors, relative to the largest value", "Against float64",
        "Strips against whole", "A batch against its pictures", "Training steps", "Painting from tensors",
        "Painting from files", "The loader", "Compiled steps", "Resumed trainings", "A damaged batch",
        "Exhausted memory", "Estimated memory", "Where the time goes", "The heaviest kernels of the eager step",
    ):  # fmt: skip
        assert f"\n### {title}\n\n| " in whole.report
    assert "- the driver: there is no GPU\n" in whole.report
    assert "| CPU" not in whole.report.split("## Goals")[0]


def test_the_numbers_are_those_of_every_check(whole: Ran, check: ModuleType) -> None:
    sections = whole.numbers["sections"]
    assert list(sections) == [section.name for section in check.SECTIONS]
    for section in sections.values():
        assert section["checks"] and section["trouble"] == ""
        assert {one["status"] for one in section["checks"]} <= {"passed", "skipped"}
    names = [one["name"] for one in sections["networks"]["checks"]]
    assert "johnson, batch_instance, bf16" in names and "texture_network, instance, fp16" in names
    (step,) = (one for one in sections["speed"]["checks"] if one["name"] == "step, batch 2, eager")
    assert step["found"]["numbers"]["flop"] > 0 and step["found"]["numbers"]["seconds"]["median"] > 0
    (loader,) = (one for one in sections["speed"]["checks"] if one["name"] == "loader, JPEGs")
    assert loader["found"]["goals"][0]["target"] == 1333


# Sections that go wrong

PLANTED = {
    "fine": "yield Check('fine', lambda: Found({'a': 'b'}), 'table')",
    "failing": "yield Check('wrong', lambda: require(False, 'off by 3'))\n    yield Check('right', Found)",
    "crashing": "yield Check('before', Found)\n    yield Check('crash', crash, 't')\n    yield Check('after', Found)",
    "losing": "yield Check('lost', lose)\n    yield Check('same process', lambda: require(not lost, 'yes') or Found())",
    "hanging": "yield Check('before', Found)\n    yield Check('hang', lambda: print('asleep', flush=1) or sleep(99))",
    "broken": "yield Check('before', Found)\n    raise ValueError('broken')",
}
IMPORTS = """
import os, signal
from time import sleep
from gpu_checks.results import Check, Found, require

lost = []

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

def lose():
    lost.append(True)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

"""


@pytest.fixture(scope="module")
def troubled(check: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Sections that fail, hang, crash and cannot begin, and one that is fine behind them."""
    from gpu_checks.running import Section

    folder = tmp_path_factory.mktemp("troubled")
    for name, body in PLANTED.items():
        (folder / f"planted_{name}.py").write_text(f"{IMPORTS}def checks(setting):\n    {body}\n")
    names = ("failing", "hanging", "crashing", "losing", "broken", "missing", "fine")
    shares = {"hanging": 0.2}
    sections = [Section(n, f"planted_{n}", shares.get(n, 1), f"About {n}.") for n in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        line = ["--device=cpu", "--miniature", "--minutes=3", f"--output={folder}"]
        status = check.main(line, sections)
    report, numbers = (folder / f"gpu_check.{suffix}" for suffix in ("md", "json"))
    return Ran(status, "", report.read_text("utf-8"), json.loads(numbers.read_text("utf-8")))


def statuses(ran: Ran, section: str) -> dict[str, str]:
    return {one["name"]: one["status"] for one in ran.numbers["sections"][section]["checks"]}


def test_sections_that_fail_crash_or_hang_do_not_hide_the_others(troubled: Ran) -> None:
    assert troubled.status == 1
    assert re.search(r"^\| fine \| passed \| 1 \| 0 \| 0 \|", troubled.report, re.MULTILINE)
    assert "### Table\n\n| a |\n|---|\n| b |\n" in troubled.report


def test_a_failed_check_is_told_with_its_message_and_those_behind_it_are_made(troubled: Ran) -> None:
    assert statuses(troubled, "failing") == {"wrong": "failed", "right": "passed"}
    assert re.search(r"^\| failing \| FAILED \| 1 \| 1 \| 0 \|", troubled.report, re.MULTILINE)
    assert "Failed:\n\n- **wrong**: off by 3\n" in troubled.report


def test_a_section_that_hangs_is_killed_at_its_limit_and_what_it_told_is_kept(troubled: Ran) -> None:
    section = troubled.numbers["sections"]["hanging"]
    assert re.fullmatch(r"killed at its limit of \d+ s during: hang", section["trouble"])
    assert section["seconds"] < 20
    assert statuses(troubled, "hanging") == {"before": "passed"}
    assert section["tail"][:3] == ["before", "hang", "asleep"]
    assert "```\nbefore\nhang\nasleep\nTimeout (" in troubled.report
    assert re.search(r'planted_hanging.py", line \d+ in <lambda>', troubled.report)


def test_a_check_that_crashes_is_told_with_its_signal_and_another_process_makes_the_others(troubled: Ran) -> None:
    assert statuses(troubled, "crashing") == {"before": "passed", "crash": "failed", "after": "passed"}
    assert "| crashing | FAILED | 2 | 1 | 0 |" in troubled.report
    assert "- **crash**: its process was ended by SIGSEGV\n" in troubled.report


def test_a_check_that_loses_the_device_is_followed_by_another_process(troubled: Ran) -> None:
    assert statuses(troubled, "losing") == {"lost": "failed", "same process": "passed"}
    assert "- **lost**: RuntimeError: CUDA error: an illegal memory access was encountered\n" in troubled.report


def test_a_section_that_breaks_between_checks_is_told_with_its_last_lines(troubled: Ran) -> None:
    for name, line in (("broken", "ValueError: broken"), ("missing", "No module named 'planted_missing'")):
        section = troubled.numbers["sections"][name]
        assert section["trouble"] == "its process ended with status 1"
        assert line in section["tail"][-1] and line in troubled.report


def test_time_that_a_section_does_not_use_is_the_others(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_checks import running

    now, limits = [0.0], []

    def run_section(section: Any, options: Any, limit_s: float) -> Any:
        limits.append(limit_s)
        now[0] += 6.0
        return running.Outcome(section, 6.0)

    monkeypatch.setattr(running, "run_section", run_section)
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    sections = [running.Section(str(share), "", share, "") for share in (2, 1, 1)]
    running.run_sections(sections, running.Options("cpu", True, Path(), 1.0), lambda outcomes: None)
    assert limits == [30.0, 27.0, 48.0]


def test_checks_for_which_no_time_is_left_are_skipped(check: ModuleType, tmp_path: Path) -> None:
    from gpu_checks.results import OUT_OF_TIME, Check, Found, perform_all, read_results

    made: list[str] = []

    def found(name: str) -> Found:
        made.append(name)
        return Found()

    checks = [Check("long", lambda: found("long"), needs_s=70.0), Check("short", lambda: found("short"), needs_s=30.0)]
    perform_all(checks, tmp_path / "events", 60.0)
    assert made == ["short"]
    assert [(r.status, r.message) for r in read_results(tmp_path / "events")] == [
        ("skipped", OUT_OF_TIME),
        ("passed", ""),
    ]


def test_a_line_of_results_that_was_cut_short_is_passed_over(check: ModuleType, tmp_path: Path) -> None:
    from gpu_checks.results import Check, Found, Goal, begun_check, perform_all, read_results

    found = Found({"a": "b"}, {"c": 1}, (Goal("g", 3.0, 2.0, "s"),), {"t": [{"d": "e"}]})
    perform_all([Check("whole", lambda: found), Check("cut", Found)], tmp_path / "events", 60.0)
    text = (tmp_path / "events").read_text()
    (tmp_path / "events").write_text(text[: text.index('{"name": "cut"') + 20])
    assert begun_check(tmp_path / "events").name == "cut"
    (result,) = read_results(tmp_path / "events")
    assert (result.name, result.found) == ("whole", found)
    assert read_results(tmp_path / "none") == []


def test_goals_are_reached_from_the_right_side_and_do_not_fail_the_check(check: ModuleType, tmp_path: Path) -> None:
    from gpu_checks.report import failures, report
    from gpu_checks.results import Found, Goal, Result
    from gpu_checks.running import Options, Outcome, Section

    goals = (
        Goal("frames", 119.0, 120.0, "frames/s"),
        Goal("frames", 120.0, 120.0, "frames/s"),
        Goal("time", 2.5, 2.0, "minutes", at_least=False),
        Goal("time", 1.9, 2.0, "minutes", at_least=False),
    )
    assert [goal.reached for goal in goals] == [False, True, False, True]
    outcome = Outcome(Section("speed", "", 1, "Speed."), 1.0, [Result("s", "passed", 1.0, found=Found(goals=goals))])
    text = report([outcome], Options("cpu", False, tmp_path, 8))
    assert "| time | 2.5 minutes | ≤ 2 minutes | NOT reached |" in text
    assert "| frames | 120 frames/s | ≥ 120 frames/s | reached |" in text
    assert failures([outcome]) == 0


# What is missing


def test_without_a_gpu_or_a_package_there_is_one_line(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([f"--output={tmp_path / 'a'}"]) == 2
    assert capsys.readouterr().err == "gpu_check: --device: got 'cuda', which torch does not find here\n"
    monkeypatch.setitem(check.missing_packages.__globals__["REQUIRED"], "no_such_module", "no-such-package")
    assert check.main([f"--output={tmp_path / 'a'}"]) == 2
    assert capsys.readouterr().err == "gpu_check: not installed: no-such-package\n"
    assert not (tmp_path / "a").exists()


def test_without_pyvips_and_tensorboard_trainings_run_and_files_are_skipped(tmp_path: Path) -> None:
    code = """
import pathlib, sys
from gpu_checks.requirements import missing_options, put_stand_ins
sys.modules["pyvips"] = sys.modules["tensorboard"] = None
missing = missing_options()
assert missing == {"pyvips", "tensorboard"}, missing
put_stand_ins(missing)
from gpu_checks import memory, speed, training
from gpu_checks.results import perform
from gpu_checks.setting import Setting
setting = Setting.prepare("cpu", True, pathlib.Path(), missing)
checks = [*training.checks(setting), *memory.checks(setting), *speed.checks(setting)]
wanted = ("a batch of NaN", "45 megapixels at width 32", "a folder")
print([(r.status, r.message) for r in (perform(check) for check in checks if check.name in wanted)])
"""
    paths = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent)])
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert ran.returncode == 0, ran.stderr
    lacking = ("skipped", "not installed: pyvips")
    assert ran.stdout.splitlines()[-1] == str([("passed", ""), lacking, lacking])


# Faults are found


def found_by(setting: Any, section: str, name: str) -> Any:
    from gpu_checks.results import perform

    checks = importlib.import_module(f"gpu_checks.{section}").checks(setting)
    return perform(next(check for check in checks if check.name == name))


def shifted(x: Tensor, *given: Any, original: Any = ops.upsample_to) -> Tensor:
    result: Tensor = original(x, *given)
    return result.roll(1, -1) if x.dtype != torch.float64 else result


def test_an_operation_that_is_off_by_a_pixel_is_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found_by(setting, "numerics", "upsample_to, bf16").status == "passed"
    monkeypatch.setattr(ops, "upsample_to", shifted)
    result = found_by(setting, "numerics", "upsample_to, bf16")
    assert result.status == "failed"
    assert re.match(r"\S+ (result|gradient 1).* of (bilinear|nearest) to \d+×\d+: off by \d", result.message)
    assert result.found.row["operation"] == "upsample_to"


def test_a_gradient_that_is_wrong_beside_right_results_is_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(x: Tensor, *given: Any, original: Any = ops.pad) -> Tensor:
        right: Tensor = original(x, *given)
        return right if x.dtype == torch.float64 else right / 2 + right.detach() / 2

    monkeypatch.setattr(ops, "pad", halved)
    result = found_by(setting, "numerics", "pad, fp16")
    assert result.status == "failed" and re.match(r"\S+ gradient 1 of ", result.message)


def test_a_single_value_that_is_no_number_is_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]

    def spoiled(x: Tensor, *given: Any, original: Any = ops.pad) -> Tensor:
        result: Tensor = original(x, *given)
        calls[0] += x.dtype != torch.float64
        return result.index_fill(3, torch.tensor([0]), float("nan")) if calls[0] == 1 else result

    monkeypatch.setattr(ops, "pad", spoiled)
    result = found_by(setting, "numerics", "pad, bf16")
    assert result.status == "failed" and ": off by inf of the largest value" in result.message
    assert calls[0] > 1


def test_statistics_that_cancel_at_large_means_are_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancelling(x: Tensor) -> ops.Statistics:
        mean = x.mean((2, 3))
        return ops.Statistics(mean, x.square().mean((2, 3)) - mean.square())

    monkeypatch.setattr(ops, "instance_statistics", cancelling)
    result = found_by(setting, "numerics", "instance_statistics, fp32")
    assert result.status == "failed" and "mean 1000 σ" in result.message


def test_an_operation_that_raises_is_told_by_its_error(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(x: Tensor, *given: Any) -> Tensor:
        raise RuntimeError("input tensor must fit into 32-bit index math\nmore")

    monkeypatch.setattr(ops, "gram_matrix", refused)
    result = found_by(setting, "numerics", "gram_matrix, fp32")
    assert (result.status, result.message.splitlines()[0]) == (
        "failed",
        "RuntimeError: input tensor must fit into 32-bit index math",
    )


def test_all_kinds_of_convolutions_of_the_generators_are_compared(check: ModuleType) -> None:
    from gpu_checks.numerics import convolution_kinds

    kinds = set(map(str, convolution_kinds()))
    assert {"9×9", "3×3", "1×1", "3×3, stride 2", "3×3, bilinear ×2", "3×3, nearest ×2"} <= kinds
    assert any("depthwise" in kind for kind in kinds)


def test_a_network_that_normalizes_with_another_epsilon_is_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_checks import networks

    make = networks.make_network

    def other(network: Any, width: int = 8) -> Any:
        generator = make(network, width)
        for norm in generator.norms().values():
            norm.eps = 1e-3
        return generator

    network = networks.Network("johnson", "instance")
    networks.reference(setting, network)  # with the right one
    monkeypatch.setattr(networks, "make_network", other)
    result = found_by(setting, "networks", "johnson, instance, fp32")
    assert result.status == "failed" and result.message.startswith("the picture is off by ")
    assert result.found.row["network"] == "johnson, instance"


def test_strips_with_statistics_of_their_own_are_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stylize.inference.strips import StripPainter

    measure = StripPainter.measure

    def forgotten(painter: Any) -> Iterator[float]:
        yield from measure(painter)
        painter._statistics.clear()

    monkeypatch.setattr(StripPainter, "measure", forgotten)
    assert found_by(setting, "networks", "strips of johnson, instance, bf16").status == "failed"


def test_strips_that_let_the_error_of_exhausted_memory_through_are_found(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stylize.inference import strips

    assert found_by(setting, "memory", "an error of the allocator").status == "passed"
    monkeypatch.setattr(strips, "LEAST_STRIP_PX", 10**6)
    result = found_by(setting, "memory", "an error of the allocator")
    assert (result.status, result.message) == ("failed", "OutOfMemoryError: planted")


def test_a_resumed_training_with_another_bit_is_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_checks import training

    train = training.train

    def nudged(trainer: Any, stop_at: int | None = None) -> Any:
        if trainer.progress.step > 0:
            next(trainer.generator.parameters()).data[0, 0, 0, 0] += 1e-3
        return train(trainer, stop_at)

    monkeypatch.setattr(training, "train", nudged)
    result = found_by(setting, "training", "resumed, not deterministic")
    assert result.status == "failed" and result.message.startswith("not the same bits: encode.0.")


def test_a_training_that_does_not_skip_a_damaged_batch_is_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_checks import training

    class Unseen(training.CropsInMemory):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given[:3])

    monkeypatch.setattr(training, "CropsInMemory", Unseen)
    result = found_by(setting, "training", "a batch of NaN")
    assert (result.status, result.message) == ("failed", "0 steps were skipped, must be 1")


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch's own, behind the break
def test_a_step_of_several_graphs_is_found(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stylize.losses.perceptual import PerceptualLoss

    forward = PerceptualLoss.forward

    def breaking(loss: Any, stylized: Tensor, content: Tensor, styles: Tensor | None) -> dict[str, Tensor]:
        torch._dynamo.graph_break()
        return forward(loss, stylized, content, styles)

    monkeypatch.setattr(PerceptualLoss, "forward", breaking)
    result = found_by(setting, "compilation", "instance, train.compile: always")
    assert result.status == "failed" and result.message.startswith("the step is not one graph: ")


@pytest.mark.parametrize(
    ("section", "name"),
    (("speed", "step, batch 2, compiled"), ("compilation", "instance, train.compile: always")),
)
def test_a_step_that_warns_is_not_timed_in_silence(
    setting: Any, monkeypatch: pytest.MonkeyPatch, section: str, name: str
) -> None:
    from stylize.training import trainer

    step = trainer.Trainer.step

    def warned(self: Any, batch: Tensor) -> Any:
        if self.compute.compiled and not hasattr(self, "told"):
            self.told = True
            trainer.logger.warning("train.compile: a first step failed (why)")
        return step(self, batch)

    monkeypatch.setattr(trainer.Trainer, "step", warned)
    result = found_by(setting, section, name)
    assert (result.status, result.message) == ("failed", "warned: train.compile: a first step failed (why)")


def test_painting_whose_compilation_failed_is_not_timed_as_compiled(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *given, **options: broken)
    result = found_by(setting, "speed", "48×32, width 32, compiled")
    warning = "--compile: compilation failed (no compiler); painting without"
    assert (result.status, result.message) == ("failed", f"warned: {warning}")
    assert result.found.row["way"] == "whole, compiled"


@pytest.mark.parametrize(
    ("kernel", "multiplies"),
    (
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64", True),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_64x64>", True),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", True),
        ("triton_tem_fused_convolution_3", True),
        ("triton_poi_fused_convolution_relu_7", False),
        ("triton_red_fused_convolution_native_batch_norm_5", False),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>", False),
        ("void at::native::reflection_pad2d_out_kernel<c10::BFloat16>", False),
        ("Memcpy HtoD (Pinned -> Device)", False),
    ),
)
def test_kernels_that_multiply_are_told_from_those_that_move(check: ModuleType, kernel: str, multiplies: bool) -> None:
    from gpu_checks.profiling import MULTIPLIES

    assert bool(MULTIPLIES.search(kernel)) == multiplies


@pytest.mark.parametrize("name", ("running", "report", "timing"))
def test_examples_in_docstrings_of_the_parts_hold(check: ModuleType, name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"gpu_checks.{name}"))
    assert tried > 0
    assert failed == 0
