"""What `scripts/gpu_check.py` checks, but for its times, on the GPU of this machine; skipped where there is none."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU (torch.cuda.is_available)"),
]


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.mark.parametrize("section", ("numerics", "networks", "compilation", "training", "memory"))
@pytest.mark.filterwarnings("default")  # those of torch's compiler differ from GPU to GPU
def test_every_check_of_a_section_passes_on_the_gpu(on_path: None, tmp_path: Path, section: str) -> None:
    from gpu_checks.results import perform
    from gpu_checks.setting import Setting

    setting = Setting(torch.device("cuda"), miniature=False, folder=tmp_path)
    results = [perform(check) for check in importlib.import_module(f"gpu_checks.{section}").checks(setting)]
    assert [f"{r.name}: {r.message}" for r in results if r.status == "failed"] == []
    assert any(result.status == "passed" for result in results)
