"""Random wav2vec 2.0 and HuBERT models with CTC: ours equal transformers' in every layer, padding in the batch."""

import pytest
import torch
from public import ACTIVATIONS, SHAPES, TOLERANCE, assert_public_size, assert_refused, difference, load, rewrite, shape
from safetensors.torch import load_file

from mmattn.backbones.wav2vec2 import Wav2Vec2
from mmattn.pretrained.wav2vec2 import convert_wav2vec2
from tests.conftest import refused, slow_but_first

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

CLASSES = {
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2ForCTC),
    "hubert": (transformers.HubertConfig, transformers.HubertForCTC),
}


def model(seed, family="wav2vec2", **config):
    """A random transformers model, like the base models for even seeds, the large for odd ones; and the generator."""
    draw, sizes = shape(seed)
    layers = draw.choice([1, 2, 3])
    large = seed % 2 == 1
    options = sizes | {
        "vocab_size": draw.choice([5, 11, 32]),
        "conv_dim": [draw.choice([4, 6, 9]) for _ in range(layers)],
        "conv_kernel": [draw.choice([2, 3, 10]) for _ in range(layers)],
        "conv_stride": [draw.choice([1, 2, 5]) for _ in range(layers)],
        "conv_bias": large,
        "feat_extract_norm": "layer" if large else "group",
        "do_stable_layer_norm": large if draw.random() < 0.7 else not large,
        "feat_extract_activation": draw.choice(ACTIVATIONS),
        "num_conv_pos_embeddings": draw.choice([3, 4, 8, 17]),
        "num_conv_pos_embedding_groups": sizes["num_attention_heads"],
        "layer_norm_eps": draw.choice([1e-5, 1e-3]),
    }
    if family == "hubert":
        options |= {"feat_proj_layer_norm": draw.random() < 0.5, "conv_pos_batch_norm": seed % 5 == 0}
    made, kind = CLASSES[family]
    theirs = kind(made(**options | config)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.add_(drawn.abs() if "running_var" in name else 0.3 * drawn)
    return draw, theirs


def wave(draw, seed):
    """Waves (B, n), zero in the padding, and the mask: one full, one cut anywhere, one of a few frames."""
    n = draw.randint(150, 400)
    mask = torch.ones(3, n, dtype=torch.bool)
    mask[1, draw.randint(100, n) :] = False
    mask[2, 100:] = False
    drawn = torch.randn(3, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.masked_fill(~mask, 0.0), mask


def distance(theirs, ours, samples, mask):
    """The largest difference over all layers and logits in real frames."""
    with torch.no_grad():
        expected = theirs(samples, attention_mask=None if mask is None else mask.long(), output_hidden_states=True)
        states = ours.hidden_states(samples, mask)
        logits, real = ours.logits(samples, mask)
    real = torch.ones(logits.shape[:2], dtype=torch.bool) if real is None else real
    wanted = [*expected.hidden_states, expected.logits]
    return difference([each[real] for each in (*states, logits)], [each[real] for each in wanted])


@pytest.mark.parametrize("seed", slow_but_first(SHAPES))
@pytest.mark.parametrize("family", CLASSES)
def test_parity(family, seed, tmp_path):
    draw, theirs = model(seed, family)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    samples, mask = wave(draw, seed)
    for given in (mask, None):
        assert distance(theirs, ours, samples, given) <= TOLERANCE
    real = ours(samples, mask).mask.sum(1)
    assert real.tolist() == theirs._get_feat_extract_output_lengths(mask.sum(1)).tolist()
    assert int(real[2]) < int(real[0])


def test_shapes_include_every_variant():
    configs = [model(seed, "hubert")[1].config for seed in SHAPES]
    for name in ("feat_extract_norm", "do_stable_layer_norm", "feat_proj_layer_norm", "conv_pos_batch_norm"):
        assert len({getattr(config, name) for config in configs}) == 2, name
    assert len({(c.feat_extract_norm, c.do_stable_layer_norm) for c in configs}) == 4


def names_of(state, old):
    """The state with the old or new names of weight norm."""
    for number, name in enumerate(("weight_g", "weight_v")):
        names = (f"conv.parametrizations.weight.original{number}", f"conv.{name}")
        before, after = names if old else reversed(names)
        state = {key.replace(before, after): tensor for key, tensor in state.items()}
    return state


@pytest.fixture(params=["wav2vec2", "hubert"])
def folder(request, tmp_path):
    """A folder with a random large model, and the model."""
    theirs = model(1, request.param)[1]
    theirs.save_pretrained(tmp_path)
    return tmp_path, theirs


@pytest.mark.parametrize("old", [True, False])
def test_both_weight_norm_names(folder, old):
    path, theirs = folder
    state = names_of(load_file(path / "model.safetensors"), old)
    assert any(("weight_g" if old else "original0") in name for name in state)
    rewrite(path, state)
    samples, mask = wave(model(1)[0], 1)
    assert distance(theirs, load(path), samples, mask) <= TOLERANCE


def test_without_a_head_and_after_pretraining(folder):
    path, theirs = folder
    body = getattr(theirs, theirs.config.model_type)
    body.save_pretrained(path)
    ours = load(path)
    samples, mask = wave(model(1)[0], 1)
    with torch.no_grad():
        found, real = ours(samples, mask)
        expected = body(samples, attention_mask=mask.long()).last_hidden_state
    assert difference([found[real]], [expected[real]]) <= TOLERANCE
    refused("no CTC head", ours.logits, samples)


def test_quantizer_is_dropped(tmp_path):
    config = model(1)[1].config
    config.codevector_dim = config.proj_codevector_dim = 8
    transformers.Wav2Vec2ForPreTraining(config).save_pretrained(tmp_path)
    assert any("quantizer" in name for name in load_file(tmp_path / "model.safetensors"))
    assert load(tmp_path).head is None


def test_padding_invariance_with_layer_norms():
    """A single clip equals itself padded, since statistics are not computed over time."""
    small = {"conv_dims": (6, 8), "conv_kernels": (10, 3), "conv_strides": (5, 2), "position_kernel": 4}
    ours = Wav2Vec2(16, 2, 2, vocab_size=7, conv_norm="layer", position_groups=2, norm_first=True, **small)
    ours = ours.double().eval()
    samples, mask = wave(model(0)[0], 0)
    with torch.no_grad():
        found, real = ours.logits(samples, mask)
        for row in range(3):
            alone, _ = ours.logits(samples[row : row + 1, mask[row]])
            torch.testing.assert_close(found[row, real[row]], alone[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "gelu_10"}, "activation 'gelu_10' is not supported"),
        ({"feat_extract_norm": "batch"}, "unknown conv_norm 'batch'; expected one of: group, layer"),
        ({"conv_kernel": [3] * 4}, "must be as many, at least one; found"),  # the model's maximum is 3
        ({"add_adapter": True}, "add_adapter=True; only False is supported"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim=16; only None is supported"),
        ({"num_hidden_layers": 9}, r"missing keys: encoder\.layers\."),
        ({"vocab_size": 77}, r"'lm_head\.weight' \(head\.weight\) is .*, should be \(77, "),
    ],
)
def test_mismatched_config_raises(folder, config, message):
    assert_refused(folder[0], message, **config)


def test_unknown_and_incomplete_keys_raise(folder):
    path, _ = folder
    state = load_file(path / "model.safetensors")
    assert_refused(path, r"unknown key: lm_head\.extra", state | {"lm_head.extra": torch.zeros(2)})
    half = {k: v for k, v in state.items() if "weight_v" not in k and "original1" not in k}
    assert_refused(path, "is half of a weight norm; the other half is missing", half)


def test_too_short_input_raises(folder):
    ours = load(folder[0])
    least = ours.receptive_field
    assert ours(torch.randn(1, least).double()).states.shape[1] == 1
    refused(f"{least - 1} samples are too short: one frame takes {least}", ours, torch.randn(1, least - 1).double())


def test_frame_counts_of_public_models():
    ours = Wav2Vec2(16, 1, 1, conv_dims=(2,) * 7, position_groups=1)
    assert (ours.hop, ours.receptive_field) == (320, 400)
    assert ours.frames(torch.tensor([0, 399, 400, 719, 720, 16000])).tolist() == [0, 0, 1, 1, 2, 49]


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LARGE |= {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}


@pytest.mark.parametrize(
    ("family", "millions", "options"),
    [
        ("wav2vec2", 95, {}),  # facebook/wav2vec2-base-960h
        ("wav2vec2", 317, LARGE),  # facebook/wav2vec2-large-960h-lv60-self
        ("wav2vec2", 317, LARGE | {"feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}),
        ("hubert", 95, {}),  # facebook/hubert-base-ls960
        ("hubert", 317, LARGE),  # facebook/hubert-large-ls960-ft
    ],
)
def test_public_sizes(family, millions, options):
    """Names and shapes of facebook's models without their weights."""
    made, kind = CLASSES[family]
    assert_public_size(millions, made(**options), kind, convert_wav2vec2, Wav2Vec2)


def test_trains(folder):
    ours = load(folder[0]).train()
    samples, mask = wave(model(1)[0], 1)
    ours.logits(samples, mask)[0].square().sum().backward()
    assert [name for name, parameter in ours.named_parameters() if parameter.grad is None] == []
