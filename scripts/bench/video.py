"""Compare a TimeSformer's forward pass and training step with transformers', and the loader with the plain decoder.

python scripts/bench/video.py [--threads N] [--rounds N] [--batch N] [--clock wall|cpu] [--part all|model|loader]
    [--videos DIR] [--json FILE]

The model has the shape of TimeSformer-base with fewer layers (8 frames of 224 x 224 pixels, 768 channels, float32,
random weights), and is converted from transformers'; outputs and gradients must agree before timing. A training step is
forward, cross-entropy, backward and AdamW; the forward pass alone runs in evaluation without gradients. The peak memory
of each is beside it.

The loader reads clips as `fit` does without preloading (`--data.preload false`); the plain decoder is PyAV's loop over
the same frames of the same files with the same conversion to RGB and the same resizing. Last, the share of a training
step that waits for the loader: with frames decoded once, as `fit` has them, and decoded in each step.

Required: forward and training step at most 0.90 of transformers' time, the loader at most 1.10 of the plain decoder's,
less than 0.10 of a step spent waiting, medians of same-round ratios. Exit 1 if not.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from common import (
    CLOCKS,
    Ratio,
    Run,
    arguments,
    interleave,
    machine,
    make_forward,
    make_step,
    peak_memory,
    ratio,
    write_rows,
)
from torch import Tensor, nn

from mmattn.backbones.timesformer import TimeSformer
from mmattn.data.image.processor import ImageProcessor
from mmattn.onednn import use_onednn
from mmattn.pretrained.keymap import load_into
from mmattn.pretrained.timesformer import convert_timesformer
from mmattn.tasks.common.labels.processor import labels_in
from mmattn.tasks.video.data import VideoDataset
from mmattn.tasks.video.model import VideoModel
from mmattn.tasks.video.processor import VideoProcessor

CLASSES, LAYERS, FRAMES = 400, 2, 8
MODEL_BAR, LOADER_BAR, WAIT_BAR = 0.90, 1.10, 0.10
THEIRS, OURS, AGAIN = "transformers", "mmattn", "transformers again"  # the last is the A/A row
PLAIN, LOADER = "plain decoder", "loader"
CLOSE = 1e-3  # in float32


class Classifier(nn.Module):
    """TimeSformer and a linear head."""

    def __init__(self, encoder: TimeSformer, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, T, 3, 224, 224) to (B, CLASSES)."""
        return self.head(self.encoder(pixel_values).pooled)


class Logits(nn.Module):
    """transformers' classifier, which returns logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, T, 3, 224, 224) to (B, CLASSES)."""
        return self.model(pixel_values).logits


def make_models() -> tuple[nn.Module, nn.Module]:
    """transformers' model and the one converted from it."""
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    torch.manual_seed(0)
    config = TimesformerConfig(num_frames=FRAMES, num_hidden_layers=LAYERS, num_labels=CLASSES)
    theirs = TimesformerForVideoClassification(config)
    converted = convert_timesformer(config.to_dict(), theirs.state_dict())
    encoder = TimeSformer(**converted.keywords)
    load_into(encoder, converted)
    head = nn.Linear(config.hidden_size, CLASSES)
    head.load_state_dict(theirs.classifier.state_dict())
    return Logits(theirs), use_onednn(Classifier(encoder, head))  # as `fit` and `load` do


def measure_model(mode: str, options: Any) -> tuple[Ratio, list[dict[str, Any]]]:
    """Print the rows of one mode; returns the ratio to transformers' time, and the rows."""
    theirs, ours = make_models()
    pixels = torch.randn(options.batch, FRAMES, 3, 224, 224)
    labels = torch.randint(CLASSES, (options.batch,))
    if mode == "forward":
        runs = {THEIRS: make_forward(theirs, pixels), OURS: make_forward(ours, pixels)}
    else:
        runs = {THEIRS: make_step(theirs, pixels, labels), OURS: make_step(ours, pixels, labels)}
    gap = float((runs[OURS]() - runs[THEIRS]()).abs().max())
    if mode != "forward":  # AdamW amplifies rounding errors to whole steps, so only the first loss is compared
        patches: Any = theirs.model.timesformer.embeddings.patch_embeddings  # type: ignore[union-attr]
        first = [ours.encoder.patches.proj.weight.grad, patches.projection.weight.grad]  # type: ignore[union-attr]
        gap = max(gap, float((first[0] - first[1]).abs().max() / first[1].abs().max()))
    if not gap <= CLOSE:
        raise SystemExit(f"{mode}: the outputs differ by {gap:.1e}: these are not the same models")
    memory = {name: peak_memory(run) for name, run in runs.items()}
    runs[AGAIN] = runs[THEIRS]
    seconds = interleave(runs, options.rounds, warmup=1, clock=CLOCKS[options.clock])
    rows = []
    print(f"\n{mode:<22}{'milliseconds':>14}{'peak MB':>10}  over transformers', median of same rounds [quartiles]")
    for name, times in seconds.items():
        found = ratio(seconds, name, THEIRS)
        rows.append({"mode": mode, "name": name, "seconds": times, "ratio": found, "bytes": memory.get(name)})
        shown = f"{memory[name] / 1e6:>10.0f}" if name in memory else " " * 10
        print(f"{name:<22}{1e3 * statistics.median(times):>14.1f}{shown}  {found if name != THEIRS else ''}")
    return ratio(seconds, OURS, THEIRS), rows


def some_videos(folder: Path | None, scratch: Path) -> Path:
    """A folder of class folders: the given one, or forty written videos of 320 x 240 pixels and four seconds."""
    if folder is not None:
        return folder
    draw = np.random.default_rng(0)
    for number in range(40):
        path = scratch / "ab"[number % 2] / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        coarse = draw.integers(0, 256, (60, 15, 20, 3), dtype=np.uint8)
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=15)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for pixels in coarse:
                frame = av.VideoFrame.from_ndarray(pixels.repeat(16, 0).repeat(16, 1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return scratch


def measure_loader(folder: Path, options: Any) -> tuple[Ratio, list[dict[str, Any]]]:
    """Print the rows of loader and plain decoder; returns the ratio of their times, and the rows."""
    dataset = VideoDataset(folder)
    processor = VideoProcessor(ImageProcessor(112), labels_in(dataset), num_frames=16)
    samples = dataset.samples[:: max(1, len(dataset) // 20)][:20]
    frames = 16 * len(samples)
    image = ImageProcessor(112)

    def plain() -> int:
        count = 0
        for sample in samples:
            with av.open(str(sample.video)) as container:
                stream = container.streams.video[0]
                seconds = float(stream.duration * stream.time_base)
                times = [(n + 0.5) * seconds / 16 for n in range(16)]
                shown: list[np.ndarray] = []
                last = None
                for frame in container.decode(stream):
                    while len(shown) < 16 and last is not None and frame.time > times[len(shown)]:
                        shown.append(image.pixels(last.to_ndarray(format="rgb24"))[0])
                    last = frame
                while len(shown) < 16:
                    shown.append(image.pixels(last.to_ndarray(format="rgb24"))[0])
            count += len(processor.normalized(np.stack(shown)[None])[0])
        return count

    def loader() -> int:
        return sum(len(processor.collate([sample]).pixel_values[0]) for sample in samples)

    if plain() != loader():
        raise SystemExit("loader: not the same number of frames")
    runs: dict[str, Run] = {PLAIN: plain, LOADER: loader, "plain again": plain}
    seconds = interleave(runs, options.rounds, clock=CLOCKS[options.clock])
    rows = []
    print(f"\n{'decoding':<22}{'frames a second':>16}  over the plain decoder's time [quartiles]")
    for name, times in seconds.items():
        found = ratio(seconds, name, PLAIN)
        rows.append({"mode": "decoding", "name": name, "seconds": times, "ratio": found})
        print(f"{name:<22}{frames / statistics.median(times):>16.0f}  {found if name != PLAIN else ''}")
    return ratio(seconds, LOADER, PLAIN), rows


def measure_waiting(folder: Path, preload: bool) -> float:
    """The share of training steps that waits for the loader, of the default model at 112 pixels."""
    dataset = VideoDataset(folder)
    processor = VideoProcessor(ImageProcessor(112), labels_in(dataset), num_frames=8)
    dataset = dataset.take(range(min(16, len(dataset))))
    if preload:
        dataset.preload(processor.resizer, processor.sampling)
    model = VideoModel(2, image_size=112, num_frames=8)
    step = None
    waited = total = 0.0
    for turn in range(8):
        start = time.perf_counter()
        some = [dataset[n % len(dataset)] for n in range(4 * turn, 4 * turn + 4)]
        batch = processor.collate(some, seeds=range(4), jitter=True)
        loaded = time.perf_counter()
        step = step or make_step(_First(model), batch.pixel_values, torch.tensor([0, 1, 0, 1]))
        step()
        if turn:  # the first is a warm-up
            waited += loaded - start
            total += time.perf_counter() - start
    print(f"waiting, {'decoded once' if preload else 'decoded in each step'}: {waited / total:.3f} of a step")
    return waited / total


class _First(nn.Module):
    """The logits of a model's output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


def main() -> int:
    options = arguments(__doc__, batch=1, clock="wall", part="all", videos="")
    if options.clock not in CLOCKS or options.part not in ("all", "model", "loader"):
        print(f"expected --clock of {', '.join(CLOCKS)}, --part of all, model, loader", file=sys.stderr)
        return 2
    print(f"{machine()}; batch {options.batch}, {options.rounds} rounds, {options.clock} clock, {LAYERS} layers")
    broken, rows = [], []
    if options.part != "loader":
        for mode in ("forward", "training step"):
            found, more = measure_model(mode, options)
            rows += more
            if not found.median <= MODEL_BAR:
                broken.append(f"{mode}: {found.median:.3f}, more than {MODEL_BAR}")
    if options.part != "model":
        with tempfile.TemporaryDirectory() as scratch:
            folder = some_videos(Path(options.videos) if options.videos else None, Path(scratch))
            found, more = measure_loader(folder, options)
            rows += more
            if not found.median <= LOADER_BAR:
                broken.append(f"loader: {found.median:.3f}, more than {LOADER_BAR}")
            shares = {preload: measure_waiting(folder, preload) for preload in (True, False)}
            rows.append({"mode": "waiting", "decoded once": shares[True], "decoded in each step": shares[False]})
            if not shares[True] < WAIT_BAR:
                broken.append(f"waiting: {shares[True]:.3f}, not less than {WAIT_BAR}")
    write_rows(options.json, rows)
    print("\nbars: " + ("; ".join(broken) or "hold"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
