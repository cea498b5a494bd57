"""The built-in clips: frozen, balanced, and without order no better than a guess."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from mmattn.tasks.video import demo
from mmattn.tasks.video.demo import CLASSES, FPS, FRAMES, SIZE
from tests.data.demos import DemoTests


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Any]]:
    return {split: demo.make(split, size=160) for split in ("train", "val", "test")}


class TestFrozen(DemoTests):
    demo, first = demo, 24
    digests = (
        "717f492f1fe98f40276b2cfb3bd8a2544a597582d96c0a7f380f7b58a054939c",
        "ba39016dfcbd1b54adb0200b1ff5ba1cac51a6b965828382305289f5876ebc6e",
        "d64e9aae8a443b867ee64d107f32e90c3f08accfc929616a33c5ef082c6dedcd",
    )

    def content(self, sample: Any) -> bytes:
        return sample.video.tobytes() + repr((sample.id, sample.labels, sample.regions)).encode()


def test_clips(parts: dict[str, list[Any]]) -> None:
    for samples in parts.values():
        assert Counter(sample.labels[0] for sample in samples) == dict.fromkeys(CLASSES, 20)
        assert all(sample.video.shape == (FRAMES, SIZE, SIZE, 3) for sample in samples)
        assert all(sample.video.dtype == np.uint8 for sample in samples)


def centers(sample: Any) -> list[list[tuple[float, float]]]:
    """The centers of the boxes of each frame."""
    found = []
    for n in range(FRAMES):
        inside = [box for begin, end, box in sample.regions if begin <= (n + 0.5) / FPS < end]
        found.append([((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in inside])
    return found


def test_regions_tell_the_class(parts: dict[str, list[Any]]) -> None:
    """Directions and speeds are as named, and the event takes a part of the clip."""
    for sample in parts["train"]:
        places, label = [frame for frame in centers(sample) if frame], sample.labels[0]
        assert 5 < len(places) < 9
        if "moves" in label:
            steps = np.diff([frame[0][0] for frame in places])
            assert ((steps > 0) == (label == "circle moves right")).all()
            assert steps.std() < 0.01
        elif label in ("circle speeds up", "circle slows down"):
            steps = np.abs(np.diff([frame[0][1] for frame in places]))
            assert (np.diff(steps) > 0).all() == (label == "circle speeds up")
            assert (np.diff(steps) < 0).all() == (label == "circle slows down")
        elif "pushes" in label:
            assert {len(frame) for frame in places} == {2}
        else:
            assert {len(frame) for frame in places} == {1}
            assert len(set(map(tuple, places))) == 2
        assert any(not frame for frame in centers(sample))


def test_every_second_class_is_played_backwards() -> None:
    """A generator that ignored the direction would give the same frames: only their order differs."""
    given = demo.make("train", 16)
    clips = [demo.compose(rng, n % len(CLASSES)) for rng in [demo.Random(f"video {[5, 1]}")] for n in range(16)]
    painted = demo.paint(clips, [5, 1])
    for n, (sample, video) in enumerate(zip(given, painted, strict=True)):
        assert np.array_equal(sample.video, video[::-1] if n % 2 else video)
        backwards, forwards = demo.regions_of(clips[n], True), demo.regions_of(clips[n], False)
        assert sorted(box for *_, box in backwards) == sorted(box for *_, box in forwards)
        assert sample.regions == (backwards if n % 2 else forwards)


def test_circles_and_rings_are_painted_at_their_regions(parts: dict[str, list[Any]]) -> None:
    """A region differs from the same place in a frame without the event."""
    changes = []
    for sample in parts["val"]:
        empty = next(n for n, frame in enumerate(centers(sample)) if not frame)
        for begin, _, (x0, y0, x1, y1) in sample.regions:
            frame = sample.video[round(begin * FPS)].astype(int)
            rows, columns = (slice(round(a * SIZE) + 2, round(b * SIZE) - 2) for a, b in ((y0, y1), (x0, x1)))
            change = np.abs(frame - sample.video[empty])[rows, columns].max(-1)  # a ring is hollow
            changes.append(float(np.quantile(change, 0.9)))
    assert min(changes) > 8
    assert np.mean(changes) > 80
