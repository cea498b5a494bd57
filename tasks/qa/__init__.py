"""Question answering: finds the answer to a question in a text or in many, with its place.

>>> from mmattn.tasks import qa
>>> predictor = qa.load()  # doctest: +SKIP
>>> predictor({"question": "Who keeps the goat?", "context": "Ada keeps the goat."})  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import TEXT_ENCODERS, Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.qa.model import QAModel as QAModel, QAOutput as QAOutput, SpanHead as SpanHead
    from mmattn.tasks.qa.module import QAModule as QAModule
    from mmattn.tasks.qa.predict import QAPrediction as QAPrediction, QAPredictor as QAPredictor, load as load

_NAMES = {
    "model": ("QAModel", "QAOutput", "SpanHead"),
    "predict": ("QAPredictor", "QAPrediction", "load"),
    "module": ("QAModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.qa", _NAMES)

TASK = Task(
    name="qa",
    package="mmattn.tasks.qa",
    title="Question answering: train on questions about texts, evaluate, find answers in one text or in many.",
    model="model:QAModel",
    processor="processor:QAProcessor",
    module="module:QAModule",
    datamodule="module:QADataModule",
    predictor="predict:QAPredictor",
    demo="demo:make",
    options=(
        Option("question", "the question", kind="item", bare=True),
        Option("context", "the text that answers it", kind="item", unless="corpus"),
        Option("corpus", "a file or folder of texts in which answers are searched", kind="load", metavar="PATH"),
        Option("retriever", "how the corpus is searched: bm25 (default) or embeddings", kind="load"),
        Option("passages", "number of the corpus's passages that are read (default: 5)", int, only="predict"),
        Option("top_k", "number of answers, most probable first (default: 1)", int, only="predict"),
        Option("max_answer_len", "maximum number of tokens of an answer (default: the model's)", int, only="predict"),
        Option(
            "threshold",
            "score by which none must exceed the best answer, for none to be predicted (default: the model's)",
            float,
            only="predict",
        ),
    ),
    adapter="adapters:QAAdapter",
    families=dict.fromkeys(TEXT_ENCODERS, "adapters:BertAdapter")
    | {
        "bert/BertForQuestionAnswering": "adapters:BertAdapter",
        "roberta/RobertaForQuestionAnswering": "adapters:BertAdapter",
        "xlm-roberta/XLMRobertaForQuestionAnswering": "adapters:BertAdapter",
        "distilbert/DistilBertForQuestionAnswering": "adapters:BertAdapter",
        "electra/ElectraForQuestionAnswering": "adapters:BertAdapter",
    },
    baselines={
        "question ablated": "--data.ablate question",
        "mean pooling for attention": "--model.pooling mean --loss.evidence 0",
    },
    variants={"without evidence": "--loss.evidence 0"},
    metric="f1",
    kernel_length=160,
    localisation="localisation:localisation",
    tiny="--data.demo_size 24 --data.batch_size 8 --data.max_len 160 --model.embed_dim 16 --model.num_heads 2 "
    "--model.ffn_dim 16 --model.num_layers 1",
)
