"""Encoders of one modality, and image stems by name."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn


def build_stem(name: str, embed_dim: int, **options: Any) -> nn.Module:
    """Makes a stem, which maps pixel values (N, 3, H, W) to a map (N, embed_dim, h, w).

    Args:
        name: "conv" (ConvStem), "vit" (PatchEmbed) or "timm/NAME" (TimmFeatures).
        embed_dim: E of the map.
        options: The stem's own keywords.

    Raises:
        ValueError: An unknown stem.

    >>> build_stem("vit", 32, patch_size=16).stride
    16
    """
    if name.startswith("timm/"):
        from .timm import TimmFeatures, TimmTrunk

        kind = TimmTrunk if options.pop("whole", False) else TimmFeatures
        return kind(name.removeprefix("timm/"), embed_dim, **options)
    if name == "conv":
        from .conv import ConvStem

        return ConvStem(embed_dim, **options)
    if name == "vit":
        from .vit import PatchEmbed

        return PatchEmbed(embed_dim, **options)
    close = difflib.get_close_matches(name, ["conv", "vit", "timm/"], n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown image backbone {name!r}{hint}; expected one of: conv, vit, timm/NAME")
