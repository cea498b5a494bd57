"""Features of frozen encoders: computed once for each image, equal to those that are computed anew."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmattn.tasks.common import frozen
from mmattn.tasks.common.frozen import FeatureStore, discard_features, keep_features
from tests.tasks.runs import BRIEF, assert_kept, run, weights


class Encoder(nn.Module):
    """Counts the images that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        return self.body_features(images)

    def body_features(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.body(images)


def frozen_encoder() -> Any:
    return Encoder().eval().requires_grad_(False)


def test_each_image_is_computed_once(tmp_path: Path) -> None:
    encoder, images = frozen_encoder(), torch.randn(5, 3, 8, 8)
    wanted = encoder(images)
    encoder.seen = 0
    stores = keep_features(nn.Sequential(encoder), tmp_path)
    for rows in ([0, 1, 1], [2, 0, 3], [4, 4, 4], [0, 1, 2, 3, 4]):
        torch.testing.assert_close(encoder(images[rows]), wanted[rows], rtol=1e-6, atol=1e-6)
    assert encoder.seen == 1 + 5  # the first one tells the shape
    changed = images[:1] + 1e-3
    assert not torch.equal(encoder(changed), wanted[:1])
    assert encoder.seen == 7
    discard_features(encoder, stores)
    assert list(tmp_path.iterdir()) == []
    encoder(images)
    assert encoder.seen == 12


def test_interrupted_run_is_resumed(tmp_path: Path) -> None:
    """What it wrote is read; a record that was cut is not."""
    encoder, images = frozen_encoder(), torch.randn(4, 3, 8, 8)
    wanted = encoder(images)
    (store,) = keep_features(encoder, tmp_path)
    encoder(images[:3])
    with store.path.open("r+b") as file:
        file.truncate(store.path.stat().st_size - 10)
    again = FeatureStore(encoder.body, store.path)
    torch.testing.assert_close(again(images), wanted, rtol=1e-6, atol=1e-6)
    assert len(again.places) == 4
    assert store.path.stat().st_size == 4 * (frozen.KEY + wanted[0].nbytes)


def test_features_may_stay_for_other_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMATTN_FEATURES", str(tmp_path / "kept" / "features"))
    encoder, images = frozen_encoder(), torch.randn(4, 3, 8, 8)
    for _ in range(2):
        stores = keep_features(nn.Sequential(encoder), tmp_path)
        encoder(images)
        discard_features(encoder, stores)
    assert encoder.seen == 1 + 4 + 1  # the first one tells the shape
    assert [path.parent.name for path in tmp_path.rglob("*.bin")] == ["features"]


def test_another_run_writes_to_the_same_file(tmp_path: Path) -> None:
    """Neither takes the features of the other's images for those of its own."""
    encoder, images = frozen_encoder(), torch.randn(6, 3, 8, 8)
    wanted = encoder(images)
    first, second = (FeatureStore(encoder.body, tmp_path / "features.bin") for _ in range(2))
    for store, rows in ((first, [0, 1]), (second, [2, 3]), (first, [4, 5]), (first, [0, 4, 5]), (second, [2, 3, 4])):
        torch.testing.assert_close(store(images[rows]), wanted[rows], rtol=1e-6, atol=1e-6)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "SPARE", 2**70)
    encoder, images = frozen_encoder(), torch.randn(4, 3, 8, 8)
    wanted = encoder(images)
    (store,) = keep_features(encoder, tmp_path)
    for _ in range(2):
        torch.testing.assert_close(encoder(images), wanted)
    assert store.path.stat().st_size == 0


def test_other_encoders_stay(tmp_path: Path) -> None:
    trained, training, without = frozen_encoder(), frozen_encoder(), nn.Linear(2, 2)
    trained.body[0].weight.requires_grad_()
    training.body[1].train()
    assert keep_features(nn.ModuleList([trained, training, without]), tmp_path) == []


@pytest.mark.parity
def test_training_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear probe with and without kept features; with augmentation other than flips nothing is kept."""
    timm = pytest.importorskip("timm")
    given = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(given, tmp_path / "public", safe_serialization=True)
    options = f"--data.image_size 64 --model.freeze pretrained --init_from {tmp_path / 'public'} --trainer.max_epochs 3"
    options += " --optim.lr 0.01 --data.demo_size 12 --data.batch_size 6"
    found: list[int] = []

    def counted(*given: Any) -> list[FeatureStore]:
        stores = keep_features(*given)
        found.append(len(stores))
        return stores

    monkeypatch.setattr("mmattn.tasks.common.callbacks.keep_features", counted)
    kept = run("fit", tmp_path / "kept", options, BRIEF, task="classification")
    assert found == [1]
    assert not list(kept.glob("features_*"))
    run("fit", tmp_path / "augmented", f"{options} --data.augment.pad 2", BRIEF, task="classification")
    assert found == [1]
    run("fit", tmp_path / "flipped", f"{options} --data.augment.flip true", BRIEF, task="classification")
    assert found == [1, 1], "each image has two results alone"
    monkeypatch.setattr("mmattn.tasks.common.callbacks.keep_features", lambda *_: [])
    plain = run("fit", tmp_path / "plain", options, BRIEF, task="classification")
    assert_kept(weights(kept), weights(plain))
