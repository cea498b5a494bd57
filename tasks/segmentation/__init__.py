"""Segmentation: an image in, the class of each of its pixels and where the model looked out.

>>> from mmattn.tasks import segmentation
>>> predictor = segmentation.load()  # doctest: +SKIP
>>> predictor("photo.jpg").labels.shape  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.segmentation.model import SegmentationHead as SegmentationHead
    from mmattn.tasks.segmentation.model import SegmentationModel as SegmentationModel
    from mmattn.tasks.segmentation.model import SegmentationOutput as SegmentationOutput
    from mmattn.tasks.segmentation.module import SegmentationModule as SegmentationModule
    from mmattn.tasks.segmentation.predict import SegmentationAnswer as SegmentationAnswer
    from mmattn.tasks.segmentation.predict import SegmentationPredictor as SegmentationPredictor
    from mmattn.tasks.segmentation.predict import load as load

_HOMES = {
    "SegmentationModel": "model",
    "SegmentationHead": "model",
    "SegmentationOutput": "model",
    "SegmentationPredictor": "predict",
    "SegmentationAnswer": "predict",
    "load": "predict",
    "SegmentationModule": "module",
}
__all__, __getattr__ = lazy("mmattn.tasks.segmentation", _HOMES)

_SEGFORMER = "--model.network segformer --model.channels [32,64,96,128] --model.decoder_channels [96] --model.lr 0.001"

TASK = Task(
    name="segmentation",
    title="Segmentation: train, measure, paint the classes of a picture's pixels, see where the model looked.",
    model="mmattn.tasks.segmentation.model:SegmentationModel",
    processor="mmattn.tasks.segmentation.processor:SegmentationProcessor",
    module="mmattn.tasks.segmentation.module:SegmentationModule",
    datamodule="mmattn.tasks.segmentation.module:SegmentationDataModule",
    predictor="mmattn.tasks.segmentation.predict:SegmentationPredictor",
    demo="mmattn.tasks.segmentation.demo:make",
    options=(
        Option("image", "a picture; or a folder's pictures by --input DIR", kind="item"),
        Option("masks", "folder for PNGs of class ids, one a picture", only="predict", metavar="DIR"),
        Option("overlays", "folder for pictures with the classes laid over them", only="predict", metavar="DIR"),
        Option("tile", "side of the tiles that a large picture is cut into", int, metavar="PIXELS"),
        Option("flip", "mean of the picture and its mirror image", bool),
        Option("class_name", "the class to explain (default: the rarest in the picture)", only="explain"),
    ),
    adapter="mmattn.tasks.segmentation.adapters:SegmentationAdapter",
    families={
        "segformer/*": "mmattn.tasks.segmentation.adapters:SegFormerAdapter",
        "timm/*": "mmattn.tasks.segmentation.adapters:TimmAdapter",
    },
    baselines={"context hidden": "--data.hide context"},
    variants={
        "gates removed": "--model.gates false",
        "without deep supervision": "--model.deep_supervision false",
        "SegFormer": _SEGFORMER,
    },
    metric="miou",
    kernel_words=_SEGFORMER,  # attention between maps and their reduced keys: dense, or what needs no order
    localisation="mmattn.tasks.segmentation.localisation:localisation",
    tiny="--data.scenes 16 --data.batch_size 8 --model.channels [6,8]",
)
