"""Adapters of classification: models of this toolkit with any classes, public ViT, DeiT, DINOv2, SigLIP, and timm's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmattn.data.image.processor import ImageProcessor
from mmattn.tasks.classification.processor import ClassificationProcessor
from mmattn.tasks.common.adapter import FREE, CheckpointParts
from mmattn.tasks.common.errors import CheckpointError
from mmattn.tasks.common.finetune import read_network
from mmattn.tasks.common.images import read_timm, read_timm_classifier, statistics, timm_labels, timm_size
from mmattn.tasks.common.labels.adapter import LabelAdapter
from mmattn.tasks.common.sources import TIMM, Source

# Keywords of VisionTransformer that the task's model has under the same name.
OWN = ("embed_dim", "num_layers", "num_heads", "ffn_dim", "patch_size", "dropout", "attention")
PATCHES = "backbone.patches.proj.weight"


class BackboneProcessor(ClassificationProcessor):
    """The processor of a public backbone: image preprocessing without classes."""

    least = 0


class ClassificationAdapter(LabelAdapter):
    """Reads models of this toolkit; learned positions are interpolated for images of another size."""

    resized = ("backbone.positions", "backbone.positions.weight")


class TimmAdapter(ClassificationAdapter):
    """Reads timm's models: vision transformers as ours, without their classifier; all others as they are.

    These keep their classifier if it is a linear map of the mean over the cells and its classes have known names.
    """

    free = (*FREE, "hidden_dim", "pooling", "embed_dim", "num_heads", "num_queries")

    def read_public(self, source: Source, **options: Any) -> CheckpointParts:
        from mmattn.backbones.timm import TimmTrunk
        from mmattn.pretrained.timm import is_converted

        name = str(source.config["architecture"])
        if is_converted(name):
            return ViTAdapter(self.task).read_public(source, **options)
        trunk = read_timm(source, TimmTrunk, name)
        options = {"whole": True}
        model = {"backbone": f"timm/{name}", "pooling": "sequence", "hidden_dim": 0, "backbone_options": options}
        state = {f"backbone.{key}": value for key, value in trunk.state_dict().items()}
        labels, image = timm_labels(source), ImageProcessor(timm_size(source), **statistics(source))
        classifier = read_timm_classifier(source, trunk)
        if classifier is None or len(labels) != len(classifier[1]):
            without = BackboneProcessor(image, [])
            return CheckpointParts(self, source.where, model, state, without, headless=True, free=self.free)
        state |= {f"head.{key}": value for key, value in _head(*classifier).items()}
        model |= {"num_classes": len(labels), "image_size": image.size[0]}
        processor = ClassificationProcessor(image, labels)
        return CheckpointParts(self, source.where, model, state, processor, free=self.free)


def _head(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Weights of a `ClassificationHead` that is a linear map of the mean over the cells."""
    from mmattn.tasks.classification.model import ClassificationHead

    head = ClassificationHead(weight.shape[1], len(bias), pooling="sequence")  # it weighs all cells alike at first
    state = head.state_dict() | {"out.weight": weight, "out.bias": bias, "pool.score.bias": torch.zeros(1)}
    assert head.norm is not None
    state["norm.weight"] = (1 + torch.tensor(head.norm.eps)).sqrt().expand(weight.shape[1]).clone()  # the identity
    return state


class ViTAdapter(ClassificationAdapter):
    """Reads public image backbones, without a head, for fine-tuning."""

    def read_public(self, source: Source, **_: Any) -> CheckpointParts:
        from mmattn.backbones.timm import color_weights
        from mmattn.backbones.vit import VisionTransformer

        converted = read_network(source, VisionTransformer, "ViT, DeiT, DINOv2 or SigLIP")
        keywords, state = dict(converted.keywords), {f"backbone.{key}": value for key, value in converted.state.items()}
        channels = keywords.pop("in_channels")
        if channels == 1:
            state[PATCHES] = color_weights(state[PATCHES])
        elif channels != 3:
            raise CheckpointError(
                f"{source.name}: expected a model of color or gray images, found {channels} channels."
            )
        size = tuple(keywords["image_size"])
        own = {key: keywords.pop(key) for key in OWN if key in keywords}
        # Positions keep the size of the public model's images, and are interpolated for others as in its library.
        resize = "bicubic_antialias" if source.family == TIMM else "bicubic"
        given = {key: value for key, value in keywords.items() if value is not None}
        options = {"pooling": "token", "resize_positions": resize} | given
        model = {"backbone": "vit", "hidden_dim": 0, "backbone_options": options, **own}
        processor = BackboneProcessor(ImageProcessor(size, **statistics(source)), [])
        free = (*FREE, "hidden_dim")
        return CheckpointParts(self, source.where, model, state, processor, headless=True, free=free)
