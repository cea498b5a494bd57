"""Fine-tuning of public Whisper, wav2vec 2.0 and HuBERT folders; the result is a folder in our format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn.data.audio.mel import WaveFeatures
from mmattn.data.errors import DataError
from mmattn.tasks import load
from mmattn.tasks.asr.data import ASRSample
from mmattn.tasks.asr.processor import ASRProcessor, SpeechProcessor
from mmattn.tasks.asr.public_processors import CTCProcessor, CTCText
from mmattn.tasks.asr.whisper import WhisperPredictor
from mmattn.tasks.common.adapter import read_parts
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.sources import named_models
from tests.conftest import refused, slow_but_first
from tests.public_speech import LETTERS, RATE, TEXTS, recording, wave, write_ctc, write_whisper
from tests.tasks.runs import BRIEF, STILL, assert_kept, edited, read, run, weights, write_lines

pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")
pytestmark = pytest.mark.parity
BASE = f"{BRIEF} --data.batch_size 2 --data.max_frames 2000"
KNOWN = ["the hat is in the sun", "she had it", "he is there"]  # in characters of the public vocabularies


def own_data(folder: Path, texts: list[str]) -> Path:
    """Recordings that differ in pitch, and their transcripts."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n, text in enumerate(texts):
        soundfile.write(folder / f"{n}.wav", wave(1.4 + 0.1 * n, n).numpy(), RATE, "FLOAT")
        rows.append({"audio": f"{n}.wav", "text": text})
    return write_lines(folder / "list.jsonl", rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return own_data(tmp_path / "data", KNOWN)


def fit(folder: Path, source: Path, data: Path, options: str = "") -> Path:
    words = f"--init_from {source} --data.train {data} --data.val {data} {options}"
    return run("fit", folder, words, base=BASE, task="asr")


def measure(folder: Path, model: Path, data: Path, options: str = "") -> dict[str, Any]:
    words = f"--checkpoint {model} --data.test {data} --data.batch_size 2 {options}"
    run("test", folder, words, base="--trainer.accelerator cpu --trainer.enable_progress_bar false", task="asr")
    return read(folder / "metrics.json")["test"]


def write_public(name: str, folder: Path) -> Path:
    write_whisper(folder) if name == "whisper" else write_ctc(folder)
    return folder


def answers(place: Path, **options: Any) -> list[tuple[str, Any]]:
    items = [recording(wave(1.3, 7)), recording(wave(1.9, 8)), recording(wave(5.0))]
    found = load(place, device="cpu").predict(items, **options)
    return [(answer.text, answer.words) for answer in found]


@pytest.mark.parametrize(
    "name", slow_but_first(["wav2vec2", "whisper", "hubert", "large"], lambda name: name == "whisper")
)
def test_fine_tuning_a_public_folder(name: str, tmp_path: Path, data: Path) -> None:
    start, options = tmp_path / name, "--data.language en" if name == "whisper" else ""
    if name == "whisper":
        write_whisper(start, num_beams=2)
    else:
        write_ctc(start, "hubert" if name == "hubert" else "wav2vec2", large=name == "large")
    still = fit(tmp_path / "still", start, data, f"{STILL} {options} --data.max_seconds 20")
    before = answers(start, **({"language": "en"} if name == "whisper" else {}))
    assert answers(still) == before, "the untrained model gives equal outputs from our own format"
    assert len({text for text, _ in before}) > 1
    views = "--loss.consistency 0.2" if name == "hubert" else ""
    moved = fit(tmp_path / "moved", start, data, f"{views} --optim.lr 0.01 --optim.warmup_steps 1 {options}")
    first, second = map(weights, (still, moved))
    assert first.keys() == second.keys()
    assert sum(not torch.equal(first[key], second[key]) for key in first) > 0.9 * len(first)
    measured = measure(tmp_path / "measured", moved / "model", data)
    assert measured["loss"] < read(still / "metrics.json")["validation"]["loss"]
    assert {"wer", "cer", "normalizer"} <= measured.keys()
    assert measure(tmp_path / "public", start, data, options)["wer"] > 0.5, "a public folder is evaluated unchanged"
    again = fit(tmp_path / "again", moved, data, f"{STILL} {options}")
    assert answers(again) == answers(moved), "and fine-tuned once more"
    config = read(moved / "model" / "config.json")
    assert (config["task"], config["own_data"]) == ("asr", True)


@pytest.mark.parametrize("name", slow_but_first(["wav2vec2", "whisper"]))
def test_overfits_one_batch(name: str, tmp_path: Path, data: Path) -> None:
    texts = KNOWN if name == "wav2vec2" else ["The hat!", "She had it.", "9, he is"]
    data, start = own_data(tmp_path / "own", texts), tmp_path / name
    options = "--trainer.max_steps 120 --trainer.max_epochs 120 --optim.lr 0.01 --optim.schedule constant"
    options += " --optim.warmup_steps 5 --model.dropout 0 --trainer.check_val_every_n_epoch 40"
    options += " --data.batch_size 4" + (" --data.language en" if name == "whisper" else "")
    write_whisper(start, suppress_tokens=[]) if name == "whisper" else write_ctc(start)
    folder = fit(tmp_path / "run", start, data, options)
    found = load(folder / "model", device="cpu").predict([data.parent / f"{n}.wav" for n in range(3)])
    expected = [text.upper() for text in texts] if name == "wav2vec2" else texts
    assert [answer.text for answer in found] == expected, "as in the data, in characters of the model"


def test_resumed_run_equals_uninterrupted(tmp_path: Path, data: Path) -> None:
    write_ctc(tmp_path / "public")
    own_data(tmp_path / "data", [*KNOWN, "ü"])  # a character that the resumed run must keep
    options = "--optim.lr 0.003 --optim.warmup_steps 1 --optim.schedule constant"
    whole = fit(tmp_path / "whole", tmp_path / "public", data, f"{options} --trainer.max_steps 4")
    parts = fit(tmp_path / "parts", tmp_path / "public", data, f"{options} --trainer.max_steps 2")
    fit(parts, tmp_path / "public", data, f"{options} --trainer.max_steps 4 --ckpt_path last")
    one, other = map(weights, (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert load(parts, device="cpu").processor.tokenizer.letters >= {"Ü"}


def test_new_characters_extend_the_vocabulary(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ctc(tmp_path / "public")
    fit(tmp_path / "same", tmp_path / "public", data, STILL)
    assert "are reinitialized" not in capsys.readouterr().err
    own_data(tmp_path / "data", ["the f\u00fcnf", "4 hats"])
    folder = fit(tmp_path / "run", tmp_path / "public", data, STILL)
    assert "20 of 23 tokens are in its vocabulary; the others are reinitialized: 4 F \u00dc" in capsys.readouterr().err
    old, new = (load(place, device="cpu") for place in (tmp_path / "public", folder))
    assert new.processor.tokenizer.letters - old.processor.tokenizer.letters == {"4", "F", "\u00dc"}
    assert new.processor.detokenize(new.processor.encode("f\u00fcnf hats 4")) == "F\u00dcNF HATS 4"
    before, after = old.model.head.ctc, new.model.head.ctc
    torch.testing.assert_close(after.weight[:20], before.weight)
    torch.testing.assert_close(after.weight[20:], before.weight.mean(0).expand(3, -1))
    torch.testing.assert_close(after.bias[:20], before.bias)


@pytest.mark.parametrize("family", slow_but_first(["wav2vec2", "hubert"]))
def test_missing_head_is_initialized(family: str, tmp_path: Path, data: Path) -> None:
    write_ctc(tmp_path / "public", family, head=False)
    unfinished = r"expected a finished model, found a backbone .*fit --init_from"
    refused(unfinished, load, tmp_path / "public", error=CheckpointError)
    folder = fit(tmp_path / "run", tmp_path / "public", data, f"{STILL} --model.freeze convolutions")
    recognizer = load(folder, device="cpu")
    assert recognizer.processor.tokenizer.letters == {"<pad>", "<s>", "</s>", "<unk>", "|", *"adehinrstu"}
    assert recognizer.model.head.ctc.weight.std() > 0
    assert_kept(read_parts("asr", tmp_path / "public").state, recognizer.model.state_dict())
    other = fit(tmp_path / "other", tmp_path / "public", data, f"{STILL} --seed_everything 1")
    head = load(other, device="cpu").model.head.ctc.weight
    assert not torch.equal(head, recognizer.model.head.ctc.weight), "it is initialized from the seed"


def test_frozen_convolutions_do_not_change(tmp_path: Path, data: Path) -> None:
    write_ctc(tmp_path / "public")
    options = "--optim.lr 0.01 --optim.warmup_steps 1 --model.freeze convolutions"
    folder = fit(tmp_path / "run", tmp_path / "public", data, options)
    before, after = (load(place, device="cpu").model.state_dict() for place in (tmp_path / "public", folder))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if name.startswith("net.convolutions.")}


LETTER_CASES = {
    "upper": ("The 'hat'  is, ", LETTERS, "THE 'HAT' IS"),
    "lower": ("The hat", {token.lower(): n for token, n in LETTERS.items()}, "the hat"),
    "both": ("The Hat", {t: n for n, t in enumerate(["<pad>", "|", *"THEAthea"])}, "the hat"),
    "unknown": ("the fox", LETTERS, None),
    "unknown, no token": ("the fox", {t: n for n, t in enumerate(["|", *"THEOX", "<pad>"])}, "THE OX"),
}


@pytest.mark.parametrize("case", LETTER_CASES)
def test_targets_use_the_models_case(case: str) -> None:
    text, letters, expected = LETTER_CASES[case]
    processor = CTCProcessor(WaveFeatures(), CTCText({"vocab.json": json.dumps(letters).encode()}))
    ids = processor.encode(processor.normalize_target(text))
    if expected is None:
        assert ids.count(letters["<unk>"]) == 2
    else:
        assert processor.detokenize(ids) == expected
        assert processor.tokenizer.pad_id not in ids
    _, labels, mask = processor.targets([text, ""])
    assert labels[0, : int(mask[0].sum()) - 1].tolist() == ids
    assert mask.sum(1).tolist()[1] == 1


def test_whisper_training_targets(tmp_path: Path) -> None:
    write_whisper(tmp_path)
    no_language = read_parts("asr", tmp_path).processor
    with pytest.raises(DataError, match=r"data\.language: expected the language of the recordings, one of en, de, ja"):
        no_language.collate([ASRSample("1", (wave(1.0), RATE), TEXTS[0])])
    processor: Any = no_language.with_language("German", "translate")
    end = processor.tokenizer.eos_id
    batch = processor.collate([ASRSample(str(n), (wave(1.0), RATE), text) for n, text in enumerate([TEXTS[1], ""])])
    named = [processor.tokenizer._pieces.id_to_token(i) for i in batch.target_ids[0].tolist()]
    assert named[:4] == ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]
    assert batch.features.shape == (2, 200, 10)
    assert batch.feature_mask.sum(1).tolist() == [100, 100]
    counted = [row[kept].tolist() for row, kept in zip(batch.labels, batch.label_mask, strict=True)]
    assert processor.detokenize(counted[0]) == TEXTS[1], "including capitals and commas"
    assert processor.tokenizer._pieces.decode(counted[0][:-1]) == f" {TEXTS[1]}"
    assert (counted[0][-1], counted[1]) == (end, [end])
    assert batch.label_mask.int().argmax(1).tolist() == [3, 3], "the transcript begins after the prompt"
    assert batch.references[0] == "nine two 3 words"
    long = processor.collate([ASRSample("1", (wave(1.0), RATE), TEXTS[0] * 9)])
    assert long.target_ids.shape == (1, 40), "truncated to the maximum number of positions"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("whisper", "", r"data\.language: expected the language of the recordings, one of en, de, ja"),
        ("whisper", "--data.language xx", r"unknown language 'xx'; expected one of: en, de, ja"),
        ("whisper", "--data.language en --data.max_frames 100", r"data\.max_frames"),
        ("whisper", "--data.language en --loss.consistency 0.2", r"loss\.consistency: .* is not trained with CTC"),
        ("whisper", "--data.language en --model.embed_dim 64", r"model\.embed_dim: .* has 24, the config.* says 64"),
        (
            "whisper",
            "--data.language en --model.freeze convolutions",
            "model.freeze: expected pretrained, or a module of the model",
        ),
        ("whisper", "--data.language en --data.num_mels 80", r"data\.num_mels: expected none, since .* determines it"),
        ("wav2vec2", "--data.tokenizer bpe", r"data\.tokenizer: expected none, .* found 'bpe'"),
        ("wav2vec2", "--data.language en", r"data\.language: expected none, since the model has no languages"),
        ("wav2vec2", "--data.augment.time_masks 1", r"data\.augment: expected no masks of frames"),
        ("wav2vec2", "--model.cross_attention.kind linear", r"model\.cross_attention: .* has no such keyword"),
        ("wav2vec2", "--model.decoder lstm", r"model\.decoder: .* has 'none', the configuration says 'lstm'"),
        (None, "--data.task translate", r"data\.task: expected none, since the model has no languages"),
    ],
)
def test_incompatible_settings_raise(name: str | None, options: str, message: str, tmp_path: Path, data: Path) -> None:
    if name is not None:
        options += f" --init_from {write_public(name, tmp_path / 'public')}"
    options += f" --data.train {data} --data.val {data}"
    any_error = (ConfigError, CheckpointError, DataError)
    refused(message, run, "fit", tmp_path / "run", options, BASE, "asr", error=any_error)
    assert not (tmp_path / "run" / "model").exists()


def test_language_is_saved_with_the_model(tmp_path: Path, data: Path) -> None:
    write_whisper(tmp_path / "public")
    folder = fit(tmp_path / "run", tmp_path / "public", data, f"{STILL} --data.language de --data.task transcribe")
    recognizer = load(folder, device="cpu")
    assert isinstance(recognizer, WhisperPredictor)
    assert recognizer.processor.generation["language"] == "de"
    public, one = load(tmp_path / "public", device="cpu"), recording(wave(1.3, 7))
    assert recognizer(one) == public(one, language="de", task="transcribe")
    assert recognizer(one, language="ja") == public(one, language="ja", task="transcribe")


@pytest.mark.parametrize("name", ["wav2vec2", "whisper", "ours"])
def test_processors_round_trip(name: str, tmp_path: Path) -> None:
    if name == "ours":
        ours: Any = SpeechProcessor.load(named_models("asr")["demo"] / "processor")
        assert type(ours) is ASRProcessor
    else:
        ours = read_parts("asr", write_public(name, tmp_path / "public")).processor
        ours.search = {"num_beams": 3}
    ours.save(tmp_path)
    other = SpeechProcessor.load(tmp_path)
    assert type(other) is type(ours)
    assert (other.fingerprint(), other.search) == (ours.fingerprint(), ours.search)
    assert torch.equal(other.features(wave(1.0)), ours.features(wave(1.0)))
    settings = json.loads((tmp_path / "processor.json").read_text())
    wrong = "WhisperFeatureExtractor" if name == "wav2vec2" else "Wav2Vec2FeatureExtractor"
    for change, message in (
        ({"odd": 1}, r"processor\.json: expected the keys"),
        ({"features": {"feature_extractor_type": "Odd"}}, "expected a feature_extractor_type of"),
        ({"tokenizer": {"kind": "odd"}}, "a tokenizer of kind"),
        ({"features": {"feature_extractor_type": wrong}}, r"processor\.json: .*expected W\w+Features, found W"),
    )[: 1 if name == "ours" else None]:
        (tmp_path / "processor.json").write_text(json.dumps(settings | change))
        refused(message, SpeechProcessor.load, tmp_path, error=DataError)


def test_network_of_a_later_version_raises(tmp_path: Path, data: Path) -> None:
    folder = fit(tmp_path / "run", write_public("wav2vec2", tmp_path / "public"), data, STILL) / "model"
    with edited(folder / "config.json") as config:
        config["network"] = "later"
    refused(r"expected a network of whisper, wav2vec2, found 'later'", load, folder, error=CheckpointError)
