"""Retrieval: reading a corpus, both indices against naive loops, the cache, recall on real data."""

import json
import logging
import math
import os
import random
import shutil
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.data.errors import DataError, Problems
from mmattn.data.text.scripts import split_words
from mmattn.tasks.common.errors import CheckpointError, missing_package
from mmattn.tasks.common.retrieval import corpus as module, embeddings, encoder as encoder_module
from mmattn.tasks.common.retrieval.corpus import Corpus, open_corpus, recall_at_k
from mmattn.tasks.common.retrieval.encoder import SentenceEncoder, read_encoder
from mmattn.tasks.common.retrieval.index import top_k
from mmattn.tasks.common.retrieval.passages import Passage, PassageFile, write_passages
from mmattn.tasks.common.retrieval.reading import corpus_files, divide, read_passages, words_of
from tests.conftest import public_weights, refused

bm25 = pytest.importorskip("mmattn.tasks.common.retrieval.bm25", exc_type=ModuleNotFoundError)
CACHE = os.environ.get("MMATTN_CACHE")
QUESTIONS = ("mouse and cat", "the the river", "nothing known", "zebra")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpora"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, on_error: str = "raise", **options: Any) -> tuple[list[Passage], Problems]:
    problems = Problems(on_error)
    return list(read_passages(corpus_files(path), problems, shown=False, **options)), problems


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder of one file of each kind."""
    folder = tmp_path / "notes"
    write(folder / "history.txt", "\n\nThe mouse ran.\nIt was late.\n \n---\n\nA cat, two cats and a mouse.\r\n")
    write(folder / "deep/er/page.md", "# Rivers\n\nThe Danube is a river.")
    write(folder / "rows.jsonl", '{"text": "A dog barks.", "title": "Dogs", "id": 7}\n\n{"context": "The zebra."}\n')
    write(folder / "cells.csv", 'id,text\nx,"A quoted\nmouse"\n')
    write(folder / "tabs.tsv", 'title\tcontext\nOld  "Rome"\tSeven hills.\n')
    write(folder / "lines.json", '{"text": "one row a line"}\n{"text": "another row"}\n')
    paragraphs = [{"context": "Warsaw lies there.", "qas": []}, {"context": "Warsaw lies there."}, {"context": "Two."}]
    write(folder / "squad.json", json.dumps({"data": [{"title": "Warsaw", "paragraphs": paragraphs}]}, indent=1))
    write(folder / ".hidden/a.txt", "hidden")
    write(folder / "photo.jpg", b"\xff")
    write(folder / "empty.txt", "")
    return folder


# Reading --------------------------------------------------------------------------------------------------------------


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
    assert all(1 <= len(words_of(part)) <= max_words for part in parts)
    assert [word for part in parts for word in part.split()] == text.split()
    if max_words >= 9:
        assert all(part.endswith(".") for part in parts)
        for part, following in pairwise(parts):  # the next sentence had no room
            assert len(words_of(part)) + len(words_of(following.split(".")[0])) > max_words


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


def test_words_are_those_of_the_whole_text() -> None:
    for text in (
        "".join(map(chr, range(128))),
        "It's 3_4 O'CLOCK-ish",
        "Straße, naïve_CAFE\u0301! don't",
        "हिन्दी 中文\u3000ΟΔΟΣ ﬁne",
        "soft\u00adhyphen\u00a0½ \u00b4",
        "",
    ):
        assert words_of(text) == split_words(text)


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


# BM25 -----------------------------------------------------------------------------------------------------------------


def naive_bm25(texts: Sequence[str], question: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """The formula, word by word."""
    words = [words_of(text) for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for passage in words:
        score = 0.0
        for word in words_of(question):
            containing = sum(word in other for other in words)
            times = passage.count(word)
            idf = math.log(1 + (len(words) - containing + 0.5) / (containing + 0.5))
            score += idf * times / (times + k1 * (1 - b + b * len(passage) / mean))
        scores.append(score)
    return scores


def random_texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(60)]
    weights = [1 / (number + 1) for number in range(60)]
    return [" ".join(draw.choices(words, weights, k=draw.randint(1, 30))) for _ in range(count)]


def rows(path: Path, texts: Sequence[str]) -> Path:
    return write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.mark.parametrize(("block", "options"), [(1 << 20, {}), (50, {"k1": 0.9, "b": 0.4}), (1, {"k1": 3, "b": 1})])
def test_bm25_equals_the_formula(
    block: int, options: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With passages in one block, in several, and in one each; missing words, repeated words and ties included."""
    monkeypatch.setattr(bm25, "BLOCK", block)
    texts = [*random_texts(40), "w0", "w0", "?w59"]
    corpus = open_corpus(rows(tmp_path / "a.jsonl", texts), **options)
    for question in ("w0 w3 w3", "w59 unknown W7!", "w58 w57 w56 w55", "unknown", ""):
        expected = naive_bm25(texts, question, **options)
        order = sorted((number for number, score in enumerate(expected) if score > 0), key=lambda n: (-expected[n], n))
        for k in (1, 7, 100):
            hits = corpus.index.search([question], k)[0]
            assert [score for _, score in hits] == pytest.approx([expected[n] for n in order[:k]], rel=1e-5)
            assert all(score == pytest.approx(expected[n], rel=1e-5) for n, score in hits)
    tied = corpus.index.search(["w0"], 100)[0]
    assert [(a, b) for (a, x), (b, y) in pairwise(tied) if x == y and a > b] == []


def test_blockwise_scores_equal_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bm25s

    texts = random_texts(50, seed=1)
    monkeypatch.setattr(bm25, "BLOCK", 64)
    corpus = open_corpus(rows(tmp_path / "a.jsonl", texts))
    theirs = bm25s.BM25()
    theirs.index([words_of(text) for text in texts], show_progress=False)
    for question in ("w1 w2", "w30 w4 w4"):
        expected = theirs.get_scores(words_of(question))
        found = np.zeros(len(texts))
        for number, score in corpus.index.search([question], len(texts))[0]:
            found[number] = score
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_index_is_mapped_not_read(notes: Path) -> None:
    corpus = open_corpus(notes)
    model = corpus.index.model  # type: ignore[attr-defined]
    assert all(isinstance(model.scores[name], np.memmap) for name in ("data", "indices", "indptr"))
    assert isinstance(corpus.passages.offsets, np.memmap)
    assert not list(corpus.folder.rglob(bm25.SCRATCH))


def test_search_and_stop_words(notes: Path) -> None:
    corpus = open_corpus(notes)
    assert len(corpus) == 12
    mouse, river, nothing, zebra = corpus.search(QUESTIONS, 2)
    assert mouse[0].passage.source == "history.txt, paragraph 3"
    assert mouse[0].score > mouse[1].score > 0
    assert river[0].passage.text == "The Danube is a river."
    assert nothing == []
    assert [found.passage for found in zebra] == [corpus[corpus.index.search(["zebra"], 1)[0][0][0]]]
    assert corpus.search(["dogs"])[0][0].passage.text == "A dog barks.", "titles are searched, too"
    assert corpus.search(["the"])[0]
    assert open_corpus(notes, stop_words="en").search(["the"]) == [[]]
    refused("k: expected at least 1, found 0", corpus.search, ["a"], 0)
    refused("questions: expected a list of texts, found 'who'", corpus.search, "who")
    only = write(notes.parent / "only.txt", "The a the")
    refused("only.txt: passages: expected words other than stop words, found none", open_corpus, only, stop_words="en")


def test_invalid_options(notes: Path) -> None:
    refused(r"kind: expected one of bm25, embeddings, found 'bm' \(did you mean 'bm25'", open_corpus, notes, "bm")
    refused("max_words: expected at least 1", open_corpus, notes, max_words=0)
    refused("stop_words: expected en or None, found 'de'", open_corpus, notes, stop_words="de")
    refused("k1: expected a number of at least 0, found -1", open_corpus, notes, k1=-1)
    refused("b: expected a number from 0 to 1, found 2", open_corpus, notes, b=2)
    refused("on_error: expected 'raise' or 'skip'", open_corpus, notes, on_error="ignore")
    refused("fingerprint", open_corpus, notes, "embeddings", lambda texts: np.ones((len(texts), 2)))


def test_missing_library(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        open_corpus(notes)
    assert missing_package(caught.value) == "the package bm25s is not installed: pip install 'mmattn[retrieval]'."


# Embeddings -----------------------------------------------------------------------------------------------------------


class Hashed:
    """Vectors that depend on the words of a text."""

    fingerprint = "hashed"
    calls = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += len(texts)
        vectors = np.zeros((len(texts), 16), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in words_of(text):
                vector += np.random.default_rng(list(word.encode())).standard_normal(16)
        return 3 * vectors  # the index normalizes


def test_embeddings_equal_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several blocks of passages and questions; the memory holds one of each."""
    for name, value in (("BATCH", 7), ("BLOCK", 10), ("QUESTIONS", 3)):
        monkeypatch.setattr(embeddings, name, value)
    texts, encoder = random_texts(43, seed=2), Hashed()
    corpus = open_corpus(rows(tmp_path / "a.jsonl", texts), "embeddings", encoder)
    assert isinstance(corpus.index.vectors, np.memmap)  # type: ignore[attr-defined]
    assert corpus.index.vectors.dtype == np.float16  # type: ignore[attr-defined]
    assert encoder.calls == len(texts)
    questions = random_texts(8, seed=3)
    unit = [
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (encoder(questions), encoder(texts))
    ]
    similar = unit[0] @ unit[1].astype(np.float16).astype(np.float32).T
    for k in (1, 12, 50):
        for expected, found in zip(similar, corpus.index.search(questions, k), strict=True):
            numbers, scores = zip(*found, strict=True)
            np.testing.assert_allclose(scores, np.sort(expected)[::-1][:k], atol=1e-6)
            np.testing.assert_allclose(expected[list(numbers)], scores, atol=1e-6)
            assert len(set(numbers)) == len(numbers) == min(k, len(texts))


def test_encoders_that_return_no_vectors(notes: Path) -> None:
    def encoder(result: Any) -> Any:
        def call(texts: Sequence[str]) -> Any:
            return result

        call.fingerprint = "bad"  # type: ignore[attr-defined]
        return call

    message = r"notes: encoder: expected vectors \(12, E\), found \(3, 4\)"
    refused(message, open_corpus, notes, "embeddings", encoder(np.ones((3, 4))))
    message = "encoder: expected finite vectors"
    refused(message, open_corpus, notes, "embeddings", encoder(np.full((12, 4), np.nan)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer, saved by transformers."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=40, **sizes)
    torch.manual_seed(0)
    model = transformers.BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parity
def test_embeddings_equal_transformers(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of several lengths, by the definition on the cards of sentence-transformers' models."""
    import transformers

    monkeypatch.setattr(encoder_module, "BATCH", 4)
    texts = ["a b", "", "c", "f g " * 30, "a unknown b c d", "H"]
    theirs = transformers.BertModel.from_pretrained(bert).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(bert / "tokenizer.json"), pad_token="[PAD]")
    given = tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")
    with torch.no_grad():
        states = theirs(given["input_ids"], given["attention_mask"]).last_hidden_state
    mask = given["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)
    encoder = read_encoder(str(bert))
    assert encoder.max_tokens == 40
    np.testing.assert_allclose(encoder(texts), expected.numpy(), atol=1e-5)
    assert encoder.fingerprint == read_encoder(str(bert)).fingerprint != Hashed.fingerprint
    with torch.no_grad():
        encoder.model.norm.weight[0] += 1e-3
    assert encoder.fingerprint != SentenceEncoder(encoder.model, encoder.tokenizer, 40).fingerprint


def test_encoders_of_other_kinds(bert: Path, tmp_path: Path) -> None:
    message = "expected a public encoder such as minilm, found a model of mmattn"
    refused(message, read_encoder, "vqa/demo", error=CheckpointError)
    folder = shutil.copytree(bert, tmp_path / "bert")
    write(folder / "sentence_bert_config.json", '{"max_seq_length": 16}')
    assert read_encoder(str(folder)).max_tokens == 16
    pooling = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write(folder / "1_Pooling" / "config.json", json.dumps(pooling))
    message = "expected the mean of the tokens' states as embedding, found pooling_mode_cls_token"
    refused(message, read_encoder, str(folder), error=CheckpointError)
    write(folder / "1_Pooling" / "config.json", "[]")
    refused(r"1_Pooling/config.json: expected a JSON object, found \[\]", read_encoder, str(folder))


def test_minilm_finds_by_meaning(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MMATTN_CACHE", CACHE) if CACHE else patch.delenv("MMATTN_CACHE")
        encoder = read_encoder(str(public_weights("minilm")))
    assert encoder.max_tokens == 256
    corpus = open_corpus(notes, "embeddings", encoder)
    assert corpus.search(["Which stream flows there?"], 1)[0][0].passage.text == "The Danube is a river."


# The cache ------------------------------------------------------------------------------------------------------------


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


def test_cache_is_reused_until_a_file_changes(notes: Path, cache: Path, built: list[str]) -> None:
    first = open_corpus(notes)
    assert same(first, open_corpus(str(notes)))
    (notes / "history.txt").touch()  # the content decides
    assert same(first, open_corpus(notes))
    moved = notes.rename(notes.with_name("moved"))
    assert same(first, open_corpus(moved))
    assert len(built) == len(list(cache.iterdir())) == 1
    write(moved / "history.txt", "A giraffe.")
    assert open_corpus(moved).search(["giraffe"])[0]
    write(moved / "history.txt", "A gorilla.")  # as many bytes
    assert not open_corpus(moved).search(["giraffe"])[0]
    (moved / "history.txt").rename(moved / "past.txt")
    assert open_corpus(moved).search(["gorilla"])[0][0].passage.file == "past.txt"
    assert len(built) == 4
    assert len(list(cache.iterdir())) == 2, "the first, of the former path, and the last; the others are outdated"
    assert len(first.search(["mouse"])[0]) == 3, "open files outlive the entry"


def test_options_have_entries_of_their_own(notes: Path, cache: Path, built: list[str]) -> None:
    every: list[dict[str, Any]] = [
        {},
        {"k1": 2},
        {"b": 0},
        {"stop_words": "en"},
        {"max_words": 9},
        {"on_error": "skip"},
    ]
    for options in [*every, *every]:
        open_corpus(notes, **options)
    other = Hashed()
    other.fingerprint = "other"
    for encoder in (Hashed(), other, Hashed()):
        open_corpus(notes, "embeddings", encoder)
    assert len(built) == len(list(cache.iterdir())) == len(every) + 2


@pytest.mark.parametrize("kind", ["bm25", "embeddings"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage"])
def test_damaged_entry_is_built_again(
    damage: str, kind: str, notes: Path, cache: Path, built: list[str], caplog: pytest.LogCaptureFixture
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


def test_interrupted_build_leaves_nothing(notes: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bm25.Counts, "fill", fail)
        refused("^$", open_corpus, notes, error=KeyboardInterrupt)
    assert list(cache.iterdir()) == []
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


# Recall ---------------------------------------------------------------------------------------------------------------


def test_recall(tmp_path: Path) -> None:
    texts = ["a b c", "a b d", "a e f\ng"]
    corpus = open_corpus(rows(tmp_path / "a.jsonl", texts))
    assert recall_at_k(corpus, ["c", "a", "zzz"], ["a b c", "a e f g", "a b d"], (1, 3)) == {1: 1 / 3, 3: 2 / 3}
    refused("is shorter", recall_at_k, corpus, ["a"], [])


def test_top_k_equals_sorting() -> None:
    draw = np.random.default_rng(0)
    for size, k in ((1, 1), (10, 3), (50, 50), (50, 80), (200, 7)):
        scores = draw.integers(0, 9, size).astype(np.float32)
        assert top_k(scores, k).tolist() == sorted(range(size), key=lambda n: (-scores[n], n))[:k]
        assert top_k(scores, k, above=4).tolist() == [n for n in top_k(scores, size) if scores[n] > 4][:k]


def test_recall_on_xquad(real_data: Path) -> None:
    """The questions of each part find their paragraphs among those of both."""
    for name in ("train", "val"):
        content = json.loads((real_data / "xquad_en" / f"{name}.json").read_text(encoding="utf-8"))
        asked = [
            (question["question"], paragraph["context"])
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        corpus = open_corpus(real_data / "xquad_en")
        recall = recall_at_k(corpus, [question for question, _ in asked], [context for _, context in asked])
        assert recall[5] >= 0.90
