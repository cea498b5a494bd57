"""Public speech folders on the command line: languages, plots, exported programs, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn.data.audio.mel import PREPROCESSOR
from mmattn.data.errors import DataError
from mmattn.generate.speech import SpeechConfig
from mmattn.tasks import load
from mmattn.tasks.asr.public_processors import WhisperProcessor
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from tests.conftest import refused
from tests.public_speech import LETTERS, RATE, clips, recording, texts, transcribed_by_transformers, wave, write_whisper
from tests.tasks.runs import ask, damage, edited, lines

pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")
pytestmark = pytest.mark.parity
KIND, OTHER, GENERATION = "feature_extractor_type", "WhisperFeatureExtractor", "generation_config.json"


def run(command: str, folder: object, *words: object) -> None:
    ask(command, "--checkpoint", folder, *words, task="asr")


@pytest.mark.parametrize("name", ["base", "whisper"])
def test_command_line(name: str, speech: dict[str, Any], tmp_path: Path) -> None:
    folder, theirs = speech[name]
    for n, one in enumerate(clips()):
        soundfile.write(tmp_path / f"{n}.wav", one.numpy(), RATE, "FLOAT")
    options: dict[str, Any] = {"num_beams": 2, "language": "de"} if name == "whisper" else {}
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    run("predict", folder, "--input", tmp_path, "--output", tmp_path / "o", *words)
    rows = lines(tmp_path / "o")
    assert [row["text"] for row in rows] == transcribed_by_transformers(theirs, clips(), **options)
    assert rows[0].keys() == {"id", "text", "words", "duration", "score"}


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("whisper", "--language xx", r"generation: unknown language 'xx'; expected one of: en, de, ja\."),
        ("whisper", "--task sing", r"unknown task 'sing'; expected one of: translate, transcribe"),
        ("whisper", "--ctc_weight 0.5", r"ctc_weight: expected none, since Whisper has no CTC; found 0\.5"),
        ("whisper", "--lm_weight 0.5", r"lm_weight: there is no language model"),
        ("base", "--lm_weight 0.5", r"lm_weight: there is no language model"),
        ("whisper", "--window 5", r"--window: expected 2 s, this model's only window; found 5"),
        ("base", "--language de", r"language: expected none, since this model has no languages; found 'de'"),
        ("base", "--task translate", r"task: expected none, .* found 'translate'"),
        ("base", "--ctc_weight 0.5", r"ctc_weight: expected 1, since this model has CTC and no decoder; found 0\.5"),
        (None, "--language de", r"language: expected none, since this model has no languages"),
    ],
)
def test_unsupported_options_raise(
    name: str | None, words: str, message: str, speech: dict[str, Any], tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "a.wav", wave(1.0).numpy(), RATE)
    place, given = "asr/demo" if name is None else speech[name][0], ("--audio", tmp_path / "a.wav", *words.split())
    refused(message, run, "predict", place, "--output", tmp_path / "o", *given, error=ConfigError)
    assert not (tmp_path / "o").exists()


def test_unknown_keywords_raise(speech: dict[str, Any]) -> None:
    recognizer = load(speech["whisper"][0], device="cpu")
    refused(r"generation: .*num_beems", recognizer, recording(wave(1.0)), num_beems=3, error=ConfigError)
    short, long = (texts(recognizer, clips(), max_new_tokens=count) for count in (3, 9))
    assert all(one == other[: len(one)] for one, other in zip(short, long, strict=True))
    assert short != long


@pytest.mark.parametrize("name", ["base", "whisper"])
def test_explanation_plots(name: str, speech: dict[str, Any], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    soundfile.write(tmp_path / "a.wav", wave(1.5, 2).numpy(), RATE, "FLOAT")
    run("explain", speech[name][0], "--audio", tmp_path / "a.wav", "--output", tmp_path / "e.png")
    assert image.open(tmp_path / "e.png").size[0] > 300
    recognizer = load(speech[name][0], device="cpu")
    found = recognizer.explain(tmp_path / "a.wav")
    assert found.prediction == recognizer(tmp_path / "a.wav")
    assert len(found.features) * found.frame_seconds == pytest.approx(1.5, abs=0.011)
    assert "".join(found.tokens).strip() == found.prediction.text.replace(" ", "") or " " in found.prediction.text
    if name == "whisper":
        assert found.alignment is None
        assert found.attention.shape == (len(found.tokens), 75)
        torch.testing.assert_close(found.attention.sum(1), torch.ones(len(found.tokens)))
    else:
        assert found.attention is None
        assert ((found.alignment > 0).float().argmax(1).diff() > 0).all()
    for item, message in ((wave(21.0), r"at most \d+ s to explain"), (torch.zeros(RATE), "an empty transcript")):
        refused(message, recognizer.explain, recording(item), error=DataError)


@pytest.mark.parametrize(
    "name", ["base", *(pytest.param(name, marks=pytest.mark.slow) for name in ("large", "whisper"))]
)
def test_exported_equals_the_model(name: str, speech: dict[str, Any], tmp_path: Path) -> None:
    programs = ["encoder", "step"] if name == "whisper" else ["encoder"]
    run("export", speech[name][0], "--output", tmp_path, "--format", "torch")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*(f"{p}.pt2" for p in programs), "processor"])
    recognizer = load(speech[name][0], device="cpu")
    encoder = torch.export.load(tmp_path / "encoder.pt2").module()
    features, mask = recognizer.processor.features_batch([wave(1.4, 8), wave(1.4, 9)])
    with torch.no_grad():
        found = encoder(features=features, feature_mask=mask) if name == "large" else encoder(features=features)
        if name == "whisper":
            assert found[0].shape == (2, 2, 2, recognizer.model.net.encode(features).shape[1], 12)
        else:
            states, _ = recognizer.model.encode(features, mask)
            torch.testing.assert_close(found[0], recognizer.model.head.log_probs(states), atol=1e-4, rtol=0)


def test_reduced_precision_weights(speech: dict[str, Any]) -> None:
    for folder in (speech["large"][0], speech["whisper"][0]):
        plain, packed = (load(folder, device="cpu", precision=precision) for precision in (None, "float32"))
        assert texts(packed, clips()) == texts(plain, clips())


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("base", "model.safetensors", None, "no weights"),
        ("base", "model.safetensors", "cut", "model.safetensors"),
        ("base", "vocab.json", None, r"vocab\.json: expected a tokenizer file, found none"),
        ("base", "vocab.json", "{", r"vocab\.json: expected JSON"),
        ("base", "vocab.json", json.dumps(LETTERS | {f"w{n}": n for n in range(99)}), "a tokenizer of at most 20 tok"),
        ("base", PREPROCESSOR, None, r"preprocessor_config\.json"),
        ("base", PREPROCESSOR, {KIND: "Odd"}, "feature_extractor_type of Whisper"),
        ("base", PREPROCESSOR, json.dumps({KIND: OTHER}), "expected a Wav2Vec2F"),
        ("whisper", "tokenizer.json", None, r"tokenizer\.json: expected a tokenizer file, found none"),
        ("whisper", "tokenizer.json", "{}", "tokenizer"),
        ("whisper", PREPROCESSOR, {"feature_size": 20}, "expected features of 10 bands, found 20"),
        ("whisper", PREPROCESSOR, {"chunk_length": 3}, "of 200 frames in a window, found 300"),
        ("whisper", GENERATION, {"typical_p": 0.5}, r"typical_p = 0\.5"),
        ("whisper", GENERATION, {"alignment_heads": [[7, 0]]}, "alignment_heads: expected layers below 2"),
        ("whisper", "config.json", {"model_type": "speecht5"}, r"found one of 'speecht5'"),
    ],
)
def test_damaged_folders_raise(
    kind: str, name: str, change: Any, message: str, speech: dict[str, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(speech[kind][0], tmp_path / "copy")
    damage(folder / name, change)
    assert "\n" not in refused(message, load, folder, error=(CheckpointError, DataError))


def test_other_tasks_raise(speech: dict[str, Any]) -> None:
    from mmattn.tasks.translation.predict import load as load_translator

    with pytest.raises(CheckpointError, match=r"expected a model for translation, found one of whisper, for asr"):
        load_translator(speech["whisper"][0])


def test_old_folders_without_timestamps_transcribe_long_recordings(tmp_path: Path) -> None:
    write_whisper(tmp_path, 2)
    with edited(tmp_path / GENERATION) as values:
        del values["no_timestamps_token_id"], values["alignment_heads"]
    recognizer = load(tmp_path, device="cpu")
    assert isinstance(recognizer.processor, WhisperProcessor)
    assert "no_timestamps_token_id" not in recognizer.processor.generation
    assert recognizer.predict([recording(wave(5.0))])[0].words
    assert SpeechConfig(**recognizer.processor.generation).timestamp_begin is None
