"""The cache of corpora: reused while nothing changes, and built again if it is damaged."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from mmattn.data.errors import DataError
from mmattn.tasks.common.retrieval import corpus as module
from mmattn.tasks.common.retrieval.corpus import Corpus, open_corpus
from mmattn.tasks.common.retrieval.passages import write_passages
from tests.conftest import refused
from tests.tasks.corpora import Hashed, write

pytestmark = pytest.mark.usefixtures("corpora")
bm25 = pytest.importorskip("mmattn.tasks.common.retrieval.bm25", exc_type=ModuleNotFoundError)
QUESTIONS = ("mouse and cat", "the the river", "nothing known", "zebra")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one for each index that is built."""
    found: list[str] = []

    def record(*given: Any) -> int:
        found.append("built")
        return write_passages(*given)

    monkeypatch.setattr(module, "write_passages", record)
    return found


def same(first: Corpus, second: Corpus) -> bool:
    return first.search(QUESTIONS) == second.search(QUESTIONS) and list(first.passages) == list(second.passages)


def test_cache_is_reused_until_a_file_changes(notes: Path, corpora: Path, built: list[str]) -> None:
    first = open_corpus(notes)
    assert same(first, open_corpus(str(notes)))
    (notes / "history.txt").touch()  # the content decides
    assert same(first, open_corpus(notes))
    moved = notes.rename(notes.with_name("moved"))
    assert same(first, open_corpus(moved))
    assert len(built) == len(list(corpora.iterdir())) == 1
    write(moved / "history.txt", "A giraffe.")
    assert open_corpus(moved).search(["giraffe"])[0]
    write(moved / "history.txt", "A gorilla.")  # as many bytes
    assert not open_corpus(moved).search(["giraffe"])[0]
    (moved / "history.txt").rename(moved / "past.txt")
    assert open_corpus(moved).search(["gorilla"])[0][0].passage.file == "past.txt"
    assert len(built) == 4
    assert len(list(corpora.iterdir())) == 2, "the first, of the former path, and the last; the others are outdated"
    assert len(first.search(["mouse"])[0]) == 3, "open files outlive the entry"


def test_options_have_entries_of_their_own(notes: Path, corpora: Path, built: list[str]) -> None:
    every: list[dict[str, Any]] = [
        {},
        {"on_error": "skip"},
    ]
    for options in [*every, *every]:
        open_corpus(notes, **options)
    other = Hashed()
    other.fingerprint = "other"
    for encoder in (Hashed(), other, Hashed()):
        open_corpus(notes, "embeddings", encoder)
    assert len(built) == len(list(corpora.iterdir())) == len(every) + 2


@pytest.mark.parametrize("kind", ["bm25", "embeddings"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage"])
def test_damaged_entry_is_built_again(
    damage: str, kind: str, notes: Path, corpora: Path, built: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Hashed() if kind == "embeddings" else None
    first = open_corpus(notes, kind, encoder)
    files = [file.relative_to(first.folder) for file in first.folder.rglob("*") if file.is_file()]
    for name in files:
        file = first.folder / name
        if damage == "remove":
            file.unlink()
        elif damage == "truncate":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        elif name.name in ("corpus.json", "vocab.index.json", "offsets.npy", "vectors.npy"):
            file.write_bytes(b"?" * file.stat().st_size)
        else:
            continue
        caplog.clear()
        before = len(built)
        assert open_corpus(notes, kind, encoder).search(QUESTIONS)
        assert len(built) == before + 1, name
        assert "a damaged index in the cache is made again" in caplog.text
    passages = first.folder / "passages.jsonl"
    passages.write_bytes(b"?" * passages.stat().st_size)
    message = r"passages.jsonl, line \d+: expected a passage, found .*; remove the folder"
    refused(message, open_corpus(notes, kind, encoder).search, ["mouse"], error=DataError)


def test_interrupted_build_leaves_nothing(notes: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bm25.Counts, "fill", fail)
        refused("^$", open_corpus, notes, error=KeyboardInterrupt)
    assert list(corpora.iterdir()) == []
    assert open_corpus(notes).search(["mouse"])


def test_skipped_items_are_reported_each_time(notes: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(notes / "rows.jsonl", '{"text": "fine"}\n{"txt": "not"}\n')
    refused("rows.jsonl, line 2", open_corpus, notes)
    for _ in range(2):
        caplog.clear()
        corpus = open_corpus(notes, on_error="skip")
        assert "excluded 1 bad item, kept 11" in caplog.text
        assert [item for item, _ in corpus.skipped] == [f"{notes / 'rows.jsonl'}, line 2"]
    refused("rows.jsonl, line 2", open_corpus, notes)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of other platforms refuse the name")
def test_names_that_are_not_unicode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("mmattn"), "disabled", True)  # xdist cannot send such names in a report
    for name in ("corpus", "reading"):
        monkeypatch.setattr(logging.getLogger(f"mmattn.tasks.common.retrieval.{name}"), "disabled", True)
    folder = tmp_path / "\udcff"
    write(folder / "\udcfe.txt", b"fine\n\nbad \xff")
    for _ in range(2):
        corpus = open_corpus(folder, on_error="skip")
        assert corpus.search(["fine"])[0][0].passage.file == "\udcfe.txt"
        assert len(corpus.skipped) == 1
