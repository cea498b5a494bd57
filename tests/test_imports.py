"""Which way the arrows point, read from the source; and that models and predictors load nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mmattn.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
LIGHTNING_HALF = {"module.py", "seq2seq_module.py", "datamodule.py", "cli.py", "callbacks.py"}


def imported(path: Path) -> set[str]:
    """The absolute module names that a file imports, inside functions too."""
    names: set[str] = set()
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                (*package[: len(package) + 1 - node.level], node.module or "") if node.level else [node.module or ""]
            )
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", files("mmattn"), ids=str)
def test_core_knows_neither_data_nor_tasks(path: Path) -> None:
    assert not tops(imported(path)) & {"data", "tasks", "lightning", "torchmetrics", "transformers"}


@pytest.mark.parametrize("path", files("data"), ids=str)
def test_data_knows_neither_core_nor_tasks(path: Path) -> None:
    assert not tops(imported(path)) & {"mmattn", "tasks", "lightning", "torchmetrics", "transformers"}


@pytest.mark.parametrize("path", files("tasks"), ids=str)
def test_lightning_stays_in_its_half(path: Path) -> None:
    names = imported(path)
    if path.name not in LIGHTNING_HALF:
        assert not tops(names) & {"lightning"}
        # cli.py is imported by dispatch alone, for fit, validate and test
        reached = {
            name for name in names if name.startswith("tasks.common.") and name.split(".")[2] + ".py" in LIGHTNING_HALF
        }
        assert not reached or path.name == "dispatch.py"
    own = path.relative_to(ROOT / "tasks").parts[0]
    others = {f"tasks.{task}" for task in TASKS if task != own}
    assert not others & {".".join(name.split(".")[:2]) for name in names}, "one task imports another"


def test_dispatch_needs_the_standard_library_alone() -> None:
    mains = [f"tasks/{task}/__main__.py" for task in TASKS]
    for name in ("tasks/common/dispatch.py", *mains, "mmattn/__main__.py", "tasks/__init__.py"):
        allowed = sys.stdlib_module_names | {"tasks"}
        assert tops(imported(ROOT / name)) <= allowed, name


@pytest.mark.parametrize("names", [[f"tasks.{task}.{part}" for task in TASKS for part in ("model", "predict")]])
def test_models_and_predictors_load_nothing_heavy(names: list[str]) -> None:
    heavy = (
        "lightning",
        "torchvision",
        "torchaudio",
        "transformers",
        "matplotlib",
        "torchmetrics",
        "timm",
        "PIL",
        "pandas",
    )
    code = f"import sys, {', '.join(names)}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_a_task_package_imports_nothing() -> None:
    code = "import sys, tasks.vqa, mmattn; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_long() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for d in ("mmattn", "tasks", "data")
        for p in files(d)
        if (n := len(p.read_text().splitlines())) > 420
    }
    assert not long
