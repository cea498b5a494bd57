"""Dispatch of `python -m tasks.vqa` and `mmattn vqa`: fast help, suggestions for typos, no duplicate classes."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.common.task import tasks
from tests.tasks.runs import python


@pytest.mark.parametrize("words", [[], ["--help"], ["fit", "--help"], ["predict", "--help"], ["test", "-h"]])
def test_help_needs_only_the_standard_library(words: list[str]) -> None:
    # -S leaves site-packages out: an import of anything but the standard library would fail.
    assert "usage: python -m tasks.vqa" in python("-S", "-m", "tasks.vqa", *words).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt"], "did you mean 'fit'?"),
        (["predict", "--imag", "x"], "did you mean --image?"),
        (["predict", "--batch_size", "0"], "expected a positive integer"),
        (["predict"], "expected --image and --question, or --input PATH"),
        (["predict", "--image", "none.png", "--question", "why?"], "none.png"),
        (["predict", "--input", "none.jsonl"], "none.jsonl"),
        (["predict", "--checkpoint", "nowhere", "--input", "demo"], "nowhere"),
        (["predict", "--device", "tpu", "--input", "demo"], "--device tpu"),
        (["fit", "--data.train", "demo", "--init_from", "deit-tiny"], "did you mean 'timm/deit_tiny_patch16_224'"),
        (["predict", "--checkpoint", "own/net", "--input", "demo"], "did you mean 'hf:own/net'?"),
        (["fit", "--model.embd_dim", "3"], "did you mean 'model.embed_dim'?"),
    ],
)
def test_mistakes_give_one_line_errors(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(tasks()["vqa"], words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["fit", "--data.train", "photos", "--trainer.default_root_dir", "run"], "--data.on_error skip"),
        (["fit", "--data.train", "lines.jsonl", "--trainer.default_root_dir", "run"], "--data.on_error skip"),
        (["fit", "--data.train", "none", "--trainer.default_root_dir", "run"], None),  # no item
        (["predict", "photos/cat"], "--on_error skip"),
        (["predict", "photos/cat/bad.png"], None),  # nothing would be left
    ],
)
def test_errors_of_an_item_say_how_to_go_on(
    words: list[str],
    remedy: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for n in range(4):
            Image.new("RGB", (8, 8), (n, 2 * n, 0)).save(tmp_path / "photos" / label / f"{n}.png")
    (tmp_path / "photos" / "cat" / "bad.png").write_bytes(b"")
    (tmp_path / "lines.jsonl").write_text('{"path": "photos/cat/0.png"}\n')
    with pytest.raises(SystemExit) as stopped:
        main(tasks()["classification"], words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert error.startswith("error: ")
    assert error.endswith(f"; {remedy} leaves it out and counts it") if remedy else "on_error" not in error


def test_both_entry_points_are_equivalent() -> None:
    ours, theirs = python("-m", "mmattn", "vqa", "--help").stdout, python("-m", "tasks.vqa", "--help").stdout
    assert ours.replace("mmattn vqa", "python -m tasks.vqa") == theirs
    assert f"tasks: {', '.join(tasks())}" in python("-m", "mmattn").stdout
    python("-m", "mmattn", "golf", code=2)


def test_foreign_modules_do_not_interfere(tmp_path: Path) -> None:
    for name in ("tasks.py", "data.py", "data/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('a product of its own')\n")
    assert len(python("-m", "mmattn", "vqa", "predict", "--input", "demo", cwd=tmp_path).stdout.splitlines()) > 1


@pytest.mark.parametrize("name", ["tasks.vqa.model", "tasks.common"])
def test_submodules_need_their_full_name(name: str) -> None:
    assert f"ModuleNotFoundError: {name}: write mmattn.{name}\n" in python("-c", f"import {name}", code=1).stderr


def test_classes_are_not_duplicated() -> None:
    code = "import mmattn, tasks, mmattn.tasks.vqa as full, tasks.vqa as short\n"
    code += "assert all(getattr(short, name) is getattr(full, name) for name in ('VQAHead', 'VQAModule', 'load'))\n"
    code += "assert mmattn.load is tasks.load\n"
    python("-c", code)


def test_predict_command_line(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    words = ["--image", "a.png", "--question", "what colour is the circle?", "--top_k", "3"]
    answer = json.loads(python("-m", "mmattn", "vqa", "predict", *words, cwd=tmp_path).stdout)
    assert answer["id"] == "a.png"
    assert isinstance(answer["answer"], str)
    assert 0 <= answer["score"] <= 1
    assert len(answer["alternatives"]) == 2
