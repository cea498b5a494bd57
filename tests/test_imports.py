"""Direction of the imports, read from the source; and the modules loaded by importing.

Every import counts, absolute or relative, in functions and for types only. Exceptions are the lazy forwards of
`mmattn/__init__.py`, and in other `__init__.py` the names for types that their lazy tables load.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from mmattn.tasks import tasks

ROOT = Path(__file__).resolve().parents[1]
LIGHTNING_HALF = {
    f"mmattn.tasks.common.{name}"
    for name in (
        "module",
        "datamodule",
        "schedule",
        "callbacks",
        "interrupts",
        "unfreezing",
        "trainer",
        "finish",
        "task_cli",
        "refit",
        "cli",
        "fit",
        "check",
    )
}
HEAVY = (
    "lightning",
    "torchmetrics",
    "torchvision",
    "torchaudio",
    "transformers",
    "timm",
    "matplotlib",
    "PIL",
    "pandas",
    "fastapi",
    "uvicorn",
    "prometheus_client",
)
OPTIONAL = {"lightning", "torchmetrics", "transformers"}  # never imported by core and data, not even in a function

LOWER = ("mmattn.data", "mmattn.tasks")  # packages on top of the core


def module_name(path: Path) -> str:
    """tasks/vqa/__init__.py is mmattn.tasks.vqa."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "mmattn" else ("mmattn", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for top in ("mmattn", "data", "tasks") for p in sorted((ROOT / top).rglob("*.py"))}
TASKS = [name for name in tasks() if f"mmattn.tasks.{name}" in MODULES]


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@cache
def imported(module: str) -> frozenset[str]:
    """The imports of a module: our modules, our packages only for names of their `__init__`; others by full name."""
    path, found = MODULES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name == "__init__.py":
        tree.body = [node for node in tree.body if not for_types(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [node.module])])
            found |= {full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return frozenset(found)


def circles(graph: Mapping[str, set[str]]) -> Iterator[str]:
    """Cycles of imports, each reported once."""
    graph = {module: set(others) for module, others in graph.items()}
    while True:
        try:
            return TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1][::-1]  # each imports the next
            graph[circle[0]].discard(circle[1])
            yield " imports ".join(circle)


def part(module: str) -> str:
    """The package of a module below mmattn, mmattn.data or mmattn.tasks; the module itself if in none."""
    parts = module.split(".")
    depth = 3 if parts[1:2] in (["data"], ["tasks"]) else 2
    return ".".join(parts[:depth])


def test_all_import_forms_are_found() -> None:
    assert "mmattn.masks" in imported("mmattn.cpu"), "a relative import"
    assert "mmattn.tasks.common.commands" in imported("mmattn.tasks.common.dispatch"), "an import in a function"
    assert "torch" in imported("mmattn.tasks.common.predictor"), "an import for types"
    assert imported("mmattn") & MODULES.keys() == set(), "not the lazy forwards"
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()})) == ["a imports b imports c imports a"]


def test_no_circular_module_imports() -> None:
    found = list(circles({module: imported(module) & MODULES.keys() - {module} for module in MODULES}))
    assert not found, "import cycles of modules:\n" + "\n".join(found)


def test_no_circular_package_imports() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        others = {part(other) for other in imported(module) & MODULES.keys()}
        graph.setdefault(part(module), set()).update(others - {part(module)})
    found = list(circles(graph))
    assert not found, "import cycles of packages:\n" + "\n".join(found)


def below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def allowed(module: str, other: str) -> bool:
    """Whether one of our modules may import another."""
    if module == "mmattn.__main__":
        return other == "mmattn" or below(other, "mmattn.tasks")
    if below(module, "mmattn.data"):
        return below(other, "mmattn.data")
    if not below(module, "mmattn.tasks"):
        return not below(other, "mmattn.data", "mmattn.tasks")
    return not below(other, "mmattn.tasks") or below(other, "mmattn.tasks.common", part(module))


@pytest.mark.parametrize("top", ["core", "data", "tasks"])
def test_imports_respect_the_layers(top: str) -> None:
    """The core imports neither data nor tasks, data no tasks, no task another, and shared task modules no task."""
    own = [m for m in MODULES if (below(m, f"mmattn.{top}") if top != "core" else not below(m, *LOWER))]
    wrong = [
        f"{module} imports {other}"
        for module in own
        for other in imported(module)
        if (other in MODULES and not allowed(module, other)) or (top != "tasks" and other.split(".")[0] in OPTIONAL)
    ]
    assert own
    assert not wrong, "\n".join(sorted(wrong))


def test_lightning_is_imported_only_for_training() -> None:
    """In module.py and common modules; elsewhere only dispatch imports it, for fit, validate and test."""
    half = LIGHTNING_HALF | {module for module in MODULES if module.endswith(".module")}
    wrong = [
        f"{module} imports {other}"
        for module in MODULES.keys() - half
        for other in imported(module)
        if other.split(".")[0] == "lightning" or (other in half and module != "mmattn.tasks.common.dispatch")
    ]
    assert not wrong, "\n".join(sorted(wrong))


def loaded(code: str, names: tuple[str, ...], *options: str) -> str:
    """The given modules that are loaded after the code, in a separate process."""
    code += f"\nimport sys; print(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_dispatch_needs_only_the_standard_library() -> None:
    """-S leaves site-packages out: an import of anything but the standard library would fail."""
    names = ["mmattn.__main__", "mmattn.tasks.common.dispatch", "tasks", *(f"tasks.{name}" for name in TASKS)]
    names += [module for module in MODULES if module.endswith(".__main__")]
    assert not loaded("import " + ", ".join(names), ("torch", "numpy"), "-S")


def test_models_and_predictors_import_nothing_heavy() -> None:
    parts = [(tasks()[name], part) for name in TASKS for part in ("model", "predictor")]
    names = {f"{task.package}.{getattr(task, part).partition(':')[0]}" for task, part in parts}
    assert not loaded("import " + ", ".join(sorted(names)), HEAVY)


def test_loading_a_model_imports_nothing_heavy() -> None:
    """Nor does the building on the meta device import torch's compiler."""
    models = [f"{name}/demo" for name in TASKS]
    names = tuple(name for name in HEAVY if name != "torchvision")
    assert not loaded(
        f"import mmattn\nfor name in {models}: mmattn.load(name, device='cpu')", (*names, "torch._dynamo")
    )


@pytest.mark.parametrize("package", ["mmattn", "mmattn.tasks", *(f"mmattn.tasks.{name}" for name in TASKS)])
def test_lazy_names_match_the_type_imports(package: str) -> None:
    """Type checkers and IDEs resolve the same names from the same modules as `__getattr__`."""
    tree = ast.parse(MODULES[package].read_text(encoding="utf-8"))
    found = {}
    for node in (node for block in tree.body if for_types(block) for node in block.body):
        assert isinstance(node, ast.ImportFrom)
        home = node.module or ""
        for alias in node.names:
            assert alias.name == alias.asname, f"a name is exported by `import {alias.name} as {alias.name}`"
            found[alias.name] = f"{package}.{home}" if node.level else home
    module = importlib.import_module(package)
    assert sorted(found) == sorted(module.__all__)
    for name, home in found.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name), name


def test_no_file_is_too_long() -> None:
    tops = ("mmattn", "data", "tasks", "scripts", "tests")
    lengths = {path: len(path.read_text().splitlines()) for top in tops for path in (ROOT / top).rglob("*.py")}
    assert not {str(path.relative_to(ROOT)): count for path, count in lengths.items() if count > 400}
