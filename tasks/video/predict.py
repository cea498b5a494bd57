"""Predictions and explanations of video classification from files, folders and long videos by windows."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.files import is_listed
from mmattn.data.image.processor import Box
from mmattn.data.readers import TABLES
from mmattn.data.video.clips import segment_of
from mmattn.data.video.files import PICTURES, videos_below
from mmattn.data.video.reading import FPS, VIDEO_EXTENSIONS, open_video, where_of
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.labels.processor import LabelPrediction
from mmattn.tasks.common.outputs import Outputs
from mmattn.tasks.common.predictor import Predictor, mapping_of, name_of
from mmattn.tasks.common.progress import progress
from mmattn.tasks.video.data import VideoBatch, VideoDataset, VideoSample
from mmattn.tasks.video.model import classify

Item = Any  # a video, or a mapping with `video` and, optionally, id, start, end and fps; or a sample
MANY = 8  # windows that are predicted together


@dataclass
class VideoPrediction(LabelPrediction):
    """The prediction of a video: of the whole and, with `window`, of each of its windows."""

    windows: list[dict[str, Any]] = field(default_factory=list)  # start, end, label and score


@dataclass
class VideoExplanation:
    """In which frames of a clip, and where in them, the evidence for the predicted class lies."""

    prediction: VideoPrediction
    frames: list[np.ndarray]  # T frames (H, W, 3) uint8, of the model's size
    times: list[float]  # when each is shown, in seconds from the beginning of the video
    weights: Tensor  # (T,), shares of the frames that sum to one
    maps: Tensor  # (T, gh, gw), shares of the cells of each frame
    seconds: float  # length of the clip
    window: Box = (0.0, 0.0, 1.0, 1.0)  # the part of the frames that the maps cover, xyxy in 0..1
    regions: list[list[Box]] = field(default_factory=list)  # of each frame: where the event takes place, if annotated
    truth: str | None = None  # its class, if it is known

    def save(self, path: str | Path) -> None:
        """Write a PNG: the film, the weights of its frames, and the four heaviest frames with their cells."""
        from mmattn.plot import caption
        from mmattn.tasks.video.plot import draw_film

        title = caption(self.prediction.id, f"{self.prediction.label} ({self.prediction.score:.2f})", self.truth, 11.0)
        draw_film(self.frames, self.times, self.weights, self.maps, path, title, self.window, self.regions)

    def save_gif(self, path: str | Path) -> None:
        """Write a GIF of the film, in which the cells glow as much as their frames weigh."""
        from mmattn.tasks.video.plot import draw_gif

        draw_gif(self.frames, self.weights, self.maps, path, self.window, self.seconds)


class VideoPredictor(Predictor[Item, VideoPrediction]):
    """Predictor of video classification.

    Items are videos (a path of a file or of a folder of numbered images, a file's bytes, a uint8 array (T, H, W, 3) or
    a `Clip`), or mappings with `video` and, optionally, `id`, `start`, `end` (seconds) and `fps`.
    """

    task = "video"
    batch_size = 8

    def to_sample(self, item: Item, number: int) -> VideoSample:
        if isinstance(item, VideoSample):
            return dataclasses.replace(item, labels=[])  # they may be unknown classes
        given = mapping_of(item, "video")
        sample = VideoSample(name_of(given, number, ("video",)), given["video"])
        for key in ("start", "end", "fps"):
            value = given.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
                raise DataError(f"item {sample.id}", f"{key}: a number that is not negative", repr(value))
            setattr(sample, key, value)
        return VideoDataset([sample], require_labels=False)[0]  # checked

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """See `Predictor.check_options`."""
        window, stride = options.get("window"), options.get("stride")
        for name, value in (("window", window), ("stride", stride)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"--{name}: expected a positive number of seconds, found {value}.")
        if stride is not None and window is None:
            raise ConfigError("--stride: expected --window, whose distance it is; found none.")
        if window is not None and (options.get("clips") or options.get("crops")):
            raise ConfigError("--window: expected neither --clips nor --crops, found both kinds.")
        if options.get("top_k") is not None and options["top_k"] < 1:
            raise ConfigError(f"--top_k: expected 1 or more, found {options['top_k']}.")
        self.processor.check_views(*(1 if options.get(key) is None else options[key] for key in ("clips", "crops")))
        return dict(options)

    def collate(self, samples: Sequence[VideoSample], options: Mapping[str, Any]) -> VideoBatch | None:
        """See `Predictor.collate`; with a window there is no clip of the whole video."""
        if options.get("window") is not None:
            return None
        clips, crops = options.get("clips", 1), options.get("crops", 1)
        return self.processor.collate(samples, clips=clips, crops=crops).to(self.device)

    def predict_batch(
        self,
        samples: Sequence[VideoSample],
        batch: VideoBatch | None,
        *,
        top_k: int = 1,
        clips: int = 1,
        crops: int = 1,
        window: float | None = None,
        stride: float | None = None,
    ) -> list[VideoPrediction]:
        """Predict the class of each video.

        Args:
            samples: The samples.
            batch: The clips of each, of `collate`; None with a window.
            top_k: Number of classes, most probable first.
            clips: Number of clips of each video, whose probabilities are averaged.
            crops: Number of crops of each of these, along the longer side.
            window: Length in seconds of the windows that are predicted one by one; None: the whole video alone.
            stride: Distance in seconds of their beginnings; None: the window's length.
        """
        if window is not None:
            return [self._by_windows(sample, top_k, window, stride or window) for sample in samples]
        assert batch is not None
        return self._named(samples, classify(self.model, batch.pixel_values, batch.views), top_k)

    def _named(self, samples: Sequence[VideoSample], logits: Tensor, top_k: int) -> list[VideoPrediction]:
        named = self.processor.named(samples, logits, top_k)
        return [VideoPrediction(one.id, one.label, one.score, one.alternatives) for one in named]

    def _by_windows(self, sample: VideoSample, top_k: int, window: float, stride: float) -> VideoPrediction:
        """The predictions of a video's windows, which is read once, and of the whole: the mean of their probabilities.

        At most as many frames are in memory as `MANY` windows have.
        """
        spans: list[tuple[float, float]] = []
        rows: list[Tensor] = []
        waiting: list[tuple[tuple[float, float], np.ndarray]] = []
        name = f"item {sample.id}"
        with open_video(sample.video, name, sample.fps or FPS) as video:
            begin, end = segment_of(video.seconds, sample.start, sample.end, where_of(sample.video, name))
            spans = windows_of(begin, end, window, stride)
            clips = self._window_clips(video, spans)
            for span, clip in zip(spans, progress(clips, len(spans), "windows", len(spans) > MANY), strict=True):
                waiting.append((span, clip))
                if len(waiting) == MANY:
                    rows.append(self._probabilities([clip for _, clip in waiting]))
                    waiting.clear()
        if waiting:
            rows.append(self._probabilities([clip for _, clip in waiting]))
        probabilities = torch.cat(rows)  # (number of windows, K)
        (whole,) = self._named([sample], probabilities.mean(0, keepdim=True).clamp_min(1e-12).log(), top_k)
        scores, best = probabilities.max(1)
        for (first, last), score, number in zip(spans, scores.tolist(), best.tolist(), strict=True):
            label = self.processor.labels[number]
            row = {"start": round(first, 3), "end": round(last, 3), "label": label, "score": round(score, 4)}
            whole.windows.append(row)
        return whole

    def _window_clips(self, video: Any, spans: Sequence[tuple[float, float]]) -> Iterator[np.ndarray]:
        """The frames (T, H, W, 3) of each window, of a video that is read once; windows may overlap."""
        sampling, resizer = self.processor.sampling, self.processor.resizer
        wanted = [(time, n, k) for n, span in enumerate(spans) for k, time in enumerate(sampling.times(*span))]
        wanted.sort()
        open_rows: dict[int, dict[int, np.ndarray]] = {}
        following = 0
        last: tuple[float, np.ndarray] | None = None
        for (_, n, k), frame in zip(wanted, video.frames_at(time for time, *_ in wanted), strict=True):
            if last is None or last[0] != frame.time:
                last = frame.time, resizer(frame.pixels)
            open_rows.setdefault(n, {})[k] = last[1]
            while len(open_rows.get(following, ())) == sampling.num_frames:
                row = open_rows.pop(following)
                (clip,) = resizer.crops(np.stack([row[k] for k in range(sampling.num_frames)]))
                yield clip
                following += 1

    def _probabilities(self, clips: Sequence[np.ndarray]) -> Tensor:
        pixels = self.processor.normalized(np.stack(clips)).to(self.device)
        return classify(self.model, pixels).softmax(-1).cpu()

    def lines(self, records: Iterable[Mapping[str, Any]], options: Mapping[str, Any]) -> Iterator[str]:
        """A line for each window, and one for the whole video."""
        for record in records:
            windows = record.get("windows", [])
            for row in windows:
                yield json.dumps({"id": record["id"], **row}, ensure_ascii=False) + "\n"
            whole = {key: value for key, value in record.items() if key not in ("windows", "labels")}
            if windows:
                whole |= {"windows": len(windows)}
            yield json.dumps(whole, ensure_ascii=False) + "\n"

    def explain_batch(
        self, samples: Sequence[VideoSample], batch: VideoBatch, *, gif: str | None = None
    ) -> list[VideoExplanation]:
        """Compute when and where the evidence for the predicted class of each video lies.

        Args:
            samples: The samples.
            batch: A clip of each.
            gif: Folder into which a GIF of each is written, besides.
        """
        with torch.no_grad():
            logits = self.model(batch.pixel_values).logits
        evidence = self.model.evidence(batch.pixel_values, logits.argmax(-1))
        T = batch.pixel_values.shape[1]
        group = self.model.group
        explanations = []
        for n, answer in enumerate(self._named(samples, logits, 1)):
            weights = evidence.frames[n].detach().cpu().repeat_interleave(group)[:T]
            maps = evidence.cells[n].detach().cpu().repeat_interleave(group, 0)[:T]
            if len(weights) < T:  # frames that fill no tubelet
                weights = torch.nn.functional.pad(weights, (0, T - len(weights)))
                maps = torch.nn.functional.pad(maps, (0, 0, 0, 0, 0, T - len(maps)))
            explanations.append(self._explanation(samples[n], answer, weights / weights.sum(), maps))
        if gif is not None:
            outputs = Outputs(samples)
            for sample, found in zip(samples, explanations, strict=True):
                path = outputs.place(gif, sample.id, VIDEO_EXTENSIONS).with_suffix(".gif")
                found.save_gif(outputs.claim(path, replace=True))
        return explanations

    def _explanation(
        self, sample: VideoSample, answer: VideoPrediction, weights: Tensor, maps: Tensor
    ) -> VideoExplanation:
        """The explanation with the frames of the clip, whole as far as the model does not see their edges."""
        name = f"item {sample.id}"
        with open_video(sample.video, name, sample.fps or FPS) as video:
            begin, end = segment_of(video.seconds, sample.start, sample.end, where_of(sample.video, name))
            times = self.processor.sampling.times(begin, end)
            frames = [small(frame.pixels) for frame in video.frames_at(times)]
            window = self.processor.resizer.window(video.size)
        regions = [[box for first, last, box in sample.regions if first <= time < last] for time in times]
        return VideoExplanation(
            answer, frames, times, weights, maps, end - begin, window, regions if sample.regions else []
        )

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> list[VideoSample]:
        """Read a video, a folder of numbered images, a folder's videos at any depth, or a table as for training."""
        place = Path(path)
        if place.is_dir():
            found = videos_below(place)
            loose = any(is_listed(entry.name, PICTURES) for entry in place.iterdir() if entry.is_file())
            if loose and not found:  # the folder is itself a video
                return [VideoSample(place.name, place)]
            if not found:
                raise DataError(path, "a folder with videos, or of numbered images", "none in it")
            return [VideoSample(name, video) for name, video in found]
        if place.suffix.lower() in TABLES:
            return VideoDataset(path, on_error=on_error, require_labels=False).samples
        return [VideoSample(place.name, place)]

    def demo_samples(self) -> list[VideoSample]:
        """A clip of each class of the built-in test split."""
        from mmattn.tasks.video.demo import CLASSES, make

        return make("test", len(CLASSES))

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export torch.export and ONNX programs with dynamic batch size, compared with the model."""
        from torch.export import Dim

        from mmattn.tasks.common.export import export_model

        dynamic = {"pixel_values": {0: Dim("batch", max=1024)}}
        examples = [self._example(batch) for batch in (2, 1, 3)]
        return export_model(self.model, examples, dynamic, folder, "video", formats)

    def _example(self, batch: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        size = (self.processor.sampling.num_frames, 3, *self.processor.image.size)
        return {"pixel_values": torch.randn(batch, *size, generator=generator)}

    def remark(self) -> str:
        """The library that read the videos, if one did."""
        if not any(name in sys.modules for name in ("av", "torchcodec")):
            return ""
        from mmattn.data.video.reading import backend

        return f"videos were read by {backend()}."


def windows_of(begin: float, end: float, window: float, stride: float) -> list[tuple[float, float]]:
    """The windows of a video in seconds; the last one ends with the video.

    >>> windows_of(0.0, 10.0, 4.0, 3.0)
    [(0.0, 4.0), (3.0, 7.0), (6.0, 10.0)]
    >>> windows_of(0.0, 3.0, 4.0, 4.0)
    [(0.0, 3.0)]
    """
    if end - begin <= window:
        return [(begin, end)]
    count = math.ceil((end - begin - window) / stride - 1e-9) + 1
    return [(first, first + window) for first in (min(begin + n * stride, end - window) for n in range(count))]


def small(pixels: np.ndarray, most: int = 320) -> np.ndarray:
    """A frame for a picture, at most so many pixels wide and high."""
    from PIL import Image

    side = max(pixels.shape[:2])
    if side <= most:
        return pixels
    size = (max(1, round(pixels.shape[1] * most / side)), max(1, round(pixels.shape[0] * most / side)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


load = VideoPredictor.load
