"""Encoders of one modality, and image stems by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn


def build_stem(name: str, embed_dim: int, **options: Any) -> nn.Module:
    """Makes a stem, which maps pixel values (N, 3, H, W) to a map (N, embed_dim, h, w).

    Args:
        name: "conv" (ConvStem), "vit" (PatchEmbed; VitTrunk, if options have its body) or "timm/NAME" (TimmFeatures;
            TimmTrunk, if they have "whole": True).
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
        from .vit import PatchEmbed, VitTrunk

        return VitTrunk(embed_dim, options["body"]) if "body" in options else PatchEmbed(embed_dim, **options)
    raise unknown_backbone(name, ("conv", "vit", "timm/NAME"))


def build_grid_encoder(
    image_encoder: str,
    embed_dim: int,
    num_layers: int,
    num_heads: int,
    *,
    image_size: int,
    patch_size: int,
    channels: Sequence[int],
    image_options: dict[str, Any] | None,
    **layers: Any,
) -> nn.Module:
    """Build a `GridEncoder` with coordinates as positions, over the stem of this name.

    Args:
        image_encoder: See `build_stem`.
        embed_dim: Embedding size E.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads.
        image_size: Side of the square image in pixels, which "timm/NAME" is built for.
        patch_size: Patch size of "vit", in pixels.
        channels: Channels of the layers of "conv".
        image_options: Additional keywords of the stem.
        **layers: Keywords of the transformer layers, see `GridEncoder`.
    """
    from .vit import GridEncoder

    stems: dict[str, dict[str, Any]] = {"conv": {"channels": channels}, "vit": {"patch_size": patch_size}}
    options = stems.get(image_encoder, {"image_size": (image_size, image_size)}) | (image_options or {})
    stem = build_stem(image_encoder, embed_dim, **options)
    return GridEncoder(stem, embed_dim, num_layers, num_heads, positions="coordinates", **layers)


def unknown_backbone(name: str, known: Sequence[str]) -> ValueError:
    """Returns the error for the name of an image backbone that does not exist, with the nearest one that does."""
    from .timm import nearest_models

    close = difflib.get_close_matches(name, known, n=1) or [f"timm/{model}" for model in nearest_models(name)]
    hint = f", did you mean {' or '.join(map(repr, close))}?" if close else ""
    return ValueError(f"unknown backbone {name!r}{hint}; expected one of: {', '.join(known)}")
