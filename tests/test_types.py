"""mypy follows the symbolic links: a type error across packages is found in any package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".mypy_cache"  # as in `make lint`; without it mypy reads all of torch, which takes minutes
pytestmark = [] if CACHE.is_dir() else pytest.mark.slow
PLANTED = {
    "tasks/vqa/planted.py": ("mmattn.attention", "MultiHeadAttention", '"256", 8', "int"),
    "tasks/common/planted.py": ("mmattn.data.errors", "shorten", '3, limit="80"', "int"),
    "data/planted.py": ("mmattn.data.errors", "DataError", "7", "str"),
    "mmattn/planted.py": ("mmattn.masks", "same_size", '"1", 2', "int"),
}


def test_type_errors_across_packages_are_found(tmp_path: Path) -> None:
    for name in ("mmattn", "tasks", "data"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if CACHE.is_dir():
        shutil.copytree(CACHE, tmp_path / CACHE.name)
    for file, (module, name, arguments, _) in PLANTED.items():
        (tmp_path / file).write_text(f"from {module} import {name}\n\n{name}({arguments})\n")
    words = [sys.executable, "-m", "mypy", "-p", "mmattn", "--cache-dir", str(tmp_path / CACHE.name)]
    found = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
    for file, (_, name, _, expected) in PLANTED.items():
        place = f"{file if file.startswith('mmattn') else f'mmattn/{file}'}:3: error: Argument"
        assert any(line.startswith(place) and f'to "{name}"' in line and expected in line for line in found), found
