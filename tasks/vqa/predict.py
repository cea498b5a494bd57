"""Predictions and explanations of VQA from images and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.image.processor import load_image
from mmattn.explain import capture
from mmattn.tasks.common.images import image_files
from mmattn.tasks.common.items import name_of
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.vqa.data import VQABatch, VQADataset, VQASample
from mmattn.tasks.vqa.metrics import vqa_accuracy

Item = Mapping[str, Any] | VQASample


@dataclass
class VQAPrediction:
    """The predicted answer to a question."""

    id: str
    question: str
    answer: str
    score: float  # its probability over the answer vocabulary, 0..1
    alternatives: list[tuple[str, float]] = field(default_factory=list)  # the next most probable, with probabilities
    unknown_words: list[str] = field(default_factory=list)  # words that are not in the training vocabulary


@dataclass
class VQAExplanation:
    """The attention of a prediction to the image and to the question's words."""

    prediction: VQAPrediction
    image: Any  # a PIL image
    attention: Tensor  # (gh, gw) over the model's grid, sums to one
    window: tuple[float, float, float, float]  # the part of the image that the grid covers, xyxy in 0..1
    words: Tensor  # (L,) attention to the question's words, sums to one
    tokens: list[str]
    # The regions that determine the answer, if annotated.
    regions: list[tuple[float, float, float, float]] = field(default_factory=list)
    truth: str | None = None  # the answers, if they are known

    def save(self, path: str | Path) -> None:
        """Write a PNG of the image and of the attention overlaid on it."""
        from mmattn.plot import NEARLY_UNIFORM, caption, is_flat, overlay

        answer = f"{self.prediction.answer} ({self.prediction.score:.2f})"
        title = caption(f"{self.prediction.id}: {self.prediction.question}", answer, self.truth, 6.8)
        read = self.words.topk(min(3, len(self.tokens)))
        words = ", ".join(f"{self.tokens[i]} {share:.2f}" for share, i in zip(*map(Tensor.tolist, read), strict=True))
        flat = is_flat(self.words, 1 / len(self.words)) and len(self.words) > 1
        below = [f"attention to words: {NEARLY_UNIFORM if flat else words}\nattention to the image"]
        overlay(self.image, self.attention, path, title, self.regions or None, titles=below, window=self.window)


class VQAPredictor(Predictor[Item, VQAPrediction]):
    """Predictor of visual question answering.

    Items are mappings with `image` (a path, the file's bytes, a PIL image or a uint8 array (H, W, 3)), `question` and,
    optionally, `id`.
    """

    task = "vqa"
    answer, graded_by = "answer", "accuracy"

    def to_sample(self, item: Item, number: int) -> VQASample:
        if isinstance(item, VQASample):
            return item
        if not isinstance(item, Mapping):
            raise DataError(f"item {number}", "a mapping with the keys image and question", type(item).__name__)
        name = name_of(item, number, ("image", "question"))
        if not str(item["question"]).strip():
            raise DataError(f"item {name}", "a question", "an empty one")
        return VQASample(id=name, image=item["image"], question=str(item["question"]))

    def truth(self, item: Item) -> str | None:
        return ", ".join(dict.fromkeys(item.answers)) or None if isinstance(item, VQASample) else None

    def grade(self, item: Item, truth: str, prediction: VQAPrediction) -> float:
        return vqa_accuracy(prediction.answer, item.answers) if isinstance(item, VQASample) else 0.0

    def text(self, item: Item) -> str:
        return item.question if isinstance(item, VQASample) else str(item["question"])

    def kind(self, item: Item) -> str:
        return item.answer_type if isinstance(item, VQASample) else ""

    def predict_batch(self, samples: Sequence[VQASample], batch: VQABatch, *, top_k: int = 1) -> list[VQAPrediction]:
        """Predict the answer to each question, with `top_k - 1` alternatives."""
        logits = self.model(batch.pixel_values, batch.input_ids, batch.key_mask, batch.image_index).logits
        scores, order = logits.float().softmax(-1).topk(min(top_k, logits.shape[-1]))
        answers = []
        for sample, row, ids in zip(samples, scores.tolist(), order.tolist(), strict=True):
            named = [(self.processor.answers[i], round(score, 4)) for i, score in zip(ids, row, strict=True)]
            unknown = self.processor.tokenizer.unknown_words(sample.question)
            answers.append(VQAPrediction(sample.id, sample.question, *named[0], named[1:], unknown))
        return answers

    def explain_batch(self, samples: Sequence[VQASample], batch: VQABatch) -> list[VQAExplanation]:
        """Compute the attention of each question to its image and words."""
        with torch.no_grad(), capture(self.model) as maps:
            self.model(batch.pixel_values, batch.input_ids, batch.key_mask, batch.image_index)
        attention = self.model.grid_attention(maps, batch.image_index, batch.key_mask).cpu()  # (B, gh, gw)
        words = self.model.word_attention(maps, batch.key_mask).cpu()  # (B, L)
        with torch.inference_mode():
            answers = self.predict_batch(samples, batch)
        explanations = []
        for n, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
            image = load_image(sample.image, name=f"item {sample.id}")
            window = self.processor.image.window(image.size)
            tokens = self.processor.tokens(sample.question)
            shown = (attention[n], window, words[n, : len(tokens)], tokens, list(sample.regions))
            explanations.append(VQAExplanation(answer, image, *shown))
        return explanations

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Item]:
        """Read the questions of a file in any of the training formats, or a folder's images with one `question`."""
        if not Path(path).exists():
            raise DataError(path, "a JSON, JSONL or CSV file, or a folder of images", "no such file")
        images = image_files(path)
        if not images:
            return VQADataset(path, on_error=on_error, require_labels=False).samples
        if "question" not in given:
            raise DataError(path, "images and --question", "no question")
        return [{"image": file, "id": name, **given} for name, file in images]

    def demo_samples(self) -> list[VQASample]:
        """A question of each family of the built-in test split, each about a different scene."""
        from mmattn.tasks.vqa.demo import FAMILIES, make

        samples = make("test", size=3 * len(FAMILIES))
        chosen: list[VQASample] = []
        for family in FAMILIES:
            seen = {sample.image_key() for sample in chosen}
            chosen.append(next(s for s in samples if s.question_type == family and s.image_key() not in seen))
        return chosen

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export torch.export and ONNX programs with dynamic batch size and question length, checked by the model."""
        from torch.export import Dim

        from mmattn.tasks.common.export import export_model

        batch, length = Dim("batch", max=4096), Dim("length", max=self.model.max_text_len)
        dynamic = {"pixel_values": {0: batch}, "input_ids": {0: batch, 1: length}, "key_mask": {0: batch, 1: length}}
        examples = [self._example(2, 9), self._example(1, 3), self._example(5, 14)]
        return export_model(self.model, examples, dynamic, folder, "vqa", formats)

    def _example(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        length = min(length, self.model.max_text_len)
        ids = torch.randint(2, self.processor.tokenizer.vocab_size, (batch, length), generator=generator)
        mask = torch.arange(length)[None] < torch.tensor([[max(1, length - n)] for n in range(batch)])
        pixels = torch.randn(batch, 3, *self.processor.image.size, generator=generator)
        return {"pixel_values": pixels, "input_ids": ids.masked_fill(~mask, 0), "key_mask": mask}


load = VQAPredictor.load
