"""Corpora of text generation: formats, blocks, files that are mapped, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.data.text.language import LanguageTokens
from mmattn.tasks.text_generation import corpus as corpora
from mmattn.tasks.text_generation.corpus import Blocks, Corpus, count_words, make_corpus
from mmattn.tasks.text_generation.data import TextDataset, TextSample
from mmattn.tasks.text_generation.formats import FileText
from mmattn.tasks.text_generation.model import TextGenerationModel
from mmattn.tasks.text_generation.module import TextGenerationDataModule
from mmattn.tasks.text_generation.processor import TextGenerationProcessor
from tests.conftest import refused

PLAY = "one two\n\nthree\nfour five\n"


def texts(path: Path, document: str = "file") -> list[str]:
    return [sample.whole for sample in TextDataset(path, document).samples]


def test_formats(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text(PLAY)
    (tmp_path / "b.md").write_text("six")
    (tmp_path / "c.png").write_text("no text")
    assert texts(tmp_path) == [PLAY, "six"]
    assert texts(tmp_path / "a" / "x.txt", "line") == ["one two", "three", "four five"]
    assert texts(tmp_path / "a" / "x.txt", "paragraph") == ["one two", "three\nfour five"]
    (tmp_path / "windows.txt").write_bytes(PLAY.replace("\n", "\r\n").encode())
    for document in ("file", "line", "paragraph"):
        assert texts(tmp_path / "windows.txt", document) == texts(tmp_path / "a" / "x.txt", document)
    (tmp_path / "D.CSV").write_text("text\nseven\n")
    assert texts(tmp_path / "D.CSV") == ["seven"]
    (tmp_path / "d.jsonl").write_text('{"text": "one"}\n{"text": "two", "id": "b"}\n')
    assert [(s.id, s.whole) for s in TextDataset(tmp_path / "d.jsonl").samples] == [("1", "one"), ("b", "two")]
    (tmp_path / "e.jsonl").write_text('{"prompt": "say one:", "response": "one"}\n')
    (sample,) = TextDataset(tmp_path / "e.jsonl").samples
    assert (sample.prompt, sample.whole) == ("say one:", "one")
    rows = [{"prompt": "", "response": "one"}, {"prompt": "say two:", "response": "two"}]
    assert TextDataset(rows).is_instruction, "though its first prompt is empty"
    assert [sample.whole for sample in TextDataset(["one", "two"]).samples] == ["one", "two"]
    data = TextDataset(tmp_path / "a" / "x.txt")
    train, val = data.divided(0)
    assert train[0].whole + val[0].whole == PLAY
    module = TextGenerationDataModule(train=str(tmp_path / "a" / "x.txt"))
    assert module.division.startswith("The last tenth of the text is held out for validation;")
    module = TextGenerationDataModule(train=str(tmp_path / "a" / "x.txt"), document="line")
    assert module.division.startswith("1 of 3 samples are held out for validation")


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    def wrong(message: str, content: bytes, name: str = "a.txt", document: str = "file") -> None:
        (tmp_path / name).write_bytes(content)
        refused(message, TextDataset, tmp_path / name, document, error=DataError)

    wrong(r"a\.txt, line 2: expected UTF-8 text, found the byte 0xff", b"one\ntwo \xff\n")
    wrong(r"a\.txt, line 2: expected UTF-8 text", b"one\ntwo \xff\n", document="line")
    wrong("expected a file with content, found an empty file", b" \n")
    wrong("UTF-16", "text".encode("utf-16"))
    wrong(r"a\.jsonl, line 2: expected the key text, found txt", b'{"text": "a"}\n{"txt": "b"}\n', "a.jsonl")
    wrong(r"line 1: expected the key response, found prompt", b'{"prompt": "a"}\n', "a.jsonl")
    wrong("rows that all have text", b'{"text": "a"}\n{"prompt": "b", "response": "c"}\n', "a.jsonl")
    wrong("expected a text that is not empty", b'{"text": " "}\n', "a.jsonl")
    (tmp_path / "empty").mkdir()
    refused("a folder with text files", TextDataset, tmp_path / "empty", error=DataError)
    refused("no such file", TextDataset, tmp_path / "none.txt", error=DataError)
    one = TextDataset([TextSample("a", "word")])
    refused("a text of several words, to hold a part out", one.divided, 0, error=DataError)


def test_one_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in parts that end with words, of which no text is lost."""
    text = " ".join(f"word{n}" for n in range(60_000))
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr("mmattn.tasks.text_generation.formats.PIECE", 1 << 12)
    (sample,) = TextDataset(tmp_path / "a.txt").samples
    parts = list(sample.pieces())
    assert "".join(parts) == text
    assert len(parts) > 50
    assert max(map(len, parts)) <= 2 << 12
    assert all(part.endswith(" ") for part in parts[:-1])
    train, val = (half[0] for half in TextDataset(tmp_path / "a.txt").divided(0))
    assert isinstance(train.text, FileText), "the text is not read into memory"
    assert train.whole + val.whole == text
    assert 0.89 * len(text) < len(train.whole) <= 0.9 * len(text)
    assert train.whole.endswith(" ")
    assert len({one.text.fingerprint() for one in (sample, train, val)}) == 3
    (tmp_path / "b.txt").write_bytes(b"x" * 4095 + b"\r\n" + b"y" * 9000 + b"\r\r\nz\r")
    (sample,) = TextDataset(tmp_path / "b.txt").samples
    assert sample.whole == "x" * 4095 + "\n" + "y" * 9000 + "\r\nz\r", "an end of line may lie between two parts"


def small(text: str = "abc") -> TextGenerationProcessor:
    return TextGenerationProcessor(LanguageTokens.fit(lambda: [text]), 4)


def test_blocks_cover_each_token_once() -> None:
    for length in (1, 2, 5, 6, 13, 40):
        corpus = Corpus(np.arange(length, dtype=np.uint16), np.array([1]))
        for size, context in ((4, 0), (4, 2), (8, 3)):
            counted: list[int] = []
            for block in Blocks(corpus, size, context):
                labels = block.ids()[1:]
                assert len(labels) == block.size <= size
                counted += labels[block.context :].tolist()
                assert block.context in (0, context) or block.id != "0"
            assert sorted(counted) == list(range(1, length)), (length, size, context)
    blocks = Blocks(Corpus(np.arange(41, dtype=np.uint16), np.array([1])), 4, streams=2)
    read = [blocks[n].ids()[:-1].tolist() for n in range(len(blocks))]
    assert read[0::2] == [[n, n + 1, n + 2, n + 3] for n in range(0, 20, 4)], "each row continues the one before"
    assert read[1::2] == [[n, n + 1, n + 2, n + 3] for n in range(20, 40, 4)]


def test_large_corpora_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "cache_folder", lambda: tmp_path / "tokens")
    tokens = LanguageTokens.fit(lambda: ["ab\n"])
    samples = [TextSample(str(n), "ab\n" * 50) for n in range(9)]
    given = (samples, tokens.encode, ([], tokens.eos_id), tokens.vocab_size, "key")
    plain, mapped, again = make_corpus(*given), make_corpus(*given, large=200), make_corpus(*given)
    assert not isinstance(plain.ids, np.memmap)
    for other in (mapped, again):
        assert isinstance(other.ids, np.memmap)
        assert np.array_equal(other.ids, plain.ids)
        assert np.array_equal(other.starts, plain.starts)
        assert (other.bytes, other.words) == (plain.bytes, plain.words) == (9 * 150, 9 * 100)
    (folder,) = (tmp_path / "tokens").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["ids.npy", "starts.npy"]
    assert count_words("to be\nor not") == 5


def test_documents_of_mapped_corpora_may_be_empty_or_contain_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "cache_folder", lambda: tmp_path)
    samples = [TextSample(str(n), text) for n, text in enumerate(["ab", "", "a", "", "b"])]
    given = (samples, lambda text: [9, *map("ab".index, text)], ([], 9), 10, "key")  # public tokenizers know an end
    plain, mapped, again = make_corpus(*given), make_corpus(*given, large=1), make_corpus(*given)
    assert isinstance(again.ids, np.memmap)
    for corpus in (plain, mapped, again):
        assert corpus.ids.tolist() == [9, 9, 0, 1, 9, 9, 9, 0, 9, 9, 9, 1, 9]
        assert corpus.starts.tolist() == [1, 5, 6, 9, 10]


def test_the_cache_is_used_again_for_other_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(corpora.make_corpus, "__defaults__", (1,))
    data = TextDataset(["ab abc", "cab"])
    for options in ({}, {"block_size": 5}, {"eval_context": 3}, {"tokenizer": "byte"}):
        TextGenerationProcessor.fit(data, **options).encode_corpus(data)
        assert len(list(tmp_path.iterdir())) == 1 + (options.get("tokenizer") == "byte")


def test_batches_of_blocks() -> None:
    processor = small()
    data = TextDataset([TextSample("a", "ab"), TextSample("b", "cabc")])
    corpus = processor.encode_corpus(data)
    e, (a, b, c) = processor.tokenizer.eos_id, processor.tokenizer.encode("abc")
    assert corpus.ids.tolist() == [e, a, b, e, c, a, b, c, e]
    batch = processor.collate(list(Blocks(corpus, 4)))
    assert batch.input_ids.tolist() == [[e, a, b, e], [c, a, b, c]]
    assert batch.labels.tolist() == [[a, b, e, c], [a, b, c, e]]
    assert batch.documents is not None
    assert batch.documents[0].tolist() == [1, 1, 1, 2], "a document begins with the end of the one before"
    model = TextGenerationModel(**processor.sizes(), embed_dim=8, num_layers=1, num_heads=1).eval()
    packed = model(torch.tensor([[e, a, b, e, c]]), None, torch.from_numpy(corpus.documents(0, 5))[None]).logits
    torch.testing.assert_close(packed[:, 3:], model(torch.tensor([[*processor.start_ids, c]])).logits)
    processor.cross_documents = True
    assert processor.collate(list(Blocks(corpus, 4))).documents is None
    shifted = processor.collate(list(Blocks(corpus, 4)), augment=True, seeds=[3, 3])
    assert shifted.input_ids[0].tolist() == [e, c, a, b], "a block begins later, by a function of its seed"
    ablated = processor.ablate(shifted, "context")
    assert (ablated.input_ids == e).all()


def test_batches_of_instructions() -> None:
    """Only responses count, with the end; long prompts lose their beginning."""
    processor = small("abcx")
    e, (a, b, c, x) = processor.tokenizer.eos_id, processor.tokenizer.encode("abcx")
    batch = processor.collate([TextSample("1", "b", "a"), TextSample("2", "c", "xxxxxx")])
    assert batch.input_ids.tolist() == [[e, a, b, e], [x, x, x, c]]  # the end is read, but not attended to
    assert batch.labels.tolist() == [[a, b, e, 0], [x, x, c, e]]
    assert batch.label_mask.tolist() == [[False, True, True, False], [False, False, True, True]]
    assert batch.key_mask is not None
    assert batch.key_mask.tolist() == [[True, True, True, False], [True] * 4]
    assert processor.cut == 1


def test_processors_are_saved(tmp_path: Path) -> None:
    processor = small()
    processor.save(tmp_path)
    other = TextGenerationProcessor.load(tmp_path)
    assert other.fingerprint() == processor.fingerprint()
    config = json.loads((tmp_path / "processor.json").read_text())
    (tmp_path / "processor.json").write_text(json.dumps(config | {"max_len": 1}))
    refused("max_len: expected at least 2, found 1", TextGenerationProcessor.load, tmp_path, error=DataError)
    assert torch.is_tensor(processor.collate([TextSample("1", "", "ab")]).input_ids)
