"""Pairs of texts: processor, batches, and errors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.seq2seq.data import PairDataset, PairSample
from mmattn.tasks.common.seq2seq.processor import PairProcessor
from tests.conftest import refused
from tests.data.files import bad_data, write

TEXTS = [
    ("the red dog sleeps", "der rote Hund schläft"),
    ("a cat", "eine Katze"),
    ("the dog sees a cat", "der Hund sieht eine Katze"),
]
SAMPLES = [PairSample(str(n), *TEXTS[n % 3]) for n in range(12)]


def fit(tokenizer: str = "word", **options: Any) -> PairProcessor:
    return PairProcessor.fit(PairDataset(SAMPLES), tokenizer, 300, **options)


@pytest.fixture(params=["shared bpe", "separate bpe", "shared unigram", "separate word"])
def processor(request: pytest.FixtureRequest) -> PairProcessor:
    share, kind = request.param.split()
    return fit(kind, shared_vocab=share == "shared", max_target_len=60)


def test_batch(processor: PairProcessor) -> None:
    batch = processor.collate(SAMPLES[:3])
    start, end, pad = (getattr(processor.target, name) for name in ("start_id", "eos_id", "pad_id"))
    assert batch.source_ids.shape == batch.source_mask.shape
    assert batch.target_ids.shape == batch.labels.shape == batch.label_mask.shape
    assert (batch.target_ids[:, 0] == start).all()
    assert torch.equal(batch.target_ids[:, 1:], batch.labels[:, :-1])
    for n, sample in enumerate(SAMPLES[:3]):
        labels = batch.labels[n][batch.label_mask[n]].tolist()
        assert labels[-1] == end
        assert processor.decode(labels) == sample.target
        ids = batch.source_ids[n][batch.source_mask[n]].tolist()
        assert ids == [*processor.source.encode(sample.source), processor.source.eos_id]
    assert (batch.labels[~batch.label_mask] == pad).all()
    assert batch.references == [[sample.target] for sample in SAMPLES[:3]]
    assert len(batch) == 3
    assert processor.collate(SAMPLES[:1], is_repeat=True).is_repeat
    assert [pair[0] for pair in processor.lengths(SAMPLES[:3])] == batch.source_mask.sum(1).tolist()
    assert [pair[1] for pair in processor.lengths(SAMPLES[:3])] == batch.label_mask.sum(1).tolist()


def test_source_ablation(processor: PairProcessor) -> None:
    batch, dots = processor.collate(SAMPLES[:3]), processor.collate([PairSample("0", ".", "x")] * 3)
    hidden = processor.ablate(batch, "source")
    assert torch.equal(hidden.source_ids, dots.source_ids)
    assert torch.equal(hidden.source_mask, dots.source_mask)
    assert torch.equal(hidden.labels, batch.labels)


def test_save_load_and_pickle(processor: PairProcessor, tmp_path: Path) -> None:
    processor.options["source_lang"] = "en"
    processor.save(tmp_path)
    expected = processor.collate(SAMPLES)
    for other in (PairProcessor.load(tmp_path), pickle.loads(pickle.dumps(processor))):
        assert other.fingerprint() == processor.fingerprint()
        assert other.shared == processor.shared
        assert other.sizes() == processor.sizes()
        assert torch.equal(other.collate(SAMPLES).labels, expected.labels)


def test_vocabulary_sizes_and_truncation() -> None:
    assert fit(shared_vocab=False).sizes() == {"vocab_size": 4 + 7, "source_vocab_size": 4 + 7}
    processor = fit(max_source_len=4, max_target_len=5)
    assert processor.sizes() == {"vocab_size": processor.source.vocab_size, "source_vocab_size": None}
    assert processor.count_truncated(SAMPLES[:3]) == (2, 1)
    batch = processor.collate(SAMPLES[:3])
    assert batch.source_mask.sum(1).tolist() == [4, 3, 4]
    assert batch.source_ids[0, 3] == processor.source.eos_id, "the end token is never truncated"
    assert processor.source.truncated == 3
    assert processor.lengths(SAMPLES[:3]) == [(4, 5), (3, 3), (4, 5)]


def test_retarget_keeps_tokenizers_and_sets_lengths() -> None:
    processor = fit()
    processor.options = {"source_lang": "en", "generation": {"max_length": 9, "num_beams": 2}}
    other = processor.retarget(None, {"max_target_len": 7, "vocab_size": 900, "options": {"source_lang": "de"}})
    assert (other.source, other.max_source_len, other.max_target_len) == (processor.source, 256, 7)
    assert other.options == {"source_lang": "de", "generation": {"num_beams": 2}}
    assert processor.options["source_lang"] == "en"
    message = r"data\.shared_vocab: expected True, .* found False"
    refused(message, processor.retarget, None, {"shared_vocab": False}, error=ConfigError)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (PairSample("x", "a", " "), r"sample 12 \(id 'x'\): expected a target that is not empty"),
        (PairSample("x", "", "b"), "expected a source that is not empty"),
        (PairSample("x", "a\udcff", "b"), "expected a source of UTF-8 text"),
        (PairSample("x", 3, "b"), "expected a source text, found 3"),  # type: ignore[arg-type]
        (PairSample("x", "a", ["b"]), "expected a target text"),  # type: ignore[arg-type]
        (PairSample("x", "a", "b", [""]), "expected a reference that is not empty"),
        (PairSample("7", "a", "b"), r"expected an id of its own, found '7', which sample 7 \(id '7'\) has already"),
    ],
)
def test_invalid_samples(sample: PairSample, message: str) -> None:
    bad_data(message, PairDataset, [*SAMPLES, sample])
    rest = PairDataset([*SAMPLES, sample], on_error="skip")
    assert (len(rest), len(rest.skipped)) == (len(SAMPLES), 1)


def test_dataset() -> None:
    dataset = PairDataset(SAMPLES)
    assert dataset.fingerprint() == PairDataset(list(SAMPLES)).fingerprint()
    assert dataset.fingerprint() != PairDataset(SAMPLES[:-1]).fingerprint()
    both = dataset.with_more(dataset)
    assert (len(both), len(dataset), both.name) == (24, 12, "samples and samples")
    assert both.fingerprint() != dataset.fingerprint()
    assert PairSample("1", "a", references=["b", "c"]).right_targets() == ["b", "c"]
    assert PairDataset([PairSample("1", "a")], require_labels=False).samples[0].target == ""


def test_invalid_lengths(tmp_path: Path) -> None:
    processor = fit()
    processor.save(tmp_path)
    write(tmp_path / "processor.json", json.dumps(processor.config() | {"max_source_len": 1}))
    bad_data("expected at least 2, found 1", PairProcessor.load, tmp_path)
