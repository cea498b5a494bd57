"""Text classification: labels, scores or tags of texts and pairs of texts.

>>> from mmattn.tasks import text_classification
>>> predictor = text_classification.load()  # doctest: +SKIP
>>> predictor("The soup was good, but the room was not clean.")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import TEXT_ENCODERS, Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.text_classification.model import (
        TextClassificationModel as TextClassificationModel,
        TextHead as TextHead,
        TextOutput as TextOutput,
    )
    from mmattn.tasks.text_classification.module import TextClassificationModule as TextClassificationModule
    from mmattn.tasks.text_classification.predict import (
        TextClassificationPredictor as TextClassificationPredictor,
        TextPrediction as TextPrediction,
        load as load,
    )

_NAMES = {
    "model": ("TextClassificationModel", "TextHead", "TextOutput"),
    "predict": ("TextClassificationPredictor", "TextPrediction", "load"),
    "module": ("TextClassificationModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.text_classification", _NAMES)

_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM")
_FAMILIES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "albert": "Albert",
    "modernbert": "ModernBert",
    "deberta-v2": "DebertaV2",
}

TASK = Task(
    name="text_classification",
    package="mmattn.tasks.text_classification",
    title="Text classification: train on labeled texts, pairs or words, evaluate, predict labels, show what decides.",
    model="model:TextClassificationModel",
    processor="processor:TextClassificationProcessor",
    module="module:TextClassificationModule",
    datamodule="module:TextClassificationDataModule",
    predictor="predict:TextClassificationPredictor",
    demo="demo:make",
    options=(
        Option("text", "the text", kind="item", bare=True),
        Option("text_pair", "the second text of a pair", kind="item", optional=True),
        Option("top_k", "number of labels, most probable first (default: 1)", int, only="predict"),
        Option("task", "of a model of several tasks: which one answers (default: the first)"),
        Option("label", "the label that is explained (default: the predicted one)", only="explain"),
    ),
    adapter="adapters:TextClassificationAdapter",
    families=dict.fromkeys((*TEXT_ENCODERS, "albert/*", "modernbert/*", "deberta-v2/*"), "adapters:EncoderAdapter")
    | {f"{family}/{name}{head}": "adapters:EncoderAdapter" for family, name in _FAMILIES.items() for head in _HEADS},
    baselines={
        "order ablated": "--data.ablate order",
        "bag of words": "--model.encoder bag --model.pooling mean",
        "mean pooling for attention": "--model.pooling mean",
    },
    variants={
        "tagging": "--data.kind tagging --model.characters 16",
        "recurrent": "--model.encoder recurrent",
        "hierarchical": "--model.encoder hierarchical",
        "characters": "--model.characters 16",
    },
    metric="accuracy",
    kernel_length=64,
    localisation="localisation:localisation",
    tiny="--data.demo_size 24 --data.batch_size 8 --model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 16 "
    "--model.num_layers 1",
)
