"""Random pairs of ViT or DeiT and BERT: ours equal transformers' in every layer and in the texts that they generate."""

import pytest
import torch
from public import SHAPES, TOLERANCE, assert_refused, difference, image_size, load, rewrite, shape
from public_image_text import (
    END,
    PAD,
    START,
    WAYS,
    V,
    assert_cached_equals_full,
    assert_captured_equals_fused,
    assert_rows,
    assert_trains,
    lively,
    recorded,
)
from public_seq2seq import sharpened
from safetensors.torch import load_file

from mmattn import load_generation_config, load_pretrained
from mmattn.backbones.image_text import ImageToText
from tests.conftest import assert_onnx_equals_eager, refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

OURS = ["image.encoder.layers", "text.decoder.layers"]
THEIRS = ["encoder.layers", "decoder.bert.encoder.layer"]
ROOMY = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32}


def model(seed, **text):
    """A random pair of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    patch = draw.choice([2, 3, 4])
    image = sizes | {
        "image_size": image_size(draw, patch),
        "patch_size": patch,
        "num_channels": draw.choice([1, 3]),
        "qkv_bias": draw.random() < 0.7,
        "layer_norm_eps": draw.choice([1e-12, 1e-3]),
    }
    text = (sizes if draw.random() < 0.4 else shape(seed + 100)[1]) | {
        "hidden_act": draw.choice(["gelu", "relu"]),
        "vocab_size": V,
        "max_position_embeddings": draw.choice([12, 30]),
        "type_vocab_size": draw.choice([1, 2]),
        "tie_word_embeddings": draw.random() < 0.7,
        "layer_norm_eps": draw.choice([1e-12, 1e-3]),
        **text,
    }
    encoder = getattr(transformers, draw.choice(["ViTConfig", "DeiTConfig"]))(**image)
    decoder = transformers.BertConfig(**text, is_decoder=True, add_cross_attention=True, pad_token_id=PAD)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = START, END, PAD
    return draw, sharpened(transformers.VisionEncoderDecoderModel(config), seed)


def pixels_of(theirs, rows=3, seed=0):
    config = theirs.config.encoder
    size = (rows, config.num_channels, *config.image_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_parity(seed, tmp_path):
    draw, theirs = model(seed)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert (ours.text.output.tokens.weight is ours.text.embedding.weight) == theirs.config.decoder.tie_word_embeddings
    assert isinstance(ours.project, torch.nn.Linear) == hasattr(theirs, "enc_to_dec_proj")
    pixels, length = pixels_of(theirs, 2, seed), draw.randint(2, 9)
    target = torch.randint(V, (2, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(target)
    mask[1, draw.randint(1, length) :] = 0  # padding at the right
    logits, states = recorded(ours, OURS, lambda: ours(pixels, target))
    expected, layers = recorded(
        theirs,
        THEIRS,
        lambda: theirs(pixel_values=pixels, decoder_input_ids=target, decoder_attention_mask=mask).logits,
    )
    for row in range(2):
        size = int(mask[row].sum())
        text = [state[row : row + 1, :size] for state in layers[len(theirs.encoder.layers) :]]
        image = [state[row : row + 1] for state in layers[: len(theirs.encoder.layers)]]
        assert_rows([logits, *states], [expected[row : row + 1, :size], *image, *text], row)


def test_shapes_include_every_kind():
    configs = [model(seed)[1].config for seed in SHAPES]
    assert {config.encoder.model_type for config in configs} == {"vit", "deit"}
    assert {config.decoder.tie_word_embeddings for config in configs} == {True, False}
    assert {config.encoder.hidden_size == config.decoder.hidden_size for config in configs} == {True, False}


@pytest.fixture
def pair(tmp_path):
    """A folder with a random tied pair of several sizes, and the model."""
    theirs = model(3, tie_word_embeddings=True, **ROOMY)[1]
    theirs.save_pretrained(tmp_path)
    return tmp_path, theirs


def test_single_precision(pair):
    folder, theirs = pair
    pixels, target = pixels_of(theirs), torch.randint(V, (3, 5))
    with torch.no_grad():
        expected = load(folder)(pixels, target)
        found = load_pretrained(folder)(pixels.float(), target)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_cached_equals_full(pair):
    assert_cached_equals_full(load(pair[0]), torch.randint(V, (3, 6)), pixels_of(pair[1]))


def test_maps_equal_transformers(pair):
    folder, theirs = pair
    theirs.set_attn_implementation("eager")
    pixels, target = pixels_of(theirs), torch.randint(V, (3, 6))
    maps = assert_captured_equals_fused(load(folder), pixels, target)
    found = theirs(pixel_values=pixels, decoder_input_ids=target, output_attentions=True)
    places = {"image.encoder.layers.{}.attention": found.encoder_attentions}
    places |= {"text.decoder.layers.{}.self_attention": found.decoder_attentions}
    places |= {"text.decoder.layers.{}.cross_attention": found.cross_attentions}
    for place, expected in places.items():
        own = [maps[place.format(n)][-1] for n in range(len(expected))]
        assert difference(own, [attended.detach() for attended in expected]) <= 1e-5  # theirs are softmaxes in float32


def test_every_parameter_trains(pair):
    assert_trains(pair[0], pixels_of(pair[1]), torch.randint(V, (3, 5)))


@pytest.mark.parametrize("way", slow_but_first(WAYS, lambda way: way.startswith("beams")))
def test_ids_equal_transformers(way, tmp_path):
    lengths = set()
    for seed in (15, 24, 44):
        theirs = model(seed, tie_word_embeddings=False, **ROOMY | {"max_position_embeddings": 40})[1]
        lively(theirs, seed, theirs.decoder)
        theirs.generation_config.update(**WAYS[way])
        theirs.save_pretrained(tmp_path)
        ours, config = load(tmp_path), load_generation_config(tmp_path)
        pixels = pixels_of(theirs, 4, seed)
        expected = theirs.generate(pixel_values=pixels)
        found = ours.generate(pixels, config)
        for ids, length, row in zip(found.ids.flatten(0, 1), found.lengths.flatten(), expected[:, 1:], strict=True):
            assert ids[:length].tolist() == row[:length].tolist()
            assert set(row[length:].tolist()) <= {PAD, END}  # transformers' beams take a pad of 0 for none
        lengths |= set(found.lengths.flatten().tolist())
    assert len(lengths) > 1


def test_options_from_the_config(pair):
    """Older folders have generation options in config.json or its section of the decoder."""
    folder, theirs = pair
    (folder / "generation_config.json").unlink()
    decoder = theirs.config.decoder.to_dict() | {"num_beams": 3, "max_length": 30, "decoder_start_token_id": 7}
    rewrite(folder, decoder=decoder, max_length=11)
    config = load_generation_config(folder)
    assert (config.num_beams, config.max_length, config.start, config.eos, config.pad) == (3, 11, START, (END,), PAD)


def test_names_in_memory(pair):
    """State dicts of transformers 5 have other names than its files."""
    folder, theirs = pair
    pixels, target = pixels_of(theirs), torch.randint(V, (3, 5))
    with torch.no_grad():
        expected = load(folder)(pixels, target)
        rewrite(folder, {name: tensor.clone() for name, tensor in theirs.state_dict().items()})
        assert difference([load(folder)(pixels, target)], [expected]) <= TOLERANCE


def test_missing_and_unknown_keys_raise(pair):
    folder, _ = pair
    state = load_file(folder / "model.safetensors")
    for key, ours in (
        ("enc_to_dec_proj.bias", "project.bias"),
        ("decoder.cls.predictions.transform.dense.weight", "text.output.dense.weight"),
        ("decoder.bert.encoder.layer.0.crossattention.self.value.bias", "cross_attention.v_proj.bias"),
        ("encoder.layernorm.weight", "image.encoder.norm.weight"),
    ):
        assert_refused(folder, f"missing key.*{ours}", {name: t for name, t in state.items() if name != key})
    assert_refused(folder, r"unknown key: decoder\.adapter\.w", state | {"decoder.adapter.w": torch.zeros(2)})


def test_other_parts_raise(pair):
    folder, theirs = pair
    encoder, decoder = theirs.config.encoder.to_dict(), theirs.config.decoder.to_dict()
    for section in ({"decoder": decoder | {"model_type": "opt"}}, {"encoder": encoder | {"model_type": "swin"}}):
        side = next(iter(section))
        message = f"{side} of model_type '{section[side]['model_type']}' is not converted; expected one of: "
        assert_refused(folder, message, **{"encoder": encoder, "decoder": decoder} | section)
    assert_refused(folder, "is_decoder=False; only True", encoder=encoder, decoder=decoder | {"is_decoder": False})
    rewrite(folder, encoder=encoder, decoder=decoder)
    pixels = torch.zeros(1, encoder["num_channels"], 99, 99, dtype=torch.float64)
    refused("where the positions are for", load(folder), pixels, torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.slow
def test_onnx(tmp_path):
    """Texts and questions of any length."""
    image = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "image_size": (8, 8), "patch_size": 4}
    net = ImageToText(V, 16, 1, 2, image=image, reads_question=True)

    def example(rows, length, asked):
        mask = torch.ones(rows, asked, dtype=torch.bool)
        mask[0, 2:] = False
        ids = [torch.randint(V, (rows, size)) for size in (length, asked)]
        return torch.randn(rows, 3, 8, 8), *ids, mask

    auto = torch.export.Dim.AUTO
    given = [example(2, 5, 4), example(3, 7, 6)]
    assert_onnx_equals_eager(net, given[0], given, ({0: auto}, *[{0: auto, 1: auto}] * 3), tmp_path)
