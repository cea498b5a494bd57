"""Predictor of captioning, and explanations by the attention of each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.image.processor import Box, load_image
from mmattn.data.text.tokenizer import words_of
from mmattn.tasks.captioning.data import CaptionBatch, CaptionDataset, CaptionSample, Span
from mmattn.tasks.captioning.metrics import rouge_l, tokenize
from mmattn.tasks.common.images import image_files, image_sample
from mmattn.tasks.common.seq2seq.model import search
from mmattn.tasks.common.seq2seq.predictor import WritingPredictor


@dataclass
class CaptioningPrediction:
    """The caption of an image."""

    id: str
    caption: str
    score: float  # log p / length^length_penalty


@dataclass
class CaptioningExplanation:
    """The attention of each word of a caption to the image."""

    prediction: CaptioningPrediction
    image: Any  # a PIL image
    words: list[str]
    spans: list[Span]  # of the words, in characters of the caption
    attention: Tensor  # (words, gh, gw) over the model's grid; each map sums to one
    window: Box  # the part of the image that the grid covers, xyxy in 0..1
    truth: str | None = None  # a reference caption, if there is one

    def save(self, path: str | Path) -> None:
        """Write a PNG: the image, and a panel with the attention of each word, in order."""
        from mmattn.plot import caption, overlay

        title = caption(self.prediction.id, self.prediction.caption or "(nothing)", self.truth, 13.0)
        grid = self.attention.shape[1:]
        maps = list(self.attention) or [torch.full(grid, 1 / grid.numel())]  # the image alone, without words
        overlay(self.image, maps, path, title, titles=self.words or None, window=self.window)


class CaptioningPredictor(WritingPredictor[CaptioningPrediction]):
    """Predictor of captions.

    Items are images (a path, the file's bytes, a PIL image or a uint8 array (H, W, 3)), or mappings with `image` and,
    optionally, `id`.
    """

    task = "captioning"
    answer, graded_by = "caption", "ROUGE-L"

    def to_sample(self, item: Any, number: int) -> CaptionSample:
        return image_sample(item, number, CaptionSample)

    def truth(self, item: Any) -> str | None:
        return item.right_targets()[0] or None if isinstance(item, CaptionSample) else None

    def grade(self, item: Any, truth: str, prediction: CaptioningPrediction) -> float:
        return rouge_l(tokenize(prediction.caption), [tokenize(text) for text in item.right_targets()])

    def predict_batch(
        self, samples: Sequence[CaptionSample], batch: CaptionBatch, **options: Any
    ) -> list[CaptioningPrediction]:
        """Write a caption for each image.

        Args:
            samples: The samples of the batch.
            batch: The batch, as of `collate`.
            options: Fields of `mmattn.generate.GenerationConfig` that override the model's own, such as num_beams=3,
                length_penalty=0.8, do_sample=True or no_repeat_ngram_size=3; `mbr`: whether to return the beam of
                minimum Bayes risk instead of the most probable one; `beginning`: words with which each caption begins.
        """
        found = search(self.model, batch, self.processor, **options)
        return [
            CaptioningPrediction(sample.id, text, score) for sample, (text, score) in zip(samples, found, strict=True)
        ]

    def explain_written(
        self, samples: Sequence[CaptionSample], written: Sequence[CaptioningPrediction]
    ) -> list[CaptioningExplanation]:
        """Explain given captions under teacher forcing: by attention or, of public networks, relevance.

        Words of several tokens have the mean of these.
        """
        forced = [CaptionSample(s.id, s.image, [w.caption or " "]) for s, w in zip(samples, written, strict=True)]
        weights: Any = self._relevance(forced) if hasattr(self.model, "relevance") else self._attention(forced)
        grid, first = self.model.grid_size, len(self.processor.target.prefix_ids)
        explanations = []
        for sample, caption, maps in zip(samples, written, weights, strict=True):
            image = load_image(sample.image, name=f"item {sample.id}")
            spans = self.processor.target.spans(caption.caption)[: self.processor.max_target_len - 1 - first]
            _, owners = words_of(caption.caption, spans)
            tokens: dict[int, list[int]] = {}  # of each word, without punctuation
            for n, (owner, (start, end)) in enumerate(zip(owners, spans, strict=True)):
                if any(letter.isalnum() for letter in caption.caption[start:end]):
                    tokens.setdefault(owner, []).append(n)
            kept = [(spans[own[0]][0], spans[own[-1]][1]) for own in tokens.values()]
            maps = maps[first:].unflatten(1, grid)  # (L, gh, gw)
            explanations.append(
                CaptioningExplanation(
                    caption,
                    image,
                    [caption.caption[start:end] for start, end in kept],
                    kept,
                    maps.new_zeros(0, *grid) if not tokens else _means(maps, list(tokens.values())),
                    self.processor.image.window(image.size),
                )
            )
        return explanations

    def _attention(self, forced: Sequence[CaptionSample]) -> Tensor:
        """The attention of each token of given captions to the cells, (B, L, P)."""
        return self.forced(self.processor.collate(forced).to(self.device))

    def _relevance(self, forced: Sequence[CaptionSample]) -> list[Tensor]:
        """The relevance of the patches for each token of given captions, (L, P) each; one by one, for the memory."""
        maps = []
        for sample in forced:
            batch = self.processor.collate([sample]).to(self.device)
            maps += list(self.model.relevance(batch.pixel_values, batch.target_ids, batch.labels).float().cpu())
        return maps

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Any]:
        """Read an image, a folder's at any depth, or a file in any of the training formats, captions optional."""
        if images := image_files(path):
            return [CaptionSample(*image) for image in images]
        return CaptionDataset(path, on_error=on_error, require_labels=False).samples

    def demo_samples(self) -> Sequence[CaptionSample]:
        """The first samples of the built-in test split."""
        from mmattn.tasks.captioning.demo import make

        return make("test", 6)

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export the encoder and the decoder's step, with its cache as flat tensors."""
        from mmattn.tasks.captioning.export import export_captioning

        return export_captioning(self.model, self.processor.image.size, folder, formats)


def _means(maps: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
    """The mean map of each word's tokens, (words, gh, gw)."""
    return torch.stack([maps[list(own)].mean(0) for own in tokens])


load = CaptioningPredictor.load
