"""`stylize sweep`: short trainings over lists of values, side by side."""

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures_runs import contents, picture, write_config

from stylize.cli import cli
from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.studies.sweep import Variation, cells_of, read_variation, shortened


@pytest.mark.parametrize(
    ("text", "values"),
    (
        ("loss.style_weight=1,3,9", (1, 3, 9)),
        ("style.image=a.jpg, b.jpg", ("a.jpg", "b.jpg")),
        ("train.only=norms", ("norms",)),
        ("loss.style_layers={relu1_1: 1, relu2_1: 2},{relu1_1: 1}", ({"relu1_1": 1, "relu2_1": 2}, {"relu1_1": 1})),
    ),
)
def test_values_are_yaml(text: str, values: tuple[object, ...]) -> None:
    assert read_variation(text) == Variation(text.partition("=")[0], values)


@pytest.mark.parametrize("text", ("loss.style_weight", "=1,2", "loss.style_weight=", "a={b"))
def test_a_variation_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(StylizeError, match="--vary"):
        read_variation(text)


def test_cells_are_all_combinations_named_by_what_differs() -> None:
    variations = [Variation("train.start", ("none", "learned")), Variation("style.image", ("x/a.jpg", "y/b.jpg"))]
    cells = cells_of(variations)
    assert list(cells) == [
        "start=none, image=a",
        "start=none, image=b",
        "start=learned, image=a",
        "start=learned, image=b",
    ]
    assert cells["start=learned, image=a"] == {"train.start": "learned", "style.image": "x/a.jpg"}
    layers = Variation("loss.style_layers", ({"relu1_1": 1, "relu2_1": 2.5},))
    weights = [Variation("loss.style_layers", ({"relu3_1": 1},)), Variation("other.style_layers", (1,))]
    assert list(cells_of([layers])) == ["style_layers=relu1_1+relu2_1:2.5"]
    assert list(cells_of(weights)) == ["loss.style_layers=relu3_1, other.style_layers=1"]


def test_values_that_come_twice_and_too_many_cells_are_refused() -> None:
    with pytest.raises(StylizeError, match="comes twice"):
        cells_of([Variation("seed", (1, 1))])
    with pytest.raises(StylizeError, match="comes twice"):
        cells_of([Variation("seed", (1,)), Variation("seed", (2,))])
    with pytest.raises(StylizeError, match="got 65 combinations, must be at most 64"):
        cells_of([Variation("seed", tuple(range(65)))])


def sweep(folder: Path, *arguments: str) -> str:
    config = write_config(folder, {"train.steps": 40})
    done = CliRunner().invoke(cli, ["sweep", "--config", str(config), "--output", str(folder / "sweeps"), *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_a_sweep_shows_pictures_and_figures_and_makes_a_config_of_each_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "other.png", seed=5)
    arguments = ("--vary", "loss.tv_weight=0,0.5", "--vary", "style.image=style.png,other.png", "--steps", "2")
    output = sweep(tmp_path, *arguments)
    place = tmp_path / "sweeps" / "tiny"
    assert output.splitlines()[-1] == str(place / "report.html")
    with (place / "figures-after-the-last-step-on-the-held-out-photographs.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = [row["setting"] for row in rows]
    assert cells == ["tv_weight=0, image=style", "tv_weight=0, image=other", "tv_weight=0.5, image=style",
                     "tv_weight=0.5, image=other"]  # fmt: skip
    assert all(float(row["style"]) > 0 and -1 <= float(row["ssim"]) <= 1 for row in rows)
    assert rows[0]["style"] != rows[1]["style"] != rows[3]["style"]
    assert (place / "pictures.jpg").stat().st_size > 2000
    page = (place / "report.html").read_text("utf-8")
    assert all(cell in page for cell in cells)
    configs = [load_config(path) for path in sorted((place / "cells").iterdir())]
    assert [config.loss.tv_weight for config in configs] == [0, 0, 0.5, 0.5]
    assert all(config.train.steps == 40 for config in configs)  # ready for the whole training
    assert {Path(config.all_styles()[0].all_images()[0].path).name for config in configs} == {"style.png", "other.png"}
    runs = contents(tmp_path / "sweeps" / "runs")
    sweep(tmp_path, *arguments)
    assert contents(tmp_path / "sweeps" / "runs") == runs  # nothing is trained again


def test_a_sweeps_trainings_are_short(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, {"train.steps": 900, "train.schedule.warmup_steps": 100}))
    short = shortened(config, 90)
    assert (short.train.steps, short.train.validate_every, short.train.schedule.warmup_steps) == (90, 30, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (("--vary", "loss.nothing=1,2"), "loss.nothing"),
        (("--vary", "loss.tv_weight=1,-2"), "loss.tv_weight"),
        (("--vary", "loss.tv_weight=1", "--name", "runs"), "--name: got 'runs'"),
        (("--vary", "loss.tv_weight=1", "--name", "a/b"), "--name: got 'a/b'"),
    ),
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(StylizeError, match=message):
        sweep(tmp_path, *arguments)
    assert not (tmp_path / "sweeps" / "runs").exists()
