"""Random Marians: ours equal transformers' in every layer; one vocabulary or two, tied and untied."""

import math

import pytest
import torch
from public import ACTIVATIONS, SHAPES, assert_refused, both_sides, load, rewrite, shape
from public_seq2seq import parity, saved, sharpened
from safetensors.torch import load_file

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def sinusoids(length, size):
    """As in the paper, in full precision, sines before cosines."""
    rows = [[p / 10000 ** (2 * i / size) for i in range(size // 2)] for p in range(length)]
    return torch.tensor([[*map(math.sin, angles), *map(math.cos, angles)] for angles in rows], dtype=torch.float64)


def exact(theirs):
    """transformers' sinusoidal table is rounded to single precision, which exceeds a tolerance of 1e-8."""
    with torch.no_grad():
        for stack in (theirs.model.encoder, theirs.model.decoder):
            stack.embed_positions.weight.copy_(sinusoids(*stack.embed_positions.weight.shape))
    return theirs


def model(seed, **config):
    """A random Marian of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    shared, vocab = draw.random() < 0.6, draw.choice([11, 30, 57])
    options = both_sides(sizes) | {
        "d_model": 2 * sizes["hidden_size"],
        "decoder_layers": draw.choice([1, 2, 3]),
        "activation_function": draw.choice([*ACTIVATIONS, "swish"]),
        "scale_embedding": draw.random() < 0.5,
        "share_encoder_decoder_embeddings": shared,
        "tie_word_embeddings": draw.random() < 0.7,
        "vocab_size": vocab,
        "decoder_vocab_size": vocab if shared else draw.choice([13, 31, vocab]),
        "max_position_embeddings": draw.choice([16, 24, 40]),
        "pad_token_id": draw.choice([0, 3, 5]),
        "decoder_start_token_id": 2,
    }
    options = options | config
    return draw, exact(sharpened(transformers.MarianMTModel(transformers.MarianConfig(**options)), seed))


def compare(seed, folder):
    """Loads a random model from its folder; the difference of ours."""
    draw, theirs = model(seed)
    theirs.save_pretrained(folder)
    config, ours = theirs.config, load(folder)
    assert (ours.output.weight is ours.target_embedding.weight) == config.tie_word_embeddings
    shared = config.tie_word_embeddings and config.share_encoder_decoder_embeddings
    assert (ours.target_embedding is ours.embedding) == shared
    vocabularies = (config.vocab_size, config.decoder_vocab_size)
    return parity(theirs, ours, draw, seed, vocabularies, config.max_position_embeddings)


def test_shapes_include_all_tying_variants():
    configs = [model(seed)[1].config for seed in SHAPES]
    ways = {(config.tie_word_embeddings, config.share_encoder_decoder_embeddings) for config in configs}
    assert len(ways) == 4
    assert any(config.vocab_size != config.decoder_vocab_size for config in configs)


@pytest.fixture
def marian(tmp_path):
    draw, theirs = model(0, share_encoder_decoder_embeddings=True, tie_word_embeddings=True, decoder_vocab_size=None)
    return saved(theirs, tmp_path, draw, 0, 9)


def test_old_checkpoint_names(marian):
    """Positions among the tensors, every tied embedding under each of its names, a config without newer keys."""
    folder, theirs, check = marian
    state = load_file(folder / "model.safetensors")
    for side in ("encoder", "decoder"):
        state[f"model.{side}.embed_tokens.weight"] = state["model.shared.weight"].clone()
        state[f"model.{side}.embed_positions.weight"] = sinusoids(12, theirs.config.d_model).float()
    state["lm_head.weight"] = state["model.shared.weight"].clone()
    old = {"decoder_vocab_size": None, "share_encoder_decoder_embeddings": None, "tie_word_embeddings": None}
    rewrite(folder, state, **old, static_position_embeddings=True, normalize_embedding=False, normalize_before=False)
    check()


def test_separate_embeddings_are_not_merged(tmp_path):
    _, theirs = model(0, share_encoder_decoder_embeddings=False, tie_word_embeddings=True, decoder_vocab_size=None)
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        bare = {k: v for k, v in state.items() if name not in k}
        assert_refused(tmp_path, f"missing {name}, and the tables that config.json ties it to", bare)


def test_other_positions_raise(marian):
    folder, theirs, _ = marian
    table = sinusoids(12, theirs.config.d_model)
    table[3, 0] += 0.01
    name = "model.encoder.embed_positions.weight"
    state = load_file(folder / "model.safetensors") | {name: table}
    assert_refused(folder, rf"'{name}' is not the table of sinusoids", state)


def test_mismatched_config_raises(marian):
    folder, _, _ = marian
    state = load_file(folder / "model.safetensors")
    name = "model.encoder.layernorm_embedding.weight"
    assert_refused(folder, f"unknown key: {name}", state | {name: torch.zeros(2)})
    assert_refused(folder, "normalize_embedding=True; only False is supported", state, normalize_embedding=True)
