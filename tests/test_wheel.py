"""A wheel, installed outside the repository, answers offline with the shipped checkpoint."""

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
    """The wheel's content in a folder, as pip lays it out."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, since building writes beside the sources
    for name in ("mmattn", "tasks", "data"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
        str(source),
    ]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_load_and_predict_work_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "import tasks, tasks.vqa, mmattn, data.demo.vqa as demo\n"
        f"assert mmattn.tasks.__file__.startswith({str(installed)!r}), mmattn.tasks.__file__\n"
        "sample = demo.make('test', size=1)[0]\n"
        "print(mmattn.tasks.vqa.load().predict([{'image': sample.image, 'question': sample.question}])[0].answer)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_wheel_holds_what_it_should(installed: Path) -> None:
    tops = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")}
    assert tops == {"mmattn", "tasks", "data"}
    assert (installed / "tasks" / "vqa" / "checkpoints" / "demo" / "model.safetensors").stat().st_size <= 5_000_000
    packages = {p.parent.relative_to(ROOT) for top in tops for p in (ROOT / top).rglob("__init__.py")}
    assert all((installed / package / "__init__.py").is_file() for package in packages), (
        "a package is missing in pyproject.toml"
    )
