"""A language with one tone per letter, a small recognizer that learns it within seconds, and long recordings."""

from __future__ import annotations

import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from mmattn.tasks.asr.data import ASRDataset, ASRSample
from mmattn.tasks.asr.model import ASRModel, ctc_loss
from mmattn.tasks.asr.predict import ASRPredictor
from mmattn.tasks.asr.processor import ASRProcessor
from mmattn.tasks.common.checkpoint import save_directory
from mmattn.tasks.common.seq2seq.model import token_loss
from tests.tasks.runs import python

RATE = 8000
TONES = {letter: 400.0 * 1.35**n for n, letter in enumerate("abcdef")}  # Hz
TONE, GAP, PAUSE = 0.08, 0.03, 0.16  # seconds: per letter, within a word, between words
SECONDS = 4.0  # per window
KEYWORDS: dict[str, Any] = {"encoder": "conformer", "embed_dim": 32, "num_heads": 2, "ffn_dim": 48, "encoder_layers": 1}
KEYWORDS |= {"kernel_size": 7, "subsampling": 2, "attention": {"kind": "sliding_window", "window": 4}, "dropout": 0.0}


def speak(words: list[str], seed: int, lead: float = 0.1) -> tuple[Tensor, list[tuple[str, float, float]]]:
    """Samples (n,) with a little noise, and word timings in seconds."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    pieces, borders, now = [torch.zeros(round(lead * RATE))], [], round(lead * RATE)
    for word in words:
        begin = now
        for letter in word:
            time = torch.arange(round(TONE * rng.uniform(0.9, 1.2) * RATE)) / RATE
            tone = torch.sin(2 * math.pi * TONES[letter] * time) * torch.hann_window(len(time)).sqrt()
            pieces += [tone, torch.zeros(round(GAP * RATE))]
            now += len(pieces[-2]) + len(pieces[-1])
        borders.append((word, begin / RATE, now / RATE - GAP))
        pieces.append(torch.zeros(round(PAUSE * rng.uniform(0.9, 2.5) * RATE)))
        now += len(pieces[-1])
    wave = torch.cat(pieces)
    return 0.5 * wave + 0.002 * torch.randn(len(wave), generator=generator), borders


def clip(number: int, count: int | None = None) -> ASRSample:
    """A sentence of one to four words of two or three letters, or of `count` words."""
    rng = random.Random(number)
    words = ["".join(rng.choice("abcdef") for _ in range(rng.randint(2, 3))) for _ in range(count or rng.randint(1, 4))]
    wave, borders = speak(words, number, lead=rng.uniform(0.02, 0.15))
    return ASRSample(f"clip-{number}", (wave, RATE), " ".join(words), len(wave) / RATE, words=borders)


@cache
def recognizer() -> ASRPredictor:
    """A recognizer trained on the language, shared by all tests of a process."""
    state = torch.random.get_rng_state()
    torch.manual_seed(1)  # with seed 0 the model does not learn within so few steps
    clips = [clip(n) for n in range(400)]
    processor = ASRProcessor.fit(ASRDataset(clips), sample_rate=RATE, n_mels=24, max_seconds=SECONDS)
    processor.search = {"num_beams": 1, "ctc_weight": 1.0}
    model = ASRModel(**processor.sizes() | KEYWORDS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.006)
    steps = 220
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.006 * min(1.0, (step + 1) / 20, 2 * (steps - step) / steps)
        batch = processor.collate([clips[(16 * step + n) % len(clips)] for n in range(16)])
        output = model(batch.features, batch.feature_mask, batch.target_ids)
        loss = ctc_loss(output.ctc_logits, output.frame_mask, batch.labels, batch.label_mask)
        loss = loss + 0.3 * token_loss(output.logits, batch.labels, batch.label_mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    torch.random.set_rng_state(state)
    return ASRPredictor(model, processor)


def save(folder: Path) -> Path:
    """Saves the recognizer as a model folder."""
    found = recognizer()
    keywords = found.processor.sizes() | KEYWORDS
    return save_directory(folder, task="asr", model=found.model, keywords=keywords, processor=found.processor)


MEASURE = """
import json, sys
from mmattn.tasks.asr.predict import load
predictor = load(sys.argv[1], device="cpu")
predictor.predict([sys.argv[2]])
before = predictor.peak()
answer = predictor.predict([sys.argv[3]])[0]
print(json.dumps([before, predictor.peak(), answer.duration, len(answer.words), predictor.remark()]))
"""
Size = tuple[float, int]  # minutes and channels


def measure_long(model: Path, folder: Path, sentence: Tensor, rate: int, short: Size, long: Size) -> tuple[float, int]:
    """Seconds and number of words of a long recording; asserts that it needs no more memory than a short one.

    Args:
        model: Model folder.
        folder: Folder for the recordings.
        sentence: Samples (n,) that are repeated.
        rate: Sample rate in Hz.
        short: Size of the first recording.
        long: Size of the second recording.
    """
    paths = [folder / "short.wav", folder / "long.wav"]
    for path, (minutes, channels) in zip(paths, (short, long), strict=True):
        with soundfile.SoundFile(path, "w", rate, channels, subtype="PCM_16") as file:
            for _ in range(round(minutes * 60 * rate / len(sentence))):
                file.write(sentence[:, None].expand(-1, channels).numpy())
    stdout = python("-c", MEASURE, model, *paths).stdout
    before, after, duration, count, remark = json.loads(stdout.splitlines()[-1])
    assert after - before < 0.05, "GB"
    assert remark == f"at most {after:.2f} GB of memory in use."
    return duration, count
