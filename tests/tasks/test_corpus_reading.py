"""The passages of a corpus: formats, division of long paragraphs, errors, and the file that keeps them."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mmattn.data.text.scripts import split_words
from mmattn.tasks.common.retrieval.corpus import open_corpus
from mmattn.tasks.common.retrieval.passages import Passage, PassageFile, write_passages
from mmattn.tasks.common.retrieval.reading import corpus_files, divide
from tests.conftest import refused
from tests.tasks.corpora import read, write

pytestmark = pytest.mark.usefixtures("corpora")
bm25 = pytest.importorskip("mmattn.tasks.common.retrieval.bm25", exc_type=ModuleNotFoundError)


def test_passages_and_sources_of_all_formats(notes: Path) -> None:
    found, problems = read(notes)
    assert {passage.source: passage.text for passage in found} == {
        "cells.csv, line 2 (x)": "A quoted\nmouse",
        "deep/er/page.md, paragraph 1": "# Rivers",
        "deep/er/page.md, paragraph 2": "The Danube is a river.",
        "history.txt, paragraph 1": "The mouse ran.\nIt was late.",
        "history.txt, paragraph 3": "A cat, two cats and a mouse.",  # the second has no words
        "lines.json, line 1": "one row a line",
        "lines.json, line 2": "another row",
        "rows.jsonl, line 1 (Dogs)": "A dog barks.",
        "rows.jsonl, line 3": "The zebra.",
        "squad.json, article 1, paragraph 1 (Warsaw)": "Warsaw lies there.",
        "squad.json, article 1, paragraph 3 (Warsaw)": "Two.",
        'tabs.tsv, line 2 (Old "Rome")': "Seven hills.",
    }
    assert not problems.items
    assert [(p.id, p.searched) for p in found if p.title == "Dogs"] == [("7", "Dogs\nA dog barks.")]
    assert next(passage.source for passage in read(notes / "history.txt")[0]) == "history.txt, paragraph 1"


@pytest.mark.parametrize("max_words", [1, 5, 12, 1000])
def test_division(max_words: int) -> None:
    """Parts have at most max_words words and keep all; they end at sentences where these are not longer."""
    draw = random.Random(max_words)
    sentences = [f"Xy{draw.randrange(9)}" + " bbb" * draw.randint(0, 8) + "." for _ in range(40)]
    text = "".join(sentence + draw.choice([" ", "\n"]) for sentence in sentences).strip()
    parts = divide(text, max_words)
    assert all(1 <= len(split_words(part)) <= max_words for part in parts)
    assert [word for part in parts for word in part.split()] == text.split()
    if max_words >= 9:
        assert all(part.endswith(".") for part in parts)
        for part, following in pairwise(parts):  # the next sentence had no room
            assert len(split_words(part)) + len(split_words(following.split(".")[0])) > max_words


def test_division_of_scripts_without_spaces() -> None:
    sentence = "我们去了河边。"  # six words
    assert divide(sentence * 5, 13) == [sentence * 2, sentence * 2, sentence]
    assert divide("河" * 25, 10) == ["河" * 10, "河" * 10, "河" * 5]


def test_parts_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "Short.\n\nIt rained all day. We stayed in.\nNobody came.")
    found, _ = read(path, max_words=6)
    assert [(p.place, p.text) for p in found] == [
        ("paragraph 1", "Short."),
        ("paragraph 2, part 1", "It rained all day."),
        ("paragraph 2, part 2", "We stayed in.\nNobody came."),
    ]


def test_paragraph_longer_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmattn.tasks.common.retrieval.reading.LONGEST", 20)
    found, _ = read(write(tmp_path / "a.txt", "one line of text\n" * 5))
    assert [p.text.count("\n") for p in found] == [1, 1, 0]


BAD = [
    ("a.txt", b"fine\n\nthe ca\xe9 is here\n\nlast", r"a\.txt, line 3: expected UTF-8 text, found the byte 0xe9", 2),
    ("a.txt", "wide".encode("utf-16"), r"a\.txt: expected UTF-8 text, found UTF-16", 0),
    ("a.jsonl", '{"text": "a b"}\n{"txt": "c"}\n', r"a\.jsonl, line 2: expected the key text, found txt", 1),
    ("a.jsonl", '{"text": "a b"}\n{"text": 3}\n', r"a\.jsonl, line 2: expected a text under text, found 3", 1),
    (
        "a.jsonl",
        '{"text": "a b"}\n{"text": " "}\nnone\n',
        r"a\.jsonl, line 2: expected a text under text, found ' '",
        1,
    ),
    ("a.csv", "id,body\n1,b\n", r"a\.csv, header: expected the column text", 0),
    ("a.csv", "", r"a\.csv: expected a file with content, found an empty file", 0),
    ("a.json", "{}", r"a\.json, line 1: expected the key text, found none", 0),
    ("a.json", '[{"text": "a"}]', r"a\.json: expected a list of SQuAD's articles under data, or rows, one a line", 0),
    ("a.json", '{"data": [{"paragraphs": [{}, {"context": "c"}]}]}', r"article 1, paragraph 1: expected a text", 1),
    ("a.json", '{"data": [5, {"paragraphs": []}]}', r"article 1: expected a list under paragraphs, found 5", 0),
    ("a.json", '{\n"data": [}', r"a\.json, line 2, column 10: expected JSON", 0),
]


@pytest.mark.parametrize(("name", "content", "message", "kept"), BAD)
def test_errors_name_file_and_item(name: str, content: str | bytes, message: str, kept: int, tmp_path: Path) -> None:
    path = write(tmp_path / "c" / name, content)
    refused(message, read, path)
    found, problems = read(path, "skip")
    assert len(found) == kept
    assert problems.items
    if not kept:
        refused(r"c: expected at least one passage, found none; .*a\.", open_corpus, path.parent, on_error="skip")


def test_missing_and_empty_corpora(tmp_path: Path) -> None:
    refused("nowhere: expected a corpus: a file or a folder of files, found no such file", corpus_files, "nowhere")
    refused(r"expected a folder with files of texts \(.txt, .md", corpus_files, tmp_path)
    refused("the ending '.jpg'", corpus_files, write(tmp_path / "a.jpg", "a"))
    refused(r"a\.txt: expected at least one passage, found none$", open_corpus, write(tmp_path / "a.txt", " \n"))
    link = tmp_path / "links" / "a.txt"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "gone.txt")
    write(link.parent / "b.txt", "here")
    refused(r"a\.txt: expected a file, found no such file", open_corpus, link.parent)
    corpus = open_corpus(link.parent, on_error="skip")
    assert (len(corpus), len(corpus.skipped)) == (1, 1)


def test_passages_are_read_from_disk(tmp_path: Path) -> None:
    given = [Passage("text\n中", "a.txt", "paragraph 1"), Passage("", "\udcff.txt", "line 2", "t", "i")]
    assert write_passages(tmp_path, iter(given)) == 2
    found = PassageFile(tmp_path)
    assert list(found) == given
    assert isinstance(found.offsets, np.memmap)
    refused("passage 2 of 2", found.__getitem__, 2, error=IndexError)
