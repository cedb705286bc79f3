"""The model file: the weights of a generator, and a card with all that `apply` needs, in one safetensors file.

Nothing in it can run code.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stylize.errors import StylizeError, reason_of
from stylize.generators import Generator, GeneratorConfig, build_generator
from stylize.version import __version__

FORMAT = "stylize model"
FORMAT_VERSION = 4  # of weights in 8 bits; else 3: a margin, 2: several styles, 1: neither
THUMBNAIL_PX = 96
MOST_PICTURE_PX, LEAST_PICTURE_PX = 8192, 64
PICTURE_QUALITIES = (95, 90, 80, 65)
MOST_PICTURE_BYTES, PICTURES_BYTES = 150_000, 2_000_000  # of a style's pictures, and of those of all styles
MAX_HEADER_BYTES = 4 * 2**20  # metadata and names of tensors; files of `stylize train` have some 30 KB
MAX_SHOWN_CHARACTERS = 200
MOST_STYLES = 1000
DTYPES = frozenset(("F16", "BF16", "F32"))
LEVELS = 127  # of weights in 8 bits, to either side of 0
SCALE = ".scale"  # ends the name of what multiplies weights that are stored in 8 bits, one number an output channel
STYLE_NAME = re.compile(r"[\w .-]{1,100}")  # it becomes part of file names


class StylePicture(NamedTuple):
    """A picture that a style was learned from, in the size in which it was.

    Attributes:
        weight: Its weight among those of the style.
        jpeg: The picture as a JPEG.
    """

    weight: float
    jpeg: bytes

    def rgb(self) -> Image.Image:
        """Return the picture.

        Raises:
            StylizeError: It is damaged.
        """
        try:
            with Image.open(io.BytesIO(self.jpeg), formats=("JPEG",)) as opened:
                if max(opened.size) > MOST_PICTURE_PX:
                    raise StylizeError(f"the model's style picture has {opened.width}×{opened.height} px: damaged")
                rgb: Image.Image = opened.convert("RGB")
                return rgb
        except (OSError, ValueError, SyntaxError) as error:
            raise StylizeError("the model's style picture cannot be read: damaged") from error


@dataclass(frozen=True)
class ModelCard:
    """Description of a model, stored in its file.

    Attributes:
        generator: Configuration of the network.
        style: Name of the style.
        step: Number of training steps.
        vgg: Name of the VGG weights that it was trained against.
        validation: Held-out losses by term, at that step.
        config: The whole training configuration.
        thumbnail: The style image, or that of the first style, as a small JPEG, or empty.
        styles: The names of the styles if there are several, else empty.
        by_style: Held-out losses of each of these, by its name and by term.
        style_pictures: Of each style, in the order of `all_styles`, the pictures that it was learned from; empty if
            they are not known.
        stylize_version: Version of stylize that wrote the file.
        torch_version: Version of PyTorch that trained the model.
    """

    generator: GeneratorConfig
    style: str
    step: int = 0
    vgg: str = ""
    validation: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    thumbnail: bytes = b""
    styles: tuple[str, ...] = ()
    by_style: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    style_pictures: tuple[tuple[StylePicture, ...], ...] = ()
    stylize_version: str = __version__
    torch_version: str = torch.__version__

    @property
    def all_styles(self) -> tuple[str, ...]:
        """The names of the model's styles, also if there is only one."""
        return self.styles or (self.style,)

    def of_style(self, name: str) -> ModelCard:
        """Return the card of a model of one of the styles alone."""
        pictures = self.style_pictures[self.styles.index(name)] if self.style_pictures else ()
        configured = [style for style in self.config.get("styles", []) if style.get("name") == name]
        own = {key: value for style in configured for key, value in style.items() if key not in ("name", "weight")}
        return replace(
            self,
            style=name,
            validation=self.by_style.get(name, {}),
            config={**self.config, "style": own, "styles": []} if own else self.config,
            thumbnail=make_thumbnail(pictures[0].rgb()) if pictures else b"",
            styles=(),
            by_style={},
            style_pictures=(pictures,) if pictures else (),
        )


def encode_model(generator: Generator, card: ModelCard, dtype: torch.dtype = torch.float32) -> bytes:
    """Return the content of a model file.

    Args:
        generator: The network.
        card: Its description.
        dtype: Type of the stored weights. float16 halves the file. int8 halves it again: weights of convolutions are
            multiples of 1/127 of the largest of their output channel, all else is float16.
    """
    stored: dict[str, Tensor] = {}
    for name, value in generator.state_dict().items():
        stored |= _stored(name, value.detach().to("cpu"), dtype)
    metadata = {
        "format": FORMAT,
        "format_version": "4" if dtype == torch.int8 else _version_of(card),
        "generator": card.generator.model_dump_json(exclude=set() if card.generator.margin else {"margin"}),
        "style": card.style,
        "step": str(card.step),
        "vgg": card.vgg,
        "validation": json.dumps(dict(card.validation)),
        "config": json.dumps(dict(card.config)),
        "thumbnail": base64.b64encode(card.thumbnail).decode(),
        "stylize_version": card.stylize_version,
        "torch_version": str(card.torch_version),
    }
    if card.style_pictures:
        metadata["style_pictures"] = json.dumps(
            [[(p.weight, base64.b64encode(p.jpeg).decode()) for p in of_style] for of_style in card.style_pictures]
        )
    if card.styles:
        metadata["styles"] = json.dumps(card.styles)
        metadata["by_style"] = json.dumps({name: dict(terms) for name, terms in card.by_style.items()})
    return save(stored, metadata)


def _stored(name: str, value: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """A tensor as the file holds it, under its name; in 8 bits also its scale."""
    if dtype != torch.int8 or value.dim() < 4:
        return {name: value.to(torch.float16 if dtype == torch.int8 else dtype).contiguous()}
    largest = value.float().abs().amax(tuple(range(1, value.dim())), keepdim=True)
    scale = largest.clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
    return {name: (value / scale).round().to(torch.int8).contiguous(), name + SCALE: scale}


def _restored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under their names, those in 8 bits multiplied by their scales."""
    return {
        name: value.float() * stored[name + SCALE] if value.dtype == torch.int8 else value
        for name, value in stored.items()
        if not name.endswith(SCALE)
    }


def _version_of(card: ModelCard) -> str:
    """The lowest version of the format that has all that a model needs."""
    if card.generator.margin:
        return "3"
    return "2" if card.styles else "1"


def load_model(path: Path, style: str | None = None) -> tuple[Generator, ModelCard]:
    """Load a model file: the generator in `eval()`, on the CPU in float32, and its card.

    Args:
        path: The file.
        style: The name of one of its styles, to load the network of that style alone; None: as it is.

    Raises:
        StylizeError: The file is missing, damaged, of a newer format, or not a model file.
    """
    card = read_card(path)
    damaged = f"{path}: damaged: its weights do not fit its {card.generator.name} generator"
    try:
        with safe_open(path, framework="pt") as file:
            _check_tensors(file, card)  # before anything of the size that the file claims is allocated
            names = file.keys()
            state = _restored({name: file.get_tensor(name) for name in names})
            generator = make_generator(card.generator, state, max(1, len(card.styles)))
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise StylizeError(damaged) from error
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise StylizeError(f"{path}: damaged: not all of its weights are finite")
    if style is None or not card.styles:
        return generator, card
    return generator.blended([float(name == style) for name in card.styles]), card.of_style(style)


@torch.inference_mode(mode=False)  # weights made in inference mode could not be cached in transformed form
def make_generator(config: GeneratorConfig, state: Mapping[str, Tensor], styles: int = 1) -> Generator:
    """Build a generator in `eval()` with copies of given weights, in float32; no random number is drawn.

    Args:
        config: Configuration of the network.
        state: Its complete state dict.
        styles: Number of its styles.

    Raises:
        RuntimeError: Names or shapes do not fit.
    """
    with torch.device("meta"):
        generator = build_generator(config, styles)
    dtypes = {name: value.dtype for name, value in generator.state_dict().items()}
    copied = {name: value.to("cpu", dtypes.get(name), copy=True) for name, value in state.items()}
    generator.load_state_dict(copied, assign=True)
    return generator.eval()


def _check_tensors(file: Any, card: ModelCard) -> None:
    """Compare names, shapes and types with those of the generator, without allocating any of it.

    Raises:
        ValueError: They differ.
    """
    with torch.device("meta"):
        generator = build_generator(card.generator, max(1, len(card.styles)))
        wanted = {name: list(value.shape) for name, value in generator.state_dict().items()}
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    in_8_bits = {name for name, part in slices.items() if part.get_dtype() == "I8"}
    wanted |= {name + SCALE: [shape[0], *[1] * (len(shape) - 1)] for name, shape in wanted.items() if name in in_8_bits}
    if wanted != {name: part.get_shape() for name, part in slices.items()}:
        raise ValueError("other names or shapes")
    if not {part.get_dtype() for name, part in slices.items() if name not in in_8_bits} <= DTYPES:
        raise ValueError("other types")


def read_card(path: Path) -> ModelCard:
    """Read the card of a model file, without its weights.

    Raises:
        StylizeError: As in `load_model`.
    """
    metadata = _metadata(path)
    version = metadata.get("format_version", "")
    if not re.fullmatch("[0-9]{1,9}", version):
        raise StylizeError(f"{path}: damaged: no format version")
    if int(version) > FORMAT_VERSION:
        raise StylizeError(
            f"{path}: got format version {version}, must be at most {FORMAT_VERSION}: "
            f"it was written by a newer stylize than this one ({__version__}); upgrade stylize"
        )
    try:
        return ModelCard(
            generator=_generator_config(metadata["generator"]),
            style=_style_name(metadata["style"]),
            step=_count(metadata["step"]),
            vgg=_shown(metadata["vgg"]),
            validation={name: float(value) for name, value in json.loads(metadata["validation"]).items()},
            config=dict(json.loads(metadata["config"])),
            thumbnail=base64.b64decode(metadata["thumbnail"]),
            styles=_style_names(metadata.get("styles", "[]")),
            by_style={
                str(name): {term: float(value) for term, value in terms.items()}
                for name, terms in json.loads(metadata.get("by_style", "{}")).items()
            },
            style_pictures=_style_pictures(metadata.get("style_pictures", "[]")),
            stylize_version=_shown(metadata["stylize_version"]),
            torch_version=_shown(metadata["torch_version"]),
        )
    except KeyError as error:
        raise StylizeError(f"{path}: damaged: its metadata lack {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("generator", *first["loc"])))
        raise StylizeError(
            f"{path}: damaged: its metadata: {place}: {first['msg'].removeprefix('Value error, ')}"
        ) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0][:MAX_SHOWN_CHARACTERS]
        raise StylizeError(f"{path}: damaged: its metadata cannot be read ({reason})") from error


def _generator_config(text: str) -> GeneratorConfig:
    """The configuration of a generator; before there were margins, networks had none."""
    config = GeneratorConfig.model_validate_json(text)
    return config if "margin" in config.model_fields_set else config.model_copy(update={"margin": 0})


def check_style_name(name: str) -> None:
    """Check the name of a style.

    Raises:
        StylizeError: It has characters that are not allowed, or too many.
    """
    try:
        _style_name(name)
    except ValueError as error:
        raise StylizeError(f"--{error}") from error


def _style_name(name: str) -> str:
    if not STYLE_NAME.fullmatch(name):
        raise ValueError(f"style: got {name[:100]!r}, must be letters, digits, ' ', '.', '_' and '-', at most 100")
    return name


def _style_names(text: str) -> tuple[str, ...]:
    names = tuple(_style_name(name) for name in json.loads(text))
    if len(set(names)) < len(names) or len(names) == 1 or len(names) > MOST_STYLES:
        raise ValueError(f"styles: got {len(names)}, must be none, or 2 to {MOST_STYLES} different names")
    return names


def _style_pictures(text: str) -> tuple[tuple[StylePicture, ...], ...]:
    return tuple(
        tuple(StylePicture(float(weight), base64.b64decode(jpeg)) for weight, jpeg in of_style)
        for of_style in json.loads(text)
    )


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,12}", text):
        raise ValueError(f"step: got {text[:20]!r}, must be a whole number")
    return int(text)


def _shown(text: str) -> str:
    """Return text that is safe to print: short, and without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_SHOWN_CHARACTERS])


def _metadata(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        raise StylizeError(f"{path}: {'is a folder, must be a model file' if path.is_dir() else 'no such file'}")
    try:
        _check_header_size(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except OSError as error:
        raise StylizeError(f"{path}: cannot be read ({reason_of(error)})") from error
    except SafetensorError as error:
        raise StylizeError(
            f"{path}: no stylize model: must be a .safetensors file that `stylize train` wrote"
        ) from error
    if metadata.get("format") != FORMAT:
        raise StylizeError(f"{path}: a safetensors file, but no stylize model: its metadata do not say so")
    return metadata


def _check_header_size(path: Path) -> None:
    """Check that the header is short enough to be parsed quickly.

    Raises:
        StylizeError: It is larger than that of any model.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if MAX_HEADER_BYTES < size <= path.stat().st_size:
        raise StylizeError(
            f"{path}: got {size:,} bytes of metadata, must be at most {MAX_HEADER_BYTES:,}: no stylize model"
        )


def encode_style_picture(image: Image.Image, most_bytes: int) -> bytes:
    """Return a style picture as a JPEG of at most so many bytes, as good as they allow.

    >>> len(encode_style_picture(Image.effect_noise((256, 256), 80).convert("RGB"), 20_000)) <= 20_000
    True
    """
    for quality in PICTURE_QUALITIES:
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=quality, subsampling=0 if quality > 80 else 2)
        if encoded.tell() <= most_bytes:
            return encoded.getvalue()
    width, height = image.size
    if min(width, height) < 2 * LEAST_PICTURE_PX:
        return encoded.getvalue()
    return encode_style_picture(image.resize((width * 3 // 4, height * 3 // 4)), most_bytes)


def make_thumbnail(image: Image.Image) -> bytes:
    """Return the style image as a small JPEG."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.convert("RGB").save(encoded, "JPEG", quality=80)
    return encoded.getvalue()
