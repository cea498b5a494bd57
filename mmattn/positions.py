"""Positions: sinusoidal (1D, 2D), learned, rotary, and biases on the scores (T5, ALiBi)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .masks import key_offsets, same_size


def sinusoidal_1d(positions: Tensor, embed_dim: int, base: float = 10000.0) -> Tensor:
    """``[sin(p w_0), .., cos(p w_0), ..]`` with ``w_i = base^(-2i / E)`` (Vaswani et al. 2017, section 3.5).

    Args:
        positions: (...) float or long.
        embed_dim: E, even.

    Returns:
        (..., E) float32, or float64 for float64 positions: sines first, then cosines.

    >>> sinusoidal_1d(torch.arange(5), 8).shape
    torch.Size([5, 8])
    """
    if embed_dim % 2:
        raise ValueError(f"sinusoidal positions need an even embed_dim, found {embed_dim}")
    half = embed_dim // 2
    wide = torch.float64 if positions.dtype == torch.float64 else torch.float32
    rates = torch.exp(torch.arange(half, device=positions.device, dtype=wide) * (-math.log(base) / half))  # (E/2,)
    angles = positions.unsqueeze(-1).to(wide) * rates  # (..., E/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sinusoidal_2d(
    height: int,
    width: int,
    embed_dim: int,
    base: float = 10000.0,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """2D sinusoidal positions: half of the channels encode the row, half the column (Carion et al. 2020, section A.4).

    Returns:
        (H, W, E), of the dtype, float32 or float64.

    >>> sinusoidal_2d(3, 4, 8).shape
    torch.Size([3, 4, 8])
    """
    if embed_dim % 4:
        raise ValueError(f"2D sinusoidal positions need embed_dim divisible by 4, found {embed_dim}")
    rows = sinusoidal_1d(torch.arange(height, device=device, dtype=dtype), embed_dim // 2, base)  # (H, E/2)
    columns = sinusoidal_1d(torch.arange(width, device=device, dtype=dtype), embed_dim // 2, base)  # (W, E/2)
    return torch.cat(
        [rows[:, None, :].expand(height, width, -1), columns[None, :, :].expand(height, width, -1)], dim=-1
    )


def sinusoidal_in_mask(mask: Tensor, embed_dim: int, *, shift: float = 0.0, dtype: torch.dtype) -> Tensor:
    """2D sinusoidal positions of the real cells of padded maps, from 0 to 2 pi over each, of any size.

    Rows and columns are counted along the real cells, minus the shift, and divided by the last count. Sines and cosines
    alternate, as in the code of Carion et al. 2020 (section A.4); Zhu et al. 2021 count from the cells' centers.

    Args:
        mask: (B, H, W) bool, True = a real cell.
        embed_dim: E, divisible by 4.
        shift: 0, or 0.5 for centers.
        dtype: Type of the result; half precision is computed in float32.

    Returns:
        (B, H, W, E), rows first.

    >>> sinusoidal_in_mask(torch.ones(2, 3, 4, dtype=torch.bool), 8, dtype=torch.float32).shape
    torch.Size([2, 3, 4, 8])
    """
    if embed_dim % 4:
        raise ValueError(f"2D sinusoidal positions need embed_dim divisible by 4, found {embed_dim}")
    cells = mask.to(torch.promote_types(dtype, torch.float32))
    parts = []
    for dim in (1, 2):
        counts = cells.cumsum(dim)
        last = counts.narrow(dim, counts.shape[dim] - 1, 1)
        parts.append(sinusoidal_alternating((counts - shift) / (last + 1e-6) * (2 * math.pi), embed_dim // 2))
    return torch.cat(parts, dim=-1).to(dtype)


def sinusoidal_alternating(positions: Tensor, embed_dim: int) -> Tensor:
    """``[sin(p w_0), cos(p w_0), sin(p w_1), ..]``: `sinusoidal_1d` in another order. (...) to (..., E)."""
    return sinusoidal_1d(positions, embed_dim).unflatten(-1, (2, -1)).mT.flatten(-2)


class SinusoidalPositions(nn.Module):
    """Adds 1D sinusoidal positions to (B, L, E); any length, no parameters."""

    def __init__(self, embed_dim: int, *, base: float = 10000.0) -> None:
        super().__init__()
        if embed_dim % 2:
            raise ValueError(f"sinusoidal positions need an even embed_dim, found {embed_dim}")
        self.embed_dim, self.base = embed_dim, base

    def forward(self, x: Tensor, offset: int | Tensor = 0) -> Tensor:
        """x: (B, L, E); offset: tokens already decoded before x. Returns (B, L, E)."""
        wide = torch.promote_types(x.dtype, torch.float32)  # half precision cannot count past 256
        positions = torch.arange(x.shape[1], device=x.device, dtype=wide) + offset
        return x + sinusoidal_1d(positions, self.embed_dim, self.base).to(x.dtype)


class LearnedPositions(nn.Module):
    """Adds one learned vector per position to (B, L, E), up to max_len."""

    def __init__(self, max_len: int, embed_dim: int) -> None:
        super().__init__()
        self.max_len = max_len
        self.weight = nn.Parameter(torch.empty(max_len, embed_dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, offset: int | Tensor = 0) -> Tensor:
        """x: (B, L, E); offset: tokens already decoded before x. Returns (B, L, E).

        Raises:
            ValueError: The sequence is longer than max_len.
        """
        end = x.shape[1] + (offset if isinstance(offset, int) else 0)
        if end > self.max_len:
            raise ValueError(f"a sequence of {end} tokens is longer than max_len={self.max_len}")
        if isinstance(offset, int):
            return x + self.weight[offset:end]
        return x + self.weight[torch.arange(x.shape[1], device=x.device) + offset]


class GridPositions(nn.Module):
    """Adds 2D positions to a map (N, E, h, w).

    Args:
        embed_dim: E.
        kind: "sinusoidal" (fixed), "coordinates" (a learned linear map of row and column in -1..1), "learned" (one
            vector per cell of grid_size, resized bilinearly to other maps) or "none".
        grid_size: (h, w) of the learned table.

    >>> GridPositions(8, "coordinates")(torch.zeros(2, 8, 3, 4)).shape
    torch.Size([2, 8, 3, 4])
    """

    KINDS = ("sinusoidal", "coordinates", "learned", "none")

    def __init__(self, embed_dim: int, kind: str = "sinusoidal", *, grid_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"unknown grid positions {kind!r}; expected one of: {', '.join(self.KINDS)}")
        if kind == "sinusoidal" and embed_dim % 4:
            raise ValueError(f"2D sinusoidal positions need embed_dim divisible by 4, found {embed_dim}")
        self.kind = kind
        if kind == "coordinates":
            self.project = nn.Linear(2, embed_dim)
        elif kind == "learned":
            if grid_size is None:
                raise ValueError("learned grid positions need a grid_size (h, w)")
            self.weight = nn.Parameter(torch.randn(1, embed_dim, *grid_size) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, E, h, w). Returns (N, E, h, w)."""
        _, E, h, w = x.shape
        if self.kind == "none":
            return x
        if self.kind == "sinusoidal":
            wide = torch.promote_types(x.dtype, torch.float32)
            return x + sinusoidal_2d(h, w, E, device=x.device, dtype=wide).permute(2, 0, 1).to(x.dtype)
        if self.kind == "coordinates":
            rows, columns = (torch.arange(n, device=x.device, dtype=x.dtype) * 2 + 1 for n in (h, w))
            rows, columns = rows / h - 1, columns / w - 1  # the cells' centers, in -1..1
            grid = torch.stack([rows[:, None].expand(h, w), columns[None, :].expand(h, w)], dim=-1)  # (h, w, 2)
            return x + self.project(grid).permute(2, 0, 1)
        if same_size(h, self.weight.shape[2]) and same_size(w, self.weight.shape[3]):
            return x + self.weight
        return x + nn.functional.interpolate(self.weight, size=(h, w), mode="bilinear", align_corners=False)


class Rotary(nn.Module):
    """Rotates pairs of q and k channels by an angle proportional to the position, so that scores depend on offsets.

    Su et al. 2021, section 3.2. Channel i is paired with i + d/2, as in GPT-NeoX and Llama.

    Args:
        head_dim: d, even.
        base: The rate of channel pair i is base^(-2i / d).
        scaling: How the rates are lowered for texts longer than those of training: {"kind": "linear", "factor": f}
            divides all of them by f (Chen et al. 2023); {"kind": "llama3", "factor": f, "low_freq_factor": l,
            "high_freq_factor": h, "original_max_len": n} only those with less than h turns within n tokens, and in
            full those with less than l (Llama 3.1); {"kind": "yarn", "factor": f, "beta_fast": b, "beta_slow": a,
            "original_max_len": n, "attention_factor": t} likewise, for b and a turns and by the channel, and multiplies
            queries and keys by t (Peng et al. 2023, sections 3.2 to 3.4). None = unchanged.

    Raises:
        ValueError: An odd head_dim, or an unknown scaling.
    """

    SCALINGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_len"),
        "yarn": ("factor", "beta_fast", "beta_slow", "original_max_len", "attention_factor"),
    }

    def __init__(self, head_dim: int, *, base: float = 10000.0, scaling: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, found {head_dim}")
        self.head_dim, self.base = head_dim, base
        self.scaling = None if scaling is None else dict(scaling)
        if self.scaling is not None:
            kind = self.scaling.get("kind")
            if kind not in self.SCALINGS or set(self.scaling) != {"kind", *self.SCALINGS[kind]}:
                known = "; ".join(f"{name} with {', '.join(keys)}" for name, keys in self.SCALINGS.items())
                raise ValueError(f"rotary scaling: expected a kind, {known}; found {scaling!r}")
        self._last: tuple[Any, tuple[Tensor, Tensor]] | None = None  # the layers of a stack may share this module

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def forward(self, q: Tensor, k: Tensor, offset: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Rotates new queries and keys.

        Args:
            q: (B, h, L, d).
            k: (B, h_kv, L, d).
            offset: Number of tokens in the cache before these; or (B, 1, L), positions minus 0 .. L - 1.

        Returns:
            The rotated q and k.
        """
        cos, sin = self._angles(q, offset)
        return _rotate(q, cos, sin), _rotate(k, cos, sin)

    def turn(self, x: Tensor, offset: int) -> Callable[[Tensor], Tensor]:
        """Returns the rotation of queries and keys (B, h, 1, d) of one new token, for several layers.

        Args:
            x: A tensor of their type and device, (B, 1, ...).
            offset: Number of tokens in the cache.
        """
        cos, sin = self._angles(x, offset)  # (1, d/2) both
        half, cos, sin = cos.shape[-1], torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        return lambda heads: torch.addcmul(heads * cos, heads.roll(half, -1), sin)

    def rates(self, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the angle per token of each pair of channels: (d/2,)."""
        half = self.head_dim // 2
        rates = self.base ** (-torch.arange(half, device=device, dtype=dtype) / half)  # (d/2,)
        if self.scaling is None:
            return rates
        lowered = rates / self.scaling["factor"]
        if self.scaling["kind"] == "linear":
            return lowered
        if self.scaling["kind"] == "yarn":
            # The channel of a number of turns within n tokens; between the two the rates are interpolated.
            ends = [
                self.scaling["original_max_len"] / (self.scaling[name] * 2 * math.pi)
                for name in ("beta_fast", "beta_slow")
            ]
            first, last = (half * math.log(end) / math.log(self.base) for end in ends)
            first, last = max(math.floor(first), 0), min(math.ceil(last), self.head_dim - 1)
            ramp = (torch.arange(half, device=device, dtype=dtype) - first) / (last - first or 1e-3)
            return rates + ramp.clamp(0, 1) * (lowered - rates)
        turns = self.scaling["original_max_len"] * rates / (2 * math.pi)
        low, high = self.scaling["low_freq_factor"], self.scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)  # between the two the rates are interpolated
        return lowered + kept * (rates - lowered)

    def _angles(self, q: Tensor, offset: int | Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosine and sine of each position's angles: (L, d/2) both, or (B, 1, L, d/2) where offset has rows."""
        L = q.shape[-2]
        is_known = isinstance(L, int) and isinstance(offset, int) and not torch.compiler.is_compiling()
        place = (L, offset, q.device, q.dtype, torch.is_inference_mode_enabled()) if is_known else None
        last = self._last  # read once, since threads may share the module
        if place is not None and last is not None and last[0] == place:
            return last[1]
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32  # half precision cannot count past 256
        positions = (torch.arange(L, device=q.device) + offset).to(wide)
        angles = positions[..., None] * self.rates(q.device, wide)
        size = 1.0 if self.scaling is None else self.scaling.get("attention_factor", 1.0)
        found = (size * angles.cos()).to(q.dtype), (size * angles.sin()).to(q.dtype)
        if place is not None:
            self._last = place, found
        return found


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)  # (B, h, L, d/2) each
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class PositionBias(nn.Module):
    """A bias added to the score of each (query, key) pair, per head, that depends on their offset alone."""

    num_heads: int

    def offsets(self, offsets: Tensor) -> Tensor:
        """Returns the bias at given offsets.

        Args:
            offsets: (...) long, key position minus query position.

        Returns:
            (h, ...).
        """
        raise NotImplementedError

    def dense(self, L: int, S: int) -> Tensor:
        """Returns the bias for every pair, bottom-right aligned (the last query is at the last key): (h, L, S)."""
        tensor = next(chain(self.parameters(), self.buffers()))
        return self.offsets(key_offsets(L, S, tensor.device))


class T5Bias(PositionBias):
    """One learned number per head and bucket of offsets: exact for small distances, logarithmic for large ones.

    Raffel et al. 2020, section 2.1.
    """

    def __init__(
        self, num_heads: int, *, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.num_buckets, self.max_distance = num_heads, num_buckets, max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))
        nn.init.normal_(self.weight, std=0.02)

    def buckets(self, offsets: Tensor) -> Tensor:
        """Returns the bucket of each offset: long, same shape. If bidirectional, half are for keys to the right."""
        count, first = self.num_buckets, torch.zeros_like(offsets)
        if self.bidirectional:
            count //= 2
            first = (offsets > 0).long() * count
            distance = offsets.abs()
        else:
            distance = (-offsets).clamp_min(0)
        exact = count // 2
        scale = (count - exact) / math.log(self.max_distance / exact)
        far = exact + ((distance.float().clamp_min(1) / exact).log() * scale).long()  # truncates, as T5 does
        return first + torch.where(distance < exact, distance, far.clamp_max(count - 1))

    def offsets(self, offsets: Tensor) -> Tensor:
        return self.weight[self.buckets(offsets)].movedim(-1, 0)  # (h, ...)


class ALiBi(PositionBias):
    """A fixed penalty per token of distance, with a geometric slope per head (Press et al. 2022, section 3).

    ``bias = -slope |offset|``, the symmetric form, which equals the paper's under a causal mask.
    """

    slopes: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        power = 2 ** math.floor(math.log2(num_heads))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        # As in the paper's code: if h is not a power of two, the rest are the odd slopes of the next power of two.
        slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (num_heads - power), 2)]
        self.register_buffer("slopes", torch.tensor(slopes), persistent=False)  # (h,)

    def offsets(self, offsets: Tensor) -> Tensor:
        slopes = self.slopes.view(-1, *[1] * offsets.dim())
        return -slopes * offsets.abs().to(slopes.dtype)  # (h, ...)
