"""Tokenizers of public models, against those of transformers, on sentencepiece models trained here."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmattn.data.text.pretrained import PublicText, read_public
from mmattn.tasks.common.seq2seq.data import PairSample
from mmattn.tasks.common.seq2seq.processor import PairProcessor
from tests.data.files import bad_data, write
from tests.tasks.public_folders import FAMILIES, TARGETS, TEXTS, write_tokenizer

pytest.importorskip("sentencepiece")
HARD = [*TEXTS, *TARGETS, "unseen Wörter: 12.5 % – naïve", "  spaces   here ", "x", "日本", "a\tb", "it's"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in found.items():
        write_tokenizer(family, folder)
    return found


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.mark.parity
@pytest.mark.parametrize("text", [*HARD, ">>deu<< the old dog"])
def test_marian(folders: dict[str, Path], text: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MarianTokenizer.from_pretrained(folders["marian"])
    source, target = read_public(folders["marian"])
    assert [*source.encode(text), source.eos_id] == theirs(text).input_ids
    expected = theirs(text_target=text).input_ids
    assert [*target.encode(text), target.eos_id] == expected
    assert target.decode(expected) == theirs.decode(expected, skip_special_tokens=True).strip()
    assert (source.pad_id, source.unk_id, source.vocab_size) == (theirs.pad_token_id, theirs.unk_token_id, len(theirs))


@pytest.mark.parity
@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_bart_and_t5(family: str, text: str, folders: dict[str, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    source, target = read_public(folders[family])
    assert source is target
    if family == "t5":
        theirs = transformers.T5Tokenizer.from_pretrained(folders["t5"])
        assert source.vocab_size == len(theirs)
    else:
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folders["bart"] / "tokenizer.json"))
        assert (source.pad_id, source.eos_id, source.start_id, source.unk_id) == (1, 2, 2, 3)
    expected = theirs(text).input_ids
    assert [*source.prefix_ids, *source.encode(text), source.eos_id] == expected
    ids, mask = source.encode_batch([text, "x"], eos=True)
    assert ids[0][mask[0]].tolist() == expected
    assert source.decode(expected) == theirs.decode(expected, skip_special_tokens=True).strip()


ADDED = [
    "the old<sep> dog newword x",
    "a <x> b",
    "<sep><sep>a",
    "dog </s> <unk>",
    "[SPEC] a <extra_id_0>",
    "a newwords",
    "<y> a<y> <y>b",
]
FILES = {  # what is kept of the files that transformers 5 saves for a tokenizer with added tokens, per age of a folder
    "t5": ["tokenizer.json", "tokenizer_config.json"],
    "t5 with both": ["tokenizer.json", "tokenizer_config.json", "spiece.model"],
    "t5 of version 4": ["spiece.model", "tokenizer_config.json"],
    "t5 of version 3": ["spiece.model", "added_tokens.json", "special_tokens_map.json"],
    "bart": ["tokenizer.json"],
    "bart of version 4": ["vocab.json", "merges.txt", "tokenizer_config.json"],
    "bart of version 3": ["vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"],
    "marian": ["source.spm", "target.spm", "vocab.json", "tokenizer_config.json", "added_tokens.json"],
    "marian of version 3": ["source.spm", "target.spm", "vocab.json", "added_tokens.json", "special_tokens_map.json"],
}


def with_added_tokens(place: Path, kept: list[str], family: str) -> Any:
    """Saves a tokenizer with added tokens; returns transformers' tokenizer of the files that are kept."""
    transformers = pytest.importorskip("transformers")
    kinds = {"t5": "T5Tokenizer", "bart": "BartTokenizer", "marian": "MarianTokenizer"}
    kind = getattr(transformers, kinds[family])
    if family == "bart":
        content = json.loads((place / "tokenizer.json").read_text())["model"]
        write(place / "vocab.json", json.dumps(content["vocab"]))
        write(place / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, content["merges"]), ""]))
    theirs = kind.from_pretrained(place)
    flags = {"<x>": {"lstrip": True, "rstrip": True}, "<y>": {"single_word": True}}
    theirs.add_tokens(["<sep>", "newword", *(transformers.AddedToken(name, **flag) for name, flag in flags.items())])
    theirs.add_special_tokens({"extra_special_tokens": ["[SPEC]"]})
    theirs.save_pretrained(place)
    about, decoder = json.loads((place / "tokenizer_config.json").read_text()), theirs.added_tokens_decoder
    if "tokenizer.json" not in kept:
        names = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
        about["added_tokens_decoder"] = {
            str(i): {name: getattr(token, name) for name in names} for i, token in decoder.items()
        }
        write(place / "tokenizer_config.json", json.dumps(about))
    sentinels = [token.content for token in decoder.values() if "extra_id" in token.content]
    write(place / "special_tokens_map.json", json.dumps({"extra_special_tokens": ["[SPEC]", *sentinels]}))
    added = {token.content: i for i, token in decoder.items() if token.content not in sentinels}
    write(place / "added_tokens.json", json.dumps(added))
    for path in place.iterdir():
        if path.name not in kept:
            path.unlink()
    return kind.from_pretrained(place)


@pytest.mark.parity
@pytest.mark.parametrize("folder", FILES)
def test_added_tokens(folder: str, folders: dict[str, Path], tmp_path: Path) -> None:
    family = folder.split()[0]
    place = shutil.copytree(folders[family], tmp_path / "public")
    theirs = with_added_tokens(place, FILES[folder], family)
    source, _ = read_public(place)
    PairProcessor(source).save(tmp_path / "saved")
    for ours in (source, PairProcessor.load(tmp_path / "saved").source, pickle.loads(pickle.dumps(source))):
        for text in [*ADDED, *HARD]:
            expected = theirs(text).input_ids
            assert [*ours.prefix_ids, *ours.encode(text), ours.eos_id] == expected, text
            assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True).strip(), text
            assert len(ours.spans(text)) == len(expected) - len(ours.prefix_ids) - 1
    assert source.vocab_size == len(theirs)


def test_marian_with_a_vocabulary_for_each_language(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer("marian separate", tmp_path)
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path)
    pad = json.loads((tmp_path / "target_vocab.json").read_text())["<pad>"]
    special = {"pad_id": pad, "start_id": pad, "eos_id": 0}
    processor = PairProcessor(*read_public(tmp_path, special=special))
    processor.save(tmp_path / "saved")
    for ours in (processor, PairProcessor.load(tmp_path / "saved")):
        assert pad != theirs.pad_token_id
        assert (ours.source.pad_id, ours.target.pad_id) == (theirs.pad_token_id, pad)
        for text in HARD:
            assert [*ours.source.encode(text), ours.source.eos_id] == theirs(text).input_ids
            expected = theirs(text_target=text).input_ids
            assert [*ours.target.encode(text), ours.target.eos_id] == expected
            assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True).strip()
    (tmp_path / "target_vocab.json").unlink()
    bad_data(r"target_vocab\.json: expected the tokenizer's file", read_public, tmp_path)


def test_rows_beyond_the_vocabulary_decode_to_nothing(folder: Path) -> None:
    _, target = read_public(folder)
    ids = target.encode("the old dog")
    assert target.decode([*ids, target.vocab_size, 10**6]) == target.decode(ids) == "the old dog"


def test_tokenizers_are_saved_with_the_processor(folder: Path, tmp_path: Path) -> None:
    source, target = read_public(folder, max_len=40)
    processor = PairProcessor(source, target, max_source_len=12, max_target_len=9)
    processor.save(tmp_path)
    other = PairProcessor.load(tmp_path)
    assert other.fingerprint() == processor.fingerprint()
    assert other.shared == (source is target)
    samples = [PairSample("1", TEXTS[1], TARGETS[1]), PairSample("2", TEXTS[0], TARGETS[0])]
    mine, theirs = processor.collate(samples), pickle.loads(pickle.dumps(other)).collate(samples)
    assert mine.source_ids.tolist() == theirs.source_ids.tolist()
    assert mine.labels.tolist() == theirs.labels.tolist()
    assert mine.source_ids.shape == (2, 12)
    assert processor.source.truncated
    assert (mine.labels.max(1).values >= 0).all()
    assert mine.labels[mine.label_mask].tolist().count(source.eos_id) == 2, "the end token is never truncated"


def test_words_map_to_subword_tokens(folder: Path) -> None:
    source, _ = read_public(folder)
    words, owners = source.words("the old dogs carry")
    assert words == ["the", "old", "dogs", "carry"]
    assert len(owners) == source.length("the old dogs carry")
    assert sorted(set(owners)) == [0, 1, 2, 3]
    assert owners == sorted(owners)


@pytest.mark.parametrize("text", ["the old  dog", " a man\tin blue ", ">>deu<< the dog", "ﬁne dog", "日本 x", "", "  "])
def test_spans_match_token_positions(folder: Path, text: str) -> None:
    source, _ = read_public(folder)
    spans = source.spans(text)
    assert len(spans) == source.length(text)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert [span[0] for span in spans] == sorted(span[0] for span in spans)
    if "日" not in text and "ﬁ" not in text:  # one character may be several tokens, or one token several characters
        assert "".join(text[start:end] for start, end in spans) == "".join(text.split())


def test_prefix_applies_to_sources_only(folders: dict[str, Path], tmp_path: Path) -> None:
    source, target = read_public(folders["t5"], prefix="the old dog: ")
    plain, _ = read_public(folders["t5"])
    assert source is not target
    ids, mask = source.encode_batch(["a basket"], eos=True)
    assert ids[0][mask[0]].tolist() == [*plain.encode("the old dog: a basket"), plain.eos_id]
    assert target.encode_batch(["a basket"], eos=True)[0].tolist() == [[*plain.encode("a basket"), plain.eos_id]]
    assert source.spans("a basket") == plain.spans("a basket")
    processor = PairProcessor(source, target, max_source_len=32, max_target_len=9)
    processor.save(tmp_path)
    assert PairProcessor.load(tmp_path).encode_sources(["a basket"])["source_ids"].tolist() == ids.tolist()
    assert pickle.loads(pickle.dumps(source)).prefix_ids == source.prefix_ids
    assert PairProcessor.whole_length(source, "a basket") == ids.shape[1]


def test_invalid_folders(tmp_path: Path, folders: dict[str, Path]) -> None:
    bad_data(r"expected tokenizer.json; or source.spm and .*, found no such folder", read_public, tmp_path / "none")
    spm = write(tmp_path / "spiece.model", b"nonsense")
    bad_data(rf"{tmp_path}: tokenizer \(t5\): expected its files", read_public, tmp_path)
    write(tmp_path / "tokenizer.json", "{}")
    spm.unlink()
    bad_data(r"tokenizer \(tokenizer.json\)", read_public, tmp_path)
    source, _ = read_public(folders["marian"])
    assert isinstance(source, PublicText)
    bad_data("valid Unicode", source.encode, "\udcff")
    config = {"format_version": 1, "source": {"kind": "other"}, "target": None}
    config |= {"max_source_len": 5, "max_target_len": 5, "options": {}}
    write(tmp_path / "processor.json", json.dumps(config))
    bad_data("kind", PairProcessor.load, tmp_path)
