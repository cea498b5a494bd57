"""Random T5s, gated and plain: ours equal transformers' in every layer; tied, untied, scaled or not."""

import contextlib
from unittest import mock

import pytest
import torch
from public import SHAPES, assert_refused, load, rewrite, shape
from public_seq2seq import parity, saved, sharpened
from safetensors.torch import load_file

from mmattn import T5Bias, load_pretrained

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

NETWORKS = ("relu", "gated-gelu", "gated-silu", "gelu", "gated-relu")


def norm(self, x):
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@contextlib.contextmanager
def exactly():
    """transformers' norm computes the mean in single precision, which exceeds a tolerance of 1e-8."""
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    with mock.patch.object(T5LayerNorm, "forward", norm):
        yield


@pytest.fixture
def exact():
    with exactly():
        yield


def model(seed, **config):
    """A random T5 of transformers, and the generator for more."""
    draw, sizes = shape(seed)
    options = {
        "d_model": sizes["hidden_size"],
        "d_kv": draw.choice([2, 3, 8]),
        "num_layers": sizes["num_hidden_layers"],
        "num_decoder_layers": draw.choice([None, 1, 3]),
        "num_heads": sizes["num_attention_heads"],
        "d_ff": sizes["intermediate_size"],
        "feed_forward_proj": draw.choice(NETWORKS),
        "tie_word_embeddings": draw.random() < 0.5,
        "relative_attention_num_buckets": draw.choice([8, 16, 32]),
        "relative_attention_max_distance": draw.choice([20, 50, 128]),
        "layer_norm_epsilon": draw.choice([1e-6, 1e-3]),
        "vocab_size": draw.choice([11, 30, 57]),
        "pad_token_id": draw.choice([0, 1, 3]),
        "decoder_start_token_id": 0,
    } | config
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**options))
    if not options["tie_word_embeddings"] and draw.random() < 0.7:  # as version 1.1 was published
        theirs.lm_head = torch.nn.Linear(options["d_model"], options["vocab_size"], bias=False)
    return draw, sharpened(theirs, seed, gain=1.0)


def write(theirs, folder):
    """save_pretrained omits an untied output layer, since it assumes that it is tied."""
    theirs.save_pretrained(folder)
    if theirs.config.model_type == "t5" and theirs.lm_head.weight is not theirs.shared.weight:
        state = load_file(folder / "model.safetensors")
        rewrite(folder, state | {"lm_head.weight": theirs.lm_head.weight.detach().clone()})


def compare(seed, folder):
    """Loads a random model from its folder; the difference of ours."""
    draw, theirs = model(seed)
    write(theirs, folder)
    ours = load(folder)
    assert ours.embedding is ours.target_embedding
    assert (ours.output.weight is ours.embedding.weight) == (theirs.lm_head.weight is theirs.shared.weight)
    with exactly():
        return parity(theirs, ours, draw, seed, (theirs.config.vocab_size,) * 2, 40)


def test_shapes_include_all_variants():
    models = [model(seed)[1] for seed in SHAPES]
    kinds = {(m.config.scale_decoder_outputs, m.lm_head.weight is m.shared.weight) for m in models}
    assert kinds == {(True, True), (False, True), (False, False)}
    assert {m.config.feed_forward_proj for m in models} == set(NETWORKS)


def test_single_precision_equals_transformers(tmp_path):
    _, theirs = model(3)
    write(theirs.float(), tmp_path)
    ids, target = torch.randint(11, (2, 9)), torch.randint(11, (2, 4))
    with torch.no_grad():
        found = load_pretrained(tmp_path)(ids, None, target)
        torch.testing.assert_close(found, theirs(ids, decoder_input_ids=target).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_for_every_distance(bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = torch.arange(-600, 601)
    for count in (4, 6, 8, 16, 20, 32, 64):
        for longest in (10, 20, 64, 128, 256, 500):
            if longest <= count // 2:
                continue  # no logarithmic buckets
            expected = T5Attention._relative_position_bucket(offsets, bidirectional, count, longest)
            ours = T5Bias(1, num_buckets=count, max_distance=longest, bidirectional=bidirectional)
            assert torch.equal(ours.buckets(offsets), expected), (count, longest)


@pytest.fixture
def t5(tmp_path, exact):
    draw, theirs = model(1, tie_word_embeddings=True)
    return saved(theirs, tmp_path, draw, 1, 30)


def test_old_checkpoint_names(t5):
    """Every tied embedding under each of its names, an unused bias, a config without newer keys."""
    folder, theirs, check = t5
    state = load_file(folder / "model.safetensors")
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        state[name] = state["shared.weight"].clone()
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    state[unread] = torch.randn(8, theirs.config.num_heads)
    later = ("scale_decoder_outputs", "tie_word_embeddings", "dense_act_fn", "is_gated_act")
    rewrite(folder, state, **dict.fromkeys(later))
    check()


def test_untied_scaled_output(t5):
    folder, theirs, check = t5
    theirs.lm_head = torch.nn.Linear(theirs.config.d_model, theirs.config.vocab_size, bias=False).double()
    write(theirs, folder)
    assert theirs.config.scale_decoder_outputs
    check()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"is_encoder_decoder": False}, "is_encoder_decoder=False; only True is supported"),
        ({"feed_forward_proj": "gated-gelu_10"}, "activation 'gelu_10' is not supported"),
        ({"num_layers": 9}, r"missing keys: encoder\.layers\."),
        ({"relative_attention_num_buckets": 12}, r"relative_attention_bias\.weight' \(.*\) is .*, should be \(12, "),
        ({"d_kv": 5}, r"SelfAttention\.k\.weight' \(.*\) is .*, should be "),
    ],
)
def test_mismatched_config_raises(t5, config, message):
    assert_refused(t5[0], message, **config)


def test_unknown_keys_raise(t5):
    name = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"  # only the first block has a bias
    state = load_file(t5[0] / "model.safetensors") | {name: torch.zeros(2)}
    assert_refused(t5[0], f"unknown key: {name}", state)
