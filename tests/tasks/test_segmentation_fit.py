"""Training segmentation from the command line: built-in scenes, own folder, the baseline, invalid settings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmattn import load
from mmattn.data.errors import DataError
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.segmentation.data import SegmentationBatch
from mmattn.tasks.segmentation.demo import NAMES, make
from mmattn.tasks.segmentation.module import SegmentationDataModule
from mmattn.tasks.segmentation.processor import SegmentationProcessor
from tests.conftest import refused
from tests.image_files import write_pairs
from tests.tasks.runs import read, run

Image = pytest.importorskip("PIL.Image")


def own_data(root: Path, sizes: tuple[tuple[int, int], ...] = ((64, 64), (48, 64), (64, 64), (40, 40))) -> Path:
    """Scenes as files, cropped to these heights and widths, with a class list and void pixels."""
    for split in ("train", "val"):
        scenes = make(split, len(sizes))
        for scene, (height, width) in zip(scenes, sizes, strict=True):
            scene.image, scene.mask = scene.image[:height, :width], scene.mask[:height, :width].copy()
            scene.mask[:2] = 20
        write_pairs(root / split, scenes)
    (root / "classes.txt").write_text("\n".join([*(f"{n} {name}" for n, name in enumerate(NAMES)), "20 Void"]))
    return root


def test_fit_test_and_load(tmp_path: Path) -> None:
    folder = run("fit", tmp_path / "run", "--loss.class_weights median", task="segmentation")
    run("test", folder, f"--checkpoint {folder / 'model'} --decode.flip true --decode.tile 48", task="segmentation")
    metrics = read(folder / "metrics.json")
    assert {"miou", "pixel_accuracy", "mean_accuracy", "iou/ground"} <= metrics["test"].keys()
    assert {"cross_entropy", "dice", "loss"} <= metrics["fit"].keys()
    assert load(folder / "model", device="cpu").processor.classes.names == NAMES


def test_own_folder(tmp_path: Path) -> None:
    """Images of several sizes; resized for the model, evaluated at their original size."""
    data = own_data(tmp_path / "data")
    options = f"--data.train {data / 'train'} --data.val {data / 'val'} --data.image_size 32 --data.batch_size 4"
    augment = "--data.augment.crop [24,40] --data.augment.scale [0.8,1.2]"
    folder = run("fit", tmp_path / "run", f"{options} {augment}", task="segmentation")
    predictor = load(folder / "model", device="cpu")
    assert predictor.processor.size == 32
    assert predictor.processor.classes.void == (20,)
    answers = predictor.predict(sorted((data / "val" / "images").iterdir()))
    assert [answer.size for answer in answers] == [(64, 64), (64, 48), (64, 64), (40, 40)]


@pytest.mark.parametrize(
    ("place", "size", "number", "message"),
    [
        ("val/masks/val-0001", 9, 0, r"val-0001\.png: expected the size of its image, 64 x 48, found 9 x 9"),
        (
            "train/masks/train-0000", 64, 9,
            r"train-0000\.png: expected class ids of the 8 classes \(0 to 7\) or void \(20, 255\), found 9 \(4096 ",
        ),
        ("val/masks/val-0001", 0, 0, r"val-0001\.png: expected a mask val-0001\.png in .*masks, found none"),
    ],
    ids=["size", "number", "no mask"],
)  # fmt: skip
def test_invalid_mask_raises_before_the_run_starts(
    place: str, size: int, number: int, message: str, tmp_path: Path
) -> None:
    data = own_data(tmp_path / "data")
    (data / f"{place}.png").unlink()
    if size:
        Image.new("L", (size, size), number).save(data / f"{place}.png")
    options = f"--data.train {data / 'train'} --data.val {data / 'val'}"
    refused(message, run, "fit", tmp_path / "run", options, task="segmentation", error=DataError)
    assert not (tmp_path / "run").exists()
    run("fit", tmp_path / "run", f"{options} --data.on_error skip", task="segmentation")
    assert (tmp_path / "run" / "model").exists()


def test_shuffled_patches_keep_their_labels() -> None:
    module, samples = SegmentationDataModule(ablate="context"), make("test", 2)
    module.processor = SegmentationProcessor.fit(module.dataset("test"))
    shuffled, plain = module.collate_fn("val")(samples), module.processor.collate(samples)

    def patches(batch: SegmentationBatch, row: int) -> list[bytes]:
        joined = torch.cat([batch.pixel_values[row], batch.labels[row][None].float()])
        cells = joined.unflatten(1, (8, 8)).unflatten(3, (8, 8)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return [cell.contiguous().numpy().tobytes() for cell in cells]

    for row in range(2):
        before, after = patches(plain, row), patches(shuffled, row)
        assert before != after
        assert sorted(before) == sorted(after)
    sample = samples[0]
    sample.image, sample.mask = sample.image[:60], np.ascontiguousarray(sample.mask[:60])
    refused("whole patches of 8", module.collate_fn("val"), [sample], error=ConfigError)
