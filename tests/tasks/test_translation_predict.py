"""Translating: files of lines, what is odd in them, pictures of alignments, with the model that ships."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.tasks.common import inference
from mmattn.tasks.common.dispatch import model_parser
from mmattn.tasks.common.results import read_results
from mmattn.tasks.translation.__main__ import INPUTS
from mmattn.tasks.translation.demo import make
from mmattn.tasks.translation.metrics import score, signatures
from mmattn.tasks.translation.predict import Translation, Translator, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def translator() -> Translator:
    return load(device="cpu")


def predict(options: str, capsys: Any) -> Any:
    parsed = model_parser("translation", "predict", INPUTS).parse_args([*options.split(), "--num_beams", "1"])
    inference.run("translation", "predict", parsed)
    return capsys.readouterr()


def test_the_shipped_model_translates_the_built_in_pair(translator: Translator) -> None:
    samples = make("test", 40)
    found = translator.predict([sample.source for sample in samples])
    assert score([t.translation for t in found], [[s.target] for s in samples])["bleu"] >= 90
    assert [t.source for t in found] == [s.source for s in samples]


def test_the_drawn_map_agrees_with_the_true_alignment(translator: Translator) -> None:
    samples = make("test", 60)
    forced = [Translation(s.id, s.source, s.target, 0.0) for s in samples]
    hits = total = 0
    for sample, found in zip(samples, translator.explain_written(samples, forced), strict=True):
        assert found.source_words == sample.source.split()
        assert found.words == sample.target.split()
        torch.testing.assert_close(found.weights.sum(1), torch.ones(len(found.words)))
        peaks = found.weights.argmax(1).tolist()
        hits += sum(peaks[target] == source for target, source in sample.alignment)
        total += len(sample.alignment)
    assert hits / total >= 0.9


def test_a_picture(translator: Translator, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    translator.explain("the old dog carries a basket").save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    with pytest.raises(DataError, match="a translation to explain, found an empty one"):
        translator.explain("").save(tmp_path / "b.png")


def test_order_and_batches_change_nothing(translator: Translator) -> None:
    items = [sample.source for sample in make("val", 12)]
    one_by_one = [translator.predict([item])[0].translation for item in items]
    assert [t.translation for t in translator.predict(items, batch_size=5)] == one_by_one
    assert [t.translation for t in translator.predict(items[::-1], batch_size=3)][::-1] == one_by_one


def test_items_of_every_kind(translator: Translator) -> None:
    text = "the lion paints the door"
    given = [text, {"source": text, "id": "x"}, {"en": text}, make("test", 1)[0], ""]
    found = translator.predict(given)
    assert len({t.translation for t in found[:3]}) == 1
    assert [t.id for t in found] == ["0", "x", "2", "test-0", "4"]
    assert found[4].translation == ""
    for bad, message in (
        ({"de": "x"}, "item 0: expected a text of en, found the keys de"),
        ("\udcff", "item 0: expected a text"),
        ({"en": 3}, "item 0: expected a text of en, found 3"),
    ):
        with pytest.raises(DataError, match=message):
            translator.predict([bad])  # type: ignore[list-item]
    with pytest.raises(DataError, match="a list of items"):
        translator.predict(text)  # type: ignore[arg-type]


def test_lines_in_lines_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [sample.source for sample in make("test", 5)]
    lines.insert(2, "")
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    out = predict(f"--input {tmp_path}/in.txt", capsys).out.split("\n")
    assert len(out) == 7
    assert out[2] == out[6] == ""
    assert all(out[n] for n in (0, 1, 3, 4, 5))
    predict(f"--input {tmp_path}/in.txt --output {tmp_path}/out.txt --batch_size 2", capsys)
    assert (tmp_path / "out.txt").read_text().split("\n") == out


def test_a_very_long_line_is_cut_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.txt").write_text("the dog " * 12_500 + "\nthe lion paints the door\n")
    found = predict(f"--input {tmp_path}/in.txt", capsys)
    assert len(found.out.rstrip("\n").split("\n")) == 2
    assert "1 of the texts are longer than 64 tokens" in found.err


def test_invalid_utf8_is_one_error_naming_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.txt").write_bytes(b"the dog\nthe \xff dog\n")
    with pytest.raises(DataError, match=r"in.txt, line 2: expected UTF-8 text, found the byte 0xff"):
        predict(f"--input {tmp_path}/in.txt", capsys)
    with pytest.raises(DataError, match=r"none.txt: expected a text file, found no such file"):
        predict(f"--input {tmp_path}/none.txt", capsys)
    with pytest.raises(DataError, match="--text, or --input PATH"):
        predict("", capsys)
    assert capsys.readouterr().out == ""


def test_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"en": "the lion paints the door", "id": 7}, {"source": ""}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [json.loads(line) for line in predict(f"--input {tmp_path}/in.jsonl", capsys).out.splitlines()]
    assert [row["id"] for row in found] == ["7", "2"]
    assert found[0]["translation"]
    assert found[1]["translation"] == ""
    (tmp_path / "bad.jsonl").write_text('{"en": "a"}\n{"fr": "b"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: expected the key en or source"):
        predict(f"--input {tmp_path}/bad.jsonl", capsys)
    assert len(predict(f"--input {tmp_path}/bad.jsonl --on_error skip", capsys).out.splitlines()) == 1


def test_standard_input_and_a_closed_pipe(tmp_path: Path) -> None:
    lines = "\n".join(sample.source for sample in make("test", 60)) + "\n"
    command = f"{sys.executable} -m tasks.translation predict --input - --num_beams 1 --device cpu | head -n 2"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        input=lines.encode(),
        capture_output=True,
    )
    assert done.returncode == 0
    assert done.stderr == b""
    assert len(done.stdout.decode().splitlines()) == 2


def test_scores_are_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    hypotheses, references = (
        ["The cat sat.", "A dog ran home."],
        [["The cat sat down."], ["A dog ran.", "A dog ran home"]],
    )
    expected = sacrebleu.corpus_bleu(hypotheses, [["The cat sat down.", "A dog ran."], [None, "A dog ran home"]])
    assert score(hypotheses, references)["bleu"] == expected.score
    assert "case:mixed" in signatures()["bleu_signature"]


def test_the_readmes_figures_are_the_measured_ones() -> None:
    text = (ROOT / "tasks" / "translation" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|", text.split("## Measured")[1], flags=re.MULTILINE)
    assert rows
    results = read_results("translation")
    for name, bleu, chrf in rows:
        metrics = results[name.strip()]["metrics"]
        assert (round(metrics["bleu"], 2), round(metrics["chrf"], 1)) == (float(bleu), float(chrf)), name
