"""Text generation: trains language models, and continues texts.

>>> from mmattn.tasks import text_generation
>>> writer = text_generation.load()  # doctest: +SKIP
>>> writer("the old king that the dogs").text  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmattn.tasks.common.lazy import lazy
from mmattn.tasks.common.task import Option, Task

if TYPE_CHECKING:
    from mmattn.tasks.text_generation.model import (
        TextGenerationHead as TextGenerationHead,
        TextGenerationModel as TextGenerationModel,
    )
    from mmattn.tasks.text_generation.module import TextGenerationModule as TextGenerationModule
    from mmattn.tasks.text_generation.predict import (
        TextGenerationPrediction as TextGenerationPrediction,
        TextGenerationPredictor as TextGenerationPredictor,
        load as load,
    )

_NAMES = {
    "model": ("TextGenerationModel", "TextGenerationHead"),
    "predict": ("TextGenerationPredictor", "TextGenerationPrediction", "load"),
    "module": ("TextGenerationModule",),
}
__all__, __getattr__ = lazy("mmattn.tasks.text_generation", _NAMES)

TASK = Task(
    name="text_generation",
    package="mmattn.tasks.text_generation",
    title="Text generation: train a language model, evaluate, continue texts, plot what each word was read from.",
    model="model:TextGenerationModel",
    processor="processor:TextGenerationProcessor",
    module="module:TextGenerationModule",
    datamodule="module:TextGenerationDataModule",
    predictor="predict:TextGenerationPredictor",
    demo="demo:make",
    options=(
        Option("prompt", "text to continue", kind="item", bare=True),
        Option("max_new_tokens", "most tokens to generate (default: 64, or the model's own)", int),
        Option("temperature", "sampling at this temperature; 0: the most probable token each time (default: 0)", float),
        Option("top_k", "sampling among the k most probable tokens (default: all)", int),
        Option("top_p", "sampling among the most probable tokens of this total probability (default: 1)", float),
        Option("num_beams", "number of beams (default: 1)", int),
        Option("seed", "seed of sampling (default: 0)", int),
    ),
    baselines={"context ablated": "--data.ablate context", "mean pooling for attention": "--model.pooling mean"},
    variants={"LSTM, attention over the past": "--model.decoder lstm"},
    metric="loss",
    localisation="localisation:localisation",
    kernel_words="",
    tiny="--data.demo_size 60 --data.batch_size 8 --data.block_size 32 --model.embed_dim 16 --model.num_layers 1 "
    "--model.num_heads 2 --model.ffn_dim 16",
)
