"""What `python -m tasks.vqa` meets first: fast help, nearest names, and modules of the user's that hide ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def call(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-m", *words], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("words", [[], ["--help"], ["fit", "--help"], ["predict", "--help"], ["test", "-h"]])
def test_help_needs_no_library(words: list[str]) -> None:
    # -S leaves site-packages out: an import of anything but the standard library would fail.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tasks.vqa", *words],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: python -m tasks.vqa" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt"], "did you mean 'fit'?"),
        (["predict", "--imag", "x"], "did you mean --image?"),
        (["predict", "--batch_size", "0"], "expected a whole number from 1"),
        (["predict"], "expected --image and --question, or --input PATH"),
        (["predict", "--image", "none.png", "--question", "why?"], "none.png"),
        (["predict", "--input", "none.jsonl"], "none.jsonl"),
        (["predict", "--checkpoint", "nowhere", "--input", "demo"], "nowhere"),
        (["predict", "--device", "tpu", "--input", "demo"], "--device tpu"),
        (["fit", "--model.embd_dim", "3"], "did you mean 'model.embed_dim'?"),
    ],
)
def test_mistakes_end_in_one_clear_line(words: list[str], message: str, tmp_path: Path) -> None:
    done = call("tasks.vqa", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "entry"), [("data", "tasks.vqa"), ("data", "mmattn"), ("tasks", "mmattn")])
def test_a_module_that_hides_ours_is_named(name: str, entry: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("x = 1\n")
    words = ["predict"] if entry == "tasks.vqa" else ["vqa", "predict"]
    done = call(entry, *words, cwd=tmp_path)
    assert done.returncode != 0
    assert f"the name '{name}' is taken" in done.stderr
    assert str(tmp_path / f"{name}.py") in done.stderr


def test_the_other_door_leads_to_the_same_room() -> None:
    assert call("mmattn", "vqa", "--help").stdout == call("tasks.vqa", "--help").stdout
    assert "tasks: vqa" in call("mmattn").stdout
    assert call("mmattn", "golf").returncode == 2


def test_predict_from_the_command_line(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    done = call(
        "tasks.vqa",
        "predict",
        "--image",
        "a.png",
        "--question",
        "what colour is the circle?",
        "--top_k",
        "3",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["id"] == "a.png"
    assert isinstance(answer["answer"], str)
    assert 0 <= answer["score"] <= 1
    assert len(answer["alternatives"]) == 2


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m tasks.vqa predict --input demo | head -c 10",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
