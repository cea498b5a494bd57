"""The classification model: a backbone, and a head that pools its map or tokens. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mmattn.backbones import unknown_backbone
from mmattn.backbones.cct import CompactTransformer, SequencePooling
from mmattn.backbones.conv import ResidualNet
from mmattn.backbones.vit import VisionTransformer
from mmattn.explain.maps import capture
from mmattn.explain.relevance import Step, relevance
from mmattn.spatial import MapPooling

Pooling = Literal["attention", "sequence", "mean"]
BACKBONES = ("residual", "cct", "vit", "timm/NAME")


class ClassificationOutput(NamedTuple):
    """Output of `ClassificationModel`."""

    logits: Tensor  # (B, K)


class ClassificationHead(nn.Module):
    """Logits of the classes from the features of any backbone: a map that is pooled by learned queries, or a vector.

    Attention pooling over convolutional features: each query attends to a part of the image, and its output contains
    the position, so that a hidden layer can compare parts. "sequence" weighs the cells by a learned score of each,
    which is zero at initialization: it begins as the mean, the pooling of pretrained networks. "mean" discards
    positions: the pooling baseline.

    Args:
        in_dim: Channels of the features.
        num_classes: Number of classes K.
        pooling: Pooling of a map to a vector, "attention", "sequence" or "mean"; vectors are not pooled.
        embed_dim: Embedding size E of each query's output; None: in_dim.
        num_heads: Number of attention heads H.
        num_queries: Number of queries.
        hidden_dim: Size of the layer before the last; 0: none.
        dropout: Dropout before the last layer.
        features: Kind of features, "map" (B, in_dim, h, w) or "vector" (B, in_dim).

    >>> head = ClassificationHead(512, 10, embed_dim=64, num_queries=2)
    >>> head(torch.randn(2, 512, 7, 7)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        *,
        pooling: Pooling = "attention",
        embed_dim: int | None = None,
        num_heads: int = 4,
        num_queries: int = 1,
        hidden_dim: int = 0,
        dropout: float = 0.0,
        features: Literal["map", "vector"] = "map",
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"unknown pooling {pooling!r}; expected one of: {', '.join(get_args(Pooling))}")
        self.pool: MapPooling | SequencePooling | None = None
        size = in_dim
        if features == "map" and pooling == "attention":
            embed_dim = in_dim if embed_dim is None else embed_dim
            self.pool = MapPooling(
                embed_dim, num_heads, num_queries=num_queries, in_channels=in_dim, positions="coordinates"
            )
            size = num_queries * embed_dim
        elif features == "map" and pooling == "sequence":
            self.pool = SequencePooling(in_dim)
            nn.init.zeros_(self.pool.score.weight)
        # Batch norm, not layer norm: it amplifies features of small variance, such as positions, and keeps the gradient
        # along the query's output itself, from which relevance is computed.
        self.norm = nn.BatchNorm1d(size) if features == "map" else None
        self.hidden = nn.Sequential(nn.Linear(size, hidden_dim), nn.GELU()) if hidden_dim else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_dim or size, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, in_dim, h, w), or (B, in_dim) for vectors. Returns (B, K)."""
        if isinstance(self.pool, SequencePooling):
            features = self.pool(features.flatten(2).mT)  # (B, in_dim)
        elif self.pool is not None:
            features = self.pool(features).flatten(1)  # (B, num_queries E)
        elif features.dim() == 4:
            features = features.mean((2, 3))  # (B, in_dim)
        if self.norm is not None:
            features = self._standardized(features, self.norm)
        return self.out(self.dropout(self.hidden(features)))

    def _standardized(self, features: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        if self.training and features.shape[0] == 1:  # the variance of one image is zero: use running statistics
            mean, variance = norm.running_mean, norm.running_var
            return nn.functional.batch_norm(features, mean, variance, norm.weight, norm.bias)
        return norm(features)


class ClassificationModel(nn.Module):
    """Image classification: a backbone and a `ClassificationHead`.

    Args:
        num_classes: Number of classes K.
        backbone: "residual" (a small residual network), "cct" (compact convolutional transformer), "vit", or
            "timm/NAME".
        image_size: Side of the square image, in pixels.
        channels: Channels of "residual": of the stem, and of each stage, which halves the map.
        blocks: Residual blocks per stage of "residual"; one number for all, or one for each.
        channel_attention: Channel attention of "residual": none, se, eca or cbam.
        stem_stride: Stride of the stem of "residual".
        patch_size: Patch size of "vit", in pixels.
        tokenizer_layers: Number of convolutions before the tokens of "cct", each of which halves the map.
        pooling: "attention": queries over a convolutional map, sequence pooling (cct), a class token (vit); "sequence":
            a learned score of each cell of a convolutional map; "mean".
        embed_dim: Embedding size E of the transformer, or of each query's output.
        num_heads: Number of attention heads H.
        num_layers: Number of layers of the transformer.
        ffn_dim: Hidden size of its feed-forward networks; None: 2 E.
        num_queries: Number of queries over a convolutional map.
        hidden_dim: Size of the head's hidden layer; 0: none.
        attention: The transformer's self-attention, {"kind": name, and the kernel's options}; none: dense.
        dropout: Dropout in the transformer and before the last layer.
        backbone_options: Additional keywords of the backbone's constructor, such as those of public weights. For
            "timm/NAME", {"whole": true} keeps all its layers, whose map is not projected to embed_dim.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "residual",
        image_size: int = 64,
        channels: tuple[int, ...] = (32, 64),
        blocks: int | tuple[int, ...] = 1,
        channel_attention: str = "se",
        stem_stride: int = 2,
        patch_size: int = 8,
        tokenizer_layers: int = 1,
        pooling: Pooling = "attention",
        embed_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 4,
        ffn_dim: int | None = None,
        num_queries: int = 4,
        hidden_dim: int = 64,
        attention: dict[str, Any] | None = None,
        dropout: float = 0.0,
        backbone_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.kind = backbone.split("/")[0]
        more: dict[str, Any] = dict(backbone_options or {})
        side = (image_size, image_size)
        transformer: dict[str, Any] = {"image_size": side, "ffn_dim": ffn_dim or 2 * embed_dim, "dropout": dropout}
        if attention is not None and self.kind not in ("cct", "vit"):
            raise ValueError(f"attention: backbone {backbone!r} has no self-attention kernel to choose")
        self.backbone: nn.Module
        in_dim = embed_dim
        if backbone == "residual":
            in_dim = channels[-1]
            own: dict[str, Any] = {"blocks": blocks, "gate": channel_attention, "stem_stride": stem_stride}
            self.backbone = ResidualNet(channels, **own, **more)
        elif backbone == "cct":
            transformer |= {"attention": attention, "tokenizer_layers": tokenizer_layers}
            transformer |= {"pooling": "sequence" if pooling == "attention" else pooling} | more
            self.backbone = CompactTransformer(embed_dim, num_layers, num_heads, **transformer)
        elif backbone == "vit":
            transformer |= {"attention": attention, "patch_size": patch_size, "resize_positions": "bicubic"}
            transformer |= {"pooling": "token" if pooling == "attention" else pooling} | more
            self.backbone = VisionTransformer(embed_dim, num_layers, num_heads, **transformer)
            in_dim = transformer.get("pooler_dim") or embed_dim
        elif backbone.startswith("timm/"):
            from mmattn.backbones.timm import TimmFeatures, TimmTrunk

            name = backbone.removeprefix("timm/")
            if more.pop("whole", False):
                self.backbone = trunk = TimmTrunk(name, image_size=side, **more)
                in_dim = trunk.channels
            else:
                self.backbone = TimmFeatures(name, embed_dim, image_size=side, **more)
        else:
            raise unknown_backbone(backbone, BACKBONES)
        self.head = ClassificationHead(
            in_dim,
            num_classes,
            pooling=pooling,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_queries=num_queries,
            hidden_dim=hidden_dim,
            dropout=dropout,
            features="vector" if self.kind in ("cct", "vit") else "map",
        )

    def forward(self, pixel_values: Tensor) -> ClassificationOutput:
        """pixel_values: (B, 3, H, W). Returns logits (B, K)."""
        features = self.backbone(pixel_values)
        return ClassificationOutput(self.head(features.pooled if self.kind in ("cct", "vit") else features))

    def plan(self) -> list[Step]:
        """The attention steps from the image's cells to the logits; empty for a model without attention."""
        if self.kind not in ("cct", "vit"):
            if self.head.pool is None:
                return []
            path = "head.pool.read" if isinstance(self.head.pool, SequencePooling) else "head.pool.pooling.attention"
            return [Step(path, "read", "cells")]
        layers = range(len(self.backbone.encoder.layers))  # type: ignore[union-attr, arg-type]
        steps = [Step(f"backbone.encoder.layers.{n}.attention", "cells", "cells") for n in layers]
        if getattr(self.backbone, "pool", None) is not None:
            steps.append(Step("backbone.pool.read", "read", "cells"))
        return steps

    def relevance(self, pixel_values: Tensor, classes: Tensor) -> Tensor:
        """Relevance of each image region for a class.

        For transformers: attention weighted by its gradient, propagated through the layers (Chefer et al. 2021). The
        receptive field of a cell of a convolutional map is too large to localize: for "residual" the relevance is that
        of the stem, ``relu(d score / d F) F`` over its channels (LayerCAM; Jiang et al. 2021, section 3), smoothed.

        Args:
            pixel_values: (B, 3, H, W).
            classes: (B,) long, the class to explain.

        Returns:
            (B, gh, gw), non-negative, each map summing to one (or to zero, if no region is evidence for the class).

        Raises:
            ValueError: The model is a timm backbone with mean pooling, which has no attention.
        """

        def score() -> Tensor:
            return self(pixel_values).logits.gather(1, classes[:, None])[:, 0]

        if isinstance(self.backbone, ResidualNet):
            maps = _smoothed(_layer_cam(self.backbone.stem, score))
        elif self.plan():
            found = relevance(self, score, self.plan())
            cells = found["read", "cells"].sum(1) if ("read", "cells") in found else self._read(found["cells", "cells"])
            maps = cells.unflatten(1, self._grid(pixel_values))
        else:
            raise ValueError("mean pooling over the map of a timm backbone has no attention")
        return maps / maps.sum((1, 2), keepdim=True).clamp_min(1e-12)

    def attention_map(self, pixel_values: Tensor) -> Tensor | None:
        """Attention of the queries over a convolutional map, or of sequence pooling.

        Returns:
            (B, gh, gw), the mean over heads and queries, summing to one; None for models without attention pooling.
        """
        path = next((step.path for step in self.plan() if step.query == "read"), None)
        if path is None:
            return None
        with torch.no_grad(), capture(self) as maps:
            self(pixel_values)
        return maps[path][0].mean((1, 2)).unflatten(1, self._grid(pixel_values))

    def _read(self, R: Tensor) -> Tensor:
        """Relevance of the cells (B, P) for a transformer's output: its first tokens, or the mean of all."""
        skipped = getattr(self.backbone, "num_prefix", 0)
        if getattr(self.backbone, "pooling", "mean") == "mean":
            return (R - torch.eye(R.shape[1], device=R.device))[:, skipped:, skipped:].mean(1)
        rows = skipped if self.backbone.pooling == "prefix" else 1
        return R[:, :rows, skipped:].mean(1)

    def _grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Size (gh, gw) of the map that is attended to."""
        H, W = pixel_values.shape[2:]
        if self.kind == "vit":
            patch = self.backbone.patches.stride
            return H // patch, W // patch  # type: ignore[operator, return-value]
        if self.kind == "cct":
            stride = self.backbone.tokenizer.stride
            return -(-H // stride), -(-W // stride)  # type: ignore[operator, return-value]
        with torch.no_grad():
            return tuple(self.backbone(pixel_values[:1]).shape[2:])


def _layer_cam(layer: nn.Module, score: Callable[[], Tensor]) -> Tensor:
    """LayerCAM: ``sum_c relu(d score / d F_c) F_c`` of a layer's output F, (B, h, w); works under `no_grad`, too."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score().sum(), outputs[:1])
    finally:
        handle.remove()
    return (gradient.clamp_min(0.0) * outputs[0].detach()).sum(1)


def _smoothed(maps: Tensor, steps: int = 6) -> Tensor:
    """Smooth maps (B, h, w) with a binomial filter: relevance is largest at edges, and is merged within an object."""
    line = maps.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line)[None, None]
    for _ in range(steps):
        maps = nn.functional.conv2d(maps[:, None], kernel, padding=1)[:, 0]
    return maps


def classify(model: ClassificationModel, pixel_values: Tensor, flip: bool = False) -> Tensor:
    """The logits (B, K) of images (B, 3, H, W); with `flip` their mean with those of the mirror images."""
    logits = model(pixel_values).logits
    return (logits + model(pixel_values.flip(-1)).logits) / 2 if flip else logits
