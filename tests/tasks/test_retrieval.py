"""Retrieval: both indices against naive loops, the encoder, recall on real data."""

import json
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

from mmattn.data.text.scripts import split_words
from mmattn.tasks.common.errors import CheckpointError, missing_package
from mmattn.tasks.common.retrieval import embeddings, encoder as encoder_module
from mmattn.tasks.common.retrieval.corpus import open_corpus, recall_at_k
from mmattn.tasks.common.retrieval.encoder import SentenceEncoder, read_encoder
from mmattn.tasks.common.retrieval.index import top_k
from mmattn.tasks.common.retrieval.passages import Passage, PassageFile, write_passages
from tests.conftest import public_weights, refused
from tests.tasks.corpora import Hashed, write

pytestmark = pytest.mark.usefixtures("corpora")
bm25 = pytest.importorskip("mmattn.tasks.common.retrieval.bm25", exc_type=ModuleNotFoundError)
CACHE = os.environ.get("MMATTN_CACHE")
QUESTIONS = ("mouse and cat", "the the river", "nothing known", "zebra")


# BM25 -----------------------------------------------------------------------------------------------------------------


def naive_bm25(texts: Sequence[str], question: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """The formula, word by word."""
    words = [split_words(text) for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for passage in words:
        score = 0.0
        for word in split_words(question):
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
    write_passages(tmp_path, (Passage(text, "a.txt", "") for text in texts))
    (tmp_path / "index").mkdir()
    index = bm25.BM25Index(**options)
    index.build(tmp_path / "index", PassageFile(tmp_path), shown=False)
    index.load(tmp_path / "index")
    for question in ("w0 w3 w3", "w59 unknown W7!", "w58 w57 w56 w55", "unknown", ""):
        expected = naive_bm25(texts, question, **options)
        order = sorted((number for number, score in enumerate(expected) if score > 0), key=lambda n: (-expected[n], n))
        for k in (1, 7, 100):
            hits = index.search([question], k)[0]
            assert [score for _, score in hits] == pytest.approx([expected[n] for n in order[:k]], rel=1e-5)
            assert all(score == pytest.approx(expected[n], rel=1e-5) for n, score in hits)
    tied = index.search(["w0"], 100)[0]
    assert [(a, b) for (a, x), (b, y) in pairwise(tied) if x == y and a > b] == []


def test_blockwise_scores_equal_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bm25s

    texts = random_texts(50, seed=1)
    monkeypatch.setattr(bm25, "BLOCK", 64)
    corpus = open_corpus(rows(tmp_path / "a.jsonl", texts))
    theirs = bm25s.BM25()
    theirs.index([split_words(text) for text in texts], show_progress=False)
    for question in ("w1 w2", "w30 w4 w4"):
        expected = theirs.get_scores(split_words(question))
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


def test_search(notes: Path) -> None:
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
    refused("k: expected at least 1, found 0", corpus.search, ["a"], 0)
    refused("questions: expected a list of texts, found 'who'", corpus.search, "who")


def test_probabilities_before_reading(notes: Path) -> None:
    """A softmax of the scores: the better a passage fits, the more probable it is, without an overflow."""
    corpus = open_corpus(notes)
    (found,) = corpus.search(["which river floods the old mill?"], 3)
    prior = corpus.log_prior(found)
    assert np.exp(prior).sum() == pytest.approx(1.0)
    assert prior.tolist() == sorted(prior.tolist(), reverse=True)
    large = corpus.log_prior([one._replace(score=1000.0 * one.score) for one in found])
    assert np.isfinite(large).all()


def test_invalid_options(notes: Path) -> None:
    refused(r"kind: expected one of bm25, embeddings, found 'bm' \(did you mean 'bm25'", open_corpus, notes, "bm")
    refused("k1: expected a number of at least 0, found -1", bm25.BM25Index, k1=-1)
    refused("b: expected a number from 0 to 1, found 2", bm25.BM25Index, b=2)
    refused("on_error: expected 'raise' or 'skip'", open_corpus, notes, on_error="ignore")
    refused("fingerprint", open_corpus, notes, "embeddings", lambda texts: np.ones((len(texts), 2)))


def test_missing_library(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        open_corpus(notes)
    assert missing_package(caught.value) == "the package bm25s is not installed: pip install 'mmattn[retrieval]'."


# Embeddings -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parity
def test_embeddings_of_another_size_than_the_states(bert: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ElectraConfig(vocab_size=12, embedding_size=10, max_position_embeddings=40, **sizes)
    transformers.ElectraModel(config).save_pretrained(tmp_path)
    shutil.copy(bert / "tokenizer.json", tmp_path)
    assert read_encoder(str(tmp_path))(["a b", "c"]).shape == (2, 24)


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
