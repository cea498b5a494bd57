"""Speech data: the formats, errors that name file and line, the processor, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmattn.data.audio.mel import level
from mmattn.data.audio.reading import resample
from mmattn.tasks.asr.data import ASRDataset, ASRSample, normalize_text
from mmattn.tasks.asr.processor import FLOOR, ASRProcessor
from tests.conftest import refused
from tests.data.fetching import measured_on
from tests.data.files import bad_data, write

TEXTS = ("yes", "no, it's not", "Yes - 42!")
GOOD = {"audio": "audio/1.flac", "text": "a"}  # per line


def sound(seconds: float = 0.5, seed: int = 0, rate: int = 8000) -> torch.Tensor:
    return torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(seed)) * 0.1


def in_memory(texts: tuple[str, ...] = TEXTS) -> ASRDataset:
    return ASRDataset([ASRSample(str(n), (sound(0.3 + n / 5, n), 8000), text) for n, text in enumerate(texts)])


@pytest.fixture(scope="module")
def processor() -> ASRProcessor:
    return ASRProcessor.fit(in_memory())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three recordings of 0.3, 0.5 and 0.7 seconds."""
    (tmp_path / "audio").mkdir()
    for n in range(3):
        soundfile.write(tmp_path / "audio" / f"{n}.flac", sound(0.3 + n / 5, n).numpy(), 8000)
    return tmp_path


def opened(folder: Path, rows: list, name: str = "a.jsonl", **options: Any) -> ASRDataset:
    return ASRDataset(write(folder / name, rows), **options)


def rows(**more: Any) -> list[dict[str, Any]]:
    return [{"audio_filepath": f"audio/{n}.flac", "text": text, **more} for n, text in enumerate(TEXTS)]


def test_manifest(folder: Path) -> None:
    given = rows()
    given[1] |= {"id": "b", "speaker": "eva", "duration": 0.5, "words": [["no", 0, 0.2], ["it's", 0.2, 0.4]]}
    found = opened(folder, given)
    expected = zip(["audio/0.flac", "b", "audio/2.flac"], TEXTS, [0.3, 0.5, 0.7], strict=True)
    assert [(s.id, s.text, round(s.duration, 3)) for s in found.samples] == list(expected)
    assert (found[1].speaker, found[1].words) == ("eva", [("no", 0.0, 0.2), ("it's", 0.2, 0.4)])
    assert found[2].read(8000).shape == (5600,)


def test_csv_and_the_other_key_are_equivalent(folder: Path) -> None:
    manifest = opened(folder, rows())
    other = opened(folder, [{"audio": r["audio_filepath"], "text": r["text"]} for r in rows()])
    table = opened(folder, ["audio,text", *(f'{r["audio_filepath"]},"{r["text"]}"' for r in rows())], "a.csv")
    assert manifest.fingerprint() == other.fingerprint() == table.fingerprint()
    assert opened(folder, rows()[:2]).fingerprint() != manifest.fingerprint()
    lines = ["audio,text,words", 'audio/0.flac,yes,"[[""yes"", 0.1, 0.2]]"']
    assert opened(folder, lines, "a.csv")[0].words == [("yes", 0.1, 0.2)]


def test_offset_selects_a_part_of_the_file(folder: Path) -> None:
    given = [{"audio_filepath": "audio/2.flac", "text": "a", "offset": o, "duration": 0.25} for o in (0, 0.25)]
    found = opened(folder, given)
    whole = soundfile.read(folder / "audio" / "2.flac", dtype="float32")[0]
    assert [s.id for s in found.samples] == ["audio/2.flac@0", "audio/2.flac@0.25"]
    for number, sample in enumerate(found.samples):
        assert np.array_equal(sample.read(8000).numpy(), whole[number * 2000 : (number + 1) * 2000])
    assert found.preload(8000)
    assert np.array_equal(found[1].read(8000).numpy(), whole[2000:4000])


def test_librispeech(folder: Path) -> None:
    place = folder / "dev-clean" / "84" / "121"
    place.mkdir(parents=True)
    for n in range(2):
        soundfile.write(place / f"84-121-000{n}.flac", sound(seed=n).numpy(), 16000)
    write(place / "84-121.trans.txt", ["84-121-0000 GO ON", "84-121-0001 IT'S HERE"])
    found = [(s.id, s.text, s.speaker, s.duration) for s in ASRDataset(folder / "dev-clean").samples]
    assert found == [("84-121-0000", "GO ON", "84", 0.25), ("84-121-0001", "IT'S HERE", "84", 0.25)]
    write(place / "84-121.trans.txt", ["84-121-0000 GO ON", "84-121-0009 IT'S HERE"])
    bad_data(r"trans\.txt, line 2: expected 84-121-0009\.flac or .*\.wav beside it", ASRDataset, folder / "dev-clean")
    bad_data(r"expected LibriSpeech's \*\.trans\.txt somewhere in it, found 0\.flac", ASRDataset, folder / "audio")


def test_duplicate_file_gives_two_samples(folder: Path) -> None:
    found = opened(folder, [rows()[0], rows()[0]])
    assert [sample.id for sample in found.samples] == ["audio/0.flac", "audio/0.flac line 2"]
    numbered = opened(folder, [{**row, "id": n} for n, row in enumerate(rows())])
    assert [sample.id for sample in numbered.samples] == ["0", "1", "2"]


def test_empty_transcript_is_kept(folder: Path, processor: ASRProcessor) -> None:
    batch = processor.collate(opened(folder, [{"audio": "audio/0.flac", "text": ""}]).samples)
    assert (batch.references, batch.labels.tolist()) == ([""], [[processor.tokenizer.eos_id]])
    assert opened(folder, [{"audio": "audio/0.flac"}], require_labels=False)[0].text == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"audio_file": "audio/0.flac", "text": "a"},
            r"line 2: expected the key audio.* 'audio' instead of 'audio_file'",
        ),
        ({"audio": "", "text": "a"}, r"line 2: expected audio: a path, found nothing"),
        ({"audio": 3, "text": "a"}, r"line 2: expected audio: a path, found 3"),
        ({"audio": "audio/0.flac"}, r"line 2: expected the key text, found audio"),
        ({**GOOD, "text": None}, r"line 2: expected text: a text, found nothing"),
        ({**GOOD, "text": 4}, r"line 2: expected text: a text, found 4"),
        ({"audio": "audio/9.flac", "text": "a"}, r"line 2: expected an audio file, found no such file: .*9\.flac"),
        ({"audio": "audio", "text": "a"}, r"line 2: expected an audio file, found a folder: .*audio"),
        ({"audio": "a\0", "text": "a"}, r"line 2: expected an audio file"),
        ({"audio": "text.wav", "text": "a"}, r"line 2: audio .*text\.wav: expected audio .*begins with b'no sound'"),
        ({"audio": "empty.wav", "text": "a"}, r"line 2: audio .*empty\.wav: expected audio, found an empty file"),
        ({**GOOD, "duration": "x"}, r"line 2: expected duration: seconds, found 'x'"),
        ({**GOOD, "duration": -1}, r"line 2: expected duration: seconds, found -1"),
        ({**GOOD, "duration": True}, r"line 2: expected duration: seconds"),
        ({**GOOD, "duration": float("nan")}, r"line 2: expected duration: seconds"),
        ({**GOOD, "offset": 1}, r"line 2: expected a duration beside the offset"),
        ({**GOOD, "words": [["a", 2, 1]]}, r"line 2: expected words: \[\[word, start"),
        ({**GOOD, "words": "a"}, r"line 2: expected words"),
        ({**GOOD, "id": "audio/0.flac"}, r"line 2: expected an id of its own"),
    ],
)
def test_invalid_lines(row: Any, message: str, folder: Path) -> None:
    (folder / "text.wav").write_text("no sound")
    (folder / "empty.wav").write_bytes(b"")
    path = write(folder / "bad.jsonl", [rows()[0], row, rows()[2]])
    bad_data(message, ASRDataset, path)
    kept = ASRDataset(path, on_error="skip")
    assert [sample.text for sample in kept.samples] == [TEXTS[0], TEXTS[2]]
    assert [where for where, _ in kept.skipped] == [f"{path}, line 2"]


def test_damaged_recording_raises_when_read(folder: Path, processor: ASRProcessor) -> None:
    soundfile.write(folder / "audio" / "1.flac", np.full(800, np.nan), 8000, format="WAV", subtype="FLOAT")
    found = opened(folder, rows(duration=0.1))
    bad_data(r"a\.jsonl, line 2: audio .*1\.flac: expected finite samples, found 800", found.preload, 8000)
    bad_data(r"item audio/1\.flac: audio .*expected finite samples", processor.collate, found.samples)
    kept = opened(folder, rows(duration=0.1), on_error="skip")
    assert len(kept) == 2
    assert "expected finite samples, found 800" in kept.skipped[0][1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text\nyes\n", r"a\.csv, header: expected the column audio, found text"),
        ("a.csv", "audio/0.flac,yes\n" * 2, "header: expected a first line with the column names audio and text, "),
        (
            "a.csv",
            "audio;text\na;b\n",
            r"a\.csv, line 1: expected comma-separated cells .*, cells separated by semicolons",
        ),
        ("a.tsv", "audio,text\na,b\n", r"a\.tsv, line 1: expected tab-separated cells, .*, cells separated by commas"),
        ("a.csv", "audio,text\n", "expected at least one recording, found none"),
        ("a.json", "{}", r"expected a manifest \.jsonl"),
        ("a.wav", "x", r"expected a manifest \.jsonl, a \.csv or \.tsv, or LibriSpeech's folder, found 'a\.wav'"),
    ],
)
def test_invalid_files(name: str, content: str, message: str, tmp_path: Path) -> None:
    bad_data(message, ASRDataset, write(tmp_path / name, content))


def test_missing_duration_is_read_from_the_audio(processor: ASRProcessor) -> None:
    assert processor.lengths([ASRSample("1", (sound(0.5), 8000), "yes")]) == [(51, 4)]


def test_in_memory_samples_are_validated() -> None:
    nothing = ASRSample("x", (torch.zeros(0), 8000), "a")
    bad_data(r"sample 0 \(id 'x'\): audio: expected at least one sample", ASRDataset, [nothing])


def test_preload(folder: Path, processor: ASRProcessor) -> None:
    found = opened(folder, rows())
    before, batch = found.fingerprint(), processor.collate(found.samples)
    assert not found.preload(8000, max_bytes=47_999)  # 1.5 seconds take 48,000 bytes
    assert isinstance(found[0].audio, str)
    assert found.preload(8000, max_bytes=48_000)
    for n in range(3):
        (folder / "audio" / f"{n}.flac").unlink()
    assert found.fingerprint() == before
    assert torch.equal(processor.collate(found.samples).features, batch.features)


def test_longer_clips_are_excluded(caplog: pytest.LogCaptureFixture) -> None:
    found = in_memory()  # 0.3, 0.5 and 0.7 seconds
    assert len(found.leave_out_longer(0.7)) == 3
    kept = found.leave_out_longer(0.5)
    assert [sample.id for sample in kept.samples] == ["0", "1"]
    assert "excluded 1 clips" in caplog.text
    bad_data(r"clips of at most 0\.1 s, found none; the shortest has 0\.3 s", kept.leave_out_longer, 0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It\u2019s  TWENTY-one; no\tmore.", "it's twenty one no more"),
        ("rock 'n' roll '", "rock 'n' roll"),
        ("\u00c9t\u00e9 Stra\u00dfe \ufb01x \uff14", "\u00e9t\u00e9 stra\u00dfe fix 4"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("a_b/c & d", "a b c d"),
        ("?!... --", ""),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize_text(text) == expected
    assert normalize_text(expected) == expected


def test_character_tokenizer(processor: ASRProcessor) -> None:
    special = [getattr(processor.tokenizer, f"{name}_id") for name in ("pad", "unk", "start", "eos")]
    assert (special[0], sorted(special)) == (0, [0, 1, 2, 3])
    ids = processor.encode("No, it's 4!")
    assert (len(ids), processor.decode(ids)) == (9, "no it's 4")
    assert processor.encode("zoo")[0] == processor.tokenizer.unk_id
    assert processor.decode([0, 2, *processor.encode("so"), 1, 0, 3]) == "so"
    assert processor.sizes() == {"vocab_size": 4 + len(" '24einosty"), "num_mels": 40}
    text = "yes no"
    assert [text[start:end] for start, end in processor.tokenizer.spans(text)] == ["y", "e", "s", "", "n", "o"]
    single = ASRProcessor.fit(ASRDataset([ASRSample("1", (sound(), 8000), "one")]))
    assert single.decode(single.encode("one one")) == "one one", "a space can still be encoded"


def test_bpe_tokenizer() -> None:
    fitted = ASRProcessor.fit(in_memory(), tokenizer="bpe", vocab_size=20)
    assert fitted.tokenizer.vocab_size <= 20
    assert len(fitted.encode("yes")) < 4  # a token may be longer than one character
    assert fitted.decode(fitted.encode("Yes, it's 42")) == "yes it's 42"


def test_features_are_invariant_to_gain_and_offset(processor: ASRProcessor) -> None:
    wave = sound()
    expected = processor.features(wave)
    assert expected.shape == (51, 40)
    assert torch.allclose(processor.features(0.01 * wave + 0.3), expected, atol=1e-3)
    assert torch.allclose(expected.mean(0), torch.zeros(40), atol=1e-5)
    variance = processor.mel(level(wave)).var(0, correction=0)
    assert torch.allclose(expected.var(0, correction=0), variance / (variance + FLOOR), atol=1e-5)


@pytest.mark.parametrize("wave", [torch.zeros(4000), torch.full((4000,), 0.5), torch.full((1,), 0.5)])
def test_silence_gives_zero_features(wave: torch.Tensor, processor: ASRProcessor) -> None:
    assert torch.equal(level(wave), torch.zeros_like(wave))
    assert processor.features(wave).abs().max() < 1e-3


def test_training_set_normalization() -> None:
    data = in_memory()
    fitted = ASRProcessor.fit(data, normalize="train")
    frames = torch.cat([fitted.features(sample.read(8000)) for sample in data.samples])
    assert torch.allclose(frames.mean(0), torch.zeros(40), atol=1e-4)
    assert torch.allclose(frames.var(0, correction=0), torch.ones(40), atol=0.05)
    assert not torch.allclose(fitted.features(data[0].read(8000)).mean(0), torch.zeros(40), atol=1e-2)


@pytest.mark.parametrize("normalize", ["utterance", "train"])
def test_single_clip_equals_batched(normalize: str) -> None:
    data = in_memory()
    fitted = ASRProcessor.fit(data, normalize=normalize)
    batch = fitted.collate(data.samples)
    assert batch.features.shape == (3, 71, 40)
    assert batch.feature_mask.sum(1).tolist() == [31, 51, 71] == [f for f, _ in fitted.lengths(data.samples)]
    assert not batch.features[~batch.feature_mask].any()
    for n, sample in enumerate(data.samples):
        alone = fitted.collate([sample])
        size = alone.features.shape[1]
        assert torch.allclose(batch.features[n, :size], alone.features[0], atol=1e-5)


def test_other_rates_are_resampled(processor: ASRProcessor) -> None:
    high = sound(0.5, rate=48_000)
    low = torch.cat(list(resample([high], 48_000, 8000)))
    batch = processor.collate([ASRSample("a", (high, 48_000)), ASRSample("b", (low, 8000))])
    assert torch.allclose(batch.features[0], batch.features[1], atol=1e-4)


def test_batch(processor: ASRProcessor) -> None:
    data = in_memory()
    batch = processor.collate(data.samples, seeds=[1, 2, 3], is_repeat=True)
    assert (len(batch), batch.ids, batch.is_repeat) == (3, ["0", "1", "2"], True)
    assert batch.references == ["yes", "no it's not", "yes 42"]
    assert batch.label_mask.sum(1).tolist() == [tokens for _, tokens in processor.lengths(data.samples)]
    for n, reference in enumerate(batch.references):
        ids, size = processor.encode(reference), len(reference)
        assert batch.labels[n, : size + 1].tolist() == [*ids, processor.tokenizer.eos_id]
        assert batch.target_ids[n, : size + 1].tolist() == [processor.tokenizer.start_id, *ids]
        assert not batch.labels[n, size + 1 :].any()


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe", "vocab_size": 20, "normalize": "train", "n_mels": 20}])
def test_save_and_load(options: dict[str, Any], tmp_path: Path) -> None:
    data = in_memory()
    fitted = ASRProcessor.fit(data, max_seconds=7.0, f_min=50.0, **options)
    fitted.search = {"num_beams": 3}
    fitted.save(tmp_path)
    loaded = ASRProcessor.load(tmp_path)
    assert loaded.fingerprint() == fitted.fingerprint()
    assert (loaded.max_seconds, loaded.search, loaded.mel.f_min) == (7.0, {"num_beams": 3}, 50.0)
    one, other = fitted.collate(data.samples), loaded.collate(data.samples)
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("features", "labels"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "charcters"}, "tokenizer: expected one of characters, bpe, .*did you mean 'characters'"),
        ({"tokenizer": "bpe", "vocab_size": 9}, "vocab_size: expected at least 15, the alphabet's, found 9"),
        ({"normalize": "no"}, "normalize: expected one of utterance, train"),
        ({"max_seconds": 0}, "max_seconds: expected more than 0"),
        ({"n_mels": 0}, "n_mels: expected at least 1"),
        ({"train": ("...",)}, "at least one text with a letter or digit, found 1 without"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    train = in_memory(options.pop("train", TEXTS))
    refused(message, ASRProcessor.fit, train, **options)


@pytest.mark.parametrize(("name", "sizes"), [("fsdd", (2400, 300)), ("kathleen_arctic", (865, 96))])
def test_real_data(name: str, sizes: tuple[int, int], real_data: Path) -> None:
    found = [ASRDataset(measured_on(real_data, name) / f"{split}.jsonl") for split in ("train", "val")]
    assert tuple(map(len, found)) == sizes
    assert all(normalize_text(sample.text) == sample.text for sample in found[0].samples)
    fitted = ASRProcessor.fit(found[0])
    assert all(fitted.tokenizer.unk_id not in fitted.encode(sample.text) for sample in found[1].samples)
    assert found[1].preload(8000)
    expected = [len(fitted.features(sample.read(8000))) for sample in found[1].samples]
    assert [frames for frames, _ in fitted.lengths(found[1].samples)] == expected
