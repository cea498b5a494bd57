"""Files of texts with labels, and the processor: formats, kinds, sub-words, windows, sentences, invalid data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.tasks.text_classification import demo
from mmattn.tasks.text_classification.augment import TextAugment
from mmattn.tasks.text_classification.data import TextDataset, TextSample
from mmattn.tasks.text_classification.labels import IGNORED
from mmattn.tasks.text_classification.processor import TextClassificationProcessor
from mmattn.tasks.text_classification.sampling import TaskBatchSampler, next_sentences
from tests.conftest import refused
from tests.data.demos import DemoTests
from tests.tasks.runs import write_lines

CONLL = "Ada\tB-person\nlives\tO\n\n-DOCSTART- O\n\nin\tO\nNew\tB-place\nYork\tI-place\n"
CONLLU = """# sent_id = 1
# text = don't go
1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tdo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
2.1\tplease\t_\tINTJ\tUH\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
"""


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


class TestReviews(DemoTests):
    demo = demo
    digests: ClassVar = (
        "f091c6c4558150ded34db115ebd15a61443cbdcc2db721b8d609990d504a7940",
        "dbab87c3a01b5b805fdd41bffb878b808bad121346cd9ccbd7023baa4737e5b7",
        "ab4740f59d9838d4d3b6dad6be1db074a45a057b2cdb738f64b64e982443dc1a",
    )

    @pytest.fixture
    def made(self) -> dict[str, list[TextSample]]:
        return {split: demo.make(split, 300) for split in demo.NUM_SAMPLES}

    def content(self, x: TextSample) -> bytes:
        return repr((x.id, x.text, x.labels, x.evidence)).encode()

    def test_deciding_words_and_tags(self) -> None:
        """The evidence is an adjective with its negation, which gives the verdict; tags mark both things."""
        for sample, tagged in zip(demo.make("test", 200), demo.make_tagged("test", 200), strict=True):
            words = [sample.text[start:end] for start, end in sample.evidence]
            is_good = words[-1] in demo.GOOD
            assert (sample.labels == ["positive"]) == (is_good == (len(words) == 1))
            assert tagged.words is not None
            assert len(tagged.words) == len(tagged.labels)
            kind = "PRAISED" if sample.labels == ["positive"] else "BLAMED"
            assert f"B-{kind}" in tagged.labels
        digest = hashlib.sha256(repr(demo.make_tagged("train", 50)).encode()).hexdigest()
        assert digest.startswith("187d10265d136853")


@pytest.mark.parametrize(
    ("name", "text", "kind", "labels"),
    [
        ("a.csv", 'text,label\n"so, ""good""\nfilm",very good\nx,bad\n', "single_label", [["very good"], ["bad"]]),
        ("a.tsv", 'text\tlabel\n"quoted" x\t1\ny\t0\n', "single_label", [["1"], ["0"]]),
        ("a.csv", "text,labels\nx,joy|love\ny,\n", "multi_label", [["joy", "love"], []]),
        ("a.jsonl", '{"text": "x", "label": true}\n{"text": "y", "label": 3}\n', "single_label", [["true"], ["3"]]),
        ("a.jsonl", '{"text": "x", "labels": ["a b", 2]}\n', "multi_label", [["a b", "2"]]),
        ("a.jsonl", '{"words": ["a", "b"], "tags": ["X", "Y"]}\n', "tagging", [["X", "Y"]]),
        ("a.jsonl", '{"tokens": ["a"], "tags": "X"}\n', "tagging", [["X"]]),
        ("a.conll", CONLL, "tagging", [["B-person", "O"], ["O", "B-place", "I-place"]]),
        ("a.conllu", CONLLU, "tagging", [["AUX", "PART", "VERB"]]),
        ("a.txt", "a line\n\nanother one\n", "text", [[], []]),
    ],
)
def test_kinds_are_read_off(name: str, text: str, kind: str, labels: list[Any], tmp_path: Path) -> None:
    found = TextDataset(write(tmp_path, name, text))
    assert found.kind == kind
    assert [sample.labels for sample in found.samples] == labels


def test_scores_pairs_and_columns(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "text_pair": "b", "label": "yes", "near": 4},
        {"text": "c", "text_pair": "", "label": "no", "near": 2.5},
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)
    classes = TextDataset(path)
    assert [sample.text_pair for sample in classes.samples] == ["b", None]
    scores = TextDataset(path, columns={"label": "near"})
    assert scores.kind == "regression"
    assert [sample.score for sample in scores.samples] == [4.0, 2.5]
    xpos = TextDataset(write(tmp_path, "a.conllu", CONLLU), columns={"tags": "xpos"})
    assert xpos.samples[0].labels == ["VB", "RB", "VB"]
    assert xpos.samples[0].words == ["do", "n't", "go"]
    assert TextDataset([("good", "yes"), ("bad", "no")]).kind == "single_label"
    assert TextDataset([{"text": "x", "label": 1.5}]).samples[0].score == 1.5
    both = TextDataset({"one": path, "two": tmp_path / "a.conllu"})
    assert both.kinds == {"one": "single_label", "two": "tagging"}
    assert [sample.id for sample in both.samples] == ["one/1", "one/2", "two/3"]


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        ("a.csv", "text,label\nx,\n", None, r"line 2: expected one label .*, found \[\]"),
        ("a.csv", "text,label\n ,a\n", None, "line 2: expected a text that is not empty, found ' '"),
        (
            "a.csv",
            "txt,label\nx,a\n",
            None,
            r"the column text, found txt, label .did you mean 'text' instead of 'txt'.* \(--data.columns.text names",
        ),
        ("a.csv", 'text,label\n"x,a\n', None, "line 2: expected 2 cells, found a quoted cell that is never closed"),
        ("a.jsonl", '{"text": "x", "label": {}}\n', None, r"line 1: expected labels that are texts .*\{\}"),
        ("a.jsonl", '{"text": "x", "labels": [["a"]]}\n', None, r"line 1: expected labels that are texts .*\['a'\]"),
        ("a.jsonl", '{"text": "x", "label": ["a"]}\n', "single_label", None),
        ("a.jsonl", '{"text": "x", "label": "warm"}\n', "regression", "line 1: expected a score, a finite number"),
        ("a.jsonl", '{"text": "x", "label": "nan"}\n', "regression", "line 1: expected a score"),
        (
            "a.jsonl",
            '{"words": ["a", "b"], "tags": ["X"]}\n',
            None,
            "line 1: expected a tag for each of 2 words, found 1",
        ),
        ("a.jsonl", '{"words": ["a", " "], "tags": ["X", "Y"]}\n', None, "line 1: expected words, a list of texts"),
        ("a.conll", "Ada\tX\nlives\n", None, "line 2: expected 2 columns, the first a word .*, found 1: 'lives'"),
        ("a.conllu", "1\tgo\n", None, "line 1: expected 10 columns separated by tabs, found 2"),
        ("a.conllu", "x\tgo\t_\tV\t_\t_\t_\t_\t_\t_\n", None, "line 1: expected a number and a word"),
        ("a.xml", "<a/>", None, r"expected a file of CSV, TSV or JSONL .*'\.xml'"),
        ("a.csv", "", None, "expected a file with content"),
    ],
)
def test_bad_files(name: str, text: str, kind: str | None, message: str | None, tmp_path: Path) -> None:
    path = write(tmp_path, name, text)
    if message is None:
        assert len(TextDataset(path, kind)) == 1
        return
    assert str(path) in refused(message, TextDataset, path, kind, error=DataError)


def test_bad_items_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\nx,a\n ,a\ny,b\nz,\n")
    found = TextDataset(path, on_error="skip")
    assert [sample.text for sample in found.samples] == ["x", "y"]
    assert [where.rsplit(", ")[1] for where, _ in found.skipped] == ["line 3", "line 5"]


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    """One class alone, an unknown one in validation, one that validation lacks, equal scores."""
    one = TextDataset([("a", "x"), ("b", "x")])
    refused(r"labels: expected at least 2 different ones in the training data, found \['x'\]", fit, one)
    processor = fit(TextDataset([("a", "happy"), ("b", "sad"), ("c", "10"), ("d", "9")]))
    assert processor.labels == ["9", "10", "happy", "sad"], "numbers by value"
    processor.check(TextDataset([("a", "sad")]))
    message = r"in memory, row 2: expected one of the 4 labels of the training data, found 'hapy' .did you mean 'happy'"
    refused(message, processor.check, TextDataset([("a", "sad"), ("b", "hapy")]))
    lenient = TextDataset([("a", "sad"), ("b", "hapy")], on_error="skip")
    processor.check(lenient)
    assert len(lenient) == 1
    refused("scores: expected different ones", fit, TextDataset([{"text": "x", "score": 2}, {"text": "y", "score": 2}]))


def fit(dataset: TextDataset, **options: Any) -> TextClassificationProcessor:
    return TextClassificationProcessor.fit(dataset, **options)


def test_sub_words_belong_to_their_words() -> None:
    """A word of several tokens is marked by its first one."""
    rows = [{"words": ["it's", "New York", "x", "fine!"], "tags": ["A", "B", "A", "B"]}]
    data = TextDataset(rows)
    processor = fit(data)
    batch = processor.collate(data.samples)
    assert batch.word_starts.tolist() == [[1, 4, 6, 7]]
    assert [len(own) for own in batch.spans[0].places] == [3, 2, 1, 2]
    assert batch.targets[""][1].tolist() == [[0, 1, 0, 1]]


def test_long_sentences_are_divided_and_texts_truncated() -> None:
    words = [f"w{n}" for n in range(25)]
    data = TextDataset([{"words": words, "tags": ["A", "B"] * 12 + ["A"]}, {"words": ["w1"], "tags": ["B"]}])
    processor = fit(data, max_len=12)
    batch = processor.collate(data.samples)
    assert batch.input_ids.shape == (4, 12)
    assert [len(span.words) for span in batch.spans] == [10, 10, 5, 1]
    rows, targets = batch.targets[""]
    tags = [processor.labels[k] for row in targets.tolist()[:3] for k in row if k != IGNORED]  # type: ignore[index]
    assert tags == data.samples[0].labels
    assert rows.tolist() == [0, 1, 2, 3]
    pairs = TextDataset([{"text": " ".join(words), "text_pair": "w1 w2 w3", "label": n} for n in range(2)])
    processor = fit(pairs, max_len=16)
    batch = processor.collate(pairs.samples)
    assert batch.input_ids.shape == (2, 16)
    assert batch.token_types.sum(1).tolist() == [4, 4], "the longer text is truncated"
    assert processor.cut == 2
    both = TextDataset({"a": [(" ".join(words), "x"), ("w1", "y")], "b": data.samples})
    several = fit(both, max_len=12)
    assert several.collate(both.samples).word_starts.shape == (6, 10), "words of a truncated text have no place"
    refused("max_len: expected at least 5 tokens, found 4", fit, pairs, max_len=4)


def test_sentences_of_words() -> None:
    text = "It rained. We stayed at home all day! " + "so " * 70
    data = TextDataset([(text.strip(), "a"), ("One.", "b")])
    processor = fit(data, max_len=90)
    processor.by_sentence = processor.with_characters = True
    batch = processor.collate(data.samples)
    assert batch.input_ids.shape == (2, 3, 64)
    assert batch.key_mask.sum(-1).tolist() == [[3, 64, 13], [2, 0, 0]]
    flat = batch.input_ids[0].flatten()
    rained = processor.tokenizer.encode("rained")[0]
    assert flat[batch.spans[0].places[1]].tolist()[0] == rained
    assert batch.characters is not None
    assert batch.characters.shape[:3] == batch.input_ids.shape
    assert processor.cut == 0
    processor.max_len = 20
    assert processor.collate(data.samples).key_mask[0].sum() == 20
    assert processor.cut == 1


def test_saved_processor_is_equal(tmp_path: Path) -> None:
    data = TextDataset([{"text": "a b", "labels": ["x", "y"]}, {"text": "c", "labels": ["y"]}])
    processor = fit(data)
    processor.tasks[""].thresholds = [0.25, 0.75]
    processor.save(tmp_path / "p")
    other = TextClassificationProcessor.load(tmp_path / "p")
    assert other.fingerprint() == processor.fingerprint()
    assert other.tasks[""].thresholds == [0.25, 0.75]
    assert torch.equal(other.collate(data.samples).targets[""][1], torch.tensor([[1.0, 1.0], [0.0, 1.0]]))


def test_order_is_ablated() -> None:
    data = TextDataset([("d c b a", "x"), ("b a d c", "y")])
    processor = fit(data)
    batch = processor.ablate(processor.collate(data.samples), "order")
    assert torch.equal(batch.input_ids[0], batch.input_ids[1])
    with pytest.raises(NotImplementedError, match="no ablation 'words'"):
        processor.ablate(batch, "words")


def test_hidden_words() -> None:
    """Whole words are hidden, at least one, by the sample's seed."""
    data = TextDataset([TextSample(str(n), "it's raining cats and dogs, isn't it? " * 3) for n in range(20)], "text")
    processor = fit(data)
    processor.objective = "mlm"
    batch, again = (processor.collate(data.samples, seeds=range(20)) for _ in range(2))
    assert batch.masked is not None
    assert torch.equal(batch.masked, again.masked)  # type: ignore[arg-type]
    plain = processor.encode(data.samples[0].text)[0]
    for row, span in enumerate(batch.spans):
        hidden = (batch.masked[row] >= 0).nonzero().squeeze(1).tolist()
        whole = [own for own in span.places if set(own) <= set(hidden)]
        assert sorted(place for own in whole for place in own) == hidden, "whole words"
        assert len(whole) == round(0.15 * len(span.places))
        assert [int(batch.masked[row, n]) for n in hidden] == [plain[n - 1] for n in hidden]
    shown = (batch.input_ids == processor.mask_id) & (batch.masked >= 0)
    assert 0.6 < shown.sum() / (batch.masked >= 0).sum() < 0.95


def test_next_sentences() -> None:
    data = TextDataset([TextSample(str(n), f"line {n}") for n in range(200)], "text")
    found = next_sentences(data, 0)
    follows = [s.text_pair == f"line {int(s.id) + 1}" for s in found.samples]
    assert all(is_next for s, is_next in zip(found.samples, follows, strict=True) if s.labels == ["next"])
    assert 70 < sum(s.labels == ["next"] for s in found.samples) < 130
    processor = fit(found)
    processor.objective = "mlm+nsp"
    batch = processor.collate(found.samples[:8], seeds=range(8))
    assert ((batch.masked >= 0) & (batch.token_types > 0)).any(), "words of the second text are hidden, too"


def test_batches_of_several_tasks() -> None:
    tasks = ["big"] * 64 + ["small"] * 16
    for temperature, small in ((1.0, 2), (2.0, 3), (1e9, 5)):
        plan = TaskBatchSampler(tasks, [1] * 80, 8, temperature, seed=1)
        batches = [[item.index for item in batch] for batch in plan]
        assert all(len({tasks[n] for n in batch}) == 1 for batch in batches)
        assert sum(tasks[batch[0]] == "small" for batch in batches) == small
        assert len(plan) == len(batches)
    seen = {n for epoch in range(2) for batch in plan.batches(epoch) for n in batch if n < 64}
    assert len(seen) == 64, "a large task goes on where it stopped"
    assert plan.batches(0) == TaskBatchSampler(tasks, [1] * 80, 8, 1e9, seed=1).batches(0)
    halves = [TaskBatchSampler(tasks, [1] * 80, 8, 1.0, 1, rank, 2) for rank in (0, 1)]
    together = sorted([item.index for item in batch] for half in halves for batch in half)
    assert together == sorted(TaskBatchSampler(tasks, [1] * 80, 8, 1.0, 1).batches(0))


def test_augmented_words() -> None:
    sample = TextSample("a", "one two three four five six", "seven eight", ["x"])
    assert TextAugment()(sample, 1).text == sample.text
    changed = [TextAugment(deletion=0.3)(sample, seed).text.split() for seed in range(50)]
    assert 3 < sum(map(len, changed)) / 50 < 5.5
    assert all(changed)
    swapped = TextAugment(swap=0.5)(sample, 3)
    assert sorted(swapped.text.split()) == sorted(sample.text.split())
    assert swapped.text != sample.text
    assert swapped == TextAugment(swap=0.5)(sample, 3), "a function of the seed"
    tagged = TextSample("b", "one two", labels=["X", "Y"], words=["one", "two"])
    assert TextAugment(deletion=1.0)(tagged, 0) is tagged
    augment = TextAugment(synonym=1.0, model="m", translation=0.0)
    augment.synonyms = {sample.text: {1: ["zwei"]}}
    assert augment(sample, 0).text == "one zwei three four five six"
    back = TextAugment(translation=1.0, there="a", back="b")
    back.paraphrases = {sample.text: "other words"}
    assert back(sample, 0).text == "other words"
    for options, message in (
        ({"deletion": 2.0}, "deletion: expected"),
        ({"synonym": 0.1}, "expected together with data.augment.model"),
        ({"translation": 0.1, "there": "a"}, "expected together with there and back"),
    ):
        refused(message, TextAugment, **options)


@pytest.mark.parametrize("name", ["a.csv", "A.CSV"])
def test_columns_that_have_no_labels(name: str, tmp_path: Path) -> None:
    """Training data without labels are plain text, and the reason names the columns; others must have the column."""
    path = write(tmp_path, name, "text,category\ngood soup,yes\nbad soup,no\n")
    found = TextDataset(path)
    assert found.kinds == {"": "text"}
    assert "no item has a label (columns: text, category; --data.columns.label names another)" in found.reasons[""]
    assert TextDataset(path, columns={"label": "category"}).samples[1].labels == ["no"]
    refused("header: expected the column topic, found text, category", TextDataset, path, columns={"label": "topic"})
    refused("header: expected the column label, found text, category", TextDataset, path, kinds={"": "single_label"})
    assert len(TextDataset(path, kinds={"": "single_label"}, require_labels=False)) == 2
