"""The command `check`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmattn.tasks.common import check
from mmattn.tasks.common.dispatch import main
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.task import tasks
from tests.conftest import refused

SHOWN = {"asr": "seconds", "classification": "class", "segmentation": "in the mask", "vqa": "answer"}
SHOWN |= {"text_classification": "words of the text", "text_generation": "words of the text"}
SHOWN |= {"qa": "words of the question", "detection": "boxes", "captioning": "words of the caption", "video": "seconds"}


@pytest.mark.parametrize("task", tasks())
def test_every_task(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.run(tasks()[task], ["--data.train", "demo", "--data.demo_size", "4"])
    table = capsys.readouterr().out
    assert f"{SHOWN.get(task, 'words of the source')}: " in table
    assert "repeated items" in table


def test_problems_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for n in range(number):
                image = Image.fromarray(stream.integers(0, 255, (8 + n, 9, 3), np.uint8))
                image.save(tmp_path / split / label / f"{n}.png")
    train, val = tmp_path / "train", tmp_path / "val"
    task = tasks()["classification"]
    assert check.run(task, ["--data.train", str(train), "--data.val", str(val)])
    assert "auto: --data.batch_size 8, --trainer.max_epochs 240 (80 with --init_from)\n" in capsys.readouterr().out
    (train / "cat" / "bad.png").write_text("no image")
    shutil.copy(train / "cat" / "0.png", train / "dog" / "copy.png")
    shutil.copy(train / "cat" / "1.png", val / "cat" / "leak.png")
    with pytest.raises(SystemExit) as stop:
        main(task, ["check", str(train), str(val)])
    assert stop.value.code == 1
    found = capsys.readouterr().out
    assert f"bad items in {train}: 1\n  {train}/cat/bad.png: " in found
    conflict = f"{train}/dog/copy.png is {train}/cat/0.png, with the label 'dog' in place of 'cat'"
    assert f"repeated in {train}: 1\n  {conflict}" in found
    assert f"leaks, both in {train} and {val}: 1\n  {train}/cat/1.png is {val}/cat/leak.png" in found
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in found.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["class 'dog'"]] == ["5", "2"]
    assert [cell.strip() for cell in rows["height: min / median / max"]] == ["8 / 9 / 11", "8 / 9 / 9"]


def test_masks_that_cannot_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for n in range(4):
            Image.fromarray(np.resize(np.array([0, 255], np.uint8), (8, 9 + n))).save(tmp_path / part / f"{n}.png")
    task = tasks()["segmentation"]
    with pytest.raises(SystemExit) as stop:
        main(task, ["check", str(tmp_path)])
    assert stop.value.code == 2
    found = capsys.readouterr()
    assert "bad items" in found.out
    message = "expected masks of two or more classes, found class 0 only; 255 is void unless classes.txt has it"
    assert f"error: {tmp_path}: {message}" in found.err
    assert check.run(task, ["--data.val", str(tmp_path)])
    (tmp_path / "classes.txt").write_text("0 background\n255 object\n")
    assert check.run(task, [str(tmp_path)])


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tasks()["translation"]
    (tmp_path / "a.jsonl").write_text('{"fr": "un", "en": "one"}\n{"fr": "deux"}\n')
    (tmp_path / "a.yaml").write_text("data: {source_lang: fr, target_lang: en}\nmodel: {embed_dim: 3}\n")
    assert not check.run(task, [f"{tmp_path}/a.jsonl", "--config", f"{tmp_path}/a.yaml"])
    assert "line 2: expected the keys fr and en" in capsys.readouterr().out
    refused("expected the path of a data set", check.run, task, [], error=ConfigError)
    refused("did you mean 'data.train'", check.run, task, ["--data.tran", "x"], error=ConfigError)
