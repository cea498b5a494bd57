"""Differences between the basic kernels and established libraries, in float64."""

import itertools

import torch
from torch import nn

from mmattn import Mask, MultiHeadAttention, T5Bias


def masks(B, h, L, S):
    """Every combination of mask kinds: (Mask, the equivalent dense boolean mask)."""
    key_mask = torch.rand(B, S) > 0.3
    key_mask[:, -1] = True
    pairs = {
        "plane": torch.rand(L, S) > 0.3,
        "per head": torch.rand(B, h, L, S) > 0.3,
        "per sample": torch.rand(B, 1, L, S) > 0.3,
    }
    for keys, name, is_causal in itertools.product((None, key_mask), (None, *pairs), (False, True)):
        attn_mask = None if name is None else pairs[name].clone()
        if attn_mask is not None:
            attn_mask[..., 0] = True
        dense = torch.ones(B, h, L, S, dtype=torch.bool)
        if keys is not None:
            dense = dense & keys[:, None, None]
        if attn_mask is not None:
            dense = dense & attn_mask
        if is_causal:
            dense = dense & torch.ones(L, S, dtype=torch.bool).tril(S - L)
        yield Mask(keys, attn_mask, is_causal), dense


@torch.no_grad()
def torch_attention() -> float:
    """torch's nn.MultiheadAttention: self and cross, output and weights, every combination of mask kinds."""
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(16, 4).double(), nn.MultiheadAttention(16, 4, batch_first=True).double().eval()
    for parameter in ours.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    parts = [ours.q_proj, ours.k_proj, ours.v_proj]
    theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x, y = torch.randn(2, 5, 16).double(), torch.randn(2, 7, 16).double()
    worst = 0.0
    for key in (None, y):
        source = x if key is None else key
        q, k = (part(z).unflatten(-1, (4, -1)).transpose(1, 2) for part, z in zip(parts, (x, source), strict=False))
        for mask, dense in masks(2, 4, 5, source.shape[1]):
            rows = dense.any(-1)  # (B, h, L): a row without keys is NaN there
            live = rows.all(1)  # (B, L)
            out, weights = theirs(x, source, source, attn_mask=~dense.flatten(0, 1), average_attn_weights=False)
            found = ((ours(x, key, mask=mask)[live], out[live]), (ours.kernel.weights(q, k, mask)[rows], weights[rows]))
            worst = max(worst, *(float((a - b).abs().max()) for a, b in found))
    return worst


@torch.no_grad()
def t5_bias() -> float:
    """transformers' T5: attention with relative bias, and the bias alone at many sizes, causal and bidirectional."""
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    torch.manual_seed(0)
    worst = 0.0
    for is_decoder in (False, True):
        for buckets, distance in ((8, 6), (32, 128), (16, 20)):
            sizes = {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": distance}
            config = T5Config(d_model=12, d_kv=4, num_heads=3, is_decoder=is_decoder, **sizes)
            config._attn_implementation = "eager"
            theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double().eval()
            bias = T5Bias(3, num_buckets=buckets, max_distance=distance, bidirectional=not is_decoder).double()
            for parameter in theirs.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            bias.weight.copy_(theirs.relative_attention_bias.weight)
            for L, S in ((1, 1), (7, 7), (3, 50), (300, 300)):
                expected = theirs.compute_bias(L, S, past_seen_tokens=S - L)[0]  # (h, L, S)
                worst = max(worst, float((bias.dense(L, S) - expected).abs().max()))
            ours = MultiHeadAttention(12, 3, bias=False, position_bias=bias).double()
            for part, other in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
                getattr(ours, f"{part}_proj").weight.copy_(getattr(theirs, other).weight)
            ours.q_proj.weight.mul_(4**0.5)  # T5 does not scale its scores
            x = torch.randn(2, 9, 12).double()
            expected = theirs(x, position_bias=theirs.compute_bias(9, 9))[0]
            worst = max(worst, float((ours(x) - expected).abs().max()))
    return worst
