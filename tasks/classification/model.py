"""The classification model: a backbone, and a head that reads its map or tokens. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmattn.backbones.cct import CompactTransformer
from mmattn.backbones.conv import ResidualNet
from mmattn.backbones.vit import VisionTransformer
from mmattn.explain.maps import capture
from mmattn.explain.relevance import Step, relevance
from mmattn.spatial import MapPooling

Pooling = Literal["attention", "mean"]
BACKBONES = ("residual", "cct", "vit", "timm/NAME")


class ClassificationOutput(NamedTuple):
    """What the model gives."""

    logits: Tensor  # (B, K): a score for each class


class ClassificationHead(nn.Module):
    """Scores for the classes from the features of any backbone: a map that learned queries read, or a finished vector.

    Attention pooling over convolutional features: each query looks for its own part of the image and knows where it
    found it, so that a hidden layer can compare parts. "mean" forgets where anything was: the baseline.

    Args:
        in_dim: Channels of the features.
        num_classes: K.
        pooling: How a map becomes a vector, "attention" or "mean"; vectors are taken as they are.
        embed_dim: Of each query's answer, in_dim where None.
        num_heads: H.
        num_queries: That read the map.
        hidden_dim: Of the layer before the last; 0: none.
        dropout: Before the last layer.
        features: "map" (B, in_dim, h, w) or "vector" (B, in_dim).

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
        if pooling not in ("attention", "mean"):
            raise ValueError(f"unknown pooling {pooling!r}; there are: attention, mean")
        self.pool: MapPooling | None = None
        size = in_dim
        if features == "map" and pooling == "attention":
            embed_dim = in_dim if embed_dim is None else embed_dim
            self.pool = MapPooling(
                embed_dim, num_heads, num_queries=num_queries, in_channels=in_dim, positions="coordinates"
            )
            size = num_queries * embed_dim
        # Over the batch, not over the features: it brings out what varies little, such as a position, and leaves the
        # gradient along the answer itself, which relevance is made of.
        self.norm = nn.BatchNorm1d(size) if features == "map" else None
        self.hidden = nn.Sequential(nn.Linear(size, hidden_dim), nn.GELU()) if hidden_dim else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_dim or size, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, in_dim, h, w), or (B, in_dim) for vectors. Returns (B, K)."""
        if self.pool is not None:
            features = self.pool(features).flatten(1)  # (B, num_queries E)
        elif features.dim() == 4:
            features = features.mean((2, 3))  # (B, in_dim)
        if self.norm is not None:
            features = self._standardized(features, self.norm)
        return self.out(self.dropout(self.hidden(features)))

    def _standardized(self, features: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        if self.training and features.shape[0] == 1:  # one image has no spread: the running statistics stand in
            mean, variance = norm.running_mean, norm.running_var
            return nn.functional.batch_norm(features, mean, variance, norm.weight, norm.bias)
        return norm(features)


class ClassificationModel(nn.Module):
    """Images to scores for classes.

    Args:
        num_classes: K.
        backbone: "residual" (a small residual net of ours), "cct" (compact convolutional transformer), "vit", or
            "timm/NAME".
        image_size: Side of the square image, in pixels.
        channels: Of "residual": the stem, and each stage, which halves the map.
        blocks: Of "residual": residual blocks a stage; one number for all, or one each.
        channel_attention: Of "residual": none, se, eca or cbam.
        stem_stride: Of "residual".
        patch_size: Of "vit", in pixels.
        tokenizer_layers: Of "cct": convolutions before the tokens, each halving the map.
        pooling: "attention": queries over a convolutional map, sequence pooling (cct), a class token (vit); "mean".
        embed_dim: E of the transformer, or of each query's answer.
        num_heads: H.
        num_layers: Of the transformer.
        ffn_dim: Of its feed-forward networks; 2 E where None.
        num_queries: That read a convolutional map.
        hidden_dim: Of the head's hidden layer; 0: none.
        attention: The transformer's self-attention, {"kind": name, and the kernel's options}; none: dense.
        dropout: In the transformer and before the last layer.
        backbone_options: Further keywords of the backbone's own constructor, such as those of public weights.
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
            from mmattn.backbones.timm import TimmFeatures

            self.backbone = TimmFeatures(backbone.removeprefix("timm/"), embed_dim, image_size=side, **more)
        else:
            raise ValueError(f"unknown backbone {backbone!r}; there are: {', '.join(BACKBONES)}")
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
        """Who looks at whom on the way from the image's cells to the scores; nothing where nobody does."""
        if self.kind not in ("cct", "vit"):
            return [] if self.head.pool is None else [Step("head.pool.pooling.attention", "read", "cells")]
        layers = range(len(self.backbone.encoder.layers))  # type: ignore[union-attr, arg-type]
        steps = [Step(f"backbone.encoder.layers.{n}.attention", "cells", "cells") for n in layers]
        if getattr(self.backbone, "pool", None) is not None:
            steps.append(Step("backbone.pool.read", "read", "cells"))
        return steps

    def relevance(self, pixel_values: Tensor, classes: Tensor) -> Tensor:
        """Where each class was read off its image.

        Where cells are tokens, attention weighted by its gradient and followed through the layers (Chefer et al. 2021).
        Cells of a convolutional map see much of what is around them, and say little about where it was: for "residual"
        the score is followed on to the stem, ``relu(d score / d F) F`` over its channels (LayerCAM; Jiang et al. 2021,
        section 3), smoothed.

        Args:
            pixel_values: (B, 3, H, W).
            classes: (B,) long, the class to explain.

        Returns:
            (B, gh, gw), not negative, each summing to one (or zero, where nothing speaks for the class).

        Raises:
            ValueError: Nothing to follow: mean pooling over the map of a timm backbone.
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
            raise ValueError("mean pooling over the map of a timm backbone attends to nothing")
        return maps / maps.sum((1, 2), keepdim=True).clamp_min(1e-12)

    def attention_map(self, pixel_values: Tensor) -> Tensor | None:
        """Where the queries over a convolutional map, or sequence pooling, look: (B, gh, gw), the mean over heads and
        queries, summing to one; none where nothing pools by attention."""
        path = next((step.path for step in self.plan() if step.query == "read"), None)
        if path is None:
            return None
        with torch.no_grad(), capture(self) as maps:
            self(pixel_values)
        return maps[path][0].mean((1, 2)).unflatten(1, self._grid(pixel_values))

    def _read(self, R: Tensor) -> Tensor:
        """The cells (B, P) behind what a transformer hands over: its first tokens', or the mean of all."""
        skipped = getattr(self.backbone, "num_prefix", 0)
        if getattr(self.backbone, "pooling", "mean") == "mean":
            return (R - torch.eye(R.shape[1], device=R.device))[:, skipped:, skipped:].mean(1)
        rows = skipped if self.backbone.pooling == "prefix" else 1
        return R[:, :rows, skipped:].mean(1)

    def _grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(gh, gw) of the map that is looked at."""
        H, W = pixel_values.shape[2:]
        if self.kind == "vit":
            patch = self.backbone.patches.stride
            return H // patch, W // patch  # type: ignore[operator, return-value]
        if self.kind == "cct":
            stride = self.backbone.tokenizer.stride
            return -(-H // stride), -(-W // stride)  # type: ignore[operator, return-value]
        with torch.no_grad():
            return tuple(self.backbone(pixel_values[:1]).shape[2:])

    def depth_of(self) -> dict[nn.Parameter, int]:
        """How many layers lie before each parameter: 0 for embeddings and stem, the most for the head."""
        body: Any = self.backbone
        layers = body.stages if self.kind == "residual" else getattr(getattr(body, "encoder", None), "layers", [])
        top = len(layers) + 1
        last = ("encoder.norm.", "norm.", "pool.", "pooler.", "project.")  # what stands behind a backbone's layers
        depths = {p: top if name.startswith(last) else 0 for name, p in body.named_parameters()}
        for depth, layer in enumerate(layers, start=1):
            depths |= dict.fromkeys(layer.parameters(), depth)
        return depths | dict.fromkeys(self.head.parameters(), top)


def _layer_cam(layer: nn.Module, score: Callable[[], Tensor]) -> Tensor:
    """``sum_c relu(d score / d F_c) F_c`` of a layer's output F, with gradients even where they are off: (B, h, w)."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score().sum(), seen[:1])
    finally:
        handle.remove()
    return (gradient.clamp_min(0.0) * seen[0].detach()).sum(1)


def _smoothed(maps: Tensor, steps: int = 6) -> Tensor:
    """Each cell with its neighbours, by a binomial (B, h, w): edges of a thing, which weigh most, meet within it."""
    line = maps.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line)[None, None]
    for _ in range(steps):
        maps = nn.functional.conv2d(maps[:, None], kernel, padding=1)[:, 0]
    return maps
