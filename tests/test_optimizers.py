"""Optimizers of trainings."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_runs import write_config
from torch import nn

from stylize.config import load_config
from stylize.errors import StylizeError
from stylize.generators import Generator, GeneratorConfig, build_generator
from stylize.run import train
from stylize.system.devices import CPU
from stylize.training.checkpoint import newest_checkpoint
from stylize.training.optimizers import Muon, OptimizerName, build_optimizer, is_matrix, orthogonal

RATE = 0.01


def generator_with_gradients(norm: str = "instance", seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    generator = build_generator(GeneratorConfig(width=4, norm=norm))
    for parameter in generator.parameters():
        parameter.grad = torch.randn_like(parameter)
    return generator


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_orthogonal_matrices_keep_the_directions_and_lose_the_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    s = torch.linspace(1, 0.05, s.shape[1]).expand_as(s)  # what a float32 iteration of five steps reaches
    result = torch.einsum("nri,nij,ncj->nrc", u.mT.mT, torch.diag_embed(s), vh.mT)
    inner = u.mT @ orthogonal(result) @ vh.mT  # diagonal in the same directions
    on, off = torch.diagonal(inner, dim1=1, dim2=2), inner - torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2))
    assert on.min() > 0.6
    assert on.max() < 1.3
    assert off.abs().max() < 1e-3


def test_the_identity_comes_out_as_five_iterations_by_hand() -> None:
    value = 2**-0.5  # of the identity, divided by its Frobenius norm
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    assert torch.allclose(orthogonal(3 * torch.eye(2)[None]), value * torch.eye(2), atol=1e-5)


def test_a_kernel_moves_by_the_learning_rate_and_its_momentum_is_nesterovs() -> None:
    kernel = nn.Parameter(torch.zeros(8, 6, 3, 3))
    optimizer = Muon([{"params": [kernel], "orthogonal": True}], RATE)
    gradients = torch.randn(2, *kernel.shape, generator=torch.Generator().manual_seed(0))
    before, momentum = kernel.detach().clone(), torch.zeros_like(kernel)
    for gradient in gradients:
        kernel.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + gradient
        expected = orthogonal((gradient + 0.9 * momentum).flatten(1)[None]).view(kernel.shape) * RATE * 54**0.5
        assert torch.allclose(kernel, before - expected, atol=1e-6)
        assert 0.7 * RATE < (kernel - before).square().mean().sqrt() < 1.2 * RATE
        before = kernel.detach().clone()


def test_all_but_the_kernels_between_maps_move_as_with_adam() -> None:
    generator = generator_with_gradients("batch_instance")
    other = copy.deepcopy(generator)
    for theirs, ours in zip(other.parameters(), generator.parameters(), strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    muon, adam = build_optimizer("muon", generator, RATE, fused=True), build_optimizer("adam", other, RATE, fused=True)
    for _ in range(2):  # with equal gradients; the first step is a sign alone
        muon.step()
        adam.step()
    differ = {
        name for (name, ours), theirs in zip(generator.named_parameters(), other.parameters(), strict=True)
        if not torch.allclose(ours, theirs, atol=1e-7)
    }  # fmt: skip
    assert differ == {name for name, parameter in generator.named_parameters() if is_matrix(parameter)}
    assert "encode.1.conv.weight" in differ
    assert not {"encode.0.conv.weight", "to_rgb.weight"} & differ


@pytest.mark.parametrize("norm", ("instance", "batch_instance"))
def test_every_parameter_is_in_one_group_with_its_factor(norm: str) -> None:
    generator = generator_with_gradients(norm)
    groups = build_optimizer("muon", generator, RATE, fused=True).param_groups
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, generator.parameters()))
    assert {group["factor"] for group in groups} == ({1.0, 10.0} if norm == "batch_instance" else {1.0})
    assert all(is_matrix(p) == group["orthogonal"] for group in groups for p in group["params"])


def test_what_is_not_trained_is_in_no_group() -> None:
    generator = generator_with_gradients()
    generator.requires_grad_(False)
    generator.to_rgb.requires_grad_(True)  # type: ignore[operator, union-attr]
    groups = build_optimizer("muon", generator, RATE, fused=True).param_groups
    assert [len(group["params"]) for group in groups] == [2]


@pytest.mark.parametrize("optimizer", ("muon", "adam"))
@pytest.mark.parametrize("norm", ("instance", "batch_instance"))
def test_the_norms_have_a_rate_of_their_own(optimizer: OptimizerName, norm: str) -> None:
    generator = generator_with_gradients(norm)
    groups = build_optimizer(optimizer, generator, RATE, fused=True, norm_rate=16).param_groups
    by_factor = {factor: [g for g in groups if g["factor"] == factor] for factor in (1.0, 10.0, 16.0)}
    assert sum(map(len, by_factor.values())) == len(groups)
    (of_norms,) = by_factor[16.0]
    scales = [p for n in generator.norms().values() for p in (n.weight, n.bias)]
    assert set(map(id, of_norms["params"])) == set(map(id, scales))
    assert len(by_factor[10.0]) == (norm == "batch_instance")
    assert sum(len(group["params"]) for group in groups) == len(list(generator.parameters()))


def test_a_rate_of_norms_of_1_leaves_the_groups_as_checkpoints_of_before_have_them() -> None:
    generator = generator_with_gradients("batch_instance")
    groups = build_optimizer("muon", generator, RATE, fused=True).param_groups
    assert [(group["factor"], group["orthogonal"]) for group in groups] == [(1.0, False), (1.0, True), (10.0, False)]
    names = {id(p): name for name, p in generator.named_parameters()}
    others = [names[id(p)] for p in groups[0]["params"]]
    rest = [name for name in others if ".norm." not in name]
    assert others == rest + [name for name in others if ".norm." in name]


def test_a_step_that_does_not_count_changes_nothing_though_its_gradient_is_not_a_number() -> None:
    generator = generator_with_gradients()
    optimizer = build_optimizer("muon", generator, RATE, fused=True)
    optimizer.step()
    weights = copy.deepcopy(generator.state_dict())
    state = copy.deepcopy(optimizer.state_dict()["state"])
    for parameter in generator.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(weights[name], value) for name, value in generator.state_dict().items())
    moments = optimizer.state_dict()["state"]
    assert all(torch.equal(state[i]["exp_avg"], moments[i]["exp_avg"]) for i in state)


def test_the_state_survives_a_checkpoint() -> None:
    generators = [generator_with_gradients(), generator_with_gradients()]
    optimizers = [build_optimizer("muon", generator, RATE, fused=True) for generator in generators]
    optimizers[0].step()
    generators[1].load_state_dict(generators[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for optimizer in optimizers:
        optimizer.step()
    assert all(map(torch.equal, *(generator.state_dict().values() for generator in generators)))


def state_of(folder: Path) -> dict[str, Any]:
    found = newest_checkpoint(folder / "checkpoints", CPU)
    assert found is not None
    assert found[1]["progress"]["step"] == 4
    return found[1]


def assert_same_bits(one: Path, other: Path) -> None:
    ends = [state_of(folder) for folder in (one, other)]
    for key in ("generator", "last_good"):
        assert all(torch.equal(value, ends[1][key][name]) for name, value in ends[0][key].items())


@pytest.mark.parametrize("optimizer", ("muon", "adam"))
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    config = load_config(write_config(tmp_path, {"train.optimizer": optimizer}))
    train(config, tmp_path / "whole", device="cpu")
    half = load_config(write_config(tmp_path, {"train.optimizer": optimizer, "train.steps": 2}, "half.yaml"))
    train(half, tmp_path / "run", device="cpu")
    train(config, tmp_path / "run", device="cpu", resume=True)
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


def test_a_run_of_a_version_without_the_keys_goes_on_as_it_began(tmp_path: Path) -> None:
    """Its config names neither; nor does the one with which it is resumed."""
    plain = load_config(write_config(tmp_path))
    before = {"train.optimizer": "adam", "loss.style_energy": "style"}
    train(load_config(write_config(tmp_path, before, "before.yaml")), tmp_path / "whole")
    train(load_config(write_config(tmp_path, {**before, "train.steps": 2}, "half.yaml")), tmp_path / "run")
    recorded = tmp_path / "run" / "config.yaml"
    text, count = re.subn(r"  (optimizer: adam|style_energy: style)\n", "", recorded.read_text())
    assert count == 2
    recorded.write_text(text)
    for key, value, was in (("train.optimizer", "muon", "adam"), ("loss.style_energy", "both", "style")):
        changed = load_config(write_config(tmp_path, {key: value}, "b.yaml"))
        with pytest.raises(StylizeError, match=rf"{key} was '{was}' and is now '{value}', must be as before"):
            train(changed, tmp_path / "run", resume=True)
    train(plain, tmp_path / "run", resume=True)
    assert "  optimizer: adam\n" in recorded.read_text()
    assert "  style_energy: style\n" in recorded.read_text()
    assert_same_bits(tmp_path / "run", tmp_path / "whole")
