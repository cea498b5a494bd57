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
        Option("prompt", "text to continue", kind="item", bare=True, unless="interactive"),
        Option("interactive", "continue what is typed, line by line", bool, kind="command", only="predict"),
        Option("chat", "the prompt is a message, for models with a chat template", bool),
        Option("max_new_tokens", "most tokens to generate (default: 64)", int),
        Option("temperature", "sampling at this temperature; 0: the most probable token (default: 0)", float),
        Option("top_k", "sampling among the k most probable tokens (default: all)", int),
        Option("top_p", "sampling among the most probable tokens of this total probability (default: 1)", float),
        Option("min_p", "sampling among tokens of this fraction of the greatest probability (default: 0)", float),
        Option("repetition_penalty", "factor by which tokens that occurred are less probable (default: 1)", float),
        Option("presence_penalty", "subtracted from the logits of generated tokens (default: 0)", float),
        Option("num_beams", "number of beams (default: 1)", int),
        Option("stop", "text at which a continuation ends"),
        Option("regex", "regular expression that the continuation matches (needs outlines-core)"),
        Option("choices", "texts of which the continuation is one: 'yes|no' (needs outlines-core)"),
        Option("seed", "seed of sampling (default: 0)", int),
        Option("on_long", "what happens to prompts beyond the model's length: cut or refuse (default: cut)"),
        Option("lookup", "speculative decoding by what the text has already: the same text, faster", bool),
        Option("draft", "a smaller model with the same tokenizer, for speculative decoding", kind="load"),
        Option("words", "number of words that are explained (default: 4)", int, only="explain"),
    ),
    families=dict.fromkeys(("gpt2/*", "llama/*", "mistral/*", "qwen2/*", "qwen3/*"), "adapters:LanguageAdapter"),
    baselines={"context ablated": "--data.ablate context", "mean pooling for attention": "--model.pooling mean"},
    variants={"LSTM, attention over the past": "--model.decoder lstm"},
    metric="loss",
    localisation="localisation:localisation",
    tiny="--data.demo_size 60 --data.batch_size 8 --data.block_size 32 --data.tokenizer word --model.embed_dim 16 "
    "--model.num_layers 1 --model.num_heads 2 --model.ffn_dim 16",
)
