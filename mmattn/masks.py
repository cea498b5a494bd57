"""The mask convention: boolean, True = takes part, as in ``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor


def same_size(a: int, b: int) -> bool:
    """Whether two sizes are equal, without specializing a symbolic size to its value during export."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(a == b)


def key_offsets(L: int, S: int, device: torch.device | None = None) -> Tensor:
    """Returns key position minus query position, bottom-right aligned: the last query is at the last key.

    Returns:
        (L, S) long.
    """
    queries = torch.arange(L, device=device) + (S - L)
    return torch.arange(S, device=device)[None, :] - queries[:, None]  # (L, S)


class Bias(Protocol):
    """Protocol of a mask's bias: a PositionBias, or an object with its methods."""

    def dense(self, L: int, S: int) -> Tensor:
        """Returns (h, L, S), or (B, h, L, S) if it differs between samples; bottom-right aligned."""
        ...

    def offsets(self, offsets: Tensor) -> Tensor:
        """Returns (h, ...) for offsets (...), key position minus query position."""
        ...


@dataclass(frozen=True)
class Mask:
    """Which queries may attend to which keys. Built once per forward pass and passed to every layer.

    Causal is bottom-right aligned (query i sees keys 0 .. i + S - L), which is what cached decoding needs; SDPA's own
    flag is top-left aligned. A query that may attend to nothing gets zeros from every kernel, never NaN.

    >>> key_mask = torch.tensor([[True, True, False]])
    >>> Mask(key_mask).dense(2, 3).shape
    torch.Size([1, 1, 1, 3])
    >>> Mask(key_mask, is_causal=True).dense(3, 3)[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    """

    key_mask: Tensor | None = None  # (B, S) bool, True = a real token
    attn_mask: Tensor | None = None  # (L, S) or (B|1, h|1, L|1, S|1) bool, True = may attend
    is_causal: bool = False  # bottom-right aligned
    bias: Bias | None = None  # additive, per head; set through with_bias
    global_mask: Tensor | None = None  # (B, S) bool, tokens that attend to all tokens and are attended to by all
    offset: Tensor | None = None  # (B, L) long, added to 0 .. L - 1 by rotary positions; None: those of one text
    _combined: dict[Any, Tensor | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _added: dict[Any, tuple[Tensor | None, bool]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, dims in (("key_mask", (2,)), ("attn_mask", (2, 4)), ("global_mask", (2,))):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tensor.dtype != torch.bool:
                raise TypeError(
                    f"{name} must be boolean with True = takes part, found {tensor.dtype}; "
                    "an additive bias goes through a PositionBias"
                )
            if tensor.dim() not in dims:
                # Three dimensions could mean (B, L, S) or (h, L, S): broadcasting would silently choose the second.
                expected = {
                    "key_mask": "(B, S)",
                    "attn_mask": "(L, S) or (B, h, L, S), with size 1 in broadcast dimensions",
                }
                raise ValueError(f"{name} must be {expected.get(name, '(B, S)')}, found shape {tuple(tensor.shape)}")

    @property
    def features(self) -> frozenset[str]:
        """The features that a kernel must support for this mask: of "causal", "bias", "global"."""
        found = []
        if self.is_causal:
            found.append("causal")
        if self.bias is not None:
            found.append("bias")
        if self.global_mask is not None:
            found.append("global")
        return frozenset(found)

    def with_bias(self, bias: Bias) -> Mask:
        """Returns the same mask with a position bias added to the scores.

        Raises:
            ValueError: The mask already has a bias.
        """
        if self.bias is not None and self.bias is not bias:
            raise ValueError("the mask already has a position bias; only one is supported")
        return replace(self, bias=bias)

    def dense(self, L: int, S: int, device: torch.device | None = None) -> Tensor | None:
        """Returns the combination of the boolean masks, without the bias.

        Args:
            L: Number of queries.
            S: Number of keys.
            device: Device of the causal part if no other mask determines it.

        Returns:
            Bool, broadcastable to (B, h, L, S), as small as possible (a key mask alone is (B, 1, 1, S), which is free
            in the fused path), or None if everything is allowed.
        """
        if self.attn_mask is None and not self.is_causal:
            return None if self.key_mask is None else self.key_mask[:, None, None, :]  # (B, 1, 1, S)
        if torch.compiler.is_compiling() or not (isinstance(L, int) and isinstance(S, int)):
            return self._combine(L, S, device)
        place = (L, S, device, torch.is_inference_mode_enabled())  # autograd cannot use inference tensors
        if place not in self._combined:  # shared by the layers of a stack
            self._combined[place] = self._combine(L, S, device)
        return self._combined[place]

    def added(
        self, L: int, S: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> tuple[Tensor | None, bool]:
        """Returns the additive form of `dense`: 0 where it is True, the lowest finite number elsewhere.

        Returns:
            The additive mask, of the dtype, or None if everything is allowed; and whether some query may attend to
            nothing, which an additive mask cannot express.
        """
        place = (L, S, dtype, device)
        if place not in self._added:
            allowed = self.dense(L, S, device)
            if allowed is None:
                self._added[place] = None, False
            else:
                numbers = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
                self._added[place] = numbers, not bool(allowed.any(-1).all())
        return self._added[place]

    def _combine(self, L: int, S: int, device: torch.device | None) -> Tensor | None:
        allowed = None if self.key_mask is None else self.key_mask[:, None, None, :]  # (B, 1, 1, S)
        if self.attn_mask is not None:
            allowed = self.attn_mask if allowed is None else allowed & self.attn_mask
        if self.is_causal and not (isinstance(L, int) and L == 1):  # the last query attends to all keys
            causal = key_offsets(L, S, device if allowed is None else allowed.device) <= 0  # (L, S)
            allowed = causal if allowed is None else allowed & causal
        return allowed
