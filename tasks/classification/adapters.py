"""What a classifier can begin with: a model of ours, whatever its classes, or a public ViT, DeiT, DINOv2 or SigLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmattn.tasks.common.pretrained import FREE, Parts, Source

from mmattn.data.image.processor import ImageProcessor
from mmattn.tasks.classification.data import ClassificationProcessor
from mmattn.tasks.classification.model import ClassificationModel
from mmattn.tasks.common.finetune import completed, read_network, without
from mmattn.tasks.common.public_images import statistics

# Keywords of VisionTransformer that the task's model has itself.
OWN = ("embed_dim", "num_layers", "num_heads", "ffn_dim", "patch_size", "dropout", "attention")
HEAD = ("head.",)
POSITIONS = ("backbone.positions", "backbone.positions.weight")


@dataclasses.dataclass
class PublicProcessor:
    """In the place of a processor: a public backbone knows how it wants its pictures, and no classes of ours."""

    image: ImageProcessor
    labels: tuple[str, ...] = ()
    multi_label: bool = False


def read_public(source: Source, task: str, processor_class: Any) -> Parts:
    """A public image backbone as the beginning of a classifier, without a head.

    Raises:
        CheckpointError: it is damaged, or of a family that is no picture's.
    """
    from mmattn.backbones.vit import VisionTransformer

    converted = read_network(source, VisionTransformer, "ViT, DeiT, DINOv2 or SigLIP")
    keywords = dict(converted.keywords)
    size = tuple(keywords["image_size"])
    own = {key: keywords.pop(key) for key in OWN if key in keywords}
    # Positions stay those of the public pictures' size, and are resized for others.
    keywords = {"resize_positions": "bicubic"} | {k: v for k, v in keywords.items() if v is not None}
    pooled = {"pooling": "token"} | keywords
    model = {"backbone": "vit", "hidden_dim": 0, "backbone_options": pooled, **own}
    state = {f"backbone.{key}": value for key, value in converted.state.items()}
    processor = PublicProcessor(ImageProcessor(size, **statistics(source)))
    return Parts(source.name, model, state, processor, headless=True, free=(*FREE, "hidden_dim"))


def fitted(start: Parts, sizes: Mapping[str, Any], seed: int) -> Parts:
    """What training begins with, for these data: their number of classes, their size of pictures.

    Where there is no head, a new one is drawn from the seed; learned positions of a model of ours are resized.

    Args:
        start: what was found.
        sizes: num_classes and image_size of the data.
        seed: of the new head.
    """
    return completed(start, ClassificationModel, sizes, seed, HEAD, POSITIONS)


def adopt(start: Parts, labels: list[str], multi_label: bool, **image: Any) -> tuple[Parts, ClassificationProcessor]:
    """The processor to go on with: pictures as the model knows them, classes as the data have them.

    Args:
        start: what was found.
        labels: of the data.
        multi_label: likewise.
        image: what is to be changed of how pictures are read; none is as it was.

    Returns:
        The parts, without the head where the classes are not the model's own, and the processor.
    """
    known = start.processor
    changes = {key: value for key, value in image.items() if value is not None}
    processor = ClassificationProcessor(ImageProcessor(**(known.image.config() | changes)), labels, multi_label)
    if (list(known.labels), known.multi_label) != (processor.labels, processor.multi_label):
        start = without(start, HEAD, f"knows {len(known.labels)} other classes")
    return start, processor
