"""Random pairs of ViT or DeiT and GPT-2: ours equal transformers' in logits, states and generated texts."""

import pytest
import torch
from public import SHAPES, TOLERANCE, assert_refused, difference, load, shape
from public_image_text import END, PAD, START, V, assert_cached_equals_full, assert_trains
from public_seq2seq import sharpened

from mmattn import Mask, load_generation_config
from tests.conftest import slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def model(seed):
    """A random pair of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    other = shape(seed + 100)[1]
    image = sizes | {"image_size": 8, "patch_size": 4, "qkv_bias": draw.random() < 0.7}
    text = {
        "n_embd": other["hidden_size"],
        "n_head": other["num_attention_heads"],
        "n_layer": other["num_hidden_layers"],
        "n_inner": draw.choice([None, 17]),
        "n_positions": 40,
        "vocab_size": V,
        "activation_function": draw.choice(["gelu_new", "relu"]),
        "tie_word_embeddings": draw.random() < 0.7,
    }
    encoder = getattr(transformers, draw.choice(["ViTConfig", "DeiTConfig"]))(**image)
    decoder = transformers.GPT2Config(**text, is_decoder=True, add_cross_attention=True, pad_token_id=PAD)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = START, END, PAD
    return draw, sharpened(transformers.VisionEncoderDecoderModel(config), seed)


@torch.no_grad()
@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_parity(seed, tmp_path):
    draw, theirs = model(seed)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    pixels = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    target = torch.randint(V, (2, draw.randint(2, 9)), generator=torch.Generator().manual_seed(seed))
    expected = theirs(pixel_values=pixels, decoder_input_ids=target, output_hidden_states=True)
    assert difference([ours(pixels, target)], [expected.logits]) <= TOLERANCE
    states = ours.text.decoder(ours.text.embed_target(target), ours.encode(pixels), Mask(is_causal=True))
    assert difference([states], expected.decoder_hidden_states[-1:]) <= TOLERANCE


@pytest.mark.parametrize("way", slow_but_first([{"max_new_tokens": 10}, {"max_new_tokens": 10, "num_beams": 3}]))
def test_ids_equal_transformers(way, tmp_path):
    _, theirs = model(5)
    theirs.generation_config.update(**way)
    theirs.save_pretrained(tmp_path)
    ours, config = load(tmp_path), load_generation_config(tmp_path)
    pixels = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    expected = theirs.generate(pixel_values=pixels)[:, 1:]
    found = ours.generate(pixels, config)
    for ids, length, row in zip(found.ids.flatten(0, 1), found.lengths.flatten(), expected, strict=True):
        assert ids[:length].tolist() == row[:length].tolist()


def test_decoding_training_and_errors(tmp_path):
    _, theirs = model(1)
    theirs.save_pretrained(tmp_path)
    pixels, target = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.randint(V, (3, 6))
    assert_cached_equals_full(load(tmp_path), target, pixels)
    assert_trains(tmp_path, pixels, target)
    decoder = theirs.config.decoder.to_dict() | {"add_cross_attention": False}
    assert_refused(tmp_path, "add_cross_attention=False; only True", decoder=decoder)
