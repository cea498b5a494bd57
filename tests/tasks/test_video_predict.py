"""Predictions and explanations of videos: files, folders, long videos by windows, several clips, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.data.image.processor import ImageProcessor
from mmattn.data.video.reading import Clip, open_video, read_frames
from mmattn.tasks.common.checkpoint import save_directory
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.video.demo import make
from mmattn.tasks.video.model import VideoModel
from mmattn.tasks.video.predict import VideoPredictor, windows_of
from mmattn.tasks.video.processor import VideoProcessor
from tests.conftest import refused, slow_but_first
from tests.tasks.runs import ask, ask_folder, lines
from tests.video_files import ERRORS, film, write, write_bad, write_images

pytest.importorskip("av")
KEYWORDS: dict[str, Any] = {"num_classes": 3, "image_size": 16, "num_frames": 4, "channels": (8, 8), "embed_dim": 16}
KEYWORDS |= {"num_heads": 2, "temporal_layers": 1}


def predictor_of(resize: str = "squash", rate: float | None = None, **keywords: Any) -> VideoPredictor:
    torch.manual_seed(3)
    model = VideoModel(**{**KEYWORDS, **keywords})
    with torch.no_grad():
        model.head.out.weight.mul_(10)  # probabilities that differ
    return VideoPredictor(model, VideoProcessor(ImageProcessor(16, resize=resize), ["a", "b", "c"], 4, rate))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    predictor = predictor_of()
    folder = tmp_path_factory.mktemp("model") / "model"
    parts = {"task": "video", "model": predictor.model, "keywords": KEYWORDS, "processor": predictor.processor}
    return save_directory(folder, **parts)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_bad(tmp_path_factory.mktemp("videos"))
    write(folder / "good.mp4", film(30))
    write(folder / "deep.webm", film(12), "libvpx")
    write(folder / "one frame.mp4", film(1))
    write_images(folder / "images", film(9), missing=(2,))
    return folder


def test_every_kind_of_input_is_the_same_video(tmp_path: Path) -> None:
    frames, predictor = film(10), predictor_of()
    folder = write_images(tmp_path / "images", frames)
    wanted = predictor(frames)
    for item in (folder, {"video": frames, "id": "x"}, Clip.of(frames), {"video": str(folder), "fps": 50}):
        assert predictor(item).score == wanted.score
    segment = predictor({"video": frames, "start": 0.08, "end": 0.28})
    assert segment.score == predictor(frames[2:7]).score
    assert predictor(make("test", 1)[0]).label in "abc"
    refused(
        "start: a number that is not negative", predictor.predict, [{"video": frames, "start": "x"}], error=DataError
    )
    refused("an end after the start", predictor.predict, [{"video": frames, "start": 3, "end": 2}], error=DataError)
    refused(
        r"item x: video .*none\.mp4: .*no such file",
        predictor.predict,
        [{"video": "none.mp4", "id": "x"}],
        error=DataError,
    )


def test_folder_with_bad_videos(videos: Path, saved: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = ask_folder(videos, ERRORS, capsys, "--checkpoint", saved, task="video")
    assert sorted(rows) == ["deep.webm", "good.mp4", "images", "one frame.mp4"]
    assert all(set(row) == {"id", "label", "score", "alternatives"} for row in rows.values())
    ask("predict", videos / "images", "--checkpoint", saved, "--top_k", 2, "--output", tmp_path / "o", task="video")
    (row,) = lines(tmp_path / "o")
    assert (row["id"], len(row["alternatives"])) == ("images", 1)


def test_table_of_segments(videos: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"path,start,end\n{videos}/good.mp4,0,1\n{videos}/good.mp4,2,3\n")
    ask("predict", tmp_path / "a.csv", "--checkpoint", saved, "--output", tmp_path / "o", task="video")
    assert len(lines(tmp_path / "o")) == 2


def test_windows() -> None:
    assert windows_of(1.0, 7.0, 2.0, 2.0) == [(1.0, 3.0), (3.0, 5.0), (5.0, 7.0)]
    assert windows_of(0.0, 5.0, 2.0, 2.0) == [(0.0, 2.0), (2.0, 4.0), (3.0, 5.0)], "the last ends with the video"
    assert len(windows_of(0.0, 3600.0, 2.0, 1.0)) == 3599


@pytest.mark.parametrize("stride", [None, 0.3, 2.5])
def test_windows_equal_segments(stride: float | None, tmp_path: Path) -> None:
    """Each window of a video that is read once is predicted as the same segment alone; the whole is their mean."""
    path, predictor = write(tmp_path / "a.mp4", film(60)), predictor_of(rate=4.0)
    found = predictor(path, window=1.0, **({} if stride is None else {"stride": stride}))
    assert found.windows[-1]["end"] == pytest.approx(6.0, abs=0.01)
    total = torch.zeros(3)
    for row in found.windows:
        batch = predictor.processor.collate([predictor.to_sample({"video": path, **row}, 0)])
        total += predictor.model(batch.pixel_values).logits.softmax(-1)[0].detach()
        alone = predictor({"video": path, "start": row["start"], "end": row["end"]})
        assert (alone.label, alone.score) == (row["label"], pytest.approx(row["score"], abs=2e-3))
    assert found.score == pytest.approx(float(total.max() / len(found.windows)), abs=2e-3)
    assert found.label == "abc"[int(total.argmax())]


def test_windows_of_the_command_line(videos: Path, saved: Path, tmp_path: Path) -> None:
    given = (videos / "good.mp4", "--checkpoint", saved, "--output", tmp_path / "o")
    ask("predict", *given, "--window", 1, "--stride", 0.5, task="video")
    rows = lines(tmp_path / "o")
    assert [row.get("start") for row in rows] == [0.0, 0.5, 1.0, 1.5, 2.0, None]
    assert rows[-1]["windows"] == 5
    for words, message in (
        (("--stride", 1), "--stride: expected --window"),
        (("--window", 0), "--window: expected a positive number"),
        (("--window", 1, "--clips", 2), "--window: expected neither --clips nor --crops"),
        (("--crops", 3), "crops: expected 1 with data.resize 'squash'"),
        (("--top_k", 0), "--top_k: expected 1 or more"),
    ):
        refused(message, ask, "predict", *given, *words, task="video", error=ConfigError)


def test_clips_and_crops_are_averaged(tmp_path: Path) -> None:
    path, predictor = write(tmp_path / "a.mp4", film(40, 20, 60)), predictor_of("crop", rate=8.0)
    found = predictor(path, clips=3, crops=2)
    batch = predictor.processor.collate([predictor.to_sample(path, 0)], clips=3, crops=2)
    assert batch.pixel_values.shape == (6, 4, 3, 16, 16)
    left, right = batch.pixel_values[0::2], batch.pixel_values[1::2]
    assert not torch.equal(left, right)
    mean = predictor.model(batch.pixel_values).logits.softmax(-1).mean(0).detach()
    assert found.score == pytest.approx(float(mean.max()), abs=1e-3)
    middle = predictor(path)
    assert middle.score != found.score


def test_no_clip_is_read_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, path, opened = predictor_of(), write(tmp_path / "a.mp4", film(30)), list[Any]()

    def counting(video: Any, *given: Any) -> Any:
        opened.extend([] if isinstance(video, Clip) else [video])  # of memory
        return open_video(video, *given)

    for module in ("mmattn.tasks.video.predict", "mmattn.data.video.clips"):
        monkeypatch.setattr(f"{module}.open_video", counting)
    for options in ({}, {"window": 0.5}, {"clips": 2}, {"clips": 3}):
        predictor(path, **options)
        assert len(opened) == options.get("clips", 1), "once for each clip"
        opened.clear()


@pytest.mark.parametrize("keywords", slow_but_first([{"encoder": "tubelet", "pooling": "mean", "num_layers": 1}, {}]))
def test_explanations(keywords: dict[str, Any], tmp_path: Path) -> None:
    predictor, sample = predictor_of(**keywords), make("test", 1)[0]
    found = predictor.explain(sample)
    assert found.truth == sample.labels[0]
    assert len(found.frames) == len(found.times) == 4
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-5)
    assert [len(boxes) > 0 for boxes in found.regions] == [
        any(begin <= time < end for begin, end, _ in sample.regions) for time in found.times
    ]
    found.save(tmp_path / "a.png")
    found.save_gif(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 4
        assert image.info["duration"] == 250
    path = write(tmp_path / "long.mp4", film(30, 400, 700))
    large = predictor.explain({"video": path, "start": 1.0})
    assert large.frames[0].shape == (183, 320, 3), "frames of pictures are small"
    assert large.times[0] > 1.0
    cropped = predictor_of("crop").explain(path)
    assert cropped.window == pytest.approx((150 / 700, 0.0, 550 / 700, 1.0), abs=0.02)
    cropped.save(tmp_path / "b.png")


def test_explanations_of_the_command_line(saved: Path, tmp_path: Path) -> None:
    given = ("demo", "--limit", 2, "--checkpoint", saved, "--output", tmp_path / "png", "--gif", tmp_path / "gif")
    ask("explain", *given, task="video")
    assert len(list((tmp_path / "png").iterdir())) == 2
    assert sorted(path.name for path in (tmp_path / "gif").iterdir()) == ["test-0.gif", "test-1.gif"]


def test_long_video_by_windows_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of few windows are held at a time."""
    path, predictor = write(tmp_path / "a.mp4", film(400)), predictor_of()
    sizes: list[int] = []
    original = predictor._probabilities
    monkeypatch.setattr(predictor, "_probabilities", lambda clips: (sizes.append(len(clips)), original(clips))[1])
    found = predictor(path, window=1.0, stride=0.5)
    assert len(found.windows) == 79
    assert max(sizes) == 8
    assert sum(sizes) == 79
    assert json.dumps(found.windows[0])
    assert np.allclose(read_frames(path, [20.0])[0].mean(), film(400)[200].mean(), atol=5)
