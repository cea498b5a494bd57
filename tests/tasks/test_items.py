"""The items of the command line: paths and texts without an option's name, --input, --limit."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.tasks.common.sources import find_model
from mmattn.tasks.common.task import tasks
from tests.conftest import refused
from tests.tasks.runs import ask, lines

SENTENCES = ["the old baker lifts a basket", "a dog sees the cat"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos in the working directory: a.jpg, and b.png in two folders."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "one/b.png", "two/deep/b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (70, 64), "red").save(name)


def answers(task: str, *words: str) -> list[Any]:
    ask("predict", *words, "--output", "answers.jsonl", task=task)
    return lines(Path("answers.jsonl"))


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_paths(task: str, photos: None) -> None:
    assert [row["id"] for row in answers(task, "a.jpg")] == ["a.jpg"]
    found = answers(task, "a.jpg", "--batch_size", "2", "one/", "two", "two/deep/b.png")
    assert [row["id"] for row in found] == ["a.jpg", "one/b.png", "two/deep/b.png", "two/deep/b.png"]
    assert [row["id"] for row in answers(task, "one", "two", "--limit", "1")] == ["one/b.png"]
    assert [row["id"] for row in answers(task, "--input", "a.jpg")] == ["a.jpg"]
    assert len(answers(task, "demo", "--limit", "2")) == 2


def test_questions_about_paths(photos: None) -> None:
    found = answers("vqa", "a.jpg", "is it red?", "one", "how many things are there?")
    asked = [(row["id"], row["question"]) for row in found]
    questions = ("is it red?", "how many things are there?")
    assert asked == [(name, question) for name in ("a.jpg", "one/b.png") for question in questions]
    assert len(answers("vqa", "a.jpg", "--question", "is it red?")) == 1


@pytest.mark.parametrize("task", ["translation", "summarization"])
def test_texts(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("more.txt").write_text(SENTENCES[0])
    ask("predict", *SENTENCES, "more.txt", "--limit", "3", task=task)
    found = capsys.readouterr().out.splitlines()
    assert len(found) == 3
    if task == "summarization":
        assert [json.loads(line)["id"] for line in found] == ["1", "2", "more.txt"]
    else:
        assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("vqa", ["a.jpg"], "a.jpg: expected images and --question, found no question"),
        ("vqa", ["is it red?"], "expected a path and a question, found only a question"),
        ("vqa", ["--image", "a.jpg", "one", "is it red?"], "or paths alone, found two of them"),
        ("classification", ["b.jpg"], "b.jpg: expected a file or folder, found no such file"),
        ("classification", ["--input", "one", "two"], "or paths alone, found two of them"),
        (
            "translation",
            ["a.txt"],
            "a.txt: expected a file or folder; a text that looks like a path is given by --text",
        ),
        ("translation", ["a/hello"], "a/hello: expected a file or folder"),
    ],
)
def test_wrong_items(task: str, words: list[str], message: str, photos: None) -> None:
    refused(message, ask, "predict", *words, task=task, error=DataError)


def test_a_single_word_is_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Where items are texts; what looks like a path must be one."""
    ask("predict", "hello", "3.5", task="translation")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_explain_takes_paths_and_a_limit(photos: None) -> None:
    ask("explain", "a.jpg", "one", "two", "--limit", "2", "--output", "maps", task="classification")
    assert len(list(Path("maps").iterdir())) == 2


@pytest.mark.parametrize("task", tasks().values(), ids=tasks())
def test_default_model_is_named(
    task: Any, photos: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr, with what it knows; a model that is given is not."""
    demo, default = (f"{task.name}/{name}" for name in ("demo", task.default_checkpoint))
    about = find_model(default).config.get("about")
    ask("predict", "demo", "--limit", "1", task=task.name)
    knows = f"{demo}, which knows the built-in data alone ({task.metric}"
    assert f"no --checkpoint: the model is {knows}" in capsys.readouterr().err
    ask("export", "--format", "torch", "--output", "exported", task=task.name)
    knows = f"was trained on {about['data']} ({about['licence']};" if about else "knows the built-in data alone ("
    assert f"no --checkpoint: the model is {default}, which {knows}" in capsys.readouterr().err
    ask("predict", "demo", "--limit", "1", "--checkpoint", demo, task=task.name)
    assert "no --checkpoint" not in capsys.readouterr().err
