"""Every generator, with every norm and precision, on the device against float64 on the CPU; strips; batches.

The errors of a picture are relative to its contrast: the root of the mean squared error over the deviation of the
reference's values. Those of the gradient are relative to its length, over all parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache, partial
from typing import NamedTuple

import torch
from benchmarks.settings import draw_norm_
from torch import Tensor, nn

from gpu_checks.results import Check, Failed, Found
from gpu_checks.setting import Setting, make_picture, paint_in_strips, stylizer_of
from stylize.generators import GENERATORS, Generator, GeneratorConfig, build_generator
from stylize.generators.statistics import frozen_statistics, recorded_statistics
from stylize.norms import NORMS, BatchInstanceNorm, RunningNorm
from stylize.system.compute import Compute

AGAINST, STRIPS, BATCHES, OWN = "against float64", "strips against whole", "a batch against its pictures", "statistics"
TRAINED = ("fp32", "bf16")
LEVELS = 255


class Limits(NamedTuple):
    """Largest errors that a precision explains.

    Attributes:
        picture: Of a picture.
        gradient: Of the gradient.
        same: Of a picture that is computed in another order.
    """

    picture: float
    gradient: float
    same: float


# Some times what torch has on a CPU. The faults to find, a wrong border or statistic, are above them in float32. There
# one of the ReLUs whose input is nearly 0 may turn over, and changes the gradient by about 1 %.
LIMITS = {"fp32": Limits(1e-4, 0.05, 1e-4), "bf16": Limits(0.15, 0.7, 0.15), "fp16": Limits(0.02, 0.0, 0.02)}
# Its smallest maps have 2 to 6 pixels a side: their statistics amplify rounding.
AMPLIFIES = {"texture_network": 4.0}


class Network(NamedTuple):
    """A generator by its names."""

    generator: str
    norm: str

    def __str__(self) -> str:
        return f"{self.generator}, {self.norm}"


class Reference(NamedTuple):
    """A network's results in float64.

    Attributes:
        picture: In `eval()`.
        gradient: In `train()`, of a fixed linear function of the pictures, of all parameters together.
    """

    picture: Tensor
    gradient: Tensor


def checks(setting: Setting) -> Iterator[Check]:
    """Yield the section's checks."""
    for network in networks(setting):
        for precision in setting.precisions():
            name = f"{network}, {precision}"
            yield Check(name, partial(against_float64, setting, network, precision), AGAINST)
    for name in GENERATORS:
        network = Network(name, "instance")
        if make_network(network).stages(32, 32) is not None:
            for precision in setting.precisions():
                told = f"strips of {network}, {precision}"
                yield Check(told, partial(strips_against_whole, setting, network, precision), STRIPS)
    for name in GENERATORS:
        network = Network(name, "instance")
        for precision in setting.precisions():
            told = f"batch of {network}, {precision}"
            yield Check(told, partial(batch_against_pictures, setting, network, precision), BATCHES)
    yield Check("own statistics of each picture", partial(own_statistics, setting), OWN)


def networks(setting: Setting) -> list[Network]:
    """Return all networks, those that are used most first; in miniature some of them."""
    found = [Network(generator, norm) for norm in NORMS for generator in sorted(GENERATORS, key="johnson".__ne__)]
    wanted = {"instance", "batch_instance"}
    return setting.sized(found, [n for n in found if n.generator == "johnson" or n.norm in wanted][:7])


def make_network(network: Network, width: int = 8) -> Generator:
    """Return a generator with random parameters, those and the running statistics of its norms too."""
    torch.manual_seed(1)
    generator = build_generator(GeneratorConfig(name=network.generator, norm=network.norm, width=width, margin=0))
    for layer in generator.norms().values():
        draw_norm_(layer)
        if isinstance(layer, BatchInstanceNorm):
            nn.init.uniform_(layer.gate)
        if isinstance(layer, RunningNorm):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
    return generator


@cache
def photographs(setting: Setting, generator: str) -> Tensor:
    """Return two photographs of odd size."""
    large = {"texture_network": (96, 113)}
    height, width = setting.sized(large.get(generator, (45, 61)), (21, 26))
    return torch.cat([make_picture(height, width, seed) for seed in (1, 2)])


@cache
def reference(setting: Setting, network: Network) -> Reference:
    """Return a network's results in float64, on the CPU."""
    images = photographs(setting, network.generator).double()
    generator = make_network(network).double()
    with torch.no_grad():
        painted: Tensor = generator.eval()(images)
    return Reference(painted, gradient_of(generator, images, Compute(torch.device("cpu"))))


def gradient_of(generator: Generator, images: Tensor, compute: Compute) -> Tensor:
    """Return the gradient in `train()`, float64 on the CPU."""
    torch.manual_seed(5)  # for the noise of the networks that have it
    weights = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    trained = copy.deepcopy(generator).train()
    with compute.context():
        painted = trained(images)
        torch.autograd.backward((painted * weights.to(painted)).sum())
    gradients = [p.grad for p in trained.parameters() if p.grad is not None]
    return torch.cat([gradient.flatten().cpu().double() for gradient in gradients])


def against_float64(setting: Setting, network: Network, precision: str) -> Found:
    """Compare picture and gradient with the reference.

    Raises:
        Failed: An error is above what the precision explains.
    """
    compute = Compute(setting.device, precision)
    true = reference(setting, network)
    images = photographs(setting, network.generator).to(setting.device)
    with torch.inference_mode():
        painted = stylizer_of(make_network(network), setting, precision).painter.paint(images).cpu().double()
    errors = {"picture": contrast_error(painted, true.picture)}
    limits, factor = LIMITS[precision], AMPLIFIES.get(network.generator, 1.0)
    allowed = {"picture": factor * limits.picture}
    if precision in TRAINED:
        generator = compute.place(make_network(network))
        generator.maps = None if precision == "fp32" else compute.dtype  # as the trainer does
        gradient = gradient_of(generator, compute.network_input(images), compute)
        errors["gradient"] = float((gradient - true.gradient).norm() / true.gradient.norm())
        allowed["gradient"] = factor * limits.gradient
    levels = (painted - true.picture).abs() * LEVELS
    row = {
        "network": str(network),
        "precision": precision,
        "grey levels off, mean / most": f"{levels.mean():.2g} / {levels.max():.2g}",
        "picture off": _against(errors["picture"], allowed["picture"]),
        "gradient off": _against(errors["gradient"], allowed["gradient"]) if "gradient" in errors else "not trained in",
    }
    found = Found(row, {"errors": errors, "allowed": allowed, "levels": float(levels.mean())})
    for what, error in errors.items():
        if not error <= allowed[what]:
            raise Failed(f"the {what} is off by {error:.2g}, must be at most {allowed[what]:.2g}", found)
    return found


def strips_against_whole(setting: Setting, network: Network, precision: str) -> Found:
    """Compare a picture that is painted in strips with the same as a whole.

    Raises:
        Failed: They differ by more than the precision explains.
    """
    picture = make_picture(*setting.sized((217, 149), (50, 38))).to(setting.device)
    stylizer = stylizer_of(make_network(network), setting, precision)
    with torch.inference_mode():
        whole = stylizer.torch_painter.paint(picture)
    strips = paint_in_strips(stylizer, picture, {"strip_px": setting.sized(32, 16)})
    return _same(network, precision, strips, whole)


def batch_against_pictures(setting: Setting, network: Network, precision: str) -> Found:
    """Compare pictures that are painted together with the same one by one.

    Raises:
        Failed: They differ by more than the precision explains.
    """
    images = photographs(setting, network.generator).to(setting.device)
    stylizer = stylizer_of(make_network(network), setting, precision)
    with torch.inference_mode():
        together = stylizer.painter.paint(images)
        alone = torch.cat([stylizer.painter.paint(image[None]) for image in images])
    return _same(network, precision, together, alone)


def _same(network: Network, precision: str, mine: Tensor, other: Tensor) -> Found:
    error = contrast_error(mine, other)
    allowed = LIMITS[precision].same * AMPLIFIES.get(network.generator, 1.0)
    levels = float((mine - other).abs().max() * LEVELS)
    row = {"network": str(network), "precision": precision, "off": _against(error, allowed)}
    found = Found({**row, "grey levels, most": f"{levels:.2g}"}, {"error": error, "allowed": allowed, "levels": levels})
    if not error <= allowed:
        raise Failed(f"off by {error:.2g}, must be at most {allowed:.2g}", found)
    return found


@torch.inference_mode()
def own_statistics(setting: Setting) -> Found:
    """Check that `eval()` normalizes every picture by its own statistics, and that these are the maps'.

    Raises:
        Failed: It does not.
    """
    compute = Compute(setting.device)
    network = Network("johnson", "instance")
    first, second = compute.network_input(photographs(setting, network.generator)).chunk(2)
    generator = compute.place(make_network(network)).eval()
    with compute.context():
        with recorded_statistics(generator) as recorded:
            own = generator(first)
        with frozen_statistics(generator, recorded):
            frozen, foreign = generator(first), generator(second)
        unfrozen = generator(second)
    same, other = contrast_error(frozen, own), contrast_error(foreign, unfrozen)
    numbers = {"same": same, "other": other}
    found = Found({"with the picture's own statistics": f"{same:.1e}", "with another's": f"{other:.2g}"}, numbers)
    if not same <= LIMITS["fp32"].same:
        raise Failed(f"frozen to a picture's own statistics it is off by {same:.2g}", found)
    if not other >= 0.01:
        raise Failed("a picture with another's statistics is the same: its own were not used", found)
    return found


def contrast_error(picture: Tensor, reference: Tensor) -> float:
    """Return the root of the mean squared difference over the deviation of the reference."""
    mine, true = picture.detach().cpu().double(), reference.detach().cpu().double()
    return float((mine - true).square().mean().sqrt() / true.std())


def _against(error: float, allowed: float) -> str:
    return f"{error:.1e} (≤ {allowed:.2g})"
