import pkgutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures_runs import write_config

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from compare_generators import SWITCHES, main, multiplications

from stylize.generators import GeneratorConfig, build_generator


@pytest.mark.parametrize(
    ("name", "width", "thousand"), [("johnson", 32, 154), ("johnson", 16, 42), ("johnson_lite", 32, 33)]
)
def test_multiplications_of_the_generators(name: str, width: int, thousand: int) -> None:
    generator = build_generator(GeneratorConfig(name=name, width=width))
    assert round(multiplications(generator) / 1e3) == thousand


@pytest.mark.parametrize("switch", SWITCHES)
def test_what_is_put_out_of_use_exists(switch: str) -> None:
    assert callable(pkgutil.resolve_name(switch))


def test_generators_are_trained_and_set_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, {"train.steps": 2})
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        main, ["--config", "a.yaml", "--output", "runs", "--only", "lite", "--only", "by-torch-alone"]
    )
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| johnson, by torch alone", "| johnson_lite"]
    assert (tmp_path / "runs" / "sheet.jpg").is_file()
