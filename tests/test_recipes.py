"""The recipes of CONTRIBUTING.md, run as they stand on a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fixtures_runs import write_config

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAINT = """
import json, sys, torch
from pathlib import Path
from stylize.inference.plans import plans_of
from stylize.models.file import load_model
from test_strips import in_strips, stages_of, whole
generator, card = load_model(Path(sys.argv[1]))
image = torch.rand(1, 3, 100, 60)
plan = plans_of(stages_of(generator, image), torch.float32)[0]
painted = whole(generator, image)
difference = (in_strips(generator, image, plan) - painted).abs().max().item()
generator.hold_in(torch.bfloat16)
rounded = (whole(generator, image) - painted).abs().mean().item()
found = {"difference": difference, "rounded": rounded, "spread": painted.std().item()}
print(json.dumps({**found, "card": card.generator.model_dump()}))
"""


def blocks(section: str) -> list[str]:
    """The Python of a recipe, block by block."""
    text = CONTRIBUTING.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def add_to_table(file: Path, table: str, line: str) -> None:
    text = file.read_text(encoding="utf-8")
    changed = re.sub(rf"^({table}: .*{{)$", rf"\1\n{line.rstrip()}", text, flags=re.MULTILINE)
    assert changed != text
    file.write_text(changed, encoding="utf-8")


def put_before(file: Path, mark: str, code: str) -> None:
    before, after = file.read_text(encoding="utf-8").split(mark, 1)
    file.write_text(f"{before}{code}\n\n{mark}{after}", encoding="utf-8")


def add_norm(package: Path) -> None:
    norm, line = blocks("Add a norm")
    put_before(package / "norms.py", "NORMS: Mapping", norm)
    add_to_table(package / "norms.py", "NORMS", line)


def add_generator(package: Path) -> None:
    file, import_line, line = blocks("Add a generator")
    (package / "generators" / "shallow.py").write_text(file, encoding="utf-8")
    put_before(package / "generators" / "__init__.py", "from stylize.generators.texture_network", import_line.rstrip())
    add_to_table(package / "generators" / "__init__.py", "GENERATORS", line)


def add_term(package: Path) -> None:
    term, line = blocks("Add a loss term")
    put_before(package / "losses" / "terms.py", "TERMS: ", term)
    add_to_table(package / "losses" / "terms.py", "TERMS", line)


RECIPES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "norm": (add_norm, {"norms.py"}),
    "generator": (add_generator, {"generators/shallow.py", "generators/__init__.py"}),
    "loss term": (add_term, {"losses/terms.py"}),
}


def contents(package: Path) -> dict[str, bytes]:
    return {str(file.relative_to(package)): file.read_bytes() for file in package.rglob("*.py")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all recipes, each of which has changed what it says and nothing else."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "stylize", folder / "stylize", ignore=shutil.ignore_patterns("__pycache__"))
    for add, files in RECIPES.values():
        before = contents(folder / "stylize")
        add(folder / "stylize")
        after = contents(folder / "stylize")
        assert {name for name in after if before.get(name) != after[name]} == files
    return folder


def python(checkout: Path, *arguments: str) -> str:
    search = os.pathsep.join((str(checkout), str(ROOT / "tests")))
    run = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": search},
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def trained(checkout: Path, name: str, **settings: object) -> Path:
    """The run folder of three steps of training."""
    # so that the total is the sum of what is told, and the strips are those of the network's own stages
    plain = {"loss.style_energy": "style", "train.shift_weight": 0.0, "generator.margin": 0}
    config = write_config(checkout, {"train.steps": 3, "generator.width": 16, **plain, **settings}, f"{name}.yaml")
    run = checkout / "runs" / name
    python(checkout, "-m", "stylize", "train", "--config", str(config), "--output", str(run), "--device", "cpu")
    return run


@pytest.mark.parametrize(
    "setting", ("generator.norm=mean_only", "generator.name=shallow", "loss.saturation_weight=0.5")
)
def test_a_toy_trains_and_paints_as_a_whole_and_in_strips(checkout: Path, setting: str) -> None:
    key, _, value = setting.partition("=")
    run = trained(checkout, value, **{key: yaml.safe_load(value)})
    painted = json.loads(python(checkout, "-c", PAINT, str(run / "model.safetensors")))
    assert key.startswith("loss.") or painted["card"][key.removeprefix("generator.")] == value
    assert painted["difference"] < 2e-5
    assert 0 < painted["rounded"] < 5e-3
    assert painted["spread"] > 1e-4
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [record for record in records if record["kind"] == "train"]
    weight = 0.5 if key == "loss.saturation_weight" else 0.1
    assert len(losses) == 3
    for record in losses:
        assert record["saturation"] > 0
        known = record["content"] + 3 * record["style"]
        assert record["total"] == pytest.approx(known + weight * record["saturation"], rel=1e-4)


@pytest.mark.parametrize(("kind", "name"), (("norms", "mean_only"), ("generators", "shallow")))
def test_a_toy_is_listed_with_its_summary(checkout: Path, kind: str, name: str) -> None:
    lines = python(checkout, "-m", "stylize", "list", kind).splitlines()
    assert [line.split()[0] for line in lines].count(name) == 1
