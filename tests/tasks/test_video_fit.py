"""Video classification trained on files, unlabeled clips, and from its own models at other sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn import fit as python_fit, load
from mmattn.data.errors import DataError
from mmattn.tasks.common import frozen
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.video.data import VideoDataset
from mmattn.tasks.video.demo import make
from mmattn.tasks.video.processor import VideoProcessor
from tests.conftest import refused, slow_but_first
from tests.tasks.runs import BRIEF, STILL, assert_kept, read, run, weights
from tests.video_files import film, write, write_audio, write_images

av = pytest.importorskip("av")
BASE = f"{BRIEF} --data.demo_size 16 --data.batch_size 8 --model.embed_dim 16 --model.num_heads 2 "
BASE += "--model.channels [8,8] --model.temporal_layers 1 --model.num_layers 1"
TUBELET = "--model.encoder tubelet --model.num_layers 2"


def fit(folder: Path, options: str = "", base: str = BASE) -> Path:
    return run("fit", folder, options, base, task="video")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of each of two classes: brighter and darker over time, as files, images and a GIF."""
    root = tmp_path_factory.mktemp("collection")
    for number in range(10):
        for label, step in (("brighter", 1), ("darker", -1)):
            (root / label).mkdir(exist_ok=True)
            frames = film(8 + number, 20 + number % 3, 28)[::step]
            if number == 0:
                write_images(root / label / "images", frames)
            elif number == 1:
                write(root / label / "1.gif", frames, "gif", pixels="rgb8")
            else:
                write(root / label / f"{number}.mp4", frames, pixels="yuv444p")
    return root


def test_twenty_videos(collection: Path, tmp_path: Path) -> None:
    """Few videos of one's own: one command, with parts held out, and the decoder is named."""
    base = f"{BRIEF} --model.embed_dim 16 --model.num_heads 2 --model.channels [8,8] --trainer.max_epochs auto"
    folder = fit(tmp_path / "run", f"--data.train {collection} --data.augment.flip true", base)
    metrics = read(folder / "metrics.json")
    assert {"top1", "ece"} <= metrics["validation"].keys()
    assert f"PyAV {av.__version__}" in str(metrics)
    predictor = load(folder / "model", device="cpu")
    assert predictor.labels == ["brighter", "darker"]
    assert predictor(collection / "darker" / "5.mp4").label in predictor.labels


def test_from_python(collection: Path, tmp_path: Path) -> None:
    rows = [(path, path.parent.name) for path in sorted(collection.rglob("*.mp4"))]
    rows += [(film(6)[::step], label) for step, label in ((1, "brighter"), (-1, "darker"))]
    options: dict[str, Any] = {"trainer": {"max_steps": 2, "report": False, "enable_progress_bar": False}}
    done = python_fit("video", train=rows, dir=tmp_path / "run", model={"embed_dim": 16, "num_heads": 2}, **options)
    assert done.predictor(film(6)).label in ("brighter", "darker")


def test_bad_videos(collection: Path, tmp_path: Path) -> None:
    """`fit` names the file, or leaves it out and counts it."""
    table = tmp_path / "train.csv"
    rows = [f"{path},{path.parent.name},," for path in sorted(collection.rglob("*.mp4"))]
    write_audio(tmp_path / "sound.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    bad = ["sound.mp4,darker,,", "empty.mp4,darker,,", f"{collection}/darker/5.mp4,darker,9,12", "none.mp4,darker,,"]
    table.write_text("path,label,start,end\n" + "\n".join([*rows, *bad]) + "\n")
    options = f"--data.train {table} --data.val {collection}"
    message = r"train\.csv, line 18: video .*sound\.mp4: expected a video stream, found none"
    refused(message, fit, tmp_path / "run", options, error=DataError)
    dataset = VideoDataset(table, on_error="skip")
    assert len(dataset) == 16
    reasons = [reason for _, reason in dataset.skipped]
    wanted = ["found none (audio alone)", "found an empty file", "a start before the end", "found no such file"]
    assert all(part in reason for part, reason in zip(wanted, reasons, strict=True))
    fit(tmp_path / "run2", f"{options} --data.on_error skip")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a").symlink_to(collection / "darker")
    refused(
        "at least two classes, found 1: a", fit, tmp_path / "x", f"--data.train {tmp_path / 'one'}", error=ConfigError
    )


def test_frames_on_the_disk_equal_those_in_memory(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = f"--data.train {collection} --data.val {collection}"
    plain = fit(tmp_path / "memory", options)
    monkeypatch.setattr("mmattn.tasks.video.data.IN_MEMORY", 0)
    assert_kept(weights(plain), weights(fit(tmp_path / "disk", options)))
    uniform = f"{options} --data.jitter false"
    kept = fit(tmp_path / "kept", uniform)
    assert_kept(weights(kept), weights(fit(tmp_path / "read", f"{uniform} --data.preload false")))
    monkeypatch.setattr("mmattn.tasks.video.data.ON_DISK", 0)
    assert_kept(weights(kept), weights(fit(tmp_path / "full", uniform)))


def test_jitter_draws_other_frames(collection: Path) -> None:
    dataset = VideoDataset(collection)
    processor = VideoProcessor.fit(dataset, num_frames=4)
    samples = dataset.samples[:3]
    assert samples[0].image.shape[1:] == (28, 3)
    same, again, other = (processor.collate(samples, seeds=s, jitter=True) for s in ([1, 2, 3], [1, 2, 3], [4, 5, 6]))
    assert torch.equal(same.pixel_values, again.pixel_values)
    assert not torch.equal(same.pixel_values, other.pixel_values)
    several = processor.collate(samples, clips=2)
    assert several.pixel_values.shape[0] == 6
    assert several.views == 2
    refused("crops: expected 1 with data.resize 'squash'", processor.check_views, 1, 3, error=ConfigError)


def test_regions_follow_the_frames() -> None:
    """Of the frames of the data, of shuffled ones, and of one frame."""
    samples = make("train", 8)
    processor = VideoProcessor.fit(VideoDataset(samples))
    batch = processor.collate(samples)
    for row, sample in enumerate(samples):
        real = batch.region_mask[row]
        frames, boxes = batch.region_frames[row, real].tolist(), batch.regions[row, real].tolist()
        wanted = [(round(begin * 12), box) for begin, _, box in sample.regions]
        assert frames == [frame for frame, _ in wanted]
        assert np.allclose(boxes, [box for _, box in wanted])
    before = batch.pixel_values[torch.arange(8)[:, None], batch.region_frames].clone()  # (B, R, 3, H, W)
    shuffled = processor.ablate(batch, "order", list(range(8)))
    after = shuffled.pixel_values[torch.arange(8)[:, None], shuffled.region_frames]
    assert torch.equal(before[batch.region_mask], after[batch.region_mask])
    still = processor.ablate(processor.collate(samples), "motion")
    assert torch.equal(still.pixel_values, still.pixel_values[:, :1].expand_as(still.pixel_values))
    assert (still.region_frames[still.region_mask] == 6).all()


def test_pretraining_without_labels_then_fine_tuning(collection: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    for number, path in enumerate(sorted(collection.rglob("*.mp4"))):
        (loose / f"{number}.mp4").symlink_to(path)
    options = f"{TUBELET} --loss.objective masked --loss.mask_ratio 0.5"
    first = fit(tmp_path / "first", f"--data.train {loose} {options}")
    assert read(first / "metrics.json")["validation"]["reconstruction_error"] > 0
    before = weights(first)
    assert any(name.startswith("decoder.") for name in before)
    assert not any(name.startswith("head.") for name in before)
    refused("expected a finished model", load, first / "model", error=CheckpointError)
    more = fit(
        tmp_path / "more", f"--data.train {loose} --loss.objective masked --init_from {first / 'model'} {STILL}", BRIEF
    )
    assert assert_kept(before, weights(more)) == len(before)
    for pooling in ("attention", "mean"):
        given = f"--data.train {collection} --init_from {first / 'model'} --model.pooling {pooling} {STILL}"
        second = fit(tmp_path / pooling, given, BRIEF)
        kept = {n: t for n, t in before.items() if not n.startswith(("decoder.", "encoder.encoder.norm."))}
        assert assert_kept(kept, weights(second)) > 10
    refused("expected model.encoder tubelet", fit, tmp_path / "x", "--loss.objective masked", error=ConfigError)
    refused("expected none without loss.objective masked", fit, tmp_path / "x", f"{TUBELET} --model.decoder_layers 1",
            error=ConfigError)  # fmt: skip
    refused(
        "label_smoothing: expected 0", fit, tmp_path / "x", f"{options} --loss.label_smoothing 0.1", error=ConfigError
    )


@pytest.mark.parametrize("encoder", slow_but_first(["divided", "tubelet", "factorized"]))
def test_own_models_for_other_classes_and_sizes(encoder: str, collection: Path, tmp_path: Path) -> None:
    options = f"--model.encoder {encoder} --loss.attention_supervision 0.1"
    first = fit(tmp_path / "first", options)
    given = f"--data.train {collection} --init_from {first / 'model'} --data.num_frames 6 --data.image_size 48"
    second = fit(tmp_path / "second", f"{given} {STILL}", BRIEF)
    before, after = weights(first), weights(second)
    assert assert_kept(before, after, "head.out.") > 10
    assert after["head.out.weight"].shape[0] == 2
    predictor = load(second / "model", device="cpu")
    assert predictor.processor.sampling.num_frames == 6
    found = predictor.explain(collection / "darker" / "5.mp4")
    assert found.weights.shape == (6,)
    assert found.maps.shape[0] == 6


def test_wrong_combinations(tmp_path: Path) -> None:
    for options, message in (
        ("--loss.attention_supervision 1 --model.pooling mean", "expected 0 without model.pooling attention"),
        ("--loss.attention_supervision 1 --data.augment.flip true", "which moves the regions"),
        ("--data.crops 3", "crops: expected 1 with data.resize 'squash'"),
        ("--data.rate 0", r"data\.rate: expected a value above 0"),
        ("--data.augment.blur 1", "blur"),
    ):
        refused(message, fit, tmp_path / "run", options, error=ConfigError)


@pytest.mark.parity
def test_public_image_encoder_of_frames(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen, its features are computed once for each frame and lie on the disk until the run ends."""
    timm = pytest.importorskip("timm")
    given = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(given, tmp_path / "public", safe_serialization=True)
    stored: list[int] = []
    discard = frozen.discard_features

    def counted(model: Any, stores: Any) -> None:
        stored.extend(len(store.places) for store in stores)
        discard(model, stores)

    monkeypatch.setattr("mmattn.tasks.common.callbacks.discard_features", counted)
    options = (
        f"--data.train {collection} --data.val {collection} --init_from {tmp_path / 'public'} --data.image_size 32"
    )
    base = f"{BRIEF} --model.embed_dim 16 --model.num_heads 2 --trainer.max_steps 6 --data.num_frames 4"
    folder = fit(tmp_path / "run", f"{options} --model.freeze pretrained", base)
    frames = sum(min(8 + number, 16) for number in range(10)) * 2
    assert 20 < stored[0] <= frames
    assert not list(folder.glob("features_*"))
    before = {n: t for n, t in given.state_dict().items() if not n.startswith("fc.")}
    after = {n.removeprefix("image_encoder.stem.body."): t for n, t in weights(folder).items()}
    assert assert_kept(before, after) > 10
    assert load(folder / "model", device="cpu").explain(collection / "darker" / "5.mp4").weights.shape == (4,)
