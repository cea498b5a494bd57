"""The detection model: an image to scored boxes. Tensors in, tensors out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from mmattn.backbones.unet import build_pyramid
from mmattn.tasks.detection.decoder import QueryLayer
from mmattn.tasks.detection.families import FAMILIES, FamilyDetector
from mmattn.tasks.detection.head import DetectionHead
from mmattn.tasks.detection.outputs import DetectionOutput

OWN = "pyramid"  # the network that reads the maps of any backbone
SHARED = ("attention", "decoder_attention", "cross_attention", "dropout")  # keywords that public networks have, too


class DetectionModel(nn.Module):
    """Object detection: images to scored boxes.

    Args:
        num_classes: Number of classes K.
        network: "pyramid", which is `DetectionHead` on the maps of any backbone; or "detr", "deformable_detr" or
            "rt_detr", the public ones, whose keywords are `network_options`, besides `dropout` and those of attention:
            "detr" has `attention`, of encoder and decoder, and `cross_attention`; "deformable_detr" has
            `decoder_attention`; "rt_detr" has `attention` and `decoder_attention`.
        backbone: "residual", a small residual network, or "timm/NAME".
        channels: Channels of the maps of "residual", the finest first.
        num_blocks: Residual blocks of each map.
        stem_stride: Stride of the finest map of "residual", 1, 2 or 4.
        num_maps: Number of maps that queries read, the coarsest ones of the backbone.
        embed_dim: See `DetectionHead`, as the arguments that follow.
        num_queries: See `DetectionHead`.
        num_layers: See `DetectionHead`.
        num_heads: See `DetectionHead`.
        ffn_dim: See `DetectionHead`.
        encoder_layers: See `DetectionHead`.
        expansion: See `DetectionHead`.
        attention: See `DetectionHead`.
        decoder_attention: See `DetectionHead`.
        cross_attention: See `DetectionHead`.
        position_attention: See `DetectionHead`.
        pooling: See `DetectionHead`.
        dropout: See `DetectionHead`.
        denoising_queries: See `DetectionHead`.
        label_noise: See `DetectionHead`.
        box_noise: See `DetectionHead`.
        copy_queries: See `DetectionHead`.
        backbone_options: Additional keywords of the backbone's constructor.
        network_options: Keywords of a public network's constructor, see `mmattn.backbones.detr.Detr`,
            `mmattn.backbones.deformable_detr.DeformableDetr` and `mmattn.backbones.rt_detr.RTDetr`.

    Raises:
        ValueError: The keywords are inconsistent; names them.

    >>> output = DetectionModel(5, channels=(8, 8, 16, 16)).eval()(torch.randn(1, 3, 64, 96))
    >>> output.logits.shape
    torch.Size([1, 50, 5])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        network: Literal["pyramid", "detr", "deformable_detr", "rt_detr"] = "pyramid",
        backbone: str = "residual",
        channels: tuple[int, ...] = (24, 48, 96, 128),
        num_blocks: int = 1,
        stem_stride: int = 2,
        num_maps: int = 2,
        embed_dim: int = 96,
        num_queries: int = 50,
        num_layers: int = 3,
        num_heads: int = 4,
        ffn_dim: int | None = None,
        encoder_layers: int = 1,
        expansion: float = 0.5,
        attention: dict[str, Any] | None = None,
        decoder_attention: dict[str, Any] | None = None,
        cross_attention: dict[str, Any] | None = None,
        position_attention: bool = False,
        pooling: Literal["attention", "mean"] = "attention",
        dropout: float = 0.0,
        denoising_queries: int = 48,
        label_noise: float = 2.0,
        box_noise: float = 1.0,
        copy_queries: int = 0,
        backbone_options: dict[str, Any] | None = None,
        network_options: dict[str, Any] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in KEYWORDS}
        super().__init__()
        self.num_classes, self.num_maps = num_classes, num_maps
        self.backbone: nn.Module | None = None
        if network != OWN:
            self.head: Any = _family(network, num_classes, given)
            return
        if network_options:
            raise ValueError(f"network_options: of public networks alone, found {sorted(network_options)}")
        own: dict[str, Any] = {"channels": channels, "num_blocks": num_blocks, "stem_stride": stem_stride}
        self.backbone = build_pyramid(backbone, **(own if backbone == "residual" else {}) | (backbone_options or {}))
        found = tuple(cast(Any, self.backbone).channels)
        if not 1 <= num_maps <= len(found):
            raise ValueError(f"num_maps: expected 1 to {len(found)}, the backbone's maps, found {num_maps}")
        self.head = DetectionHead(found[-num_maps:], num_classes, **{name: given[name] for name in HEAD})

    @property
    def unit(self) -> int:
        """The number of pixels of which image sides must be multiples."""
        return cast(int, self.head.unit if self.backbone is None else self.backbone.stride)

    @property
    def no_object(self) -> bool:
        """Whether classes compete with "no object", see `DetectionOutput`."""
        return self.backbone is None and cast(FamilyDetector, self.head).no_object

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        boxes_cxcywh: Tensor | None = None,
        labels: Tensor | None = None,
        box_mask: Tensor | None = None,
    ) -> DetectionOutput:
        """pixel_values: (B, 3, H, W), sides multiples of `unit`; the others and the result: see `DetectionHead`.

        Public networks do not need the boxes, which are for denoising.
        """
        if self.backbone is None:
            return cast(DetectionOutput, self.head(pixel_values, pixel_mask))
        maps = self.backbone(pixel_values)[-self.num_maps :]
        return cast(DetectionOutput, self.head(maps, pixel_mask, boxes_cxcywh, labels, box_mask))

    def reading(self, maps: Mapping[str, list[Tensor]], layer: int = -1) -> tuple[Tensor, Tensor]:
        """Where each query read the image, and with which weight.

        Args:
            maps: Maps captured by `mmattn.explain.capture(model)` in one forward pass in evaluation.
            layer: The decoder's layer, -1 = the last.

        Returns:
            Points xy (B, Q, n, 2), in 0..1 of the image's own part where they are in it, and weights (B, Q, n), whose
            sum is at most one: sampled points of deformable, all cells' centers of dense cross-attention.
        """
        if self.backbone is None:
            return cast(FamilyDetector, self.head).reading(maps, "head", layer)
        number = range(len(self.head.decoder))[layer]
        reader = cast(QueryLayer, self.head.decoder[number]).cross_attention
        path = f"head.decoder.{number}.cross_attention"
        return reader.reading(maps, path, maps["head.centers"][0], maps["head.ratios"][0])


def _keywords(kind: type[nn.Module]) -> dict[str, Any]:
    """The keywords of a constructor, with their defaults."""
    parameters = inspect.signature(kind).parameters.items()
    return {name: parameter.default for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


KEYWORDS, HEAD = _keywords(DetectionModel), _keywords(DetectionHead)


def _family(network: str, num_classes: int, given: Mapping[str, Any]) -> FamilyDetector:
    """A public network, of the keywords of `DetectionModel`, of which our own network's have their defaults."""
    if network not in FAMILIES:
        raise ValueError(f"unknown network {network!r}; expected one of: {', '.join((OWN, *FAMILIES))}")
    for name in sorted(KEYWORDS.keys() - {"network", "network_options", *SHARED}):
        value = tuple(given[name]) if isinstance(given[name], list) else given[name]
        if value != KEYWORDS[name]:
            raise ValueError(f"{name}: of the network {OWN} alone, not of {network}; found {given[name]!r}")
    return FamilyDetector(network, num_classes, {n: given[n] for n in SHARED}, given["network_options"] or {})
