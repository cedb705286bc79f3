import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
import yaml
from fixtures_runs import tiny, write_config

from stylize import ops
from stylize.generators import GENERATORS, GeneratorConfig, build_generator
from stylize.norms import NORMS

ROOT = Path(__file__).parent.parent
WITHOUT_NUMBA = "import sys; sys.modules['numba'] = None; sys.modules['llvmlite'] = None; "


def python(code: str, *, cwd: Path = ROOT, **environment: str) -> str:
    """What a new process prints."""
    search = {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **search, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def kernels_serve(x: torch.Tensor) -> bool:
    calls = ops.kernel_calls()
    ops.gram_matrix(x)
    return ops.kernel_calls() > calls


def maps() -> torch.Tensor:
    return torch.rand(1, 64, 8, 8).contiguous(memory_format=torch.channels_last)


def test_kernels_serve_until_a_reference_block_and_again_after_it() -> None:
    assert kernels_serve(maps())
    with ops.reference():
        with ops.reference():
            assert not kernels_serve(maps())
        assert not kernels_serve(maps())
    assert kernels_serve(maps())


def test_a_reference_block_holds_for_all_threads_and_ends_with_an_error() -> None:
    served: list[bool] = []
    with pytest.raises(KeyError), ops.reference():
        thread = threading.Thread(target=lambda: served.append(kernels_serve(maps())))
        thread.start()
        thread.join()
        raise KeyError
    assert served == [False]
    assert kernels_serve(maps())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GENERATORS)
def test_a_reference_block_turns_every_kernel_of_every_network_off(name: str, norm: str) -> None:
    network = build_generator(GeneratorConfig(name=name, norm=norm, width=32))
    photographs = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    calls = ops.kernel_calls()
    with ops.reference():
        network(photographs).sum().backward()
        with torch.no_grad():
            network.eval()(photographs)
    assert ops.kernel_calls() == calls
    network(photographs)
    assert ops.kernel_calls() > calls


def test_neither_importing_networks_nor_computing_by_pytorch_loads_a_compiler() -> None:
    code = """
    import sys, torch
    from stylize import ops
    from stylize.generators import GeneratorConfig, build_generator
    from stylize.losses.perceptual import PerceptualLoss
    from stylize.training.trainer import Trainer
    from stylize.inference.stylizer import Stylizer
    network = build_generator(GeneratorConfig(width=16)).to("meta")
    network(torch.empty(1, 3, 32, 32, device="meta"))  # as any other device
    with ops.reference():
        build_generator(GeneratorConfig(width=16))(torch.rand(1, 3, 32, 32))
    print(sorted({"numba", "llvmlite"} & set(sys.modules)))
    """
    assert python(textwrap.dedent(code)) == "[]\n"


def test_torchs_compiler_which_takes_an_eighth_of_a_gibibyte_is_not_loaded_unless_it_compiles() -> None:
    code = """
    import sys, torch
    from stylize.cli import cli
    from stylize.generators import GeneratorConfig, build_generator
    from stylize.inference.stylizer import Stylizer
    from stylize.pictures.picture import Picture
    from stylize.system.compute import Compute
    from stylize.training.trainer import Trainer
    for name in ("johnson", "texture_network"):
        generator = build_generator(GeneratorConfig(name=name, width=16))
        Stylizer(generator, Compute.choose())(Picture(torch.rand(3, 32, 32)))
    print(sorted({"torch._dynamo", "torch._inductor", "triton"} & set(sys.modules)))
    """
    assert python(textwrap.dedent(code)) == "[]\n"


def test_a_training_by_pytorch_alone_needs_no_numba(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"generator.width": 16})
    run = f"sys.argv = ['stylize', 'train', '--config', {str(config)!r}, '--device', 'cpu']; "
    python(WITHOUT_NUMBA + run + "from stylize.cli import main; main()", cwd=tmp_path, STYLIZE_REFERENCE="1")
    assert (tmp_path / "runs" / "tiny" / "model.safetensors").is_file()
    assert yaml.safe_load((tmp_path / "runs" / "tiny" / "config.yaml").read_text())["name"] == tiny()["name"]


def test_without_numba_plain_pytorch_computes_and_says_so_once() -> None:
    code = """
    import importlib.util, logging, sys
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find(name, *rest)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    import torch
    from stylize import ops
    for _ in range(2):
        ops.gram_matrix(torch.rand(1, 64, 8, 8))
    print(ops.kernel_calls())
    """
    assert python(textwrap.dedent(code)) == (
        "numba is not installed: computing by plain PyTorch, which takes several times as long on a CPU\n0\n"
    )


@pytest.mark.parametrize(("value", "expected"), (("1", "False"), ("0", "True"), ("", "True")))
def test_the_environment_variable_turns_kernels_off_for_a_whole_run(value: str, expected: str) -> None:
    code = "import torch; from stylize import ops; print(ops.cpu_kernels(torch.zeros(1)))"
    assert python(code, STYLIZE_REFERENCE=value) == f"{expected}\n"
