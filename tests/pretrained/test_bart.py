"""Random BARTs: ours equal transformers' in every layer, with padding in the batch, tied and untied."""

import pytest
import torch
from public import ACTIVATIONS, SHAPES, assert_refused, both_sides, load, rewrite, shape
from public_seq2seq import parity, saved, sharpened
from safetensors.torch import load_file

from tests.conftest import refused

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def model(seed, **config):
    """A random BART of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    options = both_sides(sizes) | {
        "d_model": sizes["hidden_size"],
        "decoder_layers": draw.choice([1, 2, 3]),
        "activation_function": draw.choice([*ACTIVATIONS, "swish"]),
        "scale_embedding": draw.random() < 0.5,
        "tie_word_embeddings": draw.random() < 0.7,
        "vocab_size": draw.choice([11, 30, 57]),
        "max_position_embeddings": draw.choice([16, 24, 40]),
        "pad_token_id": draw.choice([0, 1, 3]),
    }
    config = transformers.BartConfig(**options | config)
    return draw, sharpened(transformers.BartForConditionalGeneration(config), seed)


def compare(seed, folder):
    """Loads a random model from its folder; the difference of ours."""
    draw, theirs = model(seed)
    theirs.save_pretrained(folder)
    config, ours = theirs.config, load(folder)
    assert (ours.output.weight is ours.target_embedding.weight is ours.embedding.weight) == config.tie_word_embeddings
    return parity(theirs, ours, draw, seed, (config.vocab_size,) * 2, config.max_position_embeddings)


def test_shapes_include_tied_and_untied():
    assert {model(seed)[1].config.tie_word_embeddings for seed in SHAPES} == {True, False}


@pytest.fixture
def bart(tmp_path):
    """A folder with a random tied BART, the model, and a function that compares the loaded model with it."""
    seed = next(seed for seed in SHAPES if model(seed)[1].config.tie_word_embeddings)
    draw, theirs = model(seed)
    return saved(theirs, tmp_path, draw, seed, 9)


def test_old_checkpoint_names(bart):
    """Every tied embedding under each of its names, fairseq's version, no logit biases, a pickle."""
    folder, theirs, check = bart
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shared = state["model.shared.weight"]
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        state[name] = shared.clone()
    state["model.encoder.version"] = torch.zeros(1)
    del state["final_logits_bias"]
    torch.save(state, folder / "pytorch_model.bin")
    theirs.final_logits_bias.zero_()
    check()


@pytest.mark.parametrize("kept", ["model.encoder.embed_tokens.weight", "lm_head.weight"])
def test_tied_embedding_under_any_name(bart, kept):
    folder, _, check = bart
    state = load_file(folder / "model.safetensors")
    state[kept] = state.pop("model.shared.weight")
    rewrite(folder, state)
    check()


def test_without_a_head(bart):
    """BartModel is saved without prefix, head and logit biases: its output layer is its embedding."""
    folder, theirs, check = bart
    theirs.model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    assert "shared.weight" in state
    assert "final_logits_bias" not in state
    theirs.final_logits_bias.zero_()
    check()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"normalize_before": True}, "normalize_before=True; only False is supported"),
        ({"static_position_embeddings": True}, "static_position_embeddings=True; only False is supported"),
        ({"decoder_ffn_dim": 99}, "decoder_ffn_dim=99; only .* is supported"),
        ({"activation_function": "gelu_10"}, "activation 'gelu_10' is not supported"),
        ({"encoder_layers": 9}, r"missing keys: encoder\.layers\."),
        ({"decoder_layers": 0}, r"unexpected keys: model\.decoder\.layers\.0"),
        ({"vocab_size": 12}, r"'model\.shared\.weight' \(embedding\.weight\) is .*, should be \(12, "),
        ({"max_position_embeddings": 77}, r"'model\.encoder\.embed_positions\.weight' \(positions\.weight\) is"),
        ({"tie_word_embeddings": False}, r"missing lm_head\.weight, and the tables that config\.json"),
    ],
)
def test_mismatched_config_raises(bart, config, message):
    assert_refused(bart[0], message, **config)


def test_unknown_and_missing_keys_raise(bart):
    folder, _, _ = bart
    state = load_file(folder / "model.safetensors")
    more = state | {"model.decoder.adapter.weight": torch.zeros(2)}
    assert_refused(folder, r"unknown key: model\.decoder\.adapter\.weight", more)
    bare = {k: v for k, v in state.items() if "decoder.layernorm_embedding" not in k}
    assert_refused(folder, r"missing keys: target_embedding_norm\.bias, target_embedding_norm\.wei", bare)
    bare = {k: v for k, v in state.items() if "shared" not in k}
    assert_refused(folder, r"missing encoder\.embed_tokens\.weight, and the tables that", bare)


def test_longer_than_max_positions_raises(bart):
    folder, theirs, _ = bart
    room = theirs.config.max_position_embeddings
    ids = torch.ones(1, room + 1, dtype=torch.long)
    refused(f"a sequence of {room + 1} tokens is longer than max_len={room}", load(folder).encode, ids)
