"""Files of token ids: nanoGPT's .bin and .npy, for models whose tokenizer is given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.data.text.language import LanguageTokens
from mmattn.tasks.common import check
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.task import tasks
from mmattn.tasks.text_generation import load, tokens as files
from mmattn.tasks.text_generation.corpus import Blocks
from mmattn.tasks.text_generation.data import TextDataset
from mmattn.tasks.text_generation.module import TextGenerationDataModule
from mmattn.tasks.text_generation.processor import TextGenerationProcessor
from tests.conftest import refused
from tests.pretrained_causal import write_public
from tests.tasks.runs import ask, read, run

TASK = "text_generation"
TEXTS = ["the cat sat on the mat", "", "the dog ran, and the cat sat"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PART", 7)


def byte_processor() -> TextGenerationProcessor:
    return TextGenerationProcessor(LanguageTokens.fit(lambda: [""], "byte"), 16, {"prefix_ids": []})


def written(folder: Path, encode: Any, end: int, times: int = 1) -> list[int]:
    """Writes train.bin as nanoGPT's prepare.py does, each document with an end token; and the same as train.npy."""
    ids = [token for text in TEXTS * times for token in [*encode(text), end]]
    np.array(ids, np.uint16).tofile(folder / "train.bin")
    np.save(folder / "train.npy", np.array(ids, np.int32))
    return ids


@pytest.mark.parametrize("name", ["train.bin", "train.npy"])
def test_files_are_mapped_and_their_documents_found(name: str, tmp_path: Path) -> None:
    processor = byte_processor()
    ids = written(tmp_path, processor.tokenizer.encode, processor.tokenizer.eos_id)
    corpus = processor.encode_corpus(TextDataset(tmp_path / name))
    assert isinstance(corpus.ids, np.memmap)
    assert corpus.ids.tolist() == ids
    assert corpus.starts.tolist() == [0, 23, 24]
    assert (corpus.bytes, corpus.words) == (sum(map(len, TEXTS)), 0)
    assert processor.collate(list(Blocks(corpus, 24))[:1]).documents[0].tolist() == [1] * 23 + [2]
    train, val = TextDataset(tmp_path / name).divided(0)
    parts = [processor.encode_corpus(part) for part in (train, val)]
    assert [token for part in parts for token in part.ids.tolist()] == ids
    assert len(parts[1]) == 6
    assert len({one.fingerprint() for one in (train, val, TextDataset(tmp_path / name))}) == 3


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    def wrong(message: str, name: str, content: Any) -> None:
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
        refused(message, TextDataset, path, error=DataError)

    wrong(r"a\.bin: expected ids of two bytes each \(uint16, .*\), found 5 bytes, an odd number", "a.bin", b"abcde")
    wrong(r"a\.bin: expected a file with token ids, found none", "a.bin", b"")
    wrong("an array of integers with one dimension, found float64 of the shape", "a.npy", np.zeros(3))
    wrong(r"found int64 of the shape \(2, 2\)", "a.npy", np.zeros((2, 2), np.int64))
    wrong("a readable file of token ids", "a.npy", b"not an array")
    wrong("a readable file of token ids", "a.npy", np.array([{}], dtype=object))
    wrong(r"a\.npy, token 9: expected an id of 0 or more, found -1", "a.npy", np.array([0] * 9 + [-1]))
    refused("no such file", TextDataset, tmp_path / "none.bin", error=DataError)
    processor = byte_processor()
    np.array([5] * 11 + [260], np.uint16).tofile(tmp_path / "b.bin")
    message = r"b\.bin, token 11: expected an id below 260, as the tokenizer has them, found 260"
    refused(message, processor.encode_corpus, TextDataset(tmp_path / "b.bin"), error=DataError)
    _, val = TextDataset(tmp_path / "b.bin").divided(0)
    refused("token 11: expected an id below 260", processor.encode_corpus, val, error=DataError)
    processor.tokenizer.vocab_size = 100_000
    refused("at most 65,536 ids", processor.encode_corpus, TextDataset(tmp_path / "b.bin"), error=DataError)
    np.array([5] * 9, np.uint16).tofile(tmp_path / "b.bin")
    refused("at least 20 tokens, to hold a tenth out", TextDataset(tmp_path / "b.bin").divided, 0, error=DataError)
    np.array([5] * 99, np.uint16).tofile(tmp_path / "b.bin")
    expected = r"b\.bin: expected texts; or, to train on, a tokenizer that is given, by --init_from"
    refused(expected, run, "fit", tmp_path / "r", f"--data.train {tmp_path / 'b.bin'} --data.tokenizer byte", task=TASK)
    refused(expected, ask, "predict", "--input", tmp_path / "b.bin", task=TASK, error=DataError)


def test_check_says_what_is_known_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.arange(300, dtype=np.uint16).tofile(tmp_path / "train.bin")
    assert check.run(tasks()[TASK], [str(tmp_path / "train.bin")])
    table = capsys.readouterr().out
    assert "tokens: min / median / max" in table
    assert "300 / 300 / 300" in table
    assert "299 / 299 / 299" in table


def test_training_with_a_public_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new model, or the public one, learns from a .bin; its metrics per byte are those of the text."""
    _, fast = write_public(tmp_path / "public", "gpt2", torch.float32)
    ids = written(tmp_path, lambda text: fast(text)["input_ids"], fast.eos_token_id, times=9)
    data = f"--data.train {tmp_path / 'train.bin'} --data.val {tmp_path / 'train.npy'} --data.block_size 16 "
    new = run("fit", tmp_path / "new", f"{data} --data.tokenizer {tmp_path / 'public'}", task=TASK)
    said = capsys.readouterr().err
    assert "val: word_perplexity left out, since only ids are known of the text." in said
    found = read(new / "metrics.json")["validation"]
    bits = found["loss"] * (len(ids) - 1) / (9 * sum(map(len, TEXTS))) / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert "word_perplexity" not in found
    writer = load(new / "model", device="cpu")
    assert writer.processor.tokenizer.encode(TEXTS[0]) == fast(TEXTS[0])["input_ids"]
    assert writer("the cat", max_new_tokens=2).text is not None
    tuned = f"{data} --init_from {tmp_path / 'public'} --trainer.max_steps 1"
    run("fit", tmp_path / "tuned", tuned, base="--trainer.accelerator cpu --data.batch_size 2", task=TASK)


def test_tokenizers_that_do_not_exist(tmp_path: Path) -> None:
    message = "data.tokenizer: expected character, .*, or a model as hf:owner/name.*found 'charakter'.*'character'"
    refused(message, TextGenerationDataModule, tokenizer="charakter", error=ConfigError)
    data = TextGenerationDataModule(tokenizer=str(tmp_path / "none"))
    refused("no such folder", data.make_processor, TextDataset(["a b"]), error=CheckpointError)
