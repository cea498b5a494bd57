"""Compare the attention layer with a minimal one: fused qkv projection, torch's fused attention, output projection.

python scripts/bench/attention.py [--threads N] [--rounds N] [--peers 1]

Required: in all 18 cases (128, 512, 2,048 tokens; plain, padded, causal; forward, forward and backward) the median of
same-round ratios is at most the upper quartile of the A/A row + 0.03. --peers 1 adds the layers of other libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import arguments, interleave, machine, ratio, write_rows
from torch import Tensor, nn

from mmattn import Mask, MultiHeadAttention

EMBED_DIM, HEADS = 512, 8
BATCH = {128: 8, 512: 4, 2048: 1}
SLACK = 0.03


class Bare(nn.Module):
    """A minimal attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(EMBED_DIM, 3 * EMBED_DIM), nn.Linear(EMBED_DIM, EMBED_DIM)

    def forward(self, x: Tensor, key_mask: Tensor | None, is_causal: bool) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # 3 x (B, h, L, d)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)
        return self.out(out.transpose(1, 2).flatten(2))


class Ours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(EMBED_DIM, HEADS)

    def forward(self, x: Tensor, key_mask: Tensor | None, is_causal: bool) -> Tensor:
        return self.attention(x, mask=Mask(key_mask, is_causal=is_causal))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(EMBED_DIM, HEADS, batch_first=True)

    def forward(self, x: Tensor, key_mask: Tensor | None, is_causal: bool) -> Tensor:
        hidden = None if key_mask is None else ~key_mask
        future = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=torch.bool) if is_causal else None
        return self.attention(x, x, x, hidden, need_weights=False, attn_mask=future, is_causal=is_causal)[0]


class XTransformers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from x_transformers.x_transformers import Attention

        keywords: dict[str, Any] = {"dim": EMBED_DIM, "dim_head": EMBED_DIM // HEADS, "heads": HEADS, "flash": True}
        self.open, self.ahead = Attention(**keywords), Attention(**keywords, causal=True)

    def forward(self, x: Tensor, key_mask: Tensor | None, is_causal: bool) -> Tensor:
        return (self.ahead if is_causal else self.open)(x, mask=key_mask)


class Bert(nn.Module):
    """transformers' BERT: its self-attention and output projection, including its norm, which cannot be removed."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertAttention

        config = BertConfig(
            hidden_size=EMBED_DIM,
            num_attention_heads=HEADS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        self.attention = BertAttention(config)

    def forward(self, x: Tensor, key_mask: Tensor | None, is_causal: bool) -> Tensor:
        mask = None if key_mask is None else key_mask[:, None, None, :]
        if is_causal:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[None, None]
        return self.attention(x, attention_mask=mask)[0]


class Timm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from timm.layers import Attention

        self.attention = Attention(EMBED_DIM, HEADS, qkv_bias=True)

    def forward(self, x: Tensor, key_mask: Tensor | None, is_causal: bool) -> Tensor:
        mask = None if key_mask is None else key_mask[:, None, None, :]
        return self.attention(x, attn_mask=mask, is_causal=is_causal)


PEERS: dict[str, Callable[[], nn.Module]] = {
    "nn.MultiheadAttention": Torch,
    "x-transformers": XTransformers,
    "transformers BERT": Bert,
    "timm": Timm,
}


def case(layer: nn.Module, x: Tensor, key_mask: Tensor | None, is_causal: bool, backward: bool) -> Callable[[], None]:
    """One run of a layer."""
    if not backward:

        def forward() -> None:
            with torch.inference_mode():
                layer(x, key_mask, is_causal)

        return forward
    x = x.clone().requires_grad_()

    def both() -> None:
        layer(x, key_mask, is_causal).sum().backward()
        layer.zero_grad(set_to_none=True)
        x.grad = None

    return both


def main() -> int:
    given = arguments(__doc__, peers=0, rounds=25)
    torch.manual_seed(0)
    layers = {"bare": Bare(), "bare again": Bare(), "ours": Ours()}
    layers |= {name: build() for name, build in PEERS.items()} if given.peers else {}
    for layer in layers.values():
        layer.eval()  # no dropout; nn.MultiheadAttention may use its fast path
    print(f"time over the bare layer's, median of {given.rounds} same-round ratios [quartiles]; {machine()}")
    rows, broken = [], 0
    for length, batch in BATCH.items():
        x = torch.randn(batch, length, EMBED_DIM)
        key_mask = torch.arange(length) < torch.linspace(length // 2, length, batch).long()[:, None]
        for kind, mask, is_causal in (("plain", None, False), ("padded", key_mask, False), ("causal", None, True)):
            for backward in (False, True):
                runs = {name: case(layer, x, mask, is_causal, backward) for name, layer in layers.items()}
                seconds = interleave(runs, rounds=given.rounds, warmup=3)
                ratios = {name: ratio(seconds, name, "bare") for name in layers if name != "bare"}
                holds = ratios["ours"].median <= max(ratios["bare again"].high, 1.0) + SLACK
                broken += not holds
                direction = "forward+backward" if backward else "forward"
                cells = ", ".join(f"{name} {found}" for name, found in ratios.items())
                print(f"{length:>5} {kind:<7} {direction:<17} {'holds' if holds else 'FAILS'}: {cells}", flush=True)
                rows.append({"tokens": length, "mask": kind, "direction": direction, "holds": holds} | ratios)
    write_rows(given.json, rows)
    print(f"{broken} of {len(rows)} cases fail" if broken else f"all {len(rows)} cases hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
