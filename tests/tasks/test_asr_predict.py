"""Speech recognition from Python and from the command line, with valid and invalid recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.tasks import load
from mmattn.tasks.asr.predict import ASRPredictor
from mmattn.tasks.common.errors import UserError
from tests.conftest import refused
from tests.tasks import tones
from tests.tasks.runs import ask, ask_folder, lines, write_lines

soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def recognizer() -> ASRPredictor:
    return tones.recognizer()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tones.save(tmp_path_factory.mktemp("tones") / "model")


def run(command: str, model: Path, *words: object) -> None:
    ask(command, "--checkpoint", model, *words, task="asr")


def transcribed(model: Path, *words: object) -> list[tuple[str, str | None]]:
    """Id and text of each output line of `predict`."""
    run("predict", model, *words, "--output", model.parent / "o")
    return [(row["id"], row.get("text")) for row in lines(model.parent / "o")]


def write(path: Path, number: int = 1000, rate: int = tones.RATE, channels: int = 1) -> str:
    """Writes a clip at any sample rate; returns its transcript."""
    sample = tones.clip(number)
    wave = torch.as_tensor(sample.audio[0]).numpy()  # type: ignore[index]
    if rate != tones.RATE:
        wave = np.interp(np.arange(len(wave) * rate // tones.RATE) * tones.RATE / rate, np.arange(len(wave)), wave)
    soundfile.write(path, np.stack([wave * (n + 1) / channels for n in range(channels)], 1), rate)
    return sample.text


def test_transcripts_and_word_timings(recognizer: ASRPredictor) -> None:
    samples = [tones.clip(1000 + n) for n in range(12)]
    found = recognizer.predict(samples, batch_size=5)
    assert [answer.text for answer in found] == [sample.text for sample in samples]
    for sample, answer in zip(samples, found, strict=True):
        assert answer.duration == pytest.approx(sample.duration, abs=1e-3)
        assert [word.word for word in answer.words] == [word for word, _, _ in sample.words]
        for word, (_, start, end) in zip(answer.words, sample.words, strict=True):
            assert max(abs(word.start - start), abs(word.end - end)) < 0.06


def test_batched_equals_single(recognizer: ASRPredictor) -> None:
    samples = [tones.clip(1100 + n) for n in range(5)]
    for search in ({}, {"num_beams": 3}, {"ctc_weight": 0.5}, {"ctc_weight": 0.0}):
        together = recognizer.predict(samples, batch_size=4, **search)
        for sample, answer in zip(samples, together, strict=True):
            alone = recognizer(sample, **search)
            assert (alone.text, alone.words) == (answer.text, answer.words)
            assert alone.score == pytest.approx(answer.score, abs=1e-3)


def test_input_types(tmp_path: Path, recognizer: ASRPredictor) -> None:
    text = write(tmp_path / "a.wav")
    wave, rate = soundfile.read(tmp_path / "a.wav")
    items = [
        tmp_path / "a.wav",
        str(tmp_path / "a.wav"),
        {"audio": (tmp_path / "a.wav").read_bytes(), "id": "bytes"},
        {"audio": (wave, rate)},
        {"audio": (torch.tensor(wave), rate)},
        (tmp_path / "a.wav").read_bytes(),
        (wave, rate),
        (tmp_path / "a.wav").open("rb"),
    ]
    found = recognizer.predict(items)
    assert [answer.text for answer in found] == [text] * len(items)
    assert [answer.id for answer in found][2:] == ["bytes", *"34567"]
    assert recognizer((wave, rate)).text == recognizer(items[0]).text == text
    items[-1].close()


def test_folder_with_invalid_recordings(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    right = {
        "plain.wav": write(folder / "plain.wav"),
        "deeper/plain.flac": write(folder / "deeper" / "plain.flac", 1001),
        "rate.wav": write(folder / "rate.wav", 1002, rate=192_000),
        "eight.wav": write(folder / "eight.wav", 1003, channels=8),
        "low.wav": write(folder / "low.wav", 1004, rate=11_025),
        "silence.wav": "",
        "one.wav": "",
        "dither.wav": "",
    }
    soundfile.write(folder / "silence.wav", np.zeros(8000), 8000)
    soundfile.write(folder / "dither.wav", np.random.RandomState(0).randint(-1, 2, 8000) / 32768, 8000)
    soundfile.write(folder / "one.wav", np.ones(1) * 0.5, 8000)
    broken = np.zeros(9000, np.float32)
    broken[4000] = np.nan
    soundfile.write(folder / "nan.wav", broken, 8000, subtype="FLOAT")
    soundfile.write(folder / "header.wav", np.zeros(0), 8000)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is a text, not a sound")
    whole = (folder / "deeper" / "plain.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("ignored: not an audio extension")
    errors = {
        "nan.wav": "expected finite samples, found 1 that are NaN or infinite",
        "header.wav": "expected at least one sample, found none",
        "empty.wav": "expected audio, found an empty file",
        "text.wav": "found a file that begins with b'this is a text",
        "cut.flac": "found",
    }
    rows = ask_folder(folder, errors, capsys, "--checkpoint", model, task="asr")
    assert {name: row["text"] for name, row in rows.items()} == right


def test_recording_lists(tmp_path: Path, model: Path) -> None:
    texts = [write(tmp_path / f"{n}.flac", 1200 + n) for n in range(3)]
    end = soundfile.info(tmp_path / "1.flac").duration
    rows: list[Any] = [
        {"audio_filepath": "0.flac"},
        {"audio": "1.flac", "duration": end, "offset": 0.0, "text": "ignored"},
        {"audio": "missing.flac"},
    ]
    found = transcribed(model, "--input", write_lines(tmp_path / "list.jsonl", rows), "--on_error", "skip")
    assert found == [("0.flac", texts[0]), ("1.flac@0", texts[1]), ("missing.flac", None)]
    (tmp_path / "list.csv").write_text("audio,id\n2.flac,mine\n")
    assert transcribed(model, "--input", tmp_path / "list.csv") == [("mine", texts[2])]
    tree = tmp_path / "tree" / "19" / "198"
    tree.mkdir(parents=True)
    (tmp_path / "0.flac").rename(tree / "19-198-0000.flac")
    (tree / "19-198.trans.txt").write_text("19-198-0000 WHAT WAS SAID\n")
    assert transcribed(model, "--input", tmp_path / "tree") == [("19-198-0000", texts[0])]
    for words in (["--audio"], ["--num_beams", 2, "--input"]):
        assert transcribed(model, *words, tmp_path / "2.flac") == [("2.flac", texts[2])]


def test_explanation_plots(tmp_path: Path, model: Path, recognizer: ASRPredictor) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    write(tmp_path / "a.wav")
    audio = ("--audio", tmp_path / "a.wav", "--output")
    run("explain", model, *audio, tmp_path / "e.png")
    ending = r"e\.jpg: expected a name that ends in \.png, or a folder, found '\.jpg'"
    refused(ending, run, "explain", model, *audio, tmp_path / "e.jpg", error=UserError)
    assert image.open(tmp_path / "e.png").size[0] > 300
    found = recognizer.explain(tones.clip(1000))
    count = len(found.prediction.text)
    assert found.attention.shape == found.alignment.shape
    assert found.attention.shape[0] == count == len(found.tokens)
    torch.testing.assert_close(found.attention.sum(1), torch.ones(count))
    assert ((found.alignment > 0).float().argmax(1).diff() >= 0).all(), "CTC's alignment is monotonic"
    refused("at most 4 s to explain, found", recognizer.explain, tones.clip(7, 20), error=DataError)
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), tones.RATE)
    words = ("--input", tmp_path / "silence.wav", "--output", tmp_path / "plots")
    refused("an empty transcript", run, "explain", model, *words, error=DataError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "e.png", "silence.wav"]


def test_reduced_precision_weights(model: Path) -> None:
    samples = [tones.clip(1000 + n) for n in range(4)]
    for precision in ("bfloat16", "int8"):
        packed = load(model, device="cpu", precision=precision)
        assert [answer.text for answer in packed.predict(samples)] == [sample.text for sample in samples]
