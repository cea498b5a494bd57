"""Which way the arrows point, read from the source; and what importing loads.

Every import counts, absolute or relative, in functions and for types alone. Aside are the lazy forwards of
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
LIGHTNING_HALF = {f"mmattn.tasks.common.{name}" for name in ("module", "datamodule", "callbacks", "cli")}
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
)
OPTIONAL = {"lightning", "torchmetrics", "transformers"}  # what core and data never import, not even in a function

LOWER = ("mmattn.data", "mmattn.tasks")  # what stands on the core


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
    """What a module imports: of ours a module, a package only for a name of its `__init__`; of others the full name."""
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
    """Circles of imports, each once its last arrow is taken out; none where there are none."""
    graph = {module: set(others) for module, others in graph.items()}
    while True:
        try:
            return TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1][::-1]  # each imports the next
            graph[circle[0]].discard(circle[1])
            yield " imports ".join(circle)


def part(module: str) -> str:
    """The package that a module is in, below mmattn, mmattn.data or mmattn.tasks; the module itself where in none."""
    parts = module.split(".")
    depth = 3 if parts[1:2] in (["data"], ["tasks"]) else 2
    return ".".join(parts[:depth])


def test_what_counts_as_an_import() -> None:
    assert "mmattn.masks" in imported("mmattn.cpu"), "a relative one"
    assert "mmattn.tasks.common.commands" in imported("mmattn.tasks.common.dispatch"), "one in a function"
    assert "torch" in imported("mmattn.tasks.common.predictor"), "one for types"
    assert imported("mmattn") & MODULES.keys() == set(), "but not the lazy forwards"
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()})) == ["a imports b imports c imports a"]


def test_no_module_is_in_a_circle() -> None:
    found = list(circles({module: imported(module) & MODULES.keys() - {module} for module in MODULES}))
    assert not found, "circles of imports:\n" + "\n".join(found)


def test_no_package_is_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        others = {part(other) for other in imported(module) & MODULES.keys()}
        graph.setdefault(part(module), set()).update(others - {part(module)})
    found = list(circles(graph))
    assert not found, "circles of packages:\n" + "\n".join(found)


def below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def allowed(module: str, other: str) -> bool:
    """Whether a module of ours may import another of ours."""
    if module == "mmattn.__main__":
        return other == "mmattn" or below(other, "mmattn.tasks")
    if below(module, "mmattn.data"):
        return below(other, "mmattn.data")
    if not below(module, "mmattn.tasks"):
        return not below(other, "mmattn.data", "mmattn.tasks")
    return not below(other, "mmattn.tasks") or below(other, "mmattn.tasks.common", part(module))


@pytest.mark.parametrize("top", ["core", "data", "tasks"])
def test_arrows_point_one_way(top: str) -> None:
    """The core knows neither data nor tasks, data knows neither, no task another, and what tasks share knows none."""
    own = [m for m in MODULES if (below(m, f"mmattn.{top}") if top != "core" else not below(m, *LOWER))]
    wrong = [
        f"{module} imports {other}"
        for module in own
        for other in imported(module)
        if (other in MODULES and not allowed(module, other)) or (top != "tasks" and other.split(".")[0] in OPTIONAL)
    ]
    assert own
    assert not wrong, "\n".join(sorted(wrong))


def test_lightning_stays_in_its_half() -> None:
    """In module.py and what is common to them; from elsewhere only dispatch reaches it, for fit, validate and test."""
    half = LIGHTNING_HALF | {module for module in MODULES if module.endswith(".module")}
    wrong = [
        f"{module} imports {other}"
        for module in MODULES.keys() - half
        for other in imported(module)
        if other.split(".")[0] == "lightning" or (other in half and module != "mmattn.tasks.common.dispatch")
    ]
    assert not wrong, "\n".join(sorted(wrong))


def loaded(code: str, names: tuple[str, ...], *options: str) -> str:
    """Which of the modules named are there after the code, in a process of its own."""
    code += f"\nimport sys; print(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_dispatch_and_the_descriptions_need_the_standard_library_alone() -> None:
    """-S leaves site-packages out: an import of anything but the standard library would fail."""
    names = ["mmattn.__main__", "mmattn.tasks.common.dispatch", "tasks", *(f"tasks.{name}" for name in TASKS)]
    names += [module for module in MODULES if module.endswith(".__main__")]
    assert not loaded("import " + ", ".join(names), ("torch", "numpy"), "-S")


def test_models_and_predictors_load_nothing_heavy() -> None:
    parts = [(tasks()[name], part) for name in TASKS for part in ("model", "predictor")]
    names = {f"{task.package}.{getattr(task, part).partition(':')[0]}" for task, part in parts}
    assert not loaded("import " + ", ".join(sorted(names)), HEAVY)


@pytest.mark.parametrize("package", ["mmattn", "mmattn.tasks", *(f"mmattn.tasks.{name}" for name in TASKS)])
def test_lazy_names_are_those_for_types(package: str) -> None:
    """What a type checker and an IDE resolve is what `__getattr__` loads, from the same module."""
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


def test_no_file_is_long() -> None:
    tops = ("mmattn", "data", "tasks", "scripts", "tests")
    lengths = {path: len(path.read_text().splitlines()) for top in tops for path in (ROOT / top).rglob("*.py")}
    assert not {str(path.relative_to(ROOT)): count for path, count in lengths.items() if count > 400}
