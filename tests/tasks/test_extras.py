"""A missing package ends every command in the one line that installs it, before any work."""

import json
import re
import tomllib

import pytest

from mmattn.data.text import pretrained
from mmattn.tasks.common.dispatch import MODEL_COMMANDS, TRAINER_COMMANDS, TRAINING, main
from mmattn.tasks.common.errors import EXTRAS, missing_package
from mmattn.tasks.common.task import tasks
from tests.conftest import refused
from tests.tasks.runs import ROOT, python

# Commands with the modules without which they end.
NEEDS = [("vqa", command, name) for command in TRAINER_COMMANDS for name in TRAINING]
NEEDS += [(task.name, "test", name) for task in tasks().values() for name in task.packages]
NEEDS += [("vqa", "explain", "matplotlib"), ("vqa", "export", "onnx"), ("vqa", "export", "onnxruntime")]
NEEDS += [("vqa", "serve", "fastapi"), ("asr", "serve", "prometheus_client")]


def test_extras_are_those_of_pyproject() -> None:
    written = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        found = {re.split(r"[>=\[]", requirement)[0] for requirement in written[extra]}
        assert found == {module.replace("_", "-") for module in modules.split()}, extra


@pytest.mark.parametrize(("task", "command", "module"), NEEDS)
def test_missing_module(
    task: str, command: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    words = ["--data.train", "demo"] if command in TRAINER_COMMANDS else []
    with pytest.raises(SystemExit):
        main(tasks()[task], [command, *words, *(["demo"] if command == "explain" else [])])
    extra = next(extra for extra, modules in EXTRAS.items() if module in modules.split())
    assert capsys.readouterr().err == f"error: the package {module} is not installed: pip install 'mmattn[{extra}]'.\n"


def test_missing_modules_of_single_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    refused(r"the package sentencepiece: pip install 'mmattn\[train\]'", pretrained._sentencepiece, b"")
    board = ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available. Try `pip install`ing either.")
    assert missing_package(board) == "the package tensorboard is not installed: pip install 'mmattn[train]'."
    assert missing_package(ModuleNotFoundError("No module named 'PIL.Image'")).endswith("pip install 'pillow'.")


def test_light_base_predicts() -> None:
    """Without any extra `predict` works in a new process, and every other command names what it needs."""
    hidden = [module for modules in EXTRAS.values() for module in modules.split()]
    code = (
        "import json, sys\n"
        f"sys.modules.update(dict.fromkeys({hidden}))\n"
        "from mmattn.tasks.common.dispatch import main\nfrom mmattn.tasks.common.task import tasks\n"
        f"for command in {[*TRAINER_COMMANDS, *MODEL_COMMANDS]}:\n"
        "    try:\n"
        "        main(tasks()['vqa'], [command, *(['demo', '--limit', '1'] if command in ('predict', 'explain') else"
        " ['--data.train', 'demo'] if command == 'fit' else [])])\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 2, command\n"
    )
    done = python("-c", code, HF_HUB_OFFLINE="1")
    assert json.loads(done.stdout)["answer"]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(TRAINER_COMMANDS) + len(MODEL_COMMANDS) - 1
    assert all("pip install 'mmattn[" in line for line in errors)
