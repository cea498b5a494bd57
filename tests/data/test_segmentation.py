"""Images and masks from folders: valid, or one error each; augmentation transforms both together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmattn.data.image.masks import VOID, ClassList, load_mask, palette, read_classes
from mmattn.tasks.segmentation.augment import SegmentationAugment
from mmattn.tasks.segmentation.data import SegmentationDataset, SegmentationSample
from mmattn.tasks.segmentation.module import SegmentationDataModule
from mmattn.tasks.segmentation.processor import SegmentationProcessor
from tests.conftest import refused
from tests.data.files import bad_data, write
from tests.image_files import encoded

Image = pytest.importorskip("PIL.Image")


def folder(root: Path, number: int = 3, size: tuple[int, int] = (12, 8)) -> Path:
    """Images (width, height) with masks of the classes 0, 4 and void 9, and their list in the parent folder."""
    (root / "classes.txt").write_text("0 road\n4 sky above\n9 Void\n")
    for part in ("images", "masks"):
        (root / "train" / part).mkdir(parents=True)
    draw = np.random.RandomState(0)
    for n in range(number):
        pixels = draw.randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "train" / "images" / f"{n}.jpg")
        mask = np.array([0, 4, 9, 255], np.uint8)[draw.randint(0, 4, (size[1], size[0]))]
        Image.fromarray(mask).save(root / "train" / "masks" / f"{n}.png")
    return root / "train"


def read_all(dataset: SegmentationDataset) -> None:
    """Reads all samples, as training does before its first step."""
    SegmentationProcessor.fit(dataset).collate(dataset.samples)


def test_reads_a_folder(tmp_path: Path) -> None:
    dataset = SegmentationDataset(folder(tmp_path))
    assert [s.id for s in dataset.samples] == ["0", "1", "2"]
    assert dataset.classes == ClassList(("road", "sky above"), (0, 4), (9,))
    processor = SegmentationProcessor.fit(dataset)
    batch = processor.collate(dataset.samples)
    assert batch.pixel_values.shape == (3, 3, 8, 12)
    masks = np.stack([np.asarray(Image.open(s.mask)) for s in dataset.samples])
    expected = np.select([masks == 0, masks == 4], [0, 1], VOID)
    assert np.array_equal(batch.labels.numpy(), expected)
    assert processor.counts == [int((masks == 0).sum()), int((masks == 4).sum())]


def test_palette_and_one_bit_masks(tmp_path: Path) -> None:
    root = folder(tmp_path)
    numbers = np.asarray(Image.open(root / "masks" / "0.png"))
    image = Image.fromarray(numbers, mode="P")
    image.putpalette(np.random.RandomState(0).randint(0, 256, 768).tolist())
    image.save(root / "masks" / "0.png")
    assert Image.open(root / "masks" / "0.png").mode == "P"
    assert np.array_equal(load_mask(root / "masks" / "0.png"), numbers)
    Image.fromarray(numbers > 4).save(tmp_path / "bits.png")
    assert np.array_equal(load_mask(tmp_path / "bits.png"), (numbers > 4).astype(np.uint8))
    Image.fromarray(numbers).save(tmp_path / "m.jpg")
    bad_data(r"mask .*m\.jpg: expected a mask without loss, such as PNG", load_mask, tmp_path / "m.jpg")


def test_an_unknown_value_where_nothing_is_void() -> None:
    classes = ClassList(("background", "object"), (0, 255))
    bad_data(r"expected class ids of the 2 classes \(0, 255\), found 7 \(96 pixels", classes.labels, 7 * ONES)


def test_classes_are_inferred_without_a_list(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (tmp_path / "classes.txt").unlink()
    processor = SegmentationProcessor.fit(SegmentationDataset(root))
    assert processor.classes == ClassList(("class 0", "class 4", "class 9"), (0, 4, 9))


@pytest.mark.parametrize(
    ("numbers", "classes", "message"),
    [
        ((0, 255), None, "found class 0 only; 255 is void unless classes.txt has it.*'0 background' and '255 object'"),
        ((0, 255), "0 background\n1 object\n", "found background only; 255 is void"),
        ((0,), None, "found class 0 only$"),
        ((255,), None, "found void pixels only; 255 is void"),
        ((0, 255), "0 background\n255 object\n", None),
    ],
)
def test_one_class_left_is_an_error(
    numbers: tuple[int, ...], classes: str | None, message: str | None, tmp_path: Path
) -> None:
    root = folder(tmp_path)
    (tmp_path / "classes.txt").unlink() if classes is None else write(tmp_path / "classes.txt", classes)
    for path in (root / "masks").iterdir():
        Image.fromarray(np.resize(np.array(numbers, np.uint8), (8, 12))).save(path)
    if message is None:
        assert SegmentationProcessor.fit(SegmentationDataset(root)).counts == [144, 144]
    else:
        bad_data("expected masks of two or more classes, " + message, read_all, SegmentationDataset(root))


@pytest.mark.parametrize("preload", [False, True])
def test_masks_that_are_all_void(preload: bool, tmp_path: Path) -> None:
    dataset = SegmentationDataset(folder(tmp_path))
    processor = SegmentationProcessor.fit(dataset)
    for sample in dataset.samples[1:]:
        Image.fromarray(9 * ONES).save(sample.mask)
    data = SegmentationDataModule(preload=preload)
    data.use_processor(processor)
    assert len(data.prepare_dataset(dataset, "val")) == 3
    Image.fromarray(VOID * ONES).save(tmp_path / "train" / "masks" / "0.png")
    message = "expected masks with labeled pixels, found void pixels only; 255 is void"
    bad_data(message, data.prepare_dataset, SegmentationDataset(tmp_path / "train"), "val")


MASK, IMAGE, ONES = "masks/1.png", "images/1.jpg", np.ones((8, 12), np.uint8)
BAD: dict[str, tuple[str, Any, str]] = {  # a file, its pixels or bytes or None if missing, and the error
    "size": (MASK, ONES[:5, :7], r"mask .*1\.png: expected the size of its image, 12 x 8, found 7 x 5"),
    "no mask": (MASK, None, r"images.1\.jpg: expected a mask 1\.png in .*masks, found none"),
    "no image": (IMAGE, None, r"masks.1\.png: expected an image 1 in .*images, found none"),
    "number": (MASK, 7 * ONES, r"mask .*1\.png: .* the 2 classes \(0, 4\) or void \(9, 255\), found 7 \(96 pixels, "),
    "colour": (MASK, np.zeros((8, 12, 3), np.uint8), r"mask .*1\.png: .* palette, pixels being .*, found mode RGB"),
    "empty": (MASK, b"", r"1\.png: expected an image, found an empty file"),
    "text": (IMAGE, b"no", r"1\.jpg: expected an image .*starts with b'no'"),
    "twice": ("images/1.jpeg", ONES, r"images.1\.jpg: expected one file of that name, found 1\.jpeg beside it"),
    "16 bits": (MASK, 300 * ONES.astype(np.uint16), r"1\.png: expected class ids .*, found 300 "),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_invalid_items_raise_or_are_skipped(
    name: str, content: Any, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder(tmp_path)
    if content is None:
        (root / name).unlink()
    else:
        write(root / name, content if isinstance(content, bytes) else encoded(Image.fromarray(content)))
    bad_data(message, lambda: read_all(SegmentationDataset(root)))
    dataset = SegmentationDataset(root, on_error="skip")
    assert [s.id for s in dataset.samples] in (["0", "2"], ["0", "1", "2"])
    assert len(dataset.skipped) == 1
    assert "excluded 1 bad item" in caplog.text
    read_all(dataset)


def test_samples_without_masks(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "masks" / "1.png").unlink()
    dataset = SegmentationDataset(root, require_labels=False)
    assert [s.mask is None for s in dataset.samples] == [False, True, False]
    bad_data(r"sample 1 \(id '1'\): expected a mask, found none", SegmentationDataset, dataset.samples)


def test_invalid_folders(tmp_path: Path) -> None:
    (tmp_path / "flat" / "empty").mkdir(parents=True)
    for path, found in (("none", "no such folder"), ("flat/empty", "nothing"), ("flat", "empty")):
        bad_data(f"expected a folder with images/ and masks/, found {found}", SegmentationDataset, tmp_path / path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 a\n0 b\n", "line 2: expected a number and a name of its own, found 0, which line 1 has already"),
        ("a\na\n", "line 2: expected a number and a name of its own, found a, which line 1 has already"),
        ("0 a\n300 b\n", "line 2: expected a number from 0 to 255 and a name"),
        ("0\n1\n", "line 1: expected a number from 0 to 255 and a name"),
        ("void\n", "expected 1 to 255 classes beside void, found 0"),
    ],
)
def test_invalid_class_lists(text: str, message: str, tmp_path: Path) -> None:
    bad_data(message, read_classes, write(tmp_path / "c.txt", text))


def test_class_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "c.txt", "# a comment\nsky\n\nroad side\nIgnore\n")
    assert read_classes(path) == ClassList(("sky", "road side"), (0, 1), (2,))
    assert len({tuple(colour) for colour in palette(254).tolist()}) == 254, "every class has its own color"
    classes, labels = ClassList(("a", "b"), (3, 200), (0,)), np.array([[0, 1, VOID]], np.uint8)
    assert classes.mask(labels).tolist() == [[3, 200, 255]]
    assert np.array_equal(classes.labels(classes.mask(labels)), labels)


def test_save_and_load(tmp_path: Path) -> None:
    processor = SegmentationProcessor.fit(SegmentationDataset(folder(tmp_path)), 32, mean=(0.4, 0.5, 0.6))
    processor.save(tmp_path / "p")
    other = SegmentationProcessor.load(tmp_path / "p")
    assert (other.config(), other.fingerprint()) == (processor.config(), processor.fingerprint())


@pytest.mark.parametrize(("training", "label_size"), [(False, (20, 30)), (True, (10, 15))])
def test_shorter_side_resize_and_label_size(training: bool, label_size: tuple[int, int], tmp_path: Path) -> None:
    dataset = SegmentationDataset(folder(tmp_path, size=(30, 20)))
    processor = SegmentationProcessor.fit(dataset, 10)
    assert (processor.working_size(30, 20), processor.working_size(20, 30)) == ((15, 10), (10, 15))
    batch, fingerprint = processor.collate(dataset.samples, training=training), dataset.fingerprint()
    assert batch.pixel_values.shape == (3, 3, 10, 15)
    assert batch.labels.shape == (3, *label_size)
    assert not processor.preload(dataset, training, max_bytes=100)
    assert processor.preload(dataset, training)
    same = processor.collate([dataset[n] for n in range(3)], training=training)
    assert torch.equal(same.pixel_values, batch.pixel_values)
    assert torch.equal(same.labels, batch.labels)
    assert dataset.fingerprint() == fingerprint == SegmentationDataset(tmp_path / "train").fingerprint()


def test_mixed_image_sizes_in_a_batch() -> None:
    masks = [np.full(shape, n, np.uint8) for n, shape in enumerate(((6, 9), (7, 5), (6, 9)))]
    samples = [SegmentationSample(str(n), np.stack([40 * mask] * 3, 2), mask) for n, mask in enumerate(masks)]
    classes = ClassList(("a", "b", "c"), (0, 1, 2))
    batch = SegmentationProcessor.fit(SegmentationDataset(samples, classes)).collate(samples)
    assert batch.pixel_values.shape == (3, 3, 7, 9)
    assert batch.alike() == [[0, 2], [1]]
    assert (batch.labels[1, :, 5:] == VOID).all()
    assert (batch.labels[1, :, :5] == 1).all()


PLAIN = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def marked(size: tuple[int, int] = (40, 56)) -> tuple[np.ndarray, np.ndarray]:
    """An image whose color is its label: 0 or 1 in blocks."""
    draw = np.random.RandomState(0)
    labels = draw.randint(0, 2, (size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    return np.repeat(labels[..., None] * 200, 3, 2), labels


@pytest.mark.parametrize("crop", [None, (24, 32), (80, 90)])
def test_image_and_mask_are_augmented_together(crop: tuple[int, int] | None) -> None:
    pixels, labels = marked()
    augment = SegmentationAugment(crop=crop, scale=(0.6, 2.0), **PLAIN)
    agree: list[float] = []
    for seed in range(40):
        new_pixels, new_labels = augment(pixels, labels, seed)
        assert new_labels.shape == (crop or labels.shape)
        assert new_pixels.shape == (*new_labels.shape, 3)
        real = new_labels != VOID
        agree += [((new_pixels[..., 0] > 100) == (new_labels == 1))[real].mean()] * bool(real.any())
        assert set(np.unique(new_labels)) <= {0, 1, VOID}
    assert min(agree) > 0.9


def test_augmentation_depends_only_on_the_seed() -> None:
    augment, pair = SegmentationAugment(crop=(16, 16), hue=0.1), marked()
    state = torch.get_rng_state()
    first, again, other = (augment(*pair, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert torch.equal(state, torch.get_rng_state())
    assert pair[0].max() == 200, "the given image is not modified"


def test_padding_is_void_and_half_are_flipped() -> None:
    _, found = SegmentationAugment(crop=(32, 32), scale=(1.0, 1.0), flip=0.0)(*marked((16, 16)), 3)
    assert (found == VOID).sum() == 32 * 32 - 16 * 16
    pixels, labels = marked()
    augment = SegmentationAugment(scale=(1.0, 1.0), flip=0.5, **PLAIN)
    mirrored = sum(np.array_equal(augment(pixels, labels, seed)[1], labels[:, ::-1]) for seed in range(60))
    assert 15 < mirrored < 45


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"crop": (0, 5)}, "crop: expected a height and a width"),
        ({"scale": (2.0, 1.0)}, "scale: expected a smallest and a largest zoom"),
        ({"hue": 0.7}, "hue: expected 0 to 0.5"),
        ({"flip": 2.0}, "flip: expected 0 to 1"),
    ],
)
def test_invalid_augmentation(option: dict, message: str) -> None:
    refused(message, SegmentationAugment, **option)
