"""Long recordings, and the memory that hearing one takes, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
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


def hear_long(model: Path, folder: Path, sentence: Tensor, rate: int, short: Size, long: Size) -> tuple[float, int]:
    """Seconds and words of a long recording, which takes no more memory than the short one before it did.

    Args:
        model: a folder with one.
        folder: where the recordings are written.
        sentence: samples (n,), which are repeated.
        rate: in Hz.
        short: of the first recording.
        long: of the second.
    """
    soundfile = pytest.importorskip("soundfile")
    paths = [folder / "short.wav", folder / "long.wav"]
    for path, (minutes, channels) in zip(paths, (short, long), strict=True):
        with soundfile.SoundFile(path, "w", rate, channels, subtype="PCM_16") as file:
            for _ in range(round(minutes * 60 * rate / len(sentence))):
                file.write(sentence[:, None].expand(-1, channels).numpy())
    words = [sys.executable, "-c", MEASURE, str(model), *map(str, paths)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # beside the other tests
    done = subprocess.run(words, cwd=ROOT, env=one_thread, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after, duration, count, remark = json.loads(done.stdout.splitlines()[-1])
    assert after - before < 0.05, "GB"
    assert remark == f"at most {after:.2f} GB of memory in use."
    return duration, count
