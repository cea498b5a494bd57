"""The README is correct: its commands exist, its code runs, its figures equal those of results.json."""

import re
import shlex
import wave
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmattn import load
from mmattn.tasks.common import hub, serve
from mmattn.tasks.common.dispatch import COMMANDS, MODEL_COMMANDS, model_parser
from mmattn.tasks.common.task import tasks
from mmattn.tasks.common.weights import TABLE
from scripts.results import read_results
from scripts.task_table import BEGIN, END, RESULTS, page, table
from tests.tasks.runs import ask

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "serving.md", *sorted(ROOT.glob("tasks/*/README.md"))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_exist(page: Path) -> None:
    """Each `python -m tasks.TASK ...` and `mmattn TASK ...`, in code or in running text."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(?:python -m tasks\.|(?<![\w./])(?<!from )mmattn )([a-z_]+(?: [^\n`#]*)?)", text)
    assert found
    for task, *words in map(shlex.split, found):
        if task == "weights":
            assert all(word in TABLE for word in words)
            continue
        if task == "models":
            assert set(words) <= {*tasks(), "--json"}
            continue
        if task in ("serve", "push"):
            {"serve": serve, "push": hub}[task].make_parser().parse_args(words or ["model", "hf:owner/name"])
            continue
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


ANSWERS: dict[str, Callable[[Any], Any]] = {  # what the code of a README's section on ONNX prints
    "asr": lambda model: model("speech.wav", ctc_weight=1.0, num_beams=1).text,
    "captioning": lambda model: model("photo.jpg", num_beams=1).caption,
    "classification": lambda model: model("photo.jpg").label,
    "detection": lambda model: sorted(
        (box.label, [round(side) for side in box.box_xyxy]) for box in model("photo.jpg").boxes
    ),
    "segmentation": lambda model: [model.labels[index] for index in np.unique(model("photo.jpg").labels)],
    "qa": lambda model: (
        model({"question": "Who keeps the goat?", "context": Path("context.txt").read_text()}, threshold=1000.0).answer
    ),
    "summarization": lambda model: model(Path("document.txt").read_text(), num_beams=1).summary,
    "text_classification": lambda model: model(Path("text.txt").read_text()).label,
    "text_generation": lambda model: model("the old cat that the", max_new_tokens=12).text.strip(),
    "video": lambda model: model("frames").label,
    "translation": lambda model: model("the old baker lifts a basket", num_beams=1).translation,
    "vqa": lambda model: model({"image": "photo.jpg", "question": "what colour is the circle?"}).answer,
}


def write_inputs(sample: Any) -> None:
    """Writes the files that the READMEs name, from a sample of the built-in data."""
    if hasattr(sample, "video"):
        Path("frames").mkdir()
        for number, frame in enumerate(sample.video):
            Image.fromarray(frame).save(f"frames/{number:02d}.png")
    elif isinstance(getattr(sample, "image", None), np.ndarray):
        Image.fromarray(sample.image).resize((96, 64)).save("photo.jpg")
    elif hasattr(sample, "audio"):
        samples, rate = sample.audio
        with wave.open("speech.wav", "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", "not compressed"))
            file.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())
    elif hasattr(sample, "text_pair"):
        Path("text.txt").write_text(sample.text)
    elif hasattr(sample, "origins") and hasattr(sample, "prompt"):
        return  # its prompt stands in the README
    elif hasattr(sample, "context"):
        Path("context.txt").write_text(sample.context)
    else:
        Path("document.txt").write_text(sample.source)


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task == "classification" else pytest.mark.slow) for task in tasks()]
)
def test_onnx_example_runs(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The section's command and code, in an empty folder, answer as the shipped model does."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "tasks" / task / "README.md").read_text(encoding="utf-8").split("## ONNX")[1].split("\n## ")[0]
    command, code = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, flags=re.MULTILINE)
    model = load(f"{task}/demo", device="cpu")
    write_inputs(model.demo_samples()[0])
    ask(*shlex.split(command)[3:], task=task)
    capsys.readouterr()
    exec(dedent(code), {})
    assert capsys.readouterr().out.strip() == str(ANSWERS[task](model))


@pytest.mark.parametrize(
    "task",
    ["asr", "captioning", "qa", "vqa", "classification", "segmentation", "detection", "text_classification", "video"],
)
def test_figures_match_results(task: str) -> None:
    """A row begins with its entry of results.json, and its value."""
    text = (ROOT / "tasks" / task / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (0\.\d+) \|", text.split("## Results")[1], flags=re.MULTILINE)
    assert rows
    results = read_results(task)
    for name, figure in rows:
        digits = len(figure.split(".")[1])
        entry = results[name.strip()]
        measured = entry["metrics"][entry.get("metric", tasks()[task].metric)]
        assert round(measured, digits) == pytest.approx(float(figure)), name


def test_kernel_table_matches_supported_features() -> None:
    from mmattn import KERNELS

    text = (ROOT / "mmattn" / "README.md").read_text(encoding="utf-8")
    features = ("self", "causal", "cross", "bias", "cache", "global")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    found = {row[0].strip("`"): {name for name, cell in zip(features, row[2:8], strict=True) if cell} for row in rows}
    assert found == {kind: set(kernel.supports) for kind, kernel in KERNELS.items()}
