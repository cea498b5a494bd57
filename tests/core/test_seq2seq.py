"""The encoder-decoder: its options, padding, cached steps against full passes, gradients."""

import pytest
import torch

from mmattn.backbones.seq2seq import Seq2Seq, encode_by_length
from tests.conftest import refused

V = 30
VARIANTS = {
    "marian": {"norm_first": False, "output_bias": True, "activation": "silu"},
    "bart": {"norm_first": False, "positions": "learned", "max_len": 20, "norm_embeddings": True, "output_bias": True},
    "t5": {"positions": "relative", "norm": "rms", "bias": False, "scale_embeddings": False, "activation": "relu"},
    "t5 1.1": {"positions": "relative", "norm": "rms", "bias": False, "gated": True, "head_dim": 6, "num_buckets": 8},
    "rotary": {"positions": "rotary"},
    "apart": {"shared_embeddings": False, "target_vocab_size": 20, "tied_output": False, "num_decoder_layers": 1},
    "no positions": {"positions": "none", "shared_embeddings": False},
}


@pytest.fixture(params=VARIANTS)
def model(request):
    torch.manual_seed(0)
    return Seq2Seq(V, 16, 2, 4, **VARIANTS[request.param]).double().eval()


def batch(rows=3):
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randint(3, 20, (rows, n), generator=generator) for n in (8, 6))
    lengths = torch.tensor([8, 5, 2, 7, 3, 8, 1, 4, 6, 2])[:rows, None]
    return source, torch.arange(8) < lengths, target


def test_padding_invariance(model):
    source, key_mask, target = batch()
    together = model(source, key_mask, target)
    for b in range(len(source)):
        alone = model(source[b : b + 1, key_mask[b]], None, target[b : b + 1])
        assert torch.allclose(alone[0], together[b], atol=1e-10)


def test_stepwise_equals_full_pass(model):
    """A prefix of two tokens, then one by one; sentences are dropped, duplicated and reordered, beams swapped."""
    source, key_mask, target = batch()
    sentences, ids = torch.arange(3), target[:, :2]
    moves = [None, [[2, 2], [0, 0]], [[1, 0], [3, 3]], [[3, 2, 2]], None, [[1]]]
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        state = model.start(source, key_mask)
        new = ids
        for move in moves:
            expected = model(source[sentences], key_mask[sentences], ids)[:, -1]
            assert torch.allclose(model.step(new, state), expected, atol=1e-10)
            if move is not None:
                rows = torch.tensor(move)
                state.select(rows)
                sentences, ids = sentences[rows.flatten()], ids[rows.flatten()]
            new = torch.randint(3, 20, (len(ids), 1), generator=generator)
            ids = torch.cat([ids, new], dim=1)


def test_every_parameter_gets_a_gradient(model):
    source, key_mask, target = batch()
    model.train()(source, key_mask, target).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A key bias adds the same value to all scores of a query.
    assert [name for name in without if not name.endswith("k_proj.bias")] == []


def test_invalid_arguments():
    refused("one table cannot have 30 and 20 rows", Seq2Seq, V, 16, 1, 4, target_vocab_size=20)
    refused("unknown positions 'alibi'; expected one of: sinusoidal, learned", Seq2Seq, V, 16, 1, 4, positions="alibi")
    model = Seq2Seq(V, 16, 1, 4, positions="learned", max_len=7)
    refused("8 tokens is longer than max_len=7", model.encode, torch.zeros(1, 8, dtype=torch.long))


def test_sources_are_encoded_in_length_buckets(model):
    source, key_mask, _ = batch(10)
    seen = []

    def encode(ids, mask):
        seen.append(ids.shape)
        return model.encode(ids, mask)

    with torch.inference_mode():
        found, expected = encode_by_length(encode, source, key_mask, 4), model.encode(source, key_mask)
    assert sum(rows * length for rows, length in seen) < 0.75 * source.numel()
    assert torch.allclose(found[key_mask], expected[key_mask], atol=1e-10)
    assert found.shape == expected.shape
