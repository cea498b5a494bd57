"""Encoder and decoder layers and stacks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import CrossCache, MultiHeadAttention, split_attention
from .feedforward import FeedForward
from .kernels import Cache
from .masks import Mask
from .positions import PositionBias

AttentionConfig = Mapping[str, Any] | str | None


def make_attention(
    embed_dim: int, num_heads: int, attention: AttentionConfig, needs: Iterable[str], **keywords: Any
) -> MultiHeadAttention:
    """Makes a MultiHeadAttention from a block's ``attention`` argument: {"kind": name, and the kernel's options}."""
    kind, options = split_attention(attention)
    return MultiHeadAttention(embed_dim, num_heads, kind=kind, options=options, needs=needs, **keywords)


NORMS: dict[str, Callable[..., nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def make_norm(embed_dim: int, norm: str = "layer", norm_eps: float = 1e-5) -> nn.Module:
    """Makes a norm over the last dimension: "layer", or "rms", without centring and shift (Zhang & Sennrich 2019)."""
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; expected one of: {', '.join(NORMS)}")
    return NORMS[norm](embed_dim, eps=norm_eps)


class LayerOptions(TypedDict, total=False):
    """Keywords of encoder and decoder layers, except those of norms, which a stack passes to each layer."""

    ffn_dim: int | None  # size of the feed-forward network's hidden layer; None = 4 E
    dropout: float  # after each sublayer and inside the feed-forward network; not of attention weights
    attention: AttentionConfig  # the self-attention's {"kind": name, and the kernel's options}; None = dense
    rotary: bool  # rotary positions in the self-attention
    head_dim: int | None  # d; None = E / h
    num_kv_heads: int | None  # grouped-query
    bias: bool | Collection[str]  # in all maps, in none, or in all but those of the attention not among q, k, v, out
    activation: str  # of the feed-forward network, a name in ACTIVATIONS
    gated: bool  # a gated feed-forward network


class Residual(nn.Module):
    """Residual connection with norm and dropout: ``x + f(norm(x))``, or ``norm(x + f(x))`` with norm_first off."""

    def __init__(
        self, embed_dim: int, dropout: float, norm_first: bool, norm_eps: float = 1e-5, norm: str = "layer"
    ) -> None:
        super().__init__()
        self.norm = make_norm(embed_dim, norm, norm_eps)
        self.scale: nn.Module = nn.Identity()  # some backbones scale the residual, see `LayerScale`
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer: Any, *args: Any, **keywords: Any) -> Tensor:
        """x: (B, L, E), the sublayer's first argument, before the others. Returns (B, L, E)."""
        if self.norm_first:
            return x + self.dropout(self.scale(sublayer(self.norm(x), *args, **keywords)))
        return self.norm(x + self.dropout(self.scale(sublayer(x, *args, **keywords))))


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network, each with a residual connection.

    Args:
        embed_dim: E.
        num_heads: h.
        ffn_dim: Size of the feed-forward network's hidden layer; None = 4 E.
        dropout: Dropout after each sublayer and inside the feed-forward network; not of attention weights.
        attention: {"kind": name, and the kernel's options}; None = dense.
        norm_first: Pre-norm, which is less sensitive to warm-up; off = post-norm, as in the original and BERT.
        norm: "layer" or "rms".
        norm_eps: Epsilon added to the variance in the norms.
        rotary: Whether the attention has rotary positions.
        head_dim: d; None = E / h.
        num_kv_heads: h_kv of grouped-query attention.
        bias: Biases in all maps, in none, or in the attention's only in those of the names "q", "k", "v", "out".
        activation: Activation of the feed-forward network, a name in ACTIVATIONS.
        gated: Whether the feed-forward network is gated.
        needs: Features of the attention that will be used.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        norm_first: bool = True,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        rotary: bool = False,
        head_dim: int | None = None,
        num_kv_heads: int | None = None,
        bias: bool | Collection[str] = True,
        activation: str = "gelu",
        gated: bool = False,
        needs: Iterable[str] = ("self",),
    ) -> None:
        super().__init__()
        heads: dict[str, Any] = {"head_dim": head_dim, "num_kv_heads": num_kv_heads, "bias": bias}
        self.attention = make_attention(embed_dim, num_heads, attention, needs, rotary=rotary, **heads)
        self.ffn = FeedForward(
            embed_dim, ffn_dim, dropout=dropout, activation=activation, gated=gated, bias=bias is not False
        )
        self.attention_residual = Residual(embed_dim, dropout, norm_first, norm_eps, norm)
        self.ffn_residual = Residual(embed_dim, dropout, norm_first, norm_eps, norm)

    def forward(
        self, x: Tensor, mask: Mask | None = None, cache: Any = None, query_pos: Tensor | None = None
    ) -> Tensor:
        """x: (B, L, E); query_pos: see `MultiHeadAttention.forward`. Returns (B, L, E)."""
        x = self.attention_residual(x, self.attention, mask=mask, cache=cache, query_pos=query_pos)
        return self.ffn_residual(x, self.ffn)


class Encoder(nn.Module):
    """A stack of encoder layers; with a causal mask, the body of a decoder-only language model.

    Args:
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        norm_first: Pre-norm, with one more norm at the end.
        norm: "layer" or "rms".
        norm_eps: Epsilon added to the variance in the norms.
        position_bias: Bias added to the scores of every layer (shared, as in T5).
        needs: Features of the attention that will be used: "self", or "causal" and "cache".
        layer: Other keywords of `EncoderLayer`.

    >>> Encoder(32, 2, 4, ffn_dim=64)(torch.randn(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        norm_first: bool = True,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        position_bias: PositionBias | None = None,
        needs: Iterable[str] = ("self",),
        **layer: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        needs = frozenset(needs) | ({"bias"} if position_bias is not None else frozenset())
        norms: dict[str, Any] = {"norm": norm, "norm_eps": norm_eps}
        self.layers = nn.ModuleList(
            EncoderLayer(embed_dim, num_heads, norm_first=norm_first, needs=needs, **norms, **layer)
            for _ in range(num_layers)
        )
        self.norm = make_norm(embed_dim, **norms) if norm_first else nn.Identity()
        self.position_bias = position_bias
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        mask: Mask | None = None,
        cache: list[Cache] | None = None,
        query_pos: Tensor | None = None,
    ) -> Tensor:
        """Encodes a sequence.

        Args:
            x: (B, L, E), with absolute positions, if any, already added.
            mask: Mask of every layer.
            cache: Result of `make_cache`, one state per layer.
            query_pos: (B|1, L, E), positions added to the queries and keys of every layer instead.

        Returns:
            (B, L, E).
        """
        if self.position_bias is not None:
            mask = (Mask() if mask is None else mask).with_bias(self.position_bias)
        for i, layer in enumerate(self.layers):
            state = None if cache is None else cache[i]
            x = run_layer(self, layer, x, mask, state, query_pos)
        return self.norm(x)

    def hidden_states(self, x: Tensor, mask: Mask | None = None) -> list[Tensor]:
        """Returns the first layer's input and each layer's output, before the last norm: num_layers + 1 (B, L, E)."""
        if self.position_bias is not None:
            mask = (Mask() if mask is None else mask).with_bias(self.position_bias)
        states = [x]
        for layer in self.layers:
            states.append(run_layer(self, layer, states[-1], mask, None))
        return states

    def make_cache(self, batch_size: int) -> list[Cache]:
        """Makes empty decoding states, one per layer."""
        return [cast(EncoderLayer, layer).attention.make_cache(batch_size) for layer in self.layers]


def run_layer(stack: Any, layer: nn.Module, *args: Any) -> Any:
    """Runs one layer of a stack; with gradient checkpointing, backward recomputes its activations."""
    if stack.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False)
    return layer(*args)


@dataclass
class DecoderLayerCache:
    """The decoding state of one decoder layer."""

    self_attention: Cache
    cross_attention: CrossCache

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of both states by dotted name."""
        own = {f"self_attention.{name}": tensor for name, tensor in self.self_attention.tensors().items()}
        return own | {f"cross_attention.{name}": tensor for name, tensor in self.cross_attention.tensors().items()}

    def select(self, index: Tensor) -> None:
        """Selects the rows of the batch given by index (N,), in that order."""
        self.self_attention.select(index)
        self.cross_attention.select(index)


class DecoderLayerOptions(LayerOptions, total=False):
    """The keywords of `DecoderLayer` except ``needs``."""

    kv_dim: int | None  # size of the memory's vectors; None = E
    cross_attention: AttentionConfig
    norm_first: bool
    norm: str
    norm_eps: float


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention to a memory and a feed-forward network, each with a residual connection.

    Args:
        embed_dim: E.
        num_heads: h.
        kv_dim: Size of the memory's vectors; None = E.
        attention: The self-attention's {"kind": name, and the kernel's options}; only it has rotary positions.
        cross_attention: The cross-attention's kind and options.
        needs: Features of the self-attention that will be used.

    The other arguments are those of `EncoderLayer`; those of the attention hold for both attentions.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kv_dim: int | None = None,
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        attention: AttentionConfig = None,
        cross_attention: AttentionConfig = None,
        norm_first: bool = True,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        rotary: bool = False,
        head_dim: int | None = None,
        num_kv_heads: int | None = None,
        bias: bool | Collection[str] = True,
        activation: str = "gelu",
        gated: bool = False,
        needs: Iterable[str] = ("causal",),
    ) -> None:
        super().__init__()
        heads: dict[str, Any] = {"head_dim": head_dim, "num_kv_heads": num_kv_heads, "bias": bias}
        self.self_attention = make_attention(embed_dim, num_heads, attention, needs, rotary=rotary, **heads)
        self.cross_attention = make_attention(embed_dim, num_heads, cross_attention, {"cross"}, kv_dim=kv_dim, **heads)
        self.ffn = FeedForward(
            embed_dim, ffn_dim, dropout=dropout, activation=activation, gated=gated, bias=bias is not False
        )
        self.self_residual = Residual(embed_dim, dropout, norm_first, norm_eps, norm)
        self.cross_residual = Residual(embed_dim, dropout, norm_first, norm_eps, norm)
        self.ffn_residual = Residual(embed_dim, dropout, norm_first, norm_eps, norm)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Mask | None = None,
        memory_mask: Mask | None = None,
        cache: DecoderLayerCache | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
    ) -> Tensor:
        """x: (B, L, E); memory: (B, S, kv_dim); positions: see `MultiHeadAttention.forward`. Returns (B, L, E)."""
        self_cache = None if cache is None else cache.self_attention
        cross_cache = None if cache is None else cache.cross_attention
        placed: dict[str, Any] = {"query_pos": query_pos, "key_pos": key_pos}
        x = self.self_residual(x, self.self_attention, mask=mask, cache=self_cache, query_pos=query_pos)
        x = self.cross_residual(x, self.cross_attention, memory, mask=memory_mask, cache=cross_cache, **placed)
        return self.ffn_residual(x, self.ffn)

    def make_cache(self, batch_size: int) -> DecoderLayerCache:
        """Makes an empty decoding state."""
        return DecoderLayerCache(
            self.self_attention.make_cache(batch_size), self.cross_attention.make_cache(batch_size, cross=True)
        )


class Decoder(nn.Module):
    """A stack of decoder layers. Its self-attention is causal only with a causal mask: ``Mask(is_causal=True)``.

    Args:
        embed_dim: E.
        num_layers: Number of layers.
        num_heads: h.
        kv_dim: Size of the memory's vectors; None = E.
        cross_attention: {"kind": name, and the kernel's options}; ``attention`` is the self-attention's.
        norm_first: Pre-norm, with one more norm at the end.
        norm: "layer" or "rms".
        norm_eps: Epsilon added to the variance in the norms.
        position_bias: Bias added to the scores of every self-attention.
        needs: Features of the self-attention that will be used.
        layer: Other keywords of `DecoderLayer`.

    >>> decoder = Decoder(32, 2, 4, dropout=0.1)
    >>> decoder(torch.randn(2, 5, 32), torch.randn(2, 7, 32), Mask(is_causal=True)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        kv_dim: int | None = None,
        cross_attention: AttentionConfig = None,
        norm_first: bool = True,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        position_bias: PositionBias | None = None,
        needs: Iterable[str] = ("causal",),
        **layer: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        needs = frozenset(needs) | ({"bias"} if position_bias is not None else frozenset())
        norms: dict[str, Any] = {"norm": norm, "norm_eps": norm_eps}
        own: dict[str, Any] = {"kv_dim": kv_dim, "cross_attention": cross_attention, "norm_first": norm_first}
        self.layers = nn.ModuleList(
            DecoderLayer(embed_dim, num_heads, needs=needs, **own, **norms, **layer) for _ in range(num_layers)
        )
        self.norm = make_norm(embed_dim, **norms) if norm_first else nn.Identity()
        self.position_bias = position_bias
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Mask | None = None,
        memory_mask: Mask | None = None,
        cache: list[DecoderLayerCache] | None = None,
    ) -> Tensor:
        """Decodes a sequence.

        Args:
            x: (B, L, E), with absolute positions, if any, already added.
            memory: (B, S, kv_dim).
            mask: Mask of the self-attentions; not causal by default.
            memory_mask: Mask of the cross-attentions.
            cache: Result of `make_cache`; x then contains the new tokens only.

        Returns:
            (B, L, E).
        """
        if self.position_bias is not None:
            mask = (Mask() if mask is None else mask).with_bias(self.position_bias)
        for i, layer in enumerate(self.layers):
            state = None if cache is None else cache[i]
            x = run_layer(self, layer, x, memory, mask, memory_mask, state)
        return self.norm(x)

    def make_cache(self, batch_size: int) -> list[DecoderLayerCache]:
        """Makes empty decoding states, one per layer."""
        return [cast(DecoderLayer, layer).make_cache(batch_size) for layer in self.layers]
