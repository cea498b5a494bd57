"""The attention core: one mask convention, one multi-head attention, kernels by name, blocks, fusion, attention maps.

Letters of shapes, batch first everywhere:

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

Masks are boolean and True = takes part: ``key_mask`` (B, S) is True for real tokens, ``attn_mask`` (..., L, S) where a
query may attend to a key. Nothing is causal by default.

Public names are imported on first use, so ``import mmattn`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_PUBLIC = {
    "attention": ("MultiHeadAttention", "split_attention"),
    "aux_loss": ("aux_losses",),
    "blocks": ("Decoder", "DecoderLayer", "Encoder", "EncoderLayer", "FeedForward"),
    "channel": ("CBAM", "ChannelAttention", "EfficientChannelAttention", "SqueezeExcitation"),
    "deformable": ("DeformableAttention", "flatten_maps"),
    "explain": ("capture", "head_statistics", "relevance", "rollout"),
    "functional": ("attend",),
    "fusion": ("AttentionPooling", "BiDAF", "CoAttention", "CrossModalAttention", "MultimodalFusionBlock"),
    "generate": ("Generated", "GenerationConfig"),
    "hierarchical": ("ContextPooling", "HierarchicalAttention", "Recurrent"),
    "kernels": ("KERNELS", "Kernel", "build_kernel", "kernel_options", "kinds_supporting"),
    "lora": ("LoRALinear", "add_lora", "merge_lora"),
    "masks": ("Mask",),
    "positions": ("ALiBi", "LearnedPositions", "PositionBias", "Rotary", "SinusoidalPositions", "T5Bias"),
    "pretrained": ("load_generation_config", "load_pretrained"),
    "spatial": ("AttentionGate", "Gate", "MapPooling", "PositionAttention", "SpatialAttention"),
    "probe": ("Probe",),
    "tasks": ("fit", "load", "push"),  # forwarded lazily: the core does not import tasks
    "temporal": ("DividedSpaceTimeLayer", "TemporalPooling"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from .attention import MultiHeadAttention as MultiHeadAttention, split_attention as split_attention
    from .aux_loss import aux_losses as aux_losses
    from .blocks import (
        Decoder as Decoder,
        DecoderLayer as DecoderLayer,
        Encoder as Encoder,
        EncoderLayer as EncoderLayer,
        FeedForward as FeedForward,
    )
    from .channel import (
        CBAM as CBAM,
        ChannelAttention as ChannelAttention,
        EfficientChannelAttention as EfficientChannelAttention,
        SqueezeExcitation as SqueezeExcitation,
    )
    from .deformable import DeformableAttention as DeformableAttention, flatten_maps as flatten_maps
    from .explain import (
        capture as capture,
        head_statistics as head_statistics,
        relevance as relevance,
        rollout as rollout,
    )
    from .functional import attend as attend
    from .fusion import (
        AttentionPooling as AttentionPooling,
        BiDAF as BiDAF,
        CoAttention as CoAttention,
        CrossModalAttention as CrossModalAttention,
        MultimodalFusionBlock as MultimodalFusionBlock,
    )
    from .generate import Generated as Generated, GenerationConfig as GenerationConfig
    from .hierarchical import (
        ContextPooling as ContextPooling,
        HierarchicalAttention as HierarchicalAttention,
        Recurrent as Recurrent,
    )
    from .kernels import (
        KERNELS as KERNELS,
        Kernel as Kernel,
        build_kernel as build_kernel,
        kernel_options as kernel_options,
        kinds_supporting as kinds_supporting,
    )
    from .lora import LoRALinear as LoRALinear, add_lora as add_lora, merge_lora as merge_lora
    from .masks import Mask as Mask
    from .positions import (
        ALiBi as ALiBi,
        LearnedPositions as LearnedPositions,
        PositionBias as PositionBias,
        Rotary as Rotary,
        SinusoidalPositions as SinusoidalPositions,
        T5Bias as T5Bias,
    )
    from .pretrained import load_generation_config as load_generation_config, load_pretrained as load_pretrained
    from .probe import Probe as Probe
    from .spatial import (
        AttentionGate as AttentionGate,
        Gate as Gate,
        MapPooling as MapPooling,
        PositionAttention as PositionAttention,
        SpatialAttention as SpatialAttention,
    )
    from .tasks import fit as fit, load as load, push as push
    from .temporal import DividedSpaceTimeLayer as DividedSpaceTimeLayer, TemporalPooling as TemporalPooling


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mmattn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
