"""The studies: what they are made of, against hand values, and each of them from end to end in miniature."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from fixtures_runs import write_config
from PIL import Image
from torch import Tensor

from stylize.build import read_styles
from stylize.cli import cli
from stylize.config import RunConfig, load_config, with_changes
from stylize.errors import StylizeError
from stylize.evaluation.borders import border_mask, border_scores
from stylize.evaluation.contrast import change_contrast, equalize_luminance, luminance
from stylize.evaluation.statistics import Table, confidence
from stylize.generators import GeneratorConfig, build_generator
from stylize.generators.statistics import frozen_statistics
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig, correlation
from stylize.losses.vgg import VGG19
from stylize.losses.vgg_weights import encode_compact, load_vgg, randomize_
from stylize.norms import BatchInstanceNorm
from stylize.studies import runs
from stylize.studies.comparisons import STUDIES, generators, loss_networks
from stylize.studies.comparisons.frozen import average_statistics
from stylize.studies.comparisons.gates import gates_of, prune_
from stylize.studies.conduct import Request, conduct, quickened
from stylize.studies.findings import Histogram, Plot, Sheet, line_of_seeds
from stylize.studies.photographs import split, subset, transformed
from stylize.studies.report import as_markdown, labelled
from stylize.studies.runs import Arm, StudyRun, generator_of, plan_runs, records, train_runs
from stylize.studies.study import Results, Setting
from stylize.training.tensorboard import read_events
from stylize.training.trainer import Trainer

THREE_STYLES = {"a": 48, "b": 40, "c": 44}  # sizes of one picture


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, its photographs, and all studies that are made of it."""
    folder = tmp_path_factory.mktemp("studies")
    write_config(folder, {"train.steps": 2, "train.validate_every": 1, "content.crop": 48, "content.resize": 52})
    return folder


def base(folder: Path, **changes: object) -> RunConfig:
    return load_config(write_config(folder, changes))


def tiny_loss(style: Tensor | None = None) -> PerceptualLoss:
    config = LossConfig(vgg="random", content_layers={"relu1_2": 1.0}, style_layers={"relu1_1": 1.0, "relu2_1": 1.0})
    vgg = load_vgg("random", config.taps(), seed=0).vgg
    return PerceptualLoss(vgg, config, [torch.rand(3, 48, 48) if style is None else style])


def test_equalizing_spreads_luminance_over_its_range_and_keeps_the_chroma() -> None:
    # Four levels, a quarter of the pixels each: their ranks are spread evenly, from black to white.
    levels = np.repeat([100, 110, 120, 130], 4096).astype(np.uint8).reshape(128, 128)
    equalized = np.asarray(equalize_luminance(Image.fromarray(np.stack([levels] * 3, axis=-1))))
    assert np.abs(np.unique(equalized[..., 0]) - np.array([0, 85, 170, 255])).max() <= 1
    coloured = Image.merge("YCbCr", [Image.fromarray(levels), *(Image.new("L", (128, 128), c) for c in (120, 135))])
    before, after = (
        np.asarray(i.convert("YCbCr"), int) for i in (coloured, equalize_luminance(coloured.convert("RGB")))
    )
    inner = (after[..., 0] > 40) & (after[..., 0] < 215)  # beyond, colours leave RGB
    assert np.abs(after - before)[inner][:, 1:].max() <= 2


def test_contrast_is_changed_about_the_mean_luminance_and_clipped() -> None:
    image = torch.tensor([[0.0, 0.4], [0.6, 1.0]]).expand(1, 3, 2, 2)
    assert torch.allclose(change_contrast(image, 0.0), torch.full_like(image, 0.5))
    assert torch.equal(change_contrast(image, 1.0), image)
    assert torch.allclose(change_contrast(image, 1.5)[0, 0], torch.tensor([[0.0, 0.35], [0.65, 1.0]]))
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.allclose(change_contrast(red, 0.5)[0, :, 0, 0], torch.tensor([0.6495, 0.1495, 0.1495]))


def test_a_border_as_bright_as_the_centre_scores_one_and_a_dark_one_its_share() -> None:
    photograph = torch.full((1, 3, 64, 64), 0.5)
    framed = photograph.clone()
    framed[..., border_mask(64, 64, 16)] = 0.2
    loss = tiny_loss()
    assert border_scores(loss, framed, photograph)["brightness"] == pytest.approx(0.4)
    assert border_scores(loss, framed, framed)["brightness"] == pytest.approx(1)


def test_the_border_scores_count_the_outer_16_px_at_every_layer() -> None:
    photograph = torch.rand(1, 3, 64, 64)
    loss = tiny_loss()
    spoilt = photograph.clone()
    spoilt[..., 32:36, 32:36] = 1 - spoilt[..., 32:36, 32:36]
    assert border_scores(loss, spoilt, photograph)["content"] == 0
    spoilt = photograph.clone()
    spoilt[..., :4, :] = 1 - spoilt[..., :4, :]
    assert border_scores(loss, spoilt, photograph)["content"] > 1e6  # nothing has changed in the centre
    style = 0.3 * torch.rand(3, 64, 64)
    scores = border_scores(tiny_loss(style), torch.where(border_mask(64, 64, 16), photograph, style), photograph)
    assert scores["style"] > 2  # the centre has the style


def test_photographs_are_split_once_and_none_is_in_both(tmp_path: Path) -> None:
    config = base(tmp_path, **{"content.validation": 3})
    photographs = split(config, tmp_path / "photographs")
    training, held_out = ({p.resolve().name for p in folder.iterdir()} for folder in photographs)
    assert (len(training), len(held_out)) == (5, 3)
    assert training | held_out == {f"{i}.jpg" for i in range(8)}
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "photographs").rglob("*")}
    assert split(config, tmp_path / "photographs") == photographs
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "photographs").rglob("*")} == before


def test_a_part_of_the_photographs_is_drawn_by_the_seed(tmp_path: Path) -> None:
    photographs = split(base(tmp_path), tmp_path / "photographs")
    names = [{p.resolve().name for p in subset(photographs, 3, seed).training.iterdir()} for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert all(
        len(chosen) == 3 and chosen < {p.resolve().name for p in photographs.training.iterdir()} for chosen in names
    )


def test_transformed_photographs_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    config = base(tmp_path)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    photographs = split(config, tmp_path / "photographs")
    made = transformed(photographs, "black", 24, lambda image: Image.new("RGB", image.size))
    pictures = [Image.open(p) for folder in made for p in folder.iterdir()]
    assert len(pictures) == 8
    assert all(min(image.size) == 24 and image.getextrema() == ((0, 0),) * 3 for image in pictures)


def test_a_study_without_held_out_photographs_is_refused(tmp_path: Path) -> None:
    message = "content.validation: got 0, must be at least 1: a study measures held-out photographs"
    with pytest.raises(StylizeError, match=re.escape(message)):
        split(base(tmp_path, **{"content.validation": 0}), tmp_path)


def test_equal_trainings_have_one_folder_and_others_another(tmp_path: Path) -> None:
    arms = [Arm("a", {"generator.norm": "batch"}), Arm("b", {"generator.norm": "batch"}), Arm("c", {})]
    a, a1, b, b1, c, c1 = plan_runs(base(tmp_path), arms, (0, 1), tmp_path / "runs")
    assert (a.folder, a1.folder) == (b.folder, b1.folder)
    assert len({a.folder, a1.folder, c.folder, c1.folder}) == 4
    assert (a.config.seed, a1.config.seed) == (0, 1)


def test_a_change_that_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(StylizeError, match=r"study: train.batch_size: got 1 with generator.norm 'batch_instance'"):
        plan_runs(
            base(tmp_path),
            [Arm("a", {"generator.norm": "batch_instance", "train.batch_size": 1})],
            (0,),
            tmp_path,
        )


def one_run(folder: Path, **changes: object) -> StudyRun:
    config = base(folder, **{"train.steps": 20, "train.validate_every": 5, **changes})
    return plan_runs(config, [Arm("a", {})], (0,), folder / "runs")[0]


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = one_run(tmp_path), one_run(tmp_path)._replace(folder=tmp_path / "stopped")
    train_runs([whole], "cpu")
    step = Trainer.step

    def until_the_ninth(self: Trainer, batch: Tensor) -> dict[str, Tensor]:
        if self.progress.step == 9:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", until_the_ninth)
        train_runs([stopped], "cpu")
    assert not stopped.is_done
    train_runs([stopped], "cpu")
    assert stopped.is_done
    one, other = (generator_of(run).state_dict() for run in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [r["step"] for r in records(stopped, "validation")] == [5, 10, 15, 20]


def test_every_training_of_a_study_goes_to_its_last_step(tmp_path: Path) -> None:
    run = one_run(tmp_path, **{"train.stop_after": 1, "train.validate_every": 1, "train.learning_rate": 1.0})
    train_runs([run], "cpu")
    assert records(run, "validation")[-1]["step"] == 20


def test_the_command_of_a_training_trains_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = one_run(tmp_path)
    train_runs([run], "cpu")
    arguments = [*run.command.split()[1:], "--device", "cpu"]
    assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    one, other = generator_of(run).state_dict(), generator_of(run._replace(folder=Path("again", run.folder.name)))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.items())


def test_several_trainings_at_a_time_are_all_done(tmp_path: Path) -> None:
    config = base(tmp_path, **{"train.steps": 2})
    runs = plan_runs(config, [Arm("BN", {"generator.norm": "batch"}), Arm("IN", {})], (0,), tmp_path / "runs")
    train_runs(runs, "cpu", jobs=2)
    assert all(run.is_done for run in runs)
    before = {p: p.stat().st_mtime_ns for run in runs for p in run.folder.rglob("*")}
    train_runs(runs, "cpu", jobs=2)
    assert {p: p.stat().st_mtime_ns for run in runs for p in run.folder.rglob("*")} == before


def test_the_variables_of_an_arm_are_those_of_its_process_alone(tmp_path: Path) -> None:
    # Python runs `sitecustomize` when a process starts: it notes what the process was given.
    (tmp_path / "start").mkdir()
    note = f"open({str(tmp_path / 'noted')!r}, 'a').write(os.environ['STYLIZE_REFERENCE'])"
    (tmp_path / "start" / "sitecustomize.py").write_text(f"import os\n{note}\n")
    path = os.pathsep.join((str(tmp_path / "start"), str(Path(__file__).parent.parent)))
    variables = {"STYLIZE_REFERENCE": "1", "PYTHONPATH": path}
    config, before = base(tmp_path, **{"train.steps": 2}), dict(os.environ)
    plain, varied = plan_runs(config, [Arm("a", {}), Arm("b", {}, variables)], (0,), tmp_path / "runs")
    train_runs([plain, varied], "cpu")
    assert plain.is_done and varied.is_done and plain.folder != varied.folder
    assert "1" in (tmp_path / "noted").read_text()
    assert dict(os.environ) == before
    assert varied.command.startswith("env STYLIZE_REFERENCE=1 ")
    assert plain.command.startswith("stylize train ")


def test_a_training_from_another_start_is_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, starts = base(tmp_path, **{"train.start": "learned"}), []
    for content in (b"one", b"two", b"one"):
        (tmp_path / "start").write_bytes(content)
        monkeypatch.setattr(runs, "learned_start", lambda name, width: tmp_path / "start")
        arms = [Arm("a", {}), Arm("b", {"train.start": "none"})]
        starts.append([run.folder for run in plan_runs(config, arms, (0,), tmp_path)])
    (one, none), (two, still_none), again = starts
    assert one != two and none == still_none and again == [one, none]


@pytest.mark.parametrize("jobs", (1, 2))
def test_a_training_that_fails_in_its_own_process_says_why(tmp_path: Path, jobs: int) -> None:
    config = base(tmp_path, **{"loss.vgg": "nowhere.pth"})
    arms = [Arm(name, {}, {"STYLIZE_REFERENCE": name}) for name in ("0", "1")]
    with pytest.raises(StylizeError, match=r"loss\.vgg: got '.*nowhere\.pth', must be"):
        train_runs(plan_runs(config, arms, (0,), tmp_path / "runs"), "cpu", jobs)


@pytest.mark.parametrize(
    ("name", "width", "thousand"), [("johnson", 32, 154), ("johnson", 16, 42), ("johnson_lite", 32, 33)]
)
def test_multiply_adds_of_the_generators(name: str, width: int, thousand: int) -> None:
    generator = build_generator(GeneratorConfig(name=name, width=width, margin=0))
    assert round(generators.multiply_adds(generator) / 1e3) == thousand


def write_student(path: Path, width: int) -> str:
    vgg = VGG19(5, widths=[width] * 5)
    randomize_(vgg, seed=width)
    path.write_bytes(encode_compact(vgg, {}))
    return str(path)


def judged(folder: Path, *networks: str, **changes: object) -> Setting:
    """A setting of the loss-networks study, whose judge is a student of width 6."""
    judge = write_student(folder / "judge.safetensors", 6)
    config = base(folder, **{"loss.vgg": judge, "train.steps": 10, **changes})
    photographs = split(config, folder / "photographs")
    config = with_changes(config, photographs.changes(), "study")
    return Setting(config, photographs, (0,), lambda x: x, "", folder=folder, networks=networks)


def test_a_faster_loss_network_is_trained_for_equal_steps_and_for_equal_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.3, 0.2, 0.29))
    monkeypatch.setattr(
        loss_networks,
        "measure_step_seconds",
        lambda config, networks, device: dict(zip(networks, seconds, strict=True)),
    )
    fast, slow = (write_student(tmp_path / f"{name}.safetensors", 4) for name in ("fast", "slow"))
    setting = judged(tmp_path, fast, slow)
    arms = loss_networks.STUDY.arms(setting)
    assert [arm.name for arm in arms] == [
        "judge (judge), 10 steps",
        "fast, 10 steps",
        "fast, 15 steps",
        "slow, 10 steps",
    ]
    assert [arm.changes["loss.vgg"] for arm in arms] == [setting.base.loss.vgg, fast, fast, slow]
    assert loss_networks.STUDY.arms(setting) == arms  # not timed again, which would raise


def test_seconds_of_a_step_are_measured_against_every_network(tmp_path: Path) -> None:
    other = write_student(tmp_path / "other.safetensors", 4)
    setting = judged(tmp_path, other)
    seconds = loss_networks.step_seconds(setting)
    assert list(seconds) == [setting.base.loss.vgg, other]
    assert all(value > 0 for value in seconds.values())
    assert loss_networks.step_seconds(setting) == seconds


def test_loss_networks_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = write_student(tmp_path / "b" / "judge.safetensors", 4)
    with pytest.raises(StylizeError, match=r"^--network: got two of the name 'judge', must have different names$"):
        loss_networks.networks_of(judged(tmp_path, other))


def test_the_judge_measures_what_the_perceptual_loss_says(tmp_path: Path) -> None:
    setting = judged(tmp_path)
    runs = plan_runs(setting.base, loss_networks.STUDY.arms(setting), (0,), tmp_path / "runs")
    train_runs(runs, "cpu")
    results = Results(setting, (runs[0].arm,), runs, torch.device("cpu"), [torch.rand(3, 32, 32)], 0)
    table = loss_networks.STUDY.findings(results).parts[0]
    assert isinstance(table, Table)
    (model, photographs) = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    config = setting.base
    vgg = load_vgg(config.loss.vgg, config.loss.taps()).vgg
    content = torch.stack(results.held_out)
    with torch.no_grad():
        for row, painted in ((model, results.generator(runs[0].arm)(content)), (photographs, content)):
            for column, balance in (("style", 0.5), ("style, plain Gram matrices", 0.0)):
                loss_config = config.loss.model_copy(update={"channel_balance": balance})
                loss = PerceptualLoss(vgg, loss_config, read_styles(config.style, config.loss))
                assert float(row[column]) == pytest.approx(float(loss(painted, content)["style"]), abs=1e-4)
            taps = config.loss.content_layers
            pairs = zip(vgg(painted, taps).values(), vgg(content, taps).values(), strict=True)
            expected = sum(float(correlation(*pair)) for pair in pairs) / len(taps)
            assert float(row["content correlation"]) == pytest.approx(expected, abs=1e-4)


def test_the_average_of_one_photograph_is_its_own_statistics() -> None:
    generator = build_generator(GeneratorConfig(width=4)).eval()
    one, other = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        own = generator(one[None])
        with frozen_statistics(generator, average_statistics(generator, [one])):
            torch.testing.assert_close(generator(one[None]), own, atol=1e-5, rtol=1e-4)
        with frozen_statistics(generator, average_statistics(generator, [one, 0.1 * other])):
            assert (generator(one[None]) - own).abs().max() > 1e-3


def test_gates_pruned_to_nothing_make_an_instance_norm() -> None:
    gated = build_generator(GeneratorConfig(width=4, norm="batch_instance"))
    instance = build_generator(GeneratorConfig(width=4, norm="instance"))
    with torch.no_grad():
        for norm in gated.norms().values():
            assert isinstance(norm, BatchInstanceNorm)
            norm.gate.uniform_(0, 1)
            norm.running_mean.uniform_(-1, 1)
    instance.load_state_dict({n: v for n, v in gated.state_dict().items() if n in instance.state_dict()})
    assert {gate.shape for gate in gates_of(gated).values()} >= {torch.Size([4]), torch.Size([16])}
    x = torch.rand(1, 3, 32, 32)
    prune_(gated.eval(), torch.zeros_like)
    with torch.no_grad():
        torch.testing.assert_close(gated(x), instance.eval()(x), atol=1e-5, rtol=1e-4)


def test_nothing_but_rounding_is_left_of_gates_put_to_their_nearer_side() -> None:
    gated = build_generator(GeneratorConfig(width=4, norm="batch_instance"))
    with torch.no_grad():
        for norm in gated.norms().values():
            assert isinstance(norm, BatchInstanceNorm)
            norm.gate.copy_(torch.linspace(0.2, 0.9, norm.num_channels))
    gates = gates_of(prune_(gated, torch.round))
    assert all(set(gate.tolist()) == {0.0, 1.0} for gate in gates.values())


def test_csv_holds_every_point() -> None:
    line = line_of_seeds("IN", [1, 2], [[1.0, 2.0], [3.0, 2.0]])
    rows = list(csv.reader(Plot("t", "x", "y", [line]).to_csv().splitlines()))
    assert rows == [
        ["line", "x", "mean", "min", "max"],
        ["IN", "1", "2.0", "1.0", "3.0"],
        ["IN", "2", "2.0", "2.0", "2.0"],
    ]
    histogram = Histogram("t", "x", {"a": [0.0, 0.04, 1.0]}, bins=2)
    assert histogram.to_csv().splitlines() == ["group,from,to,count", "a,0.0,0.5,2", "a,0.5,1.0,1"]


def test_the_interval_of_the_mean_narrows_with_the_number_of_values() -> None:
    few, many = (confidence(list(torch.linspace(0, 1, n).tolist())) for n in (4, 400))
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * (1 / 12) ** 0.5 / 20, rel=0.1)


def test_a_sheet_has_its_words_above_and_beside() -> None:
    white = torch.ones(3, 40, 60)
    picture = labelled(Sheet("t", ("first", "second"), [[white, white]] * 2, ("one", "two")))
    assert picture.shape == (3, 18 + 40 + 4 + 40, 110 + 60 + 4 + 60)
    dark = picture.mean(0) < 0.5
    assert dark[:18, 110:170].any() and dark[:18, 174:].any()
    assert dark[18:58, :110].any() and dark[62:, :110].any()
    assert not dark[18:, 110:].any()


def test_a_study_of_many_styles_finds_what_each_network_has_and_that_the_old_styles_stay(tmp_path: Path) -> None:
    config = base(tmp_path, style=None, styles=[
        {"name": name, "image": "style.png", "size": size} for name, size in THREE_STYLES.items()
    ])  # fmt: skip
    page = conduct(STUDIES["styles"], Request(config, tmp_path / "studies", 1, "cpu", iterations=0))
    found = (page.parent / "report.md").read_text("utf-8").splitlines()
    text = "\n".join(found)
    assert "2 styles in one network of 8 steps against networks of 4 steps each: style × " in text
    assert "c, added by 8 steps of the norms alone, against a network of its own of 4 steps: style × " in text
    assert "- the 2 styles and all shared weights are the same bits as before" in found
    assert re.search(r"along the blend of a and b the style losses of both are (not )?monotone", text)
    runs = [metrics.read_text().splitlines() for metrics in (tmp_path / "studies" / "runs").glob("*/metrics.jsonl")]
    ends = [record for run in runs for record in map(json.loads, run) if record["step"] == 8 and "style_name" in record]
    shared = {record["style_name"]: record["style"] for record in ends}
    for name in ("a", "b"):
        assert f"| {name} | together | {shared[name]:.4f} | " in text


def test_a_study_of_many_styles_needs_three(tmp_path: Path) -> None:
    with pytest.raises(StylizeError, match="styles: got 1, must be at least 3 for this study"):
        conduct(STUDIES["styles"], Request(base(tmp_path), tmp_path / "studies", 1, "cpu"))


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_from_end_to_end(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    styles = ", ".join(f"{{name: {style}, image: style.png, size: {size}}}" for style, size in THREE_STYLES.items())
    several = ["--set", "style=null", "--set", f"styles=[{styles}]"] if name == "styles" else []
    result = CliRunner().invoke(
        cli,
        ["study", name, "--config", "a.yaml", "--seeds", "1", "--iterations", "2", *several],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    place = workplace / "studies" / name
    assert result.stdout.splitlines()[-1] == str(place / "report.html")
    page = (place / "report.html").read_text("utf-8")
    assert html.escape(STUDIES[name].title) in page
    shown = page.count("<figure>")
    assert shown >= 4
    assert page.count("<figcaption>") == shown == page.count("</figure>")
    assert page.count("<svg") == len(list(place.glob("*.svg"))) >= 1
    assert page.count("data:image/jpeg;base64,") >= 1
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page))
    text = (place / "report.md").read_text("utf-8")
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert pictures and all((place / picture).is_file() for picture in pictures)
    for table in place.glob("*.csv"):
        rows = list(csv.reader(table.read_text("utf-8").splitlines()))
        assert len(rows) > 1 and {len(row) for row in rows} == {len(rows[0])}
    commands = re.findall(r"stylize train --config (\S+) --output again/([^\s<]+)", page)
    assert commands and all(Path(config).is_file() and Path(config).parent.name == run for config, run in commands)
    curves = [event for file in (place / "curves").rglob("events*") for event in read_events(file)]
    assert any(event.summary.value for event in curves)


def test_a_study_that_is_made_again_trains_nothing(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    arguments = ["study", "frozen", "--config", "a.yaml", "--seeds", "1", "--iterations", "2"]
    for _ in range(2):
        caplog.clear()
        with caplog.at_level("INFO", "stylize"):
            assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    assert "2 trainings, 0 of them still to do" in caplog.messages


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium to open the page")
def test_the_page_shows_its_plots_in_a_browser_without_network(workplace: Path, tmp_path: Path) -> None:
    page = workplace / "studies" / "gates" / "report.html"
    if not page.exists():  # this test alone
        arguments = ["--config", str(workplace / "a.yaml"), "--output", str(workplace / "studies"), "--seeds", "1"]
        assert CliRunner().invoke(cli, ["study", "gates", *arguments, "--iterations", "0"]).exit_code == 0
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page.read_text("utf-8")) == []
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += ["--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"]
    shot = tmp_path / "page.png"
    subprocess.run(
        ["chromium", *options, f"--user-data-dir={tmp_path}/profile", "--window-size=1000,3000",
         f"--screenshot={shot}", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(shot) as image:
        colours = image.convert("RGB").resize((250, 750)).getcolors(2**20)
    assert colours is not None
    vivid = sum(count for count, (r, g, b) in colours if max(r, g, b) - min(r, g, b) > 60)
    assert vivid > 1000  # of plots and pictures; words and lines are gray


def interrupt(study: subprocess.Popen[str]) -> None:
    os.killpg(study.pid, signal.SIGINT)


def kill_one(study: subprocess.Popen[str]) -> None:
    training = [p for p in psutil.Process(study.pid).children() if any("spawn_main" in word for word in p.cmdline())]
    training[0].kill()


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to a group of processes")
@pytest.mark.parametrize(
    ("end", "status", "message"),
    (
        (interrupt, 130, "stylize: interrupted"),
        (
            kill_one,
            1,
            "stylize: a process that trained has died, maybe for want of memory: ask for the study again, with fewer "
            "--jobs; what was trained is kept",
        ),
    ),
)
def test_a_study_that_is_ended_says_so_in_one_line_and_keeps_what_was_trained(
    tmp_path: Path, end: Callable[[subprocess.Popen[str]], None], status: int, message: str
) -> None:
    write_config(tmp_path, {"train.steps": 400, "train.validate_every": 400})
    command = [sys.executable, "-m", "stylize", "study", "frozen", "--config", "a.yaml", "--seeds", "1", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as study:
        give_up_s = time.monotonic() + 120
        while len({p.parent for p in (tmp_path / "studies" / "runs").glob("*/checkpoints/*.pt")}) < 2:
            assert study.poll() is None and time.monotonic() < give_up_s
            time.sleep(0.05)
        end(study)
        told = study.communicate(timeout=120)[1]
    assert study.returncode == status, told
    assert told.splitlines()[-1] == message
    assert "Traceback" not in told
    assert len(list((tmp_path / "studies" / "runs").glob("*/checkpoints/*.pt"))) >= 2


@pytest.mark.skipif(sys.platform == "win32", reason="processes are watched by their ids")
@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGKILL))
def test_trainings_end_with_the_study_that_began_them(tmp_path: Path, number: signal.Signals) -> None:
    write_config(tmp_path, {"train.steps": 4000, "train.validate_every": 4000})
    command = [sys.executable, "-m", "stylize", "study", "frozen", "--config", "a.yaml", "--seeds", "1", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=environment) as study:
        give_up_s = time.monotonic() + 120
        while len({p.parent for p in (tmp_path / "studies" / "runs").glob("*/metrics.jsonl")}) < 2:
            assert study.poll() is None and time.monotonic() < give_up_s
            time.sleep(0.05)
        trainings = psutil.Process(study.pid).children()
        assert len(trainings) >= 2
        study.send_signal(number)
        assert study.wait(timeout=60) != 0
    _, alive = psutil.wait_procs(trainings, timeout=60)
    assert alive == []


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["study", *arguments])
    assert result.exit_code != 0
    return str(result.exception) if isinstance(result.exception, StylizeError) else result.stderr


def test_without_a_name_the_studies_are_listed() -> None:
    lines = CliRunner().invoke(cli, ["study"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES)


def test_what_is_wrong_is_told_before_anything_is_trained(workplace: Path, tmp_path: Path) -> None:
    config, output = str(workplace / "a.yaml"), str(tmp_path / "out")
    assert invoke("norm", "--config", config).startswith("study: got 'norm', must be one of ")
    assert "--config: must name a run's YAML file" in invoke("norms")
    told = invoke("norms", "--config", config, "--output", output, "--pictures", "nowhere")
    assert told == "--pictures: got 'nowhere', must be a folder of photographs that exists"
    (tmp_path / "empty").mkdir()
    told = invoke("norms", "--config", config, "--output", output, "--pictures", str(tmp_path / "empty"))
    assert told == f"--pictures: {tmp_path}/empty holds no image that can be read"
    assert invoke("norms", "--config", config, "--output", output, "--restyle", "no-such").startswith(
        "--restyle: got 'no-such', must be a model file, a run folder, or a built-in style"
    )
    (tmp_path / "file").write_text("")
    told = invoke("norms", "--config", config, "--output", str(tmp_path / "file"))
    assert told == f"{tmp_path}/file/norms: cannot be created (Not a directory)"
    assert not (tmp_path / "out" / "runs").exists()


def test_crops_without_a_centre_have_no_border(workplace: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(workplace / "a.yaml"), "--output", str(tmp_path), "--set", "content.crop=32"]
    assert invoke("padding", *arguments) == "content.crop: got 32, must be above 32 for this study of the border"


def test_a_quick_study_is_the_same_in_small(tmp_path: Path) -> None:
    large = {"content.crop": 256, "content.resize": 288, "generator.width": 32, "train.steps": 40_000}
    config = quickened(base(tmp_path, **large, **{"content.validation": 2, "loss.style_weight": 7.0}))
    assert (config.content.crop, config.content.resize, config.generator.width) == (64, 72, 8)
    assert (config.train.steps, config.content.validation, config.loss.style_weight) == (150, 2, 7.0)
    small = base(tmp_path)
    assert quickened(small) == small


def results_of(folder: Path, values: dict[str, list[float]]) -> Results:
    """Results whose runs have recorded these style losses, by arm and seed."""
    runs = []
    for arm, by_seed in values.items():
        for seed, value in enumerate(by_seed):
            run = folder / f"{arm}-{seed}"
            run.mkdir()
            (run / "metrics.jsonl").write_text(f'{{"step": 1, "kind": "validation", "style": {value}}}\n')
            runs.append(StudyRun(arm, seed, None, run))  # type: ignore[arg-type]
    setting = Setting(None, None, (0, 1), lambda x: x, "")  # type: ignore[arg-type]
    return Results(setting, tuple(values), runs, torch.device("cpu"), [], 0)


def test_a_difference_counts_only_beyond_the_spread(tmp_path: Path) -> None:
    results = results_of(tmp_path, {"IN": [1.0, 1.2], "BN": [2.0, 2.2], "BIN": [1.0, 1.4], "one": [3.0]})
    assert results.compare("IN", "BN") == (
        "IN against BN: IN is lower by more than the spread "
        "(style 1.1000 ± 0.1414 against 2.1000 ± 0.1414, difference 1.0000 ± 0.0000; 2 seeds)"
    )
    assert "BIN against IN: no difference beyond the spread" in results.compare("BIN", "IN")
    assert "IN is lower by more than the spread" in results.compare("BN", "IN")
    alone = results_of(tmp_path / "b", {"a": [1.0], "b": [2.0]}) if (tmp_path / "b").mkdir() is None else results
    assert alone.compare("a", "b").endswith("one seed says nothing of the spread")


def test_tables_are_written_as_markdown() -> None:
    table = Table("t", ("", "style"), [("BN", "0.5 ± 0.1"), ("IN", 2)])
    assert as_markdown(table).splitlines() == ["| | style |", "|---|---|", "| BN | 0.5 ± 0.1 |", "| IN | 2 |"]


def test_the_luminance_of_gray_is_its_level() -> None:
    assert torch.allclose(luminance(torch.full((2, 3, 4, 5), 0.3)), torch.tensor(0.3))
