"""Translation with the shipped model: files of lines, unusual input, alignment plots."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.tasks.translation.demo import make
from mmattn.tasks.translation.localisation import localisation
from mmattn.tasks.translation.metrics import score, signatures
from mmattn.tasks.translation.module import TranslationModule
from mmattn.tasks.translation.predict import TranslationPrediction, TranslationPredictor, load
from scripts.results import read_results
from tests.conftest import refused
from tests.tasks.runs import ROOT, ask, lines, write_lines


@pytest.fixture(scope="module")
def translator() -> TranslationPredictor:
    return load(device="cpu")


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command and returns its captured output."""

    def call(*words: object) -> Any:
        ask("predict", *words, "--num_beams", 1, task="translation")
        return capsys.readouterr()

    return call


def test_shipped_model_translates_the_demo_data(translator: TranslationPredictor) -> None:
    samples = make("test", 40)
    found = translator.predict([sample.source for sample in samples])
    assert score([t.translation for t in found], [[s.target] for s in samples])["bleu"] >= 90
    assert [t.source for t in found] == [s.source for s in samples]


def test_attention_matches_the_true_alignment(translator: TranslationPredictor) -> None:
    samples = make("test", 3)
    forced = [TranslationPrediction(s.id, s.source, s.target, 0.0) for s in samples]
    for sample, found in zip(samples, translator.explain_written(samples, forced), strict=True):
        assert found.source_words == sample.source.split()
        assert found.words == sample.target.split()
        torch.testing.assert_close(found.weights.sum(1), torch.ones(len(found.words)))
    count, hits, near = map(sum, zip(*localisation(translator, 60).rows.values(), strict=True))
    assert count == sum(len(sample.alignment) for sample in make("test", 60))
    assert near >= hits >= 0.9 * count


def test_explanation_plot(translator: TranslationPredictor, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    translator.explain("the old dog carries a basket").save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    with pytest.raises(DataError, match="a non-empty translation to explain, found an empty string"):
        translator.explain("").save(tmp_path / "b.png")


def test_predictions_are_order_and_batch_invariant(translator: TranslationPredictor) -> None:
    items = [sample.source for sample in make("val", 12)]
    one_by_one = [translator.predict([item])[0].translation for item in items]
    assert [t.translation for t in translator.predict(items, batch_size=5)] == one_by_one
    assert [t.translation for t in translator.predict(items[::-1], batch_size=3)][::-1] == one_by_one


def test_input_types(translator: TranslationPredictor) -> None:
    text = "the lion paints the door"
    given = [text, {"source": text, "id": "x"}, {"en": text}, make("test", 1)[0], ""]
    found = translator.predict(given)
    assert len({t.translation for t in found[:3]}) == 1
    assert [t.id for t in found] == ["0", "x", "2", "test-0", "4"]
    assert found[4].translation == ""
    assert translator(text).translation == found[0].translation


def test_lines_in_lines_out(predict: Callable[..., Any], tmp_path: Path) -> None:
    sentences = [sample.source for sample in make("test", 5)]
    sentences.insert(2, "")
    (tmp_path / "in.txt").write_text("\n".join(sentences) + "\n")
    out = predict("--input", tmp_path / "in.txt").out.split("\n")
    assert [bool(line) for line in out] == [True, True, False, True, True, True, False]
    predict("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt", "--batch_size", 2)
    assert (tmp_path / "out.txt").read_text().split("\n") == out
    assert predict("--text", sentences[0]).out == f"{out[0]}\n"


def test_long_line_is_truncated_and_reported(predict: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("the dog " * 12_500 + "\nthe lion paints the door\n")
    found = predict("--input", tmp_path / "in.txt")
    assert len(found.out.rstrip("\n").split("\n")) == 2
    assert "1 of the texts are longer than 64 tokens" in found.err


def test_invalid_line_raises_before_output(predict: Callable[..., Any], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bad.jsonl", [{"en": "a"}, {"fr": "b"}])
    refused(r"bad\.jsonl, line 2: expected the key en or source", predict, "--input", path, error=DataError)
    assert predict("--text", "the dog").out.count("\n") == 1


def test_json_lines(predict: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"en": "the lion paints the door", "id": 7}, {"source": ""}, {"fr": "b"}]
    predict("--input", write_lines(tmp_path / "in.jsonl", rows), "--on_error", "skip", "--output", tmp_path / "out")
    assert [(row["id"], bool(row["translation"])) for row in lines(tmp_path / "out")] == [("7", True), ("2", False)]


def test_standard_input_and_a_closed_pipe(tmp_path: Path) -> None:
    text = "\n".join(sample.source for sample in make("test", 60)) + "\n"
    command = f"{sys.executable} -m tasks.translation predict --checkpoint translation/demo --input - "
    command += "--num_beams 1 --device cpu | head -n 2"
    given: dict[str, Any] = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "input": text.encode()}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, **given)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.decode().splitlines()) == 2


def test_scores_equal_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    written, one, two = ["The cat sat.", "A dog ran home."], ["The cat sat down."], ["A dog ran.", "A dog ran home"]
    expected = sacrebleu.corpus_bleu(written, [[one[0], two[0]], [None, two[1]]])
    assert score(written, [one, two])["bleu"] == expected.score
    assert "case:mixed" in signatures()["bleu_signature"]


@pytest.mark.parametrize(
    ("language", "text", "tokenizer"),
    [
        ("zh", "猫坐在垫子上。", "zh"),
        ("zho_Hant", "貓坐在墊子上。", "zh"),
        ("ja", "猫がマットの上に座った。", "ja-mecab"),
        ("text", "猫坐在垫子上。", "zh"),
        ("b", "猫がマットの上に座った。", "ja-mecab"),
        ("th", "แมวนั่งบนเสื่อ", "char"),
        ("b", "แมวนั่งบนเสื่อ", "char"),
        ("de", "Die Katze saß auf der Matte.", "13a"),
        ("en", "The cat – 猫 – sat on the mat.", "13a"),
        ("ru", "Кошка сидела на коврике.", "13a"),
    ],
)
def test_bleu_is_tokenized_by_language(
    language: str, text: str, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    if tokenizer == "ja-mecab" and importlib.util.find_spec("MeCab") is None:
        tokenizer = "char"
    module = TranslationModule({})
    monkeypatch.setattr(TranslationModule, "data", SimpleNamespace(languages=("en", language)))
    written = [f"{text[:-3]}x{text[-3:]}"]
    expected = sacrebleu.corpus_bleu(written, [[text]], tokenize=tokenizer).score
    assert module.score(written, [[text]])["bleu"] == expected
    assert score(written, [[text]])["bleu"] == pytest.approx(expected)
    assert f"tok:{tokenizer}|" in module.notes()["bleu_signature"]


def test_readme_figures_match_results() -> None:
    text = (ROOT / "tasks" / "translation" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|", text.split("## Results")[1], flags=re.MULTILINE)
    assert rows
    results = read_results("translation")
    for name, bleu, chrf in rows:
        metrics = results[name.strip()]["metrics"]
        assert (round(metrics["bleu"], 2), round(metrics["chrf"], 1)) == (float(bleu), float(chrf)), name
