"""A new task is a new folder: the example in CONTRIBUTING.md works from a folder and from a package."""

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path

from tests.tasks.runs import ROOT, python


def write_task(folder: Path, package: str, name: str) -> None:
    """Writes the toy task and its configuration as a package with this full name and task name."""
    _, *parts = re.split(r"^    # (\S+/\S+)\n", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    for path, text in zip(parts[::2], parts[1::2], strict=True):
        code = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[0]  # up to the next text line
        code = textwrap.dedent(code).replace("mmattn.tasks.toy", package).replace("toy", name)
        target = folder / path.removeprefix("tasks/").replace("toy", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(code)


def call(cwd: Path, words: str, *more: str, **environment: str) -> str:
    return python(*words.split(), *more, cwd=cwd, **environment).stdout


def checkout() -> str:
    """New or changed files in this checkout."""
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout


def test_folder_defines_a_task(tmp_path: Path) -> None:
    before = checkout()
    write_task(tmp_path / "own", "mmattn.tasks.toy", "toy")
    assert {path.stem for path in (tmp_path / "own" / "toy").iterdir()} == {
        "__init__", "data", "processor", "demo", "model", "module", "predict"
    }  # fmt: skip
    model = "--checkpoint runs/toy/model"
    commands = [  # in one process, since each start takes seconds
        "fit --config own/configs/toy.yaml --trainer.enable_progress_bar false",
        f"predict {model} --bits 01101 --output answer.json",
        f"explain {model} --input demo --output explanations",
    ]
    code = f"import sys, mmattn, pytest\nfrom mmattn.__main__ import main\nfor words in {commands}:\n"
    code += "    sys.argv = ['mmattn', 'toy', *words.split()]\n    main()\n"
    code += "assert pytest.main(['-q', '-p', 'no:cacheprovider', 'own/tests/tasks/test_toy.py']) == 0\n"
    code += "toy = mmattn.load('runs/toy/model')\nprint(toy('00100').label, toy.labels, toy.task)"
    shown = call(tmp_path, "-c", code, MMATTN_TASKS=str(tmp_path / "own"))
    assert json.loads((tmp_path / "runs" / "toy" / "metrics.json").read_text())["validation"]["accuracy"] > 0.9
    report = (tmp_path / "runs" / "toy" / "report.html").read_text()
    assert all(part in report for part in ("Worst mistakes", "data:image/jpeg", "<svg", "<h3>Label</h3>")), (
        "without a line"
    )
    found = json.loads((tmp_path / "answer.json").read_text())
    (tmp_path / "answer.json").unlink()
    assert (found["id"], found["label"]) == ("01101", "ones")
    assert len(list((tmp_path / "explanations").glob("*.png"))) == 5
    assert shown.endswith("zeros ['ones', 'zeros'] toy\n")
    assert {path.name for path in tmp_path.iterdir()} == {"own", "runs", "explanations"}
    assert checkout() == before


def test_installed_package_provides_a_task(tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_task(site, "majority", "majority")
    (site / "majority-1.0.dist-info").mkdir()
    (site / "majority-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: majority\nVersion: 1.0\n")
    entry = "[mmattn.tasks]\nmajority = majority:TASK\n"
    (site / "majority-1.0.dist-info" / "entry_points.txt").write_text(entry)
    where = {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    assert "usage: mmattn majority COMMAND" in call(tmp_path, "-m mmattn majority --help", **where)
    code = "from mmattn.tasks import tasks; task = tasks()['majority']; print(task.folder, task.resolve('module').task)"
    assert call(tmp_path, "-c", code, **where) == f"{site / 'majority'} majority\n"


def test_folder_without_a_task_raises(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "__init__.py").touch()
    error = python("-m", "mmattn", cwd=tmp_path, code=1, MMATTN_TASKS=str(tmp_path)).stderr
    assert "module 'mmattn.tasks.empty' has no attribute 'TASK'" in error
