"""Fusions of image and question, by name. Each maps the image's grid and the question's tokens to features.

Questions about one image share its grid: `image_index` (B,) is the index of each question's grid among N, so that keys
and values are projected once per image, not once per question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.attention import MultiHeadAttention
from mmattn.blocks import Encoder
from mmattn.fusion import AttentionPooling, CoAttention, MultimodalFusionBlock
from mmattn.masks import Mask

Maps = Mapping[str, list[Tensor]]


class Packing:
    """Groups questions by image: (B, ...) to (N, Q, ...) and back; Q is the largest number of questions of an image."""

    def __init__(self, image_index: Tensor | None, num_images: int) -> None:
        self.slots: Tensor | None = None
        if image_index is None:
            self.shape = (num_images, 1)
            return
        counts = torch.bincount(image_index, minlength=num_images)  # (N,)
        order = image_index.argsort(stable=True)
        place = torch.arange(len(image_index), device=image_index.device)
        rank = place - (counts.cumsum(0) - counts)[image_index[order]]
        self.shape = (num_images, int(counts.max()))
        self.slots = torch.empty_like(image_index).index_copy_(0, order, image_index[order] * self.shape[1] + rank)

    def pack(self, x: Tensor) -> Tensor:
        """(B, ...) to (N * Q, ...); unused places are zero."""
        if self.slots is None:
            return x
        return x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:]).index_copy(0, self.slots, x)

    def unpack(self, x: Tensor) -> Tensor:
        """(N * Q, ...) to (B, ...)."""
        return x if self.slots is None else x.index_select(0, self.slots)


class LatentFusion(nn.Module):
    """Latents pool the question by attention, then alternate cross-attention to the image and self-attention.

    With `pooled`, a baseline, cross-attention is replaced by the mean of the image.
    """

    def __init__(
        self, embed_dim: int, num_layers: int, num_heads: int, num_latents: int, pooled: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.pooled = pooled
        self.read = AttentionPooling(embed_dim, num_heads, num_queries=num_latents)
        self.gist = nn.Linear(embed_dim, embed_dim)
        self.grid_norm = nn.LayerNorm(embed_dim)
        self.blocks = nn.ModuleList(MultimodalFusionBlock(embed_dim, num_heads, **options) for _ in range(num_layers))
        if pooled:  # queries, keys and the kernel's own parameters are not used
            for layer in self.blocks:
                block: Any = layer
                attention = block.cross_attention
                attention.q_proj = attention.k_proj = attention.kernel = block.cross_residual = None
        self.out_dim = num_latents * embed_dim
        self.explained = () if pooled else tuple(f"blocks.{n}.cross_attention" for n in range(num_layers))
        self.mapped = self.explained  # attentions that `grid_maps` needs

    def forward(self, grid: Tensor, text: Tensor, key_mask: Tensor, image_index: Tensor | None) -> Tensor:
        """grid: (N, P, E); text: (B, L, E) with key_mask (B, L). Returns (B, out_dim)."""
        # Each latent pools a part of the question; the mean of the words gives access to the rest ("left", "more").
        z = self.read(text, Mask(key_mask)) + self.read.queries + self.gist(mean_words(text, key_mask))[:, None]
        latents = z.shape[1]
        packing = Packing(image_index, grid.shape[0])
        z = packing.pack(z)  # (N Q, latents, E)
        grid = self.grid_norm(grid)
        for layer in self.blocks:
            block: Any = layer
            z = block.self_residual(z, block.self_attention)
            if self.pooled:
                mean = block.cross_attention.out_proj(block.cross_attention.v_proj(grid.mean(1)))  # (N, E)
                z = z + mean.repeat_interleave(packing.shape[1], 0)[:, None]
            else:
                side_by_side = z.unflatten(0, (grid.shape[0], -1)).flatten(1, 2)  # (N, Q latents, E)
                side_by_side = block.cross_residual(side_by_side, block.cross_attention, grid)
                z = side_by_side.unflatten(1, (-1, latents)).flatten(0, 1)  # (N Q, latents, E)
            z = block.ffn_residual(z, block.ffn)
        return packing.unpack(z).flatten(1)

    def grid_maps(self, maps: Maps, image_index: Tensor | None, key_mask: Tensor) -> list[Tensor]:
        """Attention to the grid, (B, latents, P) for each block, rows summing to one."""
        found = []
        for path in self.explained:
            weights = _normalized(maps[path][0]).mean(1)  # (N, Q latents, P)
            packing = Packing(image_index, weights.shape[0])
            per_question = weights.unflatten(1, (packing.shape[1], -1)).flatten(0, 1)  # (N Q, latents, P)
            found.append(packing.unpack(per_question))
        return found

    def word_maps(self, maps: Maps) -> list[Tensor]:
        """Attention of the latents to the words, (B, L)."""
        return [maps["read.attention"][0].mean((1, 2))]


class CoAttentionFusion(nn.Module):
    """Two streams that attend to each other (ViLBERT); each is then pooled by attention."""

    def __init__(self, embed_dim: int, num_layers: int, num_heads: int, **options: Any) -> None:
        super().__init__()
        self.streams = CoAttention(embed_dim, num_layers, num_heads, **options)
        self.pool_text = AttentionPooling(embed_dim, num_heads)
        self.pool_grid = AttentionPooling(embed_dim, num_heads)
        self.out_dim = 2 * embed_dim
        self.explained = tuple(f"streams.layers.{n}.exchange.a_to_b" for n in range(num_layers))
        self.mapped = (*self.explained, "pool_text.attention")

    def forward(self, grid: Tensor, text: Tensor, key_mask: Tensor, image_index: Tensor | None) -> Tensor:
        """See LatentFusion."""
        mask = Mask(key_mask)
        text, grid = self.streams(text, _per_question(grid, image_index), a_mask=mask)
        pooled = torch.cat([self.pool_text(text, mask), self.pool_grid(grid)], dim=-1)  # (B, 1, 2E)
        return pooled.squeeze(1)

    def grid_maps(self, maps: Maps, image_index: Tensor | None, key_mask: Tensor) -> list[Tensor]:
        """Attention of the words to the grid, weighted by the pooling of the words: (B, 1, P) for each layer."""
        words = [_normalized(maps[path][0]).mean(1) for path in self.explained]  # (B, L, P) each
        pooling = maps["pool_text.attention"][0].mean((1, 2))  # (B, L): zero at padding
        return [pooling[:, None] @ weights for weights in words]

    def word_maps(self, maps: Maps) -> list[Tensor]:
        """Attention of the pooling to the words, (B, L)."""
        return [maps["pool_text.attention"][0].mean((1, 2))]


class SingleStreamFusion(nn.Module):
    """One encoder over the concatenated question and image, read at a start token (ViLT, Kim et al. 2021)."""

    def __init__(self, embed_dim: int, num_layers: int, num_heads: int, **options: Any) -> None:
        super().__init__()
        self.kinds = nn.Parameter(torch.randn(2, embed_dim) * 0.02)  # type embeddings of text and image
        self.start = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.encoder = Encoder(embed_dim, num_layers, num_heads, **options)
        self.out_dim = embed_dim
        self.explained = self.mapped = tuple(f"encoder.layers.{n}.attention" for n in range(num_layers))

    def forward(self, grid: Tensor, text: Tensor, key_mask: Tensor, image_index: Tensor | None) -> Tensor:
        """See LatentFusion."""
        grid = _per_question(grid, image_index)
        start = self.start.expand(text.shape[0], -1, -1)
        x = torch.cat([start, text + self.kinds[0], grid + self.kinds[1]], dim=1)  # (B, 1 + L + P, E)
        real = [torch.ones_like(key_mask[:, :1]), key_mask, key_mask.new_ones(grid.shape[:2])]
        return self.encoder(x, Mask(torch.cat(real, dim=1)))[:, 0]

    def grid_maps(self, maps: Maps, image_index: Tensor | None, key_mask: Tensor) -> list[Tensor]:
        """Attention of start token and words to the grid: (B, 1, P) for each layer, normalized over the grid."""
        words = 1 + key_mask.shape[1]
        real = nn.functional.pad(key_mask, (1, 0), value=True)[:, None].float()  # (B, 1, 1 + L)
        return [_normalized(real @ maps[path][0].mean(1)[:, :words, words:]) for path in self.explained]

    def word_maps(self, maps: Maps) -> list[Tensor]:
        """Attention of the start token, (B, 1 + L + P) for each layer; the caller selects the words."""
        return [maps[path][0].mean(1)[:, 0, 1:] for path in self.explained]


class AdditiveFusion(nn.Module):
    """Additive attention of the question's last state to the grid; both are combined by a product.

    Kazemi and Elqursh 2017; the attention is that of Bahdanau et al. 2015.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(embed_dim, num_heads, kind="additive", needs=("cross",))
        self.question = nn.Linear(embed_dim, 2 * embed_dim)
        self.image = nn.Linear(embed_dim, 2 * embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.out_dim = 2 * embed_dim
        self.explained = self.mapped = ("attention",)

    def forward(self, grid: Tensor, text: Tensor, key_mask: Tensor, image_index: Tensor | None) -> Tensor:
        """See LatentFusion; `text` are the states of a recurrent encoder."""
        last = (key_mask.sum(1) - 1).clamp_min(0)[:, None, None].expand(-1, 1, text.shape[2])
        question = text.gather(1, last)  # (B, 1, E)
        context = self.attention(question, _per_question(grid, image_index))  # (B, 1, E)
        joined = self.question(question).tanh() * self.image(context).tanh()  # (B, 1, 2E)
        return self.dropout(joined).squeeze(1)

    def grid_maps(self, maps: Maps, image_index: Tensor | None, key_mask: Tensor) -> list[Tensor]:
        """Attention to the grid, one (B, 1, P)."""
        return [maps["attention"][0].mean(1)]

    def word_maps(self, maps: Maps) -> list[Tensor]:
        """Empty: a recurrent encoder has no attention to the words."""
        return []


FUSIONS = ("fusion_block", "co_attention", "single_stream", "additive")


def build_fusion(
    name: str,
    embed_dim: int,
    num_layers: int,
    num_heads: int,
    *,
    num_latents: int,
    pooled: bool = False,
    ffn_dim: int,
    dropout: float,
    attention: Mapping[str, Any] | None,
    cross_attention: Mapping[str, Any] | None,
) -> Any:
    """Build a fusion by name.

    Raises:
        ValueError: The name is unknown.
    """
    sizes = (embed_dim, num_layers, num_heads)
    common: dict[str, Any] = {"ffn_dim": ffn_dim, "dropout": dropout}
    if name == "fusion_block":
        return LatentFusion(*sizes, num_latents, pooled=pooled, cross_attention=cross_attention, **common)
    if name == "co_attention":
        return CoAttentionFusion(*sizes, attention=attention, cross_attention=cross_attention, **common)
    if name == "single_stream":
        return SingleStreamFusion(*sizes, attention=attention, **common)
    if name == "additive":
        return AdditiveFusion(embed_dim, num_heads, dropout=dropout)
    raise ValueError(f"unknown fusion {name!r}; expected one of: {', '.join(FUSIONS)}")


def mean_words(text: Tensor, key_mask: Tensor) -> Tensor:
    """Mean over the real words: (B, L, E) with key_mask (B, L) to (B, E)."""
    real = key_mask[..., None].to(text.dtype)
    return (text * real).sum(1) / real.sum(1).clamp_min(1.0)


def _per_question(grid: Tensor, image_index: Tensor | None) -> Tensor:
    return grid if image_index is None else grid.index_select(0, image_index)  # (B, P, E)


def _normalized(weights: Tensor) -> Tensor:
    """Normalize rows to sum to one; those of sigmoid attention do not."""
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)
