"""The rows of the kernels linear with random features, low_rank, cosine and differential."""

import math
from dataclasses import replace

import naive
import naive_linear
import torch
from cases import kernel, split
from naive import Allowed

from mmattn import Mask, MultiHeadAttention


def naive_differential(module, x, y, x_mask, y_mask, is_causal):
    out = naive.kernel(module, *split(x, y), Allowed(y_mask, None, is_causal), naive_linear.differential)
    return naive_linear.differential_norm(module, out).transpose(1, 2).flatten(2)


def cosine_against_timm() -> float:
    """timm's window attention of Swin V2; its position bias, made constant, cancels."""
    from timm.models.swin_transformer_v2 import WindowAttention

    torch.manual_seed(3)
    theirs = WindowAttention(12, (2, 3), 3).double()
    ours = MultiHeadAttention(12, 3, kind="cosine", bias={"q", "v", "out"}).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
        theirs.logit_scale.copy_(torch.tensor([1.0, 3.0, 6.0]).view(3, 1, 1))  # the last above the maximum, log(100)
        theirs.cpb_mlp[-1].weight.zero_()
        ours.kernel.log_scale.copy_(theirs.logit_scale.flatten())
        for projection, weight in zip((ours.q_proj, ours.k_proj, ours.v_proj), theirs.qkv.weight.chunk(3), strict=True):
            projection.weight.copy_(weight)
        ours.q_proj.bias.copy_(theirs.q_bias)
        ours.v_proj.bias.copy_(theirs.v_bias)
    ours.out_proj.load_state_dict(theirs.proj.state_dict())
    x = torch.randn(4, 6, 12, dtype=torch.float64)
    hidden = torch.rand(4, 6, 6) < 0.3
    hidden.diagonal(dim1=1, dim2=2).fill_(False)
    masked = theirs(x, torch.zeros(4, 6, 6).double().masked_fill(hidden, -math.inf))
    found = ((ours(x), theirs(x)), (ours(x, mask=Mask(attn_mask=~hidden[:, None])), masked))
    return max(float((a - b).detach().abs().max()) for a, b in found)


def differential_against_transformers() -> float:
    """DiffLlama's attention, causal and grouped, with zero rotary angles: our head i is its heads i and i + h."""
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaConfig

    torch.manual_seed(3)
    config = DiffLlamaConfig(
        hidden_size=32, num_attention_heads=8, num_key_value_heads=4, attn_implementation="sdpa", attention_bias=True
    )
    worst = 0.0
    for layer in (0, 3):
        theirs = DiffLlamaAttention(config, layer).double().eval()
        options = {"layer": layer}
        ours = MultiHeadAttention(32, 4, head_dim=8, num_kv_heads=2, kind="differential", options=options).double()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.copy_(0.5 * torch.randn_like(parameter))
            for name in ("q_proj", "k_proj", "v_proj"):
                for kind in ("weight", "bias"):
                    heads = getattr(getattr(theirs, name), kind).unflatten(0, (2, -1, 4))  # half, head, channel
                    getattr(getattr(ours, name), kind).copy_(heads.transpose(0, 1).flatten(0, 2))
            for i in "12":  # theirs computes the exponential in single precision: ours is set to the result
                left, right = (getattr(theirs, f"lambda_{side}{i}") for side in "qk")
                rounded = (left * right).sum(dtype=torch.float32).exp().double().log()
                getattr(ours.kernel, f"lambda_q{i}").copy_(left * rounded / (left @ right))
                getattr(ours.kernel, f"lambda_k{i}").copy_(right)
        ours.out_proj.load_state_dict(theirs.o_proj.state_dict())
        x = torch.randn(2, 6, 32, dtype=torch.float64)
        hidden = torch.full((6, 6), -math.inf).double().triu(1)[None, None]
        angles = (torch.ones(1, 6, 4).double(), torch.zeros(1, 6, 4).double())
        expected = theirs(x, angles, hidden)[0]
        worst = max(worst, float((ours(x, mask=Mask(is_causal=True)) - expected).detach().abs().max()))
    return worst


FAVOR = {"feature_map": "favor", "num_features": 6, "seed": 1}
LOW = {"weights": naive_linear.low_rank, "causal": (False,)}
SHORT = {"projected_length": 3, "max_len": 14}

ROWS = [
    kernel("kernel linear, favor", "linear", FAVOR, weights=naive_linear.favor, chunk=2),
    kernel("kernel low_rank", "low_rank", SHORT, **LOW),
    kernel("kernel low_rank, rank alone", "low_rank", {"projected_length": None, "rank": 2}, **LOW),
    kernel("kernel low_rank, by head, rank", "low_rank", SHORT | {"share": "none", "rank": 3}, **LOW),
    kernel("kernel low_rank, keys as values", "low_rank", SHORT | {"share": "keys_values"}, **LOW),
    kernel("kernel cosine", "cosine", weights=naive_linear.cosine, reference=cosine_against_timm),
    replace(
        kernel("kernel differential", "differential", reference=differential_against_transformers),
        naive=naive_differential,
    ),
]
