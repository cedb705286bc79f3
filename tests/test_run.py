"""A training in its folder, as a program calls it."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from fixtures_runs import contents, write_config

from stylize.config import RunConfig, load_config
from stylize.errors import StylizeError
from stylize.models.file import load_model
from stylize.run import Continuation, Progress, RunResult, check, continuation, train


def config_of(folder: Path, **changes: Any) -> RunConfig:
    return load_config(write_config(folder, {key.replace("__", "."): value for key, value in changes.items()}))


def test_a_training_returns_its_result_and_reports_every_step(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = train(config_of(tmp_path), tmp_path / "run", device="cpu", on_progress=seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3, 4]
    assert [bool(progress.validation) for progress in seen] == [False, True, True, True]
    assert (result.folder, result.model) == (tmp_path / "run", tmp_path / "run" / "model.safetensors")
    assert (result.progress, result.first_step, result.saved_step) == (seen[-1], 0, 4)
    assert not result.interrupted
    assert result.images_per_s == pytest.approx(8 / result.seconds)
    assert 0 <= result.data_wait_share <= 1
    assert load_model(result.model)[1].step == result.progress.best_step


def test_a_training_runs_in_any_thread(tmp_path: Path) -> None:
    results: list[RunResult] = []
    config = config_of(tmp_path, content__workers=1)
    thread = threading.Thread(
        target=lambda: results.append(train(config, tmp_path / "run", device="cpu", stop_on_signals=True))
    )
    thread.start()
    thread.join()
    assert [result.progress.step for result in results] == [4]


def test_an_error_in_the_callers_function_ends_the_training_which_can_be_continued(tmp_path: Path) -> None:
    def fail_at_3(progress: Progress) -> None:
        if progress.step == 3:
            raise ZeroDivisionError

    config = config_of(tmp_path)
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "run", device="cpu", on_progress=fail_at_3)
    assert continuation(tmp_path / "run") == Continuation(resume=True, overwrite=False)
    result = train(config, tmp_path / "run", device="cpu", resume=True)
    assert (result.first_step, result.progress.step) == (2, 4)


def test_a_quiet_training_logs_warnings_only_and_others_log_as_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def log(progress: Progress) -> None:
        logging.getLogger("stylize").info("inside")
        thread = threading.Thread(target=lambda: logging.getLogger("stylize").info("beside"))
        thread.start()
        thread.join()

    config = config_of(tmp_path, train__steps=1)
    with caplog.at_level(logging.INFO, "stylize"):
        train(config, tmp_path / "run", device="cpu", quiet=True, on_progress=log)
        assert caplog.messages == ["beside"]
        train(config, tmp_path / "other", device="cpu", on_progress=log)
    assert "inside" in caplog.messages
    assert caplog.messages[-1].startswith("best at step 1: held-out style ")


def test_a_check_builds_everything_and_writes_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    before = contents(tmp_path)
    check(config, tmp_path / "run", device="cpu")
    assert contents(tmp_path) == before
    assert not (tmp_path / "run").exists()
    (tmp_path / "style.png").unlink()
    with pytest.raises(StylizeError, match=r"style\.png: no such file"):
        check(config, tmp_path / "run", device="cpu")


def test_a_folder_is_continued_as_far_as_it_came(tmp_path: Path) -> None:
    assert continuation(tmp_path) == Continuation(resume=False, overwrite=False)
    (tmp_path / "config.yaml").touch()
    assert continuation(tmp_path) == Continuation(resume=False, overwrite=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000002.pt").touch()
    assert continuation(tmp_path) == Continuation(resume=True, overwrite=False)
