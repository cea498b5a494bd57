"""Tokenizers of language models: every text is restored."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from mmattn.data.errors import DataError
from mmattn.data.text.language import KINDS, PREFIX, LanguageTokens, pieces, token_bytes
from tests.conftest import refused

TEXT = "Hello wörld, it's  me!\n\nYes \U0001f600 a\tb [PAD] \n"


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_restored(kind: str, tmp_path: Path) -> None:
    tokens = LanguageTokens.fit(lambda: [TEXT], kind, 400)
    ids = tokens.encode(TEXT)
    expected = " ".join(TEXT.replace("  ", " ").split(" ")).replace(" \n", "\n") if kind == "word" else TEXT
    expected = expected.replace("[PAD]", "[UNK]") if kind == "word" else expected
    assert tokens.decode([tokens.eos_id, *ids, tokens.eos_id]) == expected
    assert tokens.pad_id not in ids, "a special token in a text is plain characters"
    known = token_bytes(tokens.tokenizer)
    if kind != "word":
        assert b"".join(known[index] for index in ids) == TEXT.encode()
    tokens.save(tmp_path)
    config = tokens.config()
    assert config == {"kind": PREFIX + kind}
    for other in (LanguageTokens.load(tmp_path, config), pickle.loads(pickle.dumps(tokens))):
        assert (other.encode(TEXT), other.vocab_size, other.eos_id) == (ids, tokens.vocab_size, tokens.eos_id)
    if kind in ("byte", "bpe"):
        assert tokens.decode(tokens.encode("日本 \x00")) == "日本 \x00"
    else:
        assert tokens.encode("\u2603 x")[0] == tokens.unk_id


@pytest.mark.parametrize("kind", ["character", "byte"])
def test_ids_by_table_are_those_of_the_tokenizer(kind: str) -> None:
    tokens = LanguageTokens.fit(lambda: [TEXT], kind)
    for text in ("", TEXT, "日本\x00\r\n\t \x7f\u2581\ufeffé\u0301\U0010ffff" + TEXT, "[UNK][EOS]Ġ"):
        assert tokens.encode(text) == tokens.tokenizer.encode(text, add_special_tokens=False).ids


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    refused(
        "tokenizer kind: expected one of character, .*did you mean 'word'", LanguageTokens.fit, lambda: ["a"], "wordd"
    )
    refused("vocab_size: expected at least 260 for 'bpe', found 100", LanguageTokens.fit, lambda: ["a"], "bpe", 100)
    refused("expected a string of valid Unicode", LanguageTokens.fit(lambda: ["a"]).encode, "\udcff", error=DataError)
    refused("no such file", LanguageTokens.load, tmp_path, {"kind": "lm_word"}, error=DataError)
    LanguageTokens.fit(lambda: ["a"]).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text().replace("[EOS]", "[END]"))
    refused(r"a special token \[EOS\], found none", LanguageTokens.load, tmp_path, {"kind": "lm_word"}, error=DataError)


def test_long_texts_are_cut_after_spaces() -> None:
    text = "abc " * 10 + "x" * 30
    found = list(pieces([text, "y"], 16))
    assert "".join(found) == text + "y"
    assert max(map(len, found)) <= 16
    assert all(part.endswith(" ") for part in found[:2])
