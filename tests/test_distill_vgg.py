"""The making of VGG-19's student, with a teacher of random weights."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stylize.config import read_config
from stylize.errors import StylizeError
from stylize.losses.perceptual import PerceptualLoss
from stylize.losses.terms import LossConfig
from stylize.losses.vgg import TAPS as ALL_TAPS
from stylize.losses.vgg import VGG19
from stylize.losses.vgg_weights import encode_compact, load_vgg, natural_noise, randomize_

TAPS = tuple(ALL_TAPS)[:5]
ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "scripts" / "distill" / "students.yaml"
TINY = {
    "teacher": "random",
    "styles": str(ROOT / "configs" / "styles"),
    "size": 24,
    "students": {"tiny": {"widths": [4, 4, 4, 4, 6]}},
    "content.path": "samples",
    "content.validation": 2,
    "content.resize": 40,
    "content.crop": 32,
    "pool.size": 2,
    "batch_size": 3,
    "steps": 4,
    "log_every": 1,
    "evaluate_every": 4,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def distill() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        import distill.examination
        import distill_vgg

        patch.setattr(distill.examination, "TIMED_PX", 32)
        yield distill_vgg


def settings(**changes: Any) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in {**TINY, **changes}.items()]


def build(distill: ModuleType, run_dir: Path, **changes: Any) -> Any:
    config = read_config(distill.DistillConfig, CONFIG, settings(**changes))
    return distill.Distiller(config, torch.device("cpu"), run_dir)


def invoke(distill: ModuleType, command: str, *arguments: object, **changes: Any) -> str:
    overrides = [word for setting in settings(**changes) for word in ("--set", setting)]
    line = [command, "--config", str(CONFIG), "--device", "cpu", *overrides, *map(str, arguments)]
    return CliRunner().invoke(distill.main, line, catch_exceptions=False).output


@pytest.fixture(scope="module")
def run_dir(distill: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("distill") / "run"
    invoke(distill, "train", "--output", folder)
    return folder


@pytest.mark.parametrize(
    ("name", "most_bytes"),
    (("students", 500_000), ("low_rank", 500_000), ("compact", 500_000), ("compact-deep", 2_000_000)),
)
def test_every_candidate_builds_and_fits_the_package(distill: ModuleType, name: str, most_bytes: int) -> None:
    for student in read_config(distill.DistillConfig, CONFIG.with_stem(name)).students.values():
        assert len(encode_compact(student.build(), {})) < most_bytes


def test_the_candidates_differ_in_width_convolution_and_what_is_matched(distill: ModuleType) -> None:
    students = read_config(distill.DistillConfig, CONFIG).students.values()
    assert len({tuple(student.widths) for student in students}) >= 2
    assert {student.convolution for student in students} == {"plain", "separable"}
    assert {bool(student.match.style_gradient) for student in students} == {True, False}


def test_an_unknown_key_is_refused_with_the_right_ones(distill: ModuleType) -> None:
    with pytest.raises(StylizeError) as caught:
        read_config(distill.DistillConfig, CONFIG, ["students.wide.match.style_gradiant=1"])
    assert str(caught.value) == (
        f"{CONFIG}: students.wide.match.style_gradiant: unknown key, must be one of 'channel_balance', "
        "'content_gradient', 'features', 'gradient_norms', 'style_gradient'. Did you mean 'style_gradient'?"
    )


@pytest.mark.parametrize(
    ("student", "message"),
    (
        ({"convolution": "low_rank"}, "got 0 ranks, must be 5: one a layer for low_rank, else none"),
        ({"ranks": [None] * 5}, "got 5 ranks, must be 0: one a layer for low_rank, else none"),
        ({"convolution": "low_rank", "ranks": [[2, 2]] * 5}, "got ranks for the first layer, must be null: plain"),
        ({"convolution": "separable", "start": "teacher"}, "got start: teacher with separable, must be plain or low"),
        ({"fixed": "a.safetensors"}, "got fixed without start: teacher, must be with it"),
    ),
)
def test_a_student_that_cannot_be_made_is_refused(distill: ModuleType, student: dict[str, Any], message: str) -> None:
    with pytest.raises(StylizeError, match=re.escape(message)):
        read_config(distill.DistillConfig, CONFIG, settings(students={"tiny": {"widths": [4] * 5, **student}}))


WHOLE = [6, 8, 12, 12, 16]
FULL_RANK = [None, [6, 8], [8, 12], [12, 12], [12, 16]]
DECOMPOSED = {"start": "teacher", "convolution": "low_rank"}


@pytest.fixture(scope="module")
def small_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    vgg = VGG19(5, widths=WHOLE)
    randomize_(vgg, seed=3)
    path.write_bytes(encode_compact(vgg, {}))
    return str(path)


@torch.no_grad()
@pytest.mark.parametrize("student", ({"convolution": "plain"}, {"convolution": "low_rank", "ranks": FULL_RANK}))
def test_a_decomposition_that_leaves_nothing_out_is_the_teacher(
    distill: ModuleType, tmp_path: Path, small_teacher: str, student: dict[str, Any]
) -> None:
    students = {"whole": {"widths": WHOLE, "start": "teacher", **student}}
    distiller = build(distill, tmp_path, teacher=small_teacher, students=students, decomposed_on=12)
    images = torch.rand(2, 3, 24, 24)
    mine, taught = (vgg(images, TAPS) for vgg in (distiller.students["whole"].vgg, distiller.teacher))
    for tap in TAPS:
        assert (mine[tap] - taught[tap]).square().mean() < 1e-3 * taught[tap].square().mean(), tap


@torch.no_grad()
def test_a_decomposed_student_has_some_of_the_teachers_channels_and_less_is_lost_with_higher_ranks(
    distill: ModuleType, tmp_path: Path, small_teacher: str
) -> None:
    ranks = {"low": [None, [2, 2], [2, 2], [2, 2], [2, 2]], "high": [None, [5, 7], [8, 11], [10, 11], [11, 14]]}
    students = {name: {**DECOMPOSED, "widths": [5, 8, 12, 12, 16], "ranks": ranks[name]} for name in ranks}
    distiller = build(distill, tmp_path, teacher=small_teacher, students=students, decomposed_on=24)
    images, lost = distiller._pictures()[:16], {}
    taught = distiller.teacher(images, TAPS)
    for name, student in distiller.students.items():
        assert [len(student.kept[tap]) for tap in TAPS] == [5, 8, 12, 12, 16]
        errors = {
            tap: (maps - taught[tap][:, student.kept[tap]]).square().mean() / taught[tap].square().mean()
            for tap, maps in student.vgg(images, TAPS).items()
        }
        assert errors["relu1_1"] < 1e-9
        lost[name] = errors["relu3_1"]
    assert lost["high"] < 0.6 * lost["low"] < 0.6


def test_layers_that_are_fixed_stay_and_the_others_are_fitted_to_them(
    distill: ModuleType, tmp_path: Path, small_teacher: str
) -> None:
    fixed = VGG19(3, widths=(4, 5, 12))
    randomize_(fixed, seed=5)
    (tmp_path / "fixed.safetensors").write_bytes(encode_compact(fixed, {}))
    student = {**DECOMPOSED, "widths": [4, 5, 12, 12, 16], "ranks": [None, None, None, [8, 11], [11, 14]]}
    students = {"on": {**student, "fixed": str(tmp_path / "fixed.safetensors")}, "free": student}
    distiller = build(
        distill, tmp_path / "run", teacher=small_teacher, students=students, decomposed_on=24, learning_rate=1e-3
    )
    on = distiller.students["on"]
    assert list(on.kept) == ["relu2_2", "relu3_1"]
    given = load_vgg(str(tmp_path / "fixed.safetensors"), TAPS[:3]).vgg.state_dict()
    before = {name: value.clone() for name, value in on.vgg.state_dict().items()}
    terms = distiller.train_step(*next(distiller._crops()))[1]
    assert {name for name in terms["on"] if "/" in name} == {"features/relu2_2", "features/relu3_1"}
    for name, value in on.vgg.state_dict().items():
        assert torch.equal(value, before[name]) == (name in given), name
        assert name not in given or torch.equal(value, given[name])


def test_students_of_unequal_depths_are_refused(distill: ModuleType) -> None:
    students = {"deep": {"widths": [4] * 5}, "shallow": {"widths": [4] * 3}}
    with pytest.raises(StylizeError, match="students: got 3 and 5 widths, must be as many for each of them"):
        read_config(distill.DistillConfig, CONFIG, settings(students=students))


def test_a_decomposed_student_learns_the_channels_that_it_keeps(
    distill: ModuleType, tmp_path: Path, small_teacher: str
) -> None:
    off = dict.fromkeys(("style_gradient", "content_gradient", "gradient_norms"), 0.0)
    student = {
        **DECOMPOSED,
        "widths": [16, 16, 32, 32, 32],
        "ranks": [None, None, [8, 8], [8, 8], [8, 8]],
        "match": off,
    }
    changes = {"steps": 40, "schedule.warmup_steps": 1, "decomposed_on": 12, "learning_rate": 1e-3}
    distiller = build(distill, tmp_path, teacher=small_teacher, students={"tiny": student}, **changes)
    assert not list(distiller.students["tiny"].heads.parameters())
    crops = next(distiller._crops())
    totals = [float(distiller.train_step(*crops)[1]["tiny"]["total"]) for _ in range(16)]
    assert min(totals[-4:]) < 0.9 * totals[0]
    images = torch.rand(2, 3, 24, 24)
    before, finished = distiller.students["tiny"].vgg, distiller.students["tiny"].finished(images)
    for tap, maps in before(images, TAPS).items():  # activations as the teacher's: nothing is scaled
        torch.testing.assert_close(finished(images, TAPS)[tap], maps, rtol=1e-4, atol=1e-4 * maps.max().item())


def test_representatives_are_the_channels_that_tell_most_about_the_others(distill: ModuleType) -> None:
    first, second, noise = torch.randn(3, 1000, dtype=torch.float64)
    channels = torch.stack([first, 0.1 * first + 0.001 * noise, second, first + second, 5 * second])
    kept = sys.modules["distill.decomposition"].representatives(channels @ channels.T / 1000, 2)
    assert len(set(kept.tolist()) & {0, 1}) + len(set(kept.tolist()) & {2, 4}) >= 1
    chosen = channels[kept]
    left = channels - torch.linalg.lstsq(chosen.T, channels.T).solution.T @ chosen
    assert (left.square().mean(1) < 1e-3 * channels.square().mean(1)).all()


def test_a_file_tells_how_it_was_made_but_no_path_of_the_teacher(
    distill: ModuleType, tmp_path: Path, small_teacher: str
) -> None:
    distiller = build(distill, tmp_path, teacher=small_teacher, steps=7)
    distiller.evaluate()
    with safe_open(tmp_path / "tiny.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    assert (config["teacher"], config["steps"]) == ("teacher.safetensors", 7)


def test_a_student_may_begin_with_the_weights_of_another(distill: ModuleType, run_dir: Path, tmp_path: Path) -> None:
    start = run_dir / "tiny.safetensors"
    deep = {"widths": [4, 4, 4, 4, 9], "start": str(start)}
    student = build(distill, tmp_path, students={"deep": deep}).students["deep"].vgg.state_dict()
    given = load_vgg(str(start), TAPS).vgg.state_dict()
    for name, value in student.items():
        assert torch.equal(value, given[name]) == (not name.startswith("features.10")), name


def test_the_pool_goes_down_the_losses_of_teacher_and_students_in_turns(distill: ModuleType, tmp_path: Path) -> None:
    distiller = build(distill, tmp_path)
    student, layers = distiller.students["tiny"].vgg, distill.configured(distiller.config.terms)
    scenes = distill.Scenes(*torch.rand(3, 4, 3, 24, 24))
    taught, own = distill.look(distiller.teacher, scenes, layers), distill.look(student, scenes, layers)
    style, content = distiller._followed(scenes, [0, 1, -1, 3], layers, taught)
    for found, teachers, students in (
        (style, taught.style_gradient, own.style_gradient),
        (content, taught.content_gradient, own.content_gradient),
    ):
        torch.testing.assert_close(found[[0, 2]], teachers[[0, 2]])
        # The terms are means over pictures: of half as many each has twice the gradient. The pool takes the direction.
        torch.testing.assert_close(found[[1, 3]], 2 * students[[1, 3]], rtol=1e-4, atol=1e-7)
        assert not torch.allclose(teachers[[1, 3]], students[[1, 3]], rtol=0.1)


def test_gradients_are_those_of_the_perceptual_loss(distill: ModuleType) -> None:
    vgg, (content, style) = load_vgg("random", TAPS).vgg, torch.rand(2, 1, 3, 24, 24)
    image = torch.rand(1, 3, 24, 24, requires_grad=True)
    layers = distill.LayerChoice({"relu1_1": 1.0, "relu3_1": 1.0}, {"relu2_2": 1.0}, channel_balance=0.7)
    config = LossConfig(
        style_layers=layers.style, content_layers=layers.content, channel_balance=layers.channel_balance
    )
    loss = PerceptualLoss(vgg, config, [style[0]])
    terms = loss(image, content)
    look = distill.look(vgg, distill.Scenes(image, content, style), layers)
    for term, found, factor in (("style", look.style_gradient, 2), ("content", look.content_gradient, 1)):
        (expected,) = torch.autograd.grad(terms[term], image, retain_graph=True)
        torch.testing.assert_close(found, factor * expected, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_scaling_to_a_mean_of_one_changes_every_tap_by_a_factor_alone(distill: ModuleType) -> None:
    for convolution in ("plain", "separable"):
        vgg, images = VGG19(5, widths=(4, 4, 4, 4, 6), convolution=convolution), torch.rand(4, 3, 32, 32)
        randomize_(vgg, seed=0)
        for parameter in vgg.parameters():
            parameter *= 1.3
        before = vgg(images, TAPS)
        distill.scale_to_unit_mean_(vgg, images)
        for tap, maps in vgg(images, TAPS).items():
            torch.testing.assert_close(maps, before[tap] / before[tap].mean(), rtol=1e-4, atol=1e-5)


def test_the_teacher_examined_against_itself_is_perfect(distill: ModuleType, tmp_path: Path) -> None:
    examination = build(distill, tmp_path).examination
    results = examination(examination.teacher)
    for name, value in results.items():
        if name.startswith("features/"):
            assert value == pytest.approx(0, abs=1e-4), name
        elif name != "time":
            assert value == pytest.approx(1, abs=1e-4), name
    assert results["time"] > 0


def test_the_best_linear_map_leaves_over_what_is_not_linear(distill: ModuleType) -> None:
    fit, x = sys.modules["distill.examination"].LinearFit(), torch.randn(2, 3, 40, 40)
    independent = torch.randn(2, 1, 40, 40)
    linear = 2 * x[:, :1] - x[:, 1:2] + 3
    for i in range(2):
        fit.add(x[i : i + 1], (linear + independent)[i : i + 1])
    share = float(independent.square().mean() / (linear + independent).square().mean())
    assert fit.relative_error() == pytest.approx(share, rel=0.1)


def test_the_pool_fills_then_hands_out_and_takes_back_its_scenes(distill: ModuleType) -> None:
    pictures = sys.modules["distill.pictures"]
    pool, draw = (
        pictures.Pool(pictures.PoolConfig(size=2, renewal=0.0, step=0.1), 16, torch.device("cpu")),
        torch.Generator(),
    )
    scenes = pictures.Scenes(*torch.full((3, 3, 3, 16, 16), 0.5))
    fresh, slots = pool.exchange(scenes, [False] * 3, draw)
    assert slots == [0, 1, -1]
    pool.descend_(fresh, slots, [torch.ones_like(scenes.image)])
    assert pool.scenes[0].unique().tolist() == pytest.approx([0.4])
    back, slots = pool.exchange(scenes, [True, False, False], draw)
    assert slots[0] in (0, 1)
    assert slots[1:] == [-1, -1]
    assert [float(image.mean()) for image in back.image] == pytest.approx([0.4, 0.5, 0.5])


def test_augmented_pictures_are_in_range_and_repeatable(distill: ModuleType) -> None:
    crops = (natural_noise(3, 40, torch.Generator().manual_seed(0)) * 255).byte()
    first, second = (distill.augment(crops, 24, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (3, 3, 24, 24)
    assert 0 <= first.min() < first.max() <= 1
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ("photograph", "style", "painted", "untrained", "noise", "optimized"))
def test_every_kind_of_picture_can_be_had_alone(distill: ModuleType, kind: str) -> None:
    pictures = sys.modules["distill.pictures"]
    shares = dict.fromkeys(pictures.MixtureConfig.model_fields, 0.0) | {kind: 1.0}
    mixture = pictures.Mixture(pictures.MixtureConfig(**shares), torch.device("cpu"))
    photographs, styles = torch.rand(2, 2, 3, 24, 24)
    scenes, from_pool = mixture(photographs, styles, torch.Generator().manual_seed(0))
    assert from_pool == [kind == "optimized"] * 2
    assert 0 <= scenes.image.min() < scenes.image.max() <= 1
    assert not torch.equal(scenes.image, photographs)


@pytest.mark.parametrize("convolution", ("plain", "separable"))
def test_a_student_learns_gradients_and_features(distill: ModuleType, tmp_path: Path, convolution: str) -> None:
    student = {"widths": [4, 4, 4, 4, 6], "convolution": convolution}
    changes = {"students": {"tiny": student}, "steps": 30, "schedule.warmup_steps": 1}
    distiller = build(distill, tmp_path, **changes)
    photographs, styles = next(distiller._crops())
    totals = []
    for _ in range(12):
        _, terms = distiller.train_step(photographs, styles)
        totals.append(float(terms["tiny"]["total"]))
    assert min(totals[-4:]) < 0.9 * totals[0]


def test_without_gradients_to_match_none_are_computed(distill: ModuleType, tmp_path: Path) -> None:
    off = {f"students.tiny.match.{name}": 0.0 for name in ("style_gradient", "content_gradient", "gradient_norms")}
    distiller = build(distill, tmp_path, **off)
    _, terms = distiller.train_step(*next(distiller._crops()))
    assert "style_gradient" not in terms["tiny"]
    assert terms["tiny"]["total"] == terms["tiny"]["features"]


def test_a_resumed_run_ends_with_the_same_student(distill: ModuleType, run_dir: Path, tmp_path: Path) -> None:
    interrupted = build(distill, tmp_path / "resumed")
    for crops, _ in zip(interrupted._crops(), range(2), strict=False):
        interrupted.train_step(*crops)
        interrupted.step += 1
    interrupted.save()
    resumed = build(distill, tmp_path / "resumed")
    resumed.resume()
    resumed.fit()
    whole, parts = (load_file(folder / "tiny.safetensors") for folder in (run_dir, tmp_path / "resumed"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_student_of_a_run_is_a_loss_network(distill: ModuleType, run_dir: Path) -> None:
    loaded = load_vgg(str(run_dir / "tiny.safetensors"), ["relu2_2"])
    assert loaded.vgg.widths == (4, 4, 4, 4)


def test_a_run_is_watched_in_tensorboard(run_dir: Path) -> None:
    events = EventAccumulator(str(run_dir / "tiny"))
    events.Reload()
    tags = events.Tags()
    assert {"train/total", "train/style_gradient", "train/features/relu3_1", "held_out/style_gradient"} <= set(
        tags["scalars"]
    )
    assert tags["images"] == ["pictures, photographs, styles"]
    assert [event.step for event in events.Scalars("train/total")] == [1, 2, 3, 4]


def test_evaluate_compares_students_in_a_table_and_as_json(distill: ModuleType, run_dir: Path, tmp_path: Path) -> None:
    student, report = run_dir / "tiny.safetensors", tmp_path / "report.json"
    lines = invoke(distill, "evaluate", student, "random", "--json", report).splitlines()
    assert lines[0].split() == [str(student), "random"]
    results = json.loads(report.read_text())
    assert results["random"]["style_gradient"] == pytest.approx(1, abs=1e-4)
    assert results[str(student)]["style_gradient/painted_0.6"] < 1
    assert [line.split()[0] for line in lines[1:]] == list(results["random"])


def test_a_run_is_not_replaced_and_resumed_only_as_it_was(distill: ModuleType, run_dir: Path) -> None:
    with pytest.raises(StylizeError, match="is there already: go on with --resume, or choose another --output"):
        invoke(distill, "train", "--output", run_dir)
    with pytest.raises(StylizeError, match="missing or differs, must hold the same configuration"):
        invoke(distill, "train", "--output", run_dir, "--resume", seed=1)
