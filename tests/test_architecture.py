import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVERYTHING = {""}
TORCH = {"torch", "torchvision", "tensorboard"}

# A row a room; a file of a room may have one of its own.
MAY_IMPORT = {
    "stylize": {"errors", "interface", "inference.model", "version"},
    "stylize.__main__": {"cli"},
    "stylize.errors": set(),
    "stylize.version": set(),
    "stylize.system": {"errors", "system"},
    "stylize.ops": {"errors", "system", "ops"},
    "stylize.ops.gpu": set(),
    "stylize.ops.cpu": {
        "errors",
        "system",
        "ops.cpu",
        "ops.geometry",
        "ops.limits",
        "ops.moments",
        "ops.padding",
        "ops.rows",
    },
    "stylize.pictures": {"errors", "system", "pictures", "version"},
    "stylize.norms": {"errors", "ops", "system"},
    "stylize.generators": {"errors", "norms", "ops", "system", "generators"},
    "stylize.losses": {"errors", "system", "ops", "losses"},
    "stylize.measures": {"errors", "system", "pictures", "losses", "measures"},
    "stylize.models": {"errors", "generators", "system", "models", "version"},
    "stylize.training": {
        "errors",
        "system",
        "pictures",
        "losses",
        "measures",
        "norms",
        "generators",
        "models",
        "training",
    },
    "stylize.inference": {
        "errors",
        "system",
        "pictures",
        "norms",
        "generators",
        "models",
        "ops",
        "inference",
    },
    "stylize.inference.model": {
        "errors",
        "system",
        "pictures",
        "generators",
        "models",
        "inference",
        "refining",
    },
    "stylize.config": {"config_messages", "errors", "generators", "losses", "norms", "system", "training"},
    "stylize.config_messages": {"errors"},
    "stylize.build": {
        "errors",
        "system",
        "pictures",
        "losses",
        "norms",
        "generators",
        "measures",
        "models",
        "training",
        "config",
    },
    "stylize.suggest": {"build", "config", "errors", "system", "training"},
    "stylize.refining": {"errors", "losses", "models", "optimization", "pictures"},
    "stylize.resuming": {"config", "errors", "system"},
    "stylize.run": {"losses", "errors", "system", "training", "config", "build", "resuming"},
    "stylize.optimization": {"errors", "losses", "ops", "optimization"},
    "stylize.evaluation": {
        "errors",
        "system",
        "pictures",
        "losses",
        "norms",
        "ops",
        "generators",
        "models",
        "training",
        "inference",
        "config",
        "build",
        "measures",
        "optimization",
        "evaluation",
    },
    "stylize.studies": {
        "errors",
        "system",
        "pictures",
        "losses",
        "norms",
        "ops",
        "generators",
        "models",
        "training",
        "inference",
        "config",
        "build",
        "run",
        "resuming",
        "measures",
        "optimization",
        "evaluation",
        "studies",
    },
    "stylize.interface": {"errors", "models", "inference", "config", "run"},
    "stylize.cli": EVERYTHING,
}


def module_name(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def modules(root: Path) -> dict[str, ast.Module]:
    files = sorted((root / "stylize").rglob("*.py"))
    return {module_name(file, root): ast.parse(file.read_text("utf-8")) for file in files}


def row(module: str) -> str:
    """The most particular row there is for a module."""
    rooms = [room for room in with_parents(module) if room in MAY_IMPORT and room != "stylize"]
    return rooms[-1] if rooms else module


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


def circles(root: Path) -> list[str]:
    """Modules that import each other, however far around; a package stands for what its `__init__` imports."""
    trees = modules(root)
    direct = {module: set(imported(ast.walk(tree), module, set(trees))) & set(trees) for module, tree in trees.items()}
    found = []
    for module in direct:
        reached, ahead = set(), set(direct[module])
        while ahead:
            name = ahead.pop()
            reached.add(name)
            ahead |= direct[name] - reached
        if module in reached:
            found.append(module)
    return found


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


def test_no_modules_import_each_other() -> None:
    assert circles(ROOT) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    files = {"a.py": "import stylize.b", "b.py": "def f():\n    from stylize.c import d", "c.py": "import stylize.a"}
    assert circles(write_tree(tmp_path, files)) == ["stylize.a", "stylize.b", "stylize.c"]


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
    assert {"stylize.norms", "stylize.generators.johnson", "stylize.pictures.picture"} <= heavy
    assert [m for m in heavy if m.startswith(("stylize.cli", "stylize.__main__"))] == []


@pytest.mark.parametrize(
    ("file", "content", "violation"),
    (
        ("surprise.py", "", "stylize.surprise has no row"),
        ("errors.py", "import stylize.losses.vgg", "stylize.errors imports stylize.losses.vgg"),
        ("ops/a.py", "from stylize import losses", "stylize.ops.a imports stylize.losses"),
        (
            "norms.py",
            "def f():\n    from stylize.pictures.reading import a",
            "stylize.norms imports stylize.pictures.reading",
        ),
        ("build.py", "import stylize.cli.train", "stylize.build imports stylize.cli.train"),
        ("ops/cpu/a.py", "import stylize.ops.gram", "stylize.ops.cpu.a imports stylize.ops.gram"),
        (
            "inference/a.py",
            "from stylize.training.photographs import a",
            "stylize.inference.a imports stylize.training.photographs",
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


# These alone may ask which kind of device there is.
DEVICE_ROOMS = ("stylize/system/", "stylize/ops/dispatch.py")
DEVICE_WORDS = re.compile(r"device\.type|\.is_cuda\b|\.is_cpu\b|\.is_mps\b")


def device_words(root: Path) -> list[str]:
    files = sorted((root / "stylize").rglob("*.py"))
    names = [file for file in files if not str(file.relative_to(root)).startswith(DEVICE_ROOMS)]
    return [
        f"{file.relative_to(root)}:{number}"
        for file in names
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if DEVICE_WORDS.search(line)
    ]


def test_only_system_and_dispatch_ask_for_the_kind_of_a_device() -> None:
    assert device_words(ROOT) == []


def test_a_question_for_the_kind_of_a_device_is_found(tmp_path: Path) -> None:
    write_tree(tmp_path, {"norms.py": "x = 1\nif x.device.type == 'cpu':\n    pass", "system/a.py": "device.type"})
    assert device_words(tmp_path) == ["stylize/norms.py:2"]
