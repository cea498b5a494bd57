"""The public detectors as networks of this task: their keywords, and their outputs as those of our own network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmattn.backbones.deformable_detr import DeformableDetr
from mmattn.backbones.detection import DetectorOutput, mask_of
from mmattn.backbones.detr import Detr
from mmattn.backbones.resnet import ResNet
from mmattn.backbones.rt_detr import RTDetr
from mmattn.probe import Probe
from mmattn.tasks.detection.decoder import read_cells, read_points
from mmattn.tasks.detection.head import cell_centers, own_shares
from mmattn.tasks.detection.outputs import DetectionOutput, QuerySet

FAMILIES: dict[str, type[nn.Module]] = {"detr": Detr, "deformable_detr": DeformableDetr, "rt_detr": RTDetr}
# Keywords that our own network has, too, and their names in the family.
SHARED = {
    "detr": {"attention": "attention", "cross_attention": "cross_attention", "dropout": "dropout"},
    "deformable_detr": {"decoder_attention": "attention", "dropout": "dropout"},
    "rt_detr": {"attention": "encoder_attention", "decoder_attention": "attention", "dropout": "dropout"},
}


class FamilyDetector(nn.Module):
    """A network of a public family, called like `DetectionHead`, but with images.

    Args:
        family: A name in FAMILIES.
        num_classes: Number of classes K.
        shared: Keywords by their names in our own network; those that are not in SHARED must be empty.
        options: The family's other keywords.

    Raises:
        ValueError: The family has no such keyword, or its keywords are inconsistent; names them.

    >>> net = {"channels": (8, 16), "depths": (1, 1), "bottleneck": False}
    >>> sizes = {"embed_dim": 16, "num_queries": 7, "num_heads": 2, "ffn_dim": 32, "backbone": net}
    >>> output = FamilyDetector("detr", 5, {"dropout": 0.0}, sizes).eval()(torch.randn(1, 3, 40, 64))
    >>> output.logits.shape, output.no_object.shape
    (torch.Size([1, 7, 5]), torch.Size([1, 7]))
    """

    def __init__(self, family: str, num_classes: int, shared: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        super().__init__()
        kind, names = FAMILIES[family], SHARED[family]
        known = set(inspect.signature(kind).parameters) - {"num_classes", *names.values()}
        if unknown := sorted(set(options) - known):
            has = ", ".join(sorted(known))
            raise ValueError(f"network_options: {family} has no {', '.join(map(str, unknown))}; it has: {has}")
        if extra := [name for name, value in shared.items() if value and name not in names]:
            raise ValueError(f"{extra[0]}: not of the network {family}, found {shared[extra[0]]!r}")
        self.family = family
        self.net: Any = kind(num_classes, **options, **{names[key]: shared[key] for key in shared if key in names})
        self.centers, self.ratios = Probe(), Probe()

    @property
    def no_object(self) -> bool:
        """Whether outputs have `no_object`."""
        return self.family == "detr"

    @property
    def unit(self) -> int:
        """The number of pixels of which image sides must be multiples."""
        strides = cast(ResNet, self.net.backbone).out_strides
        return strides[-1] if self.family == "rt_detr" else 1  # its maps must be each twice as high as the next

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetectionOutput:
        """pixel_values: (B, 3, H, W), sides multiples of `unit`; pixel_mask: (B, H, W) bool, True = of the image."""
        found = self.net(pixel_values, pixel_mask)
        wide = torch.promote_types(pixel_values.dtype, torch.float32)
        ratios = self.ratios(own_shares(mask_of(pixel_values, pixel_mask), wide))  # (B, 2)
        if self.family == "detr":
            stride = cast(ResNet, self.net.backbone).out_strides[-1]
            height, width = (-(-side // stride) for side in pixel_values.shape[2:])
            self.centers(cell_centers(height, width, ratios.device, wide) / ratios[:, None])  # (B, h w, 2)
        elif self.family == "rt_detr" and pixel_mask is not None:  # its boxes are shares of all pixels
            found = _of_own_part(found, ratios)
        return self._output(found)

    def _output(self, found: DetectorOutput) -> DetectionOutput:
        logits, layers, proposals, none = found.logits, found.layer_logits, found.proposal_logits, None
        if self.no_object:
            logits, none, layers = logits[..., :-1], logits[..., -1], layers[..., :-1]
        output = DetectionOutput(logits, found.boxes_cxcywh, no_object=none)
        if not self.training:
            return output
        if self.family == "deformable_detr" and proposals is not None:
            proposals = proposals[..., :1]  # queries are chosen by that of the first class, for objects of all classes
        of_layers = found.layer_logits[..., -1] if self.no_object else None
        output = output._replace(layers=QuerySet(layers, found.layer_boxes_cxcywh, no_object=of_layers))
        if proposals is None or found.proposal_boxes_cxcywh is None:
            return output
        return output._replace(proposals=QuerySet(proposals[None], found.proposal_boxes_cxcywh[None]))

    def reading(self, maps: Mapping[str, list[Tensor]], path: str, layer: int = -1) -> tuple[Tensor, Tensor]:
        """See `DetectionModel.reading`; path is that of this module in the captured maps."""
        number = range(len(self.net.decoder))[layer]
        attention = f"{path}.net.decoder.{number}.cross_attention"
        if self.family == "detr":
            return read_cells(maps, attention, maps[f"{path}.centers"][0])
        return read_points(maps, attention, maps[f"{path}.ratios"][0])


def _of_own_part(found: DetectorOutput, ratios_xy: Tensor) -> DetectorOutput:
    """Boxes in shares of all pixels as shares of the images' own parts, whose shares are ratios_xy (B, 2)."""
    names = ("boxes_cxcywh", "layer_boxes_cxcywh", "proposal_boxes_cxcywh")
    return found._replace(**{name: getattr(found, name) / ratios_xy.repeat(1, 2)[:, None] for name in names})
