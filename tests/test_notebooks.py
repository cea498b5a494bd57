"""The notebooks run from `fit` to `serve`, in an empty folder and without a network, and their models have learned."""

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("fastapi")

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LEAST = {"image": ("top1", 0.8), "text": ("accuracy", 0.9), "speech": ("wer", 0.3), "multimodal": ("accuracy", 0.8)}


def outputs(cell: Any) -> str:
    """The text of a cell's outputs, and the kinds of the others."""
    found = [one.get("text", "") + " ".join(one.get("data", ())) for one in cell.get("outputs", ())]
    return "".join(found) + "".join(one.get("data", {}).get("text/plain", "") for one in cell.get("outputs", ()))


def test_there_are_four() -> None:
    assert {path.stem for path in NOTEBOOKS} == LEAST.keys()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # an error in a cell is raised
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 8, "short"
    metric, least = LEAST[path.stem]
    (found,) = {float(one) for cell in code for one in re.findall(rf"'{metric}': ([\d.]+)", outputs(cell))[:1]}
    assert found <= least if metric == "wer" else found >= least
    text = "".join(outputs(cell) for cell in code)
    assert "http://127.0.0.1:" in text
    assert "image/png" in text or "text/html" in text
    assert "'answer'" in text or "'word'" in text
