"""Adapters of segmentation: models of this toolkit with any classes, public SegFormers, and timm backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmattn.data.image.masks import MAX_CLASSES, ClassList
from mmattn.data.readers import read_settings
from mmattn.tasks.common.adapter import FREE, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import read_network
from mmattn.tasks.common.images import PREPROCESSING, read_timm, statistics
from mmattn.tasks.common.labels.adapter import LabelAdapter
from mmattn.tasks.common.sources import Source
from mmattn.tasks.segmentation.processor import SegmentationProcessor

# Keywords of SegFormer, by their names in the task's model.
NAMES = {"embed_dims": "channels", "num_layers": "num_blocks", "classifier_dropout": "dropout"}
NAMES |= {name: name for name in ("num_heads", "reductions", "attention")}
BILINEAR = 2  # in preprocessor_config.json and PIL
UNET = ("decoder_channels", "gates", "deep_supervision")  # keywords that do not affect the encoder


class SegmentationAdapter(LabelAdapter):
    """Reads models of this toolkit."""

    scores = ("head.classifiers.", "head.decoder.classifier.")  # of the U-Net and of SegFormer
    head = ("head.decoder.", *scores)


class SegFormerAdapter(SegmentationAdapter):
    """Reads public SegFormers, with their classes if they have a decoder."""

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        from mmattn.backbones.segformer import SegFormer

        converted = read_network(source, SegFormer, "SegFormer")
        more = {key: value for key, value in converted.keywords.items() if value is not None}
        headless = more.pop("num_classes", None) is None
        if more.pop("in_channels") != 3:
            raise CheckpointError(f"{source.name}: expected a model of images in color, found other channels.")
        keywords = {ours: more.pop(name) for name, ours in NAMES.items() if name in more} | {"network": "segformer"}
        keywords |= {"decoder_channels": (more.pop("decoder_dim"),), "backbone_options": more}
        classes, size = ClassList((), ()), None
        config = _preprocessing(source)
        if not headless:
            classes = _classes(source, bool(config.get("do_reduce_labels", config.get("reduce_labels"))))
            keywords["num_classes"] = len(classes.names)
        if config.get("do_resize", bool(config)):
            size = _size(source, config)
        processor = SegmentationProcessor(classes, size, **statistics(source))
        state = {f"head.{name}": value for name, value in converted.state.items()}
        free = (*FREE, "decoder_channels") if headless else FREE
        return CheckpointParts(self, source.where, keywords, state, processor, headless=headless, free=free)


class TimmAdapter(SegmentationAdapter):
    """Reads timm backbones, as encoders of a U-Net."""

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        from mmattn.backbones.timm import TimmPyramid

        name = str(source.config["architecture"])
        encoder = read_timm(source, TimmPyramid, name)
        keywords = {"network": "unet", "backbone": f"timm/{name}"}
        processor = SegmentationProcessor(ClassList((), ()), **statistics(source))
        state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
        free = (*FREE, *UNET)
        return CheckpointParts(self, source.where, keywords, state, processor, headless=True, free=free)


def _preprocessing(source: Source) -> Mapping[str, Any]:
    path = source.fetch(PREPROCESSING)
    config: Mapping[str, Any] = {} if path is None else read_settings(path)
    if config.get("resample", BILINEAR) != BILINEAR:
        raise CheckpointError(f"{path}: expected resample {BILINEAR}, bilinear; found {config['resample']!r}.")
    return config


def _size(source: Source, config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width to which every image is resized; SegFormer's default if the file does not state them."""
    size = config.get("size", 512)
    sides: Any = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise CheckpointError(f"{source.name}: {PREPROCESSING}: expected size with height and width, found {size!r}.")
    return sides


def _classes(source: Source, reduced: bool) -> ClassList:
    """The classes of id2label. With reduced labels, numbers in masks are higher by one, and 0 is void."""
    number = source.config.get("num_labels", len(source.config.get("id2label") or ()) or 2)
    labels = source.config.get("id2label") or {n: f"LABEL_{n}" for n in range(number)}
    names = [str(labels.get(str(n), labels.get(n, ""))) for n in range(len(labels))]
    if not all(names) or len(set(names)) != len(names) or len(names) + reduced > MAX_CLASSES:
        raise CheckpointError(
            f"{source.name}: id2label: expected at most {MAX_CLASSES - reduced} names, numbered from 0, each its own."
        )
    return ClassList(tuple(names), tuple(n + reduced for n in range(len(names))), (0,) if reduced else ())
