"""Random GITs: ours equal transformers' in every layer and in the texts that they generate."""

import json

import pytest
import torch
from public import SHAPES, TOLERANCE, assert_public_size, assert_refused, difference, load, rewrite, shape
from public_image_text import (
    END,
    PAD,
    START,
    WAYS,
    V,
    assert_cached_equals_full,
    assert_captured_equals_fused,
    assert_generated,
    assert_rows,
    assert_trains,
    recorded,
)
from public_seq2seq import sharpened
from safetensors.torch import load_file

from mmattn import load_generation_config, load_pretrained
from mmattn.backbones.git import GitDecoder
from mmattn.backbones.image_text import ImageToText
from mmattn.pretrained.git import convert_git
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

IMAGE = "git.image_encoder.vision_model"
OURS = ["image.encoder.layers", "text.decoder.layers"]
THEIRS = [f"{IMAGE}.encoder.layers", "git.encoder.layer"]


def model(seed, **text):
    """A random GIT of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    patch = draw.choice([2, 3, 4])
    vision = shape(seed + 100)[1] | {
        "image_size": patch * draw.choice([1, 2, 3]) + draw.choice([0, 1]),
        "patch_size": patch,
        "num_channels": draw.choice([1, 3]),
        "layer_norm_eps": draw.choice([1e-5, 1e-3]),
    }
    if draw.random() < 0.5:
        del vision["hidden_act"]  # its default is another than the text's
    text = sizes | {
        "vocab_size": V,
        "max_position_embeddings": draw.choice([12, 30]),
        "layer_norm_eps": draw.choice([1e-12, 1e-3]),
        "tie_word_embeddings": draw.random() < 0.3,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": PAD,
        **text,
    }
    theirs = sharpened(transformers.GitForCausalLM(transformers.GitConfig(vision_config=vision, **text)), seed)
    theirs.config.vision_config._attn_implementation = "sdpa"  # the default has softmaxes in float32
    return draw, theirs


def images(theirs, rows=3, seed=0):
    vision = theirs.config.vision_config
    size = (rows, vision.num_channels, vision.image_size, vision.image_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def text(length, rows=3, seed=0):
    return torch.randint(4, V, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
def test_parity(seed, tmp_path):
    draw, theirs = model(seed)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert (ours.text.output.weight is ours.text.embedding.weight) == theirs.config.tie_word_embeddings
    pixels, target = images(theirs, 2, seed), text(draw.randint(2, 9), 2, seed)
    mask = torch.ones_like(target)
    mask[1, draw.randint(1, target.shape[1]) :] = 0  # padding at the right
    logits, states = recorded(ours, OURS, lambda: ours(pixels, target))
    expected, layers = recorded(
        theirs, THEIRS, lambda: theirs(pixel_values=pixels, input_ids=target, attention_mask=mask).logits
    )
    patches = layers[0].shape[1]
    for row in range(2):
        size = int(mask[row].sum())
        words = expected[row : row + 1, patches : patches + size]
        assert_rows([logits, *states], [words, *(state[row : row + 1, : patches + size] for state in layers)], row)


def test_shapes_include_every_kind():
    configs = [model(seed)[1].config for seed in SHAPES]
    assert {config.tie_word_embeddings for config in configs} == {True, False}
    assert {config.vision_config.hidden_size == config.hidden_size for config in configs} == {True, False}
    assert "quick_gelu" in {config.vision_config.hidden_act for config in configs}


@pytest.fixture
def git(tmp_path):
    """A folder with a random GIT, and the model."""
    theirs = model(4, tie_word_embeddings=False)[1]
    theirs.save_pretrained(tmp_path)
    return tmp_path, theirs


def test_single_precision(git):
    folder, theirs = git
    pixels, target = images(theirs), text(5)
    with torch.no_grad():
        expected, found = load(folder)(pixels, target), load_pretrained(folder)(pixels.float(), target)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_cached_equals_full(git):
    assert_cached_equals_full(load(git[0]), text(6), images(git[1]))


def test_padded_memory_equals_a_shorter_one():
    """At once and step by step, with texts padded at the left or not."""
    decoder, memory, ids = GitDecoder(V, 16, 2, 4).double().eval(), torch.randn(2, 5, 16).double(), text(4, 2)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with torch.no_grad():
        expected = [decoder(ids[n : n + 1], memory[n : n + 1, : mask[n].sum()])[0] for n in range(2)]
        assert difference(decoder(ids, memory, memory_mask=mask), expected) <= TOLERANCE
        state = decoder.start_from(memory, mask)
        assert difference(decoder.step(ids[:, :3], state), [rows[2] for rows in expected]) <= TOLERANCE
        state.select(torch.tensor([[1, 1]]))
        assert difference(decoder.step(ids[[1, 1], 3:], state), [expected[1][3]] * 2) <= TOLERANCE
        shorter = decoder(ids[1:, 2:], memory[1:, :3])[0, -1]
        padded = torch.tensor([[True] * 4, [False] * 2 + [True] * 2])
        state = decoder.start_from(memory, mask, prompt_mask=padded)
        assert difference(decoder.step(ids, state), [expected[0][3], shorter]) <= TOLERANCE


def test_maps_equal_transformers(git):
    folder, theirs = git
    pixels, target = images(theirs), text(6)
    maps = assert_captured_equals_fused(load(folder), pixels, target)
    found = theirs(pixel_values=pixels, input_ids=target, output_attentions=True).attentions
    own = [maps[f"text.decoder.layers.{n}.attention"][-1] for n in range(theirs.config.num_hidden_layers)]
    assert difference(own, [attended.detach() for attended in found]) <= TOLERANCE


def test_every_parameter_trains(git):
    assert_trains(git[0], images(git[1]), text(5))


def test_kernel_by_name(git):
    ours = load(git[0], attention="linear", decoder_attention={"kind": "sliding_window", "window": 4})
    kinds = {type(module.kernel).__name__ for module in ours.modules() if hasattr(module, "kernel")}
    assert kinds == {"Linear", "SlidingWindow"}, kinds
    refused("cross_attention: the decoder 'git' has none", load, git[0], cross_attention="hard")


def test_other_image_sizes_interpolate_positions(git):
    folder, theirs = git
    vision, target = theirs.config.vision_config, text(3, 2)
    side = 5 * vision.patch_size
    pixels = torch.randn(2, vision.num_channels, side, side, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, input_ids=target, interpolate_pos_encoding=True).logits[:, 26:]
        assert difference([load(folder, resize_positions="bicubic")(pixels, target)], [expected]) <= TOLERANCE
    refused("where the positions are for", load(folder), pixels, target)


def varied(seed):
    """A random model that generates texts of several lengths, which depend on the image and the place."""
    options = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32}
    _, theirs = model(seed, hidden_act="gelu", max_position_embeddings=40, tie_word_embeddings=False, **options)
    with torch.no_grad():
        theirs.git.embeddings.position_embeddings.weight.mul_(3)
        for layer in theirs.git.encoder.layer:
            layer.attention.self.query.weight.mul_(4)
        theirs.output.weight.mul_(2)
        theirs.output.bias[END] += 2.5
    return theirs


@pytest.mark.parametrize("way", slow_but_first(WAYS, lambda way: way.startswith("beams")))
def test_ids_equal_transformers(way, tmp_path):
    lengths = set()
    for seed in (2, 5, 18):
        theirs = varied(seed)
        theirs.generation_config.update(**WAYS[way])
        theirs.save_pretrained(tmp_path)
        ours, config = load(tmp_path), load_generation_config(tmp_path)
        pixels = images(theirs, 4, seed)
        found = ours.generate(pixels, config)
        for row in range(4):
            expected = theirs.generate(pixel_values=pixels[row : row + 1])
            lengths.add(assert_generated(found, row, expected))
    assert len(lengths) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_equal_transformers(beams, tmp_path):
    """Texts that begin with given words, such as a question, also of several lengths."""
    theirs = varied(18)
    theirs.save_pretrained(tmp_path)
    ours, pixels = load(tmp_path), images(theirs)
    config = load_generation_config(tmp_path)
    config = type(config)(**vars(config) | {"max_new_tokens": 8, "num_beams": beams})
    words = torch.tensor([[START, 5, 6, 7], [START, 9, 4, 8], [PAD, START, 8, 12]])
    mixed = ours.generate(pixels, config, prompt=words, prompt_mask=words != PAD)  # padded at the left
    for row, given in enumerate(words):
        prompt = given[given != PAD][None]
        image = pixels[row : row + 1]
        expected = theirs.generate(pixel_values=image, input_ids=prompt, max_new_tokens=8, num_beams=beams)
        assert mixed.tokens()[row] == expected[:, prompt.shape[1] :].tolist()
        assert ours.generate(image, config, prompt=prompt).tokens()[0] == mixed.tokens()[row]


def test_options_from_the_config(git):
    """Older folders have generation options in config.json, or none."""
    folder, _ = git
    (folder / "generation_config.json").unlink()
    rewrite(folder, num_beams=3, max_length=30)
    config = load_generation_config(folder)
    assert (config.start, config.eos, config.pad, config.num_beams, config.max_length) == (START, (END,), PAD, 3, 30)
    values = json.loads((folder / "config.json").read_text())
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        del values[key]
    (folder / "config.json").write_text(json.dumps(values))
    config = load_generation_config(folder)
    assert (config.start, config.eos, config.pad) == (101, (102,), 0)


def test_missing_and_unknown_keys_raise(git):
    folder, _ = git
    state = load_file(folder / "model.safetensors")
    for key, message in (
        ("output.bias", r"missing key: text\.output\.bias"),
        ("output.weight", r"missing key: text\.output\.weight"),
        ("git.embeddings.word_embeddings.weight", "missing key: text.embedding.weight"),
        ("git.visual_projection.visual_projection.1.weight", "missing key: project.1.weight"),
        (f"{IMAGE}.pre_layrnorm.bias", "missing key: image.embedded_norm.bias"),
        (f"{IMAGE}.embeddings.class_embedding", "positions for"),
        (f"{IMAGE}.embeddings.position_embedding.weight", "no position embeddings"),
    ):
        assert_refused(folder, message, {name: tensor for name, tensor in state.items() if name != key})
    assert_refused(folder, r"unknown key: adapter\.w", state | {"adapter.w": torch.zeros(2)})
    buffers = {f"{part}.embeddings.position_ids": torch.arange(5)[None] for part in ("git", IMAGE)}
    rewrite(folder, state | buffers)  # of older files
    load(folder)
    assert_refused(folder, "num_image_with_embedding=6; only None", state, num_image_with_embedding=6)


@pytest.mark.slow
def test_public_size():
    config = transformers.GitConfig(tie_word_embeddings=True)  # tensors without values cannot be compared
    kinds = transformers.GitForCausalLM, convert_git, ImageToText
    assert_public_size(153.2, config, *kinds, without="output.weight")
