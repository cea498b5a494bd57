"""Adapters of detection: models of this toolkit with any classes, public detectors, and timm backbones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from mmattn.data.readers import read_settings
from mmattn.tasks.common.adapter import FREE, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import read_network
from mmattn.tasks.common.images import PREPROCESSING, read_timm, statistics
from mmattn.tasks.common.labels.adapter import LabelAdapter
from mmattn.tasks.common.sources import Source
from mmattn.tasks.detection.annotations import Categories
from mmattn.tasks.detection.processor import DetectionProcessor

QUERIES = ("num_queries", "label_noise", "box_noise", "copy_queries")  # keywords that our weights do not depend on
HEAD = (  # keywords that a backbone's weights do not depend on
    *("num_maps", "embed_dim", "num_layers", "num_heads", "ffn_dim", "encoder_layers", "expansion"),
    *("position_attention", "pooling", "denoising_queries"),
)
BILINEAR = 2  # in preprocessor_config.json and PIL
UNNAMED = "N/A"  # the name, in public id2label, of all numbers that are no class
LONGEST = 1333  # greatest side in older files that state the shorter one alone


class BackboneProcessor(DetectionProcessor):
    """The processor of a public network without classes: image preprocessing alone."""

    least = 0


class DetectionAdapter(LabelAdapter):
    """Reads models of this toolkit."""

    scores: ClassVar[tuple[str, ...]] = (
        *("head.proposal_classes.", "head.class_heads.", "head.label_embed."),
        *("head.net.classifier.", "head.net.proposal_classes.", "head.net.class_heads."),
    )
    head: ClassVar[tuple[str, ...]] = (*("head.net.boxes.", "head.net.box_heads."), *scores)

    def read_own(self, source: Source, **options: Any) -> CheckpointParts:
        parts = super().read_own(source, **options)
        return parts if parts.keywords.get("network_options") else replace(parts, free=(*FREE, *QUERIES))


class FamilyAdapter(DetectionAdapter):
    """Reads public detectors, with their classes if they have heads."""

    names: ClassVar[str]  # of the public models, for messages
    family: ClassVar[str]
    size: ClassVar[Mapping[str, int]] = {"shortest_edge": 800, "longest_edge": LONGEST}  # if the files state none
    multiple: ClassVar[int] = 1  # of the padded sides

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        from mmattn.tasks.detection.families import FAMILIES, SHARED

        converted = read_network(source, FAMILIES[self.family], self.names)
        more = dict(converted.keywords)
        count = more.pop("num_classes")
        keywords: dict[str, Any] = {"network": self.family}
        keywords |= {ours: more.pop(name) for ours, name in SHARED[self.family].items()}
        keywords["network_options"] = more
        state = {f"head.net.{name}": value for name, value in converted.state.items()}
        image = self._image(source) | {"multiple": self.multiple} | statistics(source)
        if count is None:
            processor: DetectionProcessor = BackboneProcessor(Categories((), ()), **image)
            return CheckpointParts(self, source.where, keywords, state, processor, headless=True)
        keywords["num_classes"] = count
        processor = DetectionProcessor(_classes(source, count), **image)
        return CheckpointParts(self, source.where, keywords, state, processor)

    def _image(self, source: Source) -> dict[str, Any]:
        """How images are resized: keywords of the processor."""
        path = source.fetch(PREPROCESSING)
        config: Mapping[str, Any] = {} if path is None else read_settings(path)
        if not config.get("do_resize", True):
            return {}
        for key, expected in (("resample", BILINEAR), ("pad_size", None)):
            if config.get(key, expected) != expected:
                raise CheckpointError(f"{path}: expected {key} {expected}, found {config[key]!r}.")
        size = config.get("size", self.size)
        if isinstance(size, int):
            size = {"shortest_edge": size, "longest_edge": config.get("max_size", LONGEST)}
        for names, resize in ((("height", "width"), "squash"), (("shortest_edge", "longest_edge"), "fit")):
            sides = tuple(size.get(name) for name in names) if isinstance(size, Mapping) else ()
            if sides and all(isinstance(side, int) and side > 0 for side in sides):
                return {"size": sides, "resize": resize}
        wanted = "size with height and width, or with shortest_edge and longest_edge"
        raise CheckpointError(f"{source.name}: {PREPROCESSING}: expected {wanted}, found {size!r}.")


class DetrAdapter(FamilyAdapter):
    """Reads public DETRs."""

    names, family = "DETR", "detr"


class DeformableDetrAdapter(FamilyAdapter):
    """Reads public Deformable DETRs."""

    names, family = "Deformable DETR", "deformable_detr"


class RTDetrAdapter(FamilyAdapter):
    """Reads public RT-DETRs."""

    names, family = "RT-DETR", "rt_detr"
    size: ClassVar[Mapping[str, int]] = {"height": 640, "width": 640}
    multiple = 64  # the greatest stride that its backbones have


class TimmAdapter(DetectionAdapter):
    """Reads timm backbones, for a head that is trained."""

    head = ("head.",)

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        from mmattn.backbones.timm import TimmPyramid

        name = str(source.config["architecture"])
        backbone = read_timm(source, TimmPyramid, name)
        keywords = {"network": "pyramid", "backbone": f"timm/{name}"}
        processor = BackboneProcessor(Categories((), ()), multiple=backbone.stride, **statistics(source))
        state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
        free = (*FREE, *QUERIES, *HEAD)
        return CheckpointParts(self, source.where, keywords, state, processor, headless=True, free=free)


def _classes(source: Source, count: int) -> Categories:
    """The classes of id2label, whose numbers are the rows of the class head; numbers without a name get one."""
    labels = source.config.get("id2label") or {n: f"LABEL_{n}" for n in range(count)}
    given = {int(number): str(name) for number, name in labels.items()}
    if not given or not set(given) <= set(range(count)):
        raise CheckpointError(
            f"{source.name}: id2label: expected numbers from 0 to {count - 1}, the rows of the class head, found "
            f"{min(given, default=0)} to {max(given, default=0)}."
        )
    names = [given.get(number, UNNAMED) for number in range(count)]
    return Categories(
        tuple(f"{UNNAMED} {number}" if name == UNNAMED else name for number, name in enumerate(names)),
        tuple(range(count)),
    )
