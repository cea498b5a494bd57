"""The public text sets of ``scripts/fetch_data.py``: parallel text, documents with their summaries, plain text."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.fetch.archive import Archive, FetchError

_MULTI30K_PARTS = {"train": "train", "val": "val", "test_2016_flickr": "test"}


def convert_multi30k(archive: Archive, folder: Path) -> None:
    """Write English and German, one sentence per line; runs of white space are replaced by one space."""
    found: dict[str, int] = {}
    for path, content in archive.files(r"data/task1/raw/(?:train|val|test_2016_flickr)\.(?:en|de)\.gz"):
        part, language, _ = Path(path).name.split(".")
        try:
            text = gzip.decompress(content).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise FetchError(f"multi30k_en_de: {path} is no gzip of UTF-8 text ({error})") from None
        lines = [" ".join(line.split()) for line in text.removesuffix("\n").split("\n")]
        name = f"{_MULTI30K_PARTS[part]}.{language}"
        found[name] = len(lines)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    for part in _MULTI30K_PARTS.values():
        sizes = [found.get(f"{part}.{language}", 0) for language in ("en", "de")]
        if not sizes[0] or sizes[0] != sizes[1]:
            raise FetchError(f"multi30k_en_de: expected as many English as German lines of {part}, found {sizes}")


_PARTS = {"train": "train", "dev": "val", "test": "test"}  # of AESLC and SciTLDR
_AESLC_MARK = re.compile(r"\n@(subject|ann[0-9])\n")


def convert_aeslc(archive: Archive, folder: Path) -> None:
    """Write each mail's body with its subject line as JSON lines; dev and test also have three annotators' subjects."""
    rows: dict[str, list[dict[str, object]]] = {part: [] for part in _PARTS.values()}
    for path, content in archive.files(r"enron_subject_line/(?:train|dev|test)/.+\.subject"):
        pieces = _AESLC_MARK.split("\n" + content.decode("utf-8", errors="replace").replace("\r\n", "\n"))
        marked = {mark: " ".join(text.split()) for mark, text in zip(pieces[1::2], pieces[2::2], strict=True)}
        document, part = pieces[0].strip(), _PARTS[Path(path).parent.name]
        if not document or not marked.get("subject"):
            continue  # mails without a body or a subject are excluded
        row: dict[str, object] = {"id": Path(path).stem, "document": document, "summary": marked["subject"]}
        if part != "train":
            row["references"] = [text for text in marked.values() if text]
        rows[part].append(row)
    for part, found in rows.items():
        if not found:
            raise FetchError(f"aeslc: the archive has no mails of {part}")
        _write_rows(folder / f"{part}.jsonl", sorted(found, key=lambda row: str(row["id"])))


def _write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def convert_scitldr(archive: Archive, folder: Path) -> None:
    """Write each abstract with its first summary as JSON lines, and all summaries of dev and test.

    An abstract that also stands in a later part is left out, and runs of white space are replaced by one space.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for path, content in archive.files(r"SciTLDR-Data/SciTLDR-A/(?:train|dev|test)\.jsonl"):
        part = _PARTS[Path(path).stem]
        try:
            given = [json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip()]
            rows[part] = [_scitldr_row(row, part != "train") for row in given]
        except (UnicodeDecodeError, ValueError, KeyError, TypeError, IndexError) as error:
            raise FetchError(f"scitldr_a: {path} has no source, target and paper_id a line ({error!r})") from None
    later: set[str] = set()
    for part in reversed(_PARTS.values()):
        if not rows.get(part):
            raise FetchError(f"scitldr_a: the archive has no abstracts of {part}")
        _write_rows(folder / f"{part}.jsonl", (row for row in rows[part] if row["document"] not in later))
        later |= {row["document"] for row in rows[part]}


def _scitldr_row(row: Mapping[str, Any], several: bool) -> dict[str, Any]:
    targets = [" ".join(text.split()) for text in row["target"]]
    document = " ".join(" ".join(row["source"]).split())
    found = {"id": row["paper_id"], "document": document, "summary": targets[0]}
    return found | ({"references": targets} if several else {})


def convert_tinyshakespeare(archive: Archive, folder: Path) -> None:
    """Write the first 90 % of the characters for training, the next 5 % for validation, the last for the test."""
    text = archive.text(r"data/tinyshakespeare/input\.txt")
    if len(text) < 100:
        raise FetchError(f"tinyshakespeare: expected plays, found {len(text)} characters")
    first = int(0.9 * len(text))
    second = first + (len(text) - first) // 2
    for name, part in (("train", text[:first]), ("val", text[first:second]), ("test", text[second:])):
        (folder / f"{name}.txt").write_text(part, encoding="utf-8", newline="\n")


_PTB_PARTS = {"train": "train", "valid": "val", "test": "test"}


def convert_ptb(archive: Archive, folder: Path) -> None:
    """Write Mikolov's version of the Penn Treebank, one sentence per line; spaces at the ends of lines are removed."""
    packed = b"".join(content for _, content in archive.files(r"data/ptb\.zip"))
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as files:
            named = {Path(name).name: name for name in files.namelist()}
            for part, name in _PTB_PARTS.items():
                lines = files.read(named[f"ptb.{part}.txt"]).decode("utf-8").removesuffix("\n").split("\n")
                text = "".join(line.strip(" ") + "\n" for line in lines)
                (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")
    except (zipfile.BadZipFile, zlib.error, KeyError, UnicodeDecodeError) as error:
        raise FetchError(
            f"ptb: expected ptb.train.txt, ptb.valid.txt and ptb.test.txt in data/ptb.zip ({error})"
        ) from None
