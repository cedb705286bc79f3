import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures_runs import TINY, tiny

from stylize.config import RunConfig, load_config, with_changes
from stylize.errors import StylizeError

TAPS = (
    "'relu1_1', 'relu1_2', 'relu2_1', 'relu2_2', 'relu3_1', 'relu3_2', 'relu3_3', 'relu3_4', 'relu4_1', 'relu4_2', "
    "'relu4_3', 'relu4_4', 'relu5_1', 'relu5_2', 'relu5_3', 'relu5_4'"
)
RARE_VALUES = (None, "x", -1, 1.5, True, [], {}, 0, float("nan"), float("inf"), [1], {"x": 1}, {1: 1}, "\0")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()


def written(tree: object, name: str = "configs/a.yaml") -> Path:
    Path(name).write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return Path(name)


def load(changes: Mapping[str, Any] | None = None, *overrides: str) -> RunConfig:
    return load_config(written(tiny(changes)), overrides)


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(StylizeError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def refused(changes: Mapping[str, Any]) -> str:
    message = refusal(written(tiny(changes)))
    assert message.startswith("configs/a.yaml: ")
    return message.removeprefix("configs/a.yaml: ")


def without(key: str) -> dict[str, Any]:
    tree = tiny()
    *parents, last = key.split(".")
    branch = tree
    for parent in parents:
        branch = branch[parent]
    del branch[last]
    return tree


def test_an_unknown_norm_is_refused_as_the_design_says() -> None:
    assert refusal(written(tiny({"generator.norm": "instnce"}))) == (
        "configs/a.yaml: generator.norm: got 'instnce', must be one of 'batch', 'batch_instance', 'instance', "
        "'layer', 'none'. Did you mean 'instance'?"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generator.nrom": "batch"},
            "generator.nrom: unknown key, must be one of 'margin', 'name', 'noise_seed', 'norm', 'padding', 'width'. "
            "Did you mean 'norm'?",
        ),
        (
            {"trian": {}},
            "trian: unknown key, must be one of 'content', 'generator', 'loss', 'name', 'seed', 'style', 'styles', "
            "'train'. Did you mean 'train'?",
        ),
        (
            {"train.schedule.warmup": 5},
            "train.schedule.warmup: unknown key, must be one of 'final_factor', 'name', 'step_every', 'step_factor', "
            "'warmup_steps'. Did you mean 'warmup_steps'?",
        ),
        (
            {"style": {"images": [{"path": "a.jpg"}, {"path": "b.jpg", "wieght": 2}]}},
            "style.images.1.wieght: unknown key, must be one of 'path', 'weight'. Did you mean 'weight'?",
        ),
        ({"train.steps": "many"}, "train.steps: got 'many', must be a whole number"),
        ({"train.steps": 1.5}, "train.steps: got 1.5, must be a whole number"),
        ({"train.steps": True}, "train.steps: got true, must be a whole number"),
        ({"train.learning_rate": "fast"}, "train.learning_rate: got 'fast', must be a number"),
        ({"train.learning_rate": 0}, "train.learning_rate: got 0, must be above 0"),
        ({"train.learning_rate": float("inf")}, "train.learning_rate: got inf, must be a finite number"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate: got nan, must be a finite number"),
        ({"train.stop_after": 0}, "train.stop_after: got 0, must be at least 1"),
        ({"train.schedule.final_factor": 1.5}, "train.schedule.final_factor: got 1.5, must be at most 1"),
        (
            {"train.schedule.name": "cosin"},
            "train.schedule.name: got 'cosin', must be one of 'constant', 'cosine', 'step'. Did you mean 'cosine'?",
        ),
        ({"train.schedule": "cosine"}, "train.schedule: got 'cosine', must be keys with values"),
        ({"train": [1]}, "train: got a list, must be keys with values"),
        ({"train": None}, "train: got nothing, must be keys with values"),
        ({"generator.width": 6}, "generator.width: got 6, must be a multiple of 4"),
        ({"generator.width": 1000}, "generator.width: got 1000, must be at most 512"),
        (
            {"generator.name": "jonson"},
            "generator.name: got 'jonson', must be one of 'fast_neural_style', 'johnson', 'johnson_lite', "
        "'texture_network'. Did you mean 'johnson'?",
        ),
        ({"seed": -1}, "seed: got -1, must be at least 0"),
        ({"seed": 2**32}, "seed: got 4294967296, must be below 4294967296"),
        (
            {"name": "my style"},
            "name: got 'my style', must be letters, digits, '.', '_' and '-', starting with a letter or digit",
        ),
        ({"name": 7}, "name: got 7, must be text"),
        (
            {"loss.scale": "relativ"},
            "loss.scale: got 'relativ', must be one of 'raw', 'relative'. Did you mean 'relative'?",
        ),
        ({"loss.scale": 1}, "loss.scale: got '1', must be one of 'raw', 'relative'."),
        ({"loss.style_weight": -1}, "loss.style_weight: got -1, must be at least 0"),
        (
            {"loss.style_layers": {"relu1_1": 1.0, "relu3_9": 1.0}},
            f"loss.style_layers: got 'relu3_9', must be one of {TAPS}. Did you mean 'relu3_4'?",
        ),
        ({"loss.style_layers": {}}, "loss.style_layers: got no layers, must name at least one"),
        ({"loss.style_layers": {"relu1_1": 0}}, "loss.style_layers: got relu1_1: 0.0, must be a finite weight above 0"),
        ({"loss.style_layers": {"relu1_1": "a"}}, "loss.style_layers.relu1_1: got 'a', must be a number"),
        ({"loss.style_layers": ["relu1_1"]}, "loss.style_layers: got a list, must be keys with values"),
        ({"content.workers": "some"}, "content.workers: got 'some', must be a whole number or 'auto'"),
        ({"content.workers": -1}, "content.workers: got -1, must be at least 0"),
        ({"content.validation": 1.5}, "content.validation: got 1.5, must be a whole number or text"),
        ({"content.validation": -1}, "content.validation: got -1, must be at least 0"),
        (
            {"content.crop": 64},
            "content: got a crop of 64, must be at most resize (40): it would be larger than every photograph",
        ),
        ({"style.size": 8}, "style.size: got 8, must be at least 16"),
        ({"style.images": [{"path": "a.jpg"}]}, "style: must have either image or images"),
        ({"style": {}}, "style: must have either image or images"),
        ({"style": {"images": ["a.jpg"]}}, "style.images.0: got 'a.jpg', must be keys with values"),
        ({"style": {"images": [{"path": "a", "weight": 0}]}}, "style.images.0.weight: got 0, must be above 0"),
        (
            {"generator.norm": "batch_instance", "train.batch_size": 1},
            "train.batch_size: got 1 with generator.norm 'batch_instance', must be at least 2: with one image "
            "batch and instance statistics are the same and the gates do not learn",
        ),
        ({"seed": -1, "train.steps": 0, "style.size": 1}, "seed: got -1, must be at least 0 (and 2 more)"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_refused(changes: dict[str, Any], message: str) -> None:
    assert refused(changes) == message


@pytest.mark.parametrize("key", ["name", "content", "content.path"])
def test_a_key_that_has_no_default_must_be_given(key: str) -> None:
    assert refusal(written(without(key))) == f"configs/a.yaml: {key}: missing, must be given"


def test_a_style_must_be_given() -> None:
    assert refusal(written(without("style"))) == "configs/a.yaml: must have either style or styles"


def test_all_other_keys_have_defaults() -> None:
    config = load_config(written({"name": "a", "style": {"image": "a.jpg"}, "content": {"path": "photos"}}))
    assert (config.generator.norm, config.train.steps, config.loss.style_weight) == ("instance", 40_000, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "not valid YAML: the key 'name' comes twice in line 2"),
        ("name: a\nstyle:\n  size: 1\n  size: 2\n", "not valid YAML: the key 'size' comes twice in line 4"),
        ("name: a\nstyle: [1, 2\nseed: 0\n", "not valid YAML: expected ',' or ']', but got ':' in line 3"),
        ("name: a\n\tseed: 0\n", "not valid YAML: found character '\\t' that cannot start any token in line 2"),
        ("name: !!python/object:os.system a\n", "not valid YAML: could not determine a constructor for the tag "
         "'tag:yaml.org,2002:python/object:os.system' in line 1"),
        ("- a\n- b\n", "got a list, must be keys with values"),
        ("just words\n", "got text, must be keys with values"),
        ("", "got nothing, must be keys with values"),
        ("3\n", "got a single value, must be keys with values"),
        ("1: 2\n", "1: unknown key, must be one of 'content', 'generator', 'loss', 'name', 'seed', 'style', 'styles'"),
        ("[" * 1000, "not valid YAML: maximum recursion depth exceeded"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_config_is_refused(text: str, message: str) -> None:
    Path("a.yaml").write_text(text)
    assert refusal(Path("a.yaml")).startswith(f"a.yaml: {message}")
    assert "\n" not in refusal(Path("a.yaml"))


def test_a_file_that_cannot_be_read_is_refused() -> None:
    Path("latin.yaml").write_bytes("name: café".encode("latin-1"))
    assert refusal(Path("nowhere.yaml")) == "nowhere.yaml: no such config file"
    assert refusal(Path("configs")) == "configs: cannot be read (Is a directory)"
    assert refusal(Path("latin.yaml")) == "latin.yaml: got another encoding, must be text in UTF-8"


def test_numbers_may_have_exponents_without_a_point() -> None:
    written(tiny())
    text = Path("configs/a.yaml").read_text() + "seed: 3\n"
    Path("a.yaml").write_text(text.replace("  steps: 4\n", "  steps: 4\n  learning_rate: 1e-3\n"))
    assert load_config(Path("a.yaml")).train.learning_rate == 0.001
    assert load({}, "train.learning_rate=5E-4", "loss.style_weight=2e1").loss.style_weight == 20.0


def test_a_config_may_use_anchors_and_merges() -> None:
    tree = yaml.safe_dump(without("loss.style_layers"), sort_keys=False)
    layers = "  content_layers: &layers {relu2_1: 1.0}\n  style_layers: {<<: *layers, relu1_1: 1.0, relu2_1: 3.0}\n"
    Path("a.yaml").write_text(tree.replace("  content_layers:\n    relu2_1: 1.0\n", layers))
    assert load_config(Path("a.yaml")).loss.style_layers == {"relu1_1": 1.0, "relu2_1": 3.0}


def test_overrides_replace_what_the_file_says() -> None:
    config = load(
        {},
        "seed=3",
        "name=other",
        "loss.style_weight=20",
        "content.limit=null",
        "train.schedule.name=cosine",
        "loss.style_layers={relu1_1: 2}",
        "train.schedule={name: step, step_every: 7}",
        "content.workers=2",
        "train.batch_size=3",
        "train.batch_size=5",
    )
    assert (config.seed, config.name, config.loss.style_weight, config.content.limit) == (3, "other", 20.0, None)
    assert config.loss.style_layers == {"relu1_1": 2.0}
    assert (config.train.schedule.name, config.train.schedule.step_every) == ("step", 7)
    assert config.train.schedule.warmup_steps == 100
    assert (config.content.workers, config.train.batch_size) == (2, 5)


def test_an_override_may_give_what_the_file_left_out() -> None:
    path = written({"style": {"image": "a.jpg"}})
    config = load_config(path, ["name=a", "content.path=photos", "train.schedule.name=step"])
    assert (config.name, config.train.schedule.name) == ("a", "step")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.style_weight", "--set: got 'loss.style_weight', must be KEY=VALUE, such as loss.style_weight=20"),
        ("=3", "--set: got '=3', must be KEY=VALUE, such as loss.style_weight=20"),
        ("seed=[1", "--set seed=[1: not valid YAML: expected ',' or ']', but got '<stream end>' in line 1"),
        ("name.a=3", "--set name.a=3: name holds a value, not keys"),
        ("train.steps.a.b=3", "--set train.steps.a.b=3: train.steps holds a value, not keys"),
        ("seed=x", "configs/a.yaml: seed: got 'x', must be a whole number"),
        ("train.deterministic=1", "configs/a.yaml: train.deterministic: got 1, must be true or false"),
        (
            "train.step=3",
            "configs/a.yaml: train.step: unknown key, must be one of 'batch_size', 'checkpoint_every', 'clip', "
            "'compile', 'deterministic', 'keep_checkpoints', 'keep_styles', 'learning_rate', 'log_every', "
            "'norm_rate', 'only', 'optimizer', 'precision', 'schedule', 'shift_weight', 'start', 'steps', "
            "'stop_after', 'validate_every'. Did you mean 'steps'?",
        ),
    ],
)
def test_an_override_that_cannot_be_used_is_refused(override: str, message: str) -> None:
    assert refusal(written(tiny()), override).startswith(message)


def test_paths_are_relative_to_the_config_and_else_to_the_current_folder(tmp_path: Path) -> None:
    for name in ("configs/both.jpg", "both.jpg", "here.jpg", "configs/vgg.pth"):
        Path(name).touch()
    Path("held-out").mkdir()
    config = load(
        {
            "style": {"images": [{"path": name} for name in ("both.jpg", "here.jpg", "nowhere.jpg", "/abs.jpg")]},
            "content.path": "../photos",
            "content.validation": "held-out",
            "content.cache": "decoded",
            "loss.vgg": "imagenet-or-vgg.pth-or-random",
        }
    )
    assert [image.path for image in config.style.images] == [
        f"{tmp_path}/configs/both.jpg",
        f"{tmp_path}/here.jpg",
        f"{tmp_path}/configs/nowhere.jpg",
        "/abs.jpg",
    ]
    assert config.content.path == f"{tmp_path}/configs/../photos"
    assert config.content.validation == f"{tmp_path}/held-out"
    assert config.content.cache == f"{tmp_path}/configs/decoded"
    assert config.loss.vgg == f"imagenet-or-{tmp_path}/configs/vgg.pth-or-random"
    assert load({"content.path": "samples"}).content.path == "samples"
    assert load({"loss.vgg": "imagenet-or-compact"}).loss.vgg == "imagenet-or-compact"


def test_what_to_yaml_writes_loads_as_an_equal_config() -> None:
    several = {"style": {"images": [{"path": "ä b.jpg", "weight": 0.5}, {"path": "c.jpg"}]}, "content.validation": "x"}
    for changes in ({}, several, {"train.learning_rate": 1e-7, "content.limit": 3}):
        config = load(changes)
        Path("copy.yaml").write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(Path("copy.yaml")) == config


def test_without_folders_keeps_names_only() -> None:
    config = load(
        {
            "style": {"images": [{"path": "x/a.jpg"}]},
            "content.validation": "y/held-out",
            "content.cache": "u/decoded",
            "loss.vgg": "z/vgg.pth",
        }
    )
    plain = config.without_folders()
    assert plain.style.images[0].path == "a.jpg"
    assert (plain.content.path, plain.content.validation, plain.loss.vgg) == ("photos", "held-out", "vgg.pth")
    assert plain.content.cache == "decoded"
    alternatives = load({"loss.vgg": "z/vgg.pth-or-random"}).without_folders()
    assert alternatives.loss.vgg == "vgg.pth-or-random"
    assert load().without_folders().style.image == "style.png"
    assert "/" not in plain.to_yaml()


def keys_of(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


def test_whatever_value_a_key_gets_the_config_is_valid_or_refused_in_one_line() -> None:
    whole = load().model_dump(mode="json")
    keys = [*keys_of(whole), "unknown", "style.images.0"]
    valid = 0
    for key, value in itertools.product(keys, RARE_VALUES):
        changes = {"style": {"images": [value]}} if key == "style.images.0" else {key: value}
        try:
            load_config(written(tiny(changes)))
            valid += 1
        except StylizeError as error:
            assert str(error).startswith("configs/a.yaml: "), (key, value)
            assert "\n" not in str(error), (key, value)
            assert "Input should" not in str(error), (key, value)
            assert len(str(error)) < 700, (key, value)
    assert len(keys) > 40
    assert 0 < valid < len(keys) * len(RARE_VALUES) / 3


def test_whatever_a_file_holds_the_config_is_valid_or_refused_in_one_line() -> None:
    for tree in ([TINY], {**TINY, "style": {"images": [[]]}}, {"a": {"b": {}}}, {None: 1}, {True: {}}, {(1, 2): 3}):
        assert "\n" not in refusal(written(tree))
    Path("a.yaml").write_text("style: &x {image: *x}\n")
    assert "\n" not in refusal(Path("a.yaml"))


def test_changes_at_dotted_keys_leave_the_rest_and_are_checked_like_a_file() -> None:
    before = load({})
    changed = with_changes(before, {"train.steps": 9, "loss.style_weight": 2.0}, "study")
    assert (changed.train.steps, changed.loss.style_weight) == (9, 2.0)
    assert with_changes(changed, {"train.steps": 4, "loss.style_weight": before.loss.style_weight}, "study") == before
    for changes, message in (
        ({"train.steps": 0}, "study: train.steps: got 0, must be at least 1"),
        ({"train.stps": 1}, "study: train.stps: unknown key, must be one of "),
        ({"name.a": 1}, "study: name holds a value, not keys"),
    ):
        with pytest.raises(StylizeError) as caught:
            with_changes(before, changes, "study")
        assert str(caught.value).startswith(message)
