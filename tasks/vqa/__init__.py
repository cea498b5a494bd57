"""Visual question answering: predicts the answer to a question about an image, and explains it by attention.

>>> from mmattn.tasks import vqa
>>> predictor = vqa.load()  # doctest: +SKIP
>>> predictor({"image": "photo.jpg", "question": "What colour is the circle?"})  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import IMAGE_ENCODERS, TEXT_ENCODERS, Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.vqa.model import VQAHead as VQAHead, VQAModel as VQAModel, VQAOutput as VQAOutput
    from mmattn.tasks.vqa.module import VQAModule as VQAModule
    from mmattn.tasks.vqa.predict import VQAPrediction as VQAPrediction, VQAPredictor as VQAPredictor, load as load

_NAMES = {
    "model": ("VQAModel", "VQAHead", "VQAOutput"),
    "predict": ("VQAPredictor", "VQAPrediction", "load"),
    "module": ("VQAModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.vqa", _NAMES)

TASK = Task(
    name="vqa",
    package="mmattn.tasks.vqa",
    title="Visual question answering: train, evaluate, answer questions about images, plot the attention.",
    model="model:VQAModel",
    processor="processor:VQAProcessor",
    module="module:VQAModule",
    datamodule="module:VQADataModule",
    predictor="predict:VQAPredictor",
    demo="demo:make",
    options=(
        Option("image", "an image file; a folder of images is given by --input DIR", kind="item"),
        Option("question", "the question about the image", kind="item", bare=True),
        Option("top_k", "number of answers, most probable first (default: 1)", int, only="predict"),
        Option("num_beams", "beams of a model that writes its answers (default: the model's own)", int),
    ),
    adapter="adapters:VQAAdapter",
    families={"vilt/*": "adapters:ViltAdapter", "blip/BlipForQuestionAnswering": "adapters:AnswererAdapter"},
    encoders=dict.fromkeys((*IMAGE_ENCODERS, "timm/*"), "adapters:ImageAdapter")
    | dict.fromkeys(TEXT_ENCODERS, "adapters:TextAdapter"),
    default_checkpoint="easy_vqa",
    baselines={
        "image ablated": "--data.ablate image",
        "question ablated": "--data.ablate question",
        "mean pooling for attention": "--model.pooling mean --loss.attention_supervision 0",
    },
    variants={"without attention supervision": "--loss.attention_supervision 0 --loss.object_supervision 0"},
    metric="accuracy",
    localisation="localisation:localisation",
    tiny="--data.demo_size 12 --data.batch_size 36 --model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 32 "
    "--model.fusion_layers 1",
    upgrade="model:upgrade",
)
