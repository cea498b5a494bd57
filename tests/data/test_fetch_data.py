"""Fetching from a server on loopback: the whole data set is written, or one error is raised and no files remain."""

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

from scripts.fetch.archive import Archive, Source, fetch, sources, validation
from tests.data.fetching import NOWHERE, archive, easy_vqa_files, not_fetched, nothing_left, run, serve


def convert(source: Archive, folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "words.txt").write_text(source.text(r"data/words\.txt"))
    for name, content in source.files(r"data/images/\d+\.png"):
        (folder / "images" / Path(name).name).write_bytes(content)


FILES = {"data/words.txt": b"red blue", "data/images/1.png": b"one", "data/images/2.png": b"two", "other.txt": b"no"}
SUMS = {"words.txt": hashlib.sha256(b"red blue").hexdigest(), "images/": hashlib.sha256(b"1.png\n2.png").hexdigest()}
TOY = Source(
    name="toy", repository="someone/toy", commit="0123456789", licence="MIT", megabytes=1, convert=convert, sha256=SUMS
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
    assert fetch(TOY, out, NOWHERE, report=lines.append) == folder  # needs no server: the data set exists
    assert "already" in lines[-1]


def test_offline_and_not_found(tmp_path: Path) -> None:
    with serve({}) as url:
        not_fetched(r"answers 404 .*the repository or the commit is gone", TOY, tmp_path / "out", url)
    not_fetched(r"no connection \(.*refused.*\); is this machine offline\?", TOY, tmp_path / "out", url)
    not_fetched("no connection", TOY, tmp_path / "out", "nonsense")
    assert nothing_left(tmp_path / "out")


def short(handler: BaseHTTPRequestHandler, with_length: bool = True) -> None:
    content = archive(FILES)
    handler.send_response(200)
    if with_length:
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:100])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (short, "the connection ended after .*try again"),
        (partial(short, with_length=False), "archive is damaged"),
        (b"<html>", "archive is damaged"),
        (b"", "archive is damaged"),
        (archive({"data/words.txt": b"red"}), r"not the expected content: words\.txt has sha256 .*, expected"),
        (archive({"other": b""}), r"0 files that match data/words"),
        (archive({**FILES, "data/images/3.png": b""}), "images/ has sha256"),
    ],
)
def test_damaged_or_changed_archive(answer: Any, message: str, tmp_path: Path) -> None:
    with serve({ADDRESS: answer}) as url:
        not_fetched(message, TOY, tmp_path / "out", url)
    assert nothing_left(tmp_path / "out")


def test_changed_content_can_be_accepted(tmp_path: Path) -> None:
    lines: list[str] = []
    with serve({ADDRESS: archive({"data/words.txt": b"green"})}) as url:
        folder = fetch(TOY, tmp_path, url, accept_changed=True, report=lines.append)
        assert json.loads((folder / "SOURCE.json").read_text())["as_expected"] is False
        assert sum("accepted although changed" in line for line in lines) == 2
        fetch(TOY, tmp_path, url)  # accepted once, it remains accepted


def test_foreign_folder_is_untouched(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "mine.txt").write_text("precious")
    not_fetched("exists and is not toy as this program makes it", TOY, tmp_path)
    assert (tmp_path / "toy" / "mine.txt").read_text() == "precious"
    (tmp_path / "file").write_text("")
    not_fetched("cannot write", TOY, tmp_path / "file")


@pytest.mark.parametrize("when", ["download", "convert"])
def test_disk_full(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile(io.BytesIO):
        write = full  # type: ignore[assignment]

    source = TOY
    if when == "download":
        plain = Path.open
        monkeypatch.setattr(Path, "open", lambda p, *a, **k: FullFile() if p.suffix == ".gz" else plain(p, *a, **k))
    else:
        source = replace(TOY, convert=full)
    with serve({ADDRESS: archive(FILES)}) as url:
        not_fetched(r"disk of .* is full; about 3 MB", source, tmp_path / "out", url)
    assert nothing_left(tmp_path / "out")


def test_interruption_cleans_up(tmp_path: Path) -> None:
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


def test_dataset_table() -> None:
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
    assert "checked: classes.txt, train.tar, val.tar" in listed.stdout
    assert "checked: classes.txt, train/images/, train/masks/, val/images/, val/masks/" in listed.stdout
    assert "masks by names, sizes and numbers" in " ".join(run("--help").stdout.split())
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
