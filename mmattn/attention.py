"""Multi-head attention: projections, heads, positions and decoding state around a kernel, which computes each head."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .cpu import project_together, select_rows
from .kernels import build_kernel
from .masks import Mask
from .positions import PositionBias, Rotary

PROJECTIONS = ("q", "k", "v", "out")
QK_NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


@dataclass
class CrossCache:
    """Decoding state of cross-attention: the source's keys and values, projected once, and the kernel's state."""

    keys: Tensor | None = None  # (B, h_kv, S, d), None until the first call
    values: Tensor | None = None  # (B, h_kv, S, d_v)
    state: Any = None  # the kernel's own Cache, if any

    @property
    def rows(self) -> int:
        """B of the keys and values, 0 before the first call."""
        return 0 if self.keys is None else self.keys.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors by name; those of the kernel's cache begin with "state."."""
        found = {name: t for name, t in (("keys", self.keys), ("values", self.values)) if t is not None}
        inner = {} if self.state is None else self.state.tensors()
        return found | {f"state.{name}": tensor for name, tensor in inner.items()}

    def select(self, index: Tensor) -> None:
        """Selects the rows of the batch given by index (N,), in that order."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = select_rows(self.keys, index), select_rows(self.values, index)
        if self.state is not None:
            self.state.select(index)


def split_attention(attention: Mapping[str, Any] | str | None) -> tuple[str, dict[str, Any]]:
    """Splits the ``attention`` argument of blocks, a name or a dict of "kind" and options, into name and options.

    >>> split_attention({"kind": "sliding_window", "window": 64})
    ('sliding_window', {'window': 64})
    >>> split_attention(None)
    ('dense', {})
    """
    if attention is None:
        return "dense", {}
    if isinstance(attention, str):
        return attention, {}
    options = dict(attention)
    return options.pop("kind", "dense"), options


class MultiHeadAttention(nn.Module):
    """Multi-head self- or cross-attention (Vaswani et al. 2017, section 3.2.2).

    ``out_proj(concat_h kernel(q_h, k_h, v_h))``.

    Args:
        embed_dim: E, of queries and of the output.
        num_heads: h.
        head_dim: d of queries and keys; None = E / h.
        v_head_dim: d_v of values; None = head_dim.
        kv_dim: Input size of the key and value projections; None = E.
        num_kv_heads: h_kv, fewer key and value heads than query heads (grouped-query, Ainslie et al. 2023).
        bias: Biases of the projections: all, none, or those named, of "q", "k", "v", "out" (Whisper has none on keys).
        dropout: Dropout probability of attention weights; disables the fused path. Kernels without it raise.
        kind: The kernel, a name in ``mmattn.kernels.KERNELS``.
        options: Keyword arguments of the kernel.
        needs: Features that will be used ("self", "causal", "cross", "cache", ...); a kernel without them raises at
            construction. "query_pos": positions will be given, so that the projections cannot be fused.
        qk_norm: "layer" or "rms": normalizes each head's queries and keys before positions and scores, so that scores
            cannot grow without bound (Dehghani et al. 2023, section 2).
        rotary: Rotary positions on queries and keys (self-attention only).
        position_bias: Bias added to the scores; it can be given by the mask instead.

    Raises:
        ValueError: Indivisible sizes, an unknown kernel or option, or a need that the kernel does not support.

    >>> attention = MultiHeadAttention(32, 4, num_kv_heads=2)
    >>> attention(torch.randn(2, 5, 32), mask=Mask(is_causal=True)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        v_head_dim: int | None = None,
        kv_dim: int | None = None,
        num_kv_heads: int | None = None,
        bias: bool | Collection[str] = True,
        dropout: float = 0.0,
        kind: str = "dense",
        options: Mapping[str, Any] | None = None,
        needs: Iterable[str] = (),
        qk_norm: str | None = None,
        rotary: bool = False,
        position_bias: PositionBias | None = None,
    ) -> None:
        super().__init__()
        biased = _biased(bias)
        if qk_norm is not None and qk_norm not in QK_NORMS:
            raise ValueError(f"unknown qk_norm {qk_norm!r}; expected one of: {', '.join(QK_NORMS)}")
        if head_dim is None:
            if embed_dim % num_heads:
                raise ValueError(f"embed_dim={embed_dim} is not divisible by num_heads={num_heads}; set head_dim")
            head_dim = embed_dim // num_heads
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.v_head_dim = head_dim if v_head_dim is None else v_head_dim
        self.kv_dim = embed_dim if kv_dim is None else kv_dim
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if position_bias is not None and position_bias.num_heads != num_heads:
            raise ValueError(f"position_bias is for {position_bias.num_heads} heads, the attention has {num_heads}")
        options = dict(options or {}) | ({"dropout": dropout} if dropout else {})
        is_placed = "query_pos" in (needs := frozenset(needs))
        needs = (needs - {"query_pos"}) | ({"bias"} if position_bias is not None else frozenset())
        self.kernel = build_kernel(kind, options, num_heads=num_heads, head_dim=head_dim, needs=needs)
        if self.kernel.shares_qk and self.num_kv_heads != num_heads:
            raise ValueError(
                f"attention kind {kind!r} shares queries and keys: num_kv_heads={num_kv_heads} must be {num_heads}"
            )
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim, bias="q" in biased)
        self.k_proj = None
        if not self.kernel.shares_qk:
            self.k_proj = nn.Linear(self.kv_dim, self.num_kv_heads * head_dim, bias="k" in biased)
        self.v_proj = nn.Linear(self.kv_dim, self.num_kv_heads * self.v_head_dim, bias="v" in biased)
        self.out_proj = nn.Linear(num_heads * self.v_head_dim, embed_dim, bias="out" in biased)
        self.q_norm = self.k_norm = None
        if qk_norm is not None:
            self.q_norm = QK_NORMS[qk_norm](head_dim)
            self.k_norm = self.q_norm if self.kernel.shares_qk else QK_NORMS[qk_norm](head_dim)
        self.rotary = Rotary(head_dim) if rotary else None
        self.position_bias = position_bias
        self.qkv_proj: nn.Module | None = None  # see `mmattn.linears.prepare`
        self.only_self = not needs.isdisjoint({"self", "causal"}) and "cross" not in needs and not is_placed
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            if projection is not None:
                nn.init.xavier_uniform_(projection.weight)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        mask: Mask | None = None,
        cache: Any = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
    ) -> Tensor:
        """Attends from query to key, or within query if key is None.

        Args:
            query: (B, L, E).
            key: (B, S, kv_dim); None means self-attention and nothing else.
            value: (B, S, kv_dim); None = key.
            mask: Mask over all keys, including those in the cache. Nothing is causal by default.
            cache: Result of `make_cache`, updated in place. In self-attention query contains the new tokens only; in
                cross-attention keys and values are projected at the first call; later the query may have K times as
                many rows, for K beams per source.
            query_pos: (B|1, L, E), positions added to the input of the query (and, in self-attention, key) projections,
                but not values (Carion et al. 2020, section 3.2).
            key_pos: (B|1, S, kv_dim), the same for the keys of cross-attention.

        Returns:
            (B, L, E).

        Raises:
            ValueError: The kernel does not support an argument.
        """
        if key is None and value is not None:
            raise ValueError("a value needs a key: key=None means self-attention and nothing else")
        cross = key is not None
        if cross and isinstance(cache, CrossCache) and cache.rows not in (0, query.shape[0]):
            beams = query.reshape(cache.rows, -1, query.shape[-1])  # (B, K L, E)
            return self(beams, key, value, mask=mask, cache=cache).view_as(query)
        if self.position_bias is not None:
            mask = (Mask() if mask is None else mask).with_bias(self.position_bias)
        self._check(cross, mask, cache)
        if key_pos is not None and not cross:
            raise ValueError("in self-attention query_pos is added to queries and keys: omit key_pos")
        q, k, v = self._project(query, key, value, query_pos, key_pos, cache)
        if self.rotary is not None:
            offset: int | Tensor = 0 if cache is None else cache.length
            if mask is not None and mask.offset is not None:
                offset = mask.offset[:, None]  # (B, 1, L)
            q, k = self.rotary(q, k, offset)
        out = self.kernel(q, k, v, mask, cache.state if isinstance(cache, CrossCache) else cache)  # (B, h, L, d_v)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, L, E)

    def make_cache(self, batch_size: int, *, cross: bool = False) -> Any:
        """Makes an empty decoding state: a CrossCache, or the kernel's own Cache.

        Args:
            batch_size: B.
            cross: Whether it is for cross-attention, which projects keys and values once, or for self-attention, which
                appends them.

        Raises:
            ValueError: The kernel does not support cached decoding.
        """
        like = getattr(self.out_proj, "weight", torch.empty(0))  # packed linear layers compute in float32 on the CPU
        keys, values = (
            like.new_zeros(batch_size, self.num_kv_heads, 0, size) for size in (self.head_dim, self.v_head_dim)
        )
        state = self.kernel.make_cache(keys, values, cross=cross)
        return CrossCache(state=state) if cross else state

    def _project(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        query_pos: Tensor | None,
        key_pos: Tensor | None,
        cache: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projects queries (B, h, L, d), keys (B, h_kv, S, d) and values (B, h_kv, S, d_v); see `forward`."""
        if (together := project_together(self, query, key, query_pos, cache)) is not None:
            q, k, v = together
            q, k = self._heads(q, self.num_heads, self.q_norm), self._heads(k, self.num_kv_heads, self.k_norm)
            return q, k, self._heads(v, self.num_kv_heads)
        placed = query if query_pos is None else query + query_pos
        q = self._heads(self.q_proj(placed), self.num_heads, self.q_norm)
        if key is not None and cache is not None and cache.keys is not None:
            return q, cache.keys, cache.values
        if key is None:
            source, key_source = query, placed
        else:
            source, key_source = key, key if key_pos is None else key + key_pos
        k = q if self.k_proj is None else self._heads(self.k_proj(key_source), self.num_kv_heads, self.k_norm)
        v = self._heads(self.v_proj(source if value is None else value), self.num_kv_heads)
        if key is not None and cache is not None:
            k, v = cache.keys, cache.values = k.contiguous(), v.contiguous()  # read at every step
        return q, k, v

    def _heads(self, x: Tensor, num_heads: int, norm: nn.Module | None = None) -> Tensor:
        x = x.unflatten(-1, (num_heads, -1))  # (B, L, h, d)
        return (x if norm is None else norm(x)).transpose(1, 2)  # (B, h, L, d)

    def _check(self, cross: bool, mask: Mask | None, cache: Any) -> None:
        if cross and self.rotary is not None:
            raise ValueError("rotary positions are supported in self-attention only, not for cross-attention")
        if cache is not None and cross != isinstance(cache, CrossCache):
            raise ValueError(
                f"this cache is not for {'cross' if cross else 'self'}-attention: make_cache(cross={cross})"
            )
        if not cross and self.kv_dim != self.embed_dim:
            raise ValueError(f"self-attention needs kv_dim == embed_dim, found {self.kv_dim} and {self.embed_dim}")
        needs = frozenset() if mask is None else mask.features
        if cross:
            needs = needs | {"cross"}
        elif cache is None and not (mask is not None and mask.is_causal):
            needs = needs | {"self"}
        if cache is not None:
            needs = needs | {"cache"}
        if not needs <= self.kernel.supports:
            self.kernel.require(needs)


def _biased(bias: bool | Collection[str]) -> Collection[str]:
    if isinstance(bias, bool):
        return PROJECTIONS if bias else ()
    unknown = sorted(set(bias) - set(PROJECTIONS))
    if isinstance(bias, str) or unknown:
        raise ValueError(f"bias must be true, false, or a list of {', '.join(PROJECTIONS)}; found {bias!r}")
    return bias
