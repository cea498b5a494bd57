"""Summarization: summaries of documents, with the source tokens of each word.

>>> from mmattn.tasks import summarization
>>> summarizer = summarization.load()  # doctest: +SKIP
>>> summarizer("a long text").summary  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.seq2seq import SEARCH
from mmattn.tasks.common.task import TEXT_ENCODERS, Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.summarization.copying import CopyHead as CopyHead
    from mmattn.tasks.summarization.extractive import (
        ExtractiveModel as ExtractiveModel,
        ExtractiveOutput as ExtractiveOutput,
        SentenceHead as SentenceHead,
    )
    from mmattn.tasks.summarization.hierarchy import HierarchicalEncoder as HierarchicalEncoder
    from mmattn.tasks.summarization.model import (
        SummarizationModel as SummarizationModel,
        SummaryOutput as SummaryOutput,
    )
    from mmattn.tasks.summarization.module import SummarizationModule as SummarizationModule
    from mmattn.tasks.summarization.predict import (
        SummarizationPrediction as SummarizationPrediction,
        SummarizationPredictor as SummarizationPredictor,
        load as load,
    )

_NAMES = {
    "model": ("SummarizationModel", "SummaryOutput"),
    "copying": ("CopyHead",),
    "extractive": ("ExtractiveModel", "ExtractiveOutput", "SentenceHead"),
    "hierarchy": ("HierarchicalEncoder",),
    "predict": ("SummarizationPredictor", "SummarizationPrediction", "load"),
    "module": ("SummarizationModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.summarization", _NAMES)

TASK = Task(
    name="summarization",
    package="mmattn.tasks.summarization",
    title="Summarization: train on documents with summaries, evaluate, summarize, plot the source of each word.",
    model="model:SummarizationModel",
    processor="processor:SummaryProcessor",
    module="module:SummarizationModule",
    datamodule="module:SummarizationDataModule",
    predictor="predict:SummarizationPredictor",
    demo="demo:make",
    options=(
        Option("text", "document to summarize", kind="item", bare=True),
        *SEARCH,
        Option("num_sentences", "extractive models: maximum number of sentences (default: as saved, or 3)", int),
        Option("prefix", "T5 only: prefix of each document (default: the one in its config.json)", kind="load"),
    ),
    adapter="adapters:SummarizationAdapter",
    families=dict.fromkeys(("bart/*", "t5/*"), "mmattn.tasks.common.seq2seq.adapters:Seq2SeqAdapter")
    | dict.fromkeys(TEXT_ENCODERS, "adapters:BertAdapter"),
    baselines={
        "source ablated": "--data.ablate source",
        "mean pooling for attention": "--model.pooling mean --model.copy false --loss.salience 0",
    },
    variants={
        "without copying": "--model.copy false --loss.salience 0",
        "without salience": "--loss.salience 0",
        "words alone": "--model.hierarchical false",
        "window with global tokens": "--model.hierarchical false --model.global_tokens sentences "
        "--model.attention.kind sliding_window --model.attention.window 8",
    },
    metric="rouge1_first",
    packages=("rouge_score",),
    kernel_length=320,
    localisation="localisation:localisation",
    tiny="--data.demo_size 40 --data.vocab_size 300 --data.max_tokens 2000 --data.batch_size 4 --model.embed_dim 16 "
    "--model.num_heads 2 --model.ffn_dim 16 --model.encoder_layers 1 --model.decoder_layers 1 --decode.num_beams 1",
)
