"""Semantic segmentation: predicts the class of each pixel of an image, and explains it by attention.

>>> from mmattn.tasks import segmentation
>>> predictor = segmentation.load()  # doctest: +SKIP
>>> predictor("photo.jpg").labels.shape  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.segmentation.model import (
        SegmentationHead as SegmentationHead,
        SegmentationModel as SegmentationModel,
        SegmentationOutput as SegmentationOutput,
    )
    from mmattn.tasks.segmentation.module import SegmentationModule as SegmentationModule
    from mmattn.tasks.segmentation.predict import (
        SegmentationPrediction as SegmentationPrediction,
        SegmentationPredictor as SegmentationPredictor,
        load as load,
    )

_NAMES = {
    "model": ("SegmentationModel", "SegmentationHead", "SegmentationOutput"),
    "predict": ("SegmentationPredictor", "SegmentationPrediction", "load"),
    "module": ("SegmentationModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.segmentation", _NAMES)

_SEGFORMER = "--model.network segformer --model.channels [32,64,96,128] --model.decoder_channels [96] --optim.lr 0.001"

TASK = Task(
    name="segmentation",
    package="mmattn.tasks.segmentation",
    title="Segmentation: train, evaluate, segment images, plot the attention.",
    model="model:SegmentationModel",
    processor="processor:SegmentationProcessor",
    module="module:SegmentationModule",
    datamodule="module:SegmentationDataModule",
    predictor="predict:SegmentationPredictor",
    demo="demo:make",
    options=(
        Option("image", "an image file; a folder of images is given by --input DIR", kind="item"),
        Option("masks", "folder for PNGs of class ids, one per image", only="predict", metavar="DIR"),
        Option(
            "overlays",
            "folder for images overlaid with the predicted classes, with a legend",
            only="predict",
            metavar="DIR",
        ),
        Option("tile", "side of the tiles into which large images are split", int, metavar="PIXELS"),
        Option("flip", "average the predictions of the image and its mirror image", bool),
        Option("class_name", "the class to explain (default: the rarest in the image)", only="explain"),
    ),
    adapter="adapters:SegmentationAdapter",
    families={
        "segformer/*": "adapters:SegFormerAdapter",
        "timm/*": "adapters:TimmAdapter",
    },
    baselines={"context ablated": "--data.ablate context"},
    variants={
        "gates removed": "--model.gates false",
        "without deep supervision": "--model.deep_supervision false",
        "SegFormer": _SEGFORMER,
    },
    metric="miou",
    kernel_words=_SEGFORMER,  # attention to spatially reduced keys: dense, or kernels that need no order
    localisation="localisation:localisation",
    tiny="--data.demo_size 16 --data.batch_size 8 --model.channels [6,8]",
)
