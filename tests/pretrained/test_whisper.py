"""Random Whispers: ours equal transformers' in every layer; mismatches raise; masked padding has no effect."""

import pytest
import torch
from public import ACTIVATIONS, SHAPES, assert_public_size, assert_refused, both_sides, load, shape
from public_seq2seq import compared, sharpened
from safetensors.torch import load_file

from mmattn import load_pretrained
from mmattn.backbones.whisper import Whisper
from mmattn.pretrained.whisper import convert_whisper
from tests.conftest import refused

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def model(seed, **config):
    """A random Whisper of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    even = sizes["num_attention_heads"] * 2 * draw.choice([1, 2, 4])  # required by its sinusoids
    options = both_sides(sizes) | {
        "d_model": max(even, 4),
        "decoder_layers": draw.choice([1, 2, 3]),
        "activation_function": draw.choice(ACTIVATIONS),
        "vocab_size": draw.choice([11, 30, 57]),
        "num_mel_bins": draw.choice([5, 8, 20]),
        "max_source_positions": draw.choice([7, 12, 25]),
        "max_target_positions": draw.choice([16, 24, 40]),
        "tie_word_embeddings": draw.random() < 0.7,
        "pad_token_id": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
    }
    config = transformers.WhisperConfig(**options | config)
    return draw, sharpened(transformers.WhisperForConditionalGeneration(config), seed)


def sound(config, rows, seed):
    """Log-mel frames (B, T, M): the second row is padded with silence, as by the feature extractor."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 2 * config.max_source_positions, config.num_mel_bins, generator=generator)
    features[1:2, config.max_source_positions :] = -1.5
    return features.double()


def compare(seed, folder):
    """Loads a random model from its folder; the difference of ours."""
    draw, theirs = model(seed)
    theirs.save_pretrained(folder)
    config, ours = theirs.config, load(folder)
    assert (ours.output.weight is ours.target_embedding.weight) == config.tie_word_embeddings
    features = sound(config, 3, seed)
    generator = torch.Generator().manual_seed(seed)
    length = draw.randint(2, config.max_target_positions)
    target = torch.randint(config.vocab_size, (3, length), generator=generator)
    target[2, draw.randint(1, length) :] = config.pad_token_id
    return compared(theirs, ours, (features, None, target), input_features=features.mT)


@pytest.fixture
def whisper(tmp_path):
    """A folder with a random tied Whisper, and the model."""
    seed = next(seed for seed in SHAPES if model(seed)[1].config.tie_word_embeddings)
    theirs = model(seed)[1]
    theirs.save_pretrained(tmp_path)
    return tmp_path, theirs


def check(folder, theirs):
    features = sound(theirs.config, 2, 0)
    target = torch.tensor([[3, 4, 5], [3, 1, 1]])
    found = compared(theirs, load(folder), (features, None, target), input_features=features.mT)
    assert found.holds, found


def test_old_checkpoint_names(whisper):
    """The tied embedding under both names, and a pickle."""
    folder, theirs = whisper
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"].clone()
    torch.save(state, folder / "pytorch_model.bin")
    check(folder, theirs)


def test_without_a_head(whisper):
    folder, theirs = whisper
    theirs.model.save_pretrained(folder)
    assert "decoder.embed_tokens.weight" in load_file(folder / "model.safetensors")
    check(folder, theirs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scale_embedding": True}, "scale_embedding=True; only False is supported"),
        ({"decoder_ffn_dim": 99}, "decoder_ffn_dim=99; only .* is supported"),
        ({"activation_function": "gelu_10"}, "activation 'gelu_10' is not supported"),
        ({"encoder_layers": 9}, r"missing keys: encoder\.layers\."),
        ({"num_mel_bins": 9}, r"'model\.encoder\.conv1\.weight' \(conv1\.weight\) is .*, should be \(.*, 9, 3\)"),
        ({"max_source_positions": 77}, r"'model\.encoder\.embed_positions\.weight' \(positions\.weight\) is"),
    ],
)
def test_mismatched_config_raises(whisper, config, message):
    assert_refused(whisper[0], message, **config)


def test_unknown_and_missing_keys_raise(whisper):
    folder, _ = whisper
    state = load_file(folder / "model.safetensors")
    name = "model.decoder.adapter.weight"
    assert_refused(folder, f"unknown key: {name}", state | {name: torch.zeros(2)})
    bare = {k: v for k, v in state.items() if "conv2" not in k}
    assert_refused(folder, r"missing keys: conv2\.bias, conv2\.weight", bare)


def test_longer_than_the_window_raises(whisper):
    folder, theirs = whisper
    frames, config = 2 * theirs.config.max_source_positions, theirs.config
    longer = torch.zeros(1, frames + 2, config.num_mel_bins, dtype=torch.float64)
    refused("is longer than max_len", load(folder).encode, longer)


@pytest.mark.parametrize("real", [1, 4, 7, 12])
def test_masked_padding_invariance(real):
    """Without a counterpart in transformers: a single short recording equals itself padded in a batch."""
    ours = Whisper(20, 16, 2, 2, num_mels=6, max_frames=12, max_len=9).double().eval()
    features, target = torch.randn(2, 12, 6).double(), torch.randint(20, (2, 5))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, real:] = False
    with torch.no_grad():
        found = ours(features, mask, target)
        alone = ours(features[1:, :real], None, target[1:])
        whole = ours(features[:1], None, target[:1])
    torch.testing.assert_close(found[1:], alone, atol=1e-10, rtol=0)
    torch.testing.assert_close(found[:1], whole, atol=1e-10, rtol=0)


def test_initial_positions_equal_whisper():
    ours = Whisper(20, 24, 1, 2, num_mels=6, max_frames=24)
    config = transformers.WhisperConfig(vocab_size=60000, d_model=24, max_source_positions=12)
    theirs = transformers.WhisperModel(config)
    torch.testing.assert_close(ours.positions.weight, theirs.encoder.embed_positions.weight, atol=1e-6, rtol=0)
    assert not ours.positions.weight.requires_grad


@pytest.mark.parametrize(
    ("millions", "d_model", "layers", "heads", "options"),  # parameters in millions, from OpenAI's table
    [
        (39, 384, 4, 6, {}),  # tiny
        (39, 384, 4, 6, {"vocab_size": 51864}),  # tiny.en
        (74, 512, 6, 8, {}),  # base
        (244, 768, 12, 12, {}),  # small
        (769, 1024, 24, 16, {}),  # medium
        (1550, 1280, 32, 20, {}),  # large, large-v2
        (1550, 1280, 32, 20, {"num_mel_bins": 128, "vocab_size": 51866}),  # large-v3
        (809, 1280, 32, 20, {"num_mel_bins": 128, "vocab_size": 51866, "decoder_layers": 4}),  # large-v3-turbo
    ],
)
def test_public_sizes(millions, d_model, layers, heads, options):
    """Names and shapes of OpenAI's models without their weights."""
    sizes = {"num_attention_heads": heads, "intermediate_size": 4 * d_model, "num_hidden_layers": layers}
    options = both_sides(sizes) | {"decoder_layers": layers, "d_model": d_model} | options
    config, kind = transformers.WhisperConfig(**options), transformers.WhisperForConditionalGeneration
    assert_public_size(millions, config, kind, convert_whisper, Whisper, without="proj_out.weight")  # tied: not saved


def test_single_precision(whisper):
    folder, theirs = whisper
    features, target = sound(theirs.config, 2, 0).float(), torch.tensor([[3, 4, 5], [3, 1, 1]])
    ours, theirs = load_pretrained(folder), theirs.float()
    with torch.no_grad():
        expected = theirs(input_features=features.mT, decoder_input_ids=target).logits
        torch.testing.assert_close(ours(features, None, target), expected, atol=1e-4, rtol=1e-4)


def test_trains(whisper):
    ours = load(whisper[0]).train()
    features = sound(whisper[1].config, 2, 0)
    ours(features, None, torch.tensor([[3, 4, 5], [3, 1, 1]])).square().sum().backward()
    assert [name for name, parameter in ours.named_parameters() if parameter.grad is None] == ["positions.weight"]
