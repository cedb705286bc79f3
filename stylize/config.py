"""A whole run as one YAML file, checked before anything expensive happens."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stylize.config_messages import first_mistake, kind_of
from stylize.errors import StylizeError
from stylize.generators import GeneratorConfig
from stylize.losses.terms import LossConfig
from stylize.norms import NORMS
from stylize.system.places import expanded
from stylize.training.photographs import SAMPLES, ContentConfig
from stylize.training.trainer import TrainConfig

Config = TypeVar("Config", bound=BaseModel)
Style = TypeVar("Style", bound="StyleConfig")

VGG_KEYWORDS = ("imagenet", "compact", "random")
START_KEYWORDS = ("learned", "none")


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

    def with_paths(self: Style, changed: Callable[[str], str]) -> Style:
        """The style with other paths of its pictures, each a function of that so far."""
        images = [image.model_copy(update={"path": changed(image.path)}) for image in self.images]
        return self.model_copy(update={"image": None if self.image is None else changed(self.image), "images": images})


class NamedStyle(StyleConfig):
    """One of several styles that a network learns."""

    name: str = Field(pattern=r"^[\w .-]{1,100}$", description="names the style in apply --style")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="its share of the crops")

    def unnamed(self) -> StyleConfig:
        """The style as a run of its own has it."""
        return StyleConfig(image=self.image, images=self.images, size=self.size)


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
    style: StyleConfig | None = Field(None, description="the style to learn")
    styles: list[NamedStyle] = Field(default_factory=list, description="several styles to learn, in place of style")
    content: ContentConfig
    generator: GeneratorConfig = GeneratorConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _batch_suits_norm(self) -> RunConfig:
        norm = NORMS[self.generator.norm]
        if self.train.batch_size < norm.min_batch_size:
            raise ValueError(
                f"train.batch_size: got {self.train.batch_size} with generator.norm '{self.generator.norm}', "
                f"must be at least {norm.min_batch_size}: {norm.why_min_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _style_or_styles(self) -> RunConfig:
        if (self.style is None) == (not self.styles):
            raise ValueError("must have either style or styles")
        names = [style.name for style in self.styles]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"styles: got the name '{twice}' twice, must be different names")
        if len(names) > 1 and self.generator.norm == "none":
            raise ValueError("generator.norm: got 'none' with several styles, which differ in γ and β of norms alone")
        return self

    def all_styles(self) -> list[NamedStyle]:
        """The styles by name, however they were given; a single one has the name of the run."""
        if self.style is None:
            return self.styles
        return [NamedStyle(name=self.name, **self.style.model_dump())]

    def objective(self) -> ObjectiveConfig:
        """The part that determines the loss, for the first style."""
        return ObjectiveConfig(style=self.all_styles()[0].unnamed(), loss=self.loss, seed=self.seed)

    def without_folders(self) -> RunConfig:
        """The config with file names in place of paths: for a model that others will have."""

        def name_of(path: str) -> str:
            return Path(path).name

        validation, cache = self.content.validation, self.content.cache
        content = {
            "path": name_of(self.content.path),
            "validation": name_of(validation) if isinstance(validation, str) else validation,
            "cache": None if cache is None else name_of(cache),
        }
        return self.model_copy(
            update={
                "style": None if self.style is None else self.style.with_paths(name_of),
                "styles": [style.with_paths(name_of) for style in self.styles],
                "content": self.content.model_copy(update=content),
                "loss": self.loss.model_copy(update={"vgg": name_of(self.loss.vgg)}),
                "train": self.train.model_copy(update={"start": name_of(self.train.start)}),
            }
        )

    def flat(self) -> dict[str, Any]:
        """Every value by its dotted key, such as `train.steps`."""
        return _flat(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The configuration with every key, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _flat(tree: object, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


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


def config_from_tree(tree: Mapping[str, Any], overrides: Sequence[str] = (), place: str = "config") -> RunConfig:
    """Check the configuration of a run that is given as nested dicts, as a YAML file would hold them.

    Args:
        tree: Keys with values; paths may be of any kind and are relative to the current folder.
        overrides: As in `load_config`.
        place: Where the tree came from, for messages.

    Raises:
        StylizeError: As in `load_config`.
    """
    return _with_absolute_paths(_checked(RunConfig, _plain(tree), overrides, place), Path.cwd())


def _plain(value: Any) -> Any:
    """A copy of nested dicts and sequences, in the types that a YAML file would give."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def read_config(model: type[Config], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config file of any kind; paths in it stay as they are.

    Args:
        model: The class of the config.
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


def with_changes(config: RunConfig, changes: Mapping[str, object], place: str) -> RunConfig:
    """The config with other values at dotted keys.

    Args:
        config: The config; it stays as it is.
        changes: Values by dotted key, such as `train.steps`.
        place: Where the changes came from, for the messages.

    Raises:
        StylizeError: As in `load_config`.
    """
    tree = config.model_dump(mode="json")
    for key, value in changes.items():
        _put_(tree, key, value, place)
    return _checked(RunConfig, tree, (), place)


def is_vgg_keyword(source: str) -> bool:
    """Whether `loss.vgg` names weights by keyword, not by file.

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
        raise StylizeError(first_mistake(model, error.errors(), place)) from error


MERGE = "tag:yaml.org,2002:merge"  # of `<<: *anchor`


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2, which refuses a key that comes twice.

    1e-3 is a number and 0100 is a hundred; yes, 1:30 and 2026-01-31 are text.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  those of YAML 1.1 are not inherited

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: list[Any] = []
        for key, _ in node.value:
            if key.tag == MERGE:
                continue
            name = self.construct_object(key, deep=True)
            if name in known:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{name}' comes twice", problem_mark=key.start_mark
                )
            known.append(name)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0) if re.match("0[ox]", text) else int(text)


# Source: YAML 1.2.2, section 10.3.2, the core schema; and underscores between digits.
SCALARS = {
    "null": (r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": ("^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"^([-+]?\d[\d_]*|0o[0-7]+|0x[\da-fA-F]+)$", list("-+0123456789")),
    "float": (
        r"^([-+]?(\.\d+|\d[\d_]*(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
    "merge": ("^(?:<<)$", ["<"]),
}
for kind, (pattern, firsts) in SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), firsts)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


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
        raise StylizeError(f"{path}: got {kind_of(tree)}, must be keys with values")
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
    _put_(tree, key, read_value(text, f"--set {override}"), f"--set {override}")


def read_value(text: str, place: str) -> Any:
    """Read the value of a key, as YAML.

    Args:
        text: The value.
        place: Where it stands, for the message.

    Raises:
        StylizeError: It is no YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise StylizeError(f"{place}: not valid YAML: {_yaml_reason(error)}") from error


def _put_(tree: dict[str, Any], key: str, value: object, place: str) -> None:
    """Set the value at a dotted key."""
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, start=1):
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise StylizeError(f"{place}: {'.'.join(parents[:depth])} holds a value, not keys")
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
    return config.model_copy(
        update={
            "style": None if config.style is None else objective.style,
            "styles": [style.with_paths(lambda path: _absolute(path, folder)) for style in config.styles],
            "content": content,
            "loss": objective.loss,
            "train": config.train.model_copy(update={"start": _model_source(config.train.start, folder)}),
        }
    )


def _with_absolute_objective(config: ObjectiveConfig, folder: Path) -> ObjectiveConfig:
    style = config.style.with_paths(lambda path: _absolute(path, folder))
    vgg = "-or-".join(_vgg_source(name, folder) for name in _alternatives(config.loss.vgg, folder))
    return config.model_copy(update={"style": style, "loss": config.loss.model_copy(update={"vgg": vgg})})


def _model_source(name: str, folder: Path) -> str:
    """A model by its path, absolute if it is there; keywords and names of built-in styles stay."""
    place = folder / expanded(name)
    return name if name in START_KEYWORDS or not place.exists() else str(place)


def _absolute(path: str, folder: Path) -> str:
    local = folder / expanded(path)
    return str(local if local.exists() or not Path(path).exists() else Path(path).resolve())


def _alternatives(source: str, folder: Path) -> list[str]:
    return [source] if (folder / source).exists() else source.split("-or-")


def _vgg_source(name: str, folder: Path) -> str:
    return name if name in VGG_KEYWORDS else _absolute(name, folder)
