"""The README is correct: its commands exist, its code runs, its figures equal those of results.json."""

import re
import shlex
from pathlib import Path

import pytest

from mmattn.tasks.common.dispatch import COMMANDS, MODEL_COMMANDS, model_parser
from mmattn.tasks.common.task import tasks
from scripts.results import read_results
from scripts.task_table import BEGIN, END, RESULTS, page, table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("tasks/*/README.md"))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_exist(page: Path) -> None:
    """Each `python -m tasks.TASK ...` and `mmattn TASK ...`, in code or in running text."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(?:python -m tasks\.|(?<![\w./])(?<!from )mmattn )([a-z_]+(?: [^\n`#]*)?)", text)
    assert found
    for task, *words in map(shlex.split, found):
        assert task in tasks()
        if not words:
            continue  # mentioned without arguments
        assert words[0] in COMMANDS
        if words[0] in MODEL_COMMANDS:
            model_parser(tasks()[task], words[0]).parse_args(words[1:])
        for option in words[1:]:
            assert not option.endswith(".yaml") or (ROOT / option).exists(), option


def test_task_table_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == table(), "python scripts/task_table.py --write"
    assert RESULTS.read_text(encoding="utf-8") == page(), "python scripts/task_table.py --write"


def test_linked_files_exist() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert target.startswith("http") or (path.parent / target).exists(), target


def test_head_and_kernel_examples_run() -> None:
    import torch

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n)+", text, flags=re.MULTILINE)
    code = [b for b in blocks if "import VQAHead" in b or "import MultiHeadAttention" in b]
    assert code
    names: dict = {}
    for block in code:
        exec("\n".join(line[4:] for line in block.splitlines()), names)
    assert names["head"](torch.randn(2, 49, 768), torch.randn(2, 7, 384)).shape == (2, 100)
    assert names["attention"](torch.randn(1, 300, 256)).shape == (1, 300, 256)


@pytest.mark.parametrize("task", ["asr", "vqa", "classification", "segmentation"])
def test_figures_match_results(task: str) -> None:
    """A row begins with its entry of results.json, and its value."""
    text = (ROOT / "tasks" / task / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (0\.\d+) \|", text.split("## Results")[1], flags=re.MULTILINE)
    assert rows
    results = read_results(task)
    for name, figure in rows:
        digits = len(figure.split(".")[1])
        measured = results[name.strip()]["metrics"][tasks()[task].metric]
        assert round(measured, digits) == pytest.approx(float(figure)), name


def test_kernel_table_matches_supported_features() -> None:
    from mmattn import KERNELS

    text = (ROOT / "mmattn" / "README.md").read_text(encoding="utf-8")
    features = ("self", "causal", "cross", "bias", "cache", "global")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    found = {row[0].strip("`"): {name for name, cell in zip(features, row[2:8], strict=True) if cell} for row in rows}
    assert found == {kind: set(kernel.supports) for kind, kernel in KERNELS.items()}
