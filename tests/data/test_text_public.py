"""Tokenizers of public models, against those of transformers, on sentencepiece models trained here."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

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
    bad_data(r"tokenizer \(t5\): expected its files", read_public, tmp_path)
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
