"""The attention core: one mask convention, one multi-head attention, kernels by name, blocks, fusion, maps on demand.

Shapes, everywhere, batch first:

====  =====================================
B     batch
L     query length
S     key (source) length
E     embedding size, ``embed_dim``
h     heads, ``num_heads`` (h_kv: key and value heads)
d     size of a head, ``head_dim`` (d_v: of a value head)
V     vocabulary size
C     channels
H, W  height and width of an image or a map
T     frames
N     distinct images, or tokens of a flattened map (H W)
====  =====================================

Masks are boolean and True = takes part: ``key_mask`` (B, S) says which tokens are real, ``attn_mask`` (..., L, S) who
may attend to whom. Nothing is causal by default.

Public names load on first use, so that ``import mmattn`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "attention": ("MultiHeadAttention", "split_attention"),
    "auxiliary": ("auxiliary_losses",),
    "blocks": ("Decoder", "DecoderLayer", "Encoder", "EncoderLayer", "FeedForward"),
    "explain": ("capture",),
    "functional": ("attend",),
    "fusion": ("AttentionPooling", "CoAttention", "CrossModalAttention", "MultimodalFusionBlock"),
    "kernels": ("KERNELS", "Kernel", "build_kernel", "kernel_options", "kinds_supporting"),
    "masks": ("Mask",),
    "positions": ("ALiBi", "LearnedPositions", "PositionBias", "Rotary", "SinusoidalPositions", "T5Bias"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .attention import MultiHeadAttention as MultiHeadAttention
    from .attention import split_attention as split_attention
    from .auxiliary import auxiliary_losses as auxiliary_losses
    from .blocks import Decoder as Decoder
    from .blocks import DecoderLayer as DecoderLayer
    from .blocks import Encoder as Encoder
    from .blocks import EncoderLayer as EncoderLayer
    from .blocks import FeedForward as FeedForward
    from .explain import capture as capture
    from .functional import attend as attend
    from .fusion import AttentionPooling as AttentionPooling
    from .fusion import CoAttention as CoAttention
    from .fusion import CrossModalAttention as CrossModalAttention
    from .fusion import MultimodalFusionBlock as MultimodalFusionBlock
    from .kernels import KERNELS as KERNELS
    from .kernels import Kernel as Kernel
    from .kernels import build_kernel as build_kernel
    from .kernels import kernel_options as kernel_options
    from .kernels import kinds_supporting as kinds_supporting
    from .masks import Mask as Mask
    from .positions import ALiBi as ALiBi
    from .positions import LearnedPositions as LearnedPositions
    from .positions import PositionBias as PositionBias
    from .positions import Rotary as Rotary
    from .positions import SinusoidalPositions as SinusoidalPositions
    from .positions import T5Bias as T5Bias


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mmattn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
