"""Image processors and tokenizers of BLIP, CLIP, ViT, DeiT and ViLT: folders of transformers give its inputs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.data.errors import DataError
from mmattn.data.image.processor import ImageProcessor
from mmattn.data.image.public import (
    CenterCrop,
    FittedImages,
    ShorterSide,
    make_image_processor,
    normalization,
    read_image_processor,
)
from mmattn.data.text.pretrained import read_public
from tests.conftest import refused

TOLERANCE = 1e-4
SIZES = [(50, 37), (38, 64), (91, 20), (120, 130)]  # (height, width)
KINDS = {
    "Blip": {"size": {"height": 48, "width": 32}},
    "ViT": {"size": {"height": 40, "width": 24}, "resample": 2},
    "DeiT": {"size": {"height": 45, "width": 52}, "crop_size": {"height": 32, "width": 37}},
    "CLIP": {"size": {"shortest_edge": 45}, "crop_size": {"height": 32, "width": 37}},
    "Vilt": {"size": {"shortest_edge": 50}, "size_divisor": 8},
}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "##s", "?", "é", "e"]


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def theirs(kind, **options):
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, f"{kind}ImageProcessorPil")(**options)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"image_mean": [0.1, 0.4, 0.7], "do_rescale": False}, {"do_normalize": False}])
def test_pixels_equal_transformers(kind, more, images, tmp_path):
    given = theirs(kind, **KINDS[kind] | more)
    given.save_pretrained(tmp_path)
    ours = read_image_processor(tmp_path)
    pixels = [ours.pixels(image)[0] for image in images]
    scale = 255.0 if "do_rescale" in more else 1.0
    if kind == "Vilt":
        expected = given([Image.fromarray(image) for image in images], return_tensors="pt")
        assert isinstance(ours, FittedImages)
        assert torch.equal(ours.pixel_mask(pixels), expected["pixel_mask"].bool())
        found = ours.normalize(pixels)
        assert found.shape == expected["pixel_values"].shape
        assert float((found - expected["pixel_values"]).abs().max()) <= TOLERANCE * scale
        return
    for image, own in zip(images, pixels, strict=True):
        expected = given(Image.fromarray(image), return_tensors="pt")["pixel_values"]
        assert float((ours.normalize([own]) - expected).abs().max()) <= TOLERANCE * scale


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_defaults_equal_transformers(kind, tmp_path):
    """Older files name their kind as an extractor of features, and only what differs from the defaults."""
    theirs(kind).save_pretrained(tmp_path)
    ours = read_image_processor(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"feature_extractor_type": f"{kind}FeatureExtractor"}))
    older = read_image_processor(tmp_path)
    assert type(older) is type(ours)
    assert older.config() == ours.config()


def test_config_makes_the_same_processor(images):
    for ours in (
        ImageProcessor((20, 30), resample="bicubic"),
        CenterCrop((20, 30), scaled=(31, 41)),
        ShorterSide((20, 30), shorter=41),
        FittedImages(40, multiple=8),
    ):
        again = make_image_processor(json.loads(json.dumps(ours.config())))
        assert type(again) is type(ours)
        assert np.array_equal(again.pixels(images[0])[0], ours.pixels(images[0])[0])
    assert "resample" not in ImageProcessor(20).config()  # as in earlier releases


def test_center_crop_window():
    crop = CenterCrop(20, scaled=40)
    assert crop.window((100, 50)) == (0.25, 0.25, 0.75, 0.75)
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[10:30, 10:30] = 255
    assert crop.pixels(image)[0].min() == 255


def test_window_of_the_shorter_side():
    crop = ShorterSide((20, 30), shorter=40)
    assert crop.window((100, 50)) == (25 / 80, 0.25, 55 / 80, 0.75)
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    image[10:30, 25:55] = 255
    assert crop.pixels(image)[0].min() == 255
    refused("shorter: expected at least both sides", ShorterSide, 40, shorter=39)


def test_fitted_images_stay_as_they_are():
    """Pixels that are kept between epochs are not resized again."""
    fitted = FittedImages(40, multiple=8)
    for width in range(9, 130, 7):
        size = fitted.working_size(width, 60)
        assert fitted.working_size(*size) == size
        assert all(side % 8 == 0 and side for side in size)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"image_processor_type": "OwlViTImageProcessor"},
            r"expected image_processor_type of Blip, ViT, DeiT, CLIP, Vilt",
        ),
        ({}, "found none"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "do_resize: expected true, found false"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "do_center_crop: expected true"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 9}},
            "size: expected height and width, found shortest",
        ),
        ({"image_processor_type": "ViTImageProcessor", "resample": 9}, "the options of a public image processor"),
        ({"image_processor_type": "BlipImageProcessor", "image_std": [0, 1, 1]}, "std positive"),
        ({"image_processor_type": "BlipImageProcessor", "image_mean": [1, 1]}, "a model of color or gray images"),
        ({"image_processor_type": "ViltImageProcessor", "size_divisor": 900}, "multiple: expected 1 to the shorter"),
        ([], "expected the options of an image processor, found list"),
    ],
)
def test_other_processors_are_refused(config, message, tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(config))
    assert str(file) in refused(message, read_image_processor, tmp_path, error=DataError)


def test_a_folder_without_a_processor_is_refused(tmp_path):
    refused(r"preprocessor_config\.json", read_image_processor, tmp_path, error=DataError)


def test_normalization_of_gray_images():
    found = normalization({"image_mean": [0.3], "image_std": [0.2], "rescale_factor": 2 / 255})
    assert found["mean"] == pytest.approx((0.15,) * 3)
    assert found["std"] == pytest.approx((0.1,) * 3)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["Blip", "Vilt"])
def test_whole_folders(family, images, tmp_path):
    """A processor of transformers 5 is one file with a section of the images, beside the tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.BertTokenizer(vocab={word: n for n, word in enumerate(VOCABULARY)})
    given = getattr(transformers, f"{family}Processor")(theirs(family, **KINDS[family]), tokenizer)
    given.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    texts = ["A photo of cats?", "", "cat é", "photo of zebras"]
    pictures = [Image.fromarray(image) for image in images]
    expected = given(pictures, texts, return_tensors="pt", padding=True)
    ours = read_image_processor(tmp_path)
    found = ours.normalize([ours.pixels(image)[0] for image in images])
    assert float((found - expected["pixel_values"]).abs().max()) <= TOLERANCE
    words, _ = read_public(tmp_path)
    ids, mask = words.encode_batch(texts, eos=True)
    assert ids.tolist() == expected["input_ids"].tolist()
    assert mask.tolist() == expected["attention_mask"].bool().tolist()
    assert words.decode(ids[0].tolist()) == tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.mark.parity
@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"strip_accents": False}])
def test_older_folders_have_a_vocabulary_alone(options, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    extra = {"added_tokens_decoder": {f"{len(VOCABULARY)}": {"content": "[DEC]", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options | extra))
    given = transformers.BertTokenizer(vocab={word: n for n, word in enumerate(VOCABULARY)}, **options)
    ours, _ = read_public(tmp_path, special={"start_id": len(VOCABULARY)})
    texts = ["A photo of cats?", "", "cat \u00e9 e\u4e2da", "[MASK] of [PAD]", "photo\u2028of zebras"]
    ids, _ = ours.encode_batch(texts, eos=True)
    assert ids.tolist() == given(texts, padding=True)["input_ids"]
    assert (ours.start_id, ours.eos_id, ours.pad_id, ours.rows) == (13, 3, 0, 14)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert str(tmp_path) in refused(r"the tokens \[CLS\] and \[SEP\]", read_public, tmp_path, error=DataError)
