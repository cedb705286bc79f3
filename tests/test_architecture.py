import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVERYTHING = {""}
TORCH = {"torch", "torchvision", "tensorboard"}

MAY_IMPORT = {
    "stylize": set(),
    "stylize.__main__": {"cli"},
    "stylize.errors": set(),
    "stylize.files": {"errors"},
    "stylize.memory": set(),
    "stylize.blocks": set(),
    "stylize.rows": {"blocks", "errors"},
    "stylize.metadata": set(),
    "stylize.images": {"errors", "files"},
    "stylize.rasters": {"errors", "files", "images", "metadata", "rows", "rasters"},
    "stylize.devices": {"errors"},
    "stylize.processes": {"devices"},
    "stylize.threads": set(),
    "stylize.products": {"threads"},
    "stylize.vectors": {"products"},
    "stylize.winograd": {"products", "threads", "vectors"},
    "stylize.convolution": {"blocks", "products", "threads", "vectors", "winograd"},
    "stylize.channelwise": {"products", "threads", "vectors"},
    "stylize.pooling": {"channelwise", "products", "threads", "vectors"},
    "stylize.norms": {"channelwise", "errors", "processes"},
    "stylize.generators": {"convolution", "errors", "norms", "processes", "generators"},
    "stylize.vgg": {"convolution", "errors", "pooling"},
    "stylize.losses": {"errors", "products", "vgg"},
    "stylize.training": set(),
    "stylize.training.workers": {"errors"},
    "stylize.training.cache": {"errors", "files", "images", "processes", "training.workers"},
    "stylize.training.data": {"errors", "images", "processes", "training.cache", "training.workers"},
    "stylize.training.prefetch": {"errors"},
    "stylize.training.checkpoint": {"errors", "files"},
    "stylize.training.events": {"files"},
    "stylize.training.monitor": {"errors", "files", "images", "training.events"},
    "stylize.training.last_good": set(),
    "stylize.training.trainer": {
        "devices",
        "errors",
        "losses",
        "norms",
        "generators",
        "processes",
        "memory",
        "training",
        "model_file",
        "images",
    },
    "stylize.config": {"errors", "generators", "losses", "training.data", "training.trainer"},
    "stylize.build": {
        "config",
        "errors",
        "files",
        "images",
        "norms",
        "generators",
        "processes",
        "vgg",
        "losses",
        "training",
        "model_file",
    },
    "stylize.model_file": {"errors", "generators"},
    "stylize.inference": {
        "blocks",
        "channelwise",
        "convolution",
        "devices",
        "errors",
        "files",
        "images",
        "memory",
        "norms",
        "generators",
        "model_file",
        "rasters",
        "rows",
        "threads",
        "winograd",
        "inference",
    },
    "stylize.studies": {
        "build",
        "config",
        "devices",
        "errors",
        "files",
        "memory",
        "images",
        "norms",
        "generators",
        "vgg",
        "losses",
        "training",
        "model_file",
        "inference",
        "studies",
    },
    "stylize.cli": EVERYTHING,
}
# These rooms have one row for all their files; in the others every file has its own.
WHOLE_ROOMS = {"stylize.generators", "stylize.rasters", "stylize.inference", "stylize.studies", "stylize.cli"}


def module_name(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def modules(root: Path) -> dict[str, ast.Module]:
    files = sorted((root / "stylize").rglob("*.py"))
    return {module_name(file, root): ast.parse(file.read_text("utf-8")) for file in files}


def row(module: str) -> str:
    room = ".".join(module.split(".")[:2])
    return room if room in WHOLE_ROOMS else module


def imported(nodes: Iterator[ast.AST], module: str, known: set[str]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else str(node.module) for name in names)


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        type_checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not type_checking:
            yield node
            yield from run_at_import(node)


def allowed(name: str, rooms: set[str]) -> bool:
    inside = name.removeprefix("stylize").removeprefix(".")
    if inside == "" or rooms == EVERYTHING:
        return True
    return any(inside == room or inside.startswith(f"{room}.") for room in rooms)


def violations(root: Path) -> list[str]:
    trees = modules(root)
    found = [f"{module} has no row" for module in trees if row(module) not in MAY_IMPORT]
    for module, tree in trees.items():
        rooms = MAY_IMPORT.get(row(module), EVERYTHING)
        for name in imported(ast.walk(tree), module, set(trees)):
            if name.split(".")[0] == "stylize" and not allowed(name, rooms):
                found.append(f"{module} imports {name}")
    return found


def loads_torch(root: Path) -> set[str]:
    trees = modules(root)
    direct = {
        module: {part for name in imported(run_at_import(tree), module, set(trees)) for part in with_parents(name)}
        for module, tree in trees.items()
    }
    heavy = {module for module, names in direct.items() if names & TORCH}
    while True:
        more = {m for m, names in direct.items() if (names | set(with_parents(m))) & heavy} - heavy
        if not more:
            return heavy
        heavy |= more


def with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        file = root / "stylize" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def test_every_module_imports_only_what_its_row_allows() -> None:
    assert len(modules(ROOT)) > 10
    assert violations(ROOT) == []


def test_nobody_but_main_imports_the_command_line() -> None:
    trees = modules(ROOT)
    importing = {
        module
        for module, tree in trees.items()
        for name in imported(ast.walk(tree), module, set(trees))
        if name.startswith("stylize.cli") and not module.startswith("stylize.cli")
    }
    assert importing <= {"stylize.__main__"}


def test_the_command_line_starts_without_torch() -> None:
    heavy = loads_torch(ROOT)
    assert {"stylize.norms", "stylize.generators.johnson", "stylize.images"} <= heavy
    assert [m for m in heavy if m.startswith(("stylize.cli", "stylize.__main__"))] == []


@pytest.mark.parametrize(
    ("file", "content", "violation"),
    (
        ("surprise.py", "", "stylize.surprise has no row"),
        ("training/new.py", "", "stylize.training.new has no row"),
        ("errors.py", "import stylize.vgg", "stylize.errors imports stylize.vgg"),
        ("vgg.py", "from stylize import losses", "stylize.vgg imports stylize.losses"),
        ("norms.py", "def f():\n    from stylize.images import a", "stylize.norms imports stylize.images"),
        ("build.py", "import stylize.cli.train", "stylize.build imports stylize.cli.train"),
        (
            "inference/a.py",
            "from stylize.training.data import a",
            "stylize.inference.a imports stylize.training.data",
        ),
    ),
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, content: str, violation: str) -> None:
    tree = write_tree(tmp_path, {"losses.py": "", file: content})
    assert violations(tree) == [violation]


def test_torch_behind_other_modules_is_found_but_not_inside_functions(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "errors.py": "import difflib",
        "norms.py": "from torch import nn",
        "generators/__init__.py": "from stylize.generators.base import a",
        "generators/base.py": "from stylize import norms",
        "cli/__init__.py": "from stylize.errors import pick",
        "cli/a.py": "from stylize.generators import a",
        "cli/b.py": "def b():\n    import torch",
        "cli/c.py": "if TYPE_CHECKING:\n    import torch",
    }
    heavy = {f"stylize.{name}" for name in ("norms", "generators", "generators.base", "cli.a")}
    assert loads_torch(write_tree(tmp_path, files)) == heavy
