"""Random ViLTs: ours equal transformers' in every layer, with images of several sizes and padded questions."""

import pytest
import torch
from public import (
    SHAPES,
    TOLERANCE,
    assert_public_size,
    assert_refused,
    difference,
    disturbed,
    load,
    rewrite,
    shape,
    text,
)
from public_image_text import assert_captured_equals_fused, assert_trains, recorded
from safetensors.torch import load_file

from mmattn import load_pretrained
from mmattn.backbones.vilt import Vilt
from mmattn.backbones.vit import resize_in_mask
from mmattn.pretrained.vilt import convert_vilt
from tests.conftest import assert_onnx_equals_eager, refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

V, ANSWERS = 23, 6


@pytest.fixture(autouse=True)
def _in_order(monkeypatch):
    """transformers draws the patches of the largest image in random order, which changes no output; here in order."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, count, **_: torch.arange(count) % len(weights))


def model(seed, name="ViltForQuestionAnswering", **options):
    """A random ViLT of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    patch = draw.choice([2, 3, 4])
    config = transformers.ViltConfig(
        **sizes
        | {
            "vocab_size": V,
            "patch_size": patch,
            "image_size": patch * draw.choice([1, 2, 3, 5]) + draw.choice([0, 1]),
            "num_channels": draw.choice([1, 3]),
            "type_vocab_size": draw.choice([1, 2]),
            "modality_type_vocab_size": draw.choice([2, 3]),
            "max_position_embeddings": draw.choice([12, 40]),
            "qkv_bias": draw.random() < 0.7,
            "layer_norm_eps": draw.choice([1e-12, 1e-3]),
            "num_labels": ANSWERS,
            **options,
        }
    )
    return draw, disturbed(getattr(transformers, name)(config), seed)


def images(draw, config, seed, remainder=True):
    """Images of several sizes, whole patches and a remainder, padded at the right and the bottom, and their mask."""
    patch, rows = config.patch_size, 4
    more = patch if remainder else 1
    sizes = [[patch * draw.choice([1, 2, 3, 5]) + draw.randrange(more) for _ in range(2)] for _ in range(rows)]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    mask = torch.zeros(rows, height, width, dtype=torch.bool)
    for row, (h, w) in enumerate(sizes):
        mask[row, :h, :w] = True
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, config.num_channels, height, width, generator=generator, dtype=torch.float64)
    return drawn * mask[:, None], mask


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_parity(seed, tmp_path):
    draw, theirs = model(seed)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    pixels, pixel_mask = images(draw, theirs.config, seed)
    ids, mask = text(draw, seed, V, 12, 0)
    types = torch.randint(theirs.config.type_vocab_size, ids.shape)
    given = {"pixel_values": pixels, "pixel_mask": pixel_mask.long(), "input_ids": ids, "attention_mask": mask.long()}
    with torch.no_grad():
        whole = theirs.vilt(**given, token_type_ids=types, output_hidden_states=True)
        expected = theirs(**given, token_type_ids=types)
    logits, states = recorded(ours, ["encoder.layers"], lambda: ours(pixels, ids, mask, pixel_mask, types))
    assert difference([logits], [expected.logits]) <= TOLERANCE
    with torch.no_grad():
        first, where = ours.embed(pixels, ids, mask, pixel_mask, types)
        final = ours.encode(pixels, ids, mask, pixel_mask, types).states
    for row, real in enumerate(where.key_mask):  # theirs keep as many patches as the largest image has
        count = int(real[ids.shape[1] :].sum())
        keep = torch.cat([mask[row], torch.arange(whole.last_hidden_state.shape[1] - ids.shape[1]) < count])
        own = [state[row, real] for state in (first, *states, final)]
        assert difference(own, [s[row, keep] for s in (*whole.hidden_states, whole.last_hidden_state)]) <= TOLERANCE


@pytest.fixture
def vilt(tmp_path):
    """A folder with a random ViLT, the model, and its inputs."""
    draw, theirs = model(6)
    theirs.save_pretrained(tmp_path)
    return tmp_path, theirs, (*images(draw, theirs.config, 6, remainder=False), *text(draw, 6, V, 12, 0))


def test_images_alone_equal_the_padded_batch(vilt):
    folder, _, (pixels, pixel_mask, ids, mask) = vilt
    ours = load(folder)
    with torch.no_grad():
        whole = ours(pixels, ids, mask, pixel_mask)
        for row in range(len(ids)):
            h, w = int(pixel_mask[row, :, 0].sum()), int(pixel_mask[row, 0].sum())
            if not mask[row, 0]:
                continue  # padded left: positions differ without the padding
            alone = ours(pixels[row : row + 1, :, :h, :w], ids[row : row + 1, mask[row]])
            assert difference([alone], [whole[row : row + 1]]) <= TOLERANCE


def test_single_precision(vilt):
    folder, _, (pixels, pixel_mask, ids, mask) = vilt
    with torch.no_grad():
        expected = load(folder)(pixels, ids, mask, pixel_mask)
        found = load_pretrained(folder)(pixels.float(), ids, mask, pixel_mask)
    assert float((found - expected).abs().max()) < 1e-4


def test_maps_equal_transformers(vilt):
    folder, theirs, (pixels, _, ids, mask) = vilt
    maps = assert_captured_equals_fused(load(folder), pixels, ids, mask)
    pixel_mask = torch.ones_like(pixels[:, 0], dtype=torch.long)
    given = {"pixel_values": pixels, "pixel_mask": pixel_mask, "input_ids": ids, "attention_mask": mask.long()}
    expected = theirs(**given, output_attentions=True).attentions
    own = [maps[f"encoder.layers.{n}.attention"][-1] for n in range(len(expected))]
    assert difference(own, [attended.detach() for attended in expected]) <= TOLERANCE


def test_every_parameter_trains(vilt):
    pixels, pixel_mask, ids, mask = vilt[2]
    assert_trains(vilt[0], pixels, ids, mask, pixel_mask)


def test_without_a_classifier(vilt):
    """Of the pretraining; its heads are not."""
    folder, _, (pixels, pixel_mask, ids, mask) = vilt
    theirs = model(6, "ViltForMaskedLM")[1]
    theirs.save_pretrained(folder)
    ours = load(folder)
    given = {"pixel_values": pixels, "pixel_mask": pixel_mask.long(), "input_ids": ids, "attention_mask": mask.long()}
    with torch.no_grad():
        expected = theirs.vilt(**given).pooler_output
        assert difference([ours.encode(pixels, ids, mask, pixel_mask).pooled], [expected]) <= TOLERANCE
    refused("this Vilt has no classifier", ours, pixels, ids)


def test_missing_and_unknown_keys_and_options_raise(vilt):
    folder, theirs, _ = vilt
    state = load_file(folder / "model.safetensors")
    for key, message in (
        ("classifier.1.bias", r"missing key: classifier\.1\.bias"),
        ("vilt.embeddings.token_type_embeddings.weight", "missing key: modalities"),
        ("vilt.embeddings.text_embeddings.LayerNorm.weight", r"missing key: text\.norm\.weight"),
        ("vilt.embeddings.position_embeddings", "no position embeddings"),
        ("vilt.pooler.dense.bias", r"missing key: pooler\.dense\.bias"),
    ):
        assert_refused(folder, message, {name: tensor for name, tensor in state.items() if name != key})
    assert_refused(folder, r"unknown key: vilt\.adapter\.weight", state | {"vilt.adapter.weight": torch.zeros(2)})
    assert_refused(folder, "max_image_length=200; only -1 is supported", state, max_image_length=200)
    rewrite(folder, max_image_length=-1)
    assert_refused(folder, "positions for", image_size=theirs.config.image_size + theirs.config.patch_size)


def test_old_checkpoint_names(vilt):
    folder, _, given = vilt
    pixels, pixel_mask, ids, mask = given
    expected = load(folder)(pixels, ids, mask, pixel_mask)
    state = load_file(folder / "model.safetensors")
    for buffer in ("position_ids", "token_type_ids"):
        state[f"vilt.embeddings.text_embeddings.{buffer}"] = torch.zeros(1, 40, dtype=torch.long)
    rewrite(folder, state)
    assert difference([load(folder)(pixels, ids, mask, pixel_mask)], [expected]) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (7, 3), (9, 12)])
def test_resized_positions_equal_interpolation(size):
    table = torch.randn(1, 8, 4, 5, dtype=torch.float64)
    cells = torch.zeros(1, 10, 12, dtype=torch.bool)
    cells[:, : size[0], : size[1]] = True
    expected = torch.nn.functional.interpolate(table, size, mode="bilinear", align_corners=True)
    assert difference([resize_in_mask(table, cells)[:, :, : size[0], : size[1]]], [expected]) <= TOLERANCE


def test_onnx(tmp_path):
    """Questions and padded images of any size."""
    net = Vilt(V, 16, 1, 2, num_answers=3, image_size=(12, 12), patch_size=4, in_channels=3)
    sizes = [(2, 5, 12, 16), (3, 7, 8, 20)]

    def example(rows, length, height, width):
        mask, pixel_mask = torch.ones(rows, length, dtype=torch.bool), torch.ones(rows, height, width, dtype=torch.bool)
        mask[0, 3:], pixel_mask[0, 8:], pixel_mask[1, :, 8:] = False, False, False
        return torch.randn(rows, 3, height, width), torch.randint(V, (rows, length)), mask, pixel_mask

    auto = torch.export.Dim.AUTO
    dynamic = ({0: auto, 2: auto, 3: auto}, {0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto, 1: auto, 2: auto})
    given = [example(*size) for size in sizes]
    assert_onnx_equals_eager(net, given[0], given, dynamic, tmp_path)


@pytest.mark.slow
def test_public_size():
    config = transformers.ViltConfig(num_labels=3129)
    assert_public_size(117.6, config, transformers.ViltForQuestionAnswering, convert_vilt, Vilt)
