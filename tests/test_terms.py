"""The table of loss terms: one line there, and a term is part of everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures_runs import write_config

from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.losses.terms import TERMS, LossConfig, Term

ROOT = Path(__file__).parent.parent

# What is written into terms.py: the classes before the table, and their names in it.
CLASSES = """
class SaturationKeys(BaseModel):
    saturation_weight: TermWeight = Field(0.25, description="factor of the saturation")

class SaturationTerm(Term):
    name = label = "saturation"
    order = 3
    digits = 2
    Keys = SaturationKeys

    def forward(self, batch):
        return TermValue((batch.stylized.amax(1) - batch.stylized.amin(1)).mean())

class DepthKeys(BaseModel):
    depth_layers: LayerWeights = Field({"relu1_2": 1.0}, description="layers of the depth")
    depth_weight: TermWeight = Field(0.5, description="factor of the depth")

class DepthTerm(LayerTerm):
    name = label = "depth"
    order = 4
    features_of_content = True
    Keys = DepthKeys

    def at_layer(self, layer, batch):
        return (batch.features[layer] - batch.content_features[layer]).abs().mean()

TERMS: """
PROGRAM = """
import importlib.util, logging, sys
from pathlib import Path
spec = importlib.util.find_spec("stylize.losses.terms")
source = Path(spec.origin).read_text("utf-8")
LINE = '    "tv": TotalVariationTerm,\\n'
MORE = LINE + '    "saturation": SaturationTerm,\\n    "depth": DepthTerm,\\n'
for old, new in (("\\nTERMS: ", CLASSES), (LINE, MORE)):
    assert source.count(old) == 1, old
    source = source.replace(old, new)
module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
exec(compile(source, spec.origin, "exec"), vars(module))
from stylize.cli import cli
logging.basicConfig(level=logging.INFO, format="%(message)s")
for command in COMMANDS:
    cli.main(command, standalone_mode=False)
"""


def run(folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = f"CLASSES, COMMANDS = {CLASSES!r}, {list(commands)!r}\n{PROGRAM}"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A tiny training and its evaluation by a program with two more terms."""
    folder = tmp_path_factory.mktemp("terms")
    write_config(folder, {"train.steps": 2, "loss.style_energy": "style"})
    train = ["train", "--config", "a.yaml", "--output", "run", "--device", "cpu"]
    evaluate = ["evaluate", "run", "--content", "photos", "--style", "style.png", "--size", "48", "--photographs", "2"]
    evaluate += ["--iterations", "1", "--json", "found.json", "--device", "cpu"]
    done = run(folder, [*train, "--set", "loss.depth_layers={relu2_1: 1.0, relu1_1: 3.0}"], evaluate)
    assert done.returncode == 0, done.stderr
    return folder, done


Run = tuple[Path, "subprocess.CompletedProcess[str]"]


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_a_new_term_has_its_keys_with_defaults_in_the_config(with_toy: Run) -> None:
    loss = yaml.safe_load((with_toy[0] / "run" / "config.yaml").read_text("utf-8"))["loss"]
    assert (loss["saturation_weight"], loss["depth_weight"]) == (0.25, 0.5)
    assert loss["depth_layers"] == {"relu2_1": 1.0, "relu1_1": 3.0}


@pytest.mark.parametrize("kind", ("train", "validation"))
def test_a_new_term_is_part_of_training_and_validation(with_toy: Run, kind: str) -> None:
    found = records(with_toy[0], kind)
    assert found
    for values in found:
        assert values["saturation"] > 0
        assert values["depth"] == pytest.approx((values["depth/relu2_1"] + 3 * values["depth/relu1_1"]) / 4, rel=1e-5)
        weighted = values["content"] + 3 * values["style"] + 0.25 * values["saturation"] + 0.5 * values["depth"]
        assert values["total"] == pytest.approx(weighted + 20 * values.get("shift", 0), rel=1e-5)


def test_a_new_term_is_in_the_summary_of_a_training_and_in_the_table_of_evaluate(with_toy: Run) -> None:
    folder, done = with_toy
    (best,) = [line for line in done.stderr.splitlines() if line.startswith("best at step")]
    assert ", saturation 0." in best
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    table = rows[rows.index("total") : rows.index("contrast")]
    assert table[-5:] == ["tv", "saturation", "depth", "depth/relu1_1", "depth/relu2_1"]
    means = json.loads((folder / "found.json").read_text("utf-8"))["summary"]["terms"]
    assert all(list(means[kind])[-5:] == table[-5:] for kind in ("unstylized", "stylized", "optimized"))
    assert means["unstylized"]["depth"]["mean"] == 0


def test_a_key_like_that_of_a_new_term_is_refused_with_the_nearest_word(with_toy: Run) -> None:
    done = run(with_toy[0], ["train", "--config", "a.yaml", "--set", "loss.saturation=1", "--dry-run"])
    assert "'saturation_weight'" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("Did you mean 'saturation_weight'?")


def test_the_keys_of_every_term_are_those_of_the_config() -> None:
    for name, term in TERMS.items():
        assert f"{name}_weight" in term.Keys.model_fields
        assert set(term.Keys.model_fields) <= set(LossConfig.model_fields)
        assert LossConfig().weight_of(name) == term.Keys.model_fields[f"{name}_weight"].default
    assert len({term.order for term in TERMS.values()}) == len(TERMS)


def test_without_the_new_terms_their_keys_are_unknown(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    with pytest.raises(StylizeError, match=r"loss\.depth_weight: unknown key, must be one of "):
        load_config(path, ["loss.depth_weight=1"])
    assert all(issubclass(term, Term) for term in TERMS.values())
