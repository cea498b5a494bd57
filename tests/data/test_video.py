"""Reading of videos by time: every container, variable rates, missing frames, rotation, and what is damaged."""

from __future__ import annotations

import importlib.util
import os
import pickle
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.data.errors import DataError, Problems
from mmattn.data.image.processor import ImageProcessor
from mmattn.data.video import reading
from mmattn.data.video.augment import ClipAugment
from mmattn.data.video.clips import ClipSampling, FrameFile, FrameResizer, read_clip
from mmattn.data.video.files import read_videos
from mmattn.data.video.reading import Clip, backend, open_video, read_frames
from tests.conftest import refused
from tests.video_files import ERRORS, film, reds, write, write_bad, write_images

av = pytest.importorskip("av")
KINDS = {"mp4": ("libx264", "yuv420p"), "avi": ("mpeg4", "yuv420p"), "webm": ("libvpx", "yuv420p")}
KINDS |= {"gif": ("gif", "rgb8"), "mkv": ("libx264", "yuv420p")}
MIDDLES = [(n + 0.5) / 10 for n in range(20)]  # seconds, of the frames of `film`
CLOSE = 12  # values of red: codecs are lossy


@pytest.mark.parametrize("kind", KINDS)
def test_every_container(kind: str, tmp_path: Path) -> None:
    frames = film()
    path = write(tmp_path / f"a.{kind}", frames, KINDS[kind][0], pixels=KINDS[kind][1])
    with open_video(path) as video:
        assert video.seconds == pytest.approx(2.0, abs=0.02)
        assert video.size == (32, 24)
        found = list(video.frames_at(MIDDLES))
    assert np.allclose(reds([frame.pixels for frame in found]), reds(frames), atol=20 if kind == "gif" else CLOSE)
    assert [frame.time for frame in found] == pytest.approx([n / 10 for n in range(20)], abs=0.005)
    assert found[0].pixels.shape == (24, 32, 3)
    from_bytes = read_frames(path.read_bytes(), MIDDLES)
    assert all(np.array_equal(a, b.pixels) for a, b in zip(from_bytes, found, strict=True))
    some = read_frames(path, [0.05, 0.07, 1.35, 5.0, 9.0])  # the last frame stays
    assert [
        np.abs(frame - found[n].pixels.astype(int)).max() for frame, n in zip(some, (0, 0, 13, 19, 19), strict=True)
    ] == [0] * 5


def test_frames_are_chosen_by_time(tmp_path: Path) -> None:
    """The first frame is shown for a second, the others for 40 milliseconds each."""
    times = [0, *range(1000, 1000 + 19 * 40, 40)]
    for name in ("a.mkv", "a.mp4"):
        path = write(tmp_path / name, film(), milliseconds=times)
        found = reds(read_frames(path, [0.1, 0.5, 0.99, 1.01, 1.05, 1.7]))
        wanted = [film()[n, 0, 0, 0] for n in (0, 0, 0, 1, 2, 18)]
        assert np.allclose(found, wanted, atol=CLOSE)


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.mp4"):
        path = write(tmp_path / name, film(), milliseconds=range(5000, 7000, 100))
        with open_video(path) as video:
            assert video.seconds == pytest.approx(2.0, abs=0.02)
            found = reds([frame.pixels for frame in video.frames_at([0.05, 0.55, 1.95])])
        assert np.allclose(found, [film()[n, 0, 0, 0] for n in (0, 5, 19)], atol=CLOSE)


def test_missing_numbers_are_dropped_frames(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", film(), missing=(3, 4, 19))
    with open_video(folder, fps=10) as video:
        assert (video.seconds, video.size) == (pytest.approx(1.9), (32, 24))
        found = [frame.pixels for frame in video.frames_at(MIDDLES[:19])]
    wanted = [n if n not in (3, 4) else 2 for n in range(19)]
    assert reds(found) == [float(film()[n, 0, 0, 0]) for n in wanted]


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation(turn: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", film(), rotation=turn)
    with open_video(path) as video:
        assert video.size == ((24, 32) if turn != 180 else (32, 24))
        frame = next(video.frames_at([0.0])).pixels
    upright = np.rot90(film()[0], turn // 90)
    assert frame.shape == upright.shape
    assert np.abs(frame[..., 1].astype(int) - upright[..., 1])[2:-2, 2:-2].mean() < 25


def test_odd_sizes_and_a_single_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", film(5, 23, 31), pixels="yuv444p")
    assert [frame.shape for frame in read_frames(path, [0.0, 0.4])] == [(23, 31, 3)] * 2
    one = write(tmp_path / "one.mp4", film(1))
    assert len(read_frames(one, [0.0, 0.01, 0.05])) == 3


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_damaged_files(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "bad videos"
    if not folder.exists():
        write_bad(folder)
    message = refused(re.escape(ERRORS[name]), read_frames, folder / name, [0.2, 1.5, 2.9], "row 7", error=DataError)
    assert str(folder / name) in message
    assert message.startswith("row 7: ")
    assert "\n" not in message


def test_other_mistakes(tmp_path: Path) -> None:
    refused("found no such file", read_frames, tmp_path / "none.mp4", [0.0], error=DataError)
    refused("a folder of numbered images, found none in it", read_frames, tmp_path, [0.0], error=DataError)
    folder = write_images(tmp_path / "images", film(3))
    (folder / "cover.png").write_bytes((folder / "frame_0001.png").read_bytes())
    refused("whose names end in their numbers, found cover.png", read_frames, folder, [0.0], error=DataError)
    (folder / "cover.png").rename(folder / "1.png")
    refused("one image of each number", read_frames, folder, [0.0], error=DataError)
    refused(r"a uint8 array \(T, H, W, 3\)", read_frames, np.zeros((3, 4, 4)), [0.0], error=DataError)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1/a.ts\n")
    refused("found a playlist, whose", read_frames, playlist, [0.0], error=DataError)


def test_picture_of_a_song_is_no_video(tmp_path: Path) -> None:
    """Frames that are too large, by the header."""
    path = write(tmp_path / "a.mp4", film(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMATTN_MAX_PIXELS", "500")
        refused("frames of at most 500 pixels, found 32 x 24", read_frames, path, [0.0], error=DataError)


def test_long_video_in_bounded_memory(tmp_path: Path) -> None:
    """Ten thousand frames, of which few are decoded and fewer converted."""
    count = 10_000
    frames = np.broadcast_to(np.zeros((1, 16, 16, 3), np.uint8), (count, 16, 16, 3)).copy()
    frames[..., 0] = (np.arange(count) * 255 // count)[:, None, None]
    path = write(tmp_path / "long.mp4", frames, options={}, keys=250)
    del frames
    decoded = 0
    with open_video(path) as video:
        inner: Any = video
        original = inner._decoded

        def counted() -> Any:
            nonlocal decoded
            for frame in original():
                decoded += 1
                yield frame

        inner._decoded = counted
        tracemalloc.start()
        times = [(n + 0.5) * 1000 / 16 for n in range(16)]
        found = [float(frame.pixels[..., 0].mean()) for frame in video.frames_at(times)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert np.allclose(found, [time * 10 * 255 / count for time in times], atol=CLOSE)
    assert decoded < 5000, "key frames are sought"
    assert peak < 2e6


def test_index_without_key_frames_is_decoded_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", film(60), "mpeg4", keys=600)
    found = reds(read_frames(path, [0.05, 3.05, 5.55]))
    assert np.allclose(found, [film(60)[n, 0, 0, 0] for n in (0, 30, 55)], atol=CLOSE)


def test_backend_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert backend() == f"PyAV {av.__version__}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        read_frames(write(tmp_path / "a.mp4", film(3)), [0.0])
    assert caught.value.name == "av"


def test_torchcodec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyAV is not installed; skipped without torchcodec or its FFmpeg."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec: {str(error).splitlines()[0]}")
    path, times = write(tmp_path / "a.mp4", film()), [0.0, 0.05, 0.95, 1.95]
    by_av = read_frames(path, times)
    monkeypatch.setattr(reading, "BACKENDS", {"torchcodec": "torchcodec"})
    assert backend().startswith("torchcodec ")
    found = read_frames(path, times)
    assert all(np.abs(a.astype(int) - b).max() < 8 for a, b in zip(by_av, found, strict=True))
    folder = write_bad(tmp_path / "bad")
    for name in ERRORS.keys() - {"cut.webm"}:  # whose header states no length
        message = str(refused("whole GIF|video", read_frames, folder / name, [0.2, 2.9], error=DataError))
        assert str(folder / name) in message


# Clips ----------------------------------------------------------------------------------------------------------------


def test_times_of_clips() -> None:
    whole, part = ClipSampling(4), ClipSampling(4, rate=2.0)
    assert whole.times(2.0, 6.0) == [2.5, 3.5, 4.5, 5.5]
    assert part.times(0.0, 1.0) == [0.25, 0.75, 0.999, 0.999], "a video that is too short ends in its last frame"
    assert [part.times(0.0, 8.0, place)[0] for place in part.places(3)] == [0.25, 3.25, 6.25]
    assert [whole.times(0.0, 4.0, place)[0] for place in whole.places(2)] == [0.25, 0.75]
    for sampling in (whole, part):
        draws = [sampling.times(0.0, 8.0, draw=random.Random(seed)) for seed in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]
        assert all(sorted(times) == times for times in draws)
        assert all(0 <= times[0] <= times[-1] < 8 for times in draws)
    refused("num_frames: expected at least 1", ClipSampling, 0)
    refused("rate: expected a positive number", ClipSampling, 4, rate=0.0)


def test_resized_frames_and_crops() -> None:
    frame = film(1, 30, 60)[0]
    for mode in ("squash", "pad"):
        image = ImageProcessor(16, resize=mode)
        assert np.array_equal(FrameResizer(image)(frame), image.pixels(frame)[0])
    resizer = FrameResizer(ImageProcessor(16, resize="crop"))
    resized = resizer(frame)
    assert resized.shape == (16, 32, 3)
    left, middle, right = resizer.crops(np.stack([resized] * 2), 3)
    assert np.array_equal(left[0], resized[:, :16])
    assert np.array_equal(middle[0], resized[:, 8:24])
    assert np.array_equal(right[0], resized[:, 16:])
    assert resizer.window((60, 30)) == (0.25, 0.0, 0.75, 1.0)


def test_segments_and_frames_that_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", film(20))
    resizer = FrameResizer(ImageProcessor(16))
    sampling = ClipSampling(4)
    clip = read_clip(path, sampling.kept, resizer, start=0.5, end=1.5)
    assert clip.seconds == 1.0
    assert len(clip.times) == 10, "each frame of the segment once"
    direct = read_frames(path, sampling.times(0.5, 1.5))
    found = read_frames(clip, sampling.times(0.0, 1.0))
    assert np.allclose(reds(found), reds(direct), atol=2)
    refused(
        r"a start before the end of the video, 2.00 s, found 3 s", read_clip, path, sampling.kept, resizer, start=3.0
    )
    file = FrameFile(tmp_path)
    kept = [file.add(clip) for _ in range(2)]
    assert all(np.array_equal(one.frames, clip.frames) for one in kept)
    assert kept[0].fingerprint() == clip.fingerprint()
    assert np.array_equal(pickle.loads(pickle.dumps((file, kept[1])))[1].frames, clip.frames), "in workers"


def test_kept_clips_hold_no_files_open(tmp_path: Path) -> None:
    def free() -> int:
        with open(os.devnull) as probe:
            return probe.fileno()  # the smallest number that is free

    file, before = FrameFile(tmp_path), free()
    kept = [file.add(Clip.of(np.full((2, 4, 4, 3), n, np.uint8))) for n in range(20)]
    assert [int(read_frames(clip, [0.05])[0].max()) for clip in kept] == list(range(20))
    assert free() == before


def test_augmentation_is_the_same_for_all_frames() -> None:
    image = torch.randint(0, 256, (5, 1, 3, 24, 24), dtype=torch.uint8)
    clips, targets = image.expand(-1, 6, -1, -1, -1), torch.eye(5)
    every = {"pad": 3, "flip": True, "rand_augment": 2, "zoom": 0.3, "erase": 1.0}
    found, mixed = ClipAugment(**every, mixup=0.5)(clips, targets, range(5))  # type: ignore[arg-type]
    assert found.shape == clips.shape
    assert torch.equal(found, found[:, :1].expand_as(found)), "frames that were equal stay equal"
    assert not torch.equal(found[0, 0], found[1, 0])
    assert (mixed.sum(1) - 1).abs().max() < 1e-6
    moving = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
    turned, _ = ClipAugment(flip=True)(moving, torch.eye(2), [3, 4])
    for clip, given in zip(turned, moving, strict=True):
        assert torch.equal(clip, given) or torch.equal(clip, given.flip(-1)), "the whole clip is mirrored, or none"


# Sources --------------------------------------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    (tmp_path / "walk").mkdir()
    write(tmp_path / "walk" / "a.mp4", film(3))
    write_images(tmp_path / "run" / "deep" / "one", film(3))
    (tmp_path / "run" / "b.GIF").write_bytes(b"GIF")
    (tmp_path / "run" / "notes.txt").write_text("passed over")
    rows = list(read_videos(tmp_path, None, Problems(), True))
    assert [(row.id, row.label) for row in rows] == [
        ("run/b.GIF", "run"), ("run/deep/one", "run"), ("walk/a.mp4", "walk")
    ]  # fmt: skip
    write(tmp_path / "loose.mp4", film(3))
    refused("one sub-folder a class with its videos, found loose.mp4 in no class folder", list,
            read_videos(tmp_path, None, Problems(), True), error=DataError)  # fmt: skip
    assert {row.label for row in read_videos(tmp_path, None, Problems(), False)} == {None}, "unlabeled"


def test_tables(tmp_path: Path) -> None:
    text = "path,label,start,end,fps\na.mp4,walk,0.5,2,\nb,run,,,10\nc.mp4,run,3,1,\nd.mp4,run,x,,\n,run,,,\n"
    (tmp_path / "a.csv").write_text(text)
    problems = Problems("skip")
    rows = list(read_videos(tmp_path / "a.csv", None, problems, True))
    assert [(row.video, row.label, row.start, row.end, row.fps) for row in rows] == [
        (tmp_path / "a.mp4", "walk", 0.5, 2.0, None), (tmp_path / "b", "run", None, None, 10.0)
    ]  # fmt: skip
    assert [reason for _, reason in problems.items] == [
        "expected an end after the start, found start 3 s and end 1 s",
        "expected start: a number that is not negative, found 'x'",
        "expected the path of a video, found ''",
    ]
    (tmp_path / "b.csv").write_text("path,lable\na.mp4,walk\n")
    refused(r"b\.csv, header: expected the column label, found path, lable", list,
            read_videos(tmp_path / "b.csv", None, Problems(), True), error=DataError)  # fmt: skip
    refused("a folder of class folders, or a table", list, read_videos("nowhere", None, Problems()), error=DataError)


def test_clips_in_memory() -> None:
    clip = Clip.of(film(4), fps=4)
    assert reds(read_frames(clip, [0.0, 0.3, 0.9])) == reds(film(4)[[0, 1, 3]])
