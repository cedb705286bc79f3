"""The texture network's noise: drawn where the network computes, or once for all pictures of a size and seed."""

import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo  # before a test replaces what it imports
from torch import Tensor
from torch.nn import functional as F

from stylize.generators import GeneratorConfig, build_generator, texture_network
from stylize.generators.texture_network import TextureNetwork, resize_to


@pytest.fixture
def network() -> TextureNetwork:
    network = build_generator(GeneratorConfig(name="texture_network", width=4, margin=0))
    assert isinstance(network, TextureNetwork)
    return network


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The seeds for which noise was drawn."""
    monkeypatch.setattr(texture_network, "_noise_cache", texture_network._NoiseCache())
    seeds: list[int] = []
    draw = texture_network._drawn_on_cpu

    def counted(wanted: texture_network._Noise) -> list[Tensor]:
        seeds.append(wanted.seed)
        return draw(wanted)

    monkeypatch.setattr(texture_network, "_drawn_on_cpu", counted)
    yield seeds


def test_in_training_noise_is_drawn_on_the_device_of_the_images(
    network: TextureNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    rand, places = torch.rand, list[Any]()

    def told(*shape: int, **options: Any) -> Tensor:
        places.append(options.get("device"))
        return rand(*shape, **options)

    monkeypatch.setattr(torch, "rand", told)
    monkeypatch.setattr(torch, "Generator", lambda: pytest.fail("a generator breaks a compiled graph"))
    network.to("meta").train()(torch.empty(2, 3, 32, 32, device="meta"))
    assert places == [torch.device("meta")] * 6


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_training_pass_is_one_graph(network: TextureNetwork) -> None:
    images = torch.rand(2, 3, 32, 32)
    compiled = torch.compile(network.train(), fullgraph=True, backend="eager")  # raises where the graph would break
    torch.manual_seed(1)
    expected = network(images)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_the_noise_of_a_seed_is_drawn_once_and_is_that_of_the_generator(
    network: TextureNetwork, drawn: list[int]
) -> None:
    images = torch.rand(2, 3, 20, 24)
    network.eval()
    with torch.inference_mode():
        first, second = network(images), network(images[:1])
    torch.testing.assert_close(first[:1], second)
    assert drawn == [0]
    network.seed_noise(5)
    network(images).sum().backward()  # noise from inference mode would not do
    network(images[..., :18, :])
    assert drawn == [0, 5, 5]
    generator = torch.Generator().manual_seed(5)
    sizes = tuple(reversed(texture_network.pyramid_sizes(20, 24)))
    kept = texture_network._kept_noise(5, sizes, images)
    assert drawn == [0, 5, 5]
    for noise, size in zip(kept, sizes, strict=True):
        assert torch.equal(noise, torch.rand(1, 3, *size, generator=generator))
    rounded = texture_network._kept_noise(5, sizes, images.bfloat16())
    assert all(torch.equal(some, noise.bfloat16()) for some, noise in zip(rounded, kept, strict=True))


def test_kept_noise_is_bounded_and_the_oldest_goes(
    network: TextureNetwork, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(1, 3, 16, 16)
    sizes = tuple(texture_network.pyramid_sizes(16, 16))
    one_bytes = sum(noise.nbytes for noise in texture_network._kept_noise(0, sizes, images))
    monkeypatch.setattr(texture_network, "KEPT_NOISE_BYTES", 2 * one_bytes)
    for seed in (1, 0, 2, 0, 1):
        texture_network._kept_noise(seed, sizes, images)
    assert drawn == [0, 1, 2, 1]
    monkeypatch.setattr(texture_network, "KEPT_NOISE_BYTES", 0)
    texture_network._kept_noise(3, sizes, images)
    assert len(texture_network._noise_cache._kept) == 0


def test_many_threads_share_the_noise(drawn: list[int]) -> None:
    images = torch.rand(1, 3, 16, 16)
    sizes = tuple(texture_network.pyramid_sizes(16, 16))
    found: list[list[Tensor]] = []

    def ask() -> None:
        for seed in range(20):
            found.append(texture_network._kept_noise(seed, sizes, images))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert set(drawn) == set(range(20))


def test_a_pickled_network_has_no_noise(network: TextureNetwork) -> None:
    network.eval()
    before = len(pickle.dumps(network))
    network(torch.rand(1, 3, 64, 64))
    assert len(pickle.dumps(network)) == before


@pytest.mark.parametrize("size", [(17, 16), (33, 47), (40, 64)])
def test_where_a_device_pools_only_evenly_the_averages_are_the_same(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(2, 3, *size)
    expected = [F.adaptive_avg_pool2d(x, smaller) for smaller in texture_network.pyramid_sizes(*size)[1:]]
    monkeypatch.setattr(texture_network, "pools_to_any_size", lambda x: False)
    pool = F.adaptive_avg_pool2d

    def only_evenly(x: Tensor, size: tuple[int, int]) -> Tensor:
        assert x.shape[-2] % size[0] == 0 and x.shape[-1] % size[1] == 0
        return pool(x, size)

    monkeypatch.setattr(F, "adaptive_avg_pool2d", only_evenly)
    for smaller, right in zip(texture_network.pyramid_sizes(*size)[1:], expected, strict=True):
        torch.testing.assert_close(resize_to(x, smaller), right)
