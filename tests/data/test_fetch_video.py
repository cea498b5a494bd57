"""The public video set from a server on loopback: converted as documented, or one error and no files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmattn.data.video.reading import open_video
from mmattn.tasks.video.data import VideoDataset
from scripts.fetch.archive import fetch, sources, validation
from scripts.fetch.video import write_small
from tests.data.fetching import NOWHERE, get, measured_on, not_got
from tests.video_files import film, reds, write

pytest.importorskip("av")


def clip(path: Path, height: int = 240, width: int = 320) -> bytes:
    return write(path / "a.mp4", film(20, height, width)).read_bytes()


def test_surv_fight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "scripts.fetch.video.validation", lambda name: {"train": ["fi001", "nofi002"], "val": ["fi003"]}
    )
    content = clip(tmp_path, 24, 32)
    names = ("fight/fi001.mp4", "noFight/nofi002.mp4", "fight/fi003.mp4", "fight/fi004.mp4")
    folder = get("surv_fight", {**dict.fromkeys(names, content), "README.md": b"no"}, tmp_path / "out")
    parts = {part: VideoDataset(folder / part).samples for part in ("train", "val", "test")}
    assert {part: [(s.id, s.labels) for s in samples] for part, samples in parts.items()} == {
        "train": [("fight/fi001.mp4", ["fight"]), ("nofight/nofi002.mp4", ["nofight"])],
        "val": [("fight/fi003.mp4", ["fight"])],
        "test": [("fight/fi004.mp4", ["fight"])],
    }
    some = dict.fromkeys(names[1:], content)
    not_got("surv_fight: the archive has no clips such as fi001", "surv_fight", some, tmp_path / "other")
    bad = {**dict.fromkeys(names, content), names[0]: b"no video"}
    not_got("surv_fight: .*fi001.mp4: video: expected a video", "surv_fight", bad, tmp_path / "other")


def test_clips_become_small(tmp_path: Path) -> None:
    write_small(clip(tmp_path), tmp_path / "small.mp4", "a.mp4")
    with open_video(tmp_path / "small.mp4") as video:
        assert video.size == (192, 144)
        assert video.seconds == pytest.approx(2.0, abs=0.02)
        found = reds([frame.pixels for frame in video.frames_at([0.05, 1.05, 1.95])])
    assert found == pytest.approx([0, 132, 250], abs=8)


def test_it_is_the_measured_set(real_data: Path, tmp_path: Path) -> None:
    folder = measured_on(real_data, "surv_fight")
    (tmp_path / "surv_fight").symlink_to(folder)
    assert fetch(sources()["surv_fight"], tmp_path, NOWHERE) == tmp_path / "surv_fight"
    names = validation("surv_fight")
    assert (len(names["train"]), len(names["val"])) == (210, 30)
    assert len(VideoDataset(folder / "train")) == 210
