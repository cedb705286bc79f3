"""Where VGG-19's weights come from: torchvision's, the compact student's, random ones, or a file."""

from __future__ import annotations

import http.client
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylize.errors import StylizeError, pick
from stylize.losses.terms import layer_keys
from stylize.losses.vgg import LAYERS, VGG19, Convolution, Pooling, VGGPadding, last_convolution, tap_depth
from stylize.system.state_dicts import state_within, without_prefix

CONNECTION_TIMEOUT_S = 15.0
COMPACT = Path(__file__).parent / "weights" / "vgg19-compact.safetensors"

CONVOLUTIONS: Mapping[str, Convolution] = {kind: kind for kind in get_args(Convolution)}

VGG_LAYERS = frozenset(f"features.{layer.key}" for layer in LAYERS)
COMPACT_FORMAT = "stylize compact VGG-19"


class LoadedVGG(NamedTuple):
    """A VGG-19, and a description of its weights."""

    vgg: VGG19
    weights: str


def load_vgg(
    source: str,
    taps: Iterable[str],
    *,
    pooling: Pooling = "max",
    padding: VGGPadding = "replication",
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
) -> LoadedVGG:
    """Load a VGG-19 deep enough for `taps`, with weights from `source`.

    Args:
        source: `imagenet`, `compact` (VGG-19's student, in the package), `random`, the path of a weight file, or
            several joined by `-or-`: the first that is available.
        taps: The layers that will be read.
        pooling: See `VGG19`; random weights always take average pooling.
        padding: See `VGG19`.
        seed: For random weights.
        say: Called with a message about the alternative that was taken and why, if there was a choice.

    Raises:
        StylizeError: None of the sources is available, or a file does not reach the deepest tap.
    """
    depth = tap_depth(taps)
    alternatives = [source] if Path(source).exists() else source.split("-or-")
    refusals: list[str] = []
    for name in alternatives:
        try:
            loaded = _load_one(name, depth, pooling, padding, seed)
        except StylizeError as error:
            refusals.append(str(error))
            continue
        if len(alternatives) > 1:
            reason = f", because {'; '.join(refusals)}" if refusals else ""
            say(f"loss.vgg: of '{source}' took '{name}'{reason}")
        return loaded
    raise StylizeError("; ".join(refusals))


def _load_one(name: str, depth: int, pooling: Pooling, padding: VGGPadding, seed: int) -> LoadedVGG:
    if name == "random":
        vgg = VGG19(depth, "average", padding)
        randomize_(vgg, seed)
        return LoadedVGG(vgg, f"random, seed {seed}")
    if name == "compact":
        return LoadedVGG(read_compact(compact_file(), depth, pooling, padding), "compact (VGG-19's student)")
    path = imagenet_file() if name == "imagenet" else Path(name)
    if _metadata(path).get("format") == COMPACT_FORMAT:
        return LoadedVGG(read_compact(path, depth, pooling, padding), path.name)
    vgg = VGG19(depth, pooling, padding)
    vgg.load_state_dict(read_weights(path, depth))
    return LoadedVGG(vgg, "imagenet (torchvision IMAGENET1K_V1)" if name == "imagenet" else path.name)


def read_weights(path: Path, depth: int) -> dict[str, Tensor]:
    """Return the first `depth` convolutions of a weight file: a whole state dict, features only, or cut short.

    Raises:
        StylizeError: The file is missing, unreadable, not VGG-19, or ends before the deepest tap asked for.
    """
    state = _read_state(path)
    weights: dict[str, Tensor] = {}
    for i, layer in enumerate(LAYERS[:depth]):
        shape = (layer.out_channels, layer.in_channels, 3, 3)
        for kind, right in (("weight", shape), ("bias", shape[:1])):
            value = state.get(f"features.{layer.key}.{kind}", state.get(f"{layer.key}.{kind}"))
            if value is None and i > 0:
                raise StylizeError(_too_shallow(path, i, depth))
            if value is None or tuple(value.shape) != right:
                raise StylizeError(f"{path}: no VGG-19: must hold features.{layer.key}.{kind} of shape {right}")
            if not bool(value.isfinite().all()):
                raise StylizeError(f"{path}: not all values of features.{layer.key}.{kind} are finite: it is damaged")
            weights[f"features.{layer.key}.{kind}"] = value.float()
    return weights


def _too_shallow(path: Path, reached: int, depth: int) -> str:
    keys = " and ".join(f"loss.{key}" for key in layer_keys())
    return (
        f"{path}: reaches {LAYERS[reached - 1].tap}, must reach {LAYERS[depth - 1].tap}; "
        f"ask for shallower layers in {keys}, or give a deeper file"
    )


def read_compact(path: Path, depth: int | None, pooling: Pooling = "max", padding: VGGPadding = "replication") -> VGG19:
    """Load the first `depth` layers, or all, of a student of VGG-19 from a file that `encode_compact` made.

    Raises:
        StylizeError: The file is unreadable, damaged, or ends before the deepest tap asked for.
    """
    metadata = _metadata(path)
    try:
        widths = [int(width) for width in metadata["widths"].split(",")]
        ranks = [_rank(text) for text in metadata.get("ranks", "").split(",") if text]
        convolution = pick(CONVOLUTIONS, metadata["convolution"], f"{path}: convolution")
        depth = depth or len(widths)
        vgg = VGG19(depth, pooling, padding, widths, convolution, ranks)
        if depth > len(widths):
            raise StylizeError(_too_shallow(path, len(widths), depth))
        state = _read_state(path)
        vgg.load_state_dict({key: state[key].float() for key in vgg.state_dict()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise StylizeError(f"{path}: damaged: its weights do not fit its metadata") from error
    return vgg


def _rank(text: str) -> tuple[int, int] | None:
    if text == "plain":
        return None
    before, behind = text.split(":")
    return int(before), int(behind)


def encode_compact(vgg: VGG19, about: Mapping[str, str]) -> bytes:
    """Return the content of a student's file: weights in float16, and as metadata its architecture and origin.

    Args:
        vgg: The student.
        about: How it was made, as metadata.
    """
    from safetensors.torch import save

    state = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in vgg.state_dict().items()}
    kind = {"format": COMPACT_FORMAT, "widths": ",".join(map(str, vgg.widths)), "convolution": vgg.convolution}
    if vgg.ranks:
        kind["ranks"] = ",".join("plain" if rank is None else f"{rank[0]}:{rank[1]}" for rank in vgg.ranks)
    return save(state, {**about, **kind})


def compact_file() -> Path:
    """Return the path of the student in the package.

    Raises:
        StylizeError: The file is missing.
    """
    if not COMPACT.is_file():
        raise StylizeError(
            f"loss.vgg: got 'compact', but {COMPACT} is missing; install stylize anew, make the file with "
            "scripts/distill_vgg.py, or take 'imagenet', 'random' or a weight file"
        )
    return COMPACT


def _metadata(path: Path) -> Mapping[str, str]:
    """The metadata of a safetensors file; empty for another format or a file that cannot be read."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}  # reading its weights reports the reason


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise StylizeError(
            f"loss.vgg: got '{path}', must be 'imagenet', 'compact', 'random', or a weight file that exists"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return without_prefix(load_file(path), VGG_LAYERS)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can make the readers raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StylizeError(f"{path}: not a weight file that can be read safely ({reason})") from error
    state = state_within(loaded)
    if state is None:
        raise StylizeError(f"{path}: not a weight file: must be a dict of tensors by name")
    return without_prefix(state, VGG_LAYERS)


def imagenet_weights() -> Any:
    """Return torchvision's entry for the ImageNet weights of VGG-19: their URL, and with it their hash."""
    from torchvision.models import VGG19_Weights

    return VGG19_Weights.IMAGENET1K_V1


def imagenet_file() -> Path:
    """Return torchvision's ImageNet weights from torch's cache; torchvision downloads them and checks their hash.

    Raises:
        StylizeError: No connection within 15 s, or the download failed; the message says what to fetch, and where to
            put it.
    """
    weights = imagenet_weights()
    path = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    if path.is_file():
        return path
    try:
        check_connection(weights.url, CONNECTION_TIMEOUT_S)
        with redirect_stdout(sys.stderr):  # torch announces the download on stdout, where commands print results
            weights.get_state_dict(check_hash=True, progress=sys.stderr.isatty(), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        raise StylizeError(
            f"the VGG-19 weights cannot be downloaded ({_first_line(error)}); "
            f"fetch {weights.url} (548 MB) and put it at {path}, "
            "or set loss.vgg to the path of a copy, to 'compact' (VGG-19's student, to relu3_1), "
            "or to 'random' (colour and fine texture only)"
        ) from error
    return path


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def check_connection(url: str, timeout_s: float) -> None:
    """Raise OSError unless `url` answers within `timeout_s`.

    It connects in a thread of its own: resolving the host's name cannot be given a time limit.
    """
    outcome: list[Exception | None] = []

    def connect() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=timeout_s).close()
            outcome.append(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise TimeoutError(f"no connection within {timeout_s:.0f} s")
    if outcome[0] is not None:
        raise OSError(_first_line(outcome[0]))


@torch.no_grad()
def randomize_(vgg: VGG19, seed: int) -> None:
    """Set seeded orthogonal weights, every channel centred and every layer scaled to a mean activation of 1.

    A network of random filters still sees colour and fine texture. Centre and scale are measured layer by layer on
    synthetic images, noise with the 1/f spectrum of photographs.

    Source: He, Wang & Hopcroft 2016, arXiv:1606.04801 (random VGG); Mishkin & Matas 2015, arXiv:1511.06422
        (scaling layer by layer).
    Differs: biases that centre the channels, where the sources have none. Behind a ReLU all inputs are positive, and
        without a centre every deeper channel is little more than the local brightness: its Gram matrix is satisfied
        by smooth blobs.
    """
    generator = torch.Generator().manual_seed(seed)
    x = (natural_noise(8, 64, generator) - vgg.mean) / vgg.std
    for layer, module in zip(LAYERS, vgg.features.values(), strict=False):
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(nn.init.orthogonal_(torch.empty(part.weight.shape), generator=generator))
        conv = last_convolution(module)
        bias = cast(Tensor, conv.bias).zero_()
        if layer.pool_before:
            x = vgg.pool(x)
        bias -= module(x).mean((0, 2, 3))
        scale = F.relu(module(x)).mean()
        conv.weight /= scale
        bias /= scale
        x = F.relu(module(x))


def natural_noise(count: int, size_px: int, generator: torch.Generator) -> Tensor:
    """Return images `(count, 3, size, size)` in [0, 1] of Gaussian noise with the 1/f amplitudes of photographs."""
    white = torch.randn(count, 3, size_px, size_px, generator=generator)
    frequency = torch.fft.fftfreq(size_px)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).clamp_min(1 / size_px)
    pink: Tensor = torch.fft.ifft2(torch.fft.fft2(white) / radius).real
    pink = pink / pink.std((-2, -1), keepdim=True)
    return (0.45 + 0.25 * pink).clamp(0, 1)
