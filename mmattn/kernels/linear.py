"""Linear attention by a product of feature maps, with a recurrent decoding state."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import allowed_keys, repeat_heads
from ..masks import Mask
from .base import Cache, Kernel, count_blocks

# Floor of the normalizer: a row without keys gives 0 / floor = 0. elu's is the authors'; exponentials may be small.
FLOORS = {"elu": 1e-6, "favor": 1e-30}
LARGEST = 60.0  # largest exponent of a key's feature: e^60 can be summed over any length, float32 overflows at e^88


@dataclass
class LinearCache(Cache):
    """The sum over all past tokens, of constant size."""

    state: Tensor  # (B, h, m, d_v + 1), at least single precision: sum of phi(k) [v, 1]^T
    seen: Tensor  # (B,) long: tokens so far

    @property
    def length(self) -> int | Tensor:
        return self.seen[0]


class Linear(Kernel):
    """``phi(q) sum_j phi(k_j) v_j^T / phi(q) sum_j phi(k_j)`` (Katharopoulos et al. 2020, section 3.2).

    ``elu``: ``phi(x) = elu(x) + 1``, d features. ``favor``: softmax attention in expectation, by positive orthogonal
    random features ``phi(x) = exp(w_i x - |x|^2 / 2) / sqrt(m)`` of ``x / d^(1/4)`` (Choromanski et al. 2021, sections
    2.3 and 2.4). Factors of a row cancel: the largest exponent is subtracted from those of a query. For keys nothing
    that depends on other keys is subtracted, as the past would depend on the future; nor is it needed: their exponents
    are at most ``|w_i|^2 / 2``, and their features are 1 on average. In float32 a row underflows to zero if the scores
    of all of its keys with themselves exceed about 150.

    The causal form runs over chunks: inside a chunk as a small masked product, across chunks by a cumulative sum.
    Half precision loses the newest terms of long sums: everything is computed in float32 at least. A mask over pairs
    (attn_mask) is not supported and raises.

    Args:
        feature_map: "elu" or "favor".
        num_features: m of favor; None = d ln d (ibid., theorem 4).
        seed: Of favor's random features, which are a pure function of it and of the sizes.

    Raises:
        ValueError: An unknown feature_map, or an option of favor without it.
    """

    kind = "linear"
    supports = frozenset({"self", "causal", "cross", "cache"})
    chunk = 64  # size of a chunk in the causal form; earlier keys are in the running state
    piece = 1024  # keys or queries at a time if all attend to all without gradients
    features: Tensor | None  # (m, d)

    def __init__(
        self, num_heads: int, head_dim: int, *, feature_map: str = "elu", num_features: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(num_heads, head_dim)
        if feature_map not in FLOORS:
            raise ValueError(f"feature_map must be one of {', '.join(FLOORS)}, found {feature_map!r}")
        if feature_map != "favor" and (num_features is not None or seed):
            raise ValueError(f"num_features and seed are options of feature_map='favor', not of {feature_map!r}")
        if num_features is not None and num_features < 1:
            raise ValueError(f"num_features must be at least 1, found {num_features}")
        self.feature_map, self.num_features = feature_map, head_dim
        features = None
        if feature_map == "favor":
            count = max(1, round(head_dim * math.log(head_dim))) if num_features is None else num_features
            self.num_features = count
            features = orthogonal_features(count, head_dim, seed)
            if count > 128:
                self.chunk = 128  # the running state is m d_v: fewer of them
        self.register_buffer("features", features)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, cache: LinearCache | None = None
    ) -> Tensor:
        self.check(mask, cache)
        h, L, dtype = q.shape[1], q.shape[2], v.dtype
        is_causal = mask is not None and mask.is_causal
        if cache is not None:
            self.check_causal(is_causal, L)
        with _no_autocast(q):
            # With a cache the mask is over all keys, of which only the newest are given.
            key_mask = None if mask is None or mask.key_mask is None else mask.key_mask[:, -k.shape[2] :]
            if cache is None and not is_causal:
                return self._all_to_all(q, k, v, key_mask)
            q, k = self._queries(q), self._keys(k, key_mask)  # (B, h, L, m), (B, h_kv, S, m)
            k, v = repeat_heads(k, h), repeat_heads(_with_ones(v, k), h)
            state = None
            if cache is not None:
                state = cache.state
                cache.state = state + k.transpose(-2, -1) @ v
                cache.seen = cache.seen + L
            return self._normalized(_causal(q, k, v, state, self.chunk), dtype)

    def _all_to_all(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        """Attends from all to all, without gradients piece by piece, so that features stay in the CPU's cache."""
        L, S = q.shape[2], k.shape[2]
        whole = torch.compiler.is_compiling() or (any(x.requires_grad for x in (q, k, v)) and torch.is_grad_enabled())
        if whole or not (isinstance(L, int) and isinstance(S, int) and max(L, S) > self.piece):
            keys = self._keys(k, key_mask)
            whole_sum = keys.transpose(-2, -1) @ _with_ones(v, keys)  # (B, h_kv, m, d_v + 1)
            return self._normalized(self._queries(q) @ repeat_heads(whole_sum, q.shape[1]), v.dtype)
        total: Tensor | None = None
        for start in range(0, S, self.piece):
            here = slice(start, start + self.piece)
            keys = self._keys(k[:, :, here], None if key_mask is None else key_mask[:, here])
            part = keys.transpose(-2, -1) @ _with_ones(v[:, :, here], keys)
            total = part if total is None else total.add_(part)
        assert total is not None
        total = repeat_heads(total, q.shape[1])
        out = v.new_empty(q.shape[0], q.shape[1], L, v.shape[3])
        for start in range(0, L, self.piece):
            here = slice(start, start + self.piece)
            out[:, :, here] = self._normalized(self._queries(q[:, :, here]) @ total, v.dtype)
        return out

    def _normalized(self, out: Tensor, dtype: torch.dtype) -> Tensor:
        out, normalizer = out.split([out.shape[-1] - 1, 1], dim=-1)  # (B, h, L, d_v), (B, h, L, 1)
        return (out / normalizer.clamp_min(FLOORS[self.feature_map])).to(dtype)

    def weights(self, q: Tensor, k: Tensor, mask: Mask | None = None) -> Tensor:
        self.check(mask)
        allowed = allowed_keys(q, k, mask)
        with _no_autocast(q):
            scores = self._queries(q) @ repeat_heads(self._keys(k), q.shape[1]).transpose(-2, -1)  # (B, h, L, S)
            if allowed is not None:
                scores = scores.masked_fill(~allowed, 0.0)
            return (scores / scores.sum(-1, keepdim=True).clamp_min(FLOORS[self.feature_map])).to(q.dtype)

    def check(self, mask: Mask | None, cache: object = None) -> None:
        super().check(mask, cache)
        if mask is not None and mask.attn_mask is not None:
            raise ValueError(
                "attention kind 'linear' never forms query-key pairs: it takes a key_mask, not an attn_mask"
            )

    def make_cache(self, keys: Tensor, values: Tensor, *, cross: bool = False) -> LinearCache | None:
        if cross:
            return None
        B, d_v = values.shape[0], values.shape[3]
        state = values.new_zeros(B, self.num_heads, self.num_features, d_v + 1, dtype=_at_least_single(values))
        return LinearCache(state, values.new_zeros(B, dtype=torch.long))

    # Below, temporaries are changed in place: features are large, and memory traffic dominates their cost.

    def _queries(self, q: Tensor) -> Tensor:
        """Returns phi(q), up to a factor per query: (B, h, L, d) to (B, h, L, m)."""
        q = q.to(_at_least_single(q))
        if self.features is None:
            return _elu_plus_one(q)
        exponents = q @ self._directions(q).T  # (B, h, L, m)
        return exponents.sub_(exponents.detach().amax(-1, keepdim=True)).exp_()

    def _keys(self, k: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Returns phi(k), up to one factor for all keys, zero at padding: (B, h_kv, S, d) to (B, h_kv, S, m)."""
        k = k.to(_at_least_single(k))
        padding = None if key_mask is None else ~key_mask[:, None, :, None]  # (B, 1, S, 1)
        if self.features is None:
            k = _elu_plus_one(k)
            return k if padding is None else k.masked_fill_(padding, 0.0)
        directions = self._directions(k)
        half_norms = k.square().sum(-1, keepdim=True) * (0.5 * self.head_dim**-0.5)  # (B, h_kv, S, 1)
        bound = 0.5 * self.head_dim**0.5 * directions.square().sum(-1).amax(0)  # half of the largest |w|^2
        taken_off = half_norms + (bound - LARGEST).clamp_min(0.0)
        if padding is not None:
            taken_off = taken_off.masked_fill(padding, float("inf"))
        return (k @ directions.T).sub_(taken_off).exp_()

    def _directions(self, like: Tensor) -> Tensor:
        assert self.features is not None
        return self.features.to(like.dtype) * self.head_dim**-0.25  # (m, d): inputs are scaled by d^(-1/4)


def orthogonal_features(count: int, size: int, seed: int) -> Tensor:
    """Returns random directions, orthogonal within each block of ``size`` directions, with norms of normal vectors.

    Each has a normal marginal distribution, which keeps estimates unbiased; orthogonality lowers the variance
    (Choromanski et al. 2021, section 2.4).

    Returns:
        (count, size), a pure function of the arguments.

    >>> orthogonal_features(6, 4, seed=0).shape
    torch.Size([6, 4])
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    turn, upper = torch.linalg.qr(normal(-(-count // size), size, size))
    signs = upper.diagonal(dim1=-2, dim2=-1).sign()  # these make the rotation uniform and identical on every machine
    directions = (turn * signs[:, None, :]).transpose(1, 2).flatten(0, 1)[:count]  # (count, size)
    return (directions * normal(count, size).norm(dim=-1, keepdim=True)).to(torch.get_default_dtype())


def _with_ones(v: Tensor, like: Tensor) -> Tensor:
    return F.pad(v.to(like.dtype), (0, 1), value=1.0)  # a column of ones: its sum is the normalizer


def _elu_plus_one(x: Tensor) -> Tensor:
    return F.threshold(x, 0.0, 0.0).add_(x.clamp_max(0).exp_())  # torch's own elu takes twice as long on a CPU


def _at_least_single(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _causal(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, chunk: int) -> Tensor:
    """``q_i (state + sum over j <= i of k_j v_j^T)``, bottom-right aligned: (B, h, L, d_v)."""
    L, S = q.shape[2], k.shape[2]
    if isinstance(L, int) and L == 1:
        total = k.transpose(-2, -1) @ v
        return q @ (total if state is None else total + state)
    if S > L:  # keys before the first query get dummy queries
        q = F.pad(q, (0, 0, S - L, 0))
    elif L > S:  # queries before the first key attend to nothing
        k, v = F.pad(k, (0, 0, L - S, 0)), F.pad(v, (0, 0, L - S, 0))
    length = q.shape[2]
    n = count_blocks(length, chunk)
    spare = n * chunk - length
    if not (isinstance(spare, int) and spare == 0):  # a padding of nothing would copy
        q, k, v = (F.pad(x, (0, 0, 0, spare)) for x in (q, k, v))
    q, k, v = (x.unflatten(2, (n, chunk)) for x in (q, k, v))  # (B, h, n, c, .)
    inside = (q @ k.transpose(-2, -1)).tril_() @ v  # (B, h, n, c, d_v)
    sums = k.transpose(-2, -1) @ v  # (B, h, n, d, d_v)
    # Shifted, not subtracted: subtracting a large sum would leave its rounding error.
    before = F.pad(sums, (0, 0, 0, 0, 1, 0))[:, :, :-1].cumsum(2)
    if state is not None:
        before = before + state[:, :, None]
    out = (q @ before).add_(inside).flatten(2, 3)  # (B, h, n c, d_v)
    return out[:, :, length - L : length]
