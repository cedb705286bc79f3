import io
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_runs import write_config
from PIL import Image

from stylize.cli import main

Get = Callable[..., Any]
LOSSES = {"content/relu2_1", "style/relu1_1", "style/relu2_1", "content", "style", "tv", "total"}
GATES = {f"weights/gate {name}" for name in ("encode.0.norm", "blocks.4.norm", "decode.1.norm")}


def train(folder: Path) -> None:
    write_config(folder, {"generator.norm": "batch_instance", "loss.style_weight": 7.5})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for more in ([], ["--resume", "--set", "train.steps=6"]):
            patch.setattr(sys, "argv", ["stylize", "train", "--config", "a.yaml", *more])
            with pytest.raises(SystemExit) as caught:
                main()
            assert caught.value.code == 0


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, resumed for two more."""
    folder = tmp_path_factory.mktemp("tensorboard")
    train(folder)
    return folder / "runs" / "tiny"


@pytest.fixture(scope="module")
def get(run_dir: Path) -> Iterator[Get]:
    """Asks a TensorBoard server that looks at the folder of the run."""
    options = ("--logdir", run_dir.parent, "--host", "127.0.0.1", "--port", "0", "--load_fast", "false")
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tensorboard.main", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "http://" in line)
        (address,) = re.findall(r"http://\S+", line)

        def ask(path: str, body: object = None, **query: object) -> Any:
            url = f"{address}data/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
            request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
            request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=30) as answer:
                content = answer.read()
            return json.loads(content) if "json" in answer.headers["Content-Type"] else content

        deadline_s = time.monotonic() + 300
        while "tiny" not in ask("plugin/scalars/tags") and time.monotonic() < deadline_s:
            time.sleep(0.2)
        yield ask
    finally:
        server.terminate()
        server.communicate()


def values(get: Get, tag: str) -> dict[int, float]:
    return {step: value for _, step, value in get("plugin/scalars/scalars", run="tiny", tag=tag)}


def image(get: Get, tag: str) -> Image.Image:
    newest = get("plugin/images/images", run="tiny", tag=tag, sample=0)[-1]
    return Image.open(io.BytesIO(get(f"plugin/images/individualImage?{newest['query']}")))


def test_every_kind_of_record_has_its_tab(get: Get) -> None:
    listing = get("plugins_listing")
    for plugin in ("scalars", "images", "histograms", "text", "hparams"):
        assert listing[plugin]["enabled"], plugin


def test_every_loss_term_is_a_curve_in_training_and_in_validation(get: Get, run_dir: Path) -> None:
    tags = set(get("plugin/scalars/tags")["tiny"])
    beside = {"gradient_norm", "learning_rate", "images_per_s", "data_wait_share"}
    assert {f"train/{name}" for name in LOSSES | beside} <= tags
    assert {f"validation/{name}" for name in LOSSES | {"style_of_photographs", "content_correlation"}} <= tags
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for kind, steps in {"train": [1, 2, 3, 4, 5, 6], "validation": [2, 4, 6]}.items():
        for name in LOSSES:
            told = {line["step"]: line[name] for line in lines if line["kind"] == kind}
            assert list(told) == steps
            assert values(get, f"{kind}/{name}") == pytest.approx(told, rel=1e-5)
    for name in ("wasserstein", "ssim", "cfsd", "grid_4px"):
        told = {line["step"]: line[name] for line in lines if line["kind"] == "validation"}
        assert list(told) == [2, 4, 6]
        assert values(get, f"validation measures/{name}") == pytest.approx(told, rel=1e-5)
    assert values(get, "train/learning_rate") == pytest.approx(dict.fromkeys(range(1, 7), 1e-3))
    assert all(value > 0 for value in values(get, "train/gradient_norm").values())
    assert all(value > 0 for value in values(get, "train/images_per_s").values())


def test_the_gates_are_histograms_with_the_curves_of_their_means(get: Get) -> None:
    histograms = set(get("plugin/histograms/tags")["tiny"])
    assert len(histograms) == 15
    assert histograms >= GATES
    for tag in GATES:
        told = get("plugin/histograms/histograms", run="tiny", tag=tag)
        assert [step for _, step, _ in told] == [2, 4, 6]
        assert all(0 <= left <= right <= 1.001 for _, _, buckets in told for left, right, _ in buckets)
        assert sum(count for _, _, count in told[-1][2]) > 0
        means = values(get, f"{tag}/mean")
        assert list(means) == [2, 4, 6]
        assert all(0 <= mean <= 1 for mean in means.values())


def test_the_style_the_held_out_photographs_and_their_paintings_are_pictures(get: Get) -> None:
    tags = set(get("plugin/images/tags")["tiny"])
    assert tags == {"style/0", "validation/content above, stylized below", "stylized/0", "stylized/1"}
    assert image(get, "style/0").size == (48, 40)
    assert image(get, "validation/content above, stylized below").size == (2 * 32 + 4, 2 * 32 + 4)
    assert image(get, "stylized/0").size == (2 * 32 + 4, 32)
    steps = [sample["step"] for sample in get("plugin/images/images", run="tiny", tag="stylized/1", sample=0)]
    assert steps == [2, 4, 6]


def test_the_resolved_config_is_a_text(get: Get) -> None:
    assert get("plugin/text/tags")["tiny"] == ["config/text_summary"]
    text = get("plugin/text/text", run="tiny", tag="config/text_summary")[-1]["text"]
    assert "style_weight: 7.5" in text
    assert "norm: batch_instance" in text


def test_the_settings_and_their_results_are_in_the_hparams_tab(get: Get, run_dir: Path) -> None:
    experiment = get("plugin/hparams/experiment", {"experimentName": "", "includeMetrics": True})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"loss.style_weight", "generator.norm", "train.schedule.name", "seed"} <= names
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {f"validation/{name}" for name in ("content", "style", "tv", "total")} <= metrics
    groups = get(
        "plugin/hparams/session_groups",
        {
            "experimentName": "",
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
            "colParams": [],
            "sliceSize": 10,
        },
    )["sessionGroups"]
    assert [group["hparams"]["loss.style_weight"] for group in groups] == [7.5]
    assert groups[0]["hparams"]["generator.norm"] == "batch_instance"
    told = {metric["name"]["tag"]: metric["value"] for metric in groups[0]["metricValues"]}
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    *_, last = (line for line in lines if line["kind"] == "validation")
    assert told["validation/total"] == pytest.approx(last["total"], rel=1e-5)
    assert not [tag for tag in get("plugin/scalars/tags")["tiny"] if tag.startswith("hparam")]
