"""Image classification: predicts the class of an image, and explains it by a relevance map.

>>> from mmattn.tasks import classification
>>> predictor = classification.load()  # doctest: +SKIP
>>> predictor("photo.jpg")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import IMAGE_ENCODERS, Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.classification.model import (
        ClassificationHead as ClassificationHead,
        ClassificationModel as ClassificationModel,
        ClassificationOutput as ClassificationOutput,
    )
    from mmattn.tasks.classification.module import ClassificationModule as ClassificationModule
    from mmattn.tasks.classification.predict import (
        ClassificationPrediction as ClassificationPrediction,
        ClassificationPredictor as ClassificationPredictor,
        load as load,
    )

_NAMES = {
    "model": ("ClassificationModel", "ClassificationHead", "ClassificationOutput"),
    "predict": ("ClassificationPredictor", "ClassificationPrediction", "load"),
    "module": ("ClassificationModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.classification", _NAMES)

# The transformer has an 8x8 map, as the convolutional network.
_CCT = "--model.backbone cct --model.tokenizer_layers 3 --optim.lr 0.001"

TASK = Task(
    name="classification",
    package="mmattn.tasks.classification",
    title="Image classification: train, evaluate, classify images, plot the relevance of their regions.",
    model="model:ClassificationModel",
    processor="processor:ClassificationProcessor",
    module="module:ClassificationModule",
    datamodule="module:ClassificationDataModule",
    predictor="predict:ClassificationPredictor",
    demo="demo:make",
    options=(
        Option("image", "an image file; a folder of images is given by --input DIR", kind="item"),
        Option("top_k", "number of classes, most probable first (default: 1)", int, only="predict"),
        Option("flip", "average the predictions of the image and its mirror image", bool, only="predict"),
    ),
    adapter="adapters:ClassificationAdapter",
    families=dict.fromkeys(IMAGE_ENCODERS, "adapters:ViTAdapter") | {"timm/*": "adapters:TimmAdapter"},
    baselines={
        "mean pooling for attention": "--model.pooling mean",
        "patches shuffled": "--data.ablate arrangement",
    },
    variants={
        "without channel attention": "--model.channel_attention none",
        "ECA": "--model.channel_attention eca",
        "CBAM": "--model.channel_attention cbam",
        "compact convolutional transformer": _CCT,
        "vision transformer": "--model.backbone vit --optim.lr 0.001",
    },
    metric="top1",
    kernel_words=_CCT,
    localisation="localisation:localisation",
    tiny="--data.demo_size 36 --data.batch_size 12 --model.channels [8,12] --model.embed_dim 16 --model.num_heads 2 "
    "--model.num_queries 2",
)
