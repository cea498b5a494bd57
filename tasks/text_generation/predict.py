"""Predictor of text generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmattn.data.errors import DataError, is_broken, shorten
from mmattn.generate import GenerationConfig
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.items import mapping_of, name_of
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.text_generation.corpus import Block
from mmattn.tasks.text_generation.data import TextBatch, TextDataset, TextSample

Item = Any  # a prompt, or a mapping with prompt


@dataclass
class TextGenerationPrediction:
    """The continuation of one prompt."""

    id: str
    prompt: str
    text: str  # the continuation
    score: float  # mean log-probability of its tokens


class TextGenerationPredictor(Predictor[Item, TextGenerationPrediction]):
    """Predictor of a language model. Items are prompts, or mappings with `prompt` and optionally `id`."""

    task = "text_generation"
    answer = "text"

    def to_sample(self, item: Item, number: int) -> TextSample:
        if isinstance(item, Block):
            ids = item.ids().tolist()
            half = len(ids) // 2
            decode = self.processor.tokenizer.decode
            return TextSample(item.id, decode(ids[half:]), decode(ids[1:half]))
        if isinstance(item, TextSample):
            if item.text and not item.prompt:
                text = item.whole
                cut = text.rfind(" ", 0, max(len(text) // 2, 1)) + 1
                return TextSample(item.id, text[cut:], text[:cut])
            return item
        given = mapping_of(item, "prompt")
        name, prompt = name_of(given, number, ("prompt",)), given["prompt"]
        if not isinstance(prompt, str) or is_broken(prompt):
            raise DataError(f"item {name}", "a prompt, a text", shorten(prompt))
        return TextSample(name, "", prompt)

    def predict_batch(
        self,
        samples: Sequence[TextSample],
        batch: TextBatch,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        num_beams: int = 1,
        seed: int = 0,
    ) -> list[TextGenerationPrediction]:
        rows = [self.processor.prompt_ids(sample.prompt) for sample in samples]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.processor.tokenizer.pad_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, longest - len(row) :] = torch.tensor(row)
            mask[number, longest - len(row) :] = True
        tokenizer = self.processor.tokenizer
        config = GenerationConfig(
            max_new_tokens=max_new_tokens or 64,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            top_k=top_k,
            top_p=top_p,
            num_beams=num_beams,
        )
        generator = torch.Generator(self.device).manual_seed(seed)
        found = self.model.generate(ids.to(self.device), mask.to(self.device), config, generator=generator)
        texts = [tokenizer.decode(one[0]) for one in found.tokens(without=config.eos)]
        return [
            TextGenerationPrediction(sample.id, sample.prompt, text, score)
            for sample, text, score in zip(samples, texts, found.scores[:, 0].tolist(), strict=True)
        ]

    def explain_batch(self, samples: Sequence[Any], batch: Any) -> list[Any]:
        raise ConfigError("explain: not yet.")

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        raise ConfigError("export: not yet.")

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Item]:
        return TextDataset(path, "line", on_error=on_error, require_labels=False).samples

    def demo_samples(self) -> Sequence[TextSample]:
        from mmattn.tasks.text_generation.demo import make

        return make("test", 6)

    def truth(self, item: Item) -> str | None:
        if isinstance(item, Block):
            item = self.to_sample(item, 0)
        return (item.whole or None) if isinstance(item, TextSample) and item.text else None

    def grade(self, item: Any, truth: str, prediction: Any) -> float:
        found, right = prediction.text.split(), truth.split()
        return sum(a == b for a, b in zip(found, right, strict=False)) / max(len(right), 1)

    def text(self, item: Item) -> str:
        if isinstance(item, Block):
            item = self.to_sample(item, 0)
        return item.prompt if isinstance(item, TextSample) else str(item)


load = TextGenerationPredictor.load
__all__ = ["Mapping", "load"]
