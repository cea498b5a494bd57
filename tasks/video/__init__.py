"""Video classification: predicts what happens in a video, and explains it by frames and by places in these.

>>> from mmattn.tasks import video
>>> predictor = video.load()  # doctest: +SKIP
>>> predictor("clip.mp4").label  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import IMAGE_ENCODERS, Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.video.head import VideoHead as VideoHead
    from mmattn.tasks.video.model import VideoModel as VideoModel, VideoOutput as VideoOutput
    from mmattn.tasks.video.module import VideoModule as VideoModule
    from mmattn.tasks.video.predict import (
        VideoPrediction as VideoPrediction,
        VideoPredictor as VideoPredictor,
        load as load,
    )

_NAMES = {
    "head": ("VideoHead",),
    "model": ("VideoModel", "VideoOutput"),
    "predict": ("VideoPredictor", "VideoPrediction", "load"),
    "module": ("VideoModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.video", _NAMES)

TASK = Task(
    name="video",
    package="mmattn.tasks.video",
    title="Video classification: train, evaluate, classify videos, plot which frames and regions matter.",
    model="model:VideoModel",
    processor="processor:VideoProcessor",
    module="module:VideoModule",
    datamodule="module:VideoDataModule",
    predictor="predict:VideoPredictor",
    demo="demo:make",
    options=(
        Option("video", "a video file, or a folder of numbered images; others are given by --input", kind="item"),
        Option("top_k", "number of classes, most probable first (default: 1)", int, only="predict"),
        Option("clips", "number of clips of a video, whose predictions are averaged (default: 1)", int, only="predict"),
        Option("crops", "number of crops of each, along the longer side (default: 1)", int, only="predict"),
        Option("window", "predict windows of so many seconds, and the whole", float, only="predict", metavar="S"),
        Option("stride", "distance of the windows in seconds (default: --window)", float, only="predict", metavar="S"),
        Option("gif", "folder into which GIFs are written, besides the PNGs", only="explain", metavar="DIR"),
    ),
    adapter="adapters:VideoAdapter",
    families={"timesformer/*": "adapters:TimesformerAdapter", "videomae/*": "adapters:VideoMAEAdapter"},
    encoders=dict.fromkeys((*IMAGE_ENCODERS, "timm/*"), "adapters:ImageAdapter"),
    baselines={
        "frames shuffled": "--data.ablate order --loss.attention_supervision 0",
        "one frame": "--data.ablate motion --loss.attention_supervision 0",
        "mean pooling for attention": "--model.pooling mean --loss.attention_supervision 0",
    },
    variants={
        "without supervision": "--loss.attention_supervision 0",
        "divided space-time attention": "--model.encoder divided --model.pooling token --loss.attention_supervision 0",
        "tubelets": "--model.encoder tubelet --model.pooling mean --loss.attention_supervision 0",
    },
    metric="top1",
    kernel_words="--model.encoder tubelet",
    kernel_length=96,
    localisation="localisation:localisation",
    tiny="--data.demo_size 32 --data.batch_size 8 --model.channels [8,8] --model.embed_dim 16 --model.num_heads 2 "
    "--model.temporal_layers 1",
)
