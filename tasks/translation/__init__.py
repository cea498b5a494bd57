"""Translation of sentences, with attention maps over the source words.

>>> from mmattn.tasks import translation
>>> translator = translation.load()  # doctest: +SKIP
>>> translator("the king paints a door").translation  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.seq2seq import SEARCH
from mmattn.tasks.common.task import Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.translation.model import TranslationHead as TranslationHead, TranslationModel as TranslationModel
    from mmattn.tasks.translation.module import TranslationModule as TranslationModule
    from mmattn.tasks.translation.predict import (
        TranslationPrediction as TranslationPrediction,
        TranslationPredictor as TranslationPredictor,
        load as load,
    )

_NAMES = {
    "model": ("TranslationModel", "TranslationHead"),
    "predict": ("TranslationPredictor", "TranslationPrediction", "load"),
    "module": ("TranslationModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.translation", _NAMES)

TASK = Task(
    name="translation",
    package="mmattn.tasks.translation",
    title="Translation: train on parallel text, evaluate, translate, plot the attention between words.",
    model="model:TranslationModel",
    processor="mmattn.tasks.common.seq2seq.processor:PairProcessor",
    module="module:TranslationModule",
    datamodule="module:TranslationDataModule",
    predictor="predict:TranslationPredictor",
    demo="demo:make",
    options=(
        Option("text", "sentence to translate", kind="item", bare=True),
        *SEARCH,
        Option("prefix", "T5 only: prefix of each sentence (default: the one in its config.json)", kind="load"),
    ),
    adapter="mmattn.tasks.common.seq2seq.adapters:PairAdapter",
    families=dict.fromkeys(("marian/*", "bart/*", "t5/*"), "mmattn.tasks.common.seq2seq.adapters:Seq2SeqAdapter"),
    baselines={"source ablated": "--data.ablate source", "mean pooling for attention": "--model.pooling mean"},
    variants={
        "LSTM, additive attention": "--model.decoder lstm",
        "LSTM, local attention": "--model.decoder lstm --model.cross_attention.kind local",
    },
    metric="bleu",
    packages=("sacrebleu",),
    localisation="localisation:localisation",
    tiny="--data.demo_size 60 --data.vocab_size 300 --data.max_tokens 400 --data.max_target_len 20 --data.batch_size 8 "
    "--model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 16 --model.encoder_layers 1 --model.decoder_layers 1",
)
