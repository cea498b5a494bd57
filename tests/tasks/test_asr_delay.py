"""How late CTC says what it hears: found again where it is known, and taken off word times."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmattn.tasks.asr import alignment
from mmattn.tasks.asr.demo import make
from mmattn.tasks.asr.model import ASRModel
from mmattn.tasks.asr.predict import Recogniser, load
from mmattn.tasks.asr.data import ASRDataset, ASRSample
from mmattn.tasks.asr.processor import ASRProcessor
from mmattn.tasks.asr.alignment import Word, align, measure_delay, place_words, widened
from mmattn.tasks.common.sources import named_models


class Late(nn.Module):
    """Scores of each frame from the input so many frames before it, and from nothing else."""

    subsampling = 1

    def __init__(self, frames: int, bands: int, vocab_size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frames, self.head = frames, nn.Module()
        self.head.ctc = nn.Linear(bands, vocab_size)

    def encode(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        late = torch.roll(features, self.frames, 1)
        if self.frames > 0:
            late = torch.cat([torch.zeros_like(late[:, : self.frames]), late[:, self.frames :]], 1)
        return late, mask


@pytest.fixture(scope="module")
def clips() -> ASRDataset:
    return ASRDataset(make("train", 50))


@pytest.mark.parametrize("frames", [0, 7, 20])
def test_a_known_delay_is_found(clips: ASRDataset, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "BETTER", -2.0)  # whatever the clips say to it: what is said here is no text
    processor = ASRProcessor.fit(clips)
    model: Any = Late(frames, processor.mel.n_mels, processor.tokenizer.vocab_size)
    found = measure_delay(model, processor, clips.samples)
    assert abs(found - (frames + 0.5) * processor.frame_seconds) < 1e-3  # a frame is said in its middle


def test_what_hears_nothing_has_none(clips: ASRDataset) -> None:
    processor = ASRProcessor.fit(clips)
    model: Any = Late(0, processor.mel.n_mels, processor.tokenizer.vocab_size)
    nn.init.zeros_(model.head.ctc.weight)
    assert measure_delay(model, processor, clips.samples) == 0.0


def test_word_times_are_earlier_by_it() -> None:
    recogniser, (sample,) = load(device="cpu"), make("test", 1)
    wave, text = sample.read(8000), sample.text
    log_p = torch.full((40, recogniser.processor.tokenizer.vocab_size), -9.0)  # frames that cannot be told apart
    log_p[:, 0] = 0.0
    ids = recogniser.processor.encode(text)
    for n, token in enumerate(ids):
        log_p[5 + 2 * n, token] = 1.0
    flat = torch.ones_like(wave)  # of a level that tells nothing
    times = {}
    for late_by in (0.0, 0.08):
        recogniser.processor.delay = late_by
        times[late_by] = place_words(text, log_p, flat, recogniser.processor, recogniser.frame_seconds)[0]
    assert len(times[0.0]) == len(text.split()) >= 3
    for late, early in zip(times[0.0], times[0.08], strict=True):
        assert abs(late.start - early.start - 0.08) < 0.002
        assert abs(late.end - early.end - 0.08) < 0.002
    assert Word("a", 0.1, 0.5).moved(-0.2, 0.0, 9.0) == Word("a", 0.0, 0.3)
    assert Word("a", 0.1, 0.5).moved(0.2, 0.0, 0.6) == Word("a", 0.3, 0.6)


def test_folders_that_do_not_say_it_have_none(tmp_path: Path) -> None:
    folder = shutil.copytree(named_models("asr")["demo"], tmp_path / "model")
    path = folder / "processor" / "processor.json"
    settings = json.loads(path.read_text())
    settings.pop("delay", None)
    path.write_text(json.dumps(settings))
    older = load(folder, device="cpu")
    assert older.processor.delay == 0.0
    assert isinstance(older, Recogniser)
    assert older.predict([ASRSample("1", make("test", 1)[0].audio)])[0].text


def test_a_delay_is_believed_where_it_brings_speech_onto_the_sound() -> None:
    loud = torch.zeros(100, dtype=torch.bool)
    loud[20:80] = True
    late = [(0.35, 0.95, loud)]  # seconds, of 0.2 to 0.8
    assert abs(alignment._covered(late, 0.15) - 1.0) < 0.05
    assert alignment._covered(late, 0.0) < 0.65
    assert (
        alignment._covered([(0.0, 1.0, torch.ones(100, dtype=torch.bool))], 0.15) < 0.9
    )  # no silence: nothing is late
    assert alignment._covered([], 0.1) == 0.0


def test_the_shipped_model_is_late_and_its_words_are_not() -> None:
    recogniser, clips = load(device="cpu"), make("test", 30)
    assert 0.05 < recogniser.processor.delay < 0.25
    found, errors = recogniser.aligned(clips), []
    for sample, words in zip(clips, found, strict=True):
        for word, (_, start, end) in zip(words, sample.words, strict=True):
            errors += [abs(word.start - start), abs(word.end - end)]
    assert sorted(errors)[len(errors) // 2] < 0.05


def test_a_model_in_half_precision_is_measured(clips: ASRDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "BETTER", -2.0)
    processor = ASRProcessor.fit(clips)
    torch.manual_seed(0)
    model = ASRModel(**processor.sizes(), embed_dim=16, num_heads=2, ffn_dim=16, encoder_layers=1, decoder="none")
    whole = measure_delay(model, processor, clips.samples)
    assert abs(measure_delay(model.bfloat16(), processor, clips.samples) - whole) < 0.1
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("ids", "peaks"),
    [([4, 5, 6, 6, 7], [5, 7, 10, 12, 15]), ([4, 5, 5], [5, 10, 12]), ([4, 4], [0, 39]), ([4], [20])],
)
def test_tokens_share_the_frames_from_the_first_to_the_last(ids: list[int], peaks: list[int]) -> None:
    """Doubled ones, too, for which a blank is needed that is not to be looked for in the silence around."""
    log_p = torch.full((40, 9), -9.0)
    log_p[:, 0] = 0.0
    for token, frame in zip(ids, peaks, strict=True):
        log_p[frame, token], log_p[frame, 0] = 0.0, -9.0
    plain = align(log_p, ids)
    shared = widened(log_p, ids, plain)
    assert plain == [(frame, frame) for frame in peaks]
    assert shared[0][0] == peaks[0]
    assert shared[-1][1] == peaks[-1]
    assert all(one[1] < other[0] for one, other in pairwise(shared))
    assert sum(last - first + 1 for first, last in shared) >= peaks[-1] - peaks[0]
