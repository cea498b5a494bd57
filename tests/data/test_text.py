"""The tokenizer: kinds, padding, truncation, unknown words, and its file; sentences of texts and of files."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch

from mmattn.data.text.scripts import _words, split_words
from mmattn.data.text.sentences import read_sentences, split_sentences
from mmattn.data.text.tokenizer import KINDS, SPECIAL_TOKENS, TextProcessor
from tests.conftest import refused
from tests.data.files import bad_data, write

TEXTS = ["Is it red?", "is it Blue ?", "what colour is the café's sign?", "how many red dogs are there?"] * 5


def fit(kind: str = "word", **options: object) -> TextProcessor:
    return TextProcessor.fit(TEXTS, kind=kind, vocab_size=400, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_batch_is_padded_to_the_longest(kind: str) -> None:
    text = fit(kind)
    ids, key_mask = text.encode_batch(["Is it red?", "red", ""])
    alone, _ = text.encode_batch(["red"])
    length = int(key_mask[1].sum())
    assert ids.dtype == torch.long
    assert key_mask.dtype == torch.bool
    assert ids.shape == key_mask.shape
    assert torch.equal(ids[1, :length], alone[0])
    assert not key_mask[2].any()
    assert (ids[~key_mask] == text.pad_id).all()
    assert ids.max() < text.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_save_load_and_pickle_give_the_same_ids(kind: str, tmp_path: Path) -> None:
    text = fit(kind)
    text.save(tmp_path)
    questions = ["is IT red??", "ﬁve zebras", "café", "[PAD] [UNK]"]
    expected, _ = text.encode_batch(questions)
    for other in (TextProcessor.load(tmp_path, text.config()), pickle.loads(pickle.dumps(text))):
        assert torch.equal(other.encode_batch(questions)[0], expected)
        assert other.config() == text.config()


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_fitting_is_reproducible(kind: str) -> None:  # unigram is not: the library breaks ties by hash order
    assert fit(kind).to_json() == fit(kind).to_json()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_fixed_ids_and_cannot_be_typed(kind: str) -> None:
    text = fit(kind)
    assert [text.tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    ids, _ = text.encode_batch(["[PAD][EOS]"])
    assert not {0, 2, 3} & set(ids[0].tolist())


def test_empty_texts_have_length_one() -> None:
    ids, key_mask = fit().encode_batch(["", " "])
    assert ids.tolist() == [[0], [0]]
    assert not key_mask.any()


def test_word_vocabulary_is_by_count_then_alphabet() -> None:
    text = TextProcessor.fit(["b a", "b c", "B d d"], vocab_size=7)
    assert [text.tokenizer.id_to_token(i) for i in range(text.vocab_size)] == [*SPECIAL_TOKENS, "b", "d", "a"]
    assert TextProcessor.fit(["b a", "b"], min_count=2).vocab_size == 5


def test_tokens_keep_their_case() -> None:
    assert fit().unknown_words("Is it GREEN, or GREEN zébra?") == ["GREEN", ",", "or", "zébra"]
    assert fit().unknown_words("is it red?") == []
    assert fit("bpe").unknown_words("Is it GREEN or zébra?") == []
    assert fit().tokens("Is it GREEN?") == ["Is", "it", "GREEN", "?"]
    assert fit(lowercase=False).encode("Is") != fit(lowercase=False).encode("is"), "lower case is optional"
    bad_data("valid Unicode", fit().encode_batch, ["\udcff"])


@pytest.mark.parametrize("kind", KINDS)
def test_decode(kind: str) -> None:
    text = fit(kind)
    ids, _ = text.encode_batch(["is it red", "is it blue now"])
    assert text.decode(ids[0].tolist()) == "is it red"


def test_truncation_is_counted_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    text = fit(max_len=3)
    with caplog.at_level(logging.WARNING):
        ids, _ = text.encode_batch(["is it red?", "red", "how many dogs?"])
    assert ids.shape == (3, 3)
    assert text.truncated == 2
    assert "truncated to 3 tokens" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "words"}, "did you mean 'word'"),
        ({"vocab_size": 4}, "more than 4"),
        ({"kind": "bpe", "vocab_size": 100}, "at least 260"),
        ({"max_len": 0}, "at least 1"),
        ({"texts": ["", " "]}, "at least one training text"),
    ],
)
def test_invalid_options(options: dict[str, object], message: str) -> None:
    refused(message, TextProcessor.fit, **{"texts": TEXTS} | options)


@pytest.mark.parametrize("content", [None, "", "{", "{}", '{"version": "1.0"}'])
def test_invalid_tokenizer_file(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    bad_data(r"tokenizer\.json", TextProcessor.load, tmp_path)


# Sentences

SQUAD = {"data": [{"paragraphs": [{"context": "It rained. We left.", "qas": [{"answers": [{"text": "rained"}]}]}] * 2}]}
COCO = {"annotations": [{"image_id": 1, "caption": "A dog runs."}, {"image_id": 1, "caption": "A dog plays."}]}


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("plain.en", "A dog runs.\n\nIt is no. 5. It wins!\n", ["A dog runs.", "It is no. 5.", "It wins!"]),
        ("squad.json", json.dumps(SQUAD), ["It rained.", "We left."]),
        ("coco.json", json.dumps(COCO), ["A dog runs.", "A dog plays."]),
        ("mails.jsonl", '{"document": "Hi. It is me.", "summary": "me"}\n{"id": 4}\n', ["Hi.", "It is me."]),
        ("clips.csv", "audio,text\na.wav,take the pen\n", ["take the pen"]),
    ],
)
def test_sentences_of_each_format(name: str, content: str, found: list[str], tmp_path: Path) -> None:
    assert read_sentences(write(tmp_path / name, content)) == found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", '{"data": [1, "x"]}', "expected texts under context or caption, found none"),
        ("none.jsonl", '{"id": "x"}\n', "expected texts under text or document or caption, found none"),
        ("broken.jsonl", '{"text": "x"}\n{"text"\n', r"broken\.jsonl, line 2"),
        ("empty", "", "an empty file"),
    ],
)
def test_file_without_texts_raises(name: str, content: str, message: str, tmp_path: Path) -> None:
    bad_data(message, read_sentences, write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("At no. 5 it rained.", ["At no. 5 it rained."]),
        ("He said so. but quietly.", ["He said so. but quietly."]),
        ("Dr. Who came.\nThen\n\nnothing", ["Dr. Who came.", "Then", "nothing"]),
        ("  a  ", ["a"]),
        ("3.5 tons. 4 left.", ["3.5 tons.", "4 left."]),
    ],
)
def test_sentence_splitting(text: str, sentences: list[str]) -> None:
    assert [text[start:end] for start, end in split_sentences(text)] == sentences


@pytest.mark.parametrize(
    "text",
    [
        "".join(map(chr, range(128))),
        "It's 3_4 O'CLOCK-ish",
        "Straße, naïve_CAFE\u0301! don't",
        "हिन्दी 中文\u3000ΟΔΟΣ ﬁne",
        "soft\u00adhyphen\u00a0½ \u00b4",
        "",
    ],
)
def test_words_by_parts_are_those_of_the_whole_text(text: str) -> None:
    """And those of ASCII, which are found by a pattern, are those of the rules for all scripts."""
    assert split_words(text) == list(_words.__wrapped__(text))
