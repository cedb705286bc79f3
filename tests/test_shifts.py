"""Equality under shifts: what it compares, and what a training makes of it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_runs import write_config
from torch import Tensor

from stylize.build import build_run
from stylize.config import load_config
from stylize.training.shifts import Move, Shifts, compared_places, difference, moved

SIZES = ((16, 16), (17, 40), (64, 64), (192, 160))


def crops(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def compared(paint: Any, size: tuple[int, int], move: Move) -> float:
    photographs = crops(*size)
    return float(difference(paint(photographs), paint(moved(photographs, move)), compared_places(move, size)))


@pytest.mark.parametrize("size", SIZES)
def test_what_does_not_depend_on_the_place_is_painted_alike(size: tuple[int, int]) -> None:
    for step in range(20):
        move = Shifts(1.0, seed=3).of_step(step)
        assert all(1 <= px <= 3 for px in move)
        assert compared(lambda x: 1 - x, size, move) == 0


def test_all_places_are_compared_but_those_near_an_edge() -> None:
    for move in (Move(1, 3), Move(3, 2)):
        rows, columns, moved_rows, moved_columns = compared_places(move, (192, 64))
        assert (rows - moved_rows).unique().tolist() == [move.rows]
        assert (columns - moved_columns).unique().tolist() == [move.columns]
        assert (len(rows), len(columns)) == (192 - 3 - 24, 64 - 3 - 16)
        assert moved_rows.min() == 12 and rows.max() < 192 - 12


@pytest.mark.parametrize("move", (Move(2, 3), Move(3, 1), Move(1, 1)))
def test_a_grid_is_a_difference(move: Move) -> None:
    x = torch.arange(64)
    weave = 0.1 * ((x % 4 == 0).float()[:, None] + (x % 4 == 0).float())
    # a row of four differs by 0.1 in two of four places, likewise a column; both add up
    expected = 0.01 * (0.5 + 0.5)
    assert compared(lambda photographs: photographs + weave, (64, 64), move) == pytest.approx(expected, rel=0.3)


def build(folder: Path, changes: dict[str, Any]) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(write_config(folder, changes))
    built = build_run(config, torch.device("cpu"), folder)
    built.trainer.generator.train()
    return built.trainer


def first_step(folder: Path, weight: float, **changes: Any) -> dict[str, float]:
    trainer = build(folder, {"train.shift_weight": weight, **changes})
    batch = next(iter(trainer.batches.from_step(0, 1)))
    return {name: float(value) for name, value in trainer.step(batch).items()}


def test_a_step_minimizes_the_losses_and_the_difference(tmp_path: Path) -> None:
    plain = first_step(tmp_path / "plain", 0.0)
    found = first_step(tmp_path / "shifts", 20.0)
    assert "shift" not in plain
    assert found["shift"] > 0
    assert found["total"] == pytest.approx(plain["total"] + 20 * found["shift"], rel=1e-4)
    assert found["style"] == pytest.approx(plain["style"], rel=1e-5)
    assert found["gradient_norm"] != plain["gradient_norm"]


def test_the_difference_shrinks_in_training_and_more_with_more_weight(tmp_path: Path) -> None:
    last = {}
    for weight in (1e-3, 300.0):
        changes = {
            "train.shift_weight": weight,
            "train.steps": 60,
            "train.start": "none",
            "train.log_every": 60,
            "generator.width": 8,
        }
        trainer = build(tmp_path / f"{weight:g}", changes)
        found: list[float] = []
        for batch in trainer.batches.from_step(0, 60):
            found.append(float(trainer.step(batch)["shift"]))
            trainer.progress.step += 1
        last[weight] = sum(found[-20:])
        print(weight, found)
    assert last[300.0] < last[1e-3] / 2


def test_where_noise_makes_each_painting_another_nothing_is_compared(tmp_path: Path) -> None:
    assert "shift" not in first_step(tmp_path, 20.0, **{"generator.name": "texture_network", "generator.width": 8})


@pytest.mark.parametrize("norm", ("batch", "batch_instance", "layer"))
@pytest.mark.parametrize("batch_size", (1, 3))
def test_every_norm_and_batch_is_compared(tmp_path: Path, norm: str, batch_size: int) -> None:
    if norm != "layer" and batch_size == 1:
        pytest.skip("these norms need two photographs")
    changes = {"generator.norm": norm, "train.batch_size": batch_size}
    assert math.isfinite(first_step(tmp_path, 20.0, **changes)["shift"])


def test_moves_are_drawn_by_seed_and_step_alone() -> None:
    def moves(seed: int) -> list[Move]:
        return [Shifts(1.0, seed).of_step(step) for step in range(12)]

    assert moves(0) == moves(0) != moves(1)
    assert len(set(moves(0))) > 4
