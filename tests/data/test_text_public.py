"""Tokenizers of public models, against those of transformers, on sentencepiece models trained here."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest

from mmattn.data.errors import DataError
from mmattn.data.text.pretrained import PublicText, read_public
from mmattn.tasks.common.seq2seq.data import PairSample
from mmattn.tasks.common.seq2seq.processor import PairProcessor

sentencepiece = pytest.importorskip("sentencepiece")
TEXTS = [
    "the old dog carries a basket",
    "A man in a blue shirt is standing on a ladder, cleaning a window.",
    "two young men are outside near many bushes!",
    "ein alter Hund trägt einen Korb über die Straße",
    "zwei Männer stehen am Herd und kochen.",
]
HARD = [*TEXTS, "unseen Wörter: 12.5 % – naïve", "  spaces   here ", "x", "日本", "a\tb", "it's"]


def spm(texts: list[str], size: int, **options: int) -> bytes:
    stream = io.BytesIO()
    options |= {"vocab_size": size, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts * 4), model_writer=stream, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    pieces: list[str] = []
    for name, texts in (("source", TEXTS[:3]), ("target", TEXTS[3:])):
        model = spm(texts, 60)
        (folder / f"{name}.spm").write_bytes(model)
        loaded = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces += [loaded.id_to_piece(i) for i in range(loaded.get_piece_size())]
    special = ["</s>", "<unk>", ">>deu<<"]
    names = [*special, *sorted(set(pieces) - {*special, "<s>"}), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    (folder / "spiece.model").write_bytes(spm(TEXTS, 90, pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    return folder


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing

    folder = tmp_path_factory.mktemp("bart")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    trained.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    trained.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("text", [*HARD, ">>deu<< the old dog"])
def test_marian(marian: Path, text: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MarianTokenizer.from_pretrained(marian)
    source, target = read_public(marian)
    assert [*source.encode(text), source.eos_id] == theirs(text).input_ids
    expected = theirs(text_target=text).input_ids
    assert [*target.encode(text), target.eos_id] == expected
    assert target.decode(expected) == theirs.decode(expected, skip_special_tokens=True).strip()
    assert (source.pad_id, source.unk_id, source.vocab_size) == (theirs.pad_token_id, theirs.unk_token_id, len(theirs))


@pytest.mark.parity
@pytest.mark.parametrize("text", HARD)
def test_t5(t5: Path, text: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5Tokenizer.from_pretrained(t5)
    source, target = read_public(t5)
    assert source is target
    expected = theirs(text).input_ids
    assert [*source.encode(text), source.eos_id] == expected
    assert source.decode(expected) == theirs.decode(expected, skip_special_tokens=True).strip()
    assert source.vocab_size == len(theirs)


@pytest.mark.parity
@pytest.mark.parametrize("text", HARD)
def test_tokenizer_json(bart: Path, text: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(bart / "tokenizer.json"))
    source, _ = read_public(bart)
    expected = theirs(text).input_ids
    assert [*source.prefix_ids, *source.encode(text), source.eos_id] == expected
    ids, mask = source.encode_batch([text, "x"], eos=True)
    assert ids[0][mask[0]].tolist() == expected
    assert source.decode(expected) == theirs.decode(expected, skip_special_tokens=True).strip()
    assert (source.pad_id, source.eos_id, source.start_id, source.unk_id) == (1, 2, 2, 3)


@pytest.mark.parametrize("kind", ["marian", "t5", "bart"])
def test_they_travel_in_the_shipped_folder(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source, target = read_public(request.getfixturevalue(kind), max_len=40)
    processor = PairProcessor(source, target, max_source_len=12, max_target_len=9)
    processor.save(tmp_path)
    other = PairProcessor.load(tmp_path)
    assert other.fingerprint() == processor.fingerprint()
    assert other.shared == (kind != "marian")
    samples = [PairSample("1", TEXTS[1], TEXTS[4]), PairSample("2", TEXTS[0], TEXTS[3])]
    mine, theirs = processor.collate(samples), pickle.loads(pickle.dumps(other)).collate(samples)
    assert mine.source_ids.tolist() == theirs.source_ids.tolist()
    assert mine.labels.tolist() == theirs.labels.tolist()
    assert mine.source_ids.shape == (2, 12)
    assert processor.source.truncated
    assert (mine.labels.max(1).values >= 0).all()
    assert mine.labels[mine.label_mask].tolist().count(source.eos_id) == 2, "the end is never cut"


@pytest.mark.parametrize("kind", ["marian", "t5", "bart"])
def test_words_own_their_pieces(kind: str, request: pytest.FixtureRequest) -> None:
    source, _ = read_public(request.getfixturevalue(kind))
    words, owners = source.words("the old dogs carry")
    assert words == ["the", "old", "dogs", "carry"]
    assert len(owners) == source.length("the old dogs carry")
    assert sorted(set(owners)) == [0, 1, 2, 3]
    assert owners == sorted(owners)


@pytest.mark.parametrize("kind", ["marian", "t5", "bart"])
@pytest.mark.parametrize("text", ["the old  dog", " a man\tin blue ", ">>deu<< the dog", "ﬁne dog", "日本 x", "", "  "])
def test_spans_are_where_tokens_stand(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    source, _ = read_public(request.getfixturevalue(kind))
    spans = source.spans(text)
    assert len(spans) == source.length(text)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert [span[0] for span in spans] == sorted(span[0] for span in spans)
    if "日" not in text and "ﬁ" not in text:  # one sign may be several tokens, or one token several signs
        assert "".join(text[start:end] for start, end in spans) == "".join(text.split())


def test_a_prefix_stands_before_what_is_read_alone(t5: Path, tmp_path: Path) -> None:
    source, target = read_public(t5, prefix="the old dog: ")
    plain, _ = read_public(t5)
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


def test_bad_folders(tmp_path: Path, marian: Path) -> None:
    with pytest.raises(DataError, match=r"expected tokenizer.json; or source.spm and .*, found no such folder"):
        read_public(tmp_path / "none")
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"tokenizer \(t5\): expected its files"):
        read_public(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "spiece.model").unlink()
    with pytest.raises(DataError, match=r"tokenizer \(tokenizer.json\)"):
        read_public(tmp_path)
    with pytest.raises(DataError, match="valid Unicode"):
        read_public(marian)[0].encode("\udcff")
    with pytest.raises(DataError, match="kind"):
        PairProcessor.load(_with_kind(tmp_path / "p"))
    assert isinstance(read_public(marian)[0], PublicText)


def _with_kind(folder: Path) -> Path:
    folder.mkdir()
    config = {"format_version": 1, "source": {"kind": "other"}, "target": None}
    config |= {"max_source_len": 5, "max_target_len": 5, "options": {}}
    (folder / "processor.json").write_text(json.dumps(config))
    return folder
