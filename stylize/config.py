"""A whole run as one YAML file, checked before anything expensive happens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stylize.errors import StylizeError, nearest, unknown_name
from stylize.generators import GeneratorConfig
from stylize.losses.terms import LossConfig
from stylize.training.photographs import SAMPLES, ContentConfig
from stylize.training.trainer import TrainConfig

Config = TypeVar("Config", bound=BaseModel)

VGG_KEYWORDS = ("imagenet", "compact", "random")


class StyleImage(BaseModel):
    """One of several style images."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str = Field(description="the picture, relative to the config file")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="its share in the style")


class StyleConfig(BaseModel):
    """The style to learn: one image, or several that are mixed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image: str | None = Field(None, description="the picture, relative to the config file")
    images: list[StyleImage] = Field(
        default_factory=list, description="several pictures with weights, in place of image"
    )
    size: int = Field(512, ge=16, le=8192, description="longer side, px: larger means larger strokes")

    @model_validator(mode="after")
    def _one_way(self) -> StyleConfig:
        if (self.image is None) == (not self.images):
            raise ValueError("must have either image or images")
        return self

    def all_images(self) -> list[StyleImage]:
        """The style images with their weights, however they were given."""
        return self.images or [StyleImage(path=self.image or "")]


class ObjectiveConfig(BaseModel):
    """What pictures are measured against: a style and the loss."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    style: StyleConfig
    loss: LossConfig = LossConfig()
    seed: int = Field(0, ge=0, lt=2**32, description="of random VGG weights")


class RunConfig(BaseModel):
    """Everything that determines a training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="names the style and the run folder")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything that is drawn")
    style: StyleConfig
    content: ContentConfig
    generator: GeneratorConfig = GeneratorConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _batch_suits_norm(self) -> RunConfig:
        if self.generator.norm == "batch_instance" and self.train.batch_size == 1:
            raise ValueError(
                "train.batch_size: got 1 with generator.norm 'batch_instance', must be at least 2: with one image "
                "batch and instance statistics are the same and the gates do not learn"
            )
        return self

    def objective(self) -> ObjectiveConfig:
        """The part that determines the loss."""
        return ObjectiveConfig(style=self.style, loss=self.loss, seed=self.seed)

    def without_folders(self) -> RunConfig:
        """The same with file names in place of paths: for a model that goes to other people."""

        def name_of(path: str) -> str:
            return Path(path).name

        style = self.style
        if style.image is not None:
            style = style.model_copy(update={"image": name_of(style.image)})
        images = [image.model_copy(update={"path": name_of(image.path)}) for image in style.images]
        validation, cache = self.content.validation, self.content.cache
        content = {
            "path": name_of(self.content.path),
            "validation": name_of(validation) if isinstance(validation, str) else validation,
            "cache": None if cache is None else name_of(cache),
        }
        return self.model_copy(
            update={
                "style": style.model_copy(update={"images": images}),
                "content": self.content.model_copy(update=content),
                "loss": self.loss.model_copy(update={"vgg": name_of(self.loss.vgg)}),
            }
        )

    def to_yaml(self) -> str:
        """The configuration with every key, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a config file.

    Args:
        path: The YAML file; paths in it are relative to its folder, or else to the current one.
        overrides: `key.subkey=value` strings that replace what the file says; values are YAML.

    Returns:
        The configuration, its paths absolute.

    Raises:
        StylizeError: The first mistake, in one line: file, key, what came, what must hold.
    """
    return _with_absolute_paths(read_config(RunConfig, path, overrides), path.resolve().parent)


def read_config(model: type[Config], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config file of any kind; paths in it stay as they are.

    Args:
        model: What must hold.
        path: The YAML file.
        overrides: As in `load_config`.

    Raises:
        StylizeError: As in `load_config`.
    """
    return _checked(model, read_yaml(path), overrides, str(path))


def objective_config(
    style: Path, overrides: Sequence[str] = (), trained: Mapping[str, Any] | None = None, place: str = ""
) -> ObjectiveConfig:
    """Return the loss for a style without a config file: the default one, or that of a training.

    Args:
        style: The picture.
        overrides: As in `load_config`; paths are relative to the current folder.
        trained: The whole configuration of a training, as a model file holds it: its loss, style size and seed are
            taken.
        place: Where that came from, for the messages.

    Raises:
        StylizeError: As in `load_config`.
    """
    tree: dict[str, Any] = {"style": {"image": str(style)}}
    if trained is not None:
        tree |= {key: trained[key] for key in ("loss", "seed") if key in trained}
        style_of_training = trained.get("style")
        if isinstance(style_of_training, Mapping) and "size" in style_of_training:
            tree["style"]["size"] = style_of_training["size"]
        tree = _checked(ObjectiveConfig, tree, (), place).model_dump(mode="json")
    return _with_absolute_objective(_checked(ObjectiveConfig, tree, overrides, "--set"), Path.cwd())


def is_vgg_keyword(source: str) -> bool:
    """Whether `loss.vgg` names weights that can be had anywhere, not a file.

    >>> is_vgg_keyword("imagenet-or-compact"), is_vgg_keyword("vgg19.pth")
    (True, False)
    """
    return all(name in VGG_KEYWORDS for name in source.split("-or-"))


def _checked(model: type[Config], tree: dict[str, Any], overrides: Sequence[str], place: str) -> Config:
    for override in overrides:
        _override_(tree, override)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise StylizeError(_first_mistake(model, error.errors(), place)) from error


MERGE = "tag:yaml.org,2002:merge"  # of `<<: *anchor`


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number, as YAML 1.2 does, and refuses a key that comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key}' comes twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        StylizeError: It is missing, not YAML, or holds something else.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise StylizeError(f"{path}: no such config file") from error
    except OSError as error:
        raise StylizeError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise StylizeError(f"{path}: got another encoding, must be text in UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise StylizeError(f"{path}: not valid YAML: {_yaml_reason(error)}") from error
    if not isinstance(tree, dict):
        raise StylizeError(f"{path}: got {_kind(tree)}, must be keys with values")
    return tree


def _yaml_reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    place = f" in line {mark.line + 1}" if mark else ""
    return " ".join(f"{problem}{place}".split())


def _override_(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise StylizeError(f"--set: got '{override}', must be KEY=VALUE, such as loss.style_weight=20")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise StylizeError(f"--set {override}: not valid YAML: {_yaml_reason(error)}") from error
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, start=1):
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise StylizeError(f"--set {override}: {'.'.join(parents[:depth])} holds a value, not keys")
        tree = child
    tree[last] = value


def _with_absolute_paths(config: RunConfig, folder: Path) -> RunConfig:
    content = config.content
    if content.path != SAMPLES:
        content = content.model_copy(update={"path": _absolute(content.path, folder)})
    if isinstance(content.validation, str):
        content = content.model_copy(update={"validation": _absolute(content.validation, folder)})
    if content.cache is not None:
        content = content.model_copy(update={"cache": _absolute(content.cache, folder)})
    objective = _with_absolute_objective(config.objective(), folder)
    return config.model_copy(update={"style": objective.style, "content": content, "loss": objective.loss})


def _with_absolute_objective(config: ObjectiveConfig, folder: Path) -> ObjectiveConfig:
    style = config.style
    if style.image is not None:
        style = style.model_copy(update={"image": _absolute(style.image, folder)})
    images = [image.model_copy(update={"path": _absolute(image.path, folder)}) for image in style.images]
    style = style.model_copy(update={"images": images})
    vgg = "-or-".join(_vgg_source(name, folder) for name in _alternatives(config.loss.vgg, folder))
    return config.model_copy(update={"style": style, "loss": config.loss.model_copy(update={"vgg": vgg})})


def _absolute(path: str, folder: Path) -> str:
    local = folder / Path(path).expanduser()
    return str(local if local.exists() or not Path(path).exists() else Path(path).resolve())


def _alternatives(source: str, folder: Path) -> list[str]:
    return [source] if (folder / source).exists() else source.split("-or-")


def _vgg_source(name: str, folder: Path) -> str:
    return name if name in VGG_KEYWORDS else _absolute(name, folder)


BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
    "multiple_of": ("multiple_of", "a multiple of"),
}
TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "none_required": "null",
    "finite_number": "a finite number",
}
UNKNOWN_KEY = ("extra_forbidden", "invalid_key")


def _first_mistake(root: type[BaseModel], errors: Sequence[ErrorDetails], place: str) -> str:
    """The first of pydantic's errors as one line, and how many more there are."""
    errors = sorted(errors, key=lambda error: error["type"] not in UNKNOWN_KEY)
    first = errors[0]
    path = _key_path(root, first)
    same = [e for e in errors if _key_path(root, e)[: len(path)] == path]
    key = ".".join(path)
    more = len({tuple(_key_path(root, e)) for e in errors}) - 1
    tail = f" (and {more} more)" if more else ""
    text = _mistake(root, first, same)
    return f"{place}: {key}: {text}{tail}" if key else f"{place}: {text}{tail}"


def _key_path(root: type[BaseModel], error: ErrorDetails) -> list[str]:
    """The keys down to the mistake, without pydantic's names for the members of a union."""
    path: list[str] = []
    model: Any = root
    for part in error["loc"]:
        fields = getattr(model, "model_fields", None)
        if get_origin(model) is dict:
            path.append(str(part))  # a name in a dict of models
            model = get_args(model)[1]
        elif isinstance(part, int) and fields is not None and path:
            path.append(str(part))  # the place in a list of models
        elif fields is not None:
            path.append(str(part))
            model = _inside(fields[part].annotation) if part in fields else None
        elif isinstance(part, int) or (path and path[-1].endswith("_layers")):
            path.append(str(part))
    return path


def _inside(annotation: Any) -> Any:
    """What a field holds: the items of a list, or of an optional; a dict of models stays, its names are to come."""
    held = get_args(annotation)
    return held[0] if held and not (get_origin(annotation) is dict and hasattr(held[1], "model_fields")) else annotation


def _mistake(root: type[BaseModel], error: ErrorDetails, same_key: Sequence[ErrorDetails]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in UNKNOWN_KEY:
        allowed = _fields_beside(root, error["loc"])
        name = str(error["loc"][-1])
        listed = ", ".join(f"'{key}'" for key in allowed)
        return f"unknown key, must be one of {listed}.{nearest(name, allowed)}"
    if kind == "missing":
        return "missing, must be given"
    if kind == "literal_error" and len(same_key) == 1:
        words = re.findall(r"'([^']*)'", str(context["expected"]))
        return unknown_name(str(value), words, "").removeprefix(": ")
    if kind in BOUNDS:
        bound, relation = BOUNDS[kind]
        return f"got {_shown(value)}, must be {relation} {context[bound]:.15g}"
    if kind == "string_pattern_mismatch":
        return f"got {_shown(value)}, must be letters, digits, '.', '_' and '-', starting with a letter or digit"
    expected = dict.fromkeys(_expected(other) for other in same_key)
    return f"got {_shown(value)}, must be {' or '.join(expected)}"


def _expected(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return str(error.get("ctx", {}).get("expected"))
    if error["type"] in BOUNDS:
        name, words = BOUNDS[error["type"]]
        return f"{words} {error.get('ctx', {})[name]:.15g}"
    return TYPES.get(error["type"], error["msg"])


def _fields_beside(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that stand where an unknown one came."""
    model: Any = root
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        model = get_args(model)[1] if get_origin(model) is dict else _inside(model.model_fields[part].annotation)
    return sorted(model.model_fields)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return _kind(value)
    text = repr(value) if isinstance(value, str) else str(value)
    return {"None": "nothing", "True": "true", "False": "false"}.get(text, text[:80])


def _kind(value: Any) -> str:
    names = {dict: "keys with values", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), "a single value")
