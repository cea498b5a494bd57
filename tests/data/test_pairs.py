"""Pairs of texts: processor, batches, and what is refused."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch

from mmattn.data.errors import DataError, Problems
from mmattn.tasks.common.seq2seq.data import PairDataset, PairProcessor, PairSample, collate

SAMPLES = [
    PairSample("1", "the red dog sleeps", "der rote Hund schläft"),
    PairSample("2", "a cat", "eine Katze"),
    PairSample("3", "the dog sees a cat", "der Hund sieht eine Katze"),
] * 4


@pytest.fixture(params=["shared bpe", "separate bpe", "shared unigram", "separate word"])
def processor(request: pytest.FixtureRequest) -> PairProcessor:
    share, kind = request.param.split()
    return PairProcessor.fit(PairDataset(SAMPLES), kind, 300, shared_vocab=share == "shared", max_target_len=60)


def test_a_batch(processor: PairProcessor) -> None:
    batch = collate(SAMPLES[:3], processor)
    start, end, pad = (getattr(processor.target, name) for name in ("start_id", "eos_id", "pad_id"))
    assert batch.source_ids.shape == batch.source_mask.shape
    assert batch.target_ids.shape == batch.labels.shape == batch.label_mask.shape
    assert (batch.target_ids[:, 0] == start).all()
    assert torch.equal(batch.target_ids[:, 1:], batch.labels[:, :-1])
    for n, sample in enumerate(SAMPLES[:3]):
        labels = batch.labels[n][batch.label_mask[n]].tolist()
        assert labels[-1] == end
        assert processor.decode(labels) == sample.target
        assert batch.source_ids[n][batch.source_mask[n]].tolist() == [
            *processor.source.encode(sample.source), processor.source.eos_id
        ]  # fmt: skip
    assert (batch.labels[~batch.label_mask] == pad).all()
    assert batch.references == [[sample.target] for sample in SAMPLES[:3]]
    assert len(batch) == 3


def test_lengths_are_those_of_the_batch(processor: PairProcessor) -> None:
    batch = collate(SAMPLES[:3], processor)
    assert [pair[0] for pair in processor.lengths(SAMPLES[:3])] == batch.source_mask.sum(1).tolist()
    assert [pair[1] for pair in processor.lengths(SAMPLES[:3])] == batch.label_mask.sum(1).tolist()


def test_saved_loaded_and_pickled(processor: PairProcessor, tmp_path: Path) -> None:
    processor.options["source_lang"] = "en"
    processor.save(tmp_path)
    expected = collate(SAMPLES, processor)
    for other in (PairProcessor.load(tmp_path), pickle.loads(pickle.dumps(processor))):
        assert other.fingerprint() == processor.fingerprint()
        assert other.shared == processor.shared
        assert other.sizes() == processor.sizes()
        assert torch.equal(collate(SAMPLES, other).labels, expected.labels)


def test_sizes() -> None:
    shared = PairProcessor.fit(PairDataset(SAMPLES), "word", 300)
    assert shared.sizes() == {"vocab_size": shared.source.vocab_size, "source_vocab_size": None}
    separate = PairProcessor.fit(PairDataset(SAMPLES), "word", 300, shared_vocab=False)
    assert separate.sizes() == {"vocab_size": 4 + 7, "source_vocab_size": 4 + 7}


def test_what_is_too_long_is_cut_and_counted() -> None:
    processor = PairProcessor.fit(PairDataset(SAMPLES), "word", 300, max_source_len=4, max_target_len=5)
    assert processor.count_truncated(SAMPLES[:3]) == (2, 1)
    batch = collate(SAMPLES[:3], processor)
    assert batch.source_mask.sum(1).tolist() == [4, 3, 4]
    assert batch.source_ids[0, 3] == processor.source.eos_id, "the end is never cut"
    assert processor.source.truncated == 3
    assert processor.lengths(SAMPLES[:3]) == [(4, 5), (3, 3), (4, 5)]


def test_several_references_and_none() -> None:
    sample = PairSample("1", "a", references=["b", "c"])
    assert PairDataset([sample]).samples[0].right_targets() == ["b", "c"]
    assert PairDataset([PairSample("1", "a")], require_target=False).samples[0].target == ""


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (PairSample("7", "a", " "), r"sample 0 \(id '7'\): expected a target that is not empty"),
        (PairSample("7", "", "b"), "expected a source that is not empty"),
        (PairSample("7", "a\udcff", "b"), "expected a source of UTF-8 text"),
        (PairSample("7", 3, "b"), "expected a source text, found 3"),  # type: ignore[arg-type]
        (PairSample("7", "a", "b", [""]), "expected a reference that is not empty"),
    ],
)
def test_bad_samples(sample: PairSample, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PairDataset([sample])
    problems = Problems("skip")
    assert len(PairDataset([sample, *SAMPLES], problems=problems)) == len(SAMPLES)
    assert len(problems.items) == 1


def test_nothing_is_left() -> None:
    with pytest.raises(DataError, match="expected at least one pair, found none"):
        PairDataset([])


def test_fingerprints_tell_data_apart() -> None:
    assert PairDataset(SAMPLES).fingerprint() == PairDataset(list(SAMPLES)).fingerprint()
    assert PairDataset(SAMPLES).fingerprint() != PairDataset(SAMPLES[:-1]).fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "expected format_version 1, found 9"),
        ({"options": None, "extra": 1}, "expected the keys"),
        ({"max_source_len": 1}, "expected at least 2, found 1"),
    ],
)
def test_damaged_processor(change: dict[str, object], message: str, tmp_path: Path) -> None:
    processor = PairProcessor.fit(PairDataset(SAMPLES), "word", 300)
    processor.save(tmp_path)
    (tmp_path / "processor.json").write_text(json.dumps(processor.config() | change))
    with pytest.raises(DataError, match=message):
        PairProcessor.load(tmp_path)


def test_workers_get_a_picklable_collate() -> None:
    processor = PairProcessor.fit(PairDataset(SAMPLES), "word", 300)
    batch = pickle.loads(pickle.dumps(partial(collate, processor=processor)))(SAMPLES[:2], seeds=[1, 2], is_repeat=True)
    assert batch.is_repeat
