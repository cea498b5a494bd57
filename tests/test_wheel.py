"""A wheel, unpacked outside the repository, predicts offline from any working directory."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel in a folder, as installed by pip."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, since building writes into the source folder
    for name in ("mmattn", "tasks", "data", "scripts"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    words = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder), str(source)]
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_wheel_works_with_foreign_modules_of_common_names(installed: Path, tmp_path: Path) -> None:
    for name in ("tasks.py", "data.py", "data/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('a product of its own')\n")
    code = (
        "from mmattn import load\nfrom mmattn.tasks.vqa import VQAHead\nimport mmattn.data\n"
        f"assert mmattn.data.__file__.startswith({str(installed)!r}), mmattn.data.__file__\n"
        "VQAHead(16, 5)\n"
        "predictor = load('vqa/demo')\n"
        "print(predictor(predictor.demo_samples()[0]).answer)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    for words in (["-c", code], ["-m", "mmattn", "vqa", "predict", "--input", "demo"]):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_wheel_contents(installed: Path) -> None:
    assert [path.name for path in installed.iterdir() if path.suffix != ".dist-info"] == ["mmattn"]
    held = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    page = (path for path in ROOT.glob("tasks/common/serving/*.*") if path.suffix in (".html", ".css", ".js"))
    wanted = {"mmattn/py.typed", *(f"mmattn/{path.relative_to(ROOT)}" for path in page)}
    for source, target in (("mmattn", "mmattn"), ("tasks", "mmattn/tasks"), ("data", "mmattn/data")):
        files = (path for path in (ROOT / source).rglob("*.py") if (path.parent / "__init__.py").exists())
        wanted |= {f"{target}/{path.relative_to(ROOT / source)}" for path in files}  # an unfinished task is no package
    patterns = ("checkpoints/*/*.*", "checkpoints/*/processor/*", "results.json", "README.md")
    wanted |= {f"mmattn/{path.relative_to(ROOT)}" for p in patterns for path in ROOT.glob(f"tasks/*/{p}")}
    assert wanted <= held
    rest = {name for name in held - wanted if ".dist-info/" not in name}
    assert rest <= {"mmattn/README.md"}, "no scripts, tests or images"
