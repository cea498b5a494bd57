"""Public Whisper, wav2vec 2.0 and HuBERT folders: transcripts of any length equal those of transformers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from mmattn.data.errors import DataError
from mmattn.tasks import load
from mmattn.tasks.asr.data import ASRSample
from mmattn.tasks.asr.predict import ASRPredictor
from mmattn.tasks.asr.public_processors import CTCProcessor
from mmattn.tasks.asr.whisper import TextSegment, WhisperPredictor, WindowHypothesis
from mmattn.tasks.common.errors import ConfigError
from tests.conftest import refused, slow_but_first
from tests.public_speech import (
    CTC,
    RATE,
    WINDOW,
    clips,
    recording,
    texts,
    transcribed_by_transformers,
    wave,
    write_whisper,
)
from tests.tasks.runs import edited
from tests.tasks.tones import measure_long

pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", CTC)
def test_transcripts_equal_transformers(name: str, speech: dict[str, Any]) -> None:
    folder, theirs = speech[name]
    recognizer = load(folder, device="cpu")
    assert (type(recognizer), type(recognizer.processor)) == (ASRPredictor, CTCProcessor)
    expected = transcribed_by_transformers(theirs, clips())
    assert len(set(expected)) == len(expected)
    assert min(map(len, expected)) > 5, "empty transcripts would prove nothing"
    assert texts(recognizer, clips()) == expected, "a batch with padding"
    assert texts(recognizer, clips(), batch_size=1) == expected


def test_large_model_batch_equals_transformers(speech: dict[str, Any]) -> None:
    folder, (model, extractor, tokenizer) = speech["large"]
    inputs = extractor([one.numpy() for one in clips()], sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.no_grad():
        best = model(**inputs).logits.argmax(-1)
    counts = model._get_feat_extract_output_lengths(inputs.attention_mask.sum(1)).tolist()
    expected = [tokenizer.decode(row[:count]) for row, count in zip(best, counts, strict=True)]  # without padding
    assert texts(load(folder, device="cpu"), clips()) == expected


@pytest.mark.parametrize("generation", [{}, {"num_beams": 3, "length_penalty": 0.4, "no_repeat_ngram_size": 3}])
@pytest.mark.parametrize("seed", slow_but_first([1, 3, 4]))
def test_whisper_transcripts_equal_transformers(seed: int, generation: dict[str, Any], tmp_path: Path) -> None:
    theirs = write_whisper(tmp_path, seed, whole=seed == 3, **generation)
    recognizer = load(tmp_path, device="cpu")
    assert isinstance(recognizer, WhisperPredictor)
    expected = transcribed_by_transformers(theirs, clips())
    assert len(set(expected)) > 1
    assert texts(recognizer, clips()) == expected
    assert texts(recognizer, clips(), batch_size=1) == expected
    for options in ({"language": "de"}, {"language": "Japanese", "task": "translate"}, {"num_beams": 2}):
        assert texts(recognizer, clips(), **options) == transcribed_by_transformers(theirs, clips(), **options)


def test_language_and_task_change_the_output(speech: dict[str, Any]) -> None:
    folder, theirs = speech["whisper"]
    recognizer = load(folder, device="cpu")
    asked = [{"language": name, "task": task} for name in ("en", "de") for task in ("transcribe", "translate")]
    found = [tuple(texts(recognizer, clips(), **options)) for options in asked]
    assert len(set(found)) == 4
    assert tuple(transcribed_by_transformers(theirs, clips(), **asked[-1])) == found[-1]


def test_english_only_whisper(tmp_path: Path) -> None:
    theirs = write_whisper(tmp_path, english=True)
    recognizer = load(tmp_path, device="cpu")
    assert texts(recognizer, clips()) == transcribed_by_transformers(theirs, clips())
    refused("an English model takes no language", recognizer, recording(wave(1.0)), language="en", error=ConfigError)


@pytest.mark.parametrize("name", ["base", "whisper"])
def test_any_sample_rate_and_channel_count(name: str, speech: dict[str, Any], tmp_path: Path) -> None:
    recognizer = load(speech[name][0], device="cpu")
    one = wave(1.2)
    torchaudio = pytest.importorskip("torchaudio")
    other = torchaudio.functional.resample(one, RATE, 44_100)
    soundfile.write(tmp_path / "a.wav", torch.stack([0.5 * other, 1.5 * other], 1).numpy() / 2, 44_100, "FLOAT")
    back = torchaudio.functional.resample(other, 44_100, RATE) / 2
    found = recognizer.predict([tmp_path / "a.wav", recording(back)])
    assert found[0].text == found[1].text != ""
    assert found[0].duration == pytest.approx(1.2, abs=1e-3)


@pytest.mark.parametrize("seed", slow_but_first([1, 3, 5]))
def test_whisper_long_form_equals_transformers(seed: int, tmp_path: Path) -> None:
    theirs = write_whisper(tmp_path, seed)
    recognizer = load(tmp_path, device="cpu")
    waves = [*clips((5.3, 7.7)), wave(1.1, 3)]
    waves[0][: 2 * RATE] *= 1e-3
    waves[0][RATE // 2 : RATE] = 0.0  # silence, 80 dB below the loudest frame
    expected = transcribed_by_transformers(theirs, waves)
    found = recognizer.predict([recording(one) for one in waves], batch_size=2)
    assert [answer.text for answer in found] == expected
    assert recognizer.long
    assert [answer.duration for answer in found] == [5.3, 7.7, 1.1]
    for answer in found:
        assert "".join(word.word for word in answer.words).replace(" ", "") == answer.text.replace(" ", "")
        assert all(0 <= word.start <= word.end <= answer.duration + 1e-6 for word in answer.words)
        assert all(one.start <= other.start + 1e-6 for one, other in pairwise(answer.words))
    beams = {"num_beams": 2, "language": "de"}
    assert texts(recognizer, waves, **beams) == transcribed_by_transformers(theirs, waves, **beams)


def test_long_recordings_from_any_source(speech: dict[str, Any], tmp_path: Path) -> None:
    """It is read twice: a segment of a file, an open file and bytes are read from the start each time."""
    folder, theirs = speech["whisper"]
    one = wave(5.3, 4)
    soundfile.write(tmp_path / "all.wav", torch.cat([torch.zeros(RATE), one]).numpy(), RATE, "FLOAT")
    soundfile.write(tmp_path / "one.wav", one.numpy(), RATE, "FLOAT")
    part = ASRSample("part", str(tmp_path / "all.wav"), duration=5.3, segment=(1.0, 6.3))
    with (tmp_path / "one.wav").open("rb") as file:
        items: list[Any] = [part, {"audio": file}, {"audio": (tmp_path / "one.wav").read_bytes()}, recording(one)]
        found = load(folder, device="cpu").predict(items)
    assert [answer.text for answer in found] == transcribed_by_transformers(theirs, [one]) * 4
    assert found[0].words == found[1].words


def test_silent_windows_are_skipped(speech: dict[str, Any]) -> None:
    recognizer = load(speech["whisper"][0], device="cpu")
    silence, sound = torch.zeros(4 * WINDOW * RATE), wave(1.5)
    found = recognizer(recording(torch.cat([sound, silence, sound, silence])))
    assert found.duration == pytest.approx(3 + 8 * WINDOW)
    assert found.words
    assert not any(1.5 + WINDOW < word.start < 1.5 + 3 * WINDOW for word in found.words)
    assert any(word.start > 1.5 + 3 * WINDOW for word in found.words), "speech after the silence is transcribed"
    for name in ("whisper", "base"):
        quiet_ones = [recording(torch.zeros(RATE)), recording(silence)]
        answers = load(speech[name][0], device="cpu").predict(quiet_ones)
        assert [(a.text, a.words, a.duration) for a in answers] == [("", [], 1.0), ("", [], 4.0 * WINDOW)]


@pytest.mark.parametrize("name", ["base", "large hubert"])
def test_ctc_transcripts_of_long_recordings(name: str, speech: dict[str, Any]) -> None:
    """The merged words of the windows approximate those of the full recording, and are equal inside the windows."""
    recognizer = load(speech[name][0], device="cpu")
    assert recognizer.window == 20.0
    one = wave(9.0, 5)
    whole = recognizer(recording(one))
    assert not recognizer.long
    found = recognizer(recording(one), batch_size=2, window=4.0)
    assert recognizer.long
    assert found.duration == whole.duration == 9.0
    assert found.text == " ".join(word.word for word in found.words)
    assert len(found.words) > 5
    assert all(one.start <= other.start for one, other in pairwise(found.words))
    first = recognizer(recording(one[: 4 * RATE]))
    assert [w.word for w in found.words][:3] == [w.word for w in first.words][:3]


def test_recordings_shorter_than_a_frame(speech: dict[str, Any]) -> None:
    for name in ("base", "large"):
        recognizer, one = load(speech[name][0], device="cpu"), wave(1.0)
        assert texts(recognizer, [one[:100]]) == [""]
        assert [text != "" for text in texts(recognizer, [one, one[:100]])] == [True, False]


def test_ctc_word_timings(speech: dict[str, Any]) -> None:
    recognizer = load(speech["base"][0], device="cpu")
    answer = recognizer(recording(wave(1.9, 3)))
    assert [word.word for word in answer.words] == answer.text.split()
    assert all(0 <= word.start < word.end <= 1.9 for word in answer.words)
    assert all(one.end <= other.end for one, other in pairwise(answer.words))
    (found,) = recognizer.aligned([ASRSample("1", (wave(1.9, 3), RATE), answer.text)])
    assert found == answer.words


def test_whisper_word_timings_follow_attention(speech: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With known attention: four words at separate positions, one of them of three tokens."""
    recognizer = load(speech["whisper"][0], device="cpu")
    processor: Any = recognizer.processor
    ids = processor.encode("the old dog zzz")
    parts = processor.words(ids)
    assert [word for word, _, _ in parts] == ["the", "old", "dog", "zzz"]
    assert parts[-1][2] - parts[-1][1] >= 3
    borders = [*[4, 14, 26, 34, *range(44, 90, 5)][: len(ids)], 88, 95]  # boundaries of the tokens in encoder states
    centers = torch.tensor([(a + b) / 2 for a, b in pairwise(borders)])
    bumps = -((torch.arange(100) - centers[:, None]) / 3).square()
    shown = bumps.softmax(-1).expand(2, -1, -1)

    def attention(memory: Any, prompt: list[int], text: list[int], heads: Any) -> torch.Tensor:
        assert text == ids
        assert prompt[-1] == processor.tokenizer.no_timestamps_id
        assert heads == [[1, 0], [1, 1]]
        return shown

    monkeypatch.setattr(recognizer.model, "attention", attention)
    hypothesis = WindowHypothesis(ids, [processor.tokenizer.start_id], torch.zeros(1, 100, 24), 0.0)
    found = recognizer.model.words(hypothesis, [TextSegment(ids, 0, 95, closed=False)], processor, start=10.0)
    assert [word.word for word in found] == ["the", "old", "dog", "zzz"]
    assert found[0].start == 10.0
    between = [10 + 0.02 * float(pair.mean()) for pair in centers.unfold(0, 2, 1)]  # token boundaries
    for word, (_, first, end), following in zip(found, parts, [*found[1:], None], strict=True):
        assert first == 0 or word.start == pytest.approx(between[first - 1], abs=0.07)
        assert word.end == pytest.approx(between[end - 1], abs=0.07)
        assert following is None or word.end == following.start
    cut = parts[2][1]
    two = [TextSegment(ids[:cut], 0, 30, closed=True), TextSegment(ids[cut:], 35, 90, closed=True)]
    within = recognizer.model.words(hypothesis, two, processor)
    assert [word.word for word in within] == ["the", "old", "dog", "zzz"]
    assert within[1].end == pytest.approx(0.6)
    assert within[2].start == pytest.approx(0.7)
    assert within[3].end == pytest.approx(1.8)


def test_forced_alignment_of_known_texts(speech: dict[str, Any]) -> None:
    recognizer = load(speech["whisper"][0], device="cpu")
    known = ASRSample("1", (wave(1.5), RATE), "the old dog")
    (found,) = recognizer.aligned([known])
    assert [word.word for word in found] == ["the", "old", "dog"]
    assert all(0 <= word.start <= word.end <= 1.5 for word in found)
    for sample in (ASRSample("2", (wave(2.5), RATE), "the"), ASRSample("2", (wave(1.0), RATE), "the old dog " * 9)):
        with pytest.raises(DataError, match=r"item 2: expected at most 2 s and 36 tokens to align, found \d\.\d s and"):
            recognizer.aligned([sample])


def test_full_length_transcript_has_word_timings(tmp_path: Path) -> None:
    """With an old folder that has no token for texts without timestamps."""
    write_whisper(tmp_path, 5)
    with edited(tmp_path / "generation_config.json") as values:
        end, stamps = values["eos_token_id"], values.pop("no_timestamps_token_id")
        values["suppress_tokens"] += [end, *range(stamps, stamps + 50 * WINDOW + 2)]
    recognizer = load(tmp_path, device="cpu")
    answer = recognizer(recording(wave(1.5)))
    assert len(recognizer.processor.encode(answer.text)) > 20
    assert [word.word for word in answer.words] == answer.text.split()


def test_attention_of_the_selected_heads(speech: dict[str, Any]) -> None:
    recognizer = load(speech["whisper"][0], device="cpu")
    _, (model, extractor, _) = speech["whisper"]
    features = extractor(wave(1.0).numpy(), sampling_rate=RATE, return_tensors="pt").input_features
    ids = recognizer.processor.encode("the dog")
    prompt = [recognizer.processor.tokenizer.start_id, recognizer.processor.tokenizer.no_timestamps_id]
    with torch.no_grad():
        model.set_attn_implementation("eager")
        output = model(
            input_features=features, decoder_input_ids=torch.tensor([[*prompt, *ids]]), output_attentions=True
        )
        memory = recognizer.model.net.encode(features.mT)
    for heads, wanted in (([[0, 1], [1, 0]], [(0, 1), (1, 0)]), (None, [(1, 0), (1, 1)])):
        found = recognizer.model.attention(memory, prompt, ids, heads)
        expected = torch.stack([output.cross_attentions[layer][0, head, 1:] for layer, head in wanted])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert found.shape == (2, len(ids) + 1, 100)


def test_words_without_spaces(speech: dict[str, Any]) -> None:
    processor: Any = load(speech["whisper"][0], device="cpu").processor
    text = "日本 x"
    ids = processor.encode(text)
    japanese = processor.words(ids, [processor.languages["<|ja|>"]])
    assert [word for word, _, _ in japanese] == ["日", "本", "x"]
    assert japanese[0][1] == 0 or ids[0] == processor.encode(" a")[0]
    assert all(one[2] <= other[1] + 1 for one, other in pairwise(japanese))
    assert [word for word, _, _ in processor.words(ids)] == ["日本", "x"]
    assert processor.words(processor.encode(text)[:-1])[-1][2] <= len(ids) - 1
    assert processor.words([]) == []


@pytest.mark.slow
def test_memory_is_constant_in_recording_length(tmp_path: Path) -> None:
    """Four minutes of eight channels at 48 kHz: 0.37 GB as floats, of which one window at a time is in memory."""
    write_whisper(tmp_path / "model", 3, max_length=6)
    sentence = wave(3.0).repeat_interleave(3)
    duration, count = measure_long(tmp_path / "model", tmp_path, sentence, 48_000, (0.5, 8), (4, 8))
    assert duration == pytest.approx(240, abs=0.1)
    assert count > 100
