"""Captioning: describes images in words, and explains each word by attention.

>>> from mmattn.tasks import captioning
>>> predictor = captioning.load()  # doctest: +SKIP
>>> predictor("photo.jpg").caption  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.seq2seq import SEARCH
from mmattn.tasks.common.task import IMAGE_ENCODERS, Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.captioning.model import (
        CaptioningHead as CaptioningHead,
        CaptioningModel as CaptioningModel,
        CaptioningOutput as CaptioningOutput,
    )
    from mmattn.tasks.captioning.module import CaptioningModule as CaptioningModule
    from mmattn.tasks.captioning.predict import (
        CaptioningPrediction as CaptioningPrediction,
        CaptioningPredictor as CaptioningPredictor,
        load as load,
    )

_NAMES = {
    "model": ("CaptioningModel", "CaptioningHead", "CaptioningOutput"),
    "predict": ("CaptioningPredictor", "CaptioningPrediction", "load"),
    "module": ("CaptioningModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.captioning", _NAMES)

TASK = Task(
    name="captioning",
    package="mmattn.tasks.captioning",
    title="Captioning: train on images with captions, evaluate, describe images, plot the attention of each word.",
    model="model:CaptioningModel",
    processor="processor:CaptionProcessor",
    module="module:CaptioningModule",
    datamodule="module:CaptioningDataModule",
    predictor="predict:CaptioningPredictor",
    demo="demo:make",
    options=(
        Option("image", "an image file; a folder of images is given by --input DIR", kind="item"),
        *SEARCH,
    ),
    adapter="adapters:CaptionAdapter",
    families={
        "blip/BlipForConditionalGeneration": "adapters:ImageTextAdapter",
        "git/GitForCausalLM": "adapters:ImageTextAdapter",
        "vision-encoder-decoder/*": "adapters:ImageTextAdapter",
    },
    encoders=dict.fromkeys((*IMAGE_ENCODERS, "timm/*"), "adapters:ImageAdapter"),
    baselines={
        "image ablated": "--data.ablate image",
        "mean pooling for attention": "--model.pooling mean --loss.attention_supervision 0",
    },
    variants={
        "LSTM, Show, Attend and Tell": "--model.decoder lstm",
        "without supervision": "--loss.attention_supervision 0 --loss.object_supervision 0",
    },
    metric="bleu4",
    packages=("sacrebleu",),
    localisation="localisation:localisation",
    tiny="--data.demo_size 12 --data.batch_size 4 --model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 32 "
    "--model.decoder_layers 1",
)
