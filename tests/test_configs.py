"""Every configuration that travels with the project builds and steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stylize.build import build_run
from stylize.config import RunConfig, load_config

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
SMALL = (
    "content.path=samples",
    "content.resize=72",
    "content.crop=64",
    "content.validation=1",
    "style.size=96",
    "loss.vgg=random",
    "generator.width=4",
    "train.batch_size=2",
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_config_builds_and_steps(file: Path, tmp_path: Path) -> None:
    run = build_run(load_config(file, SMALL), torch.device("cpu"), tmp_path)
    batch = next(run.trainer.batches.from_step(0, 1))
    terms = run.trainer.step(batch)
    assert torch.isfinite(terms["total"])
    assert terms["gradient_norm"] > 0


def test_default_config_states_the_defaults_of_the_code() -> None:
    told = load_config(CONFIGS / "default.yaml")
    silent = RunConfig(name=told.name, style=told.style, content=told.content)
    assert told == silent


def test_default_config_names_every_key() -> None:
    import yaml

    told = yaml.safe_load((CONFIGS / "default.yaml").read_text(encoding="utf-8"))
    resolved = load_config(CONFIGS / "default.yaml").model_dump()
    for room in ("content", "generator", "loss", "train"):
        assert set(told[room]) == set(resolved[room])


def test_the_configs_are_found() -> None:
    names = {file.stem for file in FILES}
    assert {"quickstart", "default", "johnson2016", "batch-instance-norm"} <= names
