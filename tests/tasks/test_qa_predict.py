"""Questions answered by the shipped model and from public weights; explanations, corpora, bad input."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmattn import load
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.qa.data import QADataset
from mmattn.tasks.qa.demo import make
from mmattn.tasks.qa.localisation import localisation
from mmattn.tasks.qa.metrics import f1
from mmattn.tasks.qa.model import QAModel
from mmattn.tasks.qa.predict import QAPredictor
from mmattn.tasks.qa.processor import QAProcessor
from tests.conftest import refused
from tests.tasks.runs import BRIEF, ask, run as train

run = partial(ask, task="qa")
BASE = f"{BRIEF} --data.demo_size 12 --data.batch_size 4 --data.max_len 40 --data.stride 8"


@pytest.fixture(scope="module")
def predictor() -> QAPredictor:
    return load("qa/demo", device="cpu")


def test_shipped_model(predictor: QAPredictor) -> None:
    samples = make("test", 200)
    found = predictor.predict(samples)
    assert sum(f1(one.answer, s.texts) for one, s in zip(found, samples, strict=True)) / len(samples) > 0.85
    for one, sample in zip(found, samples, strict=True):
        assert sample.context[one.start : one.end] == one.answer if one.answer else one.start == one.end == -1
    assert localisation(predictor, 100).rows


def test_alternatives_and_threshold(predictor: QAPredictor) -> None:
    sample = next(s for s in make("test", 20) if s.answers)
    best, *others = (one := predictor(sample, top_k=4)), *one.alternatives
    assert len(others) == 3
    assert [round(a.score, 4) for a in others] == sorted((round(a.score, 4) for a in others), reverse=True)
    assert predictor(sample, threshold=-1000.0).answer == ""
    assert predictor(sample, threshold=1000.0).answer
    assert len(predictor(sample, threshold=1000.0, max_answer_len=1).answer.split()) == 1
    assert predictor({"question": sample.question, "context": sample.context}).answer == best.answer


def test_long_contexts(predictor: QAPredictor) -> None:
    """The answer is found in the last of many windows, and its place is that in the whole text."""
    sample = next(
        s
        for s, p in zip(make("test", 40), predictor.predict(make("test", 40)), strict=True)
        if s.answers and p.answer == s.answers[0].text
    )
    before = "It rains,  and the street\nis empty. " * 3000
    found = predictor({"question": sample.question, "context": before + sample.context}, threshold=1000.0)
    text = before + sample.context
    assert text[found.start : found.end] == found.answer
    refused("expected a question of at most", predictor, {"question": "why " * 200, "context": "x"})


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"question": "Who?"}, "item 0: expected the keys question and context"),
        ({"question": " ", "context": "x"}, "expected a question that is not empty"),
        ({"question": "Who?", "context": " "}, "expected a context that is not empty"),
        ("Who?", "expected a mapping with question and context"),
    ],
)
def test_bad_items(item: Any, message: str, predictor: QAPredictor) -> None:
    refused(message, predictor, item)


def test_explanations(predictor: QAPredictor, tmp_path: Path) -> None:
    sample = next(s for s in make("test", 20) if s.answers)
    found = predictor.explain(sample)
    assert float(found.words.weights.sum()) == pytest.approx(1.0, abs=1e-5)
    found.save(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    run("explain", "--input", "demo", "--limit", "2", "--output", str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert text.count("<section>") == 2
    assert "outline" in text
    assert "http" not in text


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMATTN_CACHE", str(tmp_path / "cache"))
    run("predict", "--question", "Who keeps it?", "--context", "Ada keeps the old goat.")
    assert set(json.loads(capsys.readouterr().out)) >= {"id", "answer", "score", "start", "end"}
    pytest.importorskip("bm25s")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("Ada lives by the old mill. She keeps the white goat.\n\nNobody is here.\n")
    (notes / "b.txt").write_text("Leo lives by the new church. He keeps the black dog.\n")
    asked = ("--corpus", str(notes), "--question", "Which animal does the one who lives by the old mill keep?")
    run("predict", *asked, "--passages", "2", "--threshold", "1000")
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] in found["passage"]
    assert found["source"].startswith(("a.txt, paragraph 1", "b.txt, paragraph 1"))
    context = "Ada lives by the old mill. She keeps the white goat."
    (tmp_path / "known.csv").write_text(f'question,context,answer\n"{asked[-1]}","{context}",white goat\n')
    run("predict", "--input", str(tmp_path / "known.csv"), *asked[:2], "--output", str(tmp_path / "answers.jsonl"))
    assert "1 questions whose answers are known" in (said := capsys.readouterr().err)
    assert "for 1.0000 of them" in said
    run("explain", *asked, "--output", str(tmp_path / "one.png"))
    assert (tmp_path / "one.png").exists()
    for words, message in (
        (["--question", "Who?"], "--context"),
        (["--question", "Who?", "--context", "x", "--passages", "2"], "expected --corpus"),
        (["--question", "Who?", "--corpus", str(tmp_path / "none")], "no such file"),
        (["--input", "demo", "--top_k", "0"], "--top_k: expected 1 or more"),
    ):
        refused(message, run, "predict", *words)


@pytest.mark.parity
def test_fit_from_public_weights(tmp_path: Path, pair_tokenizer: Any) -> None:
    """A backbone, of which the head is new, and a model with a head; low-rank updates."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=25, max_position_embeddings=64, **sizes)
    for name, kind in (("plain", transformers.BertModel), ("whole", transformers.BertForQuestionAnswering)):
        kind(config).save_pretrained(tmp_path / name)
        pair_tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    refused("expected a finished model", QAPredictor.load, tmp_path / "plain")
    given = f"{BASE} --init_from {tmp_path / 'plain'} --loss.evidence 1"
    refused("no head for supporting facts", train, "fit", tmp_path / "no_head", given, "", task="qa", error=ConfigError)
    ready = QAPredictor.load(tmp_path / "whole", device="cpu")
    context = "Ada lives by the mill. She keeps the old goat."
    answer = ready({"question": "who keeps the goat ?", "context": context})
    assert context[answer.start : answer.end] == answer.answer != ""
    for name, options in (("plain", ""), ("whole", "--model.lora.rank 2")):
        folder = train(
            "fit", tmp_path / f"run_{name}", f"{BASE} --init_from {tmp_path / name} {options}", "", task="qa"
        )
        model = load(folder / "model", device="cpu")
        assert model.processor.threshold is not None
        assert not any("lora" in key for key in model.model.state_dict())
        model.predict(make("test", 3))


@pytest.mark.parametrize("max_len", [12, 16])
def test_export_of_a_model_of_short_windows(max_len: int, tmp_path: Path) -> None:
    """The examples are no longer than the model's windows."""
    processor = QAProcessor.fit(QADataset(make("train", 4)), max_len=max_len, stride=0)
    model = QAModel(processor.tokenizer.vocab_size, max_len=max_len, embed_dim=8, num_layers=1, ffn_dim=8)
    (line,) = QAPredictor(model.eval(), processor).export_graphs(tmp_path, ["torch"])
    assert "on 3 batches" in line
