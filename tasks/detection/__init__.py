"""Object detection: predicts boxes with classes and scores, and explains each by the positions that its query read.

>>> from mmattn.tasks import detection
>>> predictor = detection.load()  # doctest: +SKIP
>>> [(box.label, box.box_xyxy) for box in predictor("photo.jpg").boxes]  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.detection.head import DetectionHead as DetectionHead
    from mmattn.tasks.detection.losses import DetectionLoss as DetectionLoss
    from mmattn.tasks.detection.model import DetectionModel as DetectionModel
    from mmattn.tasks.detection.module import DetectionModule as DetectionModule
    from mmattn.tasks.detection.outputs import DetectionOutput as DetectionOutput
    from mmattn.tasks.detection.plot import DetectionPrediction as DetectionPrediction
    from mmattn.tasks.detection.predict import DetectionPredictor as DetectionPredictor, load as load

_NAMES = {
    "model": ("DetectionModel",),
    "head": ("DetectionHead",),
    "losses": ("DetectionLoss",),
    "outputs": ("DetectionOutput",),
    "predict": ("DetectionPredictor", "load"),
    "plot": ("DetectionPrediction",),
    "module": ("DetectionModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.detection", _NAMES)

TASK = Task(
    name="detection",
    package="mmattn.tasks.detection",
    title="Object detection: train, evaluate, find objects in images, plot where each box was read.",
    model="model:DetectionModel",
    processor="processor:DetectionProcessor",
    module="module:DetectionModule",
    datamodule="module:DetectionDataModule",
    predictor="predict:DetectionPredictor",
    demo="demo:make",
    options=(
        Option("image", "an image file; a folder of images is given by --input DIR", kind="item"),
        Option("threshold", "least score of all classes (default: each class's own, chosen on validation)", float),
        Option("tile", "side of the tiles into which larger images are split", int, metavar="PIXELS"),
        Option("save_images", "folder for PNGs of the images with their boxes", only="predict", metavar="DIR"),
        Option("format", "jsonl (default), or coco: one JSON array, as COCO's evaluation reads it", only="predict"),
    ),
    adapter="adapters:DetectionAdapter",
    families={
        "detr/*": "adapters:DetrAdapter",
        "deformable_detr/*": "adapters:DeformableDetrAdapter",
        "rt_detr/*": "adapters:RTDetrAdapter",
        "timm/*": "adapters:TimmAdapter",
    },
    baselines={
        "image ablated": "--data.ablate image",
        "mean pooling for cross-attention": "--model.pooling mean",
    },
    variants={
        "dense cross-attention": "--model.cross_attention.kind dense",
        "position attention": "--model.position_attention true",
        "without denoising": "--model.denoising_queries 0",
    },
    metric="map",
    packages=("faster_coco_eval", "scipy"),
    kernel_words="--model.encoder_layers 1",
    localisation="localisation:localisation",
    tiny="--data.demo_size 16 --data.batch_size 8 --model.channels [6,8,8,8] --model.embed_dim 16 "
    "--model.num_heads 2 --model.num_queries 12 --model.num_layers 1 --model.ffn_dim 16",
)
