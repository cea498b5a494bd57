"""The README says what is so: its commands exist, its code runs, its figures are those of results.json."""

import re
import shlex
from pathlib import Path

import pytest

from mmattn.tasks import TASKS
from mmattn.tasks.common.dispatch import COMMANDS, MODEL_COMMANDS, TRAINER_COMMANDS, model_parser
from mmattn.tasks.common.results import read_results

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "tasks" / task / "README.md" for task in TASKS)]


def commands(page: Path) -> list[str]:
    """Each `python -m tasks...` command, in code or in running text."""
    return re.findall(r"python -m tasks\.[^\n`#]*", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_exist(page: Path) -> None:
    import importlib

    found = [shlex.split(command) for command in commands(page)]
    assert found
    for words in found:
        task = words[2].removeprefix("tasks.")
        if task in TASKS and len(words) == 3:
            continue  # named in passing
        assert task in TASKS
        assert words[3] in COMMANDS
        if words[3] in MODEL_COMMANDS:
            inputs = importlib.import_module(f"tasks.{task}.__main__").INPUTS
            model_parser(task, words[3], inputs).parse_args(words[4:])
        else:
            assert words[3] in TRAINER_COMMANDS
            for option in words[4:]:
                if option.endswith(".yaml"):
                    assert (ROOT / option).exists(), option


def test_linked_files_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), target


def test_code_of_the_head_and_the_kernel_runs() -> None:
    import torch

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n)+", text, flags=re.MULTILINE)
    code = [b for b in blocks if "import VQAHead" in b or "import MultiHeadAttention" in b]
    assert len(code) == 2
    names: dict = {}
    for block in code:
        exec("\n".join(line[4:] for line in block.splitlines()), names)
    assert names["head"](torch.randn(2, 49, 768), torch.randn(2, 7, 384)).shape == (2, 100)
    assert names["attention"](torch.randn(1, 300, 256)).shape == (1, 300, 256)


MEASURED = {"asr": "wer", "vqa": "accuracy", "classification": "top1", "segmentation": "miou"}


@pytest.mark.parametrize("task", MEASURED)
def test_figures_are_the_measured_ones(task: str) -> None:
    """A row begins with the entry of results.json that it comes from, and its figure."""
    text = (ROOT / "tasks" / task / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (0\.\d+) \|", text.split("## Measured")[1], flags=re.MULTILINE)
    assert rows
    results = read_results(task)
    for name, figure in rows:
        digits = len(figure.split(".")[1])
        assert round(results[name.strip()]["metrics"][MEASURED[task]], digits) == pytest.approx(float(figure)), name


def test_the_table_of_kernels_is_what_they_support() -> None:
    from mmattn import KERNELS

    text = (ROOT / "mmattn" / "README.md").read_text(encoding="utf-8")
    features = ("self", "causal", "cross", "bias", "cache", "global")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    said = {row[0].strip("`"): {name for name, cell in zip(features, row[2:8], strict=True) if cell} for row in rows}
    assert said == {kind: set(kernel.supports) for kind, kernel in KERNELS.items()}
