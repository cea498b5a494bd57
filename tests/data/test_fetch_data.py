"""Fetching against a server on loopback: the whole data set arrives, or one clear error and nothing is left behind."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmattn.tasks.vqa.data import VQADataset
from scripts.fetch.archive import Archive, FetchError, Source, digest, fetch, sources, validation
from tests.conftest import refused
from tests.data.fetching import archive, get, measured_on, nothing_left, png, run, serve


def convert(source: Archive, folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "words.txt").write_text(source.text(r"data/words\.txt"))
    for name, content in source.files(r"data/images/\d+\.png"):
        (folder / "images" / Path(name).name).write_bytes(content)


FILES = {"data/words.txt": b"red blue", "data/images/1.png": b"one", "data/images/2.png": b"two", "other.txt": b"no"}
TOY = Source(
    name="toy",
    repository="someone/toy",
    commit="0123456789",
    licence="MIT",
    megabytes=1,
    convert=convert,
    sha256={
        "words.txt": hashlib.sha256(b"red blue").hexdigest(),
        "images/": hashlib.sha256(b"1.png\n2.png").hexdigest(),
    },
)
ADDRESS = "/someone/toy/tar.gz/0123456789"


def test_fetch(tmp_path: Path) -> None:
    out, lines = tmp_path / "new" / "data", []
    with serve({ADDRESS: archive(FILES)}) as url:
        folder = fetch(TOY, out, url, report=lines.append)
    assert folder == out / "toy"
    assert [path.name for path in out.iterdir()] == ["toy"]
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCE.json", "images", "words.txt"]
    assert (folder / "images" / "2.png").read_bytes() == b"two"
    note = json.loads((folder / "SOURCE.json").read_text())
    assert note["commit"] == "0123456789"
    assert note["as_expected"] is True
    assert any("licence: MIT" in line for line in lines)
    assert fetch(TOY, out, "http://127.0.0.1:9", report=lines.append) == folder  # needs no server: it is there
    assert "already" in lines[-1]


def test_offline_and_not_found(tmp_path: Path) -> None:
    with serve({}) as url:
        refused(
            r"answers 404 .*the repository or the commit is gone", fetch, TOY, tmp_path / "out", url, error=FetchError
        )
        closed = url
    refused(
        r"no connection \(.*refused.*\); is this machine offline\?",
        fetch,
        TOY,
        tmp_path / "out",
        closed,
        error=FetchError,
    )
    refused("no connection", fetch, TOY, tmp_path / "out", "nonsense", error=FetchError)
    assert nothing_left(tmp_path / "out")


def short(handler: BaseHTTPRequestHandler, says_how_long: bool = True) -> None:
    content = archive(FILES)
    handler.send_response(200)
    if says_how_long:
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:100])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (short, "the connection ended after .*try again"),
        (partial(short, says_how_long=False), "archive is damaged"),
        (b"<html>", "archive is damaged"),
        (b"", "archive is damaged"),
        (archive({"data/words.txt": b"red"}), r"not the expected content: words\.txt has sha256 .*, expected"),
        (archive({"other": b""}), r"0 files that match data/words"),
        (archive({**FILES, "data/images/3.png": b""}), "images/ has sha256"),
    ],
)
def test_damaged_or_changed(answer: Any, message: str, tmp_path: Path) -> None:
    with serve({ADDRESS: answer}) as url, pytest.raises(FetchError, match=message):
        fetch(TOY, tmp_path / "out", url)
    assert nothing_left(tmp_path / "out")


def test_changed_content_can_be_accepted(tmp_path: Path) -> None:
    lines: list[str] = []
    with serve({ADDRESS: archive({"data/words.txt": b"green"})}) as url:
        folder = fetch(TOY, tmp_path, url, accept_changed=True, report=lines.append)
        assert json.loads((folder / "SOURCE.json").read_text())["as_expected"] is False
        assert sum("accepted although changed" in line for line in lines) == 2
        fetch(TOY, tmp_path, url)  # accepted once, it stays accepted


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "mine.txt").write_text("precious")
    refused(
        "exists and is not toy as this program makes it", fetch, TOY, tmp_path, "http://127.0.0.1:9", error=FetchError
    )
    assert (tmp_path / "toy" / "mine.txt").read_text() == "precious"
    (tmp_path / "file").write_text("")
    refused("cannot write", fetch, TOY, tmp_path / "file", "http://127.0.0.1:9", error=FetchError)


@pytest.mark.parametrize("when", ["download", "convert"])
def test_disk_full(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile(io.BytesIO):
        write = full  # type: ignore[assignment]

    source = TOY
    if when == "download":
        plain = Path.open
        monkeypatch.setattr(
            Path, "open", lambda self, *a, **k: FullFile() if self.suffix == ".gz" else plain(self, *a, **k)
        )
    else:
        source = replace(TOY, convert=full)
    with serve({ADDRESS: archive(FILES)}) as url, pytest.raises(FetchError, match=r"disk of .* is full; about 3 MB"):
        fetch(source, tmp_path / "out", url)
    assert nothing_left(tmp_path / "out")


def test_interruption_leaves_nothing_and_old_leftovers_go(tmp_path: Path) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    old, recent = tmp_path / ".toy.abc.fetching", tmp_path / ".toy.def.fetching"
    old.mkdir()
    recent.mkdir()
    os.utime(old, (1, 1))
    with serve({ADDRESS: archive(FILES)}) as url:
        with pytest.raises(KeyboardInterrupt):
            fetch(replace(TOY, convert=interrupted), tmp_path, url)
        assert [path.name for path in tmp_path.iterdir()] == [".toy.def.fetching"]
        fetch(TOY, tmp_path, url)


# The real sources


def easy_vqa_files(num_train: int = 200) -> dict[str, bytes]:
    def questions(images: range) -> bytes:
        return json.dumps(
            [["what color is the shape?", "red", i] for i in images] + [["is it red?", "yes", 0]]
        ).encode()

    files = {"data/train/questions.json": questions(range(num_train)), "data/test/questions.json": questions(range(3))}
    files |= {f"data/train/images/{i}.png": png(i) for i in range(num_train)}
    files |= {f"data/test/images/{i}.png": png(1000 + i) for i in range(3)}
    return {f"easy_vqa/{name}": content for name, content in files.items()}


def test_easy_vqa_is_converted(tmp_path: Path) -> None:
    folder = get("easy_vqa", easy_vqa_files(), tmp_path)
    parts = {split: VQADataset(folder / f"questions_{split}.json") for split in ("train", "val", "test")}
    val = {i for i in validation("easy_vqa") if i < 200}
    assert {int(sample.image_id) for sample in parts["val"]} == val
    assert {int(sample.image_id) for sample in parts["train"]} == set(range(200)) - val
    assert len(parts["train"]) + len(parts["val"]) == 201
    assert Path(parts["test"][0].image).name == "test_0.png"
    assert Path(parts["test"][0].image).read_bytes() == png(1000)
    sample = next(s for s in parts["train"] if s.question == "is it red?")
    assert (sample.answers, sample.question_type, sample.answer_type) == (["yes"], "is it", "yes/no")


def test_daquar_is_converted(tmp_path: Path) -> None:
    pairs = [
        ("what is on the desk in the image3 ?", "book, scissor"),
        ("what is at the left of the image5 ?", "garbage_bin"),
        ("how many brown objects in this image3 ?", "2"),
        ("what is behind the image4 on the table in the image4 ?", "door"),
        ("what is it in the image1 ?", "x"),
    ]
    files = {
        "dataset/all_qa_pairs.txt": "\n".join(line for pair in pairs for line in pair).encode(),
        "dataset/train_images_list.txt": b"image3\nimage4\nimage5\n",
        "dataset/test_images_list.txt": b"image1\n",
    }
    files |= {f"dataset/images/image{i}.png": png(i, (560, 425)) for i in (1, 3, 4, 5, 6)}
    folder = get("daquar", files, tmp_path)
    rows = {
        split: [(s.id, s.question, s.answers[0]) for s in VQADataset(folder / f"questions_{split}.json")]
        for split in ("train", "val", "test")
    }
    assert rows["train"] == [
        ("1", "what is on the desk ?", "book, scissor"),
        ("2", "how many brown objects in this ?", "2"),
        ("3", "what is behind the image4 on the table ?", "door"),
    ]
    assert rows["val"] == [("1", "what is at the left ?", "garbage_bin")]
    assert rows["test"] == [("1", "what is it ?", "x")]
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert names == ["image3.jpg", "image4.jpg", "image5.jpg", "test_image1.jpg"]
    with Image.open(folder / "images" / "image3.jpg") as image:
        assert image.size == (280, 212)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["easy_vqa", "daquar"])
def test_the_splits_that_everyone_gets(name: str, real_data: Path, tmp_path: Path) -> None:
    """The source is rebuilt from the data of the measurements; converting it must give that data, byte for byte."""
    given, rows = measured_on(real_data, name), []
    numbers = [re.sub(r"\D", "", path.name) for path in (given / "images").iterdir()]
    for split in ("train", "val"):
        content = json.loads((given / f"questions_{split}.json").read_text())
        notes = json.loads((given / f"annotations_{split}.json").read_text())["annotations"]
        for entry, note in zip(content["questions"], notes, strict=True):
            rows.append((entry["question"], note["multiple_choice_answer"], entry["image_id"]))
    if name == "easy_vqa":
        files = {"data/train/questions.json": json.dumps(rows).encode(), "data/test/questions.json": b"[]"}
        files |= {f"data/train/images/{i}.png": b"-" for i in numbers}
    else:
        lines = [line for q, a, i in rows for line in (re.sub(r" \?$", f" in the image{i} ?", q), a)]
        files = {"dataset/all_qa_pairs.txt": "\n".join(lines).encode(), "dataset/test_images_list.txt": b""}
        files["dataset/train_images_list.txt"] = "\n".join(f"image{i}" for i in numbers).encode()
        tiny = png(0, (4, 4))
        files |= {f"dataset/images/image{i}.png": tiny for i in numbers}
    folder = get(name, files, tmp_path, checked=True)
    for split in ("train", "val"):
        for kind in ("questions", "annotations"):
            file = f"{kind}_{split}.json"
            assert (folder / file).read_bytes() == (given / file).read_bytes()
    assert digest(folder / "images") == digest(given / "images")
    assert fetch(sources()[name], real_data, "http://127.0.0.1:9") == given  # recognised where it lies


def test_the_table() -> None:
    assert len(validation("easy_vqa")) == len(set(validation("easy_vqa"))) == 500
    assert len(validation("daquar")) == len(set(validation("daquar"))) == 95
    for name, source in sources().items():
        assert source.name == name
        assert re.fullmatch("[0-9a-f]{40}", source.commit)
        assert source.licence
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in source.sha256.values())


# The command line


def test_command_line(tmp_path: Path) -> None:
    listed = run("--list")
    assert listed.returncode == 0
    assert "easy_vqa: vzhou842/easy-VQA" in listed.stdout
    wrong = run("easy_vpa", "--out", str(tmp_path))
    assert wrong.returncode == 2
    assert "did you mean 'easy_vqa'" in wrong.stderr
    assert "set MMATTN_DATA" in run("easy_vqa").stderr
    source = sources()["easy_vqa"]
    with serve({f"/{source.repository}/tar.gz/{source.commit}": archive(easy_vqa_files(20))}) as url:
        changed = run("easy_vqa", "--base-url", url, MMATTN_DATA=str(tmp_path))
        assert changed.returncode == 1
        assert changed.stderr.startswith("error: easy_vqa: not the expected content: ")
        assert "Traceback" not in changed.stderr
        assert nothing_left(tmp_path)
        accepted = run("easy_vqa", "--base-url", url, "--accept-changed", "--out", str(tmp_path))
        assert accepted.returncode == 0
    assert (tmp_path / "easy_vqa" / "questions_val.json").exists()
