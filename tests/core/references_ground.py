"""How far the ground floor is from the libraries that people trust, in float64."""

import torch
from torch import nn

from mmattn import Mask, MultiHeadAttention, T5Bias


@torch.no_grad()
def torch_attention() -> float:
    """torch's nn.MultiheadAttention: self and cross, open, padded, causal, both."""
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    for parameter in ours.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    parts = [ours.q_proj, ours.k_proj, ours.v_proj]
    theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x, y = torch.randn(2, 6, 12).double(), torch.randn(2, 9, 12).double()
    worst = 0.0
    for key in (None, y):
        S = 6 if key is None else 9
        padded = torch.ones(2, S, dtype=torch.bool)
        padded[1, 4:] = False
        for key_mask in (None, padded):
            for is_causal in (False, True) if key is None else (False,):
                later = torch.ones(6, 6, dtype=torch.bool).triu(1) if is_causal else None
                source = x if key is None else key
                hidden = None if key_mask is None else ~key_mask  # theirs: True = left out
                expected, _ = theirs(x, source, source, key_padding_mask=hidden, attn_mask=later)
                found = ours(x, key, mask=Mask(key_mask, is_causal=is_causal))
                worst = max(worst, float((found - expected).abs().max()))
    return worst


@torch.no_grad()
def t5_bias() -> float:
    """transformers' T5: an attention with its relative bias, and the bias alone at many sizes, one way and both."""
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    torch.manual_seed(0)
    worst = 0.0
    for is_decoder in (False, True):
        for buckets, distance in ((8, 6), (32, 128), (16, 20)):
            config = T5Config(
                d_model=12,
                d_kv=4,
                num_heads=3,
                relative_attention_num_buckets=buckets,
                relative_attention_max_distance=distance,
                is_decoder=is_decoder,
            )
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
